"""From data as people have it to the parts of a task: frames, lists, missing templates, labels and names.

What is not said is found where only one answer is possible, and noted; where several are, the choice is refused with
the candidates named.
"""

import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from datasets import Dataset

from tl_skillneurons._checks import listed, near, require_option, require_seed
from tl_skillneurons.tasks.chat import Chat, require_plain
from tl_skillneurons.tasks.columns import (
    Rows,
    as_dataset,
    column,
    column_names,
    each_once,
    is_missing,
    plain_list,
)
from tl_skillneurons.tasks.groups import notes_on_units, with_groups, with_pairs
from tl_skillneurons.tasks.reading import (
    HIDDEN,
    Field,
    as_splits,
    class_label,
    class_names_of,
    group_values,
    notes_on_names,
    order_labels,
    pair_values,
    parse_template,
    read,
    require_label_kind,
)
from tl_skillneurons.tasks.roles import choose_splits, make_roles, settle_overlap, where

_MOST_LABELS = 100
DROPPED = ("overlap",)
"""What is left out where nobody says otherwise."""
NAME = "task"
"""What a task is called in tables where neither the caller nor the data says."""


def assembled(
    data: Any,
    *,
    template: str | None,
    label: str,
    label_words: Mapping[Any, Any] | None,
    name: str | None,
    roles: Mapping[str, Any] | None,
    seed: int,
    drop: str | Sequence[str],
    group: str | None,
    near_duplicates: float | int | None,
    pair: str | None,
    chat: Chat | None,
) -> dict[str, Any]:
    """The fields of the task that ``data`` holds; :meth:`~tl_skillneurons.Task.from_datasets` says what each is."""
    left_out = {
        require_option(one, "drop", ("overlap", "empty"))
        for one in ([drop] if isinstance(drop, str) else drop)
    }
    require_seed(seed)
    splits = as_splits(data)
    notes: list[str] = []
    if label_words is None:
        keys = labels_found(splits, label)
        notes.append(
            "classes are numbered as their labels "
            + ("sort" if _unordered(splits, label) else "are declared")
            + ": "
            f"{', '.join(f'{key!r} is {i}' for i, key in enumerate(keys))}."
        )
        words = {}
    else:
        keys = order_labels(label_words)
        words = _words(label_words, keys)
    chosen, said = choose_splits(splits, dict(roles or {}), label, keys)
    used = {split: splits[split] for split in dict.fromkeys(itertools.chain.from_iterable(chosen.values()))}
    if template is None:
        template, how = found_template(used, (label, group, pair))
        notes += how
    require_plain(chat, {name: None for rows in used.values() for name in column_names(rows)})
    parts = parse_template(template)
    if "empty" in left_out:
        used, how = without_empty(used, parts, label)
        notes += how
    names, made_of_names = class_names_of(used, label), notes_on_names(used, label)
    tables = {
        split: read(rows, where(split, chosen), parts, label, keys, names) for split, rows in used.items()
    }
    given = None if group is None else {n: group_values(used[n], where(n, chosen), group) for n in tables}
    tables = with_groups(tables, given, near_duplicates)
    if pair is not None:
        twins = {n: pair_values(used[n], where(n, chosen), pair, tables[n]["label"]) for n in tables}
        tables = with_pairs(tables, twins)
    columns, made = make_roles(chosen, tables, seed)
    columns, dropped = settle_overlap(columns, refuse="overlap" not in left_out)
    made += notes_on_units(columns)
    return {
        "name": _name_of(used) if name is None else name,
        "label_words": words,
        "splits": each_once(columns, as_dataset),
        "label_names": tuple(keys),
        "template": template,
        "dropped": dropped,
        "notes": (*said, *notes, *made_of_names, *made),
        "chat": chat,
    }


def rows_of(
    texts: Iterable[str | None],
    labels: Iterable[Any],
    label_names: Sequence[str] | Mapping[Any, str] | None,
    groups: Iterable[Any] | None,
    pairs: Iterable[Any] | None,
) -> list[dict[str, Any]]:
    """Texts, labels and what they belong to, side by side, as rows; labels by their names where they have any.

    Raises:
        TypeError: For one string in the place of several texts.
        ValueError: When they differ in number, or a label has no name.
    """
    if isinstance(texts, str):
        raise TypeError(f"texts must be a list of strings, got one string {texts[:40]!r}; give [text, ...]")
    columns = {"text": texts, "label": labels, "group": groups, "pair": pairs}
    lists = {name: plain_list(values) for name, values in columns.items() if values is not None}
    sizes = {name: len(values) for name, values in lists.items()}
    if len(set(sizes.values())) > 1:
        told = ", ".join(f"{n} {name}s" for name, n in sizes.items())
        raise ValueError(f"each text needs one label (and one group or pair, where given), got {told}")
    if label_names is not None:
        lists["label"] = _named(lists["label"], label_names)
    return [dict(zip(lists, row, strict=True)) for row in zip(*lists.values(), strict=True)]


def ordered_names(label_names: Sequence[str] | Mapping[Any, str]) -> list[str]:
    """The names in class order: as listed, or as the labels that they are for are ordered."""
    if isinstance(label_names, Mapping):
        return [label_names[key] for key in order_labels(label_names)]
    return list(label_names)


def named_words(
    label_words: Mapping[Any, Any] | None, label_names: Sequence[str] | Mapping[Any, str]
) -> dict[Any, Any]:
    """Label words by the labels' names, in class order, whether they were given by label or by name; ``None`` each
    without.

    Raises:
        ValueError: For a word of no label.
    """
    names = ordered_names(label_names)
    given = {} if label_words is None else label_words
    words = dict(zip(_named(list(given), label_names), given.values(), strict=True))
    return {name: words.get(name) for name in names}


def labels_found(splits: Mapping[str, Rows], label: str) -> list[Any]:
    """The labels that stand in the data: the names of a ``ClassLabel``, integers rising, or strings as they sort.

    Strings that are all spelled integers (as a CSV file has them) are taken for integers. A split whose labels are all
    hidden says nothing.

    Raises:
        TypeError: For labels of another kind, or of both kinds.
        ValueError: Without a column of labels, or for as many labels as measurements have.
    """
    if (names := class_names_of(splits, label)) is not None:
        return list(names)
    found: dict[Any, None] = {}
    for split, rows in splits.items():
        values = column(rows, label) if label in column_names(rows) else []
        for row, value in enumerate(values):
            require_label_kind(value, f"split {split!r}, row {row}")
        there = {one for one in values if not is_missing(one)}
        if there != {HIDDEN}:
            found |= dict.fromkeys(there - {""})
    if not found:
        names_there = list(dict.fromkeys(itertools.chain.from_iterable(map(column_names, splits.values()))))
        if label in names_there:
            raise ValueError(
                f"no example has a label: column {label!r} is empty throughout; fill it, or say which by label="
            )
        raise ValueError(
            f"no label stands in a column {label!r}; the columns are {listed(names_there)}; say which by label=; "
            f"{near(label, names_there)}"
        )
    if len(found) > _MOST_LABELS:
        raise ValueError(
            f"column {label!r} holds {len(found)} different labels, too many to be classes; give label_words for those "
            "that are meant, or say by label= which column holds the classes"
        )
    if all(isinstance(value, str) for value in found):
        numbers = {value: int(value) for value in found if value.removeprefix("-").isdecimal()}
        spelled = all(str(number) == value for value, number in numbers.items())
        return sorted(numbers.values()) if len(numbers) == len(found) and spelled else sorted(found)
    if all(isinstance(value, int) or (isinstance(value, float) and value.is_integer()) for value in found):
        return sorted(map(int, found))
    raise TypeError(
        f"labels must be all integers or all strings, got {listed(sorted(found, key=str)[:5])} in column {label!r}; "
        "give label_words, or say by label= which column holds the classes"
    )


def found_template(splits: Mapping[str, Rows], apart: Iterable[str | None]) -> tuple[str, list[str]]:
    """The template that takes the column ``text``, or the only other column that holds text; and a note on it.

    Args:
        apart: Columns that are no text, whatever they hold: those of labels, groups and pairs.

    Raises:
        ValueError: Where no column holds text, or several do.
    """
    names = [set(column_names(rows)) for rows in splits.values()]
    shared = [name for name in column_names(next(iter(splits.values()))) if all(name in one for one in names)]
    if "text" in shared:
        return "{text}", []
    candidates = [
        name
        for name in shared
        if name not in set(apart) and all(_holds_text(column(rows, name)) for rows in splits.values())
    ]
    if len(candidates) != 1:
        why = "several columns hold text" if candidates else "no column holds text alone"
        ways = " or ".join(f'template="{{{name}}}"' for name in candidates[:4]) or 'template="{column!s}"'
        raise ValueError(
            f"the text of an example must be said, for {why}: {listed(candidates or shared)}; give {ways}, or join "
            'columns, as in template="{title}. {body}"'
        )
    return f"{{{candidates[0]}}}", [f"the text is column {candidates[0]!r}, the only one that holds text."]


def without_empty(
    splits: Mapping[str, Rows], parts: Sequence[Field], label: str
) -> tuple[dict[str, Rows], list[str]]:
    """The splits without the examples that have no text or no label, and how many that were."""
    kept, notes = {}, []
    fields = list(dict.fromkeys(part.column for part in parts if part.column is not None))
    for name, rows in splits.items():
        kept[name] = rows
        if not {label, *fields} <= set(column_names(rows)):
            continue  # what is missing is refused by name where it is read
        cells = list(zip(*(column(rows, field) for field in fields), strict=True))
        no_text = {i for i, row in enumerate(cells) if None in row or not any(map(_is_filled, row))}
        no_label = {
            i for i, value in enumerate(column(rows, label)) if is_missing(value) or not _is_filled(value)
        }
        if no_text or no_label:
            left = [i for i in range(len(rows)) if i not in no_text | no_label]
            kept[name] = rows.select(left) if isinstance(rows, Dataset) else [rows[i] for i in left]
            counts = f"{len(no_text)} without a text, {len(no_label - no_text)} without a label"
            notes.append(
                f"{len(rows) - len(left)} of the {len(rows)} examples of split {name!r} are dropped: {counts}."
            )
    return kept, notes


def _is_filled(value: Any) -> bool:
    return bool(str(value).strip())


def _holds_text(values: Sequence[Any]) -> bool:
    """Whether a column holds strings, and not just spelled numbers."""
    filled = [value for value in values if value is not None]
    if not filled or not all(isinstance(value, str) for value in filled):
        return False
    return not all(_is_number(value) for value in filled if value.strip())


def _is_number(value: str) -> bool:
    try:
        float(value)
    except ValueError:
        return False
    return True


def _named(labels: list[Any], label_names: Sequence[str] | Mapping[Any, str]) -> list[Any]:
    names = dict(label_names) if isinstance(label_names, Mapping) else dict(enumerate(label_names))
    known = {**{name: name for name in names.values()}, **names}
    for place, value in enumerate(labels):
        require_label_kind(value, f"example {place}")
        if value is not None and value not in known:
            raise ValueError(
                f"label {value!r} (example {place}) has no name in label_names, which has {listed(names)} called "
                f"{listed(names.values())}; name every label, or leave such examples out"
            )
    return [None if value is None else known[value] for value in labels]


def _words(label_words: Mapping[Any, Any], keys: Sequence[Any]) -> dict[int, Any]:
    """The word of each class; none of any where the labels stand without words."""
    if all(label_words[key] is None for key in keys):
        return {}
    return {i: label_words[key] for i, key in enumerate(keys)}


def _unordered(splits: Mapping[str, Rows], label: str) -> bool:
    return all(class_label(rows, label) is None for rows in splits.values())


def _name_of(splits: Mapping[str, Rows]) -> str:
    """What the data calls itself."""
    infos = [rows.info.dataset_name for rows in splits.values() if isinstance(rows, Dataset)]
    return next((name for name in infos if name), NAME)
