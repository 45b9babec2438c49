"""Heads that remember which examples chose them, so that nobody measures them on these unawares.

A head picked as the best of many on some examples looks better on them than it is: with labels that mean nothing, the
chosen heads still separate them more than others do. What is measured is measured on other examples.

What it does not show: for heads given as a plain list nobody knows what chose them; a table then says "unknown".
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import overload

from tl_skillneurons.attention._heads import Head
from tl_skillneurons.neurons.choice import Choice, require_apart


@dataclass(frozen=True, repr=False)
class ChosenHeads(Sequence[Head]):
    """Heads in the order of their strength, and what chose them; wherever heads go, they do.

    Attributes:
        heads: Pairs (layer, head).
        role: The role of the examples that chose.
        texts: A fingerprint of each text that chose.

    Example:
        >>> heads = writers.top_heads(3)
        >>> skn.attention.head_effects(model, prompt, task, heads, skill)  # on role report, which did not choose
    """

    heads: tuple[Head, ...]
    role: str
    texts: frozenset[str]

    def __len__(self) -> int:
        return len(self.heads)

    def __iter__(self) -> Iterator[Head]:
        return iter(self.heads)

    @overload
    def __getitem__(self, index: int) -> Head: ...
    @overload
    def __getitem__(self, index: slice) -> "ChosenHeads": ...
    def __getitem__(self, index: int | slice) -> "Head | ChosenHeads":
        if isinstance(index, slice):
            return ChosenHeads(self.heads[index], self.role, self.texts)
        return self.heads[index]

    def __repr__(self) -> str:
        return f"{list(self.heads)} (chosen on {self.role})"


def require_heads_apart(heads: Sequence[Head], texts: Iterable[str], *, insist: bool, by: str) -> str:
    """Where ``heads`` were chosen, seen from the texts that measure them (:mod:`~tl_skillneurons.neurons.choice`).

    Raises:
        ValueError: When some of these texts chose them, unless the caller insists.
    """
    choice = Choice(heads.role, heads.texts) if isinstance(heads, ChosenHeads) else None
    return require_apart(choice, texts, insist=insist, what="heads", by=by)
