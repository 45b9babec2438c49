"""From the data a user has to rendered texts and numbered classes, or to one sentence on what is wrong and where.

Classes are numbered by their labels: integers in rising order, strings in the order of ``label_words``. Of two classes
the second, class 1, is what the whole package calls label 1: an activation above its baseline is read as "label 1", a
positive score speaks for it, and a logit diff is its logit minus that of class 0. :func:`order_labels` decides it, and
nothing else does; of more classes each in turn is label 1
(:func:`~tl_skillneurons.tasks.subtasks.against_rest`).
"""

import math
import string
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import pandas as pd
from datasets import ClassLabel, Dataset

from tl_skillneurons._checks import listed, near, require_text
from tl_skillneurons.tasks.columns import Columns, Rows, column, column_names, frame_rows, is_missing

HIDDEN = -1
"""The label that the Hub's benchmarks give to examples whose label is kept secret."""


class Field(NamedTuple):
    """A piece of a template: what is written as it is, the column that follows, and whether that may hold numbers."""

    literal: str
    column: str | None
    numbers: bool


def parse_template(template: str) -> list[Field]:
    """The pieces of a template; ``{column!s}`` takes numbers as well as strings."""
    require_text(template, "template")
    try:
        parsed = list(string.Formatter().parse(template))
    except ValueError as error:
        raise ValueError(
            f"template {template!r} can't be read: {error}; write columns as {{column}}"
        ) from error
    for _, name, spec, conversion in parsed:
        if spec or conversion not in (None, "s"):
            raise ValueError(
                f"template {template!r} must have plain fields, got a format or conversion on {name!r}; only "
                f"{{{name}!s}} is read, which takes numbers as they are spelled"
            )
    if all(name is None for _, name, _, _ in parsed):
        raise ValueError(f"template {template!r} has no field; name at least one column, such as {{text}}")
    return [Field(literal, name, conversion == "s") for literal, name, _, conversion in parsed]


def order_labels(label_words: Mapping[Any, Any]) -> list[Any]:
    """The labels in class order: integers rising, strings as given. The second of two is label 1.

    Raises:
        ValueError: For fewer than two.
        TypeError: For labels of which some are integers and others strings, or of another kind.

    Example:
        >>> order_labels({1: " good", 0: " bad"}), order_labels({"good": " good", "bad": " bad"})
        ([0, 1], ['good', 'bad'])
    """
    if not isinstance(label_words, Mapping):
        raise TypeError(
            f"label_words must be a dict of label to word, such as {{0: ' bad', 1: ' good'}}, got {_short(label_words)}"
        )
    keys = list(label_words)
    if len(keys) < 2:
        raise ValueError(f"a task needs at least two labels, got {len(keys)} in label_words")
    if all(isinstance(key, int) for key in keys):
        return sorted(keys)
    if all(isinstance(key, str) for key in keys):
        return keys
    raise TypeError(f"the labels in label_words must be all integers or all strings, got {listed(keys)}")


def as_splits(data: Any) -> dict[str, Rows]:
    """The data as split name to rows, whatever form it came in."""
    splits = dict(data) if isinstance(data, Mapping) else {"data": data}
    if not splits:
        raise ValueError("data has no split; give at least one")
    for name, rows in splits.items():
        is_rows = isinstance(rows, (list, tuple)) and all(isinstance(row, Mapping) for row in rows)
        if not isinstance(rows, (Dataset, pd.DataFrame)) and not is_rows:
            raise TypeError(
                "data must be a Dataset, a pandas frame or a list of dicts, or a DatasetDict or dict of split name to "
                f"such (nothing that streams), got {type(rows).__name__} for {name!r}; lists of texts and labels go "
                "to Task.from_texts"
            )
    return {
        name: frame_rows(rows, name) if isinstance(rows, pd.DataFrame) else rows
        for name, rows in splits.items()
    }


def read(
    rows: Rows,
    where: str,
    parts: list[Field],
    label: str,
    keys: list[Any],
    class_names: Sequence[str] | None = None,
) -> Columns:
    """The rendered texts and the classes of one split.

    Args:
        class_names: What the first split calls its classes (:func:`class_names_of`), where it has names for them.
    """
    if not len(rows):
        raise ValueError(f"{where} is empty; give it examples or choose another split with roles=")
    names = column_names(rows)
    for _, name, _ in parts:
        if name is not None and name not in names:
            raise ValueError(
                f"template field {name!r} is not in {where}, which has the columns {listed(names)}; "
                f"{near(name, names)}"
            )
    if label not in names:
        raise ValueError(
            f"label column {label!r} is not in {where}, which has the columns {listed(names)}; "
            f"{near(label, names)}"
        )
    return {"text": rendered(rows, where, parts), "label": _classes(rows, where, label, keys, class_names)}


def group_values(rows: Rows, where: str, group: str) -> list[Any]:
    """What tells the groups of one split apart."""
    names = column_names(rows)
    if group not in names:
        raise ValueError(
            f"group column {group!r} is not in {where}, which has the columns {listed(names)}; {near(group, names)}"
        )
    values = column(rows, group)
    for row, value in enumerate(values):
        if not isinstance(value, (int, str)) or value == "":
            raise ValueError(
                f"{where}, row {row}: a group must be an integer or a string that is not empty, got {_short(value)}"
            )
    return values


def pair_values(rows: Rows, where: str, pair: str, labels: list[int]) -> list[int | str | None] | None:
    """What two twins of one split share, ``None`` (or an empty string) for an example without a twin; ``None``
    without such a column.

    Raises:
        ValueError: For values of another kind, more than two examples of one value, or two of one label.
    """
    if pair not in column_names(rows):
        return None
    values = [None if value == "" else value for value in column(rows, pair)]
    seen: dict[int | str, list[int]] = {}
    for row, value in enumerate(values):
        if value is None:
            continue
        if not isinstance(value, (int, str)):
            raise ValueError(
                f"{where}, row {row}: a pair must be an integer, a string or None, got {_short(value)}; give pair=None "
                f"if column {pair!r} doesn't say which two examples are twins"
            )
        others = seen.setdefault(value, [])
        if len(others) == 2 or labels[row] in (labels[other] for other in others):
            raise ValueError(
                f"{where}, row {row}: the twins of pair {value!r} must be two examples of different labels, got "
                f"rows {listed([*others, row])} of labels {listed(labels[i] for i in [*others, row])}; give pair=None "
                f"if column {pair!r} doesn't say which two examples are twins"
            )
        others.append(row)
    return values


def class_names_of(splits: Mapping[str, Rows], label: str) -> list[str] | None:
    """What the first split that names its classes (a ``ClassLabel`` column) calls them, by number."""
    for rows in splits.values():
        feature = class_label(rows, label)
        if feature is not None:
            return list(feature.names)
    return None


def notes_on_names(splits: Mapping[str, Rows], label: str) -> list[str]:
    """A sentence for each split whose classes are numbered otherwise than those of the first that names them."""
    names = class_names_of(splits, label)
    features = {split: class_label(rows, label) for split, rows in splits.items()}
    return [
        f"split {split!r} numbers its classes otherwise ({listed(feature.names)}); they are matched by name."
        for split, feature in features.items()
        if feature is not None and feature.names != names
    ]


def class_label(rows: Rows, label: str) -> ClassLabel | None:
    """What a ``Dataset`` declares of its labels: their names by number; ``None`` where it doesn't."""
    feature = rows.features.get(label) if isinstance(rows, Dataset) else None
    return feature if isinstance(feature, ClassLabel) else None


def rendered(rows: Rows, where: str, parts: list[Field]) -> list[str]:
    columns: dict[tuple[str | None, bool], list[str]] = {(None, False): [""] * len(rows)}
    for _, name, numbers in parts:
        if name is not None and (name, numbers) not in columns:
            columns[name, numbers] = [
                _spelled(value, name, numbers, f"{where}, row {row}")
                for row, value in enumerate(_readable(rows, where, name))
            ]
    literals = [part.literal for part in parts]
    fields = zip(*(columns[part.column, part.numbers] for part in parts), strict=True)
    texts = ["".join(f"{a}{b}" for a, b in zip(literals, values, strict=True)) for values in fields]
    for row, text in enumerate(texts):
        if not text.strip():
            raise ValueError(f"{where}, row {row}: the text is empty; drop such examples")
    return texts


def _readable(rows: Rows, where: str, name: str) -> list[Any]:
    try:
        return column(rows, name)
    except UnicodeDecodeError as error:
        raise ValueError(f"{where}: column {name!r} is not UTF-8 text ({error})") from error


def _spelled(value: Any, name: str, numbers: bool, where: str) -> str:
    """A cell of a text column as it is spelled."""
    if isinstance(value, str):
        return require_text(value, f"{where}: column {name!r}")
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if is_number and numbers and (isinstance(value, int) or math.isfinite(value)):
        return str(value)
    if is_missing(value):
        raise ValueError(f"{where}: column {name!r} is empty ({value}); drop such examples")
    if is_number and numbers:
        raise ValueError(
            f"{where}: column {name!r} must hold finite numbers, got {value}; drop such examples"
        )
    advice = (
        f"write {{{name}!s}} in the template to take numbers as they are spelled"
        if is_number
        else "make it a string, or drop such examples"
    )
    raise ValueError(
        f"{where}: column {name!r} must hold strings, got {type(value).__name__} {_short(value)}; {advice}"
    )


def _short(value: Any) -> str:
    return textwrap.shorten(repr(value), 80, placeholder=" ...")


def require_label_kind(value: Any, where: str) -> None:
    """Refuse a label that can name no class: a list, bytes, a date. A missing one is looked at elsewhere."""
    if not is_missing(value) and not isinstance(value, (int, float, str)):
        raise TypeError(
            f"{where}: a label must be an integer or a string, got {type(value).__name__} {_short(value)}"
        )


def _classes(
    rows: Rows, where: str, label: str, keys: list[Any], class_names: Sequence[str] | None
) -> list[int]:
    class_of = _values(rows, where, label, keys, class_names)
    values = _readable(rows, where, label)
    for row, value in enumerate(values):
        if is_missing(value):
            raise ValueError(
                f"{where}, row {row} has no label ({value} in column {label!r}); drop such examples"
            )
        require_label_kind(value, f"{where}, row {row}")
        if value not in class_of:
            hidden = " (the Hub's mark for a hidden label)" if value == HIDDEN else ""
            raise ValueError(
                f"{where}, row {row}: label {value!r}{hidden} is not in label_words, which has "
                f"{listed(keys)}; add it there, or leave such examples out of the data"
            )
    return [class_of[value] for value in values]


def _values(
    rows: Rows, where: str, label: str, keys: list[Any], class_names: Sequence[str] | None
) -> dict[Any, int]:
    """Class by what stands in the label column: the labels of ``label_words``, or a ``ClassLabel``'s numbers.

    An integer label also goes by its spelling, which is what a CSV file has; and where a split names its classes, by
    its name, whatever number another split gives that name.
    """
    feature = class_label(rows, label)
    class_of: dict[Any, int] = {}
    for number, key in enumerate(keys):
        by_number = isinstance(key, int)
        name = key
        if by_number:
            name = class_names[key] if class_names is not None and 0 <= key < len(class_names) else None
        if feature is None:
            spellings = [key, str(int(key)), name] if by_number else [key]
            class_of |= {value: number for value in spellings if value is not None and value not in class_of}
        elif name is None:
            class_of[key] = number
        elif name in feature.names:
            class_of[feature.str2int(name)] = number
        else:
            raise ValueError(
                f"label {key!r} of label_words is {'called ' + repr(name) + ', which is ' if by_number else ''}"
                f"not a label of {where}; {near(name, feature.names)}"
            )
    return class_of
