"""Exchange neurons between twin inputs: does a set carry the label from one run into the other?

Twins have equally many tokens and different labels. The *base* run takes the *source* run's values of the
chosen neurons at the chosen positions (an interchange intervention: Geiger et al., 2021; TransformerLens'
``SubspaceInterchange`` on the neurons' coordinates). With ``d`` the logit diff of a run, logit of the clean
twin's label minus the other's::

    recovered = mean of (d_patched - d_base) / mean of (d_source - d_base)

0 means that nothing moved, 1 that the base now answers as the source. *Denoising* puts clean into corrupted
(is the set enough?), *noising* corrupted into clean (is it needed?); they can differ (Heimersheim and Nanda,
2024).

Beside the set stand as many random neurons of the same layers, and a placebo: the same random neurons moved
as far as the set was (TransformerLens' ``NormMatchedPlacebo``). What it does not show: neurons that act
together can each recover nothing alone; more than one set can recover all.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor
from transformer_lens.patching import PatchingResult
from transformer_lens.tools.analysis.interchange import NormMatchedPlacebo, SubspaceInterchange, neuron_basis

from tl_skillneurons._checks import require_int, require_option
from tl_skillneurons._progress import progress_bar
from tl_skillneurons.interventions.ablation import Hook
from tl_skillneurons.models.sites import neuron_hooks, neuron_shape
from tl_skillneurons.neurons import SITE, NeuronSet
from tl_skillneurons.prompts.positions import PromptedTokens, columns
from tl_skillneurons.prompts.prompted_model import PromptedModel
from tl_skillneurons.prompts.soft_prompt import SoftPrompt, VirtualTokens
from tl_skillneurons.stats.chance import rank_p_value
from tl_skillneurons.stats.intervals import require_draws
from tl_skillneurons.tasks.task import Task

DIRECTIONS = ("denoise", "noise")
CURVES = ("layer", "cumulative", "neuron")
Twins = Sequence[tuple[str, str]]
"""Pairs of texts, clean and corrupted."""


@dataclass(frozen=True, eq=False)
class NeuronPatching:
    """What exchanging neurons between twins does to the logit diff.

    Attributes:
        results: By direction a TransformerLens ``PatchingResult``: the logit diff of each patched run,
            ``[condition, pair]``, over the base's as its baseline, with its intervals and tests.
        source: By direction the logit diff of the source run, ``[pair]``.
        settings: Model, neurons, site, positions and their frame, role, seed.
    """

    results: dict[str, PatchingResult]
    source: dict[str, Float[Tensor, " pair"]]
    settings: dict[str, Any]

    def recovered(self, direction: str = "denoise") -> Float[Tensor, " condition"]:
        """The fraction of the logit diff that each condition recovers, in the order of ``index_df``.

        Raises:
            ValueError: When clean and corrupted runs have the same mean logit diff: there is nothing to recover.
        """
        result = self.results[direction]
        return result.effect().mean(-1) / self._gap(direction)

    def _gap(self, direction: str) -> float:
        gap = float((self.source[direction] - self.results[direction].baseline).mean())
        if not gap:
            raise ValueError(
                "clean and corrupted runs have the same mean logit diff, so there is nothing to recover; does the "
                "prompt tell the classes apart? (the runs themselves are in results and source)"
            )
        return gap

    def to_dataframe(self, *, confidence: float = 0.95, seed: int = 0) -> pd.DataFrame:
        """One row per direction and set: the whole one, and the points of the curves.

        Columns: ``direction``, ``curve`` ("whole", "layer", "cumulative", "neuron"), ``layer`` and ``index``
        where the set has one, ``n_neurons``; ``recovered`` with its bootstrap interval over pairs (``low``,
        ``high``: of the patched diff, the gap as measured) and sign-flip p (``p_zero``); of the random neurons
        and of the placebo median, range and rank p of recovering as much (``random_...``, ``placebo_...``;
        single neurons have none of their own: they are ranked among those of the random sets).
        """
        rows = []
        for direction, result in self.results.items():
            frame = result.index_df
            share = self.recovered(direction)
            gap = self._gap(direction)
            ends = result.bootstrap_ci(confidence=confidence, seed=seed, of_effect=True)
            low, high = (end / gap for end in (ends if gap > 0 else ends[::-1]))
            p_zero = result.permutation_pvalue(seed=seed)
            for number, row in frame[frame.kind == "chosen"].iterrows():
                own = {"direction": direction, **row.drop(["kind", "draw"]).to_dict()}
                own |= {"recovered": float(share[number]), "low": float(low[number])}
                own |= {"high": float(high[number]), "p_zero": float(p_zero[number])}
                for kind in ("random", "placebo"):
                    of_kind = frame[(frame.kind == kind) & (frame.curve == row.curve)]
                    if row.curve != "neuron":
                        of_kind = of_kind[of_kind.point == row.point]
                    drawn = share[of_kind.index.tolist()]
                    if not len(drawn):
                        continue
                    own |= {f"{kind}_{end}": float(getattr(drawn, end)()) for end in ("median", "min", "max")}
                    own[f"p_{kind}"] = rank_p_value(float(share[number]), drawn, smaller=False)
                rows.append(own)
        return pd.DataFrame(rows).assign(n_pairs=len(next(iter(self.source.values()))))


def patch_neurons(
    model: Any,
    prompt: SoftPrompt,
    task: Task,
    neurons: NeuronSet,
    *,
    twins: Twins | None = None,
    clean_labels: Sequence[int] | None = None,
    directions: Sequence[str] = DIRECTIONS,
    positions: Any = "prompt",
    curves: Sequence[str] = ("layer", "cumulative"),
    n_random: int = 20,
    role: str = "report",
    seed: int = 0,
    batch_size: int | None = None,
    batch_tokens: int | None = None,
    max_length: int | None = None,
    progress: bool = True,
) -> NeuronPatching:
    """Exchange ``neurons`` between the twins of ``role``, beside ``n_random`` draws of each control.

    Args:
        task: Gives the label words, and the twins where it has them (:func:`~tl_skillneurons.minimal_pairs`):
            clean is the one of class 1.
        twins: Other pairs (clean, corrupted), of equal token length, with the class of each clean text in
            ``clean_labels``; of two classes.
        positions: As in :func:`~tl_skillneurons.ablate`; the set's values are exchanged there alone.
        curves: "layer": the set's neurons of each layer; "cumulative": its first 1, 2, 4, ... neurons in the
            set's order; "neuron": each alone.

    Raises:
        ValueError: For pairs of unequal length, neurons of another model, or fewer draws than a p-value of 0.05
            needs.
    """
    n_layers, d_mlp = neuron_shape(model)
    neurons.require_fits(n_layers, d_mlp)
    neurons = NeuronSet(neurons.layer, neurons.index, n_layers, d_mlp, neurons.model)
    if not len(neurons):
        raise ValueError("neurons must hold at least one neuron, got none")
    require_draws(n_random)
    require_int(seed, "seed", minimum=0)
    for one in directions:
        require_option(one, "directions", DIRECTIONS)
    for one in curves:
        require_option(one, "curves", CURVES)
    prompted = PromptedModel(model, prompt, task.label_words, max_length=max_length)
    pairs, labels = twins_of(prompted, task, role, twins, clean_labels)
    index, interventions = _conditions(neurons, curves, n_random, seed)
    options = {"batch_size": batch_size, "batch_tokens": batch_tokens}
    diffs = {d: torch.empty(len(index) + 2, len(pairs), dtype=torch.float64) for d in directions}
    total = len(directions) * len(pairs)
    with progress_bar("patching between twins", total, show=progress) as advance:
        for rows, diff in _patched(
            prompted, pairs, labels, neurons, directions, positions, interventions, options
        ):
            for direction in directions:
                diffs[direction][:, rows] = diff[direction]
                advance(len(rows))
    results = {
        direction: PatchingResult(
            values=found[2:],
            axis_names=[],
            index_df=index,
            metric_names=["logit_diff"],
            reduced=False,
            baseline=found[0],
        )
        for direction, found in diffs.items()
    }
    settings = {
        "model": model.cfg.model_name,
        "task": task.name,
        "neurons": [list(pair) for pair in neurons],
        "site": SITE,
        "positions": str(positions),
        "positions_frame": "with virtual tokens",
        "role": role if twins is None else "given twins",
        "n_random": n_random,
        "seed": seed,
    }
    return NeuronPatching(results, {d: found[1] for d, found in diffs.items()}, settings)


def twins_of(
    prompted: PromptedModel,
    task: Task,
    role: str,
    twins: Twins | None,
    clean_labels: Sequence[int] | None,
) -> tuple[list[tuple[str, str]], Float[Tensor, " pair"]]:
    """The pairs (clean, corrupted), and +1 for each whose clean text is of class 1, else -1.

    Raises:
        ValueError: For a task of more than two classes, labels that don't go with the twins, or twins of unequal
            token length.
    """
    if task.n_classes != 2:
        raise ValueError(f"twins need two classes, {task.name} has {task.n_classes}; take a binary subtask")
    if twins is None:
        pairs = [(one, zero) for zero, one in task.pairs(role)]
        labels = [1] * len(pairs)
    else:
        pairs = [tuple(pair) for pair in twins]
        labels = list(clean_labels or [])
    if not pairs or len(labels) != len(pairs) or not set(labels) <= {0, 1}:
        raise ValueError(
            f"give at least one pair of twins, with the class of each clean text in clean_labels (0 or 1); got "
            f"{len(pairs)} pairs and clean_labels={labels}"
        )
    lengths = [[len(ids) for ids in prompted.encode(list(pair))] for pair in pairs]
    for number, (clean, corrupted) in enumerate(lengths):
        if clean != corrupted:
            raise ValueError(
                f"twins must have equally many tokens, pair {number} has {clean} and {corrupted} "
                f"({pairs[number][0]!r}, {pairs[number][1]!r}); make twins with minimal_pairs(tokenizer=...)"
            )
    return pairs, 2.0 * torch.tensor(labels, dtype=torch.float64) - 1


Layers = dict[int, Callable[[Tensor, Tensor], Tensor]]
"""For each layer an intervention that maps base and source activations ``[row, neuron]`` to new ones."""


def _interchange(neurons: NeuronSet) -> Layers:
    return {
        layer: SubspaceInterchange(neuron_basis(neurons.d_mlp, index))
        for layer, index in neurons.by_layer().items()
    }


def _placebo(neurons: NeuronSet, random: NeuronSet) -> Layers:
    moved, instead = _interchange(neurons), _interchange(random)
    return {layer: NormMatchedPlacebo(moved[layer], instead[layer].basis) for layer in moved}


def _conditions(
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
        interventions.append(_interchange(own))
        for draw, whole in enumerate(draws):
            if curve == "neuron" and draw:  # the first draw's neurons, each alone, are the control of all
                break
            other = part(whole, chosen)  # neuron i of a draw stands for neuron i of the set
            rows.append({**row, "kind": "random", "draw": draw})
            interventions.append(_interchange(other))
            rows.append({**row, "kind": "placebo", "draw": draw})
            interventions.append(_placebo(own, other))

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
    return pd.DataFrame(rows), interventions


def _patched(
    prompted: PromptedModel,
    pairs: Sequence[tuple[str, str]],
    labels: Tensor,
    neurons: NeuronSet,
    directions: Sequence[str],
    positions: Any,
    interventions: Sequence[Layers],
    options: dict[str, Any],
) -> Any:
    """For each batch of pairs its rows, and by direction the logit diffs: of base, source, each condition."""
    clean, corrupted = (prompted.encode([pair[side] for pair in pairs]) for side in (0, 1))
    names = {layer: neuron_hooks(prompted.model)[layer] for layer in neurons.by_layer()}
    with prompted.attached() as virtual, torch.no_grad():
        apart = positions == "prompt" and prompted.runs_apart(virtual)
        for rows in prompted.batches(clean, **options):
            sides = {
                "clean": prompted.assemble([clean[i] for i in rows], rows),
                "corrupted": prompted.assemble([corrupted[i] for i in rows], rows),
            }
            pasts = {side: prompted.past(tokens) if apart else None for side, tokens in sides.items()}
            sign = labels[rows]
            intact, acts = {}, {}
            for side, tokens in sides.items():
                acts[side] = {}
                look = _keep(names, acts[side])
                intact[side] = _diff(prompted, tokens, virtual, look, pasts[side], sign)
            found = {}
            for direction in directions:
                base, source = ("corrupted", "clean") if direction == "denoise" else ("clean", "corrupted")
                diffs = [intact[base], intact[source]]
                for layers in interventions:
                    hooks = _exchange(layers, names, acts[source], positions)
                    diffs.append(_diff(prompted, sides[base], virtual, hooks, pasts[base], sign))
                found[direction] = torch.stack(diffs)
            yield rows, found


def _diff(
    prompted: PromptedModel,
    tokens: PromptedTokens,
    virtual: VirtualTokens,
    hooks: list[Hook],
    past: Any,
    sign: Tensor,
) -> Float[Tensor, " batch"]:
    logits = prompted.read_out(tokens, virtual, hooks, past).double().cpu()
    return sign * (logits[:, 1] - logits[:, 0])


def _keep(names: dict[int, str], kept: dict[int, Tensor]) -> list[Hook]:
    def at(layer: int) -> Callable[..., None]:
        def note(act: Tensor, hook: Any) -> None:
            kept[layer] = act

        return note

    return [(name, at(layer)) for layer, name in names.items()]


def _exchange(layers: Layers, names: dict[int, str], source: dict[int, Tensor], positions: Any) -> list[Hook]:
    def at(layer: int, intervene: Callable[[Tensor, Tensor], Tensor]) -> Callable[..., Tensor]:
        def exchange(act: Tensor, hook: Any) -> Tensor:
            where = columns(positions, act, hook)
            new = act.clone()
            new[where] = intervene(act[where], source[layer][where])
            return new

        return exchange

    return [(names[layer], at(layer, intervene)) for layer, intervene in layers.items()]
