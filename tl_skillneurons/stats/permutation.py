"""Labels in random orders: what stays together when they are dealt out anew."""

import math

import torch
from jaxtyping import Int
from torch import Tensor

from tl_skillneurons._checks import require_int


def permuted_labels(
    labels: Int[Tensor, " example"],
    n_permutations: int,
    *,
    seed: int = 0,
    pairs: Int[Tensor, " example"] | None = None,
) -> Int[Tensor, "draw example"]:
    """The labels in random orders, within pairs where there are any.

    Raises:
        ValueError: When the labels have fewer orders than ``n_permutations``.
    """
    require_int(n_permutations, "n_permutations")
    require_int(seed, "seed", minimum=0)
    if (n_orders := _log_orders(labels, pairs)) < math.log(n_permutations + 1) - 1e-9:
        counts = torch.bincount(labels).tolist()
        raise ValueError(
            f"{len(labels)} examples with {counts} of each class can be labelled in only "
            f"{round(math.exp(n_orders))} ways{' within pairs' if pairs is not None else ''}, too few for "
            f"{n_permutations} permutations; give more examples of each class"
        )
    generator = torch.Generator().manual_seed(seed)
    order = torch.rand(n_permutations, len(labels), generator=generator, dtype=torch.float64).argsort(1)
    if pairs is None:
        return labels[order]
    order = order.gather(1, pairs[order].argsort(dim=1, stable=True))  # a random order within each pair
    place = pairs.argsort(stable=True)
    shuffled = torch.empty_like(order)
    shuffled[:, place] = labels[order]
    return shuffled


def _log_orders(labels: Tensor, pairs: Tensor | None) -> float:
    """The logarithm of the number of ways in which the labels can be dealt out."""
    if pairs is not None:
        groups: dict[int, set[int]] = {}
        for pair, label in zip(pairs.tolist(), labels.tolist(), strict=True):
            groups.setdefault(pair, set()).add(label)
        return sum(math.log(len(own)) for own in groups.values())
    counts = torch.bincount(labels).double()
    return float(torch.lgamma(counts.sum() + 1) - torch.lgamma(counts + 1).sum())
