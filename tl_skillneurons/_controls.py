"""Controls of a set of neurons, each another one, and how like the set they are.

A control that is drawn twice is no second control: one of nine heads, or a neuron with 20 nearest, has only so many
alternatives, and a rank p-value over ``k`` distinct ones cannot be below ``1 / (k + 1)``. So draws are distinct: all
alternatives where they are no more than were asked for, else draws without repetition.

How like the set they are in what they were matched on is the standardised difference, averaged over the set's neurons
and the draws::

    d = mean over i of (match(stand-in of i) - match(i)) / (standard deviation of match over the layer of i)

Above 0.1 in absolute value they are not alike (Austin, 2009): of the most active neurons there may be no others as
active, and then what is done to the set differs from what is done to its controls by more than what the neurons encode.

The third control is neurons as active and least predictive (:func:`least_predictive`): if predictivity says anything
about what a model uses, they do least. What it does not show: that they are alike in anything but activation.
"""

import itertools
import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

from tl_skillneurons._checks import require_int
from tl_skillneurons._matching import finite_match, nearest_in_value
from tl_skillneurons.neurons import NeuronSet

ALIKE = 0.1
"""Standardised differences up to here count as alike."""

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
    def warnings(self) -> tuple[str, ...]:
        """What a reader of the p-values must know, in words: too few alternatives, or controls that are not alike."""
        found = []
        if note := few_alternatives(len(self.sets), self.n_asked):
            found.append(note)
        if (self.differences.abs() > ALIKE).any():
            by = ", ".join(f"{value:+.2f}" for value in self.differences.tolist())
            found.append(
                f"matched controls differ from the set by {by} standard deviations of their layers in what they were "
                f"matched on (up to {ALIKE:g} is alike): the set has neurons that no others are like"
            )
        return tuple(found)


def draw_controls(
    neurons: NeuronSet,
    n: int,
    *,
    seed: int = 0,
    d_mlp: int | None = None,
    match: Float[Tensor, "layer neuron"] | Float[Tensor, "quantity layer neuron"] | None = None,
    n_nearest: int = 20,
) -> Controls:
    """``n`` distinct random sets of the same layers, or all that there are; draw ``k`` is ``random_like(seed + k)``.

    Args:
        match: A number for every neuron, or several, as :meth:`NeuronSet.random_like` takes them.

    Raises:
        ValueError: When a layer has too few neurons to draw from, and for whatever ``random_like`` refuses.

    Example:
        >>> found = draw_controls(NeuronSet([0], [3], n_layers=1, d_mlp=9), 20)
        >>> len(found.sets), found.n_alternatives, round(found.smallest_p, 3)
        (8, 8, 0.111)
    """
    require_int(n, "n")
    first = neurons.random_like(
        seed, d_mlp=d_mlp, match=match, n_nearest=n_nearest
    )  # refuses what can't be drawn
    assert first.d_mlp is not None  # for type checkers: random_like knows it or refuses
    there_are = _n_alternatives(neurons, first.d_mlp, None if match is None else n_nearest)
    if match is None and there_are is not None and there_are <= n:
        sets = _all_alternatives(neurons, first)
    else:
        sets = distinct_draws(
            lambda own_seed: neurons.random_like(own_seed, d_mlp=d_mlp, match=match, n_nearest=n_nearest),
            n if there_are is None else min(n, there_are),
            seed=seed,
        )
    if len(sets) < n:
        there_are = len(sets)
    differences = torch.zeros(0, dtype=torch.float64)
    if match is not None and len(neurons):
        differences = standardised_differences(neurons, sets, match)
    return Controls(tuple(sets), n, there_are, differences)


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
    match = finite_match(match)
    match = match if match.ndim == 3 else match[None]
    spread = match.std(-1)[:, neurons.layer]
    total = torch.zeros(len(match), dtype=torch.float64)
    for one in controls:
        apart = match[:, one.layer, one.index] - match[:, neurons.layer, neurons.index]
        total += torch.where(spread > 0, apart / spread, 0.0).mean(-1)
    return total / max(1, len(controls))


def least_predictive(
    neurons: NeuronSet,
    predictivity: Float[Tensor, "layer neuron"],
    activation: Float[Tensor, "layer_of_activation neuron_of_activation"],
    *,
    n_nearest: int = 50,
) -> NeuronSet:
    """For each neuron one of its layer that is as active, and the least predictive of those: the third control.

    Args:
        predictivity: Of every neuron, as the set was chosen by it.
        activation: Of every neuron, e.g. the mean absolute one.
        n_nearest: Among how many of the nearest in activation, the set's own left out, the least predictive is taken.

    Returns:
        Neuron ``i`` stands for neuron ``i`` of the set and is of the same layer; none twice; nothing is random.

    Raises:
        ValueError: When a layer has too few other neurons, when the shapes differ, or for a number that isn't finite.

    Example:
        >>> skill = NeuronSet([0], [1], n_layers=1, d_mlp=4)
        >>> predictivity, activation = torch.tensor([[0.6, 0.9, 0.7, 0.5]]), torch.tensor([[1.0, 1.1, 1.2, 9.0]])
        >>> list(least_predictive(skill, predictivity, activation, n_nearest=2))
        [(0, 0)]
    """
    require_int(n_nearest, "n_nearest")
    if predictivity.shape != activation.shape:
        raise ValueError(
            "predictivity and activation must be [layer, neuron] of one model, got shapes "
            f"{tuple(predictivity.shape)} and {tuple(activation.shape)}"
        )
    predictivity, activation = finite_match(predictivity), finite_match(activation)
    neurons.require_fits(*activation.shape)
    chosen = torch.empty_like(neurons.index)
    for layer, index in neurons.by_layer().items():
        free = torch.ones(activation.shape[1], dtype=torch.bool)
        free[index] = False
        if int(free.sum()) < len(index):
            raise ValueError(
                f"layer {layer} has {int(free.sum())} neurons without the set's own, {len(index)} are needed"
            )
        chosen[neurons.layer == layer] = nearest_in_value(
            activation[layer],
            index,
            free.nonzero().flatten(),
            n_nearest,
            partial(_lowest, predictivity[layer]),
        )
    n_layers, d_mlp = activation.shape
    return NeuronSet(neurons.layer, chosen, n_layers=n_layers, d_mlp=d_mlp, model=neurons.model)


def _lowest(values: Float[Tensor, " neuron"], among: list[int]) -> int:
    return int(values[among].argmin())


def _n_alternatives(neurons: NeuronSet, d_mlp: int, n_nearest: int | None) -> int | None:
    """How many distinct controls there are; ``None`` where only drawing tells."""
    counts = neurons.counts_per_layer()
    if n_nearest is None:
        return math.prod(math.comb(d_mlp - n, n) for n in counts.values())
    if any(n > 1 for n in counts.values()):
        return None
    return math.prod(min(n_nearest, d_mlp - n) for n in counts.values())


def _all_alternatives(neurons: NeuronSet, like: NeuronSet) -> list[NeuronSet]:
    """Every set with as many other neurons of each layer."""
    assert like.d_mlp is not None  # for type checkers
    choices = []
    for layer, index in neurons.by_layer().items():
        pool = sorted(set(range(like.d_mlp)) - set(index.tolist()))
        choices.append([[(layer, i) for i in chosen] for chosen in itertools.combinations(pool, len(index))])
    return [
        NeuronSet.from_pairs(
            itertools.chain.from_iterable(one), n_layers=like.n_layers, d_mlp=like.d_mlp, model=like.model
        )
        for one in itertools.product(*choices)
    ]
