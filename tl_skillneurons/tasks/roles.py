"""Which examples serve which role: splits chosen by name, missing roles made, no text in two roles.

The roles and what they are for: see :mod:`~tl_skillneurons.tasks.task`.
"""

import itertools
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from tl_skillneurons._checks import listed, near, require_option
from tl_skillneurons.tasks.columns import Columns, Rows, column, column_names, each_once, plain, take
from tl_skillneurons.tasks.drawing import stratified
from tl_skillneurons.tasks.reading import HIDDEN

ROLES = ("train", "baseline", "select", "report")
"""What examples are used for, earliest first."""

SPLIT_NAMES = {"train": ("train",), "select": ("validation", "dev", "valid"), "report": ("test",)}
"""The split names that are recognised for each role."""


_BOUND = ("group", "pair")
"""Columns whose equal values never stand in two roles."""


def choose_splits(
    splits: dict[str, Rows], roles: dict[str, Any], label: str, keys: list[Any]
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
            f"no split is called 'train', got {listed(splits)}; say which serve by "
            "roles={'train': ..., 'select': ..., 'report': ...}"
        )
    chosen.setdefault("baseline", chosen["train"])
    unused = set(splits) - set(itertools.chain.from_iterable(chosen.values())) - taken
    notes += [f"split {name!r} is not used." for name in splits if name in unused]
    return chosen, notes


def _given_roles(splits: dict[str, Rows], roles: dict[str, Any]) -> dict[str, tuple[str, ...]]:
    given = {}
    for role, names in roles.items():
        require_option(role, "a role", ROLES)
        given[role] = (names,) if isinstance(names, str) else tuple(dict.fromkeys(names))
        if not given[role]:
            raise ValueError(f"role {role!r} must have at least one split, got {names!r}")
        for name in given[role]:
            if name not in splits:
                raise ValueError(
                    f"there is no split {name!r} for role {role!r}; the splits are {listed(splits)}; "
                    f"{near(name, splits)}"
                )
    return given


def _is_hidden(rows: Rows, label: str, keys: list[Any]) -> bool:
    if HIDDEN in keys or label not in column_names(rows):
        return False
    return len(rows) > 0 and all(value == HIDDEN for value in column(rows, label))


def where(split: str, chosen: Mapping[str, Sequence[str]]) -> str:
    """What to call a split in messages."""
    roles = [role for role in ROLES if split in chosen.get(role, ())]
    return f"split {split!r} (role {' and '.join(roles)})"


def make_roles(
    chosen: dict[str, tuple[str, ...]], tables: dict[str, Columns], seed: int
) -> tuple[dict[str, Columns], list[str]]:
    """The examples of every role; train and baseline are one object where they are the same examples."""
    columns = {role: _joined([tables[name] for name in names]) for role, names in chosen.items()}
    share_train = chosen["baseline"] == chosen["train"]
    source = {role: " and ".join(map(repr, names)) for role, names in chosen.items()}
    notes = []
    if "select" not in columns and "report" not in columns:
        columns["train"], columns["select"], columns["report"] = stratified(
            columns["train"], (60, 20, 20), seed
        )
        notes.append(
            f"split {source['train']} is divided into 60% train, 20% select and 20% report "
            f"(seed {seed}, by label)."
        )
    elif "select" not in columns:
        columns["train"], columns["select"] = stratified(columns["train"], (80, 20), seed)
        notes.append(f"20% of split {source['train']} is held out as select (seed {seed}, by label).")
    elif "report" not in columns:
        columns["select"], columns["report"] = stratified(columns["select"], (50, 50), seed)
        notes.append(f"split {source['select']} is halved into select and report (seed {seed}, by label).")
    if share_train:
        columns["baseline"] = columns["train"]
    return columns, notes


def _joined(tables: list[Columns]) -> Columns:
    return {name: list(itertools.chain.from_iterable(table[name] for table in tables)) for name in tables[0]}


def settle_overlap(columns: dict[str, Columns], *, refuse: bool) -> tuple[dict[str, Columns], dict[str, int]]:
    """Drop from each role the texts, the groups and the pairs that also stand in a later one, or refuse."""
    keys = each_once(columns, _keys)
    held = {role: set(itertools.chain.from_iterable(keys[role])) for role in ROLES}
    later = {"report": set(), "select": held["report"]}
    later["train"] = later["baseline"] = held["select"] | held["report"]
    doubled = {
        role: [i for i, own in enumerate(keys[role]) if not later[role].isdisjoint(own)] for role in ROLES
    }
    dropped = {role: len(rows) for role, rows in doubled.items()}
    if refuse and any(dropped.values()):
        role = next(role for role in ROLES if dropped[role])
        counts = ", ".join(f"{n} of {role}" for role, n in dropped.items() if n)
        example = repr(textwrap.shorten(columns[role]["text"][doubled[role][0]], 80, placeholder=" ..."))
        what = " or ".join(["text", *(f"its {name}" for name in _BOUND if name in columns[role])])
        raise ValueError(
            f"{what} stands in two roles: {counts} also stand in a later role, such as {example} of {role}; "
            "drop='overlap' drops them from the earlier role"
        )
    kept = {role: sorted(set(range(len(keys[role]))) - set(rows)) for role, rows in doubled.items()}
    settled = {role: take(columns[role], kept[role]) if dropped[role] else columns[role] for role in ROLES}
    if columns["baseline"] is columns["train"]:
        settled["baseline"] = settled["train"]
    return settled, dropped


def _keys(table: Columns) -> list[tuple[tuple[str, str | int], ...]]:
    """What may not stand in two roles: each example's text up to white space, its group and its pair."""
    keys = [[("text", text) for text in plain(table["text"])]]
    keys += [[(name, number) for number in table[name]] for name in _BOUND if name in table]
    return list(zip(*keys, strict=True))
