"""One discovery in several models of one shape, from what was measured of each; no model is run here."""

from collections.abc import Mapping
from dataclasses import dataclass

import pandas as pd
import torch
from jaxtyping import Float
from rich.table import Table
from torch import Tensor

from tl_skillneurons.neurons import NeuronSet
from tl_skillneurons.scores.agreement import agreements
from tl_skillneurons.scores.neuron_scores import NeuronScores
from tl_skillneurons.scores.overlap import compare_sets
from tl_skillneurons.scores.selection import top_neurons
from tl_skillneurons.stats.chance import rank_p_value
from tl_skillneurons.stats.intervals import bootstrap_mean
from tl_skillneurons.tasks.task import Task


@dataclass(frozen=True, eq=False)
class Measures:
    """What is kept of one model: scores, all rules' accuracies on ``report``, the prompts' right answers, how tuning
    ended."""

    scores: NeuronScores
    rules: Float[Tensor, "prompt layer position neuron"]
    right: Float[Tensor, "prompt example"]
    outcome: str


@dataclass(frozen=True, eq=False)
class CheckpointComparison:
    """One discovery in several models of one shape, each beside its chance level, and beside the last.

    Attributes:
        checkpoints: A row per model, in the order given: ``checkpoint``; ``outcome`` of tuning; ``accuracy`` of the
            prompts on ``report`` with its bootstrap interval over examples (``accuracy_low``, ``accuracy_high``)
            beside ``guessing``; on ``select`` the ``best`` and ``median`` predictivity, the ``level`` that the best
            reaches by luck in 5 % of cases, ``n_significant`` neurons above it; on ``report`` the mean accuracy of
            this model's best neurons (``top_report``) and of the last model's (``last_top_report``), beside the
            median, the largest and the rank p of random neurons of the same layers (``random_report``,
            ``random_report_max``, ``p_random``); ``spearman`` with the last model's predictivities beside permuted
            labels (``null_low``, ``null_high``, ``p_value``; :mod:`~tl_skillneurons.scores.agreement`); of the tops
            ``n_shared`` and ``p_shared`` under permuted labels, ``jaccard``, and of random sets ``chance_jaccard`` and
            ``p_overlap``.
        layers: A row per model and layer: ``best`` and ``median`` predictivity, ``n_significant``, and the agreement
            with the last model there (``spearman``, ``n_shared`` and what stands beside them).
        scores: Of each model.
    """

    checkpoints: pd.DataFrame
    layers: pd.DataFrame
    scores: dict[str, NeuronScores]

    def to_dataframe(self) -> pd.DataFrame:
        """The row per model, :attr:`checkpoints`."""
        return self.checkpoints

    def appears(self) -> str | None:
        """The first model from which on each has a neuron above its level of luck; ``None`` if not even the last."""
        first = None
        for row in reversed(list(self.checkpoints.itertuples())):
            if not row.n_significant:
                break
            first = row.checkpoint
        return first

    def to_table(self) -> Table:
        """The rows as a table to print with rich."""
        table = Table(title="Skill neurons by checkpoint; each score beside luck", title_justify="left")
        for name in (
            "checkpoint", "prompt", "guessing", "best", "by luck", "significant", "its best", "last's best",
            "random", "Spearman", "by luck", "Jaccard", "by luck",
        ):  # fmt: skip
            table.add_column(name, justify="left" if name == "checkpoint" else "right")
        for row in self.checkpoints.itertuples():
            numbers = (
                row.accuracy, row.guessing, row.best, row.level, row.n_significant, row.top_report,
                row.last_top_report, row.random_report, row.spearman, f"{row.null_low:.2f} to {row.null_high:.2f}",
                row.jaccard, row.chance_jaccard,
            )  # fmt: skip
            table.add_row(row.checkpoint, *(f"{n:.3f}" if isinstance(n, float) else str(n) for n in numbers))
        return table


def compare_checkpoints(
    measured: Mapping[str, Measures],
    task: Task,
    amount: float | int,
    n_top: int,
    n_random: int,
    n_permutations: int,
    seed: int,
) -> CheckpointComparison:
    """All rows, once every model is measured; no model is run."""
    split = task.split("report")
    guessing = max(task.class_counts("report")) / len(split)
    names = list(measured)
    last = measured[names[-1]].scores
    tops = {name: _top(one.scores, amount, "layer") for name, one in measured.items()}
    last_best = _top(last, n_top, "model")
    controls = [last_best.random_like(seed + draw) for draw in range(n_random)]
    pairs = [(name, names[-1]) for name in names]
    agree = agreements(
        {name: one.scores for name, one in measured.items()},
        pairs,
        len(tops[names[-1]]) // last.n_layers,
        n_permutations=n_permutations,
        seed=seed,
    )
    rows, layers = [], []
    for name, one in measured.items():
        scores = one.scores
        predictivity = scores.predictivity
        found = agree[name, names[-1]]
        low, high = bootstrap_mean(one.right.mean(0), seed=seed)
        best = _top(scores, n_top, "model")
        of_last = float(scores.rule_accuracy(last_best, one.rules).mean())
        random = torch.stack([scores.rule_accuracy(control, one.rules).mean() for control in controls])
        shared = compare_sets(tops[name], tops[names[-1]])
        significant = scores.significant()
        rows.append(
            {
                "checkpoint": name,
                "outcome": one.outcome,
                "n_prompts": len(one.right),
                "accuracy": float(one.right.mean()),
                "accuracy_low": float(low),
                "accuracy_high": float(high),
                "guessing": guessing,
                "best": float(predictivity.max()),
                "median": float(predictivity.median()),
                "level": scores.null.level(),
                "n_significant": len(significant),
                "top_report": float(scores.rule_accuracy(best, one.rules).mean()),
                "last_top_report": of_last,
                "random_report": float(random.median()),
                "random_report_max": float(random.max()),
                "p_random": rank_p_value(of_last, random, smaller=False),
                **found.row(-1),
                "jaccard": shared.jaccard,
                "chance_jaccard": shared.chance_jaccard,
                "p_overlap": shared.p_value,
                "n_examples": one.right.shape[1],
            }
        )
        above = significant.counts_per_layer()
        for layer, own in enumerate(predictivity):
            layers.append(
                {
                    "checkpoint": name,
                    "layer": layer,
                    "best": float(own.max()),
                    "median": float(own.median()),
                    "n_significant": above.get(layer, 0),
                    **found.row(layer),
                }
            )
    frames = [pd.DataFrame(part).assign(role_of_scores="select") for part in (rows, layers)]
    frames[0] = frames[0].assign(role_of_accuracy="report")
    return CheckpointComparison(*frames, {name: one.scores for name, one in measured.items()})


def _top(scores: NeuronScores, amount: float | int, per: str) -> NeuronSet:
    """The best neurons, of no model by name: sets of several checkpoints are compared."""
    return top_neurons(scores.predictivity, amount, per=per, model=None)
