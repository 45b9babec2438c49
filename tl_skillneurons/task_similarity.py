"""Do tasks share their skill neurons? (Wang et al., 2022, section 5.2)

Spearman's correlation of predictivities and what the tops share, in each layer and in all. Correlated predictivities
need a null: neurons permuted within layers, which keeps each layer's level. Whether the model uses what is shared is
another question: :mod:`~tl_skillneurons.task_damage`.

What it does not show: shared neurons can do different things; and tasks on like texts share what has nothing to do
with their labels, for example neurons that follow length or topic.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations

import pandas as pd
import torch
from rich.table import Table

from tl_skillneurons._checks import require_int
from tl_skillneurons.intervals import require_draws
from tl_skillneurons.neurons import NeuronSet
from tl_skillneurons.overlaps import compare_sets, rank_null
from tl_skillneurons.score_comparison import Scored, require_one_model, strength


@dataclass(frozen=True, eq=False)
class TaskComparison:
    """How alike tasks are in their neurons.

    Attributes:
        pairs: A row per pair of tasks and layer, and one over all layers (``layer`` -1): ``spearman`` of the scores,
            the middle 95 % of what permuted neurons give (``null_low``, ``null_high``) and its two-sided ``p_value``;
            of the tops ``n_shared``, ``jaccard``, ``chance_jaccard`` and the hypergeometric ``p_overlap``.
        names: The tasks.
    """

    pairs: pd.DataFrame
    names: tuple[str, ...]

    def to_dataframe(self) -> pd.DataFrame:
        """A copy of :attr:`pairs`."""
        return self.pairs.copy()

    def matrix(self, column: str = "spearman", layer: int = -1) -> pd.DataFrame:
        """One number of :attr:`pairs` for every two tasks, symmetric; -1 is over all layers."""
        frame = self.pairs[self.pairs.layer == layer]
        found = pd.DataFrame(float("nan"), index=list(self.names), columns=list(self.names))
        for row in frame.itertuples():
            found.loc[row.one, row.other] = found.loc[row.other, row.one] = getattr(row, column)
        return found

    def to_table(self) -> Table:
        """The rows over all layers as a table to print with rich."""
        table = Table(title="Tasks by their neurons (scores on select)", title_justify="left")
        for name in ("one", "other", "Spearman", "by luck", "shared", "Jaccard", "by luck", "p"):
            table.add_column(name, justify="left" if name in ("one", "other") else "right")
        for row in self.pairs[self.pairs.layer == -1].itertuples():
            luck = f"{row.null_low:.3f} to {row.null_high:.3f}"
            shared = (
                str(row.n_shared),
                f"{row.jaccard:.3f}",
                f"{row.chance_jaccard:.3f}",
                f"{row.p_overlap:.2g}",
            )
            table.add_row(row.one, row.other, f"{row.spearman:.3f}", luck, *shared)
        return table


def compare_tasks(
    scores: Mapping[str, Scored], *, amount: float | int = 0.02, n_permutations: int = 1000, seed: int = 0
) -> TaskComparison:
    """Compare the scores of any number of tasks on one model.

    Args:
        scores: By the task's name, a :class:`NeuronScores` or any score of every neuron.
        amount: The tops, as a share of each layer or a count (:meth:`NeuronScores.top`).
        n_permutations: Of the neurons within their layers, for Spearman's null.

    Raises:
        ValueError: For fewer than two tasks, scores of different models, or too few permutations.
    """
    require_one_model(scores)
    require_draws(n_permutations, name="n_permutations")
    require_int(seed, "seed", minimum=0)
    ranked = {name: strength(score).double() for name, score in scores.items()}
    tops = {name: score.top(amount) for name, score in scores.items()}
    rows = []
    for one, other in combinations(scores, 2):
        generator = torch.Generator().manual_seed(seed)
        found, null = rank_null(ranked[one], ranked[other], n_permutations, generator)
        n_layers = len(ranked[one])
        for layer in (*range(n_layers), -1):
            sets = [tops[name] if layer == -1 else _of_layer(tops[name], layer) for name in (one, other)]
            shared = compare_sets(*sets)
            draws = null[:, layer]
            low, high = draws.quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
            extreme = int((draws.abs() >= found[layer].abs() - 1e-12).sum())
            rows.append(
                {
                    "one": one,
                    "other": other,
                    "layer": layer,
                    "spearman": float(found[layer]),
                    "null_low": low,
                    "null_high": high,
                    "p_value": (1 + extreme) / (1 + n_permutations),
                    "n_shared": shared.n_shared,
                    "jaccard": shared.jaccard,
                    "chance_jaccard": shared.chance_jaccard,
                    "p_overlap": shared.p_value,
                }
            )
    return TaskComparison(pd.DataFrame(rows), tuple(scores))


def _of_layer(neurons: NeuronSet, layer: int) -> NeuronSet:
    index = neurons.by_layer().get(layer, torch.empty(0, dtype=torch.int64))
    return NeuronSet(torch.full_like(index, layer), index, neurons.n_layers, neurons.d_mlp, neurons.model)
