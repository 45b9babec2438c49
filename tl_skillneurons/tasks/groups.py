"""Examples that belong together, and so to one role and to one unit: the same source, nearly the same words, or twins.

Two texts are near-duplicates when the sets of their three-word sequences (case and punctuation left out,
:mod:`~tl_skillneurons._words`) have a Jaccard similarity of at least a threshold; texts without any word, when they are
equal; what is near to the same text is in the same group. Found exactly:
two sets so similar must share one of the few rarest sequences of each (Chaudhuri et al., 2006, prefix filter).

What it does not show: paraphrases, which share meaning and no words, are not found.
"""

import math
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from tl_skillneurons._words import words_of
from tl_skillneurons.stats.units import Units, components
from tl_skillneurons.tasks.columns import Columns, plain

_N_WORDS = 3


def near_duplicates(texts: list[str], threshold: float | int = 0.8) -> list[int]:
    """The number of each text's group; texts of a group have the number of its first.

    Raises:
        ValueError: For a threshold outside (0, 1].

    Example:
        >>> near_duplicates(["I liked this film a lot", "A dull plot", "i liked this film, a lot!"])
        [0, 1, 0]
    """
    if not 0 < threshold <= 1:
        raise ValueError(f"near_duplicates must be a similarity in (0, 1], got {threshold}")
    sets = [_sequences(text) for text in texts]
    frequency = Counter(sequence for one in sets for sequence in one)
    holders: dict[tuple[str, ...], list[int]] = {}
    near: list[tuple[int, int]] = []
    for i, own in enumerate(sets):
        rarest_first = sorted(own, key=lambda sequence: (frequency[sequence], sequence))
        n_prefix = len(own) - math.ceil(threshold * len(own) - 1e-9) + 1
        candidates: set[int] = set()
        for sequence in rarest_first[:n_prefix]:
            candidates.update(holders.get(sequence, ()))
            holders.setdefault(sequence, []).append(i)
        for j in candidates:
            if len(own & sets[j]) >= threshold * len(own | sets[j]) - 1e-9:
                near.append((i, j))
    return components(len(texts), near)


def with_groups(
    tables: dict[str, Columns], given: dict[str, list[Any]] | None, threshold: float | int | None
) -> dict[str, Columns]:
    """The tables with a column ``group``: equal values of ``given``, near-duplicates, or both joined."""
    if given is None and threshold is None:
        return tables
    texts = [text for table in tables.values() for text in table["text"]]
    near = list(range(len(texts))) if threshold is None else near_duplicates(texts, threshold)
    if given is not None:
        values = [value for name in tables for value in given[name]]
        near = Units.of([near, values]).member.tolist()
    groups = iter(near)
    return {name: {**table, "group": [next(groups) for _ in table["text"]]} for name, table in tables.items()}


def with_pairs(
    tables: dict[str, Columns], given: dict[str, list[int | str | None] | None]
) -> dict[str, Columns]:
    """The tables with a column ``pair`` if any has twins: a number that two twins share and nothing else has."""
    if not any(given.values()):
        return tables
    number: dict[Hashable, int] = {}
    numbered = {}
    for name, table in tables.items():
        values = given[name] or [None] * len(table["text"])
        keys = [(name, row) if value is None else value for row, value in enumerate(values)]
        numbered[name] = {**table, "pair": [number.setdefault(key, len(number)) for key in keys]}
    return numbered


def units_of(columns: Columns) -> Units:
    """Which of a role's examples belong together: those of one word pair or group, twins, and equal texts."""
    n = len(columns["text"])
    belonging = {
        "word pair": columns.get("unit"),
        "group": columns.get("group"),
        "pair of twins": columns.get("pair"),
        "text": plain(columns["text"]),
    }
    joined: list[Sequence[Hashable]] = [range(n)]
    named: list[str] = []
    units = Units.of(joined)
    for what, column in belonging.items():
        if column is None:
            continue
        coarser = Units.of([*joined, column])
        if len(coarser) < len(units):  # it joins what nothing before has joined
            joined.append(column)
            named.append(what)
            units = coarser
    return Units(units.member, " and ".join(named) or "text", _twins(columns) if "pair" in columns else None)


def groups_of(columns: Columns) -> list[int]:
    """The number of each example's group, which a split of one role keeps whole: those of one ``group``, and equal
    texts. Twins and texts of one word pair may be parted, as the roles themselves share words."""
    bound = [columns[name] for name in ("group",) if name in columns]
    return Units.of([*bound, plain(columns["text"])]).member.tolist()


def notes_on_units(columns: Mapping[str, Columns]) -> list[str]:
    """One sentence for each role that holds a text twice, or twins that have lost theirs."""
    notes = []
    for role, table in columns.items():
        if role == "baseline" and table is columns["train"]:
            continue
        n = len(table["text"])
        if again := n - len(set(plain(table["text"]))):
            notes.append(f"{again} of the {n} texts of {role} stand there already: equal texts are one unit.")
        if "pair" in table and (alone := int((_twins(table) < 0).sum())):
            notes.append(f"{alone} of the {n} texts of {role} have no twin.")
    return notes


def _twins(columns: Columns) -> Int[Tensor, " example"]:
    """The number that two twins share; -1 for what has no twin of another label."""
    labels: dict[int, list[int]] = {}
    for pair, label in zip(columns["pair"], columns["label"], strict=True):
        labels.setdefault(pair, []).append(label)
    twins = {pair for pair, both in labels.items() if len(both) == 2 == len(set(both))}
    return torch.tensor([pair if pair in twins else -1 for pair in columns["pair"]])


def _sequences(text: str) -> set[tuple[str, ...]]:
    words = words_of(text)
    if len(words) <= _N_WORDS:
        return {tuple(words)}
    return {tuple(words[i : i + _N_WORDS]) for i in range(len(words) - _N_WORDS + 1)}


def twins_of(columns: Columns, task: str, role: str) -> list[list[tuple[int, str]]]:
    """Of each pair the two classes with their texts, the earlier class first.

    Raises:
        ValueError: When the examples have no twins, or more or fewer than two of one pair, or of one class.
    """
    if "pair" not in columns:
        raise ValueError(
            f"the examples of task {task!r} have no twins; tasks made by minimal_pairs have them, and others whose "
            "splits have a column 'pair'"
        )
    twins: dict[Any, dict[int, str]] = {}
    for pair, label, text in zip(columns["pair"], columns["label"], columns["text"], strict=True):
        twins.setdefault(pair, {})[label] = text
    for pair, texts in twins.items():
        if len(texts) != 2:
            raise ValueError(f"pair {pair} of role {role!r} must have two classes, got {sorted(texts)}")
    return [sorted(texts.items()) for texts in twins.values()]
