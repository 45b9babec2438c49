"""Scores of a neuron beside predictivity, as plain functions from activations and targets to numbers.

Each takes activations ``[example, column]`` and rows of targets ``[row, example]`` (the true targets, or permuted
ones) and gives ``[row, column]``: signed, 0 for no relation, positive where a high activation goes with a high
target or with label 1. With ``r`` ranks (equals share their middle rank), ``n1`` and ``n0`` examples of label 1
and 0, and ``hit`` whether the activation is above its threshold:

==================== ==================================================================================
pearson              correlation with the target, weighted where weights are given
spearman             the same of ranks
auc                  ``2 * AUC - 1``, ``AUC = (sum of r over label 1 - n1 (n1 + 1) / 2) / (n1 n0)``
mean_difference      difference of class means over the pooled standard deviation (Cohen's d)
accuracy             share of right answers of "hit means label 1", minus 1/2: predictivity, before its maximum
balanced_accuracy    mean over the two classes of the share of right answers, minus 1/2
mutual_information   of hit and label, in bits, with the sign of their correlation
best_threshold       accuracy, by the threshold that tells the labels of role ``baseline`` apart best
==================== ==================================================================================

A constant column has no relation with anything: 0.

A new score is one such function and one row of :data:`KINDS`; its walk over the model, its null, its selection and its
file are those of all.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float, Num
from torch import Tensor

from tl_skillneurons.stats.ranks import average_ranks

_ROUNDING = 1e-12  # of a sum of squares, relative: below it a column is constant


def pearson(
    acts: Num[Tensor, "example column"],
    targets: Num[Tensor, "row example"],
    weights: Float[Tensor, "row example"] | None = None,
) -> Float[Tensor, "row column"]:
    """Correlation; ``weights`` say how much each example counts, in each row as its target does."""
    if weights is not None:
        return _weighted_pearson(acts.double(), targets.double(), weights.double())
    a, t = acts.double(), targets.double()
    w = torch.ones(len(a), dtype=torch.float64)
    raw = w @ a.square()
    a = a - (w @ a) / w.sum()
    spread = w @ a.square()
    t = t - (t @ w / w.sum())[:, None]
    power = t.square() @ w
    constant = spread <= _ROUNDING * raw
    scale = torch.where(constant, torch.inf, spread).sqrt()
    power = torch.where(power > 0, power, torch.inf)
    return ((t * w) @ a / scale / power.sqrt()[:, None]).clamp(-1, 1)


def _weighted_pearson(
    a: Float[Tensor, "example column"], t: Float[Tensor, "row example"], w: Float[Tensor, "row example"]
) -> Float[Tensor, "row column"]:
    raw = w @ a.square()
    total = w.sum(1, keepdim=True)
    a = a - a.mean(0)  # near every row's mean, so that squares keep their digits
    centred = w @ a.square()  # all there is where raw is zero: a neuron silent wherever weights are
    spread = centred - (w @ a).square() / total
    t = t - (t * w).sum(1, keepdim=True) / total
    power = (t.square() * w).sum(1, keepdim=True)
    scale = torch.where(spread <= _ROUNDING * torch.maximum(raw, centred), torch.inf, spread).sqrt()
    power = torch.where(power > 0, power, torch.inf)
    return ((t * w) @ a / scale / power.sqrt()).clamp(-1, 1)


def spearman(
    acts: Num[Tensor, "example column"],
    targets: Num[Tensor, "row example"],
    weights: Float[Tensor, "row example"] | None = None,
) -> Float[Tensor, "row column"]:
    """Correlation of ranks; weights count in the correlation, not in the ranks."""
    return pearson(average_ranks(acts), average_ranks(targets.T).T, weights)


def auc(
    acts: Num[Tensor, "example column"], labels: Num[Tensor, "row example"]
) -> Float[Tensor, "row column"]:
    """``2 * AUC - 1``, in [-1, 1]."""
    y = labels.double()
    ones = y.sum(1, keepdim=True)
    zeros = y.shape[1] - ones
    above = y @ average_ranks(acts) - ones * (ones + 1) / 2
    return 2 * above / (ones * zeros) - 1


def mean_difference(
    acts: Num[Tensor, "example column"], labels: Num[Tensor, "row example"]
) -> Float[Tensor, "row column"]:
    """Cohen's d: difference of class means over the pooled standard deviation; infinite for a perfect split."""
    y = labels.double()
    ones = y.sum(1, keepdim=True)
    zeros = y.shape[1] - ones
    r = pearson(acts, labels)
    # of a two-valued target: difference = r * s_a / sqrt(n1 n0 / n^2), pooled variance = s_a^2 (1 - r^2) n / (n - 2)
    n = y.shape[1]
    pooled = ((1 - r.square()) * n / (n - 2)).clamp(min=0)
    return r * n / (ones * zeros).sqrt() / pooled.sqrt()


def accuracy(
    hit: Bool[Tensor, "example column"], labels: Num[Tensor, "row example"]
) -> Float[Tensor, "row column"]:
    """Right answers of "hit means label 1" as a share, minus 1/2."""
    y = 2.0 * labels.float() - 1
    right = (y @ hit.float()).double() + (labels == 0).sum(1, keepdim=True)  # whole numbers, exact
    return (2 * right - len(hit)) / (2 * len(hit))  # equal sizes up and down, so that ties stay ties


def balanced_accuracy(
    hit: Bool[Tensor, "example column"], labels: Num[Tensor, "row example"]
) -> Float[Tensor, "row column"]:
    """Mean of the two classes' shares of right answers, minus 1/2."""
    y = labels.float()
    ones = (y @ hit.float()).double()
    zeros = ((1 - y) @ hit.float()).double()
    n_ones = labels.double().sum(1, keepdim=True)
    n_zeros = len(hit) - n_ones
    return (ones / n_ones - zeros / n_zeros) / 2


def mutual_information(
    hit: Bool[Tensor, "example column"], labels: Num[Tensor, "row example"]
) -> Float[Tensor, "row column"]:
    """Of the two bits, in bits of information; negative where a hit speaks for label 0."""
    n = len(hit)
    fires = hit.float().sum(0).double()
    ones = labels.double().sum(1, keepdim=True)
    both = (labels.float() @ hit.float()).double()
    cells = [
        (both, fires, ones),
        (fires - both, fires, n - ones),
        (ones - both, n - fires, ones),
        (n - fires - ones + both, n - fires, n - ones),
    ]
    information = torch.zeros_like(both)
    for joint, of_hit, of_label in cells:
        expected = of_hit * of_label / n
        information += torch.special.xlogy(joint / n, torch.where(joint > 0, joint / expected, 1.0))
    sign = torch.where(both * n >= fires * ones, 1.0, -1.0)
    return sign * information.clamp(min=0) / torch.log(torch.tensor(2.0, dtype=torch.float64))


def best_threshold(
    acts: Num[Tensor, "example column"], labels: Num[Tensor, " example"]
) -> Float[Tensor, " column"]:
    """The value of each column above which label 1 (or label 0) is said with the fewest mistakes.

    The lowest among equals; it lies on an activation, and "above" is strict.
    """
    ordered, order = acts.double().sort(dim=0, stable=True)
    sign = (2.0 * labels.double() - 1)[order]
    below = sign.cumsum(0)  # ones minus zeros among those at or below
    lean = (2 * below - below[-1]).abs()  # how far the rule is from guessing, either direction
    last_of_equals = torch.cat([ordered[1:] > ordered[:-1], torch.ones_like(ordered[:1], dtype=torch.bool)])
    lean = torch.where(last_of_equals, lean, -1.0)
    best = lean.amax(0)
    first = (lean == best).int().argmax(0)
    return ordered.gather(0, first[None])[0]


@dataclass(frozen=True)
class Kind:
    """How one score is made.

    Attributes:
        score: From activations, or hits, and rows of targets to scores; a correlation also takes weights.
        hits: Which threshold makes hits of activations: the "mean" over role ``baseline``, or the "best" there;
            ``None`` where the score takes activations as they are.
        any_number: Whether targets may be any numbers, and weighted; else they are labels 0 and 1.
    """

    score: Callable[..., Tensor]
    hits: Literal["mean", "best"] | None = None
    any_number: bool = False


KINDS = {
    "auc": Kind(auc),
    "mean_difference": Kind(mean_difference),
    "pearson": Kind(pearson, any_number=True),
    "spearman": Kind(spearman, any_number=True),
    "accuracy": Kind(accuracy, hits="mean"),
    "balanced_accuracy": Kind(balanced_accuracy, hits="mean"),
    "mutual_information": Kind(mutual_information, hits="mean"),
    "best_threshold": Kind(accuracy, hits="best"),
}
"""Every score by its name."""
