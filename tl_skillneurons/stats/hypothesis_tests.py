"""Whether a difference is more than luck: rank, McNemar, equivalence and permutation tests; no model is run.

**Rank p-value.** ``p = (1 + draws at least as extreme as the observed value) / (1 + draws)``: the observed value
counts as one of the draws, so that 20 random controls cannot give a p-value below 1/21. Two-sided, what is far from the
middle is extreme: with ``m`` the median of the observed ``x`` and the draws together, p is the share of these values
with ``|value - m| >= |x - m|``. Exact wherever ``x`` is one more draw, since all values are treated alike, and as small
as 1/21 on either side, which twice the smaller one-sided p can't be. Phipson and Smyth (2010) say why the 1 is added.

**McNemar's test**, exact (McNemar, 1947). Of the examples that two runs answer differently, ``n_lost`` were right
before and ``n_gained`` are right after. If neither run were better, each would be either with probability 1/2::

    p = min(1, 2 * P(Binomial(n_lost + n_gained, 1/2) <= min(n_lost, n_gained)))

**Label permutation.** The difference of two class means is compared with that under labels permuted among the
examples, ``p = (1 + permutations at least as large in absolute value) / (1 + permutations)``. Family-wise, the
largest difference in standard errors over all rows takes the place of each one's own (Westfall and Young,
1993), which keeps the rows' correlations.

**Equivalence** (two one-sided tests; Schuirmann, 1987). Two runs are as good as each other within ``margin`` when both
"worse by ``margin`` or more" and "better by ``margin`` or more" are refused. With ``d`` the paired differences of right
answers, their mean ``m`` and ``s`` its standard error, ``p`` is the larger of ``1 - Phi((m + margin) / s)`` and
``Phi((m - margin) / s)``. Not being told apart is no evidence of equivalence; this is.

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
from torch import Tensor

from tl_skillneurons._checks import require_int, require_option
from tl_skillneurons.stats.permutation import random_orders
from tl_skillneurons.stats.ranks import median

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

    n_lost: int
    n_gained: int
    p_value: float


def mcnemar(before: Bool[Tensor, " before"], after: Bool[Tensor, " after"]) -> McNemar:
    """The exact paired test of right answers before and after; p is 1 where no answer changed.

    Raises:
        ValueError: When the two differ in their number of examples.

    Example:
        >>> mcnemar(torch.tensor([True] * 5), torch.tensor([False] * 5))
        McNemar(n_lost=5, n_gained=0, p_value=0.0625)
    """
    if len(before) != len(after):
        raise ValueError(f"both runs must answer the same examples, got {len(before)} and {len(after)}")
    lost, gained = int((before & ~after).sum()), int((~before & after).sum())
    n, fewer = lost + gained, min(lost, gained)
    tail = sum(math.comb(n, k) for k in range(fewer + 1))  # exact integers, however many examples
    return McNemar(lost, gained, min(1.0, 2 * tail / 2**n))


@dataclass(frozen=True)
class Equivalence:
    """Accuracy after minus before, and the p-value of the two being further apart than ``margin``."""

    difference: float
    margin: float | int
    p_value: float


def equivalence(
    before: Bool[Tensor, " before"], after: Bool[Tensor, " after"], *, margin: float | int
) -> Equivalence:
    """The paired test that two runs' accuracies differ by less than ``margin``; a small p says that they do.

    Raises:
        ValueError: When the two differ in their number of examples, for none, or a margin outside (0, 1).

    Example:
        >>> right = torch.arange(400) % 10 > 0
        >>> round(equivalence(right, right, margin=0.02).p_value, 6)
        0.0
    """
    if len(before) != len(after) or not len(before):
        raise ValueError(f"both runs must answer the same examples, got {len(before)} and {len(after)}")
    if not 0 < margin < 1:
        raise ValueError(f"margin must be a difference of accuracies in (0, 1), got {margin}")
    d = after.double() - before.double()
    mean, error = float(d.mean()), float(d.std(correction=1) / math.sqrt(len(d))) if len(d) > 1 else math.inf
    if error == 0:  # no answer changed, which doesn't say that none ever would: as if one in n did
        error = 1 / len(d)
    p = max(math.erfc(z / math.sqrt(2)) / 2 for z in ((mean + margin) / error, (margin - mean) / error))
    return Equivalence(mean, margin, p)


@dataclass(frozen=True, eq=False)
class LabelDifference:
    """Mean of label 1 minus mean of label 0, and its p-values under permuted labels.

    Attributes:
        difference: In the values' own unit; positive where label 1 has the larger mean.
        p_value: Each row's own.
        p_family: For the largest of all rows.
    """

    difference: Float[Tensor, "*row"]
    p_value: Float[Tensor, "*row"]
    p_family: Float[Tensor, "*row"]


def permutation_difference(
    values: Float[Tensor, "*row example"],
    labels: Int[Tensor, " label"],
    *,
    n_draws: int = 1000,
    seed: int = 0,
) -> LabelDifference:
    """How much each row's mean differs between label 1 and label 0, and how often permuted labels do as much.

    Memory: ``rows * draws`` numbers in chunks of draws, 128 MB at most.

    Raises:
        ValueError: For labels other than 0 and 1, or when one of them has no example.

    Example:
        >>> labels = torch.arange(20) % 2
        >>> permutation_difference(labels + 0.01 * torch.arange(20), labels, n_draws=999).p_value.item()
        0.001
    """
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
    weight = torch.where(labels == 1, 1 / (labels == 1).sum(), -1 / (labels == 0).sum()).double()
    observed = rows @ weight
    generator = torch.Generator().manual_seed(seed)
    own, family = torch.zeros(2, len(rows), dtype=torch.float64)
    # what rounding makes of equal differences must not decide
    least = observed.abs() * (1 - 1e-9)
    scaled = observed.abs() / spread * (1 - 1e-9)
    for start in range(0, n_draws, chunk := max(1, _MOST_NUMBERS // max(len(rows), len(labels)))):
        shuffled = weight[random_orders(len(labels), min(chunk, n_draws - start), generator)]
        drawn = (rows @ shuffled.T).abs()
        own += (drawn >= least[:, None]).sum(1)
        largest = (drawn / spread[:, None]).amax(0)
        family += (largest >= scaled[:, None]).sum(1)
    shape = values.shape[:-1]
    return LabelDifference(
        observed.reshape(shape),
        ((1 + own) / (1 + n_draws)).reshape(shape),
        ((1 + family) / (1 + n_draws)).reshape(shape),
    )
