"""The one walk over layers by which scores that need every example's value are made, and their nulls with them.

Where sums and counts are enough, nothing is kept of the single examples (:mod:`~tl_skillneurons.scores.passes`). Ranks,
and any score under permuted targets, need them all: a layer at a time, a few neurons at a time. The first row of
targets is the true one; each further row is a permutation, and gives one draw of the null.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from einops import rearrange
from jaxtyping import Float, Num
from torch import Tensor

from tl_skillneurons.scores.null import NullTally, PermutationNull
from tl_skillneurons.scores.outcomes import MOST_NUMBERS

Scorer = Callable[[Tensor, Tensor, int, slice], Tensor]
"""From values ``[prompt, example, column]`` and targets ``[row, example]`` to scores ``[prompt, row, column]``; it is
also told the layer and which of its neurons these are. Columns are ``(position neuron)``."""


@dataclass(frozen=True, eq=False)
class Walked:
    """One score of every neuron under the true targets, and what permuted ones reach, where there are any."""

    values: Float[Tensor, "prompt layer position neuron"]
    null: PermutationNull | None


def score_layers(
    layers: Iterable[tuple[int, Float[Tensor, "prompt example position neuron"]]],
    rows: Num[Tensor, "row example"],
    scorers: Mapping[str, Scorer],
    shape: Sequence[int],
    *,
    aggregate: str,
    seed: int,
    slack: float = 1e-9,
) -> dict[str, Walked]:
    """Each named score, from one walk over ``layers``.

    Args:
        rows: The true targets, and below them permuted ones.
        shape: Of the scores: prompts, layers, positions and neurons of the widest layer. What no layer of ``layers``
            holds stays NaN.
        aggregate: How prompts are combined in the null, "mean" or "min".
        seed: Of the permutations, for the record.
        slack: The relative difference up to which two scores are equals: what rounding makes of them.
    """
    n_prompts, n_layers, n_positions, d_mlp = shape
    n_draws = len(rows) - 1
    values = {name: torch.full(tuple(shape), torch.nan, dtype=torch.float64) for name in scorers}
    nulls = {name: NullTally(n_prompts, n_layers, d_mlp, n_draws, aggregate, slack=slack) for name in scorers}
    wide = max(1, MOST_NUMBERS // (n_positions * max(rows.shape)))
    for layer, acts in layers:
        own = acts.shape[-1]
        for start in range(0, own, wide):
            neurons = slice(start, min(start + wide, own))
            columns = rearrange(
                acts[..., neurons], "prompt example pos neuron -> prompt example (pos neuron)"
            )
            for name, scorer in scorers.items():
                found = rearrange(
                    scorer(columns, rows, layer, neurons),
                    "prompt row (pos neuron) -> prompt row pos neuron",
                    pos=n_positions,
                )
                values[name][:, layer, :, neurons] = found[:, 0]
                if n_draws:
                    nulls[name].add(layer, neurons, found.abs().amax(2))
    return {name: Walked(values[name], nulls[name].mean_null(seed) if n_draws else None) for name in scorers}
