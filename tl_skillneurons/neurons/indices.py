"""What names neurons: layers and indices in any form, inside the model, each pair once."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence, Set
from numbers import Integral
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from tl_skillneurons._checks import require_int
from tl_skillneurons._widths import Width, in_layer, require_width, said, widest, width_of


def form_of(value: Any) -> str:
    """What a value is, for a message: a tensor by its type and shape."""
    return f"{value.dtype} of shape {tuple(value.shape)}" if isinstance(value, Tensor) else repr(value)


def integers(values: Any, name: str) -> Int[Tensor, " neuron"]:
    """A copy of ``values`` as int64 on the CPU.

    Raises:
        TypeError: When they are not integers on one axis; a bool is not an integer here.
    """
    if isinstance(values, Tensor):
        is_integer = not (values.is_floating_point() or values.is_complex() or values.dtype == torch.bool)
        if values.ndim != 1 or not (is_integer or len(values) == 0):
            raise TypeError(f"{name} must be a one-axis tensor of integers, got {form_of(values)}")
        return values.detach().to(device="cpu", dtype=torch.int64, copy=True)
    if not isinstance(values, Iterable):
        raise TypeError(f"{name} must be a list or a one-axis tensor of integers, got {values!r}")
    values = list(values)
    for value in values:
        if isinstance(value, bool) or not isinstance(value, Integral):
            raise TypeError(f"{name} must hold integers, got {value!r}")
    return torch.tensor([int(value) for value in values], dtype=torch.int64)


def layers_and_indices(pairs: Any) -> tuple[list[Any], list[Any]]:
    """The layers and the indices of pairs ``(layer, index)`` in a list, a set (then in rising order) or an array.

    Raises:
        TypeError: When they are something else.
    """
    if isinstance(pairs, str | Mapping) or not isinstance(pairs, Iterable):
        raise TypeError(f"neurons must be a NeuronSet or pairs (layer, index), got {form_of(pairs)}")
    rows = pairs.tolist() if hasattr(pairs, "tolist") else list(pairs)
    for pair in rows:
        if not isinstance(pair, tuple | list) or len(pair) != 2:
            raise TypeError(f"each neuron must be a pair (layer, index), got {pair!r}")
    if isinstance(pairs, Set):
        rows = sorted(rows)
    return [pair[0] for pair in rows], [pair[1] for pair in rows]


def require_mask(mask: Any) -> Bool[Tensor, "layer neuron"]:
    """Return ``mask`` if it is a bool tensor of two axes.

    Raises:
        TypeError: Otherwise.
    """
    if not isinstance(mask, Tensor) or mask.dtype != torch.bool or mask.ndim != 2:
        raise TypeError(f"mask must be a bool tensor [layer, neuron], got {form_of(mask)}")
    return mask


def shape_of_blocks(model: Any) -> tuple[int, Width]:
    """``(n_layers, d_mlp)`` of a model whose blocks have one output projection each; one without has no neurons.

    Raises:
        ValueError: When no layer has a single projection.
    """
    projections = [getattr(getattr(block, "mlp", None), "W_out", None) for block in model.blocks]
    widths = [0 if w is None or w.ndim != 2 else int(w.shape[0]) for w in projections]
    if not any(widths):
        raise ValueError("no layer of the model has an output projection (W_out) of neurons")
    return len(projections), width_of(widths)


def one_shape(
    own: tuple[int | None, Width | None], other: tuple[int | None, Width | None]
) -> tuple[int | None, Width | None]:
    """``(n_layers, d_mlp)`` of the one model that two shapes are of, as far as either knows.

    Raises:
        ValueError: When they contradict each other, or a size is not an integer of at least 1.
    """
    if other[0] is not None:
        require_int(other[0], "n_layers")
    if other[1] is not None:
        require_width(other[1])
    if any(None not in sizes and sizes[0] != sizes[1] for sizes in zip(own, other, strict=True)):
        raise ValueError(
            f"the neurons must belong to one model, got n_layers={own[0]}, d_mlp={said(own[1])} "
            f"and n_layers={other[0]}, d_mlp={said(other[1])}"
        )
    return own[0] or other[0], own[1] or other[1]


def require_inside(
    layer: Int[Tensor, " neuron"], index: Int[Tensor, " neuron"], n_layers: int | None, d_mlp: Width | None
) -> None:
    """Refuse a neuron outside a model of this shape, as far as it is known.

    Raises:
        ValueError: With the first such neuron and what is allowed.
    """
    outside = (layer < 0) | (index < 0)
    if n_layers is not None:
        outside |= layer >= n_layers
    if isinstance(d_mlp, tuple):
        outside |= layer >= len(d_mlp)
        outside |= index >= torch.tensor(d_mlp)[layer.clamp(0, len(d_mlp) - 1)]
    elif d_mlp is not None:
        outside |= index >= d_mlp
    if outside.any():
        first = int(outside.nonzero()[0])
        layers = "0 or more" if n_layers is None else f"in [0, {n_layers})"
        if isinstance(d_mlp, tuple) and layer[first] < len(d_mlp) and not in_layer(d_mlp, int(layer[first])):
            raise ValueError(
                f"neuron (layer {layer[first]}, index {index[first]}) does not exist: that layer has no neurons to "
                f"name; there are {said(d_mlp)}"
            )
        indices = "0 or more" if d_mlp is None else f"in [0, {widest(d_mlp)})"
        if isinstance(d_mlp, tuple):
            indices += f" (neurons: {said(d_mlp)})"
        raise ValueError(
            f"neuron (layer {layer[first]}, index {index[first]}) is outside the model: "
            f"layer must be {layers} and index {indices}"
        )


def require_distinct(pairs: Iterable[tuple[int, int]]) -> None:
    """Refuse neurons that are named twice.

    Raises:
        ValueError: With the first such pair.
    """
    seen: set[tuple[int, int]] = set()
    for pair in pairs:
        if pair in seen:
            raise ValueError(f"neurons must be distinct, got {pair} twice; name each (layer, index) once")
        seen.add(pair)


def first_of_each(pairs: Sequence[tuple[int, int]], wanted: Mapping[int, int]) -> list[tuple[int, int]]:
    """The first ``wanted[layer]`` pairs of each layer, in their order.

    Raises:
        ValueError: When a layer has fewer.
    """
    counts = Counter(layer for layer, _ in pairs)
    few = min(counts, key=lambda layer: counts[layer] - wanted[layer], default=None)
    if few is not None and counts[few] < wanted[few]:
        raise ValueError(
            f"the set has {counts[few]} neurons in layer {few}, can't take the first {wanted[few]} of each layer"
        )
    left, kept = dict(wanted), []
    for layer, index in pairs:
        left[layer] -= 1
        if left[layer] >= 0:
            kept.append((layer, index))
    return kept
