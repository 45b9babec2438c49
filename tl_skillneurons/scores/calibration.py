"""Does the permutation null keep its promise on a model's own activations? Shuffle the labels and see.

With labels that mean nothing, anything called significant at ``alpha`` is a false alarm, and false alarms may come
in a share ``alpha`` of repetitions. The activations stay the model's, with all their correlations; only ``select``
labels are shuffled, by units: what belongs together keeps its label together (:mod:`~tl_skillneurons.stats.units`). For
power, one neuron at one position is made to agree with the shuffled labels on a given share of examples, and it is
counted how often it is called significant.

The null that is tested permutes by the outcomes' own units. With other ``units``, such as the authors of texts that
were scored one by one, the labels are shuffled by those, and the share of false alarms says what it costs to take for
independent what is not.

It does not show that units which nobody told the task of are independent.
"""

import os
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import pandas as pd
import torch

from tl_skillneurons._checks import require_int, require_seed
from tl_skillneurons._files import FORMAT, package_version, read_json, sound, write_json
from tl_skillneurons._progress import progress_bar
from tl_skillneurons._results import html_of
from tl_skillneurons.prompts.run import RunOptions
from tl_skillneurons.scores.null import permutation_null
from tl_skillneurons.scores.outcomes import RuleOutcomes
from tl_skillneurons.stats.hypothesis_tests import require_draws
from tl_skillneurons.stats.intervals import clopper_pearson
from tl_skillneurons.stats.units import Units, require_reachable
from tl_skillneurons.tasks.subtasks import against_rest

KIND = "Calibration"


@dataclass(frozen=True)
class Calibration:
    """How often shuffled labels were called significant, and how often a planted neuron was.

    Attributes:
        n_repetitions: Shufflings; every other one, once, where these are fewer than were asked for.
        n_false: Repetitions in which any neuron was called significant.
        n_found: Repetitions in which the planted neuron was.
        alpha: The level.
        planted: Share of examples on which the planted neuron agrees with the label.
        n_examples: Examples.
        n_permutations, aggregate, seed: As they were asked for.
        unit: What kept its labels together when they were shuffled.
        n_units: How many of them there were.
        null_unit: What the tested null took for independent.

    Example:
        >>> scores = skn.score_neurons(model, prompts, task, keep_outcomes=True)
        >>> skn.scores.check_calibration(scores.outcomes).false_interval
    """

    n_repetitions: int
    n_false: int
    n_found: int
    alpha: float
    planted: float
    n_examples: int
    n_permutations: int = 99
    aggregate: str = "mean"
    seed: int = 0
    unit: str = "text"
    n_units: int | None = None
    null_unit: str = "text"

    @property
    def false_interval(self) -> tuple[float, float]:
        """The exact 95 % interval of the share of false alarms; ``alpha`` lies in it if the promise is kept."""
        return clopper_pearson(self.n_false, self.n_repetitions)

    @property
    def power_interval(self) -> tuple[float, float]:
        """The exact 95 % interval of the share of repetitions that found the planted neuron."""
        return clopper_pearson(self.n_found, self.n_repetitions)

    def __str__(self) -> str:
        lines = self.to_dataframe().itertuples()
        shares = [f"{row.share:.3f} ({row.low:.3f} to {row.high:.3f})" for row in lines]
        return (
            f"of {self.n_repetitions} shufflings of {self.n_examples} labels by {self.n_units} units ({self.unit}) "
            f"{shares[0]} gave a false alarm at {self.alpha:g}{self._tested}; a neuron right on {self.planted:.0%} was "
            f"found in {shares[1]}"
        )

    @property
    def _tested(self) -> str:
        return "" if self.null_unit == self.unit else f" under permutations by {self.null_unit}"

    def __repr__(self) -> str:
        return f"Calibration({self})"

    def _repr_html_(self) -> str:
        return html_of(self)

    def to_dataframe(self) -> pd.DataFrame:
        """Two rows, the false alarms and the planted neuron: how many, their share, its exact 95 % interval."""
        rows = [
            ("false alarms", self.n_false, self.alpha, *self.false_interval),
            ("planted neuron found", self.n_found, float("nan"), *self.power_interval),
        ]
        frame = pd.DataFrame(rows, columns=["what", "n", "promised", "low", "high"])
        frame.insert(2, "share", frame.n / self.n_repetitions)
        frame = frame.assign(n_repetitions=self.n_repetitions)
        frame.attrs.update(unit=self.unit, n_units=self.n_units, null_unit=self.null_unit)
        return frame

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write it as JSON, whole or not at all."""
        return write_json(
            path, {"kind": KIND, "format": FORMAT, "package_version": package_version(), **asdict(self)}
        )

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "Calibration":
        """What :meth:`save` wrote.

        Raises:
            FileNotFoundError: When there is no such file.
            ValueError: When the file is no JSON, or holds something else.
        """
        content = read_json(path, KIND)
        with sound(path, KIND):
            return cls(**{name: content[name] for name in cls.__dataclass_fields__})


def check_calibration(
    outcomes: RuleOutcomes,
    *,
    n_repetitions: int = 200,
    n_permutations: int = 99,
    alpha: float = 0.05,
    planted: float = 0.65,
    aggregate: str = "mean",
    units: Units | None = None,
    class_id: int | None = None,
    seed: int = 0,
    run: RunOptions = RunOptions(),
) -> Calibration:
    """Shuffle labels ``n_repetitions`` times, and each time test all neurons, with a planted one and without.

    Args:
        outcomes: A model's, from ``score_neurons(..., keep_outcomes=True).outcomes``.
        n_permutations: Of each repetition's null.
        alpha: The family-wise level.
        planted: Accuracy of the planted neuron, in [0.5, 1].
        aggregate: How prompts are combined: ``"mean"``, or ``"min"``.
        units: What keeps its labels together when they are shuffled; ``None`` takes the outcomes' own units.
        class_id: The class that is told from all others; must be said of more than two.
        run: Progress; no model is run.

    Returns:
        Counts of false alarms and of the planted neuron's discoveries, with exact intervals.

    Raises:
        ValueError: For too few permutations or units for ``alpha``, or labels of more than two classes without a
            ``class_id``.

    Example:
        >>> skn.scores.check_calibration(scores.outcomes, n_repetitions=200)
    """
    require_seed(seed)
    require_int(n_repetitions, "n_repetitions")
    require_draws(n_permutations, alpha, name="n_permutations")
    if not 0.5 <= planted <= 1:
        raise ValueError(f"planted must be an accuracy in [0.5, 1], got {planted}")
    found = sorted(set(outcomes.labels.tolist()))
    if class_id is not None:
        outcomes = replace(outcomes, labels=against_rest(outcomes.labels, class_id))
    if set(outcomes.labels.tolist()) != {0, 1}:
        raise ValueError(
            f"labels must be of two classes, 0 and 1, got {found}; give class_id, the one of them that is told from "
            "all others"
        )
    apart = outcomes.units if units is None else units
    for unit in {apart, outcomes.units}:
        least = unit.smallest_p(outcomes.labels)
        require_reachable(alpha, smallest_p=least, n_units=len(unit), what=unit.what)
    shuffled = apart.permuted(outcomes.labels, n_repetitions, seed=seed)
    n_repetitions = len(shuffled)
    generator = torch.Generator().manual_seed(seed)
    n_false = n_found = 0
    with progress_bar("shuffled labels", n_repetitions, show=run.progress) as advance:
        for repetition, labels in enumerate(shuffled):
            own_seed = seed + 1 + repetition
            own = replace(outcomes, labels=labels)
            null = permutation_null(own, n_permutations=n_permutations, seed=own_seed, aggregate=aggregate)
            n_false += bool((null.family() <= alpha).any())
            right = torch.rand(len(labels), generator=generator) < planted
            bits = torch.where(right, labels, 1 - labels).bool()
            with_one = own.replaced(bits, layer=0, position=0, neuron=0)
            null = permutation_null(
                with_one, n_permutations=n_permutations, seed=own_seed, aggregate=aggregate
            )
            n_found += bool(null.family()[0, 0] <= alpha)
            advance()
    return Calibration(
        n_repetitions=n_repetitions,
        n_false=n_false,
        n_found=n_found,
        alpha=alpha,
        planted=planted,
        n_examples=len(outcomes.labels),
        n_permutations=n_permutations,
        aggregate=aggregate,
        seed=seed,
        unit=apart.what,
        n_units=len(apart),
        null_unit=outcomes.units.what,
    )
