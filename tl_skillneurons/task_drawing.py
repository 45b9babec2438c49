"""Drawing examples by a seed so that each class keeps its share."""

import random
from collections.abc import Sequence

from tl_skillneurons.task_columns import Columns, take


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


def stratified(columns: Columns, shares: Sequence[int], seed: int) -> list[Columns]:
    """The examples divided by ``shares``, each class for itself, in the order they came."""
    generator = random.Random(seed)
    rows: list[list[int]] = [[] for _ in shares]
    for members in _by_class(columns):
        generator.shuffle(members)
        start = 0
        for part, count in zip(rows, apportion(len(members), shares), strict=True):
            part += members[start : start + count]
            start += count
    return [take(columns, sorted(part)) for part in rows]


def draw(columns: Columns, limit: int, seed: int) -> list[int]:
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
