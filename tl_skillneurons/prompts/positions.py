"""Where the virtual tokens, the text and the padding stand: the one place that knows.

A prompted sequence is contiguous, and padding stands outside it, on one side::

    suffix (causal)            [text] [virtual tokens]              read out at the last virtual token
    prefix (bidirectional)     [mask] [virtual tokens] [text]       read out at the mask
    prefix (causal, as PEFT)   [virtual tokens] [text]              read out at the last token of the text

A chat template stands around the text, and is no part of it: ``[template] [text] [template] [virtual tokens]``.

Causal models are padded on the left and bidirectional ones on the right, so that position ids, sliding
windows and read-outs of an example are those it has alone. All indices here are in the frame *with* virtual
tokens; those named ``column`` count padding as well.

While a prompted model runs, :func:`published` leaves the :class:`PromptedTokens` of the current batch in the
context (``HookPoint.ctx``) of every neuron hook point, where a hook that acts at "prompt" or "text" finds
them.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from tl_skillneurons._checks import require_option
from tl_skillneurons._results import html_of_fields, short_repr
from tl_skillneurons.prompts._cut import NO_FRAME, Frame, framed, split_answer, truncate

PLACEMENTS = ("prefix", "suffix")
PADDING_SIDES = ("left", "right")
NAMED = ("all", "prompt", "text", "special", "template")
"""The positions that go by a name in every run: "text" is what was written, "special" what the tokenizer puts around
it."""
PLACES = (*NAMED, "generated")
"""These, and what the model writes where it does (:meth:`~tl_skillneurons.PromptedModel.generate`)."""
Positions = str | slice | Sequence[int] | Int[Tensor, " pos"]
"""Where: "all", "prompt", "text", "special" (tokens that the tokenizer puts around the text), "template" (what a chat
template puts there), "generated", or a slice or indices into the sequence with virtual tokens."""
_KEY = "tl_skillneurons.tokens"


@dataclass(frozen=True)
class ActsAt:
    """A hook function that declares at which positions it reads or writes.

    What a run may leave out (a text's keys and values that are kept, the last MLP beside the read-out) is decided
    by this declaration; a hook that declares nothing is taken to act anywhere.

    Args:
        positions: "prompt", "text", "special" (tokens that the tokenizer puts around it), "template" (what a chat
            template puts there), "generated", "all" (whatever position a batch has), each on its own, or "chosen" for
            others.
        function: In TransformerLens' form, ``(act, hook) -> act``, or ``None`` to leave it.

    Example:
        >>> hook = ("blocks.0.mlp.hook_post", ActsAt("prompt", lambda act, hook: act))
    """

    positions: str
    function: Callable[..., Tensor | None]

    def __post_init__(self) -> None:
        require_option(self.positions, "positions", (*PLACES, "chosen"))

    def __call__(self, act: Tensor, hook: Any) -> Tensor | None:
        return self.function(act, hook=hook)

    def __repr__(self) -> str:
        # TransformerLens asks for it of each hook that it is given; to write out tensors takes longer than their edit
        name = getattr(self.function, "__name__", type(self.function).__name__)
        return f"ActsAt({self.positions!r}, {name})"


def all_act_at(positions: str, hooks: Iterable[tuple[Any, Any]]) -> bool:
    """Whether every one of these hooks declares just these positions."""
    return all(isinstance(function, ActsAt) and function.positions == positions for _, function in hooks)


@dataclass(frozen=True)
class PromptedTokens:
    """One batch, tokenized, with the virtual tokens in place; every axis ``pos`` counts padding and virtual
    tokens.

    ``ids`` from ``d_vocab`` on stand for virtual tokens. ``is_text`` covers the text as the tokenizer makes
    it, special tokens included; ``is_special`` are those special tokens (BOS, [CLS], [SEP]). ``is_template`` is what a
    chat template puts around the text, none of which counts as text. ``readout`` is
    the column at which class logits are read, ``example`` each row's number in the caller's order,
    ``n_truncated`` how many rows lost text. ``is_generated`` are those that the model has written, ``None`` where it
    writes nothing.

    Example:
        >>> tokens = prompted.tokens(["a good film", "dull"])
        >>> tokens.ids[tokens.is_prompt]  # the virtual tokens (and the mask, if there is one)
    """

    __repr__ = short_repr
    _repr_html_ = html_of_fields

    ids: Int[Tensor, "batch pos"]
    attention_mask: Int[Tensor, "batch pos"]
    is_prompt: Bool[Tensor, "batch pos"]
    is_text: Bool[Tensor, "batch pos"]
    is_special: Bool[Tensor, "batch pos"]
    is_template: Bool[Tensor, "batch pos"]
    readout: Int[Tensor, " batch"]
    example: Int[Tensor, " batch"]
    n_truncated: int = 0
    is_generated: Bool[Tensor, "batch pos"] | None = None

    def of_kind(self, kind: str, what: str = "positions") -> Bool[Tensor, "batch pos"]:
        """Which columns are of a kind that goes by a name (:data:`PLACES`), padding left out; "text" is what was
        written, without the special tokens around it.

        Raises:
            ValueError: For "special" or "template" of texts without any, and "generated" where nothing is.
        """
        written_alone = self.is_generated is not None and bool(self.is_generated.all())
        if kind == "template" and not written_alone:
            require_template(self, what)
        if kind == "special" and not written_alone:
            _require_special(self, what)
        kinds = {"all": ~self.is_padding, "prompt": self.is_prompt, "text": self.is_text & ~self.is_special}
        kinds |= {"special": self.is_special, "template": self.is_template}
        if kind in kinds:
            return kinds[kind]
        if self.is_generated is None:
            raise ValueError(
                f"{what}={kind!r} are those that the model writes, and this run writes nothing; use "
                "PromptedModel.generate"
            )
        return self.is_generated

    @property
    def is_padding(self) -> Bool[Tensor, "batch pos"]:
        """Columns that hold nothing; no result depends on them."""
        return self.attention_mask == 0

    def __len__(self) -> int:
        return len(self.ids)

    def to(self, device: Any) -> "PromptedTokens":
        """The same batch on another device."""
        moved: dict[str, Any] = {
            f.name: v.to(device) for f in fields(self) if isinstance(v := getattr(self, f.name), Tensor)
        }
        return replace(self, **moved)

    def last(self, n: int) -> "PromptedTokens":
        """The last ``n`` columns alone: what runs on top of the text's keys and values."""
        names: tuple[str, ...] = (
            "ids",
            "attention_mask",
            "is_prompt",
            "is_text",
            "is_special",
            "is_template",
        )
        names += () if self.is_generated is None else ("is_generated",)
        cut: dict[str, Any] = {name: getattr(self, name)[:, -n:] for name in names}
        return replace(self, **cut, readout=self.readout - (self.ids.shape[1] - n))

    def grown(self, ids: Int[Tensor, "batch run"], n_written: int) -> "PromptedTokens":
        """What runs when the model has written ``n_written`` tokens to this batch: all of it, or what is not kept yet.

        Args:
            ids: What the model is given; the last of them, up to ``n_written``, are those it has written.
        """
        n_new = min(ids.shape[1], n_written)
        n_old = ids.shape[1] - n_new
        if n_old not in (0, self.ids.shape[1]):
            raise RuntimeError(
                f"the model runs {n_old} columns of a batch that has {self.ids.shape[1]}, which was not expected here"
            )
        start = self.ids.shape[1] - n_old

        def joined(old: Tensor, written: int) -> Tensor:
            return torch.cat([old[:, start:], old.new_full((len(self), n_new), written)], dim=1)

        before = torch.zeros_like(self.is_text) if self.is_generated is None else self.is_generated
        return replace(
            self,
            ids=torch.cat([self.ids[:, start:], ids[:, n_old:]], dim=1),
            attention_mask=joined(self.attention_mask, 1),
            is_prompt=joined(self.is_prompt, False),
            is_text=joined(self.is_text, False),
            is_special=joined(self.is_special, False),
            is_template=joined(self.is_template, False),
            is_generated=joined(before, True),
            readout=torch.full_like(self.readout, ids.shape[1] - 1),
        )

    def prompt_columns(self) -> Int[Tensor, "batch prompt_pos"]:
        """The columns of the prompt positions (the mask first, where there is one), row by row."""
        n_positions = int(self.is_prompt[0].sum())
        return self.is_prompt.nonzero()[:, 1].view(len(self), n_positions)


def arrange(
    text_ids: list[list[int]],
    *,
    virtual_ids: Iterable[int],
    placement: str,
    mask_id: int | None,
    special_ids: frozenset[int],
    pad_id: int,
    padding_side: str,
    max_length: int | None,
    frame: Frame = NO_FRAME,
    example: Iterable[int] | None = None,
    needs_text: bool = True,
) -> PromptedTokens:
    """Put the virtual tokens beside each text, cut what is too long out of the text, and pad.

    Args:
        text_ids: Token ids of each text, its special tokens included, and of an answer to it, if it has one, from
            :data:`~tl_skillneurons.prompts._cut.ANSWER` on.
        virtual_ids: Ids of the virtual tokens, in order; empty without a prompt.
        mask_id: The token put before a prefix and read out; ``None`` reads out at the last token.
        special_ids: Which ids are special tokens; those at the end of a text survive truncation.
        max_length: Longest sequence allowed, virtual tokens and mask included; ``None`` for no limit.
        frame: The ids that a chat template puts before and after every text; they are never cut.
        example: Each row's number in the caller's order; by default 0, 1, 2, ...
        needs_text: Refuse a text without a token of its own.

    Raises:
        ValueError: When there is no text, a text has no token, or the prompt leaves no room for text.
    """
    if not text_ids:
        raise ValueError("texts must not be empty")
    before = [] if mask_id is None else [mask_id]
    virtual = list(virtual_ids)
    n_prompt = len(before) + len(virtual)
    rows, kinds, readouts, n_truncated = [], [], [], 0
    numbers = list(range(len(text_ids)) if example is None else example)
    for number, ids in zip(numbers, text_ids, strict=True):
        cut, answer = split_answer(truncate(ids, n_prompt, special_ids, max_length, frame))
        n_head, n_tail = framed(cut, frame)
        own = cut[n_head : len(cut) - n_tail]
        if needs_text and not any(i not in special_ids for i in own):
            raise ValueError(f"text {number} has no token of its own; give texts that are not empty")
        n_truncated += len(cut) + len(answer) < len(ids)
        text_kind = (
            [4] * n_head + [3 if i in special_ids else 2 for i in own] + [4] * n_tail + [5] * len(answer)
        )
        cut = cut + answer
        if placement == "prefix":
            rows.append(before + virtual + cut)
            kinds.append([1] * n_prompt + text_kind)
        else:
            rows.append(cut + before + virtual)
            kinds.append(text_kind + [1] * n_prompt)
        readouts.append(0 if mask_id is not None and placement == "prefix" else len(rows[-1]) - 1)
    width = max(map(len, rows))
    token_ids = torch.full((len(rows), width), pad_id)
    kind = torch.zeros(len(rows), width, dtype=torch.long)
    readout = torch.tensor(readouts)
    for row, (row_ids, row_kind) in enumerate(zip(rows, kinds, strict=True)):
        start = width - len(row_ids) if padding_side == "left" else 0
        token_ids[row, start : start + len(row_ids)] = torch.tensor(row_ids)
        kind[row, start : start + len(row_ids)] = torch.tensor(row_kind)
        readout[row] += start
    return PromptedTokens(
        ids=token_ids,
        attention_mask=(kind > 0).long(),
        is_prompt=kind == 1,
        is_text=(kind == 2) | (kind == 3),
        is_special=kind == 3,
        is_template=kind == 4,
        readout=readout,
        example=torch.tensor(numbers),
        n_truncated=n_truncated,
        is_generated=(kind == 5) if (kind == 5).any() else None,
    )


def from_ids(ids: Int[Tensor, "batch pos"], base: int, mask_id: int | None) -> PromptedTokens:
    """The positions of a batch of ids that a user put together, in which padding can't be told from text.

    Args:
        base: Ids from here on are virtual tokens.
        mask_id: A mask directly before the first virtual token is a prompt position as well.
    """
    is_prompt = ids >= base
    if mask_id is not None:
        before_first = torch.zeros_like(is_prompt)
        before_first[:, :-1] = (ids == base)[:, 1:]
        is_prompt = is_prompt | (before_first & (ids == mask_id))
    return PromptedTokens(
        ids=ids,
        attention_mask=torch.ones_like(ids),
        is_prompt=is_prompt,
        is_text=~is_prompt,
        is_special=torch.zeros_like(is_prompt),
        is_template=torch.zeros_like(is_prompt),
        readout=torch.full((len(ids),), ids.shape[1] - 1, device=ids.device),
        example=torch.arange(len(ids), device=ids.device),
    )


@contextmanager
def published(points: Iterable[Any], current: Callable[[], PromptedTokens | None]) -> Iterator[None]:
    """Let hooks at these hook points find the tokens of the batch that runs, by calling ``current``."""
    points = list(points)
    before = [point.ctx.get(_KEY) for point in points]
    for point in points:
        point.ctx[_KEY] = current
    try:
        yield
    finally:
        for point, old in zip(points, before, strict=True):
            if old is None:
                point.ctx.pop(_KEY, None)
            else:
                point.ctx[_KEY] = old


def current_tokens(hook: Any) -> PromptedTokens | None:
    """The tokens of the batch that is running through this hook point, or ``None`` where nobody published them."""
    current = hook.ctx.get(_KEY)
    return None if current is None else current()


def columns(positions: Any, act: Tensor, hook: Any, *, what: str = "positions") -> Bool[Tensor, "batch pos"]:
    """Which columns of ``act`` a choice of positions means, given what is running through this hook point.

    Args:
        positions: A name of :data:`PLACES`, or a slice or indices into the sequence. Those count from the example's own
            first token, virtual tokens included, where the padding is known, else from the first column; negative ones
            from the end.
        act: The activation ``[batch, pos, ...]`` at the hook point.

    Raises:
        ValueError: When "prompt", "text", "special" or "template" is asked for where nobody knows them, "special" or
            "template" of texts without any, "generated" where nothing is, or an index is outside the sequence.
    """
    batch, n_columns = act.shape[:2]
    if isinstance(positions, str) and positions == "all":
        return torch.ones(batch, n_columns, dtype=torch.bool, device=act.device)
    tokens = current_tokens(hook)
    if tokens is not None and tokens.ids.shape != (batch, n_columns):
        raise ValueError(
            f"the batch that was announced has shape {tuple(tokens.ids.shape)}, the activation at {hook.name} "
            f"{(batch, n_columns)}; run the model on token ids inside `attached`, or use PromptedModel"
        )
    if isinstance(positions, str):
        if tokens is None:
            raise ValueError(
                f"{what}={positions!r} needs to know where the virtual tokens stand, and this model runs without any; "
                "run it through PromptedModel or inside `with prompt.attached(model)`, or give a slice or indices"
            )
        return tokens.of_kind(positions, what).to(act.device)
    if tokens is None:
        start = torch.zeros(batch, dtype=torch.long)
        length = torch.full((batch,), n_columns)
    else:
        real = tokens.attention_mask.cpu()
        start, length = real.argmax(1), real.sum(1)
    chosen = torch.zeros(batch, n_columns, dtype=torch.bool)
    for row, (first, n) in enumerate(zip(start.tolist(), length.tolist(), strict=True)):
        chosen[row, [first + i for i in _indices(positions, n, what)]] = True
    return chosen.to(act.device)


def _require_special(tokens: PromptedTokens, what: str) -> None:
    if not tokens.is_special.any():
        raise ValueError(
            f"{what}='special' needs special tokens around the texts, and the tokenizer puts none there; give other "
            "positions"
        )


def require_template(tokens: PromptedTokens, what: str = "positions") -> None:
    """Refuse texts around which no chat template stands.

    Raises:
        ValueError: Then.
    """
    if not tokens.is_template.any():
        raise ValueError(
            f"{what}='template' needs texts in a chat template, and these stand alone; make the task with chat=, run "
            "it through PromptedModel, or give other positions"
        )


def _indices(positions: Any, n: int, what: str) -> list[int]:
    if isinstance(positions, slice):
        return list(range(*positions.indices(n)))
    wanted = [int(i) for i in positions]
    outside = [i for i in wanted if not -n <= i < n]
    if outside:
        raise ValueError(f"{what} must be in [-{n}, {n}) for a sequence of {n} tokens, got {outside[0]}")
    return [i % n for i in wanted]
