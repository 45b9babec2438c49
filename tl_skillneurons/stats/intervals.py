"""How sure a mean, a paired comparison or a difference between labels is; no model is run.

**McNemar's test**, exact. Of the examples that two runs answer differently, ``n_lost`` were right before and
``n_gained`` are right after. If neither run were better, each would be either with probability 1/2::

    p = min(1, 2 * P(Binomial(n_lost + n_gained, 1/2) <= min(n_lost, n_gained)))

**Bootstrap** (percentile). Examples are drawn with replacement, and the quantiles of the drawn means bound the
interval. It is about other examples of the same kind, not about other prompts or seeds, and is too narrow for
a few dozen examples or less.

**Label permutation**. The difference of two class means is compared with that under labels permuted among the
examples, ``p = (1 + permutations at least as large in absolute value) / (1 + permutations)``. Family-wise, the
largest difference in standard errors over all rows takes the place of each one's own (Westfall and Young,
1993), which keeps the rows' correlations.

**Equivalence** (two one-sided tests; Schuirmann, 1987). Two runs are as good as each other within ``margin`` when both
"worse by ``margin`` or more" and "better by ``margin`` or more" are refused. With ``d`` the paired differences of right
answers, their mean ``m`` and ``s`` its standard error, ``p`` is the larger of ``1 - Phi((m + margin) / s)`` and
``Phi((m - margin) / s)``. Not being told apart is no evidence of equivalence; this is.

**Expected calibration error** (Guo et al., 2017, equation 3): examples in bins of equal width by the
probability given to the predicted class; the mean over examples of ``|accuracy - mean probability|`` of their
bin.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from tl_skillneurons._checks import require_int

_MOST_NUMBERS = 2**24  # of one chunk of draws: 128 MB in float64


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
    margin: float
    p_value: float


def equivalence(
    before: Bool[Tensor, " before"], after: Bool[Tensor, " after"], *, margin: float | int
) -> Equivalence:
    """The paired test that two runs' accuracies differ by less than ``margin``.

    Raises:
        ValueError: When the two differ in their number of examples, for none, or a margin outside (0, 1).
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


def bootstrap_mean(
    values: Float[Tensor, "*row example"],
    *,
    n_draws: int = 2000,
    confidence: float = 0.95,
    seed: int = 0,
) -> tuple[Float[Tensor, "*row"], Float[Tensor, "*row"]]:
    """The percentile bootstrap interval of each row's mean over examples: ``(low, high)``, float64.

    All rows see the same resampled examples, so a difference of rows is resampled in pairs.

    Raises:
        ValueError: Without examples, or for ``confidence`` outside (0, 1).
    """
    n = values.shape[-1]
    require_int(n_draws, "n_draws")
    if n == 0:
        raise ValueError("values must hold at least one example, got none")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must be between 0 and 1, both excluded, got {confidence}")
    rows = values.detach().double().cpu().reshape(-1, n)
    generator = torch.Generator().manual_seed(seed)
    means = torch.empty(len(rows), n_draws, dtype=torch.float64)
    for start in range(0, n_draws, chunk := max(1, _MOST_NUMBERS // n)):
        size = min(chunk, n_draws - start)
        drawn = torch.randint(n, (size, n), generator=generator)
        counts = torch.zeros(size, n, dtype=torch.float64).scatter_add_(
            1, drawn, torch.ones(size, n, dtype=torch.float64)
        )
        means[:, start : start + size] = rows @ counts.T / n
    tail = (1 - confidence) / 2
    low, high = means.quantile(torch.tensor([tail, 1 - tail], dtype=torch.float64), dim=1)
    return low.reshape(values.shape[:-1]), high.reshape(values.shape[:-1])


def calibration_error(
    probability: Float[Tensor, " example"], correct: Bool[Tensor, " answer"], *, n_bins: int = 10
) -> float:
    """Expected calibration error in [0, 1]; 0 where each bin is right as often as it says.

    Args:
        probability: What the predicted class was given.
        correct: Whether the prediction was right.

    Raises:
        ValueError: When the two differ in length or are empty, or for probabilities outside [0, 1].
    """
    if len(probability) != len(correct) or not len(probability):
        raise ValueError(
            f"probability and correct must hold the same examples, got {len(probability)} and {len(correct)}"
        )
    if not ((probability >= 0) & (probability <= 1)).all():
        raise ValueError("probability must be in [0, 1]")
    place = (probability.double() * require_int(n_bins, "n_bins")).ceil().long().clamp(1, n_bins) - 1
    gap = torch.zeros(n_bins, dtype=torch.float64, device=probability.device)
    gap.index_add_(0, place, correct.double() - probability.double())
    return float(gap.abs().sum() / len(probability))


@dataclass(frozen=True, eq=False)
class LabelDifference:
    """Mean of label 1 minus mean of label 0, and its p-values under permuted labels.

    ``p_value`` is each row's own, ``p_family`` is for the largest of all rows.
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
    """
    labels = labels.cpu()
    if labels.ndim != 1 or len(labels) != values.shape[-1]:
        raise ValueError(f"labels must be one per example, got {len(labels)} for {values.shape[-1]} examples")
    if set(labels.tolist()) != {0, 1}:
        raise ValueError(f"labels must be 0 and 1, with examples of both, got {sorted(set(labels.tolist()))}")
    require_int(n_draws, "n_draws")
    rows = values.detach().double().cpu().reshape(-1, len(labels))
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
        size = min(chunk, n_draws - start)
        shuffled = torch.stack(
            [weight[torch.randperm(len(labels), generator=generator)] for _ in range(size)]
        )
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


def require_draws(n_draws: int, alpha: float = 0.05, *, name: str = "n_random") -> int:
    """Return ``n_draws`` if a rank p-value over so many controls can be as small as ``alpha``.

    Raises:
        ValueError: Otherwise, with how many it takes.
    """
    require_int(n_draws, name)
    least = math.ceil(1 / alpha - 1e-9) - 1
    if n_draws < least:
        raise ValueError(
            f"{name} must be at least {least} for a p-value of {alpha:g}, got {n_draws}: "
            f"that many can't give one below 1/{n_draws + 1}"
        )
    return n_draws
