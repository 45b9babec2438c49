"""Whether two runs answer equally well, which is more than not being told apart; no model is run.

**Equivalence**, exact (two one-sided tests; Schuirmann, 1987). Two runs are as good as each other within ``margin``
when both "worse by ``margin`` or more" and "better by ``margin`` or more" are refused; p is the larger of the two. Of
``n`` answers ``L`` are lost and ``G`` gained. "Worse by ``margin`` or more" is likeliest at ``P(lost) = P(gained) +
margin``, and with the score statistic of that boundary (Tango, 1998)::

    z(L, G) = (G - L + n margin) / sqrt(n (2 q + margin - margin^2)),   q the likeliest P(gained) there
    p = max over q of P(z(L', G') >= z(L, G)),   (L', G', n - L' - G') ~ Multinomial(n; q + margin, q, 1 - 2 q - margin)

so that the size never exceeds the nominal one (Hsueh, Liu and Chen, 2001). No change in ``n`` answers gives
``(1 - margin)^n`` where that is the largest. With ``units`` each is one answer, counted against equivalence: lost where
its answers became worse at all, gained only where all are gained, for the one side, and mirrored for the other. Exact
about the mean over units, and cautious. Not being told apart is no evidence of equivalence; this is.

What it does not show: that the two give the same answers, or are equal on examples of another kind.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from jaxtyping import Bool
from numpy.typing import NDArray
from scipy.special import bdtrc, gammaln, xlog1py, xlogy
from torch import Tensor

from tl_skillneurons._results import html_of_fields
from tl_skillneurons.stats.units import Units, require_same_answers, require_units


@dataclass(frozen=True)
class Equivalence:
    """Accuracy after minus before, and the p-value of the two being further apart than ``margin``.

    Attributes:
        n_units: Each counted as one answer.
        smallest_p: The p-value of so many units if nothing at all had changed; where it is above 0.05 there are too
            few to show equivalence, whatever they say.

    Example:
        >>> right = torch.ones(400, dtype=torch.bool)
        >>> equivalence(right, right, margin=0.05).difference
        0.0
    """

    _repr_html_ = html_of_fields

    difference: float
    margin: float | int
    p_value: float
    n_units: int
    smallest_p: float


def equivalence(
    before: Bool[Tensor, " before"],
    after: Bool[Tensor, " after"],
    *,
    margin: float | int,
    units: Units | None = None,
) -> Equivalence:
    """The exact paired test that two runs' accuracies differ by less than ``margin``; a small p says that they do.

    It takes many units: at 0.05 at least 29 for a margin of 0.1, 59 for 0.05, 299 for 0.01, and so many only where
    nothing changes. Examples that belong together are one, however many there are.

    Args:
        units: Which examples belong together; each is its own without.

    Raises:
        ValueError: When the two, or the units, differ in their number of examples, for none, or a margin outside
            (0, 1).

    Example:
        >>> right = torch.arange(40) % 10 > 0
        >>> round(equivalence(right, right, margin=0.05).p_value, 3)  # no change in 40 answers: 0.95 ** 40
        0.129
        >>> equivalence(right, right, margin=0.05).n_units  # 59 would do
        40
    """
    require_same_answers(before, after, units)
    if not len(before):
        raise ValueError("both runs must answer at least one example, got none")
    if not 0 < margin < 1:
        raise ValueError(f"margin must be a difference of accuracies in (0, 1), got {margin}")
    units = require_units(len(before), units)
    change = after.long() - before.long()
    net = units.sums(change)
    worse, better = (
        _differs_p(int((side < 0).sum()), int((side == units.sizes).sum()), len(units), margin)
        for side in (net, -net)
    )
    least = _differs_p(0, 0, len(units), margin)
    return Equivalence(float(change.double().mean()), margin, max(worse, better), len(units), least)


@lru_cache(maxsize=1024)  # runs are compared again and again, on equally many answers
def _differs_p(n_lost: int, n_gained: int, n: int, margin: float | int) -> float:
    """The exact p-value of "worse by ``margin`` or more" for so many answers lost and gained of ``n``."""
    lost = np.arange(n + 1)
    observed = _score(np.array([n_lost]), np.array([n_gained]), n, margin)
    low, high = (
        np.zeros(n + 1, dtype=int),
        n - lost + 1,
    )  # the fewest gained that are as extreme, none at n - lost + 1
    while (low < high).any():
        middle = (low + high) // 2
        reached = (_score(lost, middle, n, margin) >= observed - 1e-9) | (middle > n - lost)
        low, high = np.where(reached | (low >= high), low, middle + 1), np.where(reached, middle, high)
    most = (1 - margin) / 2
    grid = np.unique(np.concatenate([np.linspace(0, most, 301), np.linspace(0, min(most, 20 / n), 301)]))
    p = _as_extreme(grid, low, n, margin)
    best = int(p.argmax())
    nearer = np.linspace(grid[max(0, best - 1)], grid[min(len(grid) - 1, best + 1)], 101)
    return min(1.0, float(max(p.max(), _as_extreme(nearer, low, n, margin).max())))


def _score(lost: NDArray, gained: NDArray, n: int, margin: float | int) -> NDArray:
    linear = lost * (1 + margin) + gained * (1 - margin) - 2 * n * margin
    likeliest = (linear + np.sqrt(linear**2 + 8 * n * gained * margin * (1 - margin))) / (4 * n)
    return (gained - lost + n * margin) / np.sqrt(n * (2 * likeliest + margin - margin**2))


def _as_extreme(q: NDArray, fewest: NDArray, n: int, margin: float | int) -> NDArray:
    """For each probability ``q`` of a gain, that of as extreme an outcome: ``fewest`` gains for each number lost."""
    lost = np.arange(n + 1)
    q = q[:, None]
    choose = gammaln(n + 1) - gammaln(lost + 1) - gammaln(n - lost + 1)
    mass = np.exp(choose + xlogy(lost, q + margin) + xlog1py(n - lost, -(q + margin)))
    of_rest = np.clip(q / np.maximum(1 - q - margin, 1e-300), 0, 1)
    return (mass * bdtrc(fewest - 1.0, n - lost, of_rest)).sum(1)
