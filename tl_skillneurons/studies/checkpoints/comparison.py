"""One discovery in several models of one shape, from what was measured of each; no model is run here.

What it does not show, and the controls: :mod:`~tl_skillneurons.studies.checkpoints.run`.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
from jaxtyping import Float
from rich.table import Table
from torch import Tensor

from tl_skillneurons._pictures import plotted
from tl_skillneurons._results import html_of, one_line
from tl_skillneurons._terminal import shown
from tl_skillneurons.neurons.choice import APART, THESE, UNKNOWN, require_apart
from tl_skillneurons.neurons.controls import draw_controls
from tl_skillneurons.neurons.neuron_set import NeuronSet
from tl_skillneurons.scores.agreement import Agreement, agreements
from tl_skillneurons.scores.evaluated_rules import AllRules
from tl_skillneurons.scores.neuron_scores import NeuronScores
from tl_skillneurons.scores.selection import top_neurons
from tl_skillneurons.stats.hypothesis_tests import rank_p_value
from tl_skillneurons.stats.intervals import interval_scope, two_level_bootstrap
from tl_skillneurons.stats.ranks import median
from tl_skillneurons.stats.rates import rate_interval
from tl_skillneurons.stats.units import Units
from tl_skillneurons.studies._common import load_with_scores, null_of, records, save_with_scores
from tl_skillneurons.tasks.task import Task

KIND = "CheckpointComparison"
_TOLD = ("unit", "n_units", "about", "smallest_p", "warnings")


@dataclass(frozen=True, eq=False)
class Measures:
    """What is kept of one model: scores, all rules on ``report``, the prompts' right answers, how tuning ended."""

    scores: NeuronScores
    rules: AllRules
    right: Float[Tensor, "prompt example"]
    outcome: str


@dataclass(frozen=True, eq=False)
class CheckpointComparison:
    """One discovery in several models of one shape, each beside its chance level, and beside the last.

    Attributes:
        checkpoints: A row per model, in the order given: ``checkpoint``; ``outcome`` of tuning; ``accuracy`` of the
            prompts on ``report`` with its interval over units of examples, and over prompts where there are enough
            (``accuracy_low``, ``accuracy_high``; ``about`` in the settings) beside ``guessing``;
            on ``select`` the ``best`` and ``median`` predictivity, the ``level`` that the best
            reaches by luck in 5 % of cases, ``n_significant`` neurons above it; on ``report`` the mean accuracy of
            this model's best neurons (``top_report``) and of the last model's (``last_top_report``), beside the
            median, the largest and the rank p of random neurons of the same layers (``random_report``,
            ``random_report_max``, ``p_random``); ``spearman`` with the last model's predictivities beside permuted
            labels (``null_low``, ``null_high``, ``p_value``; :mod:`~tl_skillneurons.scores.agreement`); of the tops
            ``n_shared`` and ``p_shared`` under permuted labels, ``jaccard``, and of random sets ``chance_jaccard`` and
            ``p_overlap``; ``neurons_chosen`` "on other examples" than those of ``report``, "on these examples" or
            "unknown".
        layers: A row per model and layer: ``best`` and ``median`` predictivity, ``n_significant``, and the agreement
            with the last model there (``spearman``, ``n_shared`` and what stands beside them).
        scores: Of each model.
        settings: Task, tuning and settings, as plain JSON values; the ``unit`` of the intervals and how many there are
            (``n_units``), the ``smallest_p`` that the random draws allow, and ``warnings`` of too few.

    Example:
        >>> found = skn.studies.over_checkpoints(models, task, n_virtual_tokens=8)
        >>> found.appears(), found.checkpoints[["checkpoint", "best", "level", "spearman"]]
    """

    checkpoints: pd.DataFrame
    layers: pd.DataFrame
    scores: dict[str, NeuronScores]
    settings: dict[str, Any] = field(default_factory=dict)

    def __repr__(self) -> str:
        last = records(self.checkpoints)[-1]
        return one_line(
            self,
            checkpoints=list(self.checkpoints.checkpoint),
            appears=self.appears(),
            best_in_last=last["best"],
            level_in_last=last["level"],
            **({"warnings": self.settings["warnings"]} if self.settings.get("warnings") else {}),
        )

    def _repr_html_(self) -> str:
        return html_of(self)

    plot = plotted("plot_checkpoints")

    def to_dataframe(self) -> pd.DataFrame:
        """A copy of :attr:`checkpoints`, the row per model; ``attrs`` tells the unit and what the draws allow."""
        frame = self.checkpoints.copy()
        frame.attrs |= {name: self.settings[name] for name in _TOLD if name in self.settings}
        return frame

    def save(self, folder: str | os.PathLike[str]) -> Path:
        """Write the comparison to a folder: its tables as JSON, and a file for the scores of each model."""
        tables = {"checkpoints": self.checkpoints, "layers": self.layers}
        return save_with_scores(folder, KIND, self.settings, tables, list(self.scores.values()))

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> "CheckpointComparison":
        """The comparison that :meth:`save` wrote.

        Raises:
            FileNotFoundError: When a file is missing.
            ValueError: When one is corrupt or holds something else.
        """
        tables, settings, scores = load_with_scores(folder, KIND, ("checkpoints", "layers"), "checkpoints")
        by_name = dict(zip(tables["checkpoints"].checkpoint, scores, strict=True))
        return cls(**tables, scores=by_name, settings=settings)

    def appears(self) -> str | None:
        """The first model from which on each has a neuron above its level of luck; ``None`` if not even the last."""
        first = None
        for row in reversed(records(self.checkpoints)):
            if not row["n_significant"]:
                break
            first = str(row["checkpoint"])
        return first

    def to_table(self) -> Table:
        """The rows as a table to print with rich."""
        table = Table(title="Skill neurons by checkpoint; each score beside luck", title_justify="left")
        columns = (
            ("checkpoint", "{checkpoint}"),
            ("prompt", "{accuracy:.3f}"),
            ("guessing", "{guessing:.3f}"),
            ("best", "{best:.3f}"),
            ("by luck", "{level:.3f}"),
            ("significant", "{n_significant}"),
            ("its best", "{top_report:.3f}"),
            ("last's best", "{last_top_report:.3f}"),
            ("random", "{random_report:.3f}"),
            ("Spearman", "{spearman:.3f}"),
            ("by luck", "{null_low:.2f} to {null_high:.2f}"),
            ("Jaccard", "{jaccard:.3f}"),
            ("by luck", "{chance_jaccard:.3f}"),
        )
        for name, _ in columns:
            table.add_column(name, justify="left" if name == "checkpoint" else "right")
        for row in records(self.checkpoints):
            table.add_row(*(shown(cell.format(**row)) for _, cell in columns))
        return table


def compare_checkpoints(
    measured: Mapping[str, Measures],
    task: Task,
    *,
    amount: float | int = 0.02,
    n_top: int = 10,
    n_random: int = 20,
    n_permutations: int = 1000,
    seed: int = 0,
    on_chosen_examples: bool = False,
) -> CheckpointComparison:
    """All rows, once every model is measured; no model is run. Arguments as for
    :func:`~tl_skillneurons.studies.over_checkpoints`.

    Args:
        on_chosen_examples: Compare though some texts of ``report`` chose the best neurons; every row then says so.

    Raises:
        ValueError: When they did, and nobody insists.
    """
    guessing = max(task.class_counts("report")) / len(task.split("report"))
    names = list(measured)
    last = measured[names[-1]].scores
    tops = {name: _top(one.scores, amount, "layer") for name, one in measured.items()}
    last_best = _top(last, n_top, "model")
    controls = draw_controls(last_best, n_random, seed=seed)
    units = task.units("report")
    agree = agreements(
        {name: one.scores for name, one in measured.items()},
        [(name, names[-1]) for name in names],
        len(tops[names[-1]]) // last.n_layers,
        n_permutations=n_permutations,
        seed=seed,
    )
    texts = list(task.split("report")["text"])

    def where_chosen(best: NeuronSet) -> str:
        by = "studies.checkpoints.comparison.compare_checkpoints(..., on_chosen_examples=True)"
        return require_apart(best.choice, texts, insist=on_chosen_examples, by=by)

    of_last = where_chosen(last_best)
    rows, layers = [], []
    for name, one in measured.items():
        best = _top(one.scores, n_top, "model")
        where = {where_chosen(best), of_last}
        found = agree[name, names[-1]]
        shared = tops[name].overlap(tops[names[-1]])
        rows.append(
            {
                "checkpoint": name,
                "outcome": one.outcome,
                **_of_prompts(one.right, units, seed),
                "guessing": guessing,
                **_of_scores(one.scores),
                "top_report": float(
                    one.rules.accuracy_of(best, on_chosen_examples=on_chosen_examples).mean()
                ),
                **_of_last_best(one.rules, last_best, controls.sets, on_chosen_examples),
                **found.row(-1),
                "jaccard": shared.jaccard,
                "chance_jaccard": shared.chance_jaccard,
                "p_overlap": shared.p_value,
                "n_examples": one.right.shape[1],
                "neurons_chosen": next(word for word in (THESE, UNKNOWN, APART) if word in where),
            }
        )
        layers += [{"checkpoint": name, **row} for row in _of_layers(one.scores, found)]
    checkpoints = pd.DataFrame(rows).assign(role_of_scores="select", role_of_accuracy="report")
    return CheckpointComparison(
        checkpoints,
        pd.DataFrame(layers).assign(role_of_scores="select"),
        {name: one.scores for name, one in measured.items()},
        {
            "unit": units.what,
            "n_units": len(units),
            "about": interval_scope(len(measured[names[-1]].right), units),
            "smallest_p": controls.smallest_p,
            "warnings": list(controls.warnings),
        },
    )


def _of_prompts(right: Float[Tensor, "prompt example"], units: Units, seed: int) -> dict[str, Any]:
    low, high = (float(end) for end in two_level_bootstrap(right, seed=seed, units=units))
    if len(right) == 1:
        low, high = rate_interval(right[0], units, seed=seed)
    return {
        "n_prompts": len(right),
        "accuracy": float(right.mean()),
        "accuracy_low": low,
        "accuracy_high": high,
    }


def _of_scores(scores: NeuronScores) -> dict[str, Any]:
    return {
        "best": float(scores.predictivity.max()),
        "median": median(scores.predictivity.flatten()),
        "level": null_of(scores).level(),
        "n_significant": len(scores.significant()),
    }


def _of_last_best(
    rules: AllRules, best: NeuronSet, controls: Sequence[NeuronSet], on_chosen_examples: bool
) -> dict[str, Any]:
    """What the last model's best neurons know in another one, beside random neurons."""
    accuracy = float(rules.accuracy_of(best, on_chosen_examples=on_chosen_examples).mean())
    random = [float(rules.accuracy_of(control).mean()) for control in controls]
    return {
        "last_top_report": accuracy,
        "random_report": median(random),
        "random_report_max": max(random),
        "p_random": rank_p_value(accuracy, random, "greater"),
    }


def _of_layers(scores: NeuronScores, agreement: Agreement) -> list[dict[str, Any]]:
    above = scores.significant().counts_per_layer()
    return [
        {
            "layer": layer,
            "best": float(own.max()),
            "median": median(own),
            "n_significant": above.get(layer, 0),
            **agreement.row(layer),
        }
        for layer, own in enumerate(scores.predictivity)
    ]


def _top(scores: NeuronScores, amount: float | int, per: str) -> NeuronSet:
    """The best neurons, of no model by name: sets of several checkpoints are compared."""
    return top_neurons(scores.predictivity, amount, per=per, chose=scores.provenance.get("chose"))
