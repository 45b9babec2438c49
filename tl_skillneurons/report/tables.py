"""Tables as the page's template takes them: text to be escaped, with a number to sort by where there is one."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
from markupsafe import Markup

from tl_skillneurons.find.said import number
from tl_skillneurons.plots.look import fraction


@dataclass(frozen=True)
class Cell:
    """What a cell says, what it is sorted by, and where it leads."""

    text: str
    value: float | None = None
    link: str | None = None


@dataclass(frozen=True)
class PageTable:
    """Headings, which columns hold numbers, and the rows."""

    names: tuple[str, ...]
    numeric: tuple[bool, ...]
    rows: list[list[Cell]]


def cell(value: Any, link: str | None = None) -> Cell:
    """A number to three digits (whole ones with separators), or text as it is; nothing for what isn't a number."""
    if isinstance(value, Cell):
        return value
    if value is None:
        return Cell("-")
    if isinstance(value, Markup):  # a drawing
        return Cell(value, None, link)
    if isinstance(value, bool):
        return Cell("yes" if value else "no", float(value), link)
    if isinstance(value, int):
        return Cell(f"{value:,}", float(value), link)
    if isinstance(value, float):
        return Cell(digits(value), value if math.isfinite(value) else None, link)
    return Cell(str(value), None, link)


def holds_p(name: str) -> bool:
    """Whether a column of that heading holds p-values: "p", "p shared", "p (random)"."""
    return name.split(" ")[0] in ("p", "p,")


def _cell(value: Any, name: str) -> Cell:
    """A cell under its heading: a p-value of counted draws as the fraction that it is."""
    if holds_p(name) and isinstance(value, float) and math.isfinite(value):
        return Cell(fraction(value), value)
    return cell(value)


def table_of(rows: Sequence[Mapping[str, Any]]) -> PageTable:
    """Rows of a heading's value each; a column is one of numbers when all of its cells have one."""
    names = tuple(dict.fromkeys(name for row in rows for name in row))
    cells = [[_cell(row.get(name, ""), name) for name in names] for row in rows]
    numeric = tuple(
        any(one[at].value is not None for one in cells)
        and all(one[at].value is not None or one[at].text in ("", "-") for one in cells)
        for at in range(len(names))
    )
    return PageTable(names, numeric, cells)


def table_of_frame(frame: pd.DataFrame, names: Mapping[str, str]) -> PageTable:
    """Some columns of a data frame under other headings; those that it hasn't are left out."""
    there = [column for column in names if column in frame]
    rows = [
        {names[column]: plain(value) for column, value in zip(there, row, strict=True)}
        for row in frame[there].itertuples(index=False, name=None)
    ]
    return table_of(rows)


def plain(value: Any) -> Any:
    """A Python value in the place of numpy's."""
    return value.item() if hasattr(value, "item") else value


def digits(value: float) -> str:
    """As the verdicts write it, three digits; small numbers with three that count, and a hyphen for no number.

    Example:
        >>> digits(0.5), digits(1234.56), digits(0.000123), digits(float("nan"))
        ('0.500', '1,234.6', '0.000123', '-')
    """
    if not math.isfinite(value):
        return "-"
    if value and abs(value) < 0.0095:
        return f"{value:.3g}"
    return f"{value:,.1f}" if abs(value) >= 1000 else number(value)


def bracketed(value: float, low: float, high: float) -> Cell:
    """A value with its interval in brackets."""
    between = f" ({digits(low)} to {digits(high)})" if math.isfinite(low) and math.isfinite(high) else ""
    return Cell(f"{digits(value)}{between}", value)
