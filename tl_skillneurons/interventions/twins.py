"""Twin inputs: pairs of texts of equally many tokens and different labels, and how far apart a run holds them.

With ``z`` the class logits of a run, ``d = z[label of the clean twin] - max over the other labels`` is its logit diff
(of two classes the difference of their logits), whichever of the two runs: what patching, attribution and path patching
move.

Pairs that share a text, and of a built-in task all pairs of one word pair, are one unit
(:mod:`~tl_skillneurons.stats.units`): intervals draw them together, and sign flips turn them together.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tl_skillneurons.interventions._measured import units_record, units_told
from tl_skillneurons.neurons.choice import require_apart
from tl_skillneurons.neurons.neuron_set import NeuronSet
from tl_skillneurons.prompts.prompted_model import PromptedModel
from tl_skillneurons.stats.intervals import doubtful_gap
from tl_skillneurons.stats.units import Units, require_units
from tl_skillneurons.tasks.columns import columns_of
from tl_skillneurons.tasks.groups import twins_of as twins_of_role
from tl_skillneurons.tasks.task import Task

DIRECTIONS = ("denoise", "noise")
"""Denoising puts the clean run into the corrupted one, noising the corrupted into the clean one."""

INSIST = "twins=Twins.of(task, role, on_chosen_examples=True)"


@dataclass(frozen=True)
class Twins:
    """Pairs of texts (clean, corrupted), and the class of each clean one.

    Attributes:
        units: Which pairs belong together; ``None`` for pairs that share a text.
        on_chosen_examples: Measure neurons or heads between twins that chose them all the same; every row says so.

    Raises:
        ValueError: For no pair, or classes or units that don't go with the pairs.

    Example:
        >>> Twins([("a good film", "a bad film")], clean_labels=[1])
    """

    pairs: Sequence[tuple[str, str]]
    clean_labels: Sequence[int]
    units: Units | None = None
    on_chosen_examples: bool = False

    def __post_init__(self) -> None:
        labels = list(self.clean_labels)
        if not self.pairs or len(labels) != len(self.pairs) or min(labels) < 0:
            raise ValueError(
                f"give at least one pair of twins, with the class of each clean text in clean_labels (0, 1, ...); got "
                f"{len(self.pairs)} pairs and clean_labels={labels}"
            )
        require_units(len(labels), self.units)

    @classmethod
    def of(cls, task: Task, role: str, *, on_chosen_examples: bool = False) -> "Twins":
        """Those of a role of the task, clean the one of the later class (of two classes: class 1), with the task's
        units.

        Raises:
            ValueError: For a task without twins.
        """
        found = twins_of_role(columns_of(task.split(role)), task.name, role)
        first: dict[Any, int] = {}
        for row, pair in enumerate(task.split(role)["pair"]):
            first.setdefault(pair, row)  # the order that task.pairs has
        units = replace(task.units(role).take(torch.tensor(list(first.values()))), pair=None)
        pairs = [(later, earlier) for (_, earlier), (_, later) in found]
        return cls(pairs, [label for _, (label, _) in found], units, on_chosen_examples)

    @property
    def texts(self) -> list[str]:
        """All of them, clean and corrupted."""
        return [text for pair in self.pairs for text in pair]

    @property
    def together(self) -> Units:
        """The units: those given, or of pairs that share a text."""
        if self.units is not None:
            return self.units
        n = len(self.pairs)
        sides = [text for side in (0, 1) for text in (pair[side] for pair in self.pairs)]
        member = Units.of([sides, [*range(n), *range(n)]]).member[:n]
        return Units.of([member.tolist()], what="pair of twins")

    @property
    def record(self) -> dict[str, Any]:
        """As plain JSON values."""
        return {
            "pairs": [list(pair) for pair in self.pairs],
            "clean_labels": list(self.clean_labels),
            "units": units_record(self.together),
        }

    @property
    def labels(self) -> Int[Tensor, " pair"]:
        """The class of each clean text."""
        return torch.tensor(list(self.clean_labels))

    def encode(self, prompted: PromptedModel) -> tuple[list[list[int]], list[list[int]]]:
        """Token ids of the clean texts, and of the corrupted ones.

        Raises:
            ValueError: For twins of unequal token length, and for those of which cutting leaves the same.
        """
        clean, corrupted = (prompted.encode([pair[side] for pair in self.pairs]) for side in (0, 1))
        for number, (one, other) in enumerate(zip(clean, corrupted, strict=True)):
            if len(one) != len(other):
                raise ValueError(
                    f"twins must have equally many tokens, pair {number} has {len(one)} and {len(other)} "
                    f"({self.pairs[number][0]!r}, {self.pairs[number][1]!r}); make twins with "
                    "minimal_pairs(tokenizer=...)"
                )
        same = [
            number
            for number, (one, other) in enumerate(zip(clean, corrupted, strict=True))
            if one != other and prompted.cut([one]) == prompted.cut([other])
        ]
        if same:
            raise ValueError(
                f"{len(same)} of {len(clean)} pairs of twins are the same when they are cut to {prompted.max_length} "
                f"tokens, pair {same[0]} first; give a larger max_length, or twins that differ within it"
            )
        return clean, corrupted

    def n_cut(self, prompted: PromptedModel) -> int:
        """How many of the texts lose their end."""
        return prompted.n_truncated(self.texts)

    def where_chosen(self, neurons: NeuronSet) -> str:
        """Where the neurons were chosen, seen from these twins.

        Raises:
            ValueError: When they chose them, and nobody insists.
        """
        return require_apart(neurons.choice, self.texts, insist=self.on_chosen_examples, by=INSIST)


def twins_of(task: Task, twins: Twins | str) -> Twins:
    """The twins themselves, or those of a role of the task: clean is the one of the later class.

    Raises:
        ValueError: For a task without twins, or twins of classes that it doesn't have.
    """
    if isinstance(twins, Twins):
        if max(twins.clean_labels) >= task.n_classes:
            raise ValueError(
                f"clean_labels must be classes of {task.name!r}, 0 to {task.n_classes - 1}, got "
                f"{max(twins.clean_labels)}"
            )
        return twins
    return Twins.of(task, twins)


def twins_record(twins: Twins | str) -> Any:
    """How results record them: a role, or the pairs; :func:`twins_recorded` reads it."""
    return twins if isinstance(twins, str) else twins.record


def twins_recorded(record: Any) -> Twins | str:
    """The twins that :func:`twins_record` recorded."""
    if isinstance(record, str):
        return record
    pairs = [(clean, corrupted) for clean, corrupted in record["pairs"]]
    return Twins(pairs, record["clean_labels"], units_told(record["units"], len(pairs)))


def logit_diff(
    logits: Float[Tensor, "batch n_classes"], labels: Int[Tensor, " batch"]
) -> Float[Tensor, " batch"]:
    """Logit of the clean twin's label minus the highest of the others."""
    own = labels.to(logits.device)[:, None]
    return logits.gather(1, own)[:, 0] - logits.scatter(1, own, -torch.inf).amax(1)


def no_fraction(
    gap: Float[Tensor, " pair"], units: Units, *, confidence: float = 0.95, seed: int = 0
) -> str | None:
    """Why fractions of the gap between the runs of twins mean nothing, in words; ``None`` where they do."""
    doubt = doubtful_gap(gap, confidence=confidence, seed=seed, units=units)
    return f"{doubt}: there is nothing to recover, or too few pairs to say how much" if doubt else None
