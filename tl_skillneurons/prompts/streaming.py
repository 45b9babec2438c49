"""Every layer's neuron activations at chosen positions, batch by batch, gone with their batch.

The model stops after the last layer's neurons: the vocabulary is never projected, and the last MLP runs at
the chosen positions alone. Where several suffix prompts of a causal model are read, each text runs once and
its keys and values serve them all.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformer_lens.model_bridge.exceptions import StopAtLayerException

from tl_skillneurons._progress import Advance
from tl_skillneurons.models.batches import padding, run_batches
from tl_skillneurons.models.hooks import Hook, Hooks
from tl_skillneurons.models.sites import neuron_hooks
from tl_skillneurons.models.verification import require
from tl_skillneurons.prompts.positions import PromptedTokens
from tl_skillneurons.prompts.prompted_model import PromptedModel

AT_ANSWER = ("answer_first", "answer_last", "answer")
READINGS = ("prompt", "last", "mean", "max", "special", "template", "readout", *AT_ANSWER)
"""Where activations are read: at each prompt position; at the last of the text's own tokens, or averaged or highest
over them; averaged over the special tokens, or over what a chat template puts around the text; where the answer is read
out; or at the first or the last token of an answer that stands behind the text, or averaged over it."""

Reduce = Callable[[int, int, Float[Tensor, "batch position neuron"], Int[Tensor, " batch"]], Tensor]
"""Takes the prompt's number, a layer, its neurons' activations and which example each row is; gives what is
kept of them."""

Add = Callable[[int, int, Tensor, Int[Tensor, " batch"]], None]
"""Takes the prompt's number, a layer, what was kept of a batch, and which example each row is."""


def stream_activations(
    prompted: Sequence[PromptedModel],
    texts: Sequence[str],
    reduce: Reduce,
    add: Add,
    *,
    positions: str = "prompt",
    fwd_hooks: Hooks = (),
    rank_and_count: tuple[int, int] = (0, 1),
    advance: Advance | None = None,
) -> dict[str, int]:
    """Run ``texts`` in batches of similar length; ``add`` what ``reduce`` keeps of each layer that has neurons to name.

    Args:
        prompted: One model with one prompt or several that stand alike (see :func:`stand_alike`); batches are those
            that the first one's ``run`` asks for.
        add: Called when a whole batch is done, so that a batch that fails leaves nothing behind.
        rank_and_count: Every ``count``-th batch from ``rank`` on runs here.

    Returns:
        The number of batches (of all processes), of their tokens, and how many of these are padding.

    Raises:
        ValueError: When an activation is not finite; names the layer and the example.
        RuntimeError: When a layer did not show its neurons once per batch, which would look like "no effect".

    Example:
        >>> total = torch.zeros(model.cfg.n_layers, model.cfg.d_mlp)
        >>> def reduce(prompt, layer, act, example):  # what is kept: a sum over the batch and its positions
        ...     return act.sum((0, 1))
        >>> def add(prompt, layer, kept, example):
        ...     total[layer] += kept
        >>> stream_activations([prompted], texts, reduce, add)
    """
    first = prompted[0]
    require(first.model, "neurons")
    names = neuron_hooks(first.model)
    ids = first.encode(texts)
    with first.attached() as virtual, torch.no_grad():
        apart = positions == "prompt" and first.runs_apart(virtual, fwd_hooks)
        if apart and first.run.cache is not None:
            first.run.cache.plan(first.cut(ids))
        kept = (
            apart and first.run.cache is not None and rank_and_count[1] == 1
        )  # several want several batches
        batches = first.batches(ids, suffix_alone=kept)
        alone = positions == "prompt" and not apart and not fwd_hooks and virtual.alone
        ends = max(names) == len(first.model.blocks) - 1  # the last layer that is read is the last there is
        narrow_at = first.last_mlp if alone and ends else None

        def look(batch: list[int], exactly: bool = False) -> list[tuple[int, int, Tensor]]:
            tokens = first.assemble([ids[i] for i in batch], batch)
            past = first.past(tokens) if apart else None
            read = reading(tokens.last(first.layout.n_virtual_tokens) if apart else tokens, positions)
            found: list[tuple[int, int, Tensor]] = []
            sums: list[Tensor] = []
            for number, model in enumerate(prompted):
                if model.prompt is not None:
                    virtual.embedding = model.prompt.embedding

                def keep(layer: int, acts: Tensor, number: int = number) -> None:
                    if exactly:
                        _require_finite(acts, layer, tokens.example, texts)
                    sums.append(acts.sum(dtype=torch.promote_types(acts.dtype, torch.float32)))
                    found.append((number, layer, reduce(number, layer, acts, tokens.example)))

                hooks = _hooks(names, read, keep, narrow_at)
                model.forward(tokens, virtual, [*fwd_hooks, *hooks], past)
            # one sum shows whatever is not finite, and one transfer a batch tells it
            if not exactly and not torch.stack([s.to(sums[0].device) for s in sums]).isfinite().all():
                return look(batch, exactly=True)
            return found

        def run(batch: list[int]) -> None:
            found = look(batch)
            seen = [(number, layer) for number, layer, _ in found]
            if seen != [(number, layer) for number in range(len(prompted)) for layer in names]:
                raise RuntimeError(
                    f"expected each of {len(names)} layers to show its neurons once for each of {len(prompted)} "
                    f"prompts, saw (prompt, layer) {seen}"
                )
            example = torch.tensor(batch)
            for number, layer, kept in found:
                add(number, layer, kept, example)
            if advance is not None:
                advance(len(batch))

        rank, count = rank_and_count
        run_batches(batches[rank::count], run)
    return padding(first.lengths(ids), batches)


def stand_alike(prompted: Sequence[PromptedModel]) -> list[list[int]]:
    """The models in groups (of indices) whose prompts differ in their embeddings alone, so that one run of a
    text serves a group."""
    groups: dict[Any, list[int]] = {}
    for number, model in enumerate(prompted):
        prompt = model.prompt
        kind = None if prompt is None else (prompt.placement, prompt.n_virtual_tokens)
        chat = None if model.layout.chat is None else model.layout.chat.told
        groups.setdefault((kind, model.prepend_bos, chat, model.max_length), []).append(number)
    return list(groups.values())


def _hooks(
    names: dict[int, str],
    read: Callable[[Tensor], Tensor],
    keep: Callable[[int, Tensor], None],
    narrow_at: str | None,
) -> Hooks:
    last = max(names)

    def at(layer: int) -> Callable[..., None]:
        def hook_function(act: Tensor, hook: Any) -> None:
            keep(layer, act if layer == last and narrow_at is not None else read(act))
            if layer == last:
                raise StopAtLayerException(act)

        return hook_function

    def narrow(act: Tensor, hook: Any) -> Tensor:
        return read(act)

    hooks: list[Hook] = [(name, at(layer)) for layer, name in names.items()]
    return hooks if narrow_at is None else [(narrow_at, narrow), *hooks]


def _require_finite(acts: Tensor, layer: int, example: Tensor, texts: Sequence[str]) -> None:
    if acts.isfinite().all():
        return
    row = int((~acts.isfinite()).flatten(1).any(1).nonzero()[0])
    number = int(example[row])
    raise ValueError(
        f"activations are not finite in layer {layer} on example {number} ({texts[number]!r}); "
        "load the model in float32, or leave that example out"
    )


def reading(
    tokens: PromptedTokens, positions: str
) -> Callable[[Tensor], Float[Tensor, "batch position neuron"]]:
    """A function that takes ``[batch, pos, neuron]`` to the scored positions of this batch."""
    if positions == "prompt":
        columns = tokens.prompt_columns()
        if (columns == columns[0]).all():  # always, unless padding was asked for on the other side
            first, last = int(columns[0, 0]), int(columns[0, -1])
            return lambda act: act[:, first : last + 1]
        rows = torch.arange(len(tokens), device=columns.device)[:, None]
        return lambda act: act[rows, columns]
    if positions in AT_ANSWER:
        return _at_answer(tokens, positions)
    own = tokens.is_text & ~tokens.is_special
    if positions in ("last", "readout"):
        last_own = own.shape[1] - 1 - own.int().flip(1).argmax(1)
        column = last_own if positions == "last" else tokens.readout.to(own.device)
        rows = torch.arange(len(tokens), device=own.device)
        return lambda act: act[rows, column][:, None]
    if positions in ("special", "template"):
        kind = tokens.of_kind(positions)
        return lambda act: _masked_mean(act, kind)
    if positions == "max":
        return lambda act: act.masked_fill(~own.to(act.device)[..., None], -torch.inf).amax(1, keepdim=True)
    return lambda act: _masked_mean(act, own)


def _masked_mean(act: Tensor, own: Bool[Tensor, "batch pos"]) -> Tensor:
    own = own.to(act.device)
    wide = act.masked_fill(~own[..., None], 0).sum(1, keepdim=True, dtype=torch.float64)
    return (wide / own.sum(1)[:, None, None]).to(act.dtype)


def _at_answer(
    tokens: PromptedTokens, positions: str
) -> Callable[[Tensor], Float[Tensor, "batch position neuron"]]:
    own = tokens.is_generated
    absent = list(range(len(tokens))) if own is None else (~own.any(1)).nonzero()[:, 0].tolist()
    if own is None or absent:
        raise ValueError(
            f"positions={positions!r} are of an answer that stands behind the text, and example "
            f"{int(tokens.example[absent[0]])} has none; take JudgedAnswers.with_answers(), or other positions"
        )
    if positions == "answer":
        return lambda act: _masked_mean(act, own)
    rows = torch.arange(len(tokens), device=own.device)
    first, last = own.int().argmax(1), own.shape[1] - 1 - own.int().flip(1).argmax(1)
    column = first if positions == "answer_first" else last
    return lambda act: act[rows, column][:, None]
