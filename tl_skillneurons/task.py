"""Labelled text for one classification task: its template, its label words and its split roles.

A role says what examples are used for: ``train`` fits soft prompts, ``baseline`` sets the neurons'
thresholds, ``select`` ranks neurons, and ``report`` is touched only for numbers that are reported. A neuron
picked as the best of thousands on some examples looks better on them than it is, so no text serves two of
train, select and report: what stands in two roles is dropped from the earlier one and counted (published
benchmarks do have this fault). Baseline is usually train itself, as in Wang et al. (2022, section 3).

What this does not catch: near duplicates. Texts are equal when they are equal up to white space.
"""

import hashlib
import itertools
import json
import random
import string
import textwrap
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from datasets import ClassLabel, Dataset, Features, Value

from ._checks import near, require_int, require_option

ROLES = ("train", "baseline", "select", "report")
"""What examples are used for, earliest first; see the module's docstring."""

SPLIT_NAMES = {"train": ("train",), "select": ("validation", "dev", "valid"), "report": ("test",)}
"""The split names that are recognised for each role."""

HIDDEN = -1
"""The label that the Hub's benchmarks give to examples whose label is kept secret."""

Columns = dict[str, list[Any]]
"""Examples as columns of equal length: ``text``, ``label`` and, for twins, ``pair``."""


@dataclass(frozen=True, eq=False)
class Task:
    """Labelled text; make it with :meth:`from_datasets` or :func:`~tl_skillneurons.minimal_pairs`.

    Args:
        name: What the task is called in tables.
        label_words: The word (or its token id) that stands for each class; classes are numbered from 0.
        splits: The examples of each role: ``text`` as rendered, ``label`` (the class) and, for tasks whose
            examples have twins, ``pair`` (the number that two twins share).
        label_names: The labels as the data has them, in class order.
        template: What the texts were rendered with.
        dropped: How many examples each role lost because their text also stands in a later role.
        notes: How the roles were made, one sentence each.

    Raises:
        ValueError: When a role, a column or a class is missing, a text is empty or label words can't tell
            classes apart.
    """

    name: str
    label_words: dict[int, str | int]
    splits: dict[str, Dataset]
    label_names: tuple[int | str, ...]
    template: str = "{text}"
    dropped: dict[str, int] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        _require_classes(self.label_words, self.label_names)
        if sorted(self.splits) != sorted(ROLES):
            raise ValueError(
                f"splits must have exactly the roles {_listed(ROLES)}, got {_listed(self.splits)}"
            )
        for role, dataset in self.splits.items():
            _require_examples(role, dataset, self.label_names, self.dropped.get(role, 0))

    @classmethod
    def from_datasets(
        cls,
        data: Any,
        *,
        template: str,
        label: str = "label",
        label_words: Mapping[Any, Any],
        name: str,
        roles: Mapping[str, Any] | None = None,
        seed: int = 0,
        overlap: str = "drop",
    ) -> "Task":
        """The task that ``data`` holds.

        Splits called train, validation (or dev, valid) and test serve as train and baseline, select, and
        report. What is missing is made, with a note: a lone split is divided 60 to 20 to 20 into train,
        select and report; without test, validation is halved; without validation, 20% of train is held out. A
        test split with hidden labels counts as missing. Everything is drawn by ``seed``, each label for
        itself, so that roles keep the labels' shares.

        Args:
            data: A ``DatasetDict``, a dict of split name to ``Dataset`` or list of dicts, one ``Dataset``, or
                one list of dicts.
            template: The text of an example, with columns in braces: ``"{premise} {hypothesis}"``.
            label: The column of the labels.
            label_words: The word (or its token id) for each label that stands in the column, such as
                ``{0: " negative", 1: " positive"}``. Integer labels become classes in rising order, strings
                in the order given; of a ``ClassLabel`` column either the numbers or the names will do.
            name: What to call the task.
            roles: Role to split name, or several names, where the splits are called something else. Without
                ``"baseline"``, it is whatever train is.
            seed: Draws what is drawn.
            overlap: ``"drop"`` drops text that stands in two roles from the earlier one and counts it;
                ``"refuse"`` makes it an error.

        Raises:
            TypeError: When ``data``, a label or a label word is of a kind that can't be used.
            ValueError: When anything else about the input is wrong; the message says what and where.
        """
        require_option(overlap, "overlap", ("drop", "refuse"))
        parts = _parse_template(template)
        keys = _order_labels(label_words)
        splits = _as_splits(data)
        chosen, notes = _choose_splits(splits, dict(roles or {}), label, keys)
        tables = {
            split: _read(splits[split], _where(split, chosen), parts, label, keys)
            for split in dict.fromkeys(itertools.chain.from_iterable(chosen.values()))
        }
        columns, made = _make_roles(chosen, tables, seed)
        columns, dropped = _settle_overlap(columns, overlap)
        return cls(
            name=name,
            label_words={i: label_words[key] for i, key in enumerate(keys)},
            splits=_as_datasets(columns),
            label_names=tuple(keys),
            template=template,
            dropped=dropped,
            notes=(*notes, *made),
        )

    @property
    def n_classes(self) -> int:
        """How many classes the task has."""
        return len(self.label_words)

    @property
    def n_examples(self) -> dict[str, int]:
        """How many examples each role has."""
        return {role: len(self.splits[role]) for role in ROLES}

    def split(self, role: str) -> Dataset:
        """The examples of ``role``, with the columns ``text`` and ``label``."""
        return self.splits[require_option(role, "role", ROLES)]

    def class_counts(self, role: str) -> list[int]:
        """How many examples of each class ``role`` has."""
        counts = Counter(_columns(self.split(role))["label"])
        return [counts[i] for i in range(self.n_classes)]

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of roles, texts, labels, template and label words; the same in every process."""
        digest = hashlib.sha256()
        words = [self.label_words[i] for i in range(self.n_classes)]
        digest.update(json.dumps([self.template, words]).encode())
        for role in ROLES:
            columns = _columns(self.splits[role])
            digest.update(json.dumps([role, columns["text"], columns["label"]]).encode())
        return digest.hexdigest()

    def pairs(self, role: str) -> list[tuple[str, str]]:
        """The twins of ``role``: each text of class 0 beside its twin of class 1.

        Raises:
            ValueError: When the examples have no twins.
        """
        columns = _columns(self.split(role))
        if "pair" not in columns:
            raise ValueError(
                f"the examples of task {self.name!r} have no twins; tasks made by minimal_pairs "
                "have them, and others whose splits have a column 'pair'"
            )
        twins: dict[Any, dict[int, str]] = {}
        for pair, label, text in zip(columns["pair"], columns["label"], columns["text"], strict=True):
            twins.setdefault(pair, {})[label] = text
        for pair, texts in twins.items():
            if sorted(texts) != [0, 1]:
                raise ValueError(
                    f"pair {pair} of role {role!r} must have classes 0 and 1, got {sorted(texts)}"
                )
        return [(texts[0], texts[1]) for texts in twins.values()]

    def limit(
        self,
        train: int | None = None,
        baseline: int | None = None,
        select: int | None = None,
        report: int | None = None,
        seed: int = 0,
    ) -> "Task":
        """The task with at most so many examples in each role.

        Drawn by ``seed``, keeping the labels' shares as well as rounding allows and twins together. Where
        baseline is train, limiting train alone limits both to the same examples.

        Raises:
            ValueError: When a limit is lower than the number of classes.
        """
        limits = {"train": train, "baseline": baseline, "select": select, "report": report}
        limits = {role: limit for role, limit in limits.items() if limit is not None}
        follows = baseline is None and self._baseline_is_train
        splits, notes = dict(self.splits), []
        for role, limit in limits.items():
            require_int(limit, f"the limit of {role}", minimum=self.n_classes)
            columns = _columns(self.splits[role])
            kept = _draw(columns, limit, seed)
            if len(kept) < len(columns["text"]):
                splits[role] = _as_dataset(_take(columns, kept))
                who = "train and baseline are" if role == "train" and follows else f"{role} is"
                notes.append(
                    f"{who} limited to {len(kept)} of {len(columns['text'])} examples (seed {seed})."
                )
        if follows:
            splits["baseline"] = splits["train"]
        return replace(self, splits=splits, notes=(*self.notes, *notes))

    def binary_subtasks(
        self, scheme: Any = "one_vs_rest", *, rest_word: str | int = " other"
    ) -> list["Task"]:
        """The task as several tasks of two classes; of each, class 1 is what its name mentions first.

        Args:
            scheme: ``"one_vs_rest"`` (each class against all others), ``"pairs"`` (each class against each
                later one, examples of other classes left out), or a list of groupings ``(labels, labels)``,
                where labels are one or several label names, or class ids where the names are strings. By the
                first two, a task that already has two classes stays as it is.
            rest_word: The label word of a group of several labels; where both groups have several, that of
                class 0, while class 1 takes the word of its first label.

        Raises:
            ValueError: When the scheme is unknown, or a grouping names an unknown label, none, or one twice.
        """
        if isinstance(scheme, str):
            require_option(scheme, "scheme", ("one_vs_rest", "pairs"))
            if self.n_classes == 2:
                return [self]
            classes = range(self.n_classes)
            if scheme == "one_vs_rest":
                return [
                    self._against([i], [j for j in classes if j != i], rest_word, rest=True) for i in classes
                ]
            return [self._against([i], [j], rest_word) for i, j in itertools.combinations(classes, 2)]
        return [self._against(*self._groups(grouping), rest_word) for grouping in scheme]

    def _groups(self, grouping: Any) -> tuple[list[int], list[int]]:
        if isinstance(grouping, str) or not isinstance(grouping, Sequence) or len(grouping) != 2:
            raise ValueError(f"a grouping must be two groups of labels, (labels, labels), got {grouping!r}")
        one, other = ([group] if isinstance(group, (int, str)) else list(group) for group in grouping)
        if not one or not other:
            raise ValueError(f"each group must have at least one label, got {grouping!r}")
        classes = [self._class_id(label) for label in (*one, *other)]
        if len(set(classes)) < len(classes):
            raise ValueError(f"each label must stand in a grouping once, got {grouping!r}")
        return classes[: len(one)], classes[len(one) :]

    def _class_id(self, label: int | str) -> int:
        if label in self.label_names:
            return self.label_names.index(label)
        by_name = all(isinstance(name, str) for name in self.label_names)
        if by_name and isinstance(label, int) and 0 <= label < self.n_classes:
            return label
        raise ValueError(
            f"there is no label {label!r} in task {self.name!r}; {near(label, self.label_names)}"
        )

    def _against(self, one: list[int], other: list[int], rest_word: str | int, rest: bool = False) -> "Task":
        class_of = {**dict.fromkeys(other, 0), **dict.fromkeys(one, 1)}
        titles = [
            " or ".join(map(self._title, one)),
            "rest" if rest else " or ".join(map(self._title, other)),
        ]
        names = [
            self.label_names[group[0]] if len(group) == 1 else title
            for group, title in zip((one, other), titles, strict=True)
        ]
        return replace(
            self,
            name=f"{self.name}: {titles[0]} against {titles[1]}",
            label_words={
                0: rest_word if len(other) > 1 else self.label_words[other[0]],
                1: rest_word if len(one) > 1 and len(other) == 1 else self.label_words[one[0]],
            },
            label_names=(names[1], names[0]),
            splits=_each_once(self.splits, lambda dataset: _regroup(dataset, class_of)),
        )

    def _title(self, class_id: int) -> str:
        name, word = self.label_names[class_id], self.label_words[class_id]
        return word.strip() if isinstance(name, int) and isinstance(word, str) else str(name)

    @property
    def _baseline_is_train(self) -> bool:
        train, baseline = self.splits["train"], self.splits["baseline"]
        return train is baseline or _columns(train) == _columns(baseline)


def _require_classes(label_words: dict[int, str | int], label_names: tuple[int | str, ...]) -> None:
    n_classes = len(label_words)
    if n_classes < 2:
        raise ValueError(f"a task needs at least two labels, got {n_classes} in label_words")
    if sorted(label_words) != list(range(n_classes)) or len(label_names) != n_classes:
        raise ValueError(
            "label_words must number the classes from 0 and label_names name each, "
            f"got {label_words} and {label_names}"
        )
    for word in label_words.values():
        if isinstance(word, bool) or not isinstance(word, (int, str)):
            raise TypeError(f"a label word must be a string or a token id, got {word!r}")
        if word == "" or (isinstance(word, int) and word < 0):
            raise ValueError(f"a label word must be a word or a token id of at least 0, got {word!r}")
    if len(set(label_words.values())) < n_classes:
        raise ValueError(f"each class needs a label word of its own, got {_listed(label_words.values())}")


def _require_examples(role: str, dataset: Dataset, label_names: tuple[int | str, ...], dropped: int) -> None:
    missing = {"text", "label"} - set(dataset.column_names)
    if missing:
        raise ValueError(
            f"role {role!r} must have the columns 'text' and 'label', got {_listed(dataset.column_names)}"
        )
    lost = f" once {dropped} examples whose text also stands in a later role are dropped" if dropped else ""
    if not len(dataset):
        raise ValueError(f"role {role!r} is left empty{lost}; give it other examples")
    columns = _columns(dataset)
    for row, text in enumerate(columns["text"]):
        if not (text or "").strip():
            raise ValueError(f"role {role!r}, row {row}: the text is empty; drop such examples")
    found = set(columns["label"])
    outside = found - set(range(len(label_names)))
    if outside:
        raise ValueError(
            f"role {role!r}: classes must be 0 to {len(label_names) - 1}, got {_listed(sorted(outside))}"
        )
    absent = [name for i, name in enumerate(label_names) if i not in found]
    if absent:
        raise ValueError(
            f"role {role!r} has no example of label {_listed(absent)}{lost}; each role needs every label"
        )


def _listed(names: Iterable[Any]) -> str:
    return ", ".join(map(repr, names)) or "none"


# Reading: template, labels, rows


def _parse_template(template: str) -> list[tuple[str, str | None]]:
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


def _order_labels(label_words: Mapping[Any, Any]) -> list[Any]:
    keys = list(label_words)
    if len(keys) < 2:
        raise ValueError(f"a task needs at least two labels, got {len(keys)} in label_words")
    if all(isinstance(key, int) for key in keys):
        return sorted(keys)
    if all(isinstance(key, str) for key in keys):
        return keys
    raise TypeError(f"the labels in label_words must be all integers or all strings, got {_listed(keys)}")


def _as_splits(data: Any) -> dict[str, Any]:
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


def _names(rows: Any) -> list[str]:
    return (
        rows.column_names
        if isinstance(rows, Dataset)
        else list(dict.fromkeys(key for row in rows for key in row))
    )


def _column(rows: Any, name: str) -> list[Any]:
    return (
        list(rows.with_format(None)[name][:])
        if isinstance(rows, Dataset)
        else [row.get(name) for row in rows]
    )


def _where(split: str, chosen: Mapping[str, Sequence[str]]) -> str:
    roles = [role for role in ROLES if split in chosen.get(role, ())]
    return f"split {split!r} (role {' and '.join(roles)})"


def _read(rows: Any, where: str, parts: list[tuple[str, str | None]], label: str, keys: list[Any]) -> Columns:
    """The rendered texts and the classes of one split."""
    if not len(rows):
        raise ValueError(f"{where} is empty; give it examples or choose another split with roles=")
    names = _names(rows)
    for _, name in parts:
        if name is not None and name not in names:
            raise ValueError(
                f"template field {name!r} is not in {where}, which has the columns {_listed(names)}; "
                f"{near(name, names)}"
            )
    if label not in names:
        raise ValueError(
            f"label column {label!r} is not in {where}, which has the columns {_listed(names)}; "
            f"{near(label, names)}"
        )
    return {"text": _render(rows, where, parts), "label": _classes(rows, where, label, keys)}


def _render(rows: Any, where: str, parts: list[tuple[str, str | None]]) -> list[str]:
    columns: dict[str | None, list[Any]] = {
        name: _column(rows, name) for _, name in parts if name is not None
    }
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


def _classes(rows: Any, where: str, label: str, keys: list[Any]) -> list[int]:
    class_of = {value: i for i, value in enumerate(_values(rows, where, label, keys))}
    values = _column(rows, label)
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
                f"{_listed(keys)}; add it there, or leave such examples out of the data"
            )
    return [class_of[value] for value in values]


def _values(rows: Any, where: str, label: str, keys: list[Any]) -> list[Any]:
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


# Roles


def _choose_splits(
    splits: dict[str, Any], roles: dict[str, Any], label: str, keys: list[Any]
) -> tuple[dict[str, tuple[str, ...]], list[str]]:
    """Which splits serve each role, and notes on that; a role that has to be made is left out."""
    chosen = _given_roles(splits, roles)
    notes = []
    if not roles and len(splits) == 1:
        chosen["train"] = tuple(splits)
    taken = set(itertools.chain.from_iterable(chosen.values()))
    for role, names in SPLIT_NAMES.items():
        for name in names:
            if role in chosen or name not in splits or name in taken:
                continue
            if role != "train" and _is_hidden(splits[name], label, keys):
                notes.append(f"split {name!r} is set aside: its labels are hidden (all are {HIDDEN}).")
                taken.add(name)
            else:
                chosen[role] = (name,)
    if "train" not in chosen:
        raise ValueError(
            f"no split is called 'train', got {_listed(splits)}; say which serve by "
            "roles={'train': ..., 'select': ..., 'report': ...}"
        )
    chosen.setdefault("baseline", chosen["train"])
    unused = set(splits) - set(itertools.chain.from_iterable(chosen.values())) - taken
    notes += [f"split {name!r} is not used." for name in splits if name in unused]
    return chosen, notes


def _given_roles(splits: dict[str, Any], roles: dict[str, Any]) -> dict[str, tuple[str, ...]]:
    given = {}
    for role, names in roles.items():
        require_option(role, "a role", ROLES)
        given[role] = (names,) if isinstance(names, str) else tuple(dict.fromkeys(names))
        if not given[role]:
            raise ValueError(f"role {role!r} must have at least one split, got {names!r}")
        for name in given[role]:
            if name not in splits:
                raise ValueError(
                    f"there is no split {name!r} for role {role!r}; the splits are {_listed(splits)}; "
                    f"{near(name, splits)}"
                )
    return given


def _is_hidden(rows: Any, label: str, keys: list[Any]) -> bool:
    if HIDDEN in keys or label not in _names(rows):
        return False
    return len(rows) > 0 and all(value == HIDDEN for value in _column(rows, label))


def _make_roles(
    chosen: dict[str, tuple[str, ...]], tables: dict[str, Columns], seed: int
) -> tuple[dict[str, Columns], list[str]]:
    """The examples of every role; train and baseline are one object where they are the same examples."""
    columns = {role: _joined([tables[name] for name in names]) for role, names in chosen.items()}
    share_train = chosen["baseline"] == chosen["train"]
    source = {role: " and ".join(map(repr, names)) for role, names in chosen.items()}
    notes = []
    if "select" not in columns and "report" not in columns:
        columns["train"], columns["select"], columns["report"] = _stratified(
            columns["train"], (60, 20, 20), seed
        )
        notes.append(
            f"split {source['train']} is divided into 60% train, 20% select and 20% report "
            f"(seed {seed}, by label)."
        )
    elif "select" not in columns:
        columns["train"], columns["select"] = _stratified(columns["train"], (80, 20), seed)
        notes.append(f"20% of split {source['train']} is held out as select (seed {seed}, by label).")
    elif "report" not in columns:
        columns["select"], columns["report"] = _stratified(columns["select"], (50, 50), seed)
        notes.append(f"split {source['select']} is halved into select and report (seed {seed}, by label).")
    if share_train:
        columns["baseline"] = columns["train"]
    return columns, notes


def _joined(tables: list[Columns]) -> Columns:
    return {
        name: list(itertools.chain.from_iterable(table[name] for table in tables))
        for name in ("text", "label")
    }


def _settle_overlap(columns: dict[str, Columns], overlap: str) -> tuple[dict[str, Columns], dict[str, int]]:
    """Drop from each role the texts that also stand in a later one, or refuse."""
    keys = _each_once(columns, lambda table: [" ".join(text.split()) for text in table["text"]])
    later = {"report": set(), "select": set(keys["report"])}
    later["train"] = later["baseline"] = later["select"] | set(keys["select"])
    doubled = {role: [i for i, key in enumerate(keys[role]) if key in later[role]] for role in ROLES}
    dropped = {role: len(rows) for role, rows in doubled.items()}
    if overlap == "refuse" and any(dropped.values()):
        role = next(role for role in ROLES if dropped[role])
        counts = ", ".join(f"{n} of {role}" for role, n in dropped.items() if n)
        example = repr(textwrap.shorten(columns[role]["text"][doubled[role][0]], 80, placeholder=" ..."))
        raise ValueError(
            f"text stands in two roles: {counts} also stand in a later role, such as {example} of {role}; "
            "overlap='drop' drops them from the earlier role"
        )
    kept = {role: sorted(set(range(len(keys[role]))) - set(rows)) for role, rows in doubled.items()}
    settled = {role: _take(columns[role], kept[role]) if dropped[role] else columns[role] for role in ROLES}
    if columns["baseline"] is columns["train"]:
        settled["baseline"] = settled["train"]
    return settled, dropped


# Drawing


def apportion(n: int, weights: Sequence[int]) -> list[int]:
    """``n`` divided in proportion to ``weights`` by largest remainders, at least 1 each if ``n`` allows."""
    total = sum(weights)
    counts = [n * weight // total for weight in weights]
    by_remainder = sorted(range(len(weights)), key=lambda i: (-(n * weights[i] % total), i))
    for i in by_remainder[: n - sum(counts)]:
        counts[i] += 1
    while n >= len(weights) and min(counts) == 0:
        counts[counts.index(max(counts))] -= 1
        counts[counts.index(0)] += 1
    return counts


def _stratified(columns: Columns, shares: Sequence[int], seed: int) -> list[Columns]:
    """The examples divided by ``shares``, each class for itself, in the order they came."""
    generator = random.Random(seed)
    rows: list[list[int]] = [[] for _ in shares]
    for members in _by_class(columns):
        generator.shuffle(members)
        start = 0
        for part, count in zip(rows, apportion(len(members), shares), strict=True):
            part += members[start : start + count]
            start += count
    return [_take(columns, sorted(part)) for part in rows]


def _draw(columns: Columns, limit: int, seed: int) -> list[int]:
    """At most ``limit`` rows with the classes' shares kept, whole pairs only where there are pairs."""
    if limit >= len(columns["text"]):
        return list(range(len(columns["text"])))
    generator = random.Random(seed)
    if "pair" in columns:
        pairs = generator.sample(list(dict.fromkeys(columns["pair"])), limit // 2)
        kept = set(pairs)
        return [i for i, pair in enumerate(columns["pair"]) if pair in kept]
    members = _by_class(columns)
    counts = apportion(limit, [len(rows) for rows in members])
    return sorted(
        i for rows, count in zip(members, counts, strict=True) for i in generator.sample(rows, count)
    )


def _by_class(columns: Columns) -> list[list[int]]:
    members: dict[int, list[int]] = {label: [] for label in sorted(set(columns["label"]))}
    for i, label in enumerate(columns["label"]):
        members[label].append(i)
    return list(members.values())


# Between datasets and columns


def _columns(dataset: Dataset) -> Columns:
    names = [name for name in ("text", "label", "pair") if name in dataset.column_names]
    return {name: _column(dataset, name) for name in names}


def _take(columns: Columns, rows: Sequence[int]) -> Columns:
    return {name: [values[i] for i in rows] for name, values in columns.items()}


def _as_dataset(columns: Columns) -> Dataset:
    types = {"text": Value("string"), "label": Value("int64"), "pair": Value("int64")}
    return Dataset.from_dict(columns, features=Features({name: types[name] for name in columns}))


def _as_datasets(columns: Mapping[str, Columns]) -> dict[str, Dataset]:
    return _each_once(columns, _as_dataset)


def _each_once(by_role: Mapping[str, Any], function: Callable[[Any], Any]) -> dict[str, Any]:
    """``function`` of every role's value; roles that share a value share the result."""
    results: dict[int, Any] = {}
    for value in by_role.values():
        if id(value) not in results:
            results[id(value)] = function(value)
    return {role: results[id(value)] for role, value in by_role.items()}


def _regroup(dataset: Dataset, class_of: dict[int, int]) -> Dataset:
    columns = _columns(dataset)
    kept = _take(columns, [i for i, label in enumerate(columns["label"]) if label in class_of])
    return _as_dataset({**kept, "label": [class_of[label] for label in kept["label"]]})
