"""What is exchanged between twins in each condition, and the hooks that do it: TransformerLens' own interventions."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pandas as pd
from torch import Tensor
from transformer_lens.hook_points import HookPoint
from transformer_lens.tools.analysis.interchange import NormMatchedPlacebo, SubspaceInterchange, neuron_basis

from tl_skillneurons._controls import draw_controls, few_alternatives, some_of
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
) -> tuple[pd.DataFrame, list[Layers], list[str]]:
    """What is exchanged in each condition, by the rows of a frame, and how; and which controls are too few, in words.

    Every point of a curve has distinct controls: what stands for its neurons in the draws of the whole set, where that
    is new. A single neuron of a thousand is often drawn once, one of nine again and again.
    """
    rows: list[dict[str, Any]] = []
    interventions: list[Layers] = []
    notes: list[str] = []
    whole = draw_controls(neurons, n_random, seed=seed)

    def drawn(curve: str, point: int, chosen: list[int]) -> list[NeuronSet]:
        if curve == "neuron":  # the first draw's neurons, each alone, are the control of all
            return [some_of(whole.sets[0], chosen)]
        found = whole if curve == "whole" else draw_controls(neurons, n_random, seed=seed, part=chosen)
        name = curve if curve == "whole" else f"{curve} {point}"
        notes.extend(f"{name}: {note}" for note in found.warnings)
        return list(found.sets)

    def add(curve: str, point: int, chosen: list[int], **names: int) -> None:
        own = some_of(neurons, chosen)
        row = {"curve": curve, "point": point, "layer": names.get("layer"), "index": names.get("index")}
        row |= {"n_neurons": len(chosen)}
        rows.append({**row, "kind": "chosen", "draw": 0})
        interventions.append(interchange(own))
        for draw, other in enumerate(drawn(curve, point, chosen)):
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
        if note := few_alternatives(len(neurons), n_random):
            notes.append(f"neuron: {note}")
    return pd.DataFrame(rows).astype(dict.fromkeys(PLACES, float)), interventions, notes


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
