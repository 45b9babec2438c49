"""Many neurons tested at once: false discovery rates, and p-values of the best of many.

**Benjamini and Hochberg** (1995). Of ``m`` p-values in rising order, ``q(i) = min over j >= i of p(j) * m / j``.
Calling significant whatever has ``q <= alpha`` keeps the expected share of false ones among those called at
``alpha`` or less, for p-values that are independent or positively dependent.

**Westfall and Young** (1993, single step). The family-wise p-value of a score is the share of permutations whose
*largest* score of all reaches it, the observed labels counting as one permutation. It keeps the correlations
between scores, which a correction by their number doesn't.

What they do not show: how large an effect is, nor that what is not called significant has none.
"""

import math

import torch
from jaxtyping import Float
from scipy.stats import false_discovery_control
from torch import Tensor

from tl_skillneurons._checks import require_open_unit


def benjamini_hochberg(p_values: Float[Tensor, "*axes"]) -> Float[Tensor, "*axes"]:
    """The q-value of each p-value among all of them, in the same shape; float64.

    Raises:
        ValueError: For p-values outside [0, 1], NaN included.

    Example:
        >>> benjamini_hochberg(torch.tensor([0.01, 0.02, 0.5], dtype=torch.float64)).tolist()
        [0.03, 0.03, 0.5]
    """
    flat = p_values.double().flatten()
    if not ((flat >= 0) & (flat <= 1)).all():
        raise ValueError("p-values must be in [0, 1]")
    if not len(flat):
        return p_values.double()
    q = torch.from_numpy(false_discovery_control(flat.cpu().numpy()))
    return q.to(p_values.device).reshape(p_values.shape)


def family_wise_p(
    observed: Float[Tensor, "*axes"], largest: Float[Tensor, " draw"]
) -> Float[Tensor, "*axes"]:
    """``(1 + draws whose largest score is at least as large) / (1 + draws)`` for each observed score.

    Args:
        observed: Scores under the true labels.
        largest: The largest of all scores in each permutation.

    Example:
        >>> family_wise_p(torch.tensor([0.7, 0.9]), torch.tensor([0.6, 0.7, 0.8])).tolist()
        [0.75, 0.25]
    """
    ordered = largest.sort().values
    at_least = len(ordered) - torch.searchsorted(ordered, observed.flatten().to(ordered.dtype))
    return ((1 + at_least).double() / (1 + len(ordered))).reshape(observed.shape)


def critical_level(largest: Float[Tensor, " draw"], alpha: float) -> float:
    """The score that must be exceeded for a family-wise p-value of at most ``alpha``.

    Raises:
        ValueError: When so few draws can't give such a p-value, or for ``alpha`` outside (0, 1).

    Example:
        >>> critical_level(torch.arange(19.0), 0.05)
        18.0
    """
    require_open_unit(alpha, "alpha")
    allowed = math.floor(alpha * (1 + len(largest)) + 1e-9) - 1  # draws that may reach the score
    if allowed < 0:
        raise ValueError(
            f"{len(largest)} permutations can't give a p-value of {alpha:g}; "
            f"take at least {math.ceil(1 / alpha - 1e-9) - 1}"
        )
    return float(largest.sort(descending=True).values[allowed])
