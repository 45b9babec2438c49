"""What is exchanged between twins in each condition, and the hooks that do it: TransformerLens' own interventions."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformer_lens.hook_points import HookPoint
from transformer_lens.tools.analysis.interchange import NormMatchedPlacebo, SubspaceInterchange, neuron_basis
from transformers import DynamicCache

from tl_skillneurons._widths import in_layer
from tl_skillneurons.interventions.ablation import Positions
from tl_skillneurons.interventions.twins import Twins, logit_diff
from tl_skillneurons.models.hooks import Hook, Hooks
from tl_skillneurons.models.sites import neuron_hooks
from tl_skillneurons.neurons.controls import draw_controls, some_of
from tl_skillneurons.neurons.neuron_set import NeuronSet
from tl_skillneurons.prompts.attached import VirtualTokens
from tl_skillneurons.prompts.positions import PromptedTokens, columns
from tl_skillneurons.prompts.prompted_model import PromptedModel

PLACES = ("layer", "index")
"""Columns of the frame of conditions that not every one has."""

Layers = Mapping[int, Callable[[Tensor, Tensor], Tensor]]
"""For each layer an intervention that maps base and source activations ``[row, neuron]`` to new ones."""


def interchange(neurons: NeuronSet) -> dict[int, SubspaceInterchange]:
    assert neurons.d_mlp is not None  # for type checkers: the sets here know their model's shape
    return {
        layer: SubspaceInterchange(neuron_basis(in_layer(neurons.d_mlp, layer), index))
        for layer, index in neurons.by_layer().items()
    }


def placebo(neurons: NeuronSet, random: NeuronSet) -> Layers:
    moved, instead = interchange(neurons), random.by_layer()
    assert random.d_mlp is not None  # for type checkers: the sets here know their model's shape
    return {
        layer: NormMatchedPlacebo(one, neuron_basis(in_layer(random.d_mlp, layer), instead[layer]))
        for layer, one in moved.items()
    }


def conditions_of(
    neurons: NeuronSet, curves: Sequence[str], n_random: int, seed: int
) -> tuple[pd.DataFrame, list[Layers], list[str]]:
    """What is exchanged in each condition, by the rows of a frame, and how; and which controls are too few, in words.

    Every point of a curve has distinct controls: what stands for its neurons in the draws of the whole set, where that
    is new. Single neurons of one layer share theirs, single neurons of that layer which are none of the set.
    """
    rows: list[dict[str, Any]] = []
    interventions: list[Layers] = []
    notes: list[str] = []

    def add(row: dict[str, Any], kind: str, draw: int, layers: Layers) -> None:
        rows.append({"layer": None, "index": None, **row, "kind": kind, "draw": draw})
        interventions.append(layers)

    def drawn(name: str, part: list[int] | None) -> tuple[NeuronSet, ...]:
        found = draw_controls(neurons, n_random, seed=seed, part=part)
        notes.extend(f"{name}: {note}" for note in found.warnings)
        return found.sets

    def add_sets(curve: str, point: int, chosen: list[int], **names: int) -> None:
        own = some_of(neurons, chosen)
        row = {"curve": curve, "point": point, **names, "n_neurons": len(chosen)}
        add(row, "chosen", 0, interchange(own))
        whole = curve == "whole"
        for draw, other in enumerate(
            drawn(curve if whole else f"{curve} {point}", None if whole else chosen)
        ):
            add(row, "random", draw, interchange(other))
            add(row, "placebo", draw, placebo(own, other))

    everyone = list(range(len(neurons)))
    add_sets("whole", 0, everyone)
    if "layer" in curves:
        for layer in neurons.by_layer():
            add_sets("layer", layer, (neurons.layer == layer).nonzero().flatten().tolist(), layer=layer)
    if "cumulative" in curves:
        sizes = [2**k for k in range(len(neurons).bit_length()) if 2**k < len(neurons)]
        for size in [*sizes, len(neurons)]:
            add_sets("cumulative", size, everyone[:size])
    if "neuron" in curves:
        alone = {"curve": "neuron", "n_neurons": 1}
        for number, (layer, index) in enumerate(neurons):
            chosen = interchange(some_of(neurons, [number]))
            add({**alone, "point": number, "layer": layer, "index": index}, "chosen", 0, chosen)
        for layer in neurons.by_layer():
            first = int((neurons.layer == layer).nonzero()[0])
            for draw, other in enumerate(drawn(f"neuron, layer {layer}", [first])):
                row = {**alone, "point": first, "layer": layer, "index": int(other.index[0])}
                add(row, "random", draw, interchange(other))
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


def patched(
    prompted: PromptedModel,
    twins: Twins,
    names: Mapping[int, str],
    directions: Sequence[str],
    positions: Positions,
    conditions: Sequence[Layers],
) -> Iterator[tuple[list[int], dict[str, Float[Tensor, "run batch"]]]]:
    """For each batch of pairs its rows, and by direction the logit diffs: of base, source, each condition."""
    clean, corrupted = twins.encode(prompted)
    with prompted.attached() as virtual, torch.no_grad():
        apart = isinstance(positions, str) and positions == "prompt" and prompted.runs_apart(virtual)
        for rows in prompted.batches(clean):
            sides = {
                "clean": prompted.assemble([clean[i] for i in rows], rows),
                "corrupted": prompted.assemble([corrupted[i] for i in rows], rows),
            }
            pasts = {side: prompted.past(tokens) if apart else None for side, tokens in sides.items()}
            labels = twins.labels[rows]
            intact: dict[str, Tensor] = {}
            acts: dict[str, dict[int, Tensor]] = {}
            for side, tokens in sides.items():
                acts[side] = {}
                look = keep(names, acts[side])
                intact[side] = _diff(prompted, tokens, virtual, look, pasts[side], labels)
            found = {}
            for direction in directions:
                base, source = ("corrupted", "clean") if direction == "denoise" else ("clean", "corrupted")
                diffs = [intact[base], intact[source]]
                for layers in conditions:
                    hooks = exchange_hooks(layers, names, acts[source], positions)
                    diffs.append(_diff(prompted, sides[base], virtual, hooks, pasts[base], labels))
                found[direction] = torch.stack(diffs)
            yield rows, found


def recovered_alone(
    prompted: PromptedModel, twins: Twins, neurons: NeuronSet, *, direction: str, positions: Positions
) -> Float[Tensor, " neuron"]:
    """The fraction of the gap that each neuron recovers when it alone is exchanged."""
    names = {layer: neuron_hooks(prompted.model)[layer] for layer in neurons.by_layer()}
    conditions = [interchange(some_of(neurons, [number])) for number in range(len(neurons))]
    total = torch.zeros(len(neurons) + 2, dtype=torch.float64)
    for _, diff in patched(prompted, twins, names, [direction], positions, conditions):
        total += diff[direction].sum(1)
    base, source = total[:2]
    return (total[2:] - base) / (source - base)


def _diff(
    prompted: PromptedModel,
    tokens: PromptedTokens,
    virtual: VirtualTokens,
    hooks: Hooks,
    past: DynamicCache | None,
    labels: Int[Tensor, " batch"],
) -> Float[Tensor, " batch"]:
    return logit_diff(prompted.read_out(tokens, virtual, hooks, past).double().cpu(), labels)
