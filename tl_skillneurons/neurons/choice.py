"""What chose neurons or heads, so that nobody measures them on the examples that did unawares.

What was picked as the best of many on some examples looks better on them than it is: with labels that mean nothing, the
chosen heads still separate them more than others do. What is measured is measured on other examples.

What it does not show: of neurons given as plain pairs nobody knows what chose them; a table then says "unknown".
"""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from tl_skillneurons._words import same_text

APART, THESE, UNKNOWN = "on other examples", "on these examples", "unknown"
"""Where neurons or heads were chosen, as a table says it."""


@dataclass(frozen=True, eq=False)
class Choice:
    """What chose neurons or heads.

    Attributes:
        role: The role of the examples that chose.
        texts: A fingerprint of each text that chose.
        score: By which number of every neuron they were chosen, where that is known; the third control is drawn by it.
        whole: False where it is known of some of them alone.
    """

    role: str
    texts: frozenset[str]
    score: Float[Tensor, "layer neuron"] | None = None
    whole: bool = True

    @property
    def record(self) -> dict[str, Any]:
        """As plain JSON values, without the score; :meth:`recorded` reads it."""
        return {"role": self.role, "texts": sorted(self.texts), "whole": self.whole}

    @classmethod
    def recorded(cls, record: dict[str, Any] | None) -> "Choice | None":
        """What :attr:`record` told."""
        return (
            None if record is None else cls(record["role"], frozenset(record["texts"]), None, record["whole"])
        )


def joint(one: Choice | None, other: Choice | None) -> Choice | None:
    """What chose two sets together; of the scores the higher one, where both are known."""
    if one is None or other is None:
        known = one or other
        return None if known is None else Choice(known.role, known.texts, None, whole=False)
    roles = one.role if one.role == other.role else f"{one.role} and {other.role}"
    score = None
    if one.score is not None and other.score is not None and one.score.shape == other.score.shape:
        score = torch.maximum(one.score, other.score)
    return Choice(roles, one.texts | other.texts, score, one.whole and other.whole)


def text_fingerprints(texts: Iterable[str]) -> list[str]:
    """One for each text, the same for texts that are equal up to white space and the form of their accents (NFC)."""
    return [hashlib.sha256(same_text(text).encode()).hexdigest()[:16] for text in texts]


def require_apart(
    choice: Choice | None, texts: Iterable[str], *, insist: bool, what: str = "neurons", by: str
) -> str:
    """Where ``what`` was chosen, seen from the texts that measure it: one of the words above.

    Args:
        insist: Whether the caller measures on examples that chose all the same.
        by: What a caller who insists writes.

    Raises:
        ValueError: When some of these texts chose, unless the caller insists.
    """
    measured = [] if choice is None else text_fingerprints(texts)
    return require_unlike(choice, measured, insist=insist, what=what, by=by)


def require_unlike(
    choice: Choice | None, measured: Sequence[str], *, insist: bool, what: str = "neurons", by: str
) -> str:
    """:func:`require_apart` of the fingerprints of the texts that measure; without any, nobody knows."""
    if choice is None or not measured:
        return UNKNOWN
    n_shared = sum(one in choice.texts for one in measured)
    if n_shared and not insist:
        raise ValueError(
            f"{n_shared} of the {len(measured)} examples to measure on are among those of role {choice.role!r} that "
            f"chose these {what}, on which they look better than they are; measure on another role, choose on "
            f"another, or insist with {by}"
        )
    if n_shared:
        return THESE
    return APART if choice.whole else UNKNOWN
