"""How stable neurons look where labels mean nothing: the null of what a diagnosis tells.

The best of thousands agree by themselves: neurons are correlated, prompts read the same texts, and what fits the labels
of some examples by luck fits those of most resamplings. So for each of ``B`` ways to deal the labels of ``select`` out
anew to its units, everything is chosen and compared again as with the true labels::

    spearman_b, jaccard_b = two prompts' rankings of all neurons, and their tops
    bootstrap_b           = mean over resamplings of Jaccard(top of the resampled examples, top of all of them)
    p                     = (1 + number of b with value_b >= value) / (1 + B)

Exact for the two prompts when labels are exchangeable among the units; the bootstrap's is nearly so, since each
permutation has fewer resamplings than the diagnosis. What it does not show: that what is stable beyond it matters.
"""

import itertools
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from einops import rearrange
from jaxtyping import Bool, Float
from numpy.typing import NDArray
from torch import Tensor

from tl_skillneurons._widths import even
from tl_skillneurons.scores.null import combine
from tl_skillneurons.scores.outcomes import RuleOutcomes, count_right
from tl_skillneurons.stats.ranks import average_ranks


@dataclass(frozen=True, eq=False)
class StabilityNull:
    """What stability is under permuted labels.

    Attributes:
        spearman, jaccard: Of each pair of prompts, in the order of :func:`pairs_of`.
        bootstrap: How far the permutation's own top is found again.
        tops: That top, of which neighbours can be looked for as of the true one; ``None`` where it was not kept.
    """

    spearman: Float[Tensor, "draw pair"]
    jaccard: Float[Tensor, "draw pair"]
    bootstrap: Float[Tensor, " draw"]
    tops: Bool[Tensor, "draw layer neuron"] | None = None

    def to_dataframe(self) -> pd.DataFrame:
        """One row per permutation: ``bootstrap``, and of several prompts ``spearman`` and ``jaccard``, each the
        mean over pairs of them.
        """
        columns = {"bootstrap": self.bootstrap}
        if self.spearman.shape[1]:
            columns |= {"spearman": self.spearman.mean(1), "jaccard": self.jaccard.mean(1)}
        return pd.DataFrame({name: values.numpy() for name, values in columns.items()})


def pairs_of(n_prompts: int) -> list[tuple[int, int]]:
    """Each prompt with each later one."""
    return list(itertools.combinations(range(n_prompts), 2))


def share_as_large(value: float, null: NDArray[np.floating]) -> float:
    """The p-value of a value beside its null; it counts as one of them. NaN without a null."""
    if not len(null):
        return float("nan")
    return float(1 + (null >= value - 1e-12).sum()) / (1 + len(null))


def permuted_stability(
    outcomes: RuleOutcomes,
    counts: dict[int, int],
    *,
    n_permutations: int = 99,
    n_resamplings: int = 10,
    seed: int = 0,
    aggregate: str = "mean",
    class_id: int = 1,
) -> StabilityNull:
    """The null of stability, of tops with ``counts`` neurons of each layer; no model is run.

    Args:
        n_permutations: Of the labels; fewer where the units can be labelled in so few ways.
        n_resamplings: Bootstrap samples of units for each permutation.

    Memory: ``permutations * prompts * neurons`` numbers.
    """
    n_prompts, n_examples, n_layers = outcomes.above.shape[:3]
    if outcomes.units.log_orders(outcomes.labels) < 1e-9:  # no other way
        none = torch.zeros(0, len(pairs_of(n_prompts)), dtype=torch.float64)
        return StabilityNull(none, none, torch.zeros(0, dtype=torch.float64))
    labels = (outcomes.units.permuted(outcomes.labels, n_permutations, seed=seed) == class_id).long()
    n_permutations = len(labels)
    weights = outcomes.units.weights(n_permutations * n_resamplings, torch.Generator().manual_seed(seed))
    rows = torch.cat([torch.ones(n_permutations, n_examples, dtype=weights.dtype), weights])
    of_rows = torch.cat([labels, labels.repeat_interleave(n_resamplings, 0)])
    d_mlp = even(outcomes.d_mlp, "the null of stability")
    each = torch.empty(n_prompts, n_permutations, n_layers, d_mlp)
    shared_pairs = torch.zeros(n_permutations, len(pairs_of(n_prompts)), dtype=torch.float64)
    shared_again = torch.zeros(n_permutations, n_resamplings, dtype=torch.float64)
    layer_scores = torch.empty(len(rows), d_mlp)
    kept = torch.zeros(n_permutations, n_layers, d_mlp, dtype=torch.bool)
    for layer, chunk, counted in count_right(outcomes, rows, of_rows):
        best = torch.stack([right.abs_().amax(1) for right in counted])
        each[:, :, layer, chunk] = best[:, :n_permutations]
        layer_scores[:, chunk] = combine(best, aggregate)
        if chunk.stop < d_mlp or layer not in counts:
            continue
        tops = [_top(score, counts[layer]) for score in each[:, :, layer]]
        for number, (one, other) in enumerate(pairs_of(n_prompts)):
            shared_pairs[:, number] += (tops[one] & tops[other]).sum(-1)
        top = _top(layer_scores, counts[layer])
        kept[:, layer] = top[:n_permutations]
        again = rearrange(
            top[n_permutations:], "(draw sample) neuron -> draw sample neuron", sample=n_resamplings
        )
        shared_again += (again & top[:n_permutations, None]).sum(-1)
    size = sum(counts.values())
    return StabilityNull(
        _correlations(each),
        shared_pairs / (2 * size - shared_pairs),
        (shared_again / (2 * size - shared_again)).mean(1),
        kept,
    )


def _top(score: Float[Tensor, "row neuron"], count: int) -> Bool[Tensor, "row neuron"]:
    """Which neurons are the best, the lowest index first among equals."""
    best = score.argsort(dim=1, descending=True, stable=True)[:, :count]
    return torch.zeros_like(score, dtype=torch.bool).scatter_(1, best, True)


def _correlations(each: Float[Tensor, "prompt draw layer neuron"]) -> Float[Tensor, "draw pair"]:
    """Spearman's correlation of each pair of prompts over all neurons."""
    pairs = pairs_of(len(each))
    found = torch.empty(each.shape[1], len(pairs), dtype=torch.float64)
    if not pairs:
        return found
    for draw in range(each.shape[1]):
        flat = rearrange(each[:, draw], "prompt layer neuron -> (layer neuron) prompt")
        ranks = average_ranks(flat).double()
        centred = ranks - ranks.mean(0)
        unit = centred / centred.norm(dim=0)
        found[draw] = torch.stack([(unit[:, one] * unit[:, other]).sum() for one, other in pairs])
    return found
