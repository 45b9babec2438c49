"""Random stand-ins for neurons, layer by layer: any of the layer, or those that are like them in some numbers.

Larger activations do more damage when they are ablated, whatever they encode; so a control that is to show what a set's
neurons encode must be like them in activation and output norm. What it does not show: that stand-ins are alike in
anything they were not matched on.
"""

from bisect import bisect_left
from collections.abc import Callable

import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor

from tl_skillneurons._widths import Width, in_layer, present, widest


def draw_like(
    layer: Int[Tensor, " neuron"],
    index: Int[Tensor, " neuron"],
    d_mlp: Width,
    *,
    seed: int,
    exclude: bool,
    match: Float[Tensor, "layer d_mlp"] | Float[Tensor, "quantity layer d_mlp"] | None,
    n_nearest: int,
    among: Bool[Tensor, "layer d_mlp"] | None = None,
) -> Int[Tensor, " neuron"]:
    """The indices of the neurons that stand for neurons ``(layer[i], index[i])``, each of the same layer.

    Args:
        exclude: Whether the given neurons may not be drawn.
        match: Finite numbers for every neuron (:func:`finite_match`); ``None`` draws any neuron of the layer.
        n_nearest: Among how many of the nearest by ``match`` each stand-in is drawn.
        among: Which neurons may be drawn; all without.

    Raises:
        ValueError: When a layer has too few neurons to draw from.
    """
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.empty_like(index)
    for here in layer.unique().tolist():
        own = (layer == here).nonzero().flatten()
        own = own[index[own].argsort()]  # the draw must not depend on the neurons' order
        free = torch.arange(widest(d_mlp)) < in_layer(d_mlp, here)
        if among is not None:
            free &= among[here]
        if exclude:
            free[index[own]] = False
        pool = free.nonzero().flatten()
        if len(pool) < len(own):
            raise ValueError(
                f"layer {here} has {len(pool)} neurons to draw {len(own)} random ones from"
                + (
                    f" ({in_layer(d_mlp, here)} without the set's own); draw with exclude=False"
                    if exclude
                    else ""
                )
            )
        if match is None:
            drawn[own] = pool[torch.randperm(len(pool), generator=generator)[: len(own)]]
        else:
            own_match = match[..., here, : in_layer(d_mlp, here)]
            drawn[own] = draw_nearest(own_match, index[own], pool, n_nearest, generator)
    return drawn


def finite_match(
    match: Float[Tensor, "layer neuron"] | Float[Tensor, "quantity layer neuron"],
    n_layers: int | None = None,
    d_mlp: Width | None = None,
) -> Float[Tensor, "layer neuron"] | Float[Tensor, "quantity layer neuron"]:
    """``match`` in float64 on the CPU, NaN where layers of different widths have no neuron.

    Raises:
        ValueError: When it has other axes, other sizes than those that are known, or a number that is not finite.
    """
    if not isinstance(match, Tensor) or match.ndim not in (2, 3) or 0 in match.shape:
        got = f"{match.dtype} of shape {tuple(match.shape)}" if isinstance(match, Tensor) else repr(match)
        raise ValueError(f"match must be a tensor [layer, neuron] or [quantity, layer, neuron], got {got}")
    match = match.detach().to(device="cpu", dtype=torch.float64)
    unknown = ~match.isfinite()
    if isinstance(d_mlp, tuple) and match.shape[-2:] == (len(d_mlp), widest(d_mlp)):
        there = present(len(d_mlp), d_mlp)
        match, unknown = match.masked_fill(~there, torch.nan), unknown & there
    if unknown.any():
        layer, index = unknown.nonzero()[0][-2:].tolist()
        value = match[unknown][0]
        raise ValueError(f"match must be finite, got {value} at layer {layer}, index {index}")
    wide = None if d_mlp is None else widest(d_mlp)
    if any(size not in (None, got) for size, got in zip((n_layers, wide), match.shape[-2:], strict=True)):
        wanted = f"n_layers={n_layers}, d_mlp={wide}"
        raise ValueError(f"match must be [layer, neuron] of {wanted}, got shape {tuple(match.shape)}")
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
        return nearest_in_value(
            match,
            index,
            pool,
            n_nearest,
            lambda nearest: int(torch.randint(len(nearest), (), generator=generator)),
        )
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
    own_ranks, pool_ranks = (
        rearrange(ranks[:, at], "quantity neuron -> neuron quantity") for at in (index, pool)
    )
    distance = torch.cdist(own_ranks, pool_ranks, compute_mode="donot_use_mm_for_euclid_dist")
    drawn: list[Tensor] = []
    for own in distance:  # one after the other, since nobody is drawn twice
        nearest = own.sort(stable=True).indices[: min(n_nearest, len(pool) - len(drawn))]
        place = nearest[torch.randint(len(nearest), (), generator=generator)]
        drawn.append(pool[place])
        distance[:, place] = torch.inf
    return torch.stack(drawn)


def nearest_in_value(
    match: Float[Tensor, " d_mlp"],
    index: Int[Tensor, " neuron"],
    pool: Int[Tensor, " free"],
    n_nearest: int,
    choose: Callable[[list[int]], int],
) -> Int[Tensor, " neuron"]:
    """For each neuron of ``index`` the one that ``choose`` takes of its nearest in ``pool``, none twice.

    The pool is sorted once; a neuron's nearest are then next to its place, and a taken one is left out.

    Args:
        choose: From the nearest, nearest first, to which of them it is.
    """
    ordered, order = match[pool].sort(stable=True)
    values, free = ordered.tolist(), pool[order].tolist()
    drawn = []
    for own in match[index].tolist():
        place = bisect_left(values, own)
        window = range(max(0, place - n_nearest), min(len(values), place + n_nearest))
        distance = {j: abs(values[j] - own) for j in window}
        nearest = sorted(distance, key=distance.__getitem__)[:n_nearest]
        choice = nearest[choose([free[j] for j in nearest])]
        drawn.append(free.pop(choice))
        values.pop(choice)
    return torch.tensor(drawn, dtype=torch.int64)
