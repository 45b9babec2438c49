"""Intervals of means of few values with a long tail: Student's, corrected for the values' own skewness.

With ``n`` units, ``T`` the studentised mean and ``g`` the skewness of what is averaged, Johnson's (1978) correction of
``T`` in Hall's (1992) form, which never turns back, has nearly Student's law though the values are skewed::

    T' = sqrt(n) * (y + g y^2 / 3 + g^2 y^3 / 27 + g / (6 n)),    y = T / sqrt(n)

and the interval is where ``T'`` lies between Student's quantiles, as far as the cubic is of use: beyond the point
where it is flat, at ``y = -3 / g``, a small step of ``T'`` would be any number of standard errors. It is closed and the
same for every seed, where a bootstrap-t divides by the scatter of each draw, which is none in many draws of answers
that rarely change.

What it does not show: a tail of which nothing was seen. Of values that are nearly all equal it is as short as any.
"""

import math

import torch
from jaxtyping import Float
from scipy.special import stdtrit
from torch import Tensor


def student_quantile(n: int | float, confidence: float) -> float:
    """How many standard errors on either side of a mean of ``n`` values hold it so often.

    Example:
        >>> round(student_quantile(10, 0.95), 3)
        2.262
    """
    return -float(stdtrit(n - 1, (1 - confidence) / 2))


def skewed_ends(
    estimate: Float[Tensor, " row"], pulls: Float[Tensor, "row unit"], n: float, confidence: float
) -> tuple[Float[Tensor, " row"], Float[Tensor, " row"]]:
    """The ends ``(low, high)`` of each estimate's interval.

    Args:
        pulls: By how much each unit pulls the estimate away from what the others say; each row sums to 0. Of a mean
            over ``k`` values, ``(value - mean) / k``.
        n: How many units of equal size would vary as much.

    Example:
        >>> values = torch.tensor([[0.0, 0.1, 0.1, 0.2, 0.2, 0.3, 0.5, 2.0]]).double()
        >>> mean = values.mean(1)
        >>> low, high = skewed_ends(mean, (values - mean[:, None]) / 8, 8, 0.95)
        >>> round((mean - low).item(), 2), round((high - mean).item(), 2)
        (0.36, 1.85)
    """
    n_units = pulls.shape[1]
    spread = pulls.square().sum(1)
    error = (spread * n_units / (n_units - 1)).sqrt()
    skewness = torch.where(spread > 0, math.sqrt(n) * pulls.pow(3).sum(1) / spread.pow(1.5), 0.0)
    most = student_quantile(n, confidence)
    return (
        estimate - error * _student_of(most, skewness, n),
        estimate - error * _student_of(-most, skewness, n),
    )


def _student_of(corrected: float, skewness: Float[Tensor, " row"], n: float) -> Float[Tensor, " row"]:
    """The ``T`` whose ``T'`` this is, or where the cubic is flat if that is nearer."""
    y = corrected / math.sqrt(n) - skewness / (6 * n)
    cube = (1 + skewness * y).clamp(min=0)
    straight = skewness.abs() < 1e-6  # the formula's limit, which it divides by nothing to reach
    bent = 3 * (cube.pow(1 / 3) - 1) / torch.where(straight, 1.0, skewness)
    return math.sqrt(n) * torch.where(straight, y, bent)
