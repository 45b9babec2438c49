"""Drawing examples by a seed so that each class keeps its share."""

import random
from collections import Counter
from collections.abc import Sequence

from tl_skillneurons.stats.units import Units
from tl_skillneurons.tasks.columns import Columns, take


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
    """The examples divided by ``shares``, each class for itself, in their order; groups and pairs stay whole."""
    generator = random.Random(seed)
    bound = [columns[name] for name in ("group", "pair") if name in columns]
    if bound:
        whole = Units.of(bound).member.tolist()
        return [take(columns, sorted(part)) for part in _whole_groups(columns, whole, shares, generator)]
    rows: list[list[int]] = [[] for _ in shares]
    for members in _by_class(columns):
        generator.shuffle(members)
        start = 0
        for part, count in zip(rows, apportion(len(members), shares), strict=True):
            part += members[start : start + count]
            start += count
    return [take(columns, sorted(part)) for part in rows]


def draw(columns: Columns, limit: int, seed: int) -> list[int]:
    """At most ``limit`` rows with the classes' shares kept, whole pairs first where there are pairs."""
    if limit >= len(columns["text"]):
        return list(range(len(columns["text"])))
    generator = random.Random(seed)
    if "pair" in columns:
        size = Counter(columns["pair"])
        pairs = [pair for pair, n in size.items() if n > 1]
        kept = set(generator.sample(pairs, min(limit // 2, len(pairs))))
        whole = [i for i, pair in enumerate(columns["pair"]) if pair in kept]
        alone = [i for i, pair in enumerate(columns["pair"]) if size[pair] == 1]
        rest = min(limit - len(whole), len(alone))
        return sorted(whole + [alone[i] for i in _each_share(take(columns, alone), rest, generator)])
    return sorted(_each_share(columns, limit, generator))


def _each_share(columns: Columns, n: int, generator: random.Random) -> list[int]:
    """``n`` rows with the classes' shares kept."""
    members = _by_class(columns)
    counts = apportion(n, [len(rows) for rows in members]) if members else []
    return [i for rows, count in zip(members, counts, strict=True) for i in generator.sample(rows, count)]


def _whole_groups(
    columns: Columns, group_of: list[int], shares: Sequence[int], generator: random.Random
) -> list[list[int]]:
    """Rows by part: each group, the largest first, goes where its classes are missing most."""
    groups: dict[int, list[int]] = {}
    for i, group in enumerate(group_of):
        groups.setdefault(group, []).append(i)
    members = list(groups.values())
    generator.shuffle(members)
    members.sort(key=len, reverse=True)
    counts = {c: len(rows) for c, rows in zip(sorted(set(columns["label"])), _by_class(columns), strict=True)}
    wanted = [{c: n * share / sum(shares) for c, n in counts.items()} for share in shares]
    parts: list[list[int]] = [[] for _ in shares]
    for rows in members:
        labels = [columns["label"][i] for i in rows]
        missing = [sum(want[c] for c in labels) / share for want, share in zip(wanted, shares, strict=True)]
        part = missing.index(max(missing))
        parts[part] += rows
        for c in labels:
            wanted[part][c] -= 1
    return parts


def _by_class(columns: Columns) -> list[list[int]]:
    members: dict[int, list[int]] = {label: [] for label in sorted(set(columns["label"]))}
    for i, label in enumerate(columns["label"]):
        members[label].append(i)
    return list(members.values())
