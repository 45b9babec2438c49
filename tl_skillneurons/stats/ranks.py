"""Ranks, rank correlation and the median."""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Num
from torch import Tensor


def spearman(one: Num[Tensor, " one"], other: Num[Tensor, " other"]) -> float:
    """Spearman's rank correlation with ties averaged; NaN where either is constant.

    Raises:
        ValueError: When the two differ in length.
    """
    if one.shape != other.shape:
        raise ValueError(f"both rankings must be of the same items, got {len(one)} and {len(other)}")
    return float(correlation(average_ranks(one), average_ranks(other)))


def average_ranks(values: Num[Tensor, "item *axes"]) -> Float[Tensor, "item *axes"]:
    """Ranks from 1 along the first axis; equals share their middle rank."""
    columns = values.reshape(len(values), -1).T.contiguous()
    ordered = columns.sort(dim=1).values
    below = torch.searchsorted(ordered, columns)
    up_to = torch.searchsorted(ordered, columns, right=True)
    return ((below + up_to + 1).double() / 2).T.reshape(values.shape)


def correlation(one: Num[Tensor, "item *axes"], other: Num[Tensor, "item *axes"]) -> Float[Tensor, "*axes"]:
    """Pearson's r along the first axis; NaN where either is constant."""
    a, b = (x.double() - x.double().mean(0) for x in (one, other))
    r = (a * b).sum(0) / (a.square().sum(0) * b.square().sum(0)).sqrt()
    return r.clamp(-1, 1)


def median(values: Num[Tensor, " value"] | Sequence[float]) -> float:
    """The 0.5 quantile: of an even number of values the mean of the middle two (torch's own gives the lower)."""
    return float(torch.as_tensor(values, dtype=torch.float64).quantile(0.5))
