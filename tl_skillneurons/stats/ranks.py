"""Ranks, rank correlation, Mantel's test and the median.

Equals share their middle rank; with ``r`` and ``s`` the ranks of the same items by two scores, Spearman's
correlation is Pearson's of them::

    rho = cov(r, s) / sqrt(var(r) * var(s))

**Mantel's test** of two matrices over the same items permutes the items of one, rows and columns together.

What it does not show: whether two rankings agree more than they must. Selection, and anything that both scores share
(activation, norm), make rankings agree without a common cause; compare with rankings under permuted labels. Sources:
Spearman (1904), Mantel (1967).
"""

import itertools
import math
from collections.abc import Sequence

import torch
from jaxtyping import Float, Num
from scipy.stats import rankdata
from torch import Tensor

from tl_skillneurons._checks import require_int, require_seed


def average_ranks(values: Num[Tensor, "item *axes"]) -> Float[Tensor, "item *axes"]:
    """Ranks from 1 along the first axis, float64; equals share their middle rank.

    Example:
        >>> average_ranks(torch.tensor([0.3, 0.1, 0.3])).tolist()
        [2.5, 1.0, 2.5]
    """
    return torch.from_numpy(rankdata(values.cpu().numpy(), axis=0)).to(values.device, torch.float64)


def correlation(one: Num[Tensor, "item *axes"], other: Num[Tensor, "item *axes"]) -> Float[Tensor, "*axes"]:
    """Pearson's r along the first axis, float64; NaN where either is constant.

    Example:
        >>> round(correlation(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([2.0, 4.0, 6.0])).item(), 6)
        1.0
    """
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


def mantel(
    one: Float[Tensor, "item item"],
    other: Float[Tensor, "item item"],
    *,
    n_permutations: int = 1000,
    seed: int = 0,
) -> tuple[float, float]:
    """Spearman's correlation of two matrices off the diagonal, and how often permuted items do as well (one-sided).

    The test of Mantel (1967). All orders are tried where there are at most ``n_permutations + 1``. NaN and 1 where
    either matrix is constant.

    Example:
        >>> distance = torch.tensor([[0.0, 1.0, 3.0], [1.0, 0.0, 2.0], [3.0, 2.0, 0.0]])
        >>> mantel(distance, distance)  # of six orders this one alone does as well
        (1.0, 0.16666666666666666)
    """
    require_int(n_permutations, "n_permutations")
    n = len(one)
    observed = off_diagonal_spearman(one, other)
    if math.isnan(observed):
        return observed, 1.0
    if math.factorial(n) <= n_permutations + 1:
        orders = [list(order) for order in itertools.permutations(range(n))][1:]  # the first is the truth
    else:
        generator = torch.Generator().manual_seed(require_seed(seed))
        orders = [torch.randperm(n, generator=generator).tolist() for _ in range(n_permutations)]
    drawn = [off_diagonal_spearman(one, other[order][:, order]) for order in orders]
    hits = sum(value >= observed - 1e-12 for value in drawn)
    return observed, (1 + hits) / (1 + len(orders))


def off_diagonal_spearman(one: Float[Tensor, "item item"], other: Float[Tensor, "item item"]) -> float:
    """Spearman's correlation of two matrices off the diagonal; NaN where either is constant or has a NaN there."""
    away = ~torch.eye(len(one), dtype=torch.bool)
    if one[away].isnan().any() or other[away].isnan().any():
        return float("nan")
    return spearman(one[away], other[away])
