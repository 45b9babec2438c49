"""Does a prompt of one task work on another, and do shared neurons foretell it? (Wang et al., 2022, section 6.2)

Zero-shot transfer: the prompt of task A answers task B, with B's label words; its accuracy relative to that of B's own
prompt, both above guessing::

    above    = accuracy of A's prompt on B - guessing
    relative = above / (accuracy of B's own - guessing)

Where B's own prompt may only guess, ``relative`` would be a fraction of nothing: it is NaN, and ``above`` says what
there is. Such a task is left out of what is foretold.

Transfer is foretold, for what it is worth, by three similarities of tasks: Spearman's correlation of predictivities
(``skill``), the share of neurons that both prompts activate (``activated``: positive mean activation at the prompt
positions, both of either; after Su et al., 2022), and the mean cosine of the prompts' tokens (``cosine``). Whether one
does is Spearman's correlation over ordered pairs of tasks, with Mantel's test: tasks, not pairs, are permuted, since
pairs that share a task are not independent.

What it does not show: with a handful of tasks almost nothing; a warning says so. Controls are guessing, which every
accuracy is counted from, and the tasks' other orders.
"""

import math
import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from jaxtyping import Float
from rich.table import Table
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from tl_skillneurons._checks import require_seed
from tl_skillneurons._progress import progress_bar
from tl_skillneurons._results import html_of, one_line
from tl_skillneurons._terminal import shown
from tl_skillneurons.prompts.prompted_model import PromptedModel
from tl_skillneurons.prompts.run import RunOptions, prompt_record, require_tuned_for
from tl_skillneurons.prompts.soft_prompt import SoftPrompt
from tl_skillneurons.scores.measured import require_measured_here
from tl_skillneurons.scores.neuron_scores import NeuronScores
from tl_skillneurons.scores.ranked import require_one_model
from tl_skillneurons.stats.intervals import doubtful_gap, ratio_interval
from tl_skillneurons.stats.ranks import mantel, off_diagonal_spearman
from tl_skillneurons.stats.rates import rate_interval
from tl_skillneurons.stats.units import Units, require_units
from tl_skillneurons.studies._common import load_tables, records, right_answers, save_tables
from tl_skillneurons.studies.across_tasks.likeness import (
    activated_alike,
    each_pair,
    prompts_alike,
    skill_alike,
)
from tl_skillneurons.tasks.task import Task

KIND = "PromptTransfer"
_N_BOOTSTRAP = 1000
_ENDS = torch.tensor([0.025, 0.975], dtype=torch.float64)
_FEWEST = 5  # tasks: 4 have 24 orders, and a p-value of 0.05 needs one in 20 of them


@dataclass(frozen=True, eq=False)
class PromptTransfer:
    """How prompts do on each other's tasks, and what foretells it.

    Attributes:
        pairs: A row per ``source`` and ``target``: ``accuracy`` of the source's prompt on the target with its
            interval (``accuracy_low``, ``accuracy_high``; exact where every example stands alone, else by bootstrap
            over units), ``own`` of the target's own prompt, ``guessing``, and how far the accuracy is ``above`` it;
            ``relative`` with its bootstrap interval over the target's units (``relative_low``, ``relative_high``), NaN
            where the own prompt may be no better than guessing; and the similarities ``skill``, ``activated``,
            ``cosine``.
        foretold: A row per similarity: Spearman's ``correlation`` with ``relative`` over ordered pairs of different
            tasks, and its bootstrap interval over the units of all targets (``low``, ``high``), which says nothing
            of other tasks; the lowest and the highest of the correlations that are left when each task in turn is
            taken out with all its pairs (``least_without``, ``most_without``; NaN where none is defined, as with three
            tasks); Mantel's ``p_value``, ``n_pairs``, ``n_orders``. Tasks whose own prompt may only guess are left out
            (``left_out`` in the settings, with the reason), and so are draws in which another one only guesses.
        settings: Permutations, seed, and each task's prompt, scores, ``unit`` and ``n_units``, as plain JSON values.

    Example:
        >>> found = skn.studies.transfer_prompts(model, tasks, prompts, scores)
        >>> found.matrix("relative"), found.foretold[["similarity", "correlation", "p_value"]]
    """

    pairs: pd.DataFrame
    foretold: pd.DataFrame
    settings: dict[str, Any] = field(default_factory=dict)

    def __repr__(self) -> str:
        others = self.pairs[self.pairs.source != self.pairs.target]
        left_out = {"left_out": list(self.settings["left_out"])} if self.settings.get("left_out") else {}
        return one_line(
            self,
            tasks=list(dict.fromkeys(self.pairs.source)),
            relative=float(others.relative.mean()),
            **left_out,
            foretold=dict(zip(self.foretold.similarity, self.foretold.correlation.round(3), strict=True)),
        )

    def _repr_html_(self) -> str:
        return html_of(self)

    def matrix(self, column: str = "relative") -> pd.DataFrame:
        """One number by source (rows) and target (columns)."""
        names = list(dict.fromkeys(self.pairs.source))
        return self.pairs.pivot(index="source", columns="target", values=column).loc[names, names]

    def to_dataframe(self) -> pd.DataFrame:
        """A copy of :attr:`pairs`."""
        return self.pairs.copy()

    def to_table(self) -> Table:
        """Accuracies, in brackets the relative ones, and what foretells them, as a table to print with rich; where
        nothing is relative to the own prompt, the bracket tells how far the accuracy is from guessing, as ``+0.030``.
        """
        table = Table(
            title=shown(
                f"Accuracy on {self.pairs.role.iloc[0]} (relative to the task's own prompt)", "table.title"
            ),
            title_justify="left",
            caption=shown(
                "\n".join(
                    f"nothing is relative to the own prompt of {name}: {reason}"
                    for name, reason in self.settings.get("left_out", {}).items()
                )
                + ("\n" if self.settings.get("left_out") else "")
                + "\n".join(
                    "{similarity} foretells it: Spearman {correlation:.3f} ({low:.3f} to {high:.3f} over examples, "
                    "{least_without:.3f} to {most_without:.3f} with one task left out), p {p_value:.2g} over "
                    "{n_orders} orders of the tasks".format(**row)
                    for row in records(self.foretold)
                )
            ),
            caption_justify="left",
        )
        names = list(dict.fromkeys(str(name) for name in self.pairs.source))
        cells = {(row["source"], row["target"]): row for row in records(self.pairs)}
        table.add_column("prompt of")
        for target in names:
            table.add_column(shown(target), justify="right")
        for source in names:
            of_source = [cells[source, target] for target in names]
            table.add_row(shown(source), *map(_cell, of_source))
        table.add_section()
        of_targets = [cells[names[0], target] for target in names]
        table.add_row("guessing", *(f"{cell['guessing']:.3f}" for cell in of_targets))
        return table

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write both tables to one JSON file, whole or not at all."""
        return save_tables(path, KIND, self.settings, {"pairs": self.pairs, "foretold": self.foretold})

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "PromptTransfer":
        """What :meth:`save` wrote.

        Raises:
            FileNotFoundError: When there is no such file.
            ValueError: When the file is corrupt or holds something else.
        """
        tables, settings = load_tables(path, KIND, ("pairs", "foretold"))
        return cls(**tables, settings=settings)


def transfer_prompts(
    model: TransformerBridge,
    tasks: Mapping[str, Task],
    prompts: Mapping[str, SoftPrompt],
    scores: Mapping[str, NeuronScores],
    *,
    role: str = "report",
    n_permutations: int = 1000,
    seed: int = 0,
    max_length: int | None = None,
    run: RunOptions = RunOptions(),
) -> PromptTransfer:
    """Every prompt's accuracy on every task, compared with how alike the tasks are.

    Args:
        tasks, prompts, scores: By the task's name; of each task one prompt and its scores.
        role: Whose examples answer.
        n_permutations: Orders of the tasks for Mantel's test; all of them where there are no more.
        seed: Draws the orders and the bootstrap.
        max_length: Longest sequence in tokens; by default what each prompt was tuned with.

    Raises:
        ValueError: When the names differ, for fewer than three tasks, tasks of different numbers of classes, prompts
            of different lengths, or scores of other prompts or of texts cut to another length.

    Example:
        >>> found = skn.studies.transfer_prompts(model, tasks, prompts, scores)  # of five tasks or more
        >>> found.matrix("relative"), found.foretold
    """
    require_seed(seed)
    for what, given in (("prompts", prompts), ("scores", scores)):
        if list(given) != list(tasks):
            raise ValueError(f"{what} must go by the names of the tasks, {list(tasks)}, got {list(given)}")
    if len(tasks) < 3:
        raise ValueError(f"transfer needs at least three tasks to be compared over, got {len(tasks)}")
    require_one_model(scores)
    n_classes = {name: task.n_classes for name, task in tasks.items()}
    shapes = {name: tuple(one.baseline.shape[2:]) for name, one in scores.items()}
    if len(set(n_classes.values())) > 1 or len(set(shapes.values())) > 1:
        raise ValueError(
            f"tasks must have equally many classes, {n_classes}, and prompts positions, {shapes}"
        )
    for name, score in scores.items():
        require_tuned_for(prompts[name], tasks[name])
        require_measured_here(score, model, prompts[name], task=tasks[name], max_length=max_length)
    if len(tasks) < _FEWEST:
        warnings.warn(
            f"{len(tasks)} tasks have {math.factorial(len(tasks))} orders, too few for a p-value of 0.05; at least "
            f"{_FEWEST} tasks can tell something",
            stacklevel=2,
        )
    answers: dict[str, Tensor] = {}
    with progress_bar(f"every prompt on every {role}", len(tasks) ** 2, show=run.progress) as advance:
        for target, task in tasks.items():
            rows = []
            for source, prompt in prompts.items():
                how: dict[str, Any] = {"chat": task.chat, "word_score": task.word_score, "run": run}
                prompted = PromptedModel(model, prompt, task.label_words, max_length=max_length, **how)
                rows.append(right_answers(prompted, task, role).double())
                advance(note=f"{source} on {target}: {float(rows[-1].mean()):.3f}")
            answers[target] = torch.stack(rows)
    guessing = {name: max(task.class_counts(role)) / len(task.split(role)) for name, task in tasks.items()}
    similar = {
        "skill": each_pair(list(scores.values()), skill_alike),
        "activated": each_pair(list(scores.values()), activated_alike),
        "cosine": each_pair(list(prompts.values()), prompts_alike),
    }
    units = {name: task.units(role) for name, task in tasks.items()}
    found = compare_answers(answers, guessing, similar, n_permutations=n_permutations, seed=seed, units=units)
    of_prompts = {name: prompt_record(prompt) for name, prompt in prompts.items()}
    of_scores = {name: score.provenance for name, score in scores.items()}
    settings: dict[str, Any] = {"prompts": of_prompts, "scores": of_scores, "max_length": max_length}
    settings |= {"n_permutations": n_permutations, "seed": seed}
    settings |= {
        "unit": {name: one.what for name, one in units.items()},
        "n_units": {name: len(one) for name, one in units.items()},
    }
    return PromptTransfer(found.pairs.assign(role=role), found.foretold, {**settings, **found.settings})


def compare_answers(
    answers: Mapping[str, Float[Tensor, "source _"]],
    guessing: Mapping[str, float],
    similar: Mapping[str, Float[Tensor, "source target"]],
    *,
    n_permutations: int = 1000,
    seed: int = 0,
    units: Mapping[str, Units] | None = None,
) -> PromptTransfer:
    """The same from what every prompt answered; no model is run.

    Args:
        answers: By target, in the order of the sources: 1 where the source's prompt is right on an example.
        guessing: By target, the accuracy of guessing.
        similar: By name, how alike source and target are.
        units: By target, which examples belong together; each is its own without.
    """
    names = list(answers)
    chance = torch.tensor([guessing[name] for name in names], dtype=torch.float64)
    right = torch.stack([rows.mean(1) for rows in answers.values()], dim=1)
    own = {name: answers[name][number] for number, name in enumerate(names)}
    belong = {
        name: require_units(rows.shape[1], None if units is None else units[name])
        for name, rows in answers.items()
    }
    doubts = {name: _doubt(own[name], guessing[name], belong[name], seed) for name in names}
    left_out = {name: reason for name, reason in doubts.items() if reason is not None}
    for name, reason in left_out.items():
        warnings.warn(
            f"nothing is relative to the own prompt of {name}, nor foretold of it: {reason}; tune it longer, or leave "
            "the task out",
            stacklevel=3,
        )
    generator = torch.Generator().manual_seed(require_seed(seed))
    every = [(rows, belong[name]) for name, rows in answers.items()]
    drawn = torch.stack([_relative(_resampled(every, generator), chance) for _ in range(_N_BOOTSTRAP)])
    relative = _relative(right, chance)
    refused = torch.tensor([name in left_out for name in names])
    relative[:, refused] = torch.nan
    rows = []
    for j, target in enumerate(names):
        above = answers[target] - guessing[target]
        ends = [torch.full((len(names),), torch.nan)] * 2
        if target not in left_out:
            ends = list(ratio_interval(above, above[j], seed=seed, units=belong[target]))
        for i, source in enumerate(names):
            low, high = rate_interval(answers[target][i], belong[target])
            row: dict[str, Any] = {"source": source, "target": target, "accuracy": float(right[i, j])}
            row |= {"accuracy_low": low, "accuracy_high": high, "own": float(right[j, j])}
            row |= {"guessing": guessing[target], "above": float(right[i, j]) - guessing[target]}
            row |= {"relative": float(relative[i, j])}
            row |= {"relative_low": float(ends[0][i]), "relative_high": float(ends[1][i])}
            rows.append({**row, **{name: float(matrix[i, j]) for name, matrix in similar.items()}})
    rows.sort(key=lambda row: (names.index(row["source"]), names.index(row["target"])))
    rest = (~refused).nonzero()[:, 0]
    n = len(rest)
    foretold = [
        {
            "similarity": name,
            **_foretells(
                matrix[rest][:, rest],
                relative[rest][:, rest],
                drawn[:, rest][:, :, rest],
                n_permutations,
                seed,
            ),
        }
        for name, matrix in similar.items()
    ]
    frame = pd.DataFrame(foretold).assign(
        n_pairs=n * (n - 1), n_orders=min(math.factorial(n), n_permutations + 1)
    )
    return PromptTransfer(pd.DataFrame(rows), frame, {"left_out": left_out})


def _cell(row: Mapping[str, Any]) -> str:
    """Accuracy, and relative to the own prompt, where that means something, else to guessing."""
    beside = "{above:+.3f}" if math.isnan(row["relative"]) else "{relative:.2f}"
    return f"{{accuracy:.3f}} ({beside})".format(**row)


def _doubt(right: Float[Tensor, " _"], share: float, units: Units, seed: int) -> str | None:
    """Why a fraction of what a task's own prompt is above guessing means nothing; ``None`` where it does."""
    value = float(right.mean())
    if value <= share:
        return f"it is no better than guessing ({value:.3f}, guessing {share:.3f})"
    low, high = rate_interval(right, units)
    if low <= share:
        return (
            f"it may be no better than guessing ({value:.3f}, {low:.3f} to {high:.3f}; guessing {share:.3f})"
        )
    return doubtful_gap(right - share, seed=seed, units=units)


def _foretells(
    similar: Float[Tensor, "source target"],
    relative: Float[Tensor, "source target"],
    drawn: Float[Tensor, "draw source target"],
    n_permutations: int,
    seed: int,
) -> dict[str, float]:
    """How far one similarity goes with transfer: over other examples, without each task in turn, and by luck."""
    if len(similar) < 3:  # two tasks have one similarity, and nothing to be correlated
        ends = dict.fromkeys(("correlation", "low", "high", "least_without", "most_without"), math.nan)
        return {**ends, "p_value": 1.0}
    correlation, p_value = mantel(similar, relative, n_permutations=n_permutations, seed=seed)
    n = len(similar)
    rests = [[k for k in range(n) if k != left] for left in range(n)]
    without = [off_diagonal_spearman(similar[rest][:, rest], relative[rest][:, rest]) for rest in rests]
    told = [value for value in without if not math.isnan(value)] or [math.nan]
    over_draws = torch.tensor([off_diagonal_spearman(similar, one) for one in drawn], dtype=torch.float64)
    low, high = (math.nan,) * 2 if math.isnan(correlation) else over_draws.nanquantile(_ENDS).tolist()
    return {
        "correlation": correlation,
        "low": low,
        "high": high,
        "least_without": min(told),
        "most_without": max(told),
        "p_value": p_value,
    }


def _relative(
    right: Float[Tensor, "source target"], guessing: Float[Tensor, " target"]
) -> Float[Tensor, "source target"]:
    """Accuracy above guessing as a share of the own prompt's; NaN where that one is no better than guessing."""
    own = right.diagonal()
    return torch.where(own > guessing, (right - guessing) / (own - guessing), torch.nan)


def _resampled(
    answers: Sequence[tuple[Float[Tensor, "source _"], Units]], generator: torch.Generator
) -> Float[Tensor, "source target"]:
    """Accuracies on as many units of each target, drawn with replacement, the same for all prompts."""
    return torch.stack([rows[:, units.resampled(generator)].mean(1) for rows, units in answers], dim=1)
