"""Whether a difference is more than luck: rank, McNemar, sign-flip and permutation tests; no model is run.

**Rank p-value.** ``p = (1 + draws at least as extreme as the observed value) / (1 + draws)``: the observed value
counts as one of the draws, so that 20 random controls cannot give a p-value below 1/21. Two-sided, what is far from the
middle is extreme: with ``m`` the median of the observed ``x`` and the draws together, p is the share of these values
with ``|value - m| >= |x - m|``. Exact wherever ``x`` is one more draw, since all values are treated alike, and as small
as 1/21 on either side, which twice the smaller one-sided p can't be. Phipson and Smyth (2010) say why the 1 is added.

**McNemar's test**, exact (McNemar, 1947). Of the examples that two runs answer differently, ``n_lost`` were right
before and ``n_gained`` are right after. If neither run were better, each would be either with probability 1/2::

    p = min(1, 2 * P(Binomial(n_lost + n_gained, 1/2) <= min(n_lost, n_gained)))

With ``units``, all answers of a unit change sides together: the law of ``n_gained - n_lost`` under random signs of the
units' own differences, counted out exactly.

**Sign flips** (Fisher, 1935). Of paired differences that could as well have the other sign, unit by unit, p is the
share of all signs with a mean at least as large in absolute value; all signs where they are few, else random ones.

**Label permutation.** The difference of two class means is compared with that under labels permuted among the
examples, or dealt out to units, ``p = (1 + permutations at least as large in absolute value) / (1 + permutations)``.
Family-wise, the largest difference in standard errors over all rows takes the place of each one's own (Westfall and
Young, 1993), which keeps the rows' correlations.

What they do not show: how large an effect is (give its interval beside it), and anything about examples, prompts or
neurons that chose what is tested. No p-value here is corrected for the number of tests:
:mod:`~tl_skillneurons.stats.multiple_testing` does that.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int
from scipy.stats import binomtest
from torch import Tensor

from tl_skillneurons._checks import require_int, require_option, require_seed
from tl_skillneurons._results import html_of_fields, short_repr
from tl_skillneurons.stats.permutation import random_orders
from tl_skillneurons.stats.ranks import median
from tl_skillneurons.stats.units import Units, require_same_answers, require_units

ALTERNATIVES = ("less", "greater", "two-sided")
"""Which values are extreme: those as small as the observed one, as large, or either."""

_MOST_NUMBERS = 2**24  # of one chunk of draws: 128 MB in float64


def rank_p_value(
    value: float | int,
    drawn: Float[Tensor, " draw"] | Sequence[float | int],
    alternative: str = "less",
) -> float:
    """The share of random draws at least as extreme as ``value``, which counts as one of them; in (0, 1].

    Args:
        value: E.g. the accuracy with the skill neurons ablated.
        drawn: The same number for each random control; ties count as extreme.
        alternative: ``"less"`` where smaller is more extreme (accuracy after ablation), ``"greater"`` where larger
            is (the drop in accuracy), ``"two-sided"`` where far from the median of all is, whichever way.

    Raises:
        ValueError: When there are no draws, where a number is NaN, or for an unknown alternative.

    Example:
        >>> rank_p_value(0.52, [0.91, 0.88, 0.90, 0.93])  # accuracy: skill neurons ablated, four controls
        0.2
        >>> rank_p_value(0.52, [0.91, 0.88, 0.90, 0.93], "two-sided")
        0.2
    """
    require_option(alternative, "alternative", ALTERNATIVES)
    values = torch.as_tensor(drawn, dtype=torch.float64, device=getattr(drawn, "device", "cpu")).flatten()
    if len(values) == 0:
        raise ValueError("drawn must hold at least one number, got none; draw random controls first")
    n_nan = int(values.isnan().sum())
    if math.isnan(value) or n_nan:
        raise ValueError(
            f"value and drawn must be numbers, got value = {value} and {n_nan} NaN among "
            f"{len(values)} draws; a NaN can't be ranked"
        )
    if alternative == "two-sided":
        distance = torch.cat([values.new_tensor([value]), values])
        distance = (distance - median(distance)).abs()
        values, value = distance[1:], float(distance[0]) * (1 - 1e-9)  # rounding must not decide
    extreme = values <= value if alternative == "less" else values >= value
    return (1 + int(extreme.sum())) / (1 + len(values))


def require_draws(n_draws: int, alpha: float = 0.05, *, name: str = "n_random") -> int:
    """Return ``n_draws`` if a rank p-value over so many controls can be as small as ``alpha``.

    Raises:
        ValueError: Otherwise, with how many it takes.

    Example:
        >>> require_draws(20)
        20
    """
    require_int(n_draws, name)
    least = math.ceil(1 / alpha - 1e-9) - 1
    if n_draws < least:
        raise ValueError(
            f"{name} must be at least {least} for a p-value of {alpha:g}, got {n_draws}: "
            f"that many can't give one below 1/{n_draws + 1}"
        )
    return n_draws


@dataclass(frozen=True)
class McNemar:
    """Examples that only the first run got right, that only the second did, and the exact two-sided p-value."""

    _repr_html_ = html_of_fields

    n_lost: int
    n_gained: int
    p_value: float


def mcnemar(
    before: Bool[Tensor, " before"], after: Bool[Tensor, " after"], *, units: Units | None = None
) -> McNemar:
    """The exact paired test of right answers before and after; p is 1 where no answer changed.

    Args:
        units: Which examples belong together and change sides together; each is its own without.

    Raises:
        ValueError: When the two, or the units, differ in their number of examples.

    Example:
        >>> before, after = torch.tensor([True] * 5), torch.tensor([False] * 5)
        >>> mcnemar(before, after)
        McNemar(n_lost=5, n_gained=0, p_value=0.0625)
        >>> mcnemar(before, after, units=Units.of([["a", "a", "a", "b", "b"]])).p_value
        0.5
    """
    require_same_answers(before, after, units)
    lost, gained = int((before & ~after).sum()), int((~before & after).sum())
    if units is not None and not units.are_single:
        return McNemar(lost, gained, _flipped_tail(units.sums(after.long() - before.long())))
    changed = lost + gained
    return McNemar(lost, gained, float(binomtest(lost, changed).pvalue) if changed else 1.0)


def sign_flip_test(
    differences: Float[Tensor, "*row example"],
    *,
    units: Units | None = None,
    n_draws: int = 9999,
    seed: int = 0,
) -> Float[Tensor, "*row"]:
    """The two-sided p-value of each row's mean being zero, when a unit's differences could have the other sign.

    Args:
        differences: Of each example, e.g. a logit diff after minus before.
        units: Which examples belong together and turn together; each is its own without.
        n_draws: Random signs; where all signs are fewer, all are counted and p is exact.

    Raises:
        ValueError: Without examples, or for units of other examples.

    Example:
        >>> sign_flip_test(torch.tensor([1.0, 2.0, 0.5, 1.5])).item()  # 2 of 16 signs
        0.125
    """
    require_seed(seed)
    n = differences.shape[-1]
    if not n:
        raise ValueError("differences must hold at least one example, got none")
    require_int(n_draws, "n_draws")
    rows = rearrange(differences.detach().double().cpu(), "... example -> (...) example")
    units = require_units(n, units)
    sums = units.sums(rows)
    least = sums.sum(1).abs() * (1 - 1e-9) - 1e-12 * sums.abs().sum(1)  # rounding must not decide
    few = len(units) < 31 and 2 ** len(units) <= n_draws + 1
    generator = torch.Generator().manual_seed(seed)
    n_signs = 2 ** len(units) if few else n_draws
    extreme = torch.zeros(len(rows), dtype=torch.float64)
    for start in range(0, n_signs, chunk := max(1, _MOST_NUMBERS // max(len(rows), len(units)))):
        size = min(chunk, n_signs - start)
        if few:
            number = torch.arange(start, start + size)
            signs = ((number[:, None] >> torch.arange(len(units))) & 1).double() * 2 - 1
        else:
            signs = units.signs(size, generator)
        extreme += ((sums @ signs.T).abs() >= least[:, None]).sum(1)
    p = extreme / n_signs if few else (1 + extreme) / (1 + n_signs)
    return p.reshape(differences.shape[:-1])


@dataclass(frozen=True, eq=False)
class LabelDifference:
    """Mean of label 1 minus mean of label 0, and its p-values under permuted labels.

    Attributes:
        difference: In the values' own unit; positive where label 1 has the larger mean.
        p_value: Each row's own.
        p_family: For the largest of all rows.
        n_draws: Permuted labels that each was compared with: as many as were asked for, or every other way to label
            the units, once, where these are fewer.

    Example:
        >>> values, labels = torch.tensor([1.0, 2.0, 5.0, 6.0]), torch.tensor([0, 0, 1, 1])
        >>> permutation_difference(values, labels).difference.item()
        4.0
    """

    __repr__ = short_repr
    _repr_html_ = html_of_fields

    difference: Float[Tensor, "*row"]
    p_value: Float[Tensor, "*row"]
    p_family: Float[Tensor, "*row"]
    n_draws: int


def permutation_difference(
    values: Float[Tensor, "*row example"],
    labels: Int[Tensor, " label"],
    *,
    n_draws: int = 1000,
    seed: int = 0,
    units: Units | None = None,
) -> LabelDifference:
    """How much each row's mean differs between label 1 and label 0, and how often permuted labels do as much.

    Args:
        n_draws: Random permutations; where there are fewer ways to label the units, all are counted and p is exact.
        units: Which examples belong together; labels are dealt out to them. Each is its own without.

    Memory: ``rows * draws`` numbers in chunks of draws, 128 MB at most.

    Raises:
        ValueError: For labels other than 0 and 1, when one of them has no example, or when the units can be labelled
            in no other way.

    Example:
        >>> labels = torch.arange(20) % 2
        >>> permutation_difference(labels + 0.01 * torch.arange(20), labels, n_draws=999).p_value.item()
        0.001
    """
    require_seed(seed)
    labels = labels.cpu()
    if labels.ndim != 1 or len(labels) != values.shape[-1]:
        raise ValueError(f"labels must be one per example, got {len(labels)} for {values.shape[-1]} examples")
    if set(labels.tolist()) != {0, 1}:
        raise ValueError(f"labels must be 0 and 1, with examples of both, got {sorted(set(labels.tolist()))}")
    require_int(n_draws, "n_draws")
    rows = rearrange(values.detach().double().cpu(), "... example -> (...) example")
    size_of = rows.abs().amax(1)
    rows = rows - rows.mean(1, keepdim=True)  # changes no difference, and keeps rounding small
    spread = rows.std(1, correction=0)
    spread[spread <= 1e-12 * size_of] = torch.inf  # a constant differs by rounding alone
    n_zero, n_one = torch.bincount(labels).double()  # in float32 equal differences would not be equal
    weight = torch.where(labels == 1, 1 / n_one, -1 / n_zero)
    observed = rows @ weight
    generator = torch.Generator().manual_seed(seed)
    units = require_units(len(labels), units)
    few = units.log_orders(labels) <= math.log(n_draws + 1) + 1e-9
    dealt = None if units.are_single and not few else units.permuted(labels, n_draws, seed=seed)
    n_draws = n_draws if dealt is None else len(dealt)
    own, family = torch.zeros(2, len(rows), dtype=torch.float64)
    # what rounding makes of equal differences must not decide
    least = observed.abs() * (1 - 1e-9)
    scaled = observed.abs() / spread * (1 - 1e-9)
    for start in range(0, n_draws, chunk := max(1, _MOST_NUMBERS // max(len(rows), len(labels)))):
        size = min(chunk, n_draws - start)
        if dealt is None:
            shuffled = weight[random_orders(len(labels), size, generator)]
        else:
            labelled = dealt[start : start + size]
            n_of = torch.stack([(labelled == c).sum(1) for c in (0, 1)]).clamp(min=1).double()
            shuffled = torch.where(labelled == 1, 1 / n_of[1][:, None], -1 / n_of[0][:, None])
        drawn = (rows @ shuffled.T).abs()
        own += (drawn >= least[:, None]).sum(1)
        largest = (drawn / spread[:, None]).amax(0)
        family += (largest >= scaled[:, None]).sum(1)
    shape = values.shape[:-1]
    return LabelDifference(
        observed.reshape(shape),
        ((1 + own) / (1 + n_draws)).reshape(shape),
        ((1 + family) / (1 + n_draws)).reshape(shape),
        n_draws,
    )


def _flipped_tail(sums: Float[Tensor, " unit"]) -> float:
    """The probability that whole numbers with random signs add up to as much as with their own, in absolute value."""
    own = [int(value) for value in sums.tolist() if value]
    most, total = sum(map(abs, own)), abs(sum(own))
    mass = torch.zeros(2 * most + 1, dtype=torch.float64)
    mass[most] = 1
    for value in own:
        mass = (mass.roll(value) + mass.roll(-value)) / 2  # nothing reaches the ends before the last one
    extreme = (torch.arange(-most, most + 1)).abs() >= total
    return min(1.0, float(mass[extreme].sum()))
