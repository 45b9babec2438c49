"""Do tasks share their skill neurons, and does taking one task's away hurt the others? (Wang et al., 2022, section 5.2)

:func:`compare_tasks` compares scores: Spearman's correlation of predictivities and what the tops share, in each layer
and in all. Correlated predictivities need a null: neurons permuted within layers, which keeps each layer's level.
:func:`measure_damage` compares effects: accuracy of task B with the skill neurons of task A ablated, beside as many
random neurons of the same layers.

What it does not show: shared neurons can do different things; and tasks on like texts share what has nothing to do
with their labels, for example neurons that follow length or topic.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import pandas as pd
import torch
from jaxtyping import Float
from rich.table import Table
from torch import Tensor

from tl_skillneurons._checks import require_int
from tl_skillneurons.effects import ablation_effect
from tl_skillneurons.intervals import require_draws
from tl_skillneurons.neurons import NeuronSet
from tl_skillneurons.overlaps import compare_sets, rank_null
from tl_skillneurons.score_comparison import Scored, require_one_model, strength
from tl_skillneurons.soft_prompt import SoftPrompt
from tl_skillneurons.task import Task


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


def measure_damage(
    model: Any,
    tasks: Mapping[str, Task],
    prompts: Mapping[str, SoftPrompt | Sequence[SoftPrompt]],
    neurons: Mapping[str, NeuronSet],
    *,
    values: Mapping[str, Sequence[Float[Tensor, "layer neuron"]]] | None = None,
    how: str = "mean",
    positions: str = "prompt",
    n_random: int = 20,
    role: str = "report",
    seed: int = 0,
    **options: Any,
) -> pd.DataFrame:
    """Accuracy of every task with every task's neurons ablated, beside random neurons.

    Args:
        tasks, prompts, neurons: By the task's name, the same names in each.
        values: By the task that is measured, what its prompts' runs are ablated with, for ``how="mean"``
            (``[scores.mean_baseline(k) for k in ...]``).
        options: Of :func:`~tl_skillneurons.ablation_effect`.

    Returns:
        A row per ``ablated`` and ``measured`` task: accuracy ``intact``, ``ablated_accuracy``, the random controls'
        ``random_median``, ``random_min``, ``random_max``, ``damage`` (random median minus ablated: positive is more
        harm than random neurons do), and the rank p-value ``p_random``.

    Raises:
        ValueError: When the names differ, or for fewer draws than a p-value of 0.05 needs.
    """
    require_draws(n_random)
    for what, given in (("prompts", prompts), ("neurons", neurons), ("values", values)):
        if given is not None and set(given) != set(tasks):
            raise ValueError(f"{what} must go by the names of the tasks, {list(tasks)}, got {list(given)}")
    rows = []
    for measured, task in tasks.items():
        for ablated, chosen in neurons.items():
            effect = ablation_effect(
                model,
                prompts[measured],
                task,
                chosen,
                values=None if values is None else values[measured],
                how=how,
                positions=positions,
                n_random=n_random,
                role=role,
                seed=seed,
                **options,
            )
            intact, held, random = effect.mean_over_prompts()
            rows.append(
                {
                    "ablated": ablated,
                    "measured": measured,
                    "intact": intact,
                    "ablated_accuracy": held,
                    "random_median": float(random.quantile(0.5)),
                    "random_min": float(random.min()),
                    "random_max": float(random.max()),
                    "damage": float(random.quantile(0.5)) - held,
                    "p_random": effect.p_value,
                    "n_neurons": len(chosen),
                }
            )
    return pd.DataFrame(rows).assign(role=role)
