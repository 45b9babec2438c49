"""How well a number tells two labels apart: the area under the ROC curve, with interval and p-value; no model is run.

The area is the chance that an example of label 1 has the higher number than one of label 0, equals counting one half::

    AUROC = mean over pairs (i of label 1, j of label 0) of  1[v_i > v_j] + 1[v_i = v_j] / 2

which is Mann and Whitney's U over the number of pairs (Hanley and McNeil, 1982). The interval is a bootstrap over units
(:func:`~tl_skillneurons.stats.intervals.bootstrap_ends`); a draw without both labels has no area and is left out. The
p-value is of labels dealt out anew to the units (:mod:`~tl_skillneurons.stats.units`), two-sided::

    p = (1 + permutations with |AUROC - 1/2| at least as large) / (1 + permutations)

and exact where there are no more orders than were asked for.

What it does not show: how often a threshold would be right, nor anything about examples that chose or trained what
gives the number. Measure it on others.
"""

from dataclasses import dataclass

import torch
from einops import einsum, rearrange
from jaxtyping import Bool, Float, Int, Num
from torch import Tensor

from tl_skillneurons._checks import require_int, require_seed
from tl_skillneurons._results import html_of_fields
from tl_skillneurons.stats.intervals import bootstrap_counts, bootstrap_ends
from tl_skillneurons.stats.ranks import average_ranks
from tl_skillneurons.stats.units import Units, require_units


@dataclass(frozen=True)
class Auroc:
    """The area under the ROC curve on some examples.

    Attributes:
        value: The area, in [0, 1]; one half tells nothing apart, below it a high number speaks for label 0.
        low, high: Its interval over other units of the kind.
        p_value: Of the labels dealt out anew to the units.
        n_ones, n_zeros: Examples of label 1 and of label 0.
        unit, n_units: What was drawn and permuted, and how many of them there were.
    """

    _repr_html_ = html_of_fields

    value: float
    low: float
    high: float
    p_value: float
    n_ones: int
    n_zeros: int
    unit: str = "text"
    n_units: int | None = None


def auroc(
    values: Num[Tensor, " example"],
    labels: Int[Tensor, " labelled"] | Bool[Tensor, " labelled"],
    *,
    units: Units | None = None,
    n_draws: int = 2000,
    n_permutations: int = 2000,
    confidence: float = 0.95,
    seed: int = 0,
) -> Auroc:
    """The area under the ROC curve of ``values`` for ``labels``, with its interval and its p-value.

    Args:
        labels: 0 and 1, or ``False`` and ``True``.
        units: Which examples belong together; each is its own without.

    Raises:
        ValueError: For other labels, a label without an example, numbers that are NaN, or units of other examples.

    Example:
        >>> found = auroc(torch.tensor([0.1, 0.4, 0.35, 0.8]), torch.tensor([0, 0, 1, 1]))
        >>> found.value, round(found.p_value, 3)
        (0.75, 0.667)
    """
    require_seed(seed)
    require_int(n_draws, "n_draws")
    values, y = values.detach().double().cpu(), labels.detach().long().cpu()
    if len(values) != len(y):
        raise ValueError(f"values and labels must be of the same examples, got {len(values)} and {len(y)}")
    if other := sorted(set(y.tolist()) - {0, 1}):
        raise ValueError(f"labels must be 0 and 1, got {other[0]}; compare one class with the rest")
    n_ones = int(y.sum())
    n_zeros = len(y) - n_ones
    if not n_ones or not n_zeros:
        raise ValueError(
            f"labels must hold both 0 and 1, got {n_zeros} and {n_ones} examples; nothing can be told apart"
        )
    if n_nan := int(values.isnan().sum()):
        raise ValueError(
            f"values must be numbers, got {n_nan} NaN of {len(values)}; leave those examples out"
        )
    units = require_units(len(y), units)
    ranks = average_ranks(values)
    value = float(_areas(ranks, y[None]))
    drawn = _areas(ranks, units.permuted(y, n_permutations, seed=seed))
    reached = int(((drawn - 0.5).abs() >= abs(value - 0.5) - 1e-12).sum())
    counts = bootstrap_counts(len(y), n_draws, torch.Generator().manual_seed(seed), units=units)
    low, high = bootstrap_ends(rearrange(_weighted(values, y, counts), "draw -> 1 draw"), confidence, units)
    return Auroc(
        value=value,
        low=min(value, max(0.0, float(low))),
        high=max(value, min(1.0, float(high))),
        p_value=(1 + reached) / (1 + len(drawn)),
        n_ones=n_ones,
        n_zeros=n_zeros,
        unit=units.what,
        n_units=len(units),
    )


def _areas(ranks: Float[Tensor, " example"], labels: Int[Tensor, "row example"]) -> Float[Tensor, " row"]:
    """The area of each row of labels, by the sum of the ranks of label 1."""
    ones = labels.sum(1).double()
    above = labels.double() @ ranks - ones * (ones + 1) / 2
    return above / (ones * (labels.shape[1] - ones))


def _weighted(
    values: Float[Tensor, " example"], labels: Int[Tensor, " example"], counts: Float[Tensor, "draw example"]
) -> Float[Tensor, " kept"]:
    """The area of each draw that has both labels."""
    one, zero = (labels == 1), (labels == 0)
    apart = values[one][:, None] - values[zero]
    wins = (apart > 0).double() + (apart == 0).double() / 2
    ones, zeros = counts[:, one], counts[:, zero]
    pairs = ones.sum(1) * zeros.sum(1)
    won = einsum(ones @ wins, zeros, "draw zero, draw zero -> draw")
    return won[pairs > 0] / pairs[pairs > 0]
