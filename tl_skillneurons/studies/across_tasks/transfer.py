"""Does a prompt of one task work on another, and do shared neurons foretell it? (Wang et al., 2022, section 6.2)

Zero-shot transfer: the prompt of task A answers task B, with B's label words; its accuracy relative to that of B's own
prompt, both above guessing::

    relative = (accuracy of A's prompt on B - guessing) / (accuracy of B's own - guessing)

It is foretold, for what it is worth, by three similarities of tasks: Spearman's correlation of predictivities
(``skill``), the share of neurons that both prompts activate (``activated``: positive mean activation at the prompt
positions, both of either; after Su et al., 2022), and the mean cosine of the prompts' tokens (``cosine``). Whether one
does is Spearman's correlation over ordered pairs of tasks, with Mantel's test: tasks, not pairs, are permuted, since
pairs that share a task are not independent.

What it does not show: with a handful of tasks almost nothing; a warning says so.
"""

import itertools
import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd
import torch
from jaxtyping import Float, Int
from rich.table import Table
from torch import Tensor

from tl_skillneurons._checks import require_int
from tl_skillneurons._progress import progress_bar
from tl_skillneurons.prompts.prompted_model import PromptedModel
from tl_skillneurons.prompts.soft_prompt import SoftPrompt
from tl_skillneurons.scores.neuron_scores import NeuronScores
from tl_skillneurons.scores.ranked import require_one_model
from tl_skillneurons.stats.chance import clopper_pearson
from tl_skillneurons.stats.ranks import spearman
from tl_skillneurons.tasks.task import Task

_N_BOOTSTRAP = 1000
_ENDS = torch.tensor([0.025, 0.975], dtype=torch.float64)
_FEWEST = 5  # tasks: 4 have 24 orders, and a p-value of 0.05 needs one in 20 of them


@dataclass(frozen=True, eq=False)
class PromptTransfer:
    """How prompts do on each other's tasks, and what foretells it.

    Attributes:
        pairs: A row per ``source`` and ``target``: ``accuracy`` of the source's prompt on the target with its exact
            interval (``accuracy_low``, ``accuracy_high``), ``own`` of the target's own prompt, ``guessing``, and
            ``relative`` with its bootstrap interval over the target's examples (``relative_low``, ``relative_high``);
            and the similarities ``skill``, ``activated``, ``cosine``.
        foretold: A row per similarity: Spearman's ``correlation`` with ``relative`` over ordered pairs of different
            tasks, and its bootstrap interval over the examples of all targets (``low``, ``high``), which says nothing
            of other tasks; the lowest and the highest of the correlations that are left when each task in turn is
            taken out with all its pairs (``least_without``, ``most_without``; NaN where none is defined, as with three
            tasks); Mantel's ``p_value``, ``n_pairs``, ``n_orders``. Draws in which an own prompt only guesses are left
            out of the intervals.
    """

    pairs: pd.DataFrame
    foretold: pd.DataFrame

    def matrix(self, column: str = "relative") -> pd.DataFrame:
        """One number by source (rows) and target (columns)."""
        names = list(dict.fromkeys(self.pairs.source))
        return self.pairs.pivot(index="source", columns="target", values=column).loc[names, names]

    def to_dataframe(self) -> pd.DataFrame:
        """A copy of :attr:`pairs`."""
        return self.pairs.copy()

    def to_table(self) -> Table:
        """Accuracies, relative ones in brackets, and what foretells them, as a table to print with rich."""
        table = Table(
            title=f"Accuracy on {self.pairs.role.iloc[0]} (relative to the task's own prompt)",
            title_justify="left",
            caption="\n".join(
                f"{row.similarity} foretells it: Spearman {row.correlation:.3f} ({row.low:.3f} to {row.high:.3f} over "
                f"examples, {row.least_without:.3f} to {row.most_without:.3f} with one task left out), "
                f"p {row.p_value:.2g} over {row.n_orders} orders of the tasks"
                for row in self.foretold.itertuples()
            ),
            caption_justify="left",
        )
        accuracy, relative, guessing = (self.matrix(name) for name in ("accuracy", "relative", "guessing"))
        table.add_column("prompt of")
        for target in accuracy:
            table.add_column(target, justify="right")
        for source in accuracy.index:
            cells = [
                f"{accuracy.loc[source, target]:.3f} ({relative.loc[source, target]:.2f})"
                for target in accuracy
            ]
            table.add_row(source, *cells)
        table.add_section()
        table.add_row("guessing", *(f"{value:.3f} (0.00)" for value in guessing.iloc[0]))
        return table


def transfer_prompts(
    model: Any,
    tasks: Mapping[str, Task],
    prompts: Mapping[str, SoftPrompt],
    scores: Mapping[str, NeuronScores],
    *,
    role: str = "report",
    n_permutations: int = 1000,
    seed: int = 0,
    batch_size: int | None = None,
    batch_tokens: int | None = None,
    progress: bool = True,
) -> PromptTransfer:
    """Try every prompt on every task, and compare with how alike the tasks are.

    Args:
        tasks, prompts, scores: By the task's name; of each task one prompt and its scores.
        n_permutations: Orders of the tasks for Mantel's test; all of them where there are no more.

    Raises:
        ValueError: When the names differ, for fewer than three tasks, tasks of different numbers of classes, or prompts
            of different lengths.
    """
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
    if len(tasks) < _FEWEST:
        warnings.warn(
            f"{len(tasks)} tasks have {math.factorial(len(tasks))} orders, too few for a p-value of 0.05; at least "
            f"{_FEWEST} tasks can tell something",
            stacklevel=2,
        )
    batches = {"batch_size": batch_size, "batch_tokens": batch_tokens}
    answers: list[Tensor] = []  # of each target, [source, example]: 1 where right
    guessing = torch.empty(len(tasks), dtype=torch.float64)
    with progress_bar(f"every prompt on every {role}", len(tasks) ** 2, show=progress) as advance:
        for column, (target, task) in enumerate(tasks.items()):
            split = task.split(role)
            guessing[column] = max(task.class_counts(role)) / len(split)
            labels, rows = torch.tensor(split["label"]), []
            for source, prompt in prompts.items():
                prompted = PromptedModel(model, prompt, task.label_words)
                rows.append(_right_answers(prompted, list(split["text"]), labels, batches))
                advance(note=f"{source} on {target}: {float(rows[-1].mean()):.3f}")
            answers.append(torch.stack(rows))
    right = torch.stack([rows.mean(1) for rows in answers], dim=1)
    own = right.diagonal()
    relative = _relative(right, guessing)
    useless = [name for name, ok in zip(tasks, (own > guessing).tolist(), strict=True) if not ok]
    if useless:
        warnings.warn(
            f"the own prompt of {', '.join(useless)} is no better than guessing, so nothing is relative to it, and "
            "nothing can be foretold; tune it longer, or leave the task out",
            stacklevel=2,
        )
    unsure = []
    for name, value, share in zip(tasks, own.tolist(), guessing.tolist(), strict=True):
        n = tasks[name].n_examples[role]
        low, high = clopper_pearson(round(value * n), n)
        if low <= share < value:
            unsure.append(f"{name} ({value:.3f}, {low:.3f} to {high:.3f}; guessing {share:.3f})")
    if unsure:
        warnings.warn(
            f"the own prompt of {', '.join(unsure)} may be no better than guessing, so what is relative to it is "
            "mostly noise; tune it longer, or leave the task out",
            stacklevel=2,
        )
    similar = {
        "skill": _each_pair(scores, _skill),
        "activated": _each_pair(scores, _activated),
        "cosine": _each_pair(prompts, _cosine),
    }
    generator = torch.Generator().manual_seed(require_int(seed, "seed", minimum=0))
    drawn = torch.stack([_relative(_resampled(answers, generator), guessing) for _ in range(_N_BOOTSTRAP)])
    ends = drawn.nanquantile(_ENDS, dim=0)
    rows = []
    for (i, source), (j, target) in itertools.product(enumerate(tasks), enumerate(tasks)):
        row = {"source": source, "target": target, "accuracy": float(right[i, j]), "own": float(own[j])}
        low, high = clopper_pearson(int(answers[j][i].sum()), answers[j].shape[1])
        row |= {"accuracy_low": low, "accuracy_high": high, "guessing": float(guessing[j])}
        row |= {"relative": float(relative[i, j])}
        row |= {"relative_low": float(ends[0, i, j]), "relative_high": float(ends[1, i, j])}
        rows.append({**row, **{name: float(matrix[i, j]) for name, matrix in similar.items()}})
    foretold = []
    for name, matrix in similar.items():
        found = mantel(matrix, relative, n_permutations=n_permutations, seed=seed)
        without = [
            _off_diagonal_rank(matrix[rest][:, rest], relative[rest][:, rest])
            for rest in ([k for k in range(len(tasks)) if k != left] for left in range(len(tasks)))
        ]
        known = [value for value in without if not math.isnan(value)] or [math.nan]
        over_draws = torch.tensor([_off_diagonal_rank(matrix, one) for one in drawn], dtype=torch.float64)
        low, high = (math.nan,) * 2 if math.isnan(found[0]) else over_draws.nanquantile(_ENDS).tolist()
        row = {"similarity": name, "correlation": found[0], "low": low, "high": high}
        row |= {"least_without": min(known), "most_without": max(known), "p_value": found[1]}
        foretold.append(row)
    n_orders = min(math.factorial(len(tasks)), n_permutations + 1)
    frame = pd.DataFrame(foretold).assign(n_pairs=len(tasks) * (len(tasks) - 1), n_orders=n_orders)
    return PromptTransfer(pd.DataFrame(rows).assign(role=role), frame)


def _right_answers(
    prompted: PromptedModel, texts: list[str], labels: Int[Tensor, " example"], batches: dict[str, Any]
) -> Float[Tensor, " example"]:
    with torch.no_grad():
        return (prompted.class_logits(texts, **batches).argmax(1).cpu() == labels).double()


def _relative(
    right: Float[Tensor, "source target"], guessing: Float[Tensor, " target"]
) -> Float[Tensor, "source target"]:
    """Accuracy above guessing as a share of the own prompt's; NaN where that one is no better than guessing."""
    own = right.diagonal()
    return torch.where(own > guessing, (right - guessing) / (own - guessing), torch.nan)


def _resampled(
    answers: list[Float[Tensor, "source _"]], generator: torch.Generator
) -> Float[Tensor, "source target"]:
    """Accuracies on as many examples of each target, drawn with replacement, the same for all prompts."""
    columns = []
    for rows in answers:
        n = rows.shape[1]
        columns.append(rows[:, torch.randint(n, (n,), generator=generator)].mean(1))
    return torch.stack(columns, dim=1)


def mantel(
    one: Float[Tensor, "item item"],
    other: Float[Tensor, "item item"],
    *,
    n_permutations: int = 1000,
    seed: int = 0,
) -> tuple[float, float]:
    """Spearman's correlation of two matrices off the diagonal, and how often permuted items do as well (one-sided).

    All orders are tried where there are at most ``n_permutations + 1``. NaN and 1 where either matrix is constant.
    """
    require_int(n_permutations, "n_permutations")
    n = len(one)
    observed = _off_diagonal_rank(one, other)
    if math.isnan(observed):
        return observed, 1.0
    if math.factorial(n) <= n_permutations + 1:
        orders = [list(order) for order in itertools.permutations(range(n))][1:]  # the first is the truth
    else:
        generator = torch.Generator().manual_seed(require_int(seed, "seed", minimum=0))
        orders = [torch.randperm(n, generator=generator).tolist() for _ in range(n_permutations)]
    drawn = [_off_diagonal_rank(one, other[order][:, order]) for order in orders]
    hits = sum(value >= observed - 1e-12 for value in drawn)
    return observed, (1 + hits) / (1 + len(orders))


def _off_diagonal_rank(one: Tensor, other: Tensor) -> float:
    away = ~torch.eye(len(one), dtype=torch.bool)
    if one[away].isnan().any() or other[away].isnan().any():
        return float("nan")
    return spearman(one[away], other[away])


def _each_pair(given: Mapping[str, Any], similarity: Any) -> Float[Tensor, "source target"]:
    values = list(given.values())
    return torch.tensor([[similarity(a, b) for b in values] for a in values], dtype=torch.float64)


def _skill(one: NeuronScores, other: NeuronScores) -> float:
    return spearman(one.predictivity.flatten(), other.predictivity.flatten())


def _activated(one: NeuronScores, other: NeuronScores) -> float:
    a, b = (scores.baseline.mean(0) > 0 for scores in (one, other))
    return float((a & b).sum() / (a | b).sum().clamp(min=1))


def _cosine(one: SoftPrompt, other: SoftPrompt) -> float:
    a, b = (torch.nn.functional.normalize(p.embedding.detach().double(), dim=1) for p in (one, other))
    return float((a @ b.T).mean())
