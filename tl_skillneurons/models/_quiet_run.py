"""Running a model that may be anything, to see what it is: nothing is changed by it, and nobody else's hooks run.

Made-up texts are ids drawn from the vocabulary; nothing about a language is assumed.
"""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any
from weakref import WeakSet

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformer_lens.model_bridge import TransformerBridge
from transformer_lens.model_bridge.exceptions import StopAtLayerException

from tl_skillneurons.models.hooks import Hooks, hooked, without_foreign_hooks
from tl_skillneurons.models.locks import held

_QUIET: WeakSet[TransformerBridge] = WeakSet()


def made_up_text(
    model: TransformerBridge, n: int, *, seed: int, without: Tensor | None = None
) -> Int[Tensor, " pos"]:
    """``n`` different token ids of the vocabulary, none of them special (or in ``without``) where enough are left."""
    tokenizer = getattr(model, "tokenizer", None)
    d_vocab = int(model.embed.W_E.shape[0])
    avoided = {0, 1, 2, 3, *(getattr(tokenizer, "all_special_ids", None) or ())}
    avoided |= set() if without is None else set(without.tolist())
    plain = [i for i in range(min(d_vocab, 4096)) if i not in avoided]
    if len(plain) < n:
        plain = list(range(d_vocab))
    order = torch.randperm(len(plain), generator=torch.Generator().manual_seed(seed))
    ids = torch.tensor(plain)[order.repeat(1 + n // len(plain))[:n]]
    return ids.to(model.cfg.device)


@contextmanager
def quietly(model: TransformerBridge) -> Iterator[None]:
    """In here the model is in eval mode, keeps no graph, has the host's hooks alone, and is this thread's."""
    with held(model), torch.no_grad(), ExitStack() as stack:
        if model not in _QUIET:  # the lock is held, so whoever made it quiet is this thread
            stack.enter_context(_evaluating(model))
            stack.enter_context(without_foreign_hooks(model))
            _QUIET.add(model)
            stack.callback(_QUIET.discard, model)
        yield


def plain_run(
    model: TransformerBridge,
    ids: Int[Tensor, "batch pos"],
    mask: Int[Tensor, "batch seen_pos"] | None = None,
    fwd_hooks: Hooks = (),
    points: Mapping[str, Any] | None = None,
    **kwargs: Any,
) -> Float[Tensor, "batch pos d_vocab"]:
    """The bridge's logits at every position."""
    if mask is not None:
        kwargs["attention_mask"] = mask
    with quietly(model), hooked(model, fwd_hooks, points):
        try:
            return model(ids, **kwargs)
        except StopAtLayerException as stopped:
            return stopped.layer_output


@contextmanager
def _evaluating(model: TransformerBridge) -> Iterator[None]:
    parts: dict[int, nn.Module] = {
        id(p): p for root in (model, model.original_model) for p in root.modules() if p.training
    }
    for part in parts.values():
        part.training = False
    try:
        yield
    finally:
        for part in parts.values():
            part.training = True
