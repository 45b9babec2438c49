"""What a bridge and the Hugging Face model inside it are compared on: made-up texts, and the few runs of them.

A run costs the reading of every weight, however few its rows: so what can stand side by side in one batch does. The
reference runs its texts unpadded.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformer_lens.model_bridge import TransformerBridge

from tl_skillneurons.models._comparisons import constant_ratio, difference, rounding
from tl_skillneurons.models._quiet_run import made_up_text, plain_run
from tl_skillneurons.models.causality import measured_sight, remember, sight_at_a_glance
from tl_skillneurons.models.hooks import Hooks
from tl_skillneurons.models.norms import watched_norms
from tl_skillneurons.models.sites import heads_shown, neuron_hooks, output_projection
from tl_skillneurons.models.tokenizing import pad_id
from tl_skillneurons.models.untouched import Untouched

LONG, SHORT, VIRTUAL, CHANGED = 7, 2, 3, 4


class Row(NamedTuple):
    """A row of a batch: a text, whether the made-up prompt stands beside it, and on which side the padding."""

    text: Int[Tensor, " pos"]
    prompted: bool
    padded: str


class Batch(NamedTuple):
    """What came out of a batch: each row's logits where something stands, where that is, and what was kept."""

    logits: list[Tensor]
    where: list[slice]
    kept: dict[str, Tensor]


@dataclass(frozen=True, eq=False)
class Subject:
    """A bridge, its reference, and made-up texts; what several comparisons need is run once."""

    model: TransformerBridge
    reference: Untouched

    @cached_property
    def points(self) -> Mapping[str, Any]:
        return self.model.hook_dict

    @cached_property
    def rounding(self) -> float:
        return rounding(self.model.embed.W_E.dtype)

    @cached_property
    def pad_id(self) -> int:
        """What stands where nothing stands; some models take their position ids from where it is."""
        return pad_id(self.model)

    @cached_property
    def sites(self) -> dict[int, str]:
        """The neurons' hook point of each layer that has neurons to name."""
        return neuron_hooks(self.model)

    @cached_property
    def text(self) -> Int[Tensor, " pos"]:
        return made_up_text(self.model, LONG, seed=3)

    @cached_property
    def short(self) -> Int[Tensor, " pos"]:
        return made_up_text(self.model, SHORT, seed=4)

    @cached_property
    def exchanged(self) -> Int[Tensor, " pos"]:
        """The text with another token in its middle."""
        other = self.text.clone()
        other[CHANGED] = made_up_text(self.model, 1, seed=2, without=self.text)[0]
        return other

    @cached_property
    def ran(self) -> tuple[Float[Tensor, "row pos d_vocab"], dict[str, Tensor], list[str]]:
        """The text through the bridge without a mask, in three rows: as it is, with every other neuron at zero, and
        with one token exchanged. Logits, what passes the hook points in the first row, and norms that are none."""
        names = [*self.sites.values(), *heads_shown(self.model).values(), "embed.hook_out", "unembed.hook_in"]
        edits = [(name, edit_second_row) for name in self.sites.values()]
        with watched_norms(self.model) as misfits:
            logits, kept = self.run(torch.stack([self.text, self.text, self.exchanged]), None, edits, names)
        return logits, {name: act[:1] for name, act in kept.items()}, misfits

    @cached_property
    def plain(self) -> tuple[Float[Tensor, "1 pos d_vocab"], dict[str, Tensor]]:
        """The text through the bridge as it is: logits, and what passes its hook points."""
        return self.ran[0][:1], self.ran[1]

    @cached_property
    def causal(self) -> bool:
        rows = self.ran[0]
        seen = sight_at_a_glance(rows[0], rows[2], CHANGED, 10 * self.rounding)
        if seen is None:
            return not measured_sight(self.model).later
        remember(self.model, seen)
        return not seen.later

    @cached_property
    def referred(self) -> tuple[Float[Tensor, "row pos d_vocab"], dict[int, Tensor]]:
        """The text through the reference, as it is and with every other neuron at zero: logits, and what enters its
        projections out of MLP and heads in the first row."""
        entered: dict[int, Tensor] = {}

        def look(key: int, act: Tensor) -> Tensor | None:
            if act.numel() != 2 * LONG * act.shape[-1]:
                return None  # what does not run on a whole text
            rows = act.reshape(2, LONG, act.shape[-1])  # OPT's are flattened
            entered[key] = rows[:1].clone()
            return edit_second_row(rows).reshape(act.shape) if key in self.sites else None

        with self.entering(look):
            logits = self.refer(input_ids=self.text.expand(2, -1))
        return logits, entered

    @cached_property
    def embedded(self) -> Float[Tensor, "pos d_embed"]:
        """The text's rows of ``inputs_embeds``."""
        return self.embeds(self.text)

    @cached_property
    def scale(self) -> float | None:
        """How many times ``inputs_embeds`` the activation at ``embed.hook_out`` is."""
        return constant_ratio(self.plain[1]["embed.hook_out"][0], self.embedded, self.rounding)

    @cached_property
    def soft(self) -> Float[Tensor, "virtual d_embed"]:
        """A made-up prompt, in the units of ``embed.hook_out``: mixtures of two tokens' embeddings."""
        rows = self.plain[1]["embed.hook_out"][0]
        return (rows[:VIRTUAL] + rows[VIRTUAL : 2 * VIRTUAL]) / 2

    @cached_property
    def side_by_side(self) -> Batch:
        """One batch through the bridge: the text alone, which fills its row; the short text with the prompt, padded on
        the left and on the right; and the text's beginning with the prompt, which fills its row too."""
        rows = [Row(self.text, False, "left"), Row(self.short, True, "left"), Row(self.short, True, "right")]
        return self.batch([*rows, Row(self.text[:-VIRTUAL], True, "left")], list(self.sites.values()))

    @cached_property
    def prompted_reference(self) -> Float[Tensor, "pos d_vocab"]:
        """The short text with the prompt, alone, through the reference."""
        return self.refer_with_prompt(self.short)

    @cached_property
    def whole(self) -> Batch:
        """The text's beginning and the short text with the prompt, padded on the left, with every layer's neurons."""
        rows, where, kept = self.side_by_side
        if self.agrees_in_batch(1):
            return Batch(
                [rows[3], rows[1]], [where[3], where[1]], {k: act[[3, 1]] for k, act in kept.items()}
            )
        texts = [self.text[:-VIRTUAL], self.short]
        return self.batch([Row(text, True, "left") for text in texts], list(self.sites.values()))

    def agrees_in_batch(self, row: int) -> bool:
        """Whether a row of the short text and the one that the text fills are what each is alone."""
        return self.scale is not None and self.off_in_batch(row) <= self.rounding

    def off_in_batch(self, row: int) -> float:
        """By how much the two differ."""
        rows = self.side_by_side.logits
        alone = difference(rows[0], self.referred[0][0])
        return max(alone, difference(rows[row], self.prompted_reference))

    def refer_with_prompt(self, text: Int[Tensor, " pos"]) -> Float[Tensor, "whole_pos d_vocab"]:
        """A text with the prompt through the reference: the prompt comes last in a causal model, else first."""
        if self.scale is None:
            raise ValueError("the model's embeddings are not a multiple of what it takes as inputs_embeds")
        parts = [self.embeds(text), self.soft / self.scale]
        return self.refer(inputs_embeds=torch.cat(parts if self.causal else parts[::-1])[None])[0]

    def embeds(self, ids: Int[Tensor, " pos"]) -> Float[Tensor, "pos d_embed"]:
        """What Hugging Face calls a text's ``inputs_embeds``."""
        embedding: Any = self.reference.model.get_input_embeddings()  # type: ignore[operator]
        with torch.no_grad():
            return embedding(ids[None])[0]

    def refer(self, **inputs: Any) -> Tensor:
        """The reference's logits."""
        with torch.no_grad():
            return self.reference.model(**inputs, use_cache=False).logits

    def run(
        self,
        ids: Tensor,
        mask: Tensor | None = None,
        hooks: Hooks = (),
        keep: list[str] | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The bridge's logits, and what passes the hook points of ``keep``, after ``hooks``."""
        kept: dict[str, Tensor] = {}

        def look(act: Any, hook: Any, name: str) -> None:
            kept[name] = act.detach().clone()

        looks = [(name, partial(look, name=name)) for name in keep or () if name in self.points]
        return plain_run(self.model, ids, mask, [*hooks, *looks], self.points, **kwargs), kept

    def batch(self, rows: list[Row], keep: list[str] | None = None) -> Batch:
        """Rows through the bridge as one padded batch, the prompt in its place."""
        lengths = [len(row.text) + VIRTUAL * row.prompted for row in rows]
        width = max(lengths)
        ids = torch.full((len(rows), width), self.pad_id, device=self.text.device)
        mask, virtual = torch.zeros_like(ids), torch.zeros_like(ids, dtype=torch.bool)
        where = []
        for number, ((text, prompted, padded), length) in enumerate(zip(rows, lengths, strict=True)):
            start = width - length if padded == "left" else 0
            where.append(slice(start, start + length))
            mask[number, where[-1]] = 1
            first = start + VIRTUAL if prompted and not self.causal else start
            ids[number, where[-1]] = text[0]
            ids[number, first : first + len(text)] = text
            if prompted:
                first = start + len(text) if self.causal else start
                virtual[number, first : first + VIRTUAL] = True
        hook = ("embed.hook_out", partial(put_rows, rows=self.soft, where=virtual))
        logits, kept = self.run(ids, mask, [hook], keep)
        return Batch([logits[number, at] for number, at in enumerate(where)], where, kept)

    @contextmanager
    def entering(self, look: Callable[[int, Tensor], Tensor | None]) -> Iterator[None]:
        """Let ``look`` see (and exchange) what enters each layer's projection out of its MLP; keys are layers, and
        ``-1 - layer`` for that out of its heads."""
        handles = []

        def hook(module: nn.Module, inputs: tuple[Tensor, ...], key: int) -> tuple[Tensor, ...] | None:
            new = look(key, inputs[0])
            return None if new is None else (new, *inputs[1:])

        try:
            parts = {layer: output_projection(self.model, layer) for layer in self.sites}
            parts |= {-1 - k: _part(block, "attn", "o") for k, block in enumerate(self.model.blocks)}
            for key, part in parts.items():
                own = None if part is None else self.reference.part(part)
                if own is not None:
                    handles.append(own.register_forward_pre_hook(partial(hook, key=key)))
            yield
        finally:
            for handle in handles:
                handle.remove()


def edit_second_row(act: Tensor, hook: Any = None) -> Tensor:
    """Every other neuron at zero, in the second row of a batch."""
    new = act.clone()
    new[1, ..., ::2] = 0
    return new


def put_rows(act: Tensor, hook: Any, *, rows: Tensor, where: Tensor) -> Tensor:
    """Hook for ``embed.hook_out``: ``rows`` in their places, in every row of the batch that has places for them."""
    new = act.clone()
    new[where] = rows.to(act).repeat(int(where.any(1).sum()), 1)
    return new


def _part(block: Any, of: str, name: str) -> nn.Module | None:
    whole = block._modules.get(of)
    return None if whole is None else getattr(whole, name, None)
