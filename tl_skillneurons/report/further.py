"""What was asked of a finished run later: each answer is a file in its folder, shown alike by terminal and page."""

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from tl_skillneurons._files import FORMAT, package_version, read_json, sound, write_json
from tl_skillneurons._terminal import shown
from tl_skillneurons.plots.look import fraction as p_value_said
from tl_skillneurons.report.tables import holds_p

KIND = "Answer"
ASKED = "asked"
"""Where answers lie in a run's folder."""

_FIELDS = ("command", "title", "tables", "notes", "numbers", "settings")

Cell = str | int | float | bool | None


@dataclass(frozen=True)
class Answer:
    """What one further question of a run gave.

    Attributes:
        command: Which question, as the command is called.
        title: What the tables are about, in a few words.
        tables: What is shown: rows of plain values, under each table's title.
        notes: What a reader must know of them, and what they don't show.
        numbers: Everything that was measured, as rows of plain values, under the name of each table.
        settings: What was asked for.

    Example:
        >>> Answer("diagnose", "Is the set stable?", {"Stability": [{"quantity": "x", "value": 0.5}]}).tables
        {'Stability': [{'quantity': 'x', 'value': 0.5}]}
    """

    command: str
    title: str
    tables: Mapping[str, Sequence[Mapping[str, Cell]]]
    notes: Sequence[str] = ()
    numbers: Mapping[str, Sequence[Mapping[str, Cell]]] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the answer as JSON, whole or not at all."""
        return write_json(
            path, {"kind": KIND, "format": FORMAT, "package_version": package_version(), **asdict(self)}
        )

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "Answer":
        """The answer that :meth:`save` wrote.

        Raises:
            FileNotFoundError: When there is no such file.
            ValueError: When the file is corrupt or holds something else.
        """
        content = read_json(path, KIND)
        with sound(path, KIND):
            return cls(**{name: content[name] for name in _FIELDS})


def answers_in(folder: str | os.PathLike[str]) -> list[Answer]:
    """Every answer that a run's folder holds, in the order of their files' names."""
    return [Answer.load(path) for path in sorted((Path(folder) / ASKED).glob("*-????????.json"))]


def rows_of(frame: pd.DataFrame, columns: Mapping[str, str] | None = None) -> list[dict[str, Cell]]:
    """A frame's rows as plain values, no number as ``None``; ``columns`` chooses and names them.

    Example:
        >>> rows_of(pd.DataFrame({"a": [1.5, float("nan")], "b": ["x", "y"]}), {"a": "value"})
        [{'value': 1.5}, {'value': None}]
    """
    chosen = {str(name): str(name) for name in frame} if columns is None else dict(columns)
    kept = {new: frame[old].tolist() for old, new in chosen.items() if old in frame}
    return [dict(zip(kept, map(_plain, row), strict=True)) for row in zip(*kept.values(), strict=True)]


def show_answer(answer: Answer, console: Console) -> None:
    """Print the answer's tables, each under its title, and its notes."""
    for title, rows in answer.tables.items():
        console.print(answer_table(title, rows))
    for note in answer.notes:
        console.print(shown(note))


def answer_table(title: str, rows: Sequence[Mapping[str, Cell]]) -> Table:
    """One table of an answer."""
    table = Table(
        title=shown(title, "table.title"),
        title_justify="left",
        box=SIMPLE_HEAD,
        collapse_padding=True,
        pad_edge=False,
    )
    names = list(dict.fromkeys(name for row in rows for name in row))
    for name in names:
        text = any(isinstance(row.get(name), str) for row in rows)
        table.add_column(shown(name), justify="left" if text else "right")
    for row in rows:
        table.add_row(*(shown(spelled(row.get(name), name)) for name in names))
    return table


def spelled(value: Cell, name: str = "") -> str:
    """A cell as it is printed: three digits after the point, small numbers to two figures, nothing for no number; in a
    column of p-values as the fraction of draws that it is.

    Example:
        >>> [spelled(value) for value in (0.5, 0.0004, 46080, None, "mean")]
        ['0.500', '0.0004', '46,080', '', 'mean']
        >>> spelled(1 / 1001, "p")
        '1/1001'
    """
    if holds_p(name) and isinstance(value, float):
        return p_value_said(value)
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:.2g}" if 0 < abs(value) < 0.0005 else f"{value:.3f}"
    return value


def _plain(value: Any) -> Cell:
    if isinstance(value, float) and math.isnan(value):
        return None
    return value if isinstance(value, (str, int, float, bool, type(None))) else str(value)


def fraction(p: float | None, n_draws: int) -> str:
    """A rank p-value over so many controls as the fraction that it is.

    Example:
        >>> fraction(1 / 21, 20), fraction(float("nan"), 20)
        ('1/21', '')
    """
    return "" if p is None or math.isnan(p) else f"{round(p * (n_draws + 1))}/{n_draws + 1}"


def span(low: float, high: float) -> str:
    """A range of controls, or an interval.

    Example:
        >>> span(2.761, 3.389)
        '2.76 to 3.39'
    """
    return f"{low:.2f} to {high:.2f}"
