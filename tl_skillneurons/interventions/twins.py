"""Twin inputs: pairs of texts of equally many tokens and different labels, and how far apart a run holds them.

With ``z`` the class logits of a run, ``d = z[label of the clean twin] - z[the other label]`` is its logit diff,
whichever of the two runs: what patching, attribution and path patching move.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from tl_skillneurons.prompts.prompted_model import PromptedModel
from tl_skillneurons.stats.intervals import doubtful_gap
from tl_skillneurons.stats.units import Units
from tl_skillneurons.tasks.task import Task

DIRECTIONS = ("denoise", "noise")
"""Denoising puts the clean run into the corrupted one, noising the corrupted into the clean one."""


@dataclass(frozen=True)
class Twins:
    """Pairs of texts (clean, corrupted), and the class of each clean one, of two classes.

    Raises:
        ValueError: For no pair, or classes that don't go with the pairs.

    Example:
        >>> Twins([("a good film", "a bad film")], clean_labels=[1])
    """

    pairs: Sequence[tuple[str, str]]
    clean_labels: Sequence[int]

    def __post_init__(self) -> None:
        labels = list(self.clean_labels)
        if not self.pairs or len(labels) != len(self.pairs) or not set(labels) <= {0, 1}:
            raise ValueError(
                f"give at least one pair of twins, with the class of each clean text in clean_labels (0 or 1); got "
                f"{len(self.pairs)} pairs and clean_labels={labels}"
            )

    @property
    def record(self) -> dict[str, Any]:
        """As plain JSON values."""
        return {"pairs": [list(pair) for pair in self.pairs], "clean_labels": list(self.clean_labels)}

    @property
    def sign(self) -> Float[Tensor, " pair"]:
        """+1 for each pair whose clean text is of class 1, else -1."""
        return 2.0 * torch.tensor(list(self.clean_labels), dtype=torch.float64) - 1

    def encode(self, prompted: PromptedModel) -> tuple[list[list[int]], list[list[int]]]:
        """Token ids of the clean texts, and of the corrupted ones.

        Raises:
            ValueError: For twins of unequal token length.
        """
        clean, corrupted = (prompted.encode([pair[side] for pair in self.pairs]) for side in (0, 1))
        for number, (one, other) in enumerate(zip(clean, corrupted, strict=True)):
            if len(one) != len(other):
                raise ValueError(
                    f"twins must have equally many tokens, pair {number} has {len(one)} and {len(other)} "
                    f"({self.pairs[number][0]!r}, {self.pairs[number][1]!r}); make twins with "
                    "minimal_pairs(tokenizer=...)"
                )
        return clean, corrupted


def twins_of(task: Task, twins: Twins | str) -> Twins:
    """The twins themselves, or those of a role of the task: clean is the one of class 1.

    Raises:
        ValueError: For a task of more than two classes, or one without twins.
    """
    if task.n_classes != 2:
        raise ValueError(f"twins need two classes, {task.name} has {task.n_classes}; take a binary subtask")
    if isinstance(twins, Twins):
        return twins
    pairs = [(one, zero) for zero, one in task.pairs(twins)]
    return Twins(pairs, [1] * len(pairs))


def twins_record(twins: Twins | str) -> Any:
    """How results record them: a role, or the pairs; :func:`twins_recorded` reads it."""
    return twins if isinstance(twins, str) else twins.record


def twins_recorded(record: Any) -> Twins | str:
    """The twins that :func:`twins_record` recorded."""
    if isinstance(record, str):
        return record
    return Twins([(clean, corrupted) for clean, corrupted in record["pairs"]], record["clean_labels"])


def logit_diff(
    logits: Float[Tensor, "batch n_classes"], sign: Float[Tensor, " batch"]
) -> Float[Tensor, " batch"]:
    """Logit of the clean twin's label minus the other's."""
    return sign.to(logits) * (logits[:, 1] - logits[:, 0])


def no_fraction(gap: Float[Tensor, " pair"], *, confidence: float = 0.95, seed: int = 0) -> str | None:
    """Why fractions of the gap between the runs of twins mean nothing, in words; ``None`` where they do."""
    if not gap.isfinite().all():
        return "the gap is not finite for every pair: there is no fraction of it to recover"
    units = Units(torch.arange(len(gap)), "pair of twins")
    doubt = doubtful_gap(gap, confidence=confidence, seed=seed, units=units)
    return f"{doubt}: there is nothing to recover, or too few pairs to say how much" if doubt else None
