"""The controls that stand beside sets of neurons in every effect.

* ``random``: neurons of the same layers;
* ``matched``: also alike in mean absolute activation at the prompt and in output-weight norm, for larger activations
  that write more do more damage when they are changed, whatever they encode;
* ``least``: alike in the same, and drawn from the half of their layer that is least predictive, by the score that
  chose the set; if that score says anything about what a model uses, they do least.

No draw is another's, and all are of what is not in the set. What it does not show: that they are alike in anything but
what they were matched on; by how much they differ in that stands beside them.
"""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from tl_skillneurons._widths import in_layer, widest
from tl_skillneurons.models.sites import neuron_shape
from tl_skillneurons.neurons.controls import ALIKE, Controls, draw_controls, less_predictive
from tl_skillneurons.neurons.neuron_set import NeuronSet

CONTROLS = ("random", "matched", "least")


@dataclass(frozen=True, eq=False)
class Drawn:
    """Sets and their controls.

    Attributes:
        sets: By name, kind ("chosen" or the control's) and draw.
        notes: What a reader of the p-values must know, in words.
        told: Of each set and control how many ``distinct`` draws there are, and by how many standard deviations of
            their layers they ``differ`` in what they were matched on.
    """

    sets: dict[tuple[str, str, int], NeuronSet]
    notes: list[str]
    told: dict[str, dict[str, Any]]


def with_controls(
    sets: Mapping[str, NeuronSet],
    model: TransformerBridge,
    mean_absolute: Float[Tensor, "layer neuron"] | None,
    n_random: int,
    seed: int,
    *,
    most_difference: float | None = None,
) -> Drawn:
    """Every set and the distinct draws of its controls.

    Args:
        most_difference: Refuse matched controls that differ by more standard deviations than this.

    Raises:
        ValueError: When a layer has too few neurons to draw from, or for controls that differ by more.
    """
    norms = output_norms(model)
    match = norms if mean_absolute is None else torch.stack([mean_absolute, norms])
    drawn = Drawn({}, [], {})
    unlike: list[str] = []
    for name, held in sets.items():
        drawn.sets[name, "chosen", 0] = held
        drawn.told[name] = {}
        of = f" of {name!r}" if len(sets) > 1 else ""

        def add(kind: str, found: Controls, name: str = name, of: str = of) -> None:
            drawn.sets.update({(name, kind, draw): one for draw, one in enumerate(found.sets)})
            drawn.told[name][kind] = {"distinct": len(found.sets), "differ": found.differences.tolist()}
            drawn.notes.extend(f"{kind}{of}: {note}" for note in found.warnings)
            if not found.are_alike:
                by = ", ".join(f"{value:+.2f}" for value in found.differences.tolist())
                unlike.append(f"{kind}{of} by {by}")

        add("random", draw_controls(held, n_random, seed=seed))
        add("matched", draw_controls(held, n_random, seed=seed, match=match, most_difference=most_difference))
        score = None if held.choice is None else held.choice.score
        if score is None or score.shape != norms.shape:
            drawn.notes.append(
                f"least{of}: not drawn, for the set doesn't know by which score of every neuron it was chosen "
                "(scores.top() remembers)"
            )
            continue
        try:
            least = draw_controls(held, n_random, seed=seed, match=match, among=less_predictive(score))
        except ValueError as few:
            drawn.notes.append(f"least{of}: not drawn, for in the less predictive half {few}")
        else:
            add("least", least)
    if unlike:
        warnings.warn(
            f"controls differ from the set in activation and output norm by more than {ALIKE:g} standard deviations of "
            f"their layers ({'; '.join(unlike)}): the set has neurons that no others are like, and what is done to it "
            "may do more for that alone; the result's notes say so, and measure_effects refuses with "
            "Beyond(most_difference=0.1)",
            stacklevel=3,
        )
    return drawn


def output_norms(model: TransformerBridge) -> Float[Tensor, "layer neuron"]:
    """Euclidean norm of what each neuron writes to the residual stream per unit of activation: its row of
    ``W_out``. NaN where a layer has no such neuron."""
    n_layers, width = neuron_shape(model)
    norms = torch.full((n_layers, widest(width)), torch.nan)
    for layer in range(n_layers):
        if own := in_layer(width, layer):
            norms[layer, :own] = model.blocks[layer].mlp.W_out.detach().double().norm(dim=1).float().cpu()
    return norms
