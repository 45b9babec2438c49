"""Activations of a few layers at a time, kept for all examples: for scores that need them together, such as ranks.

Where sums and counts are enough nothing is kept (:mod:`~tl_skillneurons.streaming`). Ranks, and any score under
permuted targets, need every example's value. So as many layers as fit into ``memory`` bytes are kept per pass,
in the model's dtype, in the order of the examples whatever the batches; more layers take more passes.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from tl_skillneurons._checks import require_int
from tl_skillneurons.prompted import PromptedModel
from tl_skillneurons.sites import neuron_shape
from tl_skillneurons.streaming import stream_activations

MEMORY = 2**30


def layers_at_a_time(
    prompted: Sequence[PromptedModel],
    texts: Sequence[str],
    *,
    n_positions: int,
    memory: int = MEMORY,
    **options: Any,
) -> Iterator[tuple[int, Float[Tensor, "prompt example position neuron"]]]:
    """One layer after another, with every prompt's activations on all texts.

    Args:
        prompted: Prompts that stand alike (:func:`~tl_skillneurons.streaming.stand_alike`).
        n_positions: Positions that are read.
        memory: Bytes that kept activations may take; at least one layer is kept.
        options: Of :func:`~tl_skillneurons.streaming.stream_activations`.
    """
    model = prompted[0].model
    n_layers, d_mlp = neuron_shape(model)
    dtype = model.W_E.dtype
    shape = (len(prompted), len(texts), n_positions, d_mlp)
    of_layer = torch.Size(shape).numel() * dtype.itemsize
    size = max(1, min(n_layers, require_int(memory, "memory") // of_layer))
    for first in range(0, n_layers, size):
        layers = range(first, min(first + size, n_layers))
        kept = {layer: torch.empty(shape, dtype=dtype) for layer in layers}

        def reduce(prompt: int, layer: int, acts: Tensor, example: Tensor, layers: range = layers) -> Tensor:
            return acts.cpu() if layer in layers else acts.new_empty(0)

        def add(
            prompt: int, layer: int, acts: Tensor, example: Tensor, kept: dict[int, Tensor] = kept
        ) -> None:
            if layer in kept:
                kept[layer][prompt, example] = acts

        stream_activations(prompted, texts, reduce, add, **options)
        for layer in layers:
            yield layer, kept.pop(layer)
