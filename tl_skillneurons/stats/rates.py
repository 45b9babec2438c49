"""The interval of a share of right answers, be they of texts that belong together.

Exact (:func:`~tl_skillneurons.stats.intervals.clopper_pearson`) where every example stands alone, else the bootstrap
over units, which reaches no further than the exact interval of as many units. Where all answers are right, or all
wrong, drawing them again can't vary, and it is the exact one of as many units: cautious, since a unit's answers needn't
agree.

What it does not show: anything about examples that chose what answers.
"""

from jaxtyping import Bool, Float
from torch import Tensor

from tl_skillneurons._checks import require_seed
from tl_skillneurons.stats.intervals import bootstrap_mean, clopper_pearson
from tl_skillneurons.stats.units import Units, require_units


def rate_interval(
    right: Bool[Tensor, " example"] | Float[Tensor, " example"], units: Units, *, seed: int = 0
) -> tuple[float, float]:
    """The 95 % interval ``(low, high)`` of a rate, of answers that are 1 or 0.

    Raises:
        ValueError: Without answers, for units of other examples, or a seed that is none.

    Example:
        >>> low, high = rate_interval(torch.ones(40).bool(), Units.of([[0] * 20 + [1] * 20]))
        >>> round(low, 3), high
        (0.158, 1.0)
    """
    require_seed(seed)
    hits, n = int(right.sum()), len(right)
    require_units(n, units)
    if units.are_single:
        return clopper_pearson(hits, n)
    if hits in (0, n):
        return clopper_pearson(len(units) if hits else 0, len(units))
    low, high = bootstrap_mean(right.double(), units=units, seed=seed)
    return float(low), float(high)
