"""Many neurons tested at once: false discovery rates, and p-values of the best of many.

**Benjamini and Hochberg** (1995). Of ``m`` p-values in rising order, ``q(i) = min over j >= i of p(j) * m / j``.
Calling significant whatever has ``q <= alpha`` keeps the expected share of false ones among those called at
``alpha`` or less, for p-values that are independent or positively dependent.

**Westfall and Young** (1993, single step). The family-wise p-value of a score is the share of permutations whose
*largest* score of all reaches it, the observed labels counting as one permutation. It keeps the correlations
between scores, which a correction by their number doesn't.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor


def benjamini_hochberg(p_values: Float[Tensor, "*axes"]) -> Float[Tensor, "*axes"]:
    """The q-value of each p-value among all of them.

    Raises:
        ValueError: For p-values outside [0, 1], NaN included.
    """
    flat = p_values.double().flatten()
    if not ((flat >= 0) & (flat <= 1)).all():
        raise ValueError("p-values must be in [0, 1]")
    if not len(flat):
        return p_values.double()
    order = flat.argsort(descending=True, stable=True)
    rank = torch.arange(len(flat), 0, -1, dtype=torch.float64)
    q = torch.empty_like(flat)
    q[order] = (flat[order] * len(flat) / rank).cummin(0).values.clamp(max=1)
    return q.reshape(p_values.shape)


def family_wise_p(
    observed: Float[Tensor, "*axes"], largest: Float[Tensor, " draw"]
) -> Float[Tensor, "*axes"]:
    """``(1 + draws whose largest score is at least as large) / (1 + draws)`` for each observed score."""
    ordered = largest.sort().values
    at_least = len(ordered) - torch.searchsorted(ordered, observed.flatten().to(ordered.dtype))
    return ((1 + at_least).double() / (1 + len(ordered))).reshape(observed.shape)


def critical_level(largest: Float[Tensor, " draw"], alpha: float) -> float:
    """The score that must be exceeded for a family-wise p-value of at most ``alpha``.

    Raises:
        ValueError: When so few draws can't give such a p-value.
    """
    if not 0 < alpha < 1:
        raise ValueError(f"alpha must be between 0 and 1, both excluded, got {alpha}")
    allowed = math.floor(alpha * (1 + len(largest)) + 1e-9) - 1  # draws that may reach the score
    if allowed < 0:
        raise ValueError(
            f"{len(largest)} permutations can't give a p-value of {alpha:g}; "
            f"take at least {math.ceil(1 / alpha - 1e-9) - 1}"
        )
    return float(largest.sort(descending=True).values[allowed])
