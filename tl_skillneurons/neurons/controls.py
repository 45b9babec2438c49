"""Controls of a set of neurons, each another one, and how like the set they are.

A control that is drawn twice is no second control: one of nine heads, or a neuron with 20 nearest, has only so many
alternatives, and a rank p-value over ``k`` distinct ones cannot be below ``1 / (k + 1)``. So draws are distinct: all
alternatives where they are no more than were asked for, else draws without repetition.

How like the set they are in what they were matched on is the standardised difference, averaged over the set's neurons
and the draws::

    d = mean over i of (match(stand-in of i) - match(i)) / (standard deviation of match over the layer of i)

Above 0.1 in absolute value they are not alike (Austin, 2009): of the most active neurons there may be no others as
active, and then what is done to the set differs from what is done to its controls by more than what the neurons encode.

The third control is neurons as active, drawn from the half of their layer that is least predictive
(:func:`less_predictive`): if predictivity says anything about what a model uses, they do least. The very least
predictive are one set only, which gives no p-value; of half a layer there are as many draws as of random neurons. What
it does not show: that they are alike in anything but what they were matched on.
"""

import itertools
import math
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from tl_skillneurons._checks import require_int
from tl_skillneurons._widths import Width, in_layer
from tl_skillneurons.neurons.matching import finite_match
from tl_skillneurons.neurons.neuron_set import NeuronSet

ALIKE = 0.1
"""Standardised differences up to here count as alike."""

LEAST = 0.5
"""The share of a layer that counts as least predictive."""

_PATIENCE = 400
"""So many draws in a row without a new one: there are no more."""

Drawn = TypeVar("Drawn")


@dataclass(frozen=True, eq=False)
class Controls:
    """Distinct stand-ins for a set (:func:`draw_controls`).

    Attributes:
        sets: The controls, none twice; fewer than asked for where there are no more.
        n_asked: How many were asked for.
        n_alternatives: How many there are altogether, where that can be counted.
        differences: Standardised, of each quantity they were matched on; empty where they weren't.
    """

    sets: tuple[NeuronSet, ...]
    n_asked: int
    n_alternatives: int | None
    differences: Float[Tensor, " quantity"]

    @property
    def smallest_p(self) -> float:
        """The smallest rank p-value that they allow."""
        return 1 / (len(self.sets) + 1)

    @property
    def are_alike(self) -> bool:
        """Whether no standardised difference of what they were matched on exceeds :data:`ALIKE`."""
        return not bool((self.differences.abs() > ALIKE).any())

    @property
    def warnings(self) -> tuple[str, ...]:
        """What a reader of the p-values must know, in words: too few alternatives, or controls that are not alike."""
        found = []
        if note := few_alternatives(len(self.sets), self.n_asked):
            found.append(note)
        if not self.are_alike:
            found.append(
                f"{_unlike(self.differences)} (up to {ALIKE:g} is alike): the set has neurons that no others are like"
            )
        return tuple(found)


def draw_controls(
    neurons: NeuronSet,
    n: int,
    *,
    seed: int = 0,
    d_mlp: Width | None = None,
    match: Float[Tensor, "layer neuron"] | Float[Tensor, "quantity layer neuron"] | None = None,
    n_nearest: int = 20,
    among: Bool[Tensor, "layer neuron"] | None = None,
    most_difference: float | None = None,
    part: Sequence[int] | None = None,
) -> Controls:
    """``n`` distinct random sets of the same layers, or all that there are; draw ``k`` is ``random_like(seed + k)``
    where that is new, and the first of more draws are the same.

    Args:
        match, among: A number for every neuron, or several, and which may be drawn, as
            :meth:`NeuronSet.random_like` takes them.
        most_difference: Refuse controls that differ by more standard deviations than this in what they are matched on;
            ``None`` tells it in :attr:`Controls.warnings`.
        part: The places of some of the set's neurons: distinct stand-ins for these alone, which are none of the set;
            as far as they are new, those that stand for them in the draws of the whole set.

    Raises:
        ValueError: When a layer has too few neurons to draw from, for controls that differ too much, and for whatever
            ``random_like`` refuses.

    Example:
        >>> found = draw_controls(NeuronSet([0], [3], n_layers=1, d_mlp=9), 20)
        >>> len(found.sets), found.n_alternatives, round(found.smallest_p, 3)
        (8, 8, 0.111)
    """
    require_int(n, "n")
    of_set = partial(neurons.random_like, d_mlp=d_mlp, match=match, n_nearest=n_nearest, among=among)

    def draw(seed: int) -> NeuronSet:
        return of_set(seed) if part is None else some_of(of_set(seed), part)

    first = draw(seed)  # refuses what can't be drawn
    assert first.d_mlp is not None  # for type checkers: random_like knows it or refuses
    pools = _pools(neurons, first.d_mlp, among)
    if part is not None:
        neurons = some_of(neurons, part)
        pools = {layer: pools[layer] for layer in neurons.by_layer()}
    free = {layer: len(pool) for layer, pool in pools.items()}
    there_are = _n_alternatives(free, neurons.counts_per_layer(), None if match is None else n_nearest)
    wanted = n if there_are is None else min(n, there_are)
    sets = distinct_draws(draw, wanted, seed=seed)
    if match is None and len(sets) < wanted:  # the last few of all are seldom drawn
        drawn = set(sets)
        others = (one for one in _all_alternatives(neurons, pools, first) if one not in drawn)
        sets += itertools.islice(others, wanted - len(sets))
    if len(sets) < n:
        there_are = len(sets)
    differences = torch.zeros(0, dtype=torch.float64)
    if match is not None and len(neurons):
        differences = standardised_differences(neurons, sets, match)
    found = Controls(tuple(sets), n, there_are, differences)
    if most_difference is not None and (differences.abs() > most_difference).any():
        raise ValueError(
            f"matched controls may differ by {most_difference:g} standard deviations, and "
            f"{_unlike(differences)}; match on less, draw from fewer nearest, or allow a larger difference"
        )
    return found


def some_of(neurons: NeuronSet, places: Sequence[int]) -> NeuronSet:
    """The set's neurons at these places of its order.

    Example:
        >>> list(some_of(NeuronSet([0, 0, 1], [3, 5, 2]), [2, 0]))
        [(1, 2), (0, 3)]
    """
    at = list(places)
    return NeuronSet(neurons.layer[at], neurons.index[at], neurons.n_layers, neurons.d_mlp, neurons.model)


def _pools(
    neurons: NeuronSet, d_mlp: Width, among: Bool[Tensor, "layer neuron"] | None
) -> dict[int, list[int]]:
    """Layer -> which others can be drawn there."""
    pools = {}
    for layer, index in neurons.by_layer().items():
        allowed = set(range(in_layer(d_mlp, layer)))
        if among is not None:
            allowed &= set(among[layer].nonzero().flatten().tolist())
        pools[layer] = sorted(allowed - set(index.tolist()))
    return pools


def _unlike(differences: Float[Tensor, " quantity"]) -> str:
    by = ", ".join(f"{value:+.2f}" for value in differences.tolist())
    matched = "in what they were matched on"
    return f"matched controls differ from the set by {by} standard deviations of their layers {matched}"


def distinct_draws(
    draw: Callable[[int], Drawn],
    n: int,
    *,
    seed: int,
    key: Callable[[Drawn], Hashable] | None = None,
) -> list[Drawn]:
    """``draw(seed)``, ``draw(seed + 1)``, ... without what was drawn before, until there are ``n`` or no more.

    Args:
        key: What makes two draws the same; they themselves without.

    Example:
        >>> distinct_draws(lambda seed: seed % 3, 20, seed=1)
        [1, 2, 0]
    """
    found: dict[Hashable, Drawn] = {}
    missed = 0
    while len(found) < n and missed < _PATIENCE:
        drawn = draw(seed)
        same = drawn if key is None else key(drawn)
        missed = missed + 1 if same in found else 0
        found.setdefault(same, drawn)
        seed += 1
    return list(found.values())


def few_alternatives(
    n_distinct: int, n_asked: int, *, alpha: float = 0.05, of: str = "neurons"
) -> str | None:
    """What to tell of fewer controls than asked for, and what would help; ``None`` where there are enough.

    Example:
        >>> few_alternatives(8, 20, of="heads")
        'only 8 distinct controls (20 were asked for): p > 0.11; 0.05 takes 19, so a larger set or pool of heads'
    """
    if n_distinct >= n_asked:
        return None
    told = f"only {n_distinct} distinct controls ({n_asked} were asked for): p > {1 / (n_distinct + 1):.2g}"
    needed = math.ceil(1 / alpha - 1e-9) - 1
    return (
        told if n_distinct >= needed else f"{told}; {alpha:g} takes {needed}, so a larger set or pool of {of}"
    )


def standardised_differences(
    neurons: NeuronSet,
    controls: Sequence[NeuronSet],
    match: Float[Tensor, "layer neuron"] | Float[Tensor, "quantity layer neuron"],
) -> Float[Tensor, " quantity"]:
    """By how many standard deviations of their layers controls exceed the set in each quantity; 0 is alike.

    Where a quantity is the same for a whole layer, that layer counts as 0.

    Example:
        >>> activation = torch.tensor([[0.0, 1.0, 2.0, 3.0]])
        >>> one, other = (NeuronSet([0], [index], n_layers=1, d_mlp=4) for index in (1, 2))
        >>> round(standardised_differences(one, [other], activation).item(), 3)
        0.775
    """
    match = finite_match(match, None, neurons.d_mlp)
    match = match if match.ndim == 3 else match[None]
    spread = _spread(match)[:, neurons.layer]
    total = torch.zeros(len(match), dtype=torch.float64)
    for one in controls:
        apart = match[:, one.layer, one.index] - match[:, neurons.layer, neurons.index]
        total += torch.where(spread > 0, apart / spread, 0.0).mean(-1)
    return total / max(1, len(controls))


def less_predictive(
    score: Float[Tensor, "layer neuron"], share: float | int = LEAST
) -> Bool[Tensor, "layer neuron"]:
    """Which neurons are of the ``share`` of their layer that has the lowest scores; the lowest index among equals.

    Example:
        >>> less_predictive(torch.tensor([[0.6, 0.9, 0.7, 0.5]]))
        tensor([[ True, False, False,  True]])
    """
    rank = score.argsort(dim=1, stable=True).argsort(dim=1)  # NaN, where there is no neuron, comes last
    n_least = ((~score.isnan()).sum(1).double() * share).to(torch.int64)
    return rank < n_least[:, None]


def _spread(match: Float[Tensor, "quantity layer neuron"]) -> Float[Tensor, "quantity layer"]:
    """The standard deviation of each layer's numbers, without the NaN of neurons that a layer doesn't have."""
    there = ~match.isnan()
    n = there.sum(-1)
    if bool(there.all()):
        return match.std(-1)
    mean = match.nansum(-1) / n
    return ((match - mean[..., None]).square().nansum(-1) / (n - 1)).sqrt()


def _n_alternatives(free: Mapping[int, int], counts: Mapping[int, int], n_nearest: int | None) -> int | None:
    """How many distinct controls there are; ``None`` where only drawing tells.

    Args:
        free: Layer -> how many neurons can be drawn there.
        counts: Layer -> how many are wanted.
    """
    if n_nearest is None:
        return math.prod(math.comb(free[layer], n) for layer, n in counts.items())
    if any(n > 1 for n in counts.values()):
        return None
    return math.prod(min(n_nearest, free[layer]) for layer in counts)


def _all_alternatives(
    neurons: NeuronSet, pools: Mapping[int, Sequence[int]], like: NeuronSet
) -> Iterator[NeuronSet]:
    """Every set with as many other neurons of each layer; neuron ``i`` is of the layer of the set's neuron ``i``."""
    places = {layer: (neurons.layer == layer).nonzero().flatten() for layer in pools}
    choices = [itertools.combinations(pools[layer], len(at)) for layer, at in places.items()]
    for one in itertools.product(*choices):
        index = torch.empty_like(neurons.index)
        for at, chosen in zip(places.values(), one, strict=True):
            index[at] = torch.tensor(chosen, dtype=index.dtype)
        yield NeuronSet(neurons.layer, index, like.n_layers, like.d_mlp, like.model)
