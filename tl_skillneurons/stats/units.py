"""The unit of exchange: which examples belong together, and what that means for every resampling.

Examples of one group, the twins of a pair, exact duplicates and texts made from the same words are not independent.
They are one unit: label permutations deal labels out to units, sign flips turn all twins of a unit together, a
bootstrap draws units, a split keeps them whole. With units of one text each all of it is the ordinary thing, to the
same bits.

How labels are permuted follows from what a unit holds:

* all its examples in complete pairs of twins: their labels are exchanged within all of its pairs, or in none
* one label throughout: that label goes to another such unit, and another's comes here
* several labels otherwise: the labels go, as they stand, to another such unit of the same size

Exact when, without an effect, the units are exchangeable in this way. What it does not show: whether examples of
different units are independent; whoever makes the task must say what belongs together.
"""

import math
from collections import Counter
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Num
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from torch import Tensor

from tl_skillneurons._checks import require_int, require_seed
from tl_skillneurons._results import html_of_fields
from tl_skillneurons.stats.permutation import (
    Block,
    distinct_orders,
    other_orders,
    permuted_labels,
    row_orders,
)


def components(n: int, edges: Sequence[tuple[int, int]]) -> list[int]:
    """Of each of ``n`` things the lowest number among those that edges join it to, directly or through others.

    Example:
        >>> components(4, [(3, 1)])
        [0, 1, 2, 1]
    """
    ends = np.array(edges, dtype=np.int64).reshape(-1, 2).T
    graph = coo_array((np.ones(len(edges)), (ends[0], ends[1])), shape=(n, n))
    lowest: dict[int, int] = {}
    labels = connected_components(graph, directed=False)[1] if n else np.empty(0, dtype=np.int64)
    return [lowest.setdefault(label, i) for i, label in enumerate(labels.tolist())]


@dataclass(frozen=True, eq=False, repr=False)
class Units:
    """Which examples belong together.

    Attributes:
        member: The number of each example's unit; units are numbered from 0 in the order of their first example.
        what: What a unit is, in words: ``"text"``, ``"group"``, ``"pair of twins"``, ...
        pair: The number of the pair of twins that each example is of, -1 for one without its twin; ``None`` without
            pairs.

    Example:
        >>> units = Units.of([["a", "a", "b", "c"]], what="author")
        >>> units
        Units(3 of 4 examples: author)
    """

    _repr_html_ = html_of_fields

    member: Int[Tensor, " example"]
    what: str = "text"
    pair: Int[Tensor, " example"] | None = None

    def same_as(self, other: "Units") -> bool:
        """Whether they are the same units of the same examples, whatever they are called."""
        pairs = [torch.full_like(one.member, -1) if one.pair is None else one.pair for one in (self, other)]
        return torch.equal(self.member, other.member) and torch.equal(*pairs)

    @classmethod
    def single(cls, n_examples: int) -> "Units":
        """Every example a unit of its own."""
        return cls(torch.arange(n_examples))

    @classmethod
    def of(
        cls,
        columns: Iterable[Sequence[Hashable | None]],
        *,
        what: str = "text",
        pair: Int[Tensor, " example"] | None = None,
    ) -> "Units":
        """Units of examples that share a value in any of ``columns``, directly or through others; ``None`` joins
        nothing.
        """
        columns = [list(column) for column in columns]
        n = len(columns[0])
        first: list[dict[Hashable, int]] = [{} for _ in columns]
        edges = [
            (seen.setdefault(value, i), i)
            for seen, column in zip(first, columns, strict=True)
            for i, value in enumerate(column)
            if value is not None
        ]
        number: dict[int, int] = {}
        member = [number.setdefault(lowest, len(number)) for lowest in components(n, edges)]
        return cls(torch.tensor(member, dtype=torch.int64), what, pair)

    def __len__(self) -> int:
        return 0 if not len(self.member) else int(self.member.max()) + 1

    def __repr__(self) -> str:
        return f"Units({len(self)} of {len(self.member)} examples: {self.what})"

    @property
    def n_examples(self) -> int:
        """How many examples there are."""
        return len(self.member)

    @property
    def are_single(self) -> bool:
        """Whether every example is a unit of its own."""
        return len(self) == self.n_examples

    @cached_property
    def sizes(self) -> Int[Tensor, " unit"]:
        """How many examples each unit has."""
        return torch.bincount(self.member, minlength=len(self))

    def take(self, rows: Int[Tensor, " kept"]) -> "Units":
        """The units of some of the examples, numbered anew."""
        pair = None if self.pair is None else self.pair[rows]
        return Units.of([self.member[rows].tolist()], what=self.what, pair=pair)

    def sums(self, values: Num[Tensor, "*axes example"]) -> Float[Tensor, "*axes unit"]:
        """The sum of an example's values over each unit, in float64."""
        total = torch.zeros(*values.shape[:-1], len(self), dtype=torch.float64)
        return total.index_add_(-1, self.member, values.double())

    def weights(self, n_draws: int, generator: torch.Generator) -> Int[Tensor, "draw example"]:
        """Bootstrap draws of as many units as there are, with replacement: how often each example is drawn."""
        drawn = torch.randint(len(self), (n_draws, len(self)), generator=generator)
        counts = torch.zeros(n_draws, len(self), dtype=torch.int64)
        counts.scatter_add_(1, drawn, torch.ones_like(drawn))
        return counts[:, self.member]

    def resampled(self, generator: torch.Generator) -> Int[Tensor, " drawn"]:
        """One bootstrap draw of as many units as there are: the rows of their examples, one unit after the other."""
        drawn = torch.randint(len(self), (len(self),), generator=generator)
        return drawn if self.are_single else torch.cat([self._rows[unit] for unit in drawn.tolist()])

    def halves(self, generator: torch.Generator) -> tuple[Int[Tensor, " one"], Int[Tensor, " other"]]:
        """The examples in two parts of half the units each, drawn at random; no unit stands in both."""
        order = torch.randperm(len(self), generator=generator)
        first = torch.zeros(len(self), dtype=torch.bool)
        first[order[: len(self) // 2]] = True
        chosen = first[self.member]
        return chosen.nonzero().flatten(), (~chosen).nonzero().flatten()

    def signs(self, n_draws: int, generator: torch.Generator) -> Float[Tensor, "draw unit"]:
        """Random signs, one for each unit: what belongs together turns together."""
        signs = torch.randint(0, 2, (n_draws, len(self)), generator=generator).double()
        return signs.mul_(2).sub_(1)  # in place: there may be millions

    # Labels

    def log_orders(self, labels: Num[Tensor, " example"]) -> float:
        """The logarithm of the number of ways in which the labels can be dealt out to the units."""
        if self.are_single:
            counts = labels.unique(return_counts=True)[1].double()
            return math.lgamma(len(labels) + 1) - float(torch.lgamma(counts + 1).sum())
        flipped, constant, mixed = self._kinds(labels)
        total = len(flipped) * math.log(2)
        for units in (constant, *mixed):
            vectors = Counter(
                tuple(labels[self._rows[unit]].tolist()[: 1 if units is constant else None]) for unit in units
            )
            total += math.lgamma(len(units) + 1) - sum(math.lgamma(n + 1) for n in vectors.values())
        return total

    def smallest_p(self, labels: Num[Tensor, " example"]) -> float:
        """The smallest p-value that a two-sided permutation test of these labels can give, however many are drawn.

        Of two classes, labels that are all the other way round tell as much: where they are one of the ways, so that
        they always reach what the true ones do, it is twice one over the number of ways.
        """
        return min(1.0, (2 if self._mirrored(labels) else 1) * math.exp(-self.log_orders(labels)))

    def permuted(
        self, labels: Num[Tensor, " example"], n_permutations: int, *, seed: int = 0
    ) -> Num[Tensor, "draw example"]:
        """The labels dealt out anew to the units, as the module says; where there are no more ways than asked for,
        every other one, once.

        Raises:
            ValueError: When there is no other way; it says how many units there are.
        """
        require_int(n_permutations, "n_permutations")
        require_seed(seed)
        if self.are_single:
            return permuted_labels(labels, n_permutations, seed=seed)
        if (log_ways := self.log_orders(labels)) < 1e-9:
            raise ValueError(
                f"{len(self)} units ({self.what}) of {self.n_examples} examples can be labelled in no other way, so "
                f"nothing can be tested; give more units of each class, {units_needed(len(self), 1.0, 0.05)} for a "
                "p-value of 0.05"
            )
        if log_ways <= math.log(n_permutations + 1) + 1e-9:
            return other_orders(labels, self._blocks(labels))
        flipped, constant, mixed = self._kinds(labels)
        if not constant and not mixed and self._pairs_are_units:
            return permuted_labels(
                labels, n_permutations, seed=seed, pairs=self.pair
            )  # the bits of twins alone
        generator = torch.Generator().manual_seed(seed)
        drawn = labels.repeat(n_permutations, 1)
        twin = self._twin
        for unit in flipped:
            rows = self._rows[unit]
            turned = torch.randint(0, 2, (n_permutations, 1), generator=generator).bool()
            drawn[:, rows] = torch.where(turned, labels[twin[rows]], labels[rows])
        for units in (constant, *mixed):
            if not units:
                continue
            order = row_orders(n_permutations, len(units), generator)
            if units is constant:
                of_unit = labels[torch.stack([self._rows[unit][0] for unit in units])]
                place = torch.cat([torch.full((len(self._rows[unit]),), k) for k, unit in enumerate(units)])
                rows = torch.cat([self._rows[unit] for unit in units])
                drawn[:, rows] = of_unit[order][:, place]
            else:
                rows_of = torch.stack([self._rows[unit] for unit in units])
                drawn[:, rows_of.flatten()] = labels[rows_of][order].flatten(1)
        return drawn

    def _blocks(self, labels: Num[Tensor, " example"]) -> list[Block]:
        """Units that are labelled together, and all ways to do it."""
        flipped, constant, mixed = self._kinds(labels)
        flips = [
            (rows, labels[torch.stack([rows, self._twin[rows]])])
            for rows in map(self._rows.__getitem__, flipped)
        ]
        exchanged = []
        for units in (constant, *mixed):
            if not units:
                continue
            rows = torch.cat([self._rows[unit] for unit in units])
            if units is constant:
                of_unit = distinct_orders(labels[torch.stack([self._rows[unit][0] for unit in units])])
                exchanged.append((rows, of_unit.repeat_interleave(self.sizes[units], 1)))
            else:
                vectors, code = labels[rows].reshape(len(units), -1).unique(dim=0, return_inverse=True)
                exchanged.append((rows, vectors[distinct_orders(code)].flatten(1)))
        return flips + exchanged

    def _mirrored(self, labels: Num[Tensor, " example"]) -> bool:
        """Whether labels of two classes can be dealt out with every one the other way round."""
        values, code = labels.unique(return_inverse=True)
        if len(values) != 2:
            return False
        if self.are_single:
            return 2 * int(code.sum()) == len(code)
        _, constant, mixed = self._kinds(labels)
        there = ([tuple(code[self._rows[unit]].tolist()) for unit in units] for units in mixed)
        as_often = (Counter(rows) == Counter(tuple(1 - one for one in row) for row in rows) for rows in there)
        return 2 * sum(int(code[self._rows[unit][0]]) for unit in constant) == len(constant) and all(as_often)

    @cached_property
    def _rows(self) -> list[Int[Tensor, " own"]]:
        order = self.member.argsort(stable=True)
        return list(order.split(self.sizes.tolist()))

    @cached_property
    def _twin(self) -> Int[Tensor, " example"]:
        """The row of each example's twin; its own where it has none."""
        twin = torch.arange(self.n_examples)
        if self.pair is None:
            return twin
        seen: dict[int, int] = {}
        for row, pair in enumerate(self.pair.tolist()):
            if pair < 0:
                continue
            if pair in seen:
                other = seen[pair]
                twin[row], twin[other] = other, row
            seen[pair] = row
        return twin

    @property
    def _pairs_are_units(self) -> bool:
        return bool((self.sizes == 2).all())

    def _kinds(self, labels: Num[Tensor, " example"]) -> tuple[list[int], list[int], list[list[int]]]:
        """Units that are flipped, units of one label, and those of several by their size."""
        has_twin: Bool[Tensor, " example"] = self._twin != torch.arange(self.n_examples)
        has_twin = has_twin & (labels[self._twin] != labels) & (self.member[self._twin] == self.member)
        flipped: list[int] = []
        constant: list[int] = []
        mixed: dict[int, list[int]] = {}
        for unit, rows in enumerate(self._rows):
            if has_twin[rows].all():
                flipped.append(unit)
            elif (labels[rows] == labels[rows[0]]).all():
                constant.append(unit)
            else:
                mixed.setdefault(len(rows), []).append(unit)
        return flipped, constant, [mixed[size] for size in sorted(mixed)]


def require_reachable(alpha: float, *, smallest_p: float, n_units: int, what: str = "text") -> None:
    """Refuse a level that no p-value of so few units can reach.

    Raises:
        ValueError: With about how many units like these it takes, never too few.

    Example:
        >>> require_reachable(0.05, smallest_p=2 / 2**9, n_units=9)
    """
    if smallest_p > alpha + 1e-12:
        raise ValueError(
            f"{n_units} units ({what}) can be labelled in so few ways that no p-value is below {smallest_p:.3g}; "
            f"{alpha:g} takes about {units_needed(n_units, smallest_p, alpha)} units, of all classes alike"
        )


def units_needed(n_units: int, smallest_p: float, alpha: float) -> int:
    """About how many units like ``n_units``, which allow ``smallest_p``, allow ``alpha``: never too few.

    Example:
        >>> units_needed(4, 2 / 2**4, 0.05)  # 2 / 2**6 is below
        6
    """
    if smallest_p >= 1:  # of one label, so far: two classes, equally frequent
        return next(n for n in range(n_units + 1, 10_000) if math.comb(n, n // 2) * alpha >= 2)
    return max(n_units + 1, math.ceil(n_units * math.log(2 / alpha) / math.log(2 / smallest_p) - 1e-9))


def require_units(n_examples: int, units: Units | None) -> Units:
    """The units of so many examples: those given, or each example its own.

    Raises:
        ValueError: When the given ones are of another number of examples.

    Example:
        >>> require_units(3, None)
        Units(3 of 3 examples: text)
    """
    if units is not None and units.n_examples != n_examples:
        raise ValueError(f"units must be of the {n_examples} examples, got those of {units.n_examples}")
    return Units.single(n_examples) if units is None else units


def require_same_answers(
    before: Bool[Tensor, " before"], after: Bool[Tensor, " after"], units: Units | None
) -> None:
    """Refuse answers of two runs that are not of the same examples, or units of others."""
    if len(before) != len(after):
        raise ValueError(f"both runs must answer the same examples, got {len(before)} and {len(after)}")
    require_units(len(before), units)
