"""Up to which length a model's positions mean the same whatever the longest text of a batch is.

Rotary embeddings of some models change with the longest text: LongRoPE (Phi-3) takes other frequencies beyond the
length of its first training, dynamic scaling takes others at every length. Measured is what the model's own rotary
modules give for the first positions, beside a short and a long last one; no text is run.
"""

import copy
from collections.abc import Callable, Iterator
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformer_lens.model_bridge import TransformerBridge

from tl_skillneurons.models.sites import max_length
from tl_skillneurons.models.untouched import inner

_MEASURED: WeakKeyDictionary[TransformerBridge, int | None] = WeakKeyDictionary()
_FAR = 2**17
"""How far is looked at in a model that states no limit."""


def length_limit(model: TransformerBridge) -> int | None:
    """The longest sequence for which positions mean what they do in short ones; ``None`` where that is all of them.

    Texts up to there may stand in one batch, and so may longer ones, but not both together.
    """
    if model not in _MEASURED:
        limits = [first_change(of, max_length(model) or _FAR) for of in _rotations(model)]
        _MEASURED[model] = min((limit for limit in limits if limit is not None), default=None)
    return _MEASURED[model]


def first_change(rotation: Callable[[int], Float[Tensor, "..."]], longest: int) -> int | None:
    """The length up to which ``rotation`` is what it is at 2; ``None`` where it is so up to ``longest``."""
    short = rotation(2)

    def is_same(length: int) -> bool:
        return torch.equal(rotation(length), short)

    if longest <= 2 or is_same(longest):
        return None
    same, other = 2, longest
    while other - same > 1:
        middle = (same + other) // 2
        same, other = (middle, other) if is_same(middle) else (same, middle)
    return same


def _rotations(model: TransformerBridge) -> Iterator[Callable[[int], Tensor]]:
    """For each rotary module and kind of layer, what it gives for position 1 in a sequence of some length."""
    modules = {id(inner(part)): inner(part) for part in model.original_model.modules()}
    for module in modules.values():
        if "rotary" not in type(module).__name__.lower() or not any("inv_freq" in b for b in module._buffers):
            continue
        own = copy.deepcopy(module)  # it remembers the longest text it saw
        kinds = getattr(own, "rope_type", None)
        for kind in kinds if isinstance(kinds, dict) else [None]:
            rotation = _rotation(own, kind, torch.device(model.cfg.device or "cpu"))
            try:
                rotation(2)
            except (TypeError, RuntimeError, AttributeError):  # it is given something else than position ids
                continue
            yield rotation


def _rotation(module: nn.Module, kind: str | None, device: torch.device) -> Callable[[int], Tensor]:
    def rotate(length: int) -> Tensor:
        ids = torch.tensor([[0, 1, length - 1]], device=device)
        options = {} if kind is None else {"layer_type": kind}
        with torch.no_grad():
            given = module(torch.zeros(1, 3, 1, device=device), ids, **options)
        # cosines and sines, or both as one complex number (Llama 4)
        parts = [given] if isinstance(given, Tensor) else list(given[:2])
        parts = [torch.view_as_real(part) if part.is_complex() else part for part in parts]
        return torch.stack([part[:, :2] for part in parts])

    return rotate
