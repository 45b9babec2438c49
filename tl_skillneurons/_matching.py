"""Random stand-ins for neurons of one layer, drawn among those that are like them in some number or numbers."""

from bisect import bisect_left

import torch
from jaxtyping import Float, Int
from torch import Tensor


def finite_match(
    match: Float[Tensor, "layer neuron"] | Float[Tensor, "quantity layer neuron"],
) -> Float[Tensor, "layer neuron"] | Float[Tensor, "quantity layer neuron"]:
    """``match`` in float64 on the CPU.

    Raises:
        ValueError: When it has other axes, or a number that is not finite.
    """
    if not isinstance(match, Tensor) or match.ndim not in (2, 3) or 0 in match.shape:
        got = f"{match.dtype} of shape {tuple(match.shape)}" if isinstance(match, Tensor) else repr(match)
        raise ValueError(f"match must be a tensor [layer, neuron] or [quantity, layer, neuron], got {got}")
    match = match.detach().to(device="cpu", dtype=torch.float64)
    if not match.isfinite().all():
        layer, index = (~match.isfinite()).nonzero()[0][-2:].tolist()
        value = match[~match.isfinite()][0]
        raise ValueError(f"match must be finite, got {value} at layer {layer}, index {index}")
    return match


def draw_nearest(
    match: Float[Tensor, " d_mlp"] | Float[Tensor, "quantity d_mlp"],
    index: Int[Tensor, " neuron"],
    pool: Int[Tensor, " free"],
    n_nearest: int,
    generator: torch.Generator,
) -> Int[Tensor, " neuron"]:
    """For each neuron of ``index`` one of its ``n_nearest`` in ``pool`` by ``match``, none twice.

    By one quantity nearest is nearest in its value; by several, nearest in the quantities' ranks within the
    layer (ties share their middle rank), by Euclidean distance, since their units differ.
    """
    if match.ndim == 1:
        return _nearest_in_value(match, index, pool, n_nearest, generator)
    return _nearest_in_ranks(match, index, pool, n_nearest, generator)


def _nearest_in_ranks(
    match: Float[Tensor, "quantity d_mlp"],
    index: Int[Tensor, " neuron"],
    pool: Int[Tensor, " free"],
    n_nearest: int,
    generator: torch.Generator,
) -> Int[Tensor, " neuron"]:
    ordered = match.sort(dim=1).values.contiguous()
    below = torch.searchsorted(ordered, match.contiguous())
    ranks = (below + torch.searchsorted(ordered, match.contiguous(), right=True)).double() / 2
    distance = torch.cdist(ranks[:, index].T, ranks[:, pool].T, compute_mode="donot_use_mm_for_euclid_dist")
    drawn = []
    for own in distance:  # one after the other, since nobody is drawn twice
        nearest = own.sort(stable=True).indices[: min(n_nearest, len(pool) - len(drawn))]
        place = nearest[torch.randint(len(nearest), (), generator=generator)]
        drawn.append(pool[place])
        distance[:, place] = torch.inf
    return torch.stack(drawn)


def _nearest_in_value(
    match: Float[Tensor, " d_mlp"],
    index: Int[Tensor, " neuron"],
    pool: Int[Tensor, " free"],
    n_nearest: int,
    generator: torch.Generator,
) -> Int[Tensor, " neuron"]:
    """For each neuron of ``index`` one of its ``n_nearest`` in ``pool`` by ``match``, none twice.

    The pool is sorted once; a neuron's nearest are then next to its place, and a drawn one is taken out.
    """
    values, order = match[pool].sort(stable=True)
    values, free = values.tolist(), pool[order].tolist()
    drawn = []
    for own in match[index].tolist():
        place = bisect_left(values, own)
        window = range(max(0, place - n_nearest), min(len(values), place + n_nearest))
        nearest = sorted(window, key=lambda j, own=own: abs(values[j] - own))[:n_nearest]
        choice = nearest[torch.randint(len(nearest), (), generator=generator).item()]
        drawn.append(free.pop(choice))
        values.pop(choice)
    return torch.tensor(drawn, dtype=torch.int64)
