"""One neuron's profile, laid out for whoever shows it: texts as pieces to be coloured, numbers beside their controls.

What a piece's colour is: ``moved``, the part of the neuron's activation at the prompt (its pre-activation, where the
MLP has no gate) that attention carries straight from the piece's tokens: summed over all heads of all layers up to the
neuron's, pattern times value times what the neuron reads of it, exact at the scales that the norms had in this run
(:mod:`~tl_skillneurons.attention.decomposition`).

Beside it stands ``activation``, what the neuron itself does at the piece, where nobody asks for the label yet: a neuron
that fires at a word of the text and one that reads the word at the prompt are two things.

What it doesn't show: where a token's position got it from (from layer 1 on it holds more than its own word), and what
MLPs at the prompt made of words before the neuron read it, which is all in ``from_mlps``. Without the word other
scales, patterns and MLPs would differ too; ablating or leaving out the word tells that.
"""

from dataclasses import dataclass
from functools import cached_property

import pandas as pd
from jaxtyping import Float, Int
from torch import Tensor

from tl_skillneurons._results import html_of_fields
from tl_skillneurons._words import word_spans

PARTS_OF_TOTAL = ("from_words", "from_special", "from_prompt", "from_embedding", "from_mlps", "from_biases")
"""What an activation at the prompt is the sum of."""


@dataclass(frozen=True)
class Piece:
    """A word of a text, or what stands between two.

    Attributes:
        text: Its characters, as written.
        moved: What attention carries from its tokens to the neuron; ``None`` for white space, and for what is behind
            the text's cut.
        activation: What the neuron itself does at the piece, of several tokens where it does most; ``None`` likewise.
    """

    text: str
    moved: float | None
    activation: float | None = None


@dataclass(frozen=True)
class DrivingText:
    """A text that drives a neuron higher, or lower, than nearly all others of the role.

    Attributes:
        text: As the task renders it.
        example: Its number in the role.
        label: Its class.
        answer: The class that the model answers; ``None`` where it can't be read out.
        activation: Of the neuron at its position of the shown prompt.
        pieces: All of the text, in pieces to be coloured; empty where words were not taken apart.
        others: What is carried from tokens that are not of the text: special tokens and the prompt's own, by name.
        parts: What the activation (the pre-activation, where the MLP has no gate) is the sum of: see
            :data:`PARTS_OF_TOTAL`; empty where words were not taken apart.
    """

    text: str
    example: int
    label: int
    answer: int | None
    activation: float
    pieces: tuple[Piece, ...]
    others: tuple[tuple[str, float], ...]
    parts: dict[str, float]


@dataclass(frozen=True, eq=False, repr=False)
class NeuronProfile:
    """All that :class:`NeuronProfiles` knows of one neuron.

    Attributes:
        activations, baseline, position, labels: As there, of this neuron.
        rule: Its row of ``rules``.
        texts, words: Its rows there; :attr:`highest` and :attr:`lowest` lay them out.
        output_words, heads: Its rows there; ``None`` where the part was left out.
        output_null, effects: Its row there; ``None`` where the part was left out.
        correlated: ``(layer, index, r)`` of the other profiled neurons, the most correlated first, by absolute value.

    Example:
        >>> profile = profiles.of(14, 371)
        >>> [(piece.text, piece.moved) for piece in profile.highest[0].pieces]
    """

    _repr_html_ = html_of_fields

    layer: int
    index: int
    activations: Float[Tensor, "prompt example"]
    baseline: Float[Tensor, " prompt"]
    position: Int[Tensor, " prompt"]
    labels: Int[Tensor, " example"]
    rule: dict[str, float]
    texts: pd.DataFrame
    words: pd.DataFrame | None
    output_words: pd.DataFrame | None
    output_null: dict[str, float] | None
    effects: dict[str, float] | None
    heads: pd.DataFrame | None
    correlated: tuple[tuple[int, int, float], ...]

    @cached_property
    def highest(self) -> list[DrivingText]:
        """The texts that drive it highest, the highest first."""
        return self._texts("highest")

    @cached_property
    def lowest(self) -> list[DrivingText]:
        """The texts that drive it lowest, the lowest first."""
        return self._texts("lowest")

    @property
    def raised(self) -> list[tuple[str, float]]:
        """The words whose logits it raises most, each with its score; none where the part was left out."""
        return self._written("raises")

    @property
    def lowered(self) -> list[tuple[str, float]]:
        """The words whose logits it lowers most, each with its score."""
        return self._written("lowers")

    def _written(self, writes: str) -> list[tuple[str, float]]:
        if self.output_words is None:
            return []
        own = self.output_words[self.output_words.writes == writes]
        return list(zip(own.word.tolist(), own.score.tolist(), strict=True))

    @property
    def most_moved(self) -> float:
        """The largest absolute ``moved`` of a piece, for one scale of colours in all its texts; 0 without words."""
        pieces = [piece for one in (*self.highest, *self.lowest) for piece in one.pieces]
        return max((abs(piece.moved) for piece in pieces if piece.moved is not None), default=0.0)

    def _texts(self, side: str) -> list[DrivingText]:
        found = []
        words = self.words if self.words is None else self.words[self.words.side == side]
        of_text = {} if words is None else dict(list(words.groupby("example")))
        for row in self.texts[self.texts.side == side].to_dict("records"):
            pieces: tuple[Piece, ...] = ()
            others: tuple[tuple[str, float], ...] = ()
            if words is not None:
                own = of_text.get(row["example"], words[:0])
                pieces = pieces_of(row["text"], own[own.kind == "text"])
                rest = own[own.kind != "text"]
                others = tuple(zip(rest.token.tolist(), rest.moved.tolist(), strict=True))
            found.append(
                DrivingText(
                    text=row["text"],
                    example=int(row["example"]),
                    label=int(row["label"]),
                    answer=None if row["answer"] < 0 else int(row["answer"]),
                    activation=float(row["activation"]),
                    pieces=pieces,
                    others=others,
                    parts={name: float(row[name]) for name in (*PARTS_OF_TOTAL, "total") if name in row},
                )
            )
        return found

    def __repr__(self) -> str:
        low, high = self.rule["low"], self.rule["high"]
        return (
            f"NeuronProfile({self.layer}.{self.index}: rule {self.rule['accuracy']:.3f} ({low:.3f} to {high:.3f}), "
            f"{len(self.highest)} texts that drive it highest and {len(self.lowest)} lowest)"
        )


def pieces_of(text: str, tokens: pd.DataFrame) -> tuple[Piece, ...]:
    """A text in pieces, each with the sum of what its tokens moved and the neuron's furthest activation at them; a
    token of several pieces counts for the first."""
    spans = word_spans(text)
    moved: list[float | None] = [None] * len(spans)
    fired: list[float | None] = [None] * len(spans)
    columns = (tokens.start.tolist(), tokens.moved.tolist(), tokens.activation.tolist())
    for start, value, activation in zip(*columns, strict=True):
        at = next((k for k, (_, end) in enumerate(spans) if start < end), len(spans) - 1)
        moved[at] = (moved[at] or 0.0) + value
        fired[at] = max(fired[at] or 0.0, activation, key=abs)
    return tuple(
        Piece(text[a:b], *told) for (a, b), told in zip(spans, zip(moved, fired, strict=True), strict=True)
    )
