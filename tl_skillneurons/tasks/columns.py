"""Examples as columns of plain values, to and from ``datasets``."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias, TypeVar

import numpy as np
import pandas as pd
from datasets import Dataset, Features, Value

from tl_skillneurons._words import same_text

Rows: TypeAlias = Dataset | Sequence[Mapping[str, Any]]
"""Examples as they come: a ``Dataset``, or a list of dicts."""

Columns = dict[str, list[Any]]
"""Examples as columns of equal length: ``text``, ``label``; where there are any, ``pair``, ``group`` and ``unit``."""

_TYPES = {
    name: Value("string" if name == "text" else "int64")
    for name in ("text", "label", "pair", "group", "unit")
}


From = TypeVar("From")
To = TypeVar("To")


def column_names(rows: Rows) -> list[str]:
    """The columns of a ``Dataset`` or of a list of dicts."""
    return (
        rows.column_names
        if isinstance(rows, Dataset)
        else list(dict.fromkeys(key for row in rows for key in row))
    )


def column(rows: Rows, name: str) -> list[Any]:
    """One column, plain whatever the format of the ``Dataset``; ``None`` where a dict lacks it."""
    return (
        list(rows.with_format(None)[name][:])
        if isinstance(rows, Dataset)
        else [row.get(name) for row in rows]
    )


def columns_of(dataset: Dataset) -> Columns:
    """The columns of a role that a task uses."""
    names = [name for name in _TYPES if name in dataset.column_names]
    return {name: column(dataset, name) for name in names}


def plain(texts: Sequence[str]) -> list[str]:
    """The texts as they are compared (:func:`~tl_skillneurons._words.same_text`)."""
    return [same_text(text) for text in texts]


def take(columns: Columns, rows: Sequence[int]) -> Columns:
    """These rows of every column."""
    return {name: [values[i] for i in rows] for name, values in columns.items()}


def as_dataset(columns: Columns) -> Dataset:
    """The columns as a ``Dataset`` of the same types for every task."""
    return Dataset.from_dict(columns, features=Features({name: _TYPES[name] for name in columns}))


def each_once(by_role: Mapping[str, From], function: Callable[[From], To]) -> dict[str, To]:
    """``function`` of every role's value; roles that share a value share the result."""
    results: dict[int, To] = {}
    for value in by_role.values():
        if id(value) not in results:
            results[id(value)] = function(value)
    return {role: results[id(value)] for role, value in by_role.items()}


def plain_list(values: Any) -> list[Any]:
    """A list, tensor, array or column of a frame as a list of plain values; what is missing is ``None``."""
    listed_ones = values.tolist() if hasattr(values, "tolist") else list(values)
    plain = [value.item() if isinstance(value, np.generic) else value for value in listed_ones]
    return [None if is_missing(value) else value for value in plain]


def frame_rows(frame: pd.DataFrame, name: str) -> list[dict[str, Any]]:
    """A frame's rows as dicts of plain values; what is missing is ``None``.

    Raises:
        ValueError: For two columns of one name.
    """
    twice = frame.columns[frame.columns.duplicated()].tolist()
    if twice:
        raise ValueError(
            f"the frame {name!r} has the column {twice[0]!r} twice; each column needs a name of its own"
        )
    columns = {str(one): plain_list(frame[one]) for one in frame.columns}
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def is_missing(value: Any) -> bool:
    """Whether a cell holds nothing, whatever a frame writes for that."""
    return (
        value is None or value is pd.NA or value is pd.NaT or (isinstance(value, float) and math.isnan(value))
    )
