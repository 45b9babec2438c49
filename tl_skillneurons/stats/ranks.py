"""Ranks, rank correlation and the median.

Equals share their middle rank; with ``r`` and ``s`` the ranks of the same items by two scores, Spearman's
correlation is Pearson's of them::

    rho = cov(r, s) / sqrt(var(r) * var(s))

What it does not show: whether two rankings agree more than they must. Selection, and anything that both scores share
(activation, norm), make rankings agree without a common cause; compare with rankings under permuted labels. Source:
Spearman (1904).
"""

from collections.abc import Sequence

import torch
from einops import rearrange
from jaxtyping import Float, Num
from torch import Tensor


def average_ranks(values: Num[Tensor, "item *axes"]) -> Float[Tensor, "item *axes"]:
    """Ranks from 1 along the first axis, float64; equals share their middle rank.

    Example:
        >>> average_ranks(torch.tensor([0.3, 0.1, 0.3])).tolist()
        [2.5, 1.0, 2.5]
    """
    columns = rearrange(values, "item ... -> (...) item").contiguous()
    ordered = columns.sort(dim=1).values
    below = torch.searchsorted(ordered, columns)
    up_to = torch.searchsorted(ordered, columns, right=True)
    return rearrange((below + up_to + 1).double() / 2, "column item -> item column").reshape(values.shape)


def correlation(one: Num[Tensor, "item *axes"], other: Num[Tensor, "item *axes"]) -> Float[Tensor, "*axes"]:
    """Pearson's r along the first axis, float64; NaN where either is constant."""
    a, b = (x.double() - x.double().mean(0) for x in (one, other))
    r = (a * b).sum(0) / (a.square().sum(0) * b.square().sum(0)).sqrt()
    return r.clamp(-1, 1)


def spearman(one: Num[Tensor, " one"], other: Num[Tensor, " other"]) -> float:
    """Spearman's rank correlation with ties averaged; NaN where either is constant.

    Raises:
        ValueError: When the two differ in length.

    Example:
        >>> spearman(torch.tensor([1, 2, 3]), torch.tensor([10, 40, 20]))
        0.5
    """
    if one.shape != other.shape:
        raise ValueError(f"both rankings must be of the same items, got {len(one)} and {len(other)}")
    return float(correlation(average_ranks(one), average_ranks(other)))


def median(values: Num[Tensor, " value"] | Sequence[float | int]) -> float:
    """The 0.5 quantile: of an even number of values the mean of the middle two (torch's own gives the lower).

    Raises:
        ValueError: When there are no values.

    Example:
        >>> median([0, 1, 2, 10])
        1.5
    """
    values = torch.as_tensor(values, dtype=torch.float64)
    if not len(values):
        raise ValueError("there is no median of no values")
    return float(values.quantile(0.5))
