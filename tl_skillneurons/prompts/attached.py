"""A model with virtual tokens: ids from ``d_vocab`` on stand for rows of a soft prompt while a context lasts."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional
from transformer_lens.hook_points import HookPoint
from transformer_lens.model_bridge import TransformerBridge

from tl_skillneurons.models.heads import head_is_plain
from tl_skillneurons.models.hooks import has_foreign_hooks, remove_hook
from tl_skillneurons.models.locks import held
from tl_skillneurons.models.sites import (
    heads_shown,
    hf_config,
    is_causal,
    mend_head_shapes,
    neuron_hooks,
)
from tl_skillneurons.models.tokenizing import mask_token_id
from tl_skillneurons.models.verification import agrees
from tl_skillneurons.prompts.positions import PromptedTokens, from_ids, published


class VirtualTokens:
    """The virtual tokens of an attached prompt.

    Attributes:
        batch: The tokens of the batch that is about to run, where somebody (PromptedModel) knows its padding;
            ``None`` takes the positions from the ids themselves.
        embedding: The rows; may be exchanged for as many others between two runs.
        points: The model's hook points by name.
        alone: Whether no other hooks were on the model when the prompt was attached.
        head_is_plain: Whether the vocabulary's matrix can be read in place of the head that runs.
        cache_checked: Whether kept texts were looked at since.

    Example:
        >>> with prompt.attached(model) as virtual:
        ...     tokens = torch.cat([text_tokens, virtual.ids.expand(len(text_tokens), -1)], dim=1)
        ...     logits, cache = model.run_with_cache(tokens)
    """

    def __init__(
        self,
        embedding: Float[Tensor, "virtual_token d_embed"],
        *,
        base: int,
        safe_id: int,
        mask_id: int | None,
        device: Any,
        points: Mapping[str, HookPoint],
        alone: bool,
        head_is_plain: bool,
    ) -> None:
        self.points, self.alone, self.head_is_plain = points, alone, head_is_plain
        self.cache_checked = False
        self.embedding, self._base, self._safe_id, self._mask_id = embedding, base, safe_id, mask_id
        self._device = device
        self._row: Tensor | None = None
        self._current: PromptedTokens | None = None
        self.batch: PromptedTokens | None = None

    @property
    def ids(self) -> Int[Tensor, " virtual_token"]:
        """The token ids that stand for the virtual tokens, in order."""
        return torch.arange(self._base, self._base + len(self.embedding), device=self._device)

    def current(self) -> PromptedTokens | None:
        """The positions of the batch that is running, or ``None`` before the first."""
        return self._current

    def on_ids(self, ids: Tensor, hook: Any) -> Tensor:
        """Hook for ``embed.hook_in``: put a real token's id where a virtual one stands."""
        highest = self._base + len(self.embedding)
        if ids.max() >= highest:
            raise ValueError(
                f"token ids must be below {highest} ({self._base} of the vocabulary and {len(self.embedding)} virtual "
                f"tokens), got {int(ids.max())}"
            )
        self._row = ids - self._base
        self._current = self.batch if self.batch is not None else from_ids(ids, self._base, self._mask_id)
        return torch.where(self._row >= 0, self._safe_id, ids)

    def on_embed(self, act: Tensor, hook: Any) -> Tensor:
        """Hook for ``embed.hook_out``: put the soft prompt's rows in their places."""
        row, self._row = self._row, None
        if row is None:
            raise RuntimeError(
                "the model's embedding ran without token ids; soft prompts need token input, not embeddings"
            )
        if not len(self.embedding):
            return act
        rows = functional.embedding(row.clamp(min=0), self.embedding.to(act))  # its backward is deterministic
        return torch.where((row >= 0).unsqueeze(-1), rows, act)


@contextmanager
def attach(
    model: TransformerBridge, embedding: Float[Tensor, "virtual_token d_embed"]
) -> Iterator[VirtualTokens]:
    """Let ids from ``d_vocab`` on stand for the rows of ``embedding`` (perhaps none) while the context lasts;
    another thread that would run the model waits."""
    with held(model), _attached(model, embedding) as virtual:
        yield virtual


@contextmanager
def _attached(
    model: TransformerBridge, embedding: Float[Tensor, "virtual_token d_embed"]
) -> Iterator[VirtualTokens]:
    mend_head_shapes(model)
    points = model.hook_dict
    virtual = VirtualTokens(
        embedding,
        base=model.W_E.shape[0],
        safe_id=_safe_id(model),
        mask_id=None if is_causal(model) else mask_token_id(model.tokenizer),
        device=model.cfg.device,
        points=points,
        alone=not has_foreign_hooks(model, points),
        head_is_plain=head_is_plain(model) and agrees(model, "output head"),
    )
    placed: list[tuple[HookPoint, Any]] = [
        (points["embed.hook_in"], virtual.on_ids),
        (points["embed.hook_out"], virtual.on_embed),
    ]
    handles = []
    sites = [
        points[name]
        for name in (*neuron_hooks(model).values(), *heads_shown(model).values())
        if name in points
    ]
    try:
        # permanent, so that a reset_hooks() in the context leaves them; first, so that other hooks see the rows
        for point, function in placed:
            handles.append((point, point.add_hook(function, is_permanent=True, prepend=True)))
        with published(sites, virtual.current):
            yield virtual
    finally:
        for point, handle in handles:
            remove_hook(point, handle)


def _safe_id(model: TransformerBridge) -> int:
    """An id that no model takes for padding: RoBERTa and its kin take position ids from where padding stands."""
    pads = {getattr(owner, "pad_token_id", None) for owner in (model.tokenizer, hf_config(model))}
    return next(i for i in (0, 2, 3) if i not in pads)  # 1 is MPNet's, whatever its config says
