"""From the data a user has to rendered texts and numbered classes, or to one sentence on what is wrong and where.

Classes are numbered by their labels: integers in rising order, strings in the order of ``label_words``. Of two classes
the second, class 1, is what the whole package calls label 1: an activation above its baseline is read as "label 1", a
positive score speaks for it, and a logit diff is its logit minus that of class 0. :func:`order_labels` decides it, and
nothing else does; of more classes each in turn is label 1
(:func:`~tl_skillneurons.tasks.subtasks.against_rest`).
"""

import string
from collections.abc import Mapping
from typing import Any

from datasets import ClassLabel, Dataset

from tl_skillneurons._checks import listed, near
from tl_skillneurons.tasks.columns import Columns, Rows, column, column_names

HIDDEN = -1
"""The label that the Hub's benchmarks give to examples whose label is kept secret."""


def parse_template(template: str) -> list[tuple[str, str | None]]:
    """Pairs of literal text and the column that follows it."""
    try:
        parsed = list(string.Formatter().parse(template))
    except ValueError as error:
        raise ValueError(
            f"template {template!r} can't be read: {error}; write columns as {{column}}"
        ) from error
    for _, name, spec, conversion in parsed:
        if spec or conversion:
            raise ValueError(
                f"template {template!r} must have plain fields, got a format or conversion on {name!r}"
            )
    if all(name is None for _, name, _, _ in parsed):
        raise ValueError(f"template {template!r} has no field; name at least one column, such as {{text}}")
    return [(literal, name) for literal, name, _, _ in parsed]


def order_labels(label_words: Mapping[Any, Any]) -> list[Any]:
    """The labels in class order: integers rising, strings as given. The second of two is label 1.

    Raises:
        ValueError: For fewer than two.
        TypeError: For labels of which some are integers and others strings, or of another kind.

    Example:
        >>> order_labels({1: " good", 0: " bad"}), order_labels({"good": " good", "bad": " bad"})
        ([0, 1], ['good', 'bad'])
    """
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
        if not isinstance(rows, Dataset) and not is_rows:
            raise TypeError(
                "data must be a DatasetDict, a dict of split name to Dataset or list of dicts, one Dataset "
                f"or one list of dicts (nothing that streams), got {type(rows).__name__} for {name!r}"
            )
    return splits


def read(rows: Rows, where: str, parts: list[tuple[str, str | None]], label: str, keys: list[Any]) -> Columns:
    """The rendered texts and the classes of one split."""
    if not len(rows):
        raise ValueError(f"{where} is empty; give it examples or choose another split with roles=")
    names = column_names(rows)
    for _, name in parts:
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
    return {"text": _render(rows, where, parts), "label": _classes(rows, where, label, keys)}


def group_values(rows: Rows, where: str, group: str) -> list[Any]:
    """What tells the groups of one split apart."""
    names = column_names(rows)
    if group not in names:
        raise ValueError(
            f"group column {group!r} is not in {where}, which has the columns {listed(names)}; {near(group, names)}"
        )
    values = column(rows, group)
    for row, value in enumerate(values):
        if not isinstance(value, (int, str)):
            raise ValueError(f"{where}, row {row}: a group must be an integer or a string, got {value!r}")
    return values


def pair_values(rows: Rows, where: str, pair: str, labels: list[int]) -> list[int | str | None] | None:
    """What two twins of one split share, ``None`` for an example without a twin; ``None`` without such a column.

    Raises:
        ValueError: For values of another kind, more than two examples of one value, or two of one label.
    """
    if pair not in column_names(rows):
        return None
    values = column(rows, pair)
    seen: dict[int | str, list[int]] = {}
    for row, value in enumerate(values):
        if value is None:
            continue
        if not isinstance(value, (int, str)):
            raise ValueError(
                f"{where}, row {row}: a pair must be an integer, a string or None, got {value!r}; give pair=None "
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


def _render(rows: Rows, where: str, parts: list[tuple[str, str | None]]) -> list[str]:
    columns: dict[str | None, list[Any]] = {name: column(rows, name) for _, name in parts if name is not None}
    for name, values in columns.items():
        if None in values:
            raise ValueError(
                f"{where}, row {values.index(None)}: column {name!r} is empty (None); drop such examples"
            )
    columns[None] = [""] * len(rows)
    literals = [literal for literal, _ in parts]
    fields = zip(*(columns[name] for _, name in parts), strict=True)
    texts = ["".join(f"{a}{b}" for a, b in zip(literals, values, strict=True)) for values in fields]
    for row, text in enumerate(texts):
        if not text.strip():
            raise ValueError(f"{where}, row {row}: the text is empty; drop such examples")
    return texts


def _classes(rows: Rows, where: str, label: str, keys: list[Any]) -> list[int]:
    class_of = {value: i for i, value in enumerate(_values(rows, where, label, keys))}
    values = column(rows, label)
    for row, value in enumerate(values):
        if value is None:
            raise ValueError(
                f"{where}, row {row} has no label (None in column {label!r}); drop such examples"
            )
        if not isinstance(value, (int, float, str)):
            raise TypeError(
                f"{where}, row {row}: a label must be an integer or a string, got {type(value).__name__}"
            )
        if value not in class_of:
            hidden = " (the Hub's mark for a hidden label)" if value == HIDDEN else ""
            raise ValueError(
                f"{where}, row {row}: label {value!r}{hidden} is not in label_words, which has "
                f"{listed(keys)}; add it there, or leave such examples out of the data"
            )
    return [class_of[value] for value in values]


def _values(rows: Rows, where: str, label: str, keys: list[Any]) -> list[Any]:
    """What stands in the label column for each label of ``label_words``."""
    feature = rows.features[label] if isinstance(rows, Dataset) else None
    if not isinstance(feature, ClassLabel) or isinstance(keys[0], int):
        return keys
    for key in keys:
        if key not in feature.names:
            raise ValueError(
                f"label {key!r} of label_words is not a label of {where}; {near(key, feature.names)}"
            )
    return [feature.str2int(key) for key in keys]
