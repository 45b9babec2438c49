"""Do tasks share their skill neurons? (Wang et al., 2022, section 5.2)

Spearman's correlation of predictivities and what the tops share, in each layer and in all, beside permuted labels
(:mod:`~tl_skillneurons.scores.agreement`): score with ``keep_outcomes=True``. Without them neurons are permuted in
place of labels, and that null, like the hypergeometric one, takes neurons to be independent: too narrow, so that a
Spearman of 0.1 or a few shared neurons may be nothing. Whether the model uses what is shared is another question:
:mod:`~tl_skillneurons.studies.across_tasks.damage`.

What it does not show: shared neurons can do different things; and tasks on like texts share what has nothing to do
with their labels, for example neurons that follow length or topic. A further control is a task with shuffled labels
among those compared (``task.with_shuffled_labels(seed)``).
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from rich.table import Table

from tl_skillneurons._checks import require_seed
from tl_skillneurons._results import html_of, one_line
from tl_skillneurons._terminal import shown
from tl_skillneurons.neurons.neuron_set import NeuronSet
from tl_skillneurons.scores.agreement import ALONE, agreements
from tl_skillneurons.scores.ranked import Scored, require_one_model, strength
from tl_skillneurons.stats.hypothesis_tests import require_draws
from tl_skillneurons.studies._common import load_tables, records, save_tables

KIND = "TaskComparison"


@dataclass(frozen=True, eq=False)
class TaskComparison:
    """How alike tasks are in their neurons.

    Attributes:
        pairs: A row per pair of tasks and layer, and one over all layers (``layer`` -1): ``spearman`` of the scores,
            the middle 95 % of its null (``null_low``, ``null_high``), its two-sided ``p_value``, and what was
            ``permuted`` for it, "labels" or "neurons", and ``labels_of`` whom; of the tops ``n_shared``, ``jaccard``,
            of random sets ``chance_jaccard`` and the hypergeometric ``p_overlap``, and under permuted labels
            ``p_shared`` (NaN where neurons were permuted).
        names: The tasks.
        settings: Amount, permutations, seed, and where each task's scores come from, as plain JSON values.

    Example:
        >>> found = skn.studies.compare_tasks(scores)
        >>> found.matrix("spearman"), found.matrix("jaccard", layer=3)
    """

    pairs: pd.DataFrame
    names: tuple[str, ...]
    settings: dict[str, Any] = field(default_factory=dict)

    def __repr__(self) -> str:
        everywhere = self.pairs[self.pairs.layer == -1].sort_values("spearman", ascending=False)
        first = records(everywhere)[0]
        alike = f"{first['one']} and {first['other']}"
        numbers = {name: first[name] for name in ("spearman", "p_value")}
        return one_line(self, tasks=list(self.names), most_alike=alike, **numbers)

    def _repr_html_(self) -> str:
        return html_of(self)

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
        for name in ("one", "other"):
            table.add_column(name)
        for name in ("Spearman", "by luck", "shared", "Jaccard", "by luck", "p, sets", "p, labels"):
            table.add_column(name, justify="right")
        cells = (
            *("{one}", "{other}", "{spearman:.3f}", "{null_low:.3f} to {null_high:.3f}", "{n_shared}"),
            *("{jaccard:.3f}", "{chance_jaccard:.3f}", "{p_overlap:.2g}", "{p_shared:.2g}"),
        )
        if (self.pairs.labels_of == ALONE).any():
            table.caption = "one side kept its answers and its labels alone were permuted: p too small"
            table.caption_justify = "left"
        for row in records(self.pairs[self.pairs.layer == -1]):
            table.add_row(*(shown(cell.format(**row)) for cell in cells))
        return table

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the rows to one JSON file, whole or not at all."""
        return save_tables(path, KIND, {**self.settings, "names": list(self.names)}, {"pairs": self.pairs})

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "TaskComparison":
        """What :meth:`save` wrote.

        Raises:
            FileNotFoundError: When there is no such file.
            ValueError: When the file is corrupt or holds something else.
        """
        tables, settings = load_tables(path, KIND, ("pairs",))
        return cls(tables["pairs"], tuple(settings.pop("names")), settings)


def compare_tasks(
    scores: Mapping[str, Scored], *, amount: float | int = 0.02, n_permutations: int = 1000, seed: int = 0
) -> TaskComparison:
    """How far the scores of any number of tasks on one model agree, in each layer and in all.

    Args:
        scores: By the task's name, a :class:`NeuronScores` or any score of every neuron.
        amount: The tops, as a share of each layer or a count (:meth:`NeuronScores.top`).
        n_permutations: Of each side's labels where the scores kept outcomes, else of the neurons within layers.
        seed: Draws the permutations.

    Raises:
        ValueError: For fewer than two tasks, scores of different models, or too few permutations.

    Example:
        >>> scores = {name: skn.score_neurons(model, prompts[name], tasks[name], keep_outcomes=True) for name in tasks}
        >>> skn.studies.compare_tasks(scores).matrix("spearman")
    """
    require_one_model(scores)
    require_draws(n_permutations, name="n_permutations")
    require_seed(seed)
    tops = {name: score.top(amount) for name, score in scores.items()}
    n_layers = len(strength(next(iter(scores.values()))))
    pairs = list(combinations(scores, 2))
    n_top = len(next(iter(tops.values()))) // n_layers
    found = agreements(scores, pairs, n_top, n_permutations=n_permutations, seed=seed)
    rows = []
    for one, other in pairs:
        for layer in (*range(n_layers), -1):
            sets = [tops[name] if layer == -1 else _of_layer(tops[name], layer) for name in (one, other)]
            shared = sets[0].overlap(sets[1])
            beside = {
                "jaccard": shared.jaccard,
                "chance_jaccard": shared.chance_jaccard,
                "p_overlap": shared.p_value,
            }
            rows.append(
                {"one": one, "other": other, "layer": layer, **found[one, other].row(layer), **beside}
            )
    settings = {"amount": amount, "n_permutations": n_permutations, "seed": seed}
    of_scores = {name: score.provenance for name, score in scores.items()}
    return TaskComparison(pd.DataFrame(rows), tuple(scores), {**settings, "scores": of_scores})


def _of_layer(neurons: NeuronSet, layer: int) -> NeuronSet:
    index = neurons.by_layer().get(layer, torch.empty(0, dtype=torch.int64))
    return NeuronSet(torch.full_like(index, layer), index, neurons.n_layers, neurons.d_mlp, neurons.model)
