"""Random orders, and labels dealt out anew: what stays together, and how many ways there are.

Every permutation of the package is drawn here, from a seed or a generator, so that the same seed gives the same
orders everywhere. With labels that have nothing to do with the examples each order of them is as likely as any
other; where examples come in pairs of twins, each order within the pairs.

Where labels have no more orders than are asked for, every one but their own is given, once: with the true one counted
in, a p-value is then the exact share of all orders, and none is below one over their number.

What it does not show: a permutation test takes examples (or pairs) to be exchangeable. Examples that belong together
and are permuted one by one make a null that is too narrow.
"""

import math
from collections import Counter
from collections.abc import Sequence
from itertools import combinations

import torch
from jaxtyping import Int, Num
from torch import Tensor

from tl_skillneurons._checks import require_int, require_seed


def random_orders(n_items: int, n_orders: int, generator: torch.Generator) -> Int[Tensor, "order item"]:
    """Random orders of ``n_items``, drawn one after the other: in chunks they are the same.

    Example:
        >>> random_orders(3, 2, torch.Generator().manual_seed(0)).sort(1).values.tolist()
        [[0, 1, 2], [0, 1, 2]]
    """
    if not n_orders:
        return torch.empty(0, n_items, dtype=torch.int64)
    return torch.stack([torch.randperm(n_items, generator=generator) for _ in range(n_orders)])


def row_orders(
    n_rows: int, n_items: int, generator: torch.Generator, *, dtype: torch.dtype = torch.float64
) -> Int[Tensor, "row item"]:
    """A random order of ``n_items`` for each row, all at once: the order of uniform random numbers of ``dtype``.

    Fast for many rows. Two equal numbers keep their items' order: at float64 such ties never matter, at float32 they
    occur from some thousand items on.

    Example:
        >>> orders = row_orders(2, 3, torch.Generator().manual_seed(0))
        >>> orders.sort(1).values.tolist()
        [[0, 1, 2], [0, 1, 2]]
    """
    return torch.rand(n_rows, n_items, generator=generator, dtype=dtype).argsort(1)


def permuted_labels(
    labels: Num[Tensor, " example"],
    n_permutations: int,
    *,
    seed: int = 0,
    pairs: Int[Tensor, " example"] | None = None,
) -> Num[Tensor, "draw example"]:
    """The labels in random orders, within pairs where there are any; every other order once where there are no more.

    Args:
        labels: Class or target of each example.
        n_permutations: How many orders; as many as there are where they are fewer.
        pairs: The number of the pair (or group) that each example belongs to; labels then stay within it.

    Raises:
        ValueError: When the labels have no other order.

    Example:
        >>> permuted_labels(torch.tensor([0, 1, 0, 1]), 2, pairs=torch.tensor([0, 0, 1, 1])).sum(1).tolist()
        [2, 2]
    """
    require_int(n_permutations, "n_permutations")
    require_seed(seed)
    if (log_orders := _log_orders(labels, pairs)) < 1e-9:
        raise ValueError(
            f"{len(labels)} examples with labels {sorted(set(labels.tolist()))} can be labelled in no other way"
            f"{' within pairs' if pairs is not None else ''}, so nothing can be tested; give examples of each class"
        )
    if log_orders <= math.log(n_permutations + 1) + 1e-9:
        return other_orders(labels, blocks_of(labels, pairs))
    generator = torch.Generator().manual_seed(seed)
    order = row_orders(n_permutations, len(labels), generator)
    if pairs is None:
        return labels[order]
    order = order.gather(1, pairs[order].argsort(dim=1, stable=True))  # a random order within each pair
    place = pairs.argsort(stable=True)
    shuffled = torch.empty_like(order, dtype=labels.dtype)
    shuffled[:, place] = labels[order]
    return shuffled


def blocks_of(labels: Num[Tensor, " example"], pairs: Int[Tensor, " example"] | None) -> list["Block"]:
    """Each pair's examples with all orders of their labels."""
    groups = torch.zeros(len(labels), dtype=torch.int64) if pairs is None else pairs
    places = [(groups == group).nonzero().flatten() for group in groups.unique()]
    return [(rows, distinct_orders(labels[rows])) for rows in places]


def distinct_orders(items: Num[Tensor, " item"]) -> Num[Tensor, "order item"]:
    """Every order of ``items`` that can be told from the others; there must be few.

    Example:
        >>> distinct_orders(torch.tensor([0, 0, 1])).tolist()
        [[0, 0, 1], [0, 1, 0], [1, 0, 0]]
    """
    values, counts = items.unique(return_counts=True)
    if len(values) == 1:
        return items[None]
    rest = distinct_orders(items[items != values[0]])
    places = torch.tensor(list(combinations(range(len(items)), int(counts[0]))))
    shape = (len(places), len(rest), len(items))
    free = torch.ones(len(places), len(items), dtype=torch.bool).scatter_(1, places, False)
    orders = items.new_full(shape, values[0].item())
    orders.masked_scatter_(free[:, None].expand(shape), rest.expand(len(places), -1, -1).contiguous())
    return orders.flatten(0, 1)


Block = tuple[Tensor, Tensor]
"""The places of some examples, and all ways ``[way, place]`` in which they can be labelled, whatever the others are."""


def other_orders(labels: Num[Tensor, " example"], blocks: Sequence[Block]) -> Num[Tensor, "order example"]:
    """Every way to label ``blocks``, each once, but for the labels' own.

    Example:
        >>> pair = torch.arange(2), torch.tensor([[0, 1], [1, 0]])
        >>> other_orders(torch.tensor([0, 1, 1]), [pair]).tolist()
        [[1, 0, 1]]
    """
    found = labels[None]
    for places, ways in blocks:
        found = found.repeat_interleave(len(ways), 0)
        found[:, places] = ways.repeat(len(found) // len(ways), 1)
    return found[(found != labels).any(1)]


def _log_orders(labels: Tensor, pairs: Tensor | None) -> float:
    """The logarithm of the number of ways in which the labels can be dealt out, within each pair."""
    units = [0] * len(labels) if pairs is None else pairs.tolist()
    sizes, alike = Counter(units), Counter(zip(units, labels.tolist(), strict=True))
    return sum(math.lgamma(n + 1) for n in sizes.values()) - sum(math.lgamma(n + 1) for n in alike.values())
