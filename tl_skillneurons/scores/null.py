"""What scores reach when the labels are shuffled: the label-permutation null, with the largest of all scores.

With ``s(N)`` a neuron's score under the true labels and ``s_b(N)`` under permutation ``b`` of ``B``::

    p_value(N)  = (1 + number of b with s_b(N) >= s(N)) / (1 + B)
    p_family(N) = (1 + number of b with max over all M of s_b(M) >= s(N)) / (1 + B)     (Westfall and Young, 1993)

The labels of role ``select`` are dealt out anew to its units (:mod:`~tl_skillneurons.stats.units`), the same for all
neurons, positions and prompts, so that everything that makes scores correlated stays as it is: a group's label goes to
another group, twins exchange theirs, all twins of the same words together.

A rule's answer is one bit per example (:mod:`~tl_skillneurons.scores.outcomes`), so a thousand permutations are one
matrix product. For each permutation the best score of all neurons is kept, and for each neuron how often its own
score (best over positions, combined over prompts) was reached. Counts decide, so that ties are ties.

Exact when, without an effect, labels are exchangeable among the units. Few units have few orders: all
are then counted, once each, and no p-value is smaller than one over their number (two over it, where labels may all
turn at once). What it can't know: examples that belong together and are not said to, as by
``Task.from_datasets(group=...)``.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import pandas as pd
import torch
from jaxtyping import Float, Int, Num
from torch import Tensor

from tl_skillneurons._checks import require_int
from tl_skillneurons._results import html_of, one_line
from tl_skillneurons._widths import known, widest
from tl_skillneurons.scores.exact_tails import bound_p
from tl_skillneurons.scores.outcomes import MOST_NUMBERS, RuleOutcomes, count_right
from tl_skillneurons.stats.multiple_testing import benjamini_hochberg, critical_level, family_wise_p
from tl_skillneurons.stats.units import Units, require_reachable
from tl_skillneurons.tasks.task import Task


@dataclass(frozen=True, eq=False)
class PermutationNull:
    """What luck gives, for each prompt and, last on the axis ``scope``, for all prompts combined.

    Attributes:
        largest: The best score of the whole model in each permutation, in the score's own units.
        p_family: Each neuron's family-wise p-value: how often the largest of all reaches its score.
        p_value: Each neuron's own p-value: how often its own score is reached. At least 1 / (1 + permutations).
        seed: Of the permutations.
        p_bound: Where the score has an exact law (:mod:`~tl_skillneurons.scores.exact_tails`), a bound of
            ``p_value`` that may be as small as it is.
        unit: What was permuted: a unit of what belongs together.
        n_units: How many of them there were; ``None`` where nobody said.
        smallest_p: The smallest p-value that so many units can give, however many permutations are drawn; twice one
            over the number of ways where all labels may turn at once, which says the same of every neuron.

    Example:
        >>> scores = skn.score_neurons(model, prompts, task, n_permutations=999)
        >>> scores.null.level()  # what the best of all neurons reaches by luck, at 0.05
    """

    largest: Float[Tensor, "scope draw"]
    p_family: Float[Tensor, "scope layer neuron"]
    p_value: Float[Tensor, "scope layer neuron"]
    seed: int = 0
    p_bound: Float[Tensor, "scope layer neuron"] | None = None
    unit: str = "text"
    n_units: int | None = None
    smallest_p: float = 0.0

    def __repr__(self) -> str:
        return one_line(
            self,
            n_permutations=self.n_permutations,
            expected=self.expected(),
            seed=self.seed,
            unit=self.unit,
            n_units=self.n_units,
            smallest_p=self.least,
        )

    def _repr_html_(self) -> str:
        return html_of(self)

    @property
    def n_permutations(self) -> int:
        """How many permutations there were: as many as were asked for, or every other one where these are fewer."""
        return self.largest.shape[1]

    @property
    def least(self) -> float:
        """The smallest p-value that so many units and permutations can give."""
        return max(self.smallest_p, 1 / (1 + self.n_permutations))

    def of_units(self, units: Units, labels: Num[Tensor, " example"]) -> "PermutationNull":
        """The same, with what is said of the units whose labels were permuted."""
        return replace(self, unit=units.what, n_units=len(units), smallest_p=units.smallest_p(labels))

    def require_reachable(self, alpha: float) -> None:
        """Refuse a level that no p-value of so few units can reach.

        Raises:
            ValueError: With how many units would do.
        """
        if self.n_units is not None:
            require_reachable(alpha, smallest_p=self.smallest_p, n_units=self.n_units, what=self.unit)

    def record(self) -> dict[str, Any]:
        """What a file's header keeps of it."""
        return {name: getattr(self, name) for name in ("seed", "unit", "n_units", "smallest_p")}

    def level(self, alpha: float = 0.05, *, prompt: int | None = None) -> float:
        """The score above which a neuron is significant at ``alpha``, family-wise; of one prompt, or combined.

        Raises:
            ValueError: For a level that so few permutations or units can't reach.
        """
        self.require_reachable(alpha)
        return critical_level(self.largest[self._scope(prompt)], alpha)

    def expected(self, *, prompt: int | None = None) -> float:
        """The mean of the best score under permuted labels."""
        return float(self.largest[self._scope(prompt)].double().mean())

    def q_value(self, *, prompt: int | None = None) -> Float[Tensor, "layer neuron"]:
        """Benjamini and Hochberg's q-value of each p-value over all neurons; of ``p_bound`` if there is one."""
        own = (self.p_value if self.p_bound is None else self.p_bound)[self._scope(prompt)].double()
        return own.masked_scatter(~own.isnan(), benjamini_hochberg(known(own)))

    def family(self, *, prompt: int | None = None) -> Float[Tensor, "layer neuron"]:
        """Each neuron's family-wise p-value, of one prompt or combined."""
        return self.p_family[self._scope(prompt)].double()

    def to_dataframe(self) -> pd.DataFrame:
        """A row per prompt and, last, one for all combined: ``expected``, the mean of the best score under permuted
        labels, and ``level``, above which a score is significant at 5 %, family-wise (NaN where no
        p-value can be as small)."""
        scopes: list[int | None] = [*range(len(self.largest) - 1), None]
        enough = self.n_permutations >= 19 and self.smallest_p <= 0.05
        frame = pd.DataFrame(
            {
                "prompt": ["combined" if scope is None else scope for scope in scopes],
                "expected": [self.expected(prompt=scope) for scope in scopes],
                "level": [self.level(prompt=scope) if enough else float("nan") for scope in scopes],
                "n_permutations": self.n_permutations,
            }
        )
        frame.attrs.update(unit=self.unit, n_units=self.n_units, smallest_p=self.least)
        return frame

    def columns(self) -> dict[str, Any]:
        """The combined p-values as columns of a frame with one row per neuron."""
        found = {"p_family": self.family(), "p_value": self.p_value[-1].double(), "q_value": self.q_value()}
        return {name: known(value).numpy() for name, value in found.items()}

    def tensors(self) -> dict[str, Tensor]:
        """What a file keeps of it, by name."""
        kept = {f"null_{name}": getattr(self, name) for name in ("largest", "p_family", "p_value", "p_bound")}
        return {name: tensor for name, tensor in kept.items() if tensor is not None}

    @classmethod
    def of_tensors(cls, tensors: dict[str, Tensor], **record: Any) -> "PermutationNull":
        """The null that :meth:`tensors` gave, and :meth:`record`."""
        largest, p_family, p_value = (tensors[f"null_{name}"] for name in ("largest", "p_family", "p_value"))
        return cls(largest, p_family, p_value, p_bound=tensors.get("null_p_bound"), **record)

    def require_shape(self, n_prompts: int, n_layers: int, d_mlp: int) -> None:
        """Refuse a null of other scores.

        Raises:
            ValueError: When its shape is not that of scores of so many prompts, layers and neurons.
        """
        shape = (n_prompts + 1, n_layers, d_mlp)
        for name in ("p_family", "p_value", "p_bound"):
            own = getattr(self, name)
            if own is not None and own.shape != shape:
                raise ValueError(f"{name} of the null must have the shape {shape}, got {tuple(own.shape)}")
        if len(self.largest) != n_prompts + 1:
            raise ValueError(f"largest of the null must have {n_prompts + 1} rows, got {len(self.largest)}")

    def _scope(self, prompt: int | None) -> int:
        if prompt is None:
            return -1
        n_prompts = len(self.largest) - 1
        if not 0 <= require_int(prompt, "prompt", minimum=0) < n_prompts:
            raise ValueError(f"prompt must be in [0, {n_prompts}), got {prompt}")
        return prompt


def label_rows(task: Task, role: str, n_permutations: int, *, seed: int = 0) -> Int[Tensor, "row example"]:
    """The labels of ``role``, and below them as often the same dealt out anew to its units.

    Raises:
        ValueError: When the labels have no other order.
    """
    labels = torch.tensor(task.split(role)["label"])
    if not require_int(n_permutations, "n_permutations", minimum=0):
        return labels[None]
    return torch.cat([labels[None], task.units(role).permuted(labels, n_permutations, seed=seed)])


def permutation_null(
    outcomes: RuleOutcomes,
    *,
    n_permutations: int = 1000,
    seed: int = 0,
    aggregate: str = "mean",
    class_id: int = 1,
) -> PermutationNull:
    """The null of predictivity, ``max(accuracy, 1 - accuracy)`` best over positions, combined over prompts.

    Args:
        aggregate: "mean" or "min" over prompts.
        class_id: The class that "above" speaks for; all others count as label 0.
    """
    labels = outcomes.labels
    drawn = outcomes.units.permuted(labels, n_permutations, seed=seed)
    rows = (torch.cat([labels[None], drawn]) == class_id).long()  # the first row is the truth
    n_prompts, n, n_layers = outcomes.above.shape[:3]
    tally = NullTally(n_prompts, n_layers, widest(outcomes.d_mlp), len(drawn), aggregate)
    for layer, neurons, counted in count_right(outcomes, torch.ones_like(rows), rows):
        # 2 * max(right, wrong) - n of the best position
        tally.add(layer, neurons, torch.stack([right.abs_().amax(1) for right in counted]))
    null = tally.null(seed).of_units(outcomes.units, labels)
    totals = torch.full((n_prompts + 1, 1), n, dtype=torch.float64)
    if aggregate == "mean":
        totals[-1] *= n_prompts
    exact = bound_p(outcomes, aggregate=aggregate, class_id=class_id)
    return replace(null, largest=0.5 + null.largest / (2 * totals), p_bound=exact)


def permuted_scores(
    outcomes: RuleOutcomes,
    n_permutations: int,
    *,
    seed: int = 0,
    aggregate: str = "mean",
    class_id: int = 1,
) -> Iterator[Float[Tensor, "draw layer neuron"]]:
    """What ranks the neurons under permuted labels, a block of permutations after the other.

    It grows with predictivity: ``2 * max(right, wrong) - n`` at the best position, combined over prompts; NaN where
    there is no neuron.
    """
    drawn = outcomes.units.permuted(outcomes.labels, n_permutations, seed=seed)
    rows = (drawn == class_id).long()
    n_layers = outcomes.above.shape[2]
    wide = widest(outcomes.d_mlp)
    at_a_time = max(1, MOST_NUMBERS // (n_layers * wide))
    for block in rows.split(at_a_time):
        found = torch.full((len(block), n_layers, wide), torch.nan, dtype=torch.float64)
        for layer, neurons, counted in count_right(outcomes, torch.ones_like(block), block):
            best = torch.stack([right.abs_().amax(1) for right in counted])
            found[:, layer, neurons] = combine(best, aggregate).double()
        yield found


class NullTally:
    """Compares scores under the true labels with those under permuted ones, a few neurons at a time.

    Args:
        slack: The relative difference up to which two scores count as equal, for scores that are not whole numbers.
    """

    def __init__(
        self, n_prompts: int, n_layers: int, d_mlp: int, n_draws: int, aggregate: str, *, slack: float = 0.0
    ) -> None:
        self.aggregate = aggregate
        self.slack = slack
        self.largest = torch.zeros(n_prompts + 1, n_draws, dtype=torch.float64)
        shape = (n_prompts + 1, n_layers, d_mlp)
        self.observed = torch.full(
            shape, torch.nan, dtype=torch.float64
        )  # stays NaN where there is no neuron
        self.reached = torch.full(shape, torch.nan, dtype=torch.float64)

    def add(self, layer: int, neurons: slice, best: Float[Tensor, "prompt row neuron"]) -> None:
        """Each prompt's scores of these neurons: the first row under the true labels, then a row per permutation."""
        for scope, score in enumerate([*best, combine(best, self.aggregate)]):
            least = score[0] * (1 - self.slack)
            self.observed[scope, layer, neurons] = least.double()
            self.reached[scope, layer, neurons] = (score[1:] >= least).sum(0).double()
            torch.maximum(self.largest[scope], score[1:].amax(1).double(), out=self.largest[scope])

    def null(self, seed: int) -> PermutationNull:
        """The null; ``largest`` is in the units of what was added, a sum over prompts where they are combined by it."""
        pairs = zip(self.observed, self.largest, strict=True)
        return PermutationNull(
            largest=self.largest,
            p_family=torch.stack(
                [family_wise_p(observed, largest) for observed, largest in pairs]
            ).masked_fill(self.observed.isnan(), torch.nan),
            p_value=(1 + self.reached) / (1 + self.largest.shape[1]),
            seed=seed,
        )

    def mean_null(self, seed: int) -> PermutationNull:
        """The null with the combined scores in the units of one prompt's, a mean where :meth:`null` has a sum."""
        found = self.null(seed)
        if self.aggregate == "min":
            return found
        units = torch.ones(len(found.largest), 1, dtype=torch.float64)
        units[-1] = len(found.largest) - 1
        return replace(found, largest=found.largest / units)


def combine(best: Num[Tensor, "prompt *axes"], aggregate: str) -> Num[Tensor, "*axes"]:
    """Whole numbers of several prompts as one: their sum (which ranks as the mean does), or the lowest."""
    return best.sum(0) if aggregate == "mean" else best.amin(0)
