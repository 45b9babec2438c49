"""How many neurons the layers of a model have: one number, or each layer's own where they differ.

Layers differ in a pruned model, in a mixture of experts (whose sparse layers have no neurons of their own to name) and
in some models as they were made. A tensor ``[layer, neuron]`` is then as wide as the widest layer, and where a layer
has no such neuron it holds NaN, or False: what isn't there is never ranked, drawn as a control or counted.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from tl_skillneurons._checks import require_int

Width = int | tuple[int, ...]
"""Neurons of each layer: a number that is every layer's, or a tuple with each layer's own, 0 included."""


def width_of(counts: Sequence[int]) -> Width:
    """Each layer's number of neurons, as one number where it is every layer's.

    Example:
        >>> width_of([48, 48]), width_of([48, 0])
        (48, (48, 0))
    """
    return counts[0] if len(set(counts)) == 1 else tuple(counts)


def require_width(width: Any, name: str = "d_mlp") -> Width:
    """A width in its one form.

    Raises:
        TypeError, ValueError: When it is no number of at least 1, and no list of numbers of which one is.
    """
    if not isinstance(width, tuple | list):
        return require_int(width, name)
    counts = [require_int(one, f"{name} of layer {layer}", minimum=0) for layer, one in enumerate(width)]
    if not any(counts):
        raise ValueError(f"{name} must have neurons in at least one layer, got {list(width)}")
    return width_of(counts)


def widest(width: Width) -> int:
    """The last axis of a tensor ``[layer, neuron]``."""
    return width if isinstance(width, int) else max(width)


def in_layer(width: Width, layer: int) -> int:
    """How many neurons this layer has."""
    return width if isinstance(width, int) else width[layer]


def n_neurons(n_layers: int, width: Width) -> int:
    """How many neurons the model has."""
    return sum(in_layer(width, layer) for layer in range(n_layers))


def present(n_layers: int, width: Width) -> Bool[Tensor, "layer neuron"]:
    """Where there is a neuron.

    Example:
        >>> present(2, (2, 1))
        tensor([[ True,  True],
                [ True, False]])
    """
    counts = torch.tensor([in_layer(width, layer) for layer in range(n_layers)])
    return torch.arange(widest(width)) < counts[:, None]


def width_in(values: Float[Tensor, "layer neuron"]) -> Width:
    """The width of numbers that are NaN where there is no neuron.

    Raises:
        ValueError: When others are NaN as well.

    Example:
        >>> width_in(torch.tensor([[0.5, 0.7], [0.6, torch.nan]]))
        (2, 1)
    """
    there = ~values.isnan()
    if not len(values) or not there.any():
        return values.shape[1]
    width = width_of(there.sum(1).tolist())
    if widest(width) != values.shape[1] or not torch.equal(there, present(len(values), width)):
        raise ValueError(
            f"numbers may be NaN where a layer has no neuron, at the end of its row, got {int((~there).sum())} NaN of "
            f"{values.numel()} elsewhere"
        )
    return width


def known(values: Float[Tensor, "*axes"]) -> Float[Tensor, " there"]:
    """The numbers of the neurons that there are, in one row: of two scores of one model, in the same order.

    Example:
        >>> known(torch.tensor([[0.5, 0.7], [0.6, torch.nan]]))
        tensor([0.5000, 0.7000, 0.6000])
    """
    return values[~values.isnan()]


def even(width: Width, operation: str) -> int:
    """The width that every layer has, for what can't do with layers that differ.

    Raises:
        ValueError: Naming the operation and what the layers have, where they do.
    """
    if isinstance(width, tuple):
        raise ValueError(
            f"{operation} needs equally many neurons in every layer, this model has {said(width)}; score and ablate "
            "them (score_neurons, measure_effects), or take the whole model where this one was pruned"
        )
    return width


def said(width: Width | None) -> str:
    """A width for a message or a repr: short, however many layers there are.

    Example:
        >>> said(48), said((48, 0, 0))
        ('48', '48 in layer 0, 0 in layers 1 and 2')
    """
    if not isinstance(width, tuple):
        return str(width)
    layers = {count: [k for k, one in enumerate(width) if one == count] for count in dict.fromkeys(width)}
    return ", ".join(f"{count} in {layers_said(at)}" for count, at in layers.items())


def layers_said(layers: Sequence[int]) -> str:
    """Layers in words, runs of them by their ends.

    Example:
        >>> layers_said([3]), layers_said([0, 1, 2, 5])
        ('layer 3', 'layers 0 to 2 and 5')
    """
    runs: list[list[int]] = []
    for layer in sorted(layers):
        if runs and layer == runs[-1][-1] + 1:
            runs[-1].append(layer)
        else:
            runs.append([layer])
    parts = [
        piece
        for run in runs
        for piece in ([f"{run[0]} to {run[-1]}"] if len(run) > 2 else [str(layer) for layer in run])
    ]
    listed = parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"
    return f"layer{'s' if len(layers) > 1 else ''} {listed}"


def left_out_said(without: Mapping[int, str]) -> str:
    """Layers that were left out, in words, with the reason."""
    reasons = dict.fromkeys(without.values())
    return "; ".join(
        f"{layers_said([k for k, why in without.items() if why == reason])}: {reason}" for reason in reasons
    )
