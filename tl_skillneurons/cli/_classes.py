"""Several runs of one task, one for each class against the others: which they are, and their verdicts side by side."""

import os
from collections.abc import Iterable, Mapping, Sequence
from functools import reduce
from operator import or_
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tl_skillneurons.cli._early import CLASSES

if TYPE_CHECKING:
    from rich.table import Table

    from tl_skillneurons.find.findings import Findings
    from tl_skillneurons.tasks.task import Task

NEURONS = "neurons.json"
_QUESTIONS = {"can": "task done", "readable": "label readable", "uses": "model uses them"}


def keep_classes(folder: Path, parts: Mapping[str, "Task"]) -> None:
    """Write which folder holds the run of which class.

    Raises:
        ValueError: When the folder holds runs of other classes.
    """
    import json

    from tl_skillneurons._files import write_whole

    content = {"runs": [{"folder": name, "task": task.name} for name, task in parts.items()]}
    path = folder / CLASSES
    if path.exists():
        if json.loads(path.read_text(encoding="utf-8")) != content:
            raise ValueError(
                f"{folder} holds runs of other classes; choose another folder for these by --out"
            )
        return
    write_whole(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def keep_union(folder: Path, found: Iterable["Findings"]) -> tuple[Path, int] | None:
    """Write the skill neurons of all classes together; each class's are equally many in each layer.

    Returns:
        The file and how many neurons it holds; ``None`` where no class has any.
    """
    sets = [one.skill for one in found if not one.stopped]
    if not sets:
        return None
    union = reduce(or_, sets)
    path = folder / NEURONS
    if not path.exists() and os.access(folder, os.W_OK):  # finished runs may lie where nothing can be written
        union.to_json(path)
    return path, len(union)


def summary(found: Mapping[str, tuple["Findings", dict[str, Any]]]) -> list[dict[str, Any]]:
    """A row for each run: the class, its prompts beside the commonest answer, its neurons and verdicts."""
    from tl_skillneurons.find.verdicts import RULES

    rows = []
    for name, (findings, _) in found.items():
        answers = {verdict.question: verdict.answer for verdict in findings.verdicts}
        right = findings.answers.right.double().mean()
        row: dict[str, Any] = {
            "class": name,
            "prompts right": float(right),
            "majority": findings.answers.majority,
        }
        if findings.stopped:
            row |= {"neurons": 0, "rules right": None}
        else:
            row |= {"neurons": len(findings.skill), "rules right": float(findings.on_report.mean())}
        rows.append(row | {short: answers.get(RULES[key].question, "") for key, short in _QUESTIONS.items()})
    return rows


def summary_table(task: str, rows: Sequence[Mapping[str, Any]]) -> "Table":
    """The rows as a table."""
    from tl_skillneurons.report.further import answer_table

    return answer_table(f"{task}: each class against the others, on report", rows)
