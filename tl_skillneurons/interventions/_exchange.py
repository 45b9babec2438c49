"""What is exchanged between twins in each condition, and the hooks that do it: TransformerLens' own interventions."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pandas as pd
from torch import Tensor
from transformer_lens.hook_points import HookPoint
from transformer_lens.tools.analysis.interchange import NormMatchedPlacebo, SubspaceInterchange, neuron_basis

from tl_skillneurons.interventions.ablation import Positions
from tl_skillneurons.models.hooks import Hook
from tl_skillneurons.neurons import NeuronSet
from tl_skillneurons.prompts.positions import columns

PLACES = ("layer", "index")
"""Columns of the frame of conditions that not every one has."""

Layers = Mapping[int, Callable[[Tensor, Tensor], Tensor]]
"""For each layer an intervention that maps base and source activations ``[row, neuron]`` to new ones."""


def interchange(neurons: NeuronSet) -> dict[int, SubspaceInterchange]:
    assert neurons.d_mlp is not None  # for type checkers: the sets here know their model's shape
    return {
        layer: SubspaceInterchange(neuron_basis(neurons.d_mlp, index))
        for layer, index in neurons.by_layer().items()
    }


def placebo(neurons: NeuronSet, random: NeuronSet) -> Layers:
    moved, instead = interchange(neurons), random.by_layer()
    assert random.d_mlp is not None  # for type checkers: the sets here know their model's shape
    return {
        layer: NormMatchedPlacebo(one, neuron_basis(random.d_mlp, instead[layer]))
        for layer, one in moved.items()
    }


def conditions_of(
    neurons: NeuronSet, curves: Sequence[str], n_random: int, seed: int
) -> tuple[pd.DataFrame, list[Layers]]:
    """What is exchanged in each condition, by the rows of a frame, and how."""
    draws = [neurons.random_like(seed + draw) for draw in range(n_random)]
    rows: list[dict[str, Any]] = []
    interventions: list[Layers] = []

    def part(whole: NeuronSet, chosen: list[int]) -> NeuronSet:
        return NeuronSet(whole.layer[chosen], whole.index[chosen], whole.n_layers, whole.d_mlp, whole.model)

    def add(curve: str, point: int, chosen: list[int], **names: int) -> None:
        own = part(neurons, chosen)
        row = {"curve": curve, "point": point, "layer": names.get("layer"), "index": names.get("index")}
        row |= {"n_neurons": len(chosen)}
        rows.append({**row, "kind": "chosen", "draw": 0})
        interventions.append(interchange(own))
        for draw, whole in enumerate(draws):
            if curve == "neuron" and draw:  # the first draw's neurons, each alone, are the control of all
                break
            other = part(whole, chosen)  # neuron i of a draw stands for neuron i of the set
            rows.append({**row, "kind": "random", "draw": draw})
            interventions.append(interchange(other))
            rows.append({**row, "kind": "placebo", "draw": draw})
            interventions.append(placebo(own, other))

    everyone = list(range(len(neurons)))
    add("whole", 0, everyone)
    if "layer" in curves:
        for layer in neurons.by_layer():
            add("layer", layer, (neurons.layer == layer).nonzero().flatten().tolist(), layer=layer)
    if "cumulative" in curves:
        sizes = [2**k for k in range(len(neurons).bit_length()) if 2**k < len(neurons)]
        for size in [*sizes, len(neurons)]:
            add("cumulative", size, everyone[:size])
    if "neuron" in curves:
        for number, (layer, index) in enumerate(neurons):
            add("neuron", number, [number], layer=layer, index=index)
    return pd.DataFrame(rows).astype(dict.fromkeys(PLACES, float)), interventions


def keep(names: Mapping[int, str], kept: dict[int, Tensor]) -> list[Hook]:
    def at(layer: int) -> Callable[..., None]:
        def note(act: Tensor, hook: HookPoint) -> None:
            kept[layer] = act

        return note

    return [(name, at(layer)) for layer, name in names.items()]


def exchange_hooks(
    layers: Layers, names: Mapping[int, str], source: Mapping[int, Tensor], positions: Positions
) -> list[Hook]:
    def at(layer: int, intervene: Callable[[Tensor, Tensor], Tensor]) -> Callable[..., Tensor]:
        def exchange(act: Tensor, hook: HookPoint) -> Tensor:
            where = columns(positions, act, hook)
            new = act.clone()
            new[where] = intervene(act[where], source[layer][where])
            return new

        return exchange

    return [(names[layer], at(layer, intervene)) for layer, intervene in layers.items()]
