"""The controls that stand beside sets of neurons in every effect.

Random neurons of the same layers, and random neurons that are also alike in mean absolute activation at the prompt and
in output-weight norm: larger activations that write more do more damage when they are changed, whatever they encode.
"""

from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from tl_skillneurons.neurons import NeuronSet

CONTROLS = ("random", "matched")


def with_controls(
    sets: Mapping[str, NeuronSet],
    model: TransformerBridge,
    mean_absolute: Float[Tensor, "layer neuron"] | None,
    n_random: int,
    seed: int,
) -> dict[tuple[str, str, int], NeuronSet]:
    """Every set and the draws of its controls, by name, kind and draw."""
    norms = output_norms(model)
    match = norms if mean_absolute is None else torch.stack([mean_absolute, norms])
    drawn: dict[tuple[str, str, int], NeuronSet] = {}
    for name, held in sets.items():
        drawn[name, "chosen", 0] = held
        for kind in CONTROLS:
            for draw in range(n_random):
                drawn[name, kind, draw] = held.random_like(
                    seed + draw, match=match if kind == "matched" else None
                )
    return drawn


def output_norms(model: TransformerBridge) -> Float[Tensor, "layer neuron"]:
    """Euclidean norm of what each neuron writes to the residual stream per unit of activation: its row of
    ``W_out``."""
    norms = [block.mlp.W_out.detach().double().norm(dim=1).cpu() for block in model.blocks]
    return torch.stack(norms).float()
