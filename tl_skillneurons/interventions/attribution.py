"""A first-order estimate of what patching each neuron alone would do, for all neurons at once.

Attribution patching (Nanda, 2023; Syed et al., 2023) at every ``mlp.hook_post``: with ``d`` the logit diff of the
base run, what a neuron's value from the source run would change is estimated as::

    sum over positions of (a_source - a_base) * gradient of d with respect to a

Two forward runs and one backward per batch give every neuron. ``steps > 1`` averages the gradient over runs
whose embeddings lie between base and source (integrated gradients on the input: Hanna et al., 2024).

It is a tangent: wrong where the model bends, which is where much is at stake. ``compare_with_exact`` patches
neurons for real, the highest and a random sample, and tells how far the ranks agree. A neuron that nothing
reads can still get a small score through the scale of a norm.
"""

import os
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor
from transformer_lens.hook_points import HookPoint
from transformer_lens.model_bridge import TransformerBridge

from tl_skillneurons._checks import require_int, require_option
from tl_skillneurons._files import load_tensors, save_tensors, sound
from tl_skillneurons._pictures import plotted
from tl_skillneurons._progress import progress_bar
from tl_skillneurons._results import html_of, one_line
from tl_skillneurons._widths import known, present, widest, width_in
from tl_skillneurons.interventions._measured import units_record, units_said, units_told
from tl_skillneurons.interventions.ablation import Positions, positions_record
from tl_skillneurons.interventions.each_class import clean_labels_of
from tl_skillneurons.interventions.twins import (
    DIRECTIONS,
    Twins,
    logit_diff,
    no_fraction,
    twins_of,
    twins_record,
)
from tl_skillneurons.models.hooks import Hook, Hooks
from tl_skillneurons.models.records import model_record
from tl_skillneurons.models.sites import neuron_hooks, neuron_shape
from tl_skillneurons.models.verification import require
from tl_skillneurons.neurons.choice import Choice, text_fingerprints
from tl_skillneurons.neurons.neuron_set import SITE, Neurons, NeuronSet, as_neurons
from tl_skillneurons.prompts.attached import VirtualTokens
from tl_skillneurons.prompts.positions import PromptedTokens, columns
from tl_skillneurons.prompts.prompted_model import PromptedModel
from tl_skillneurons.prompts.run import RunOptions, prompt_record
from tl_skillneurons.prompts.soft_prompt import SoftPrompt
from tl_skillneurons.stats.units import Units
from tl_skillneurons.tasks.task import Task

KIND = "NeuronAttribution"


@dataclass(frozen=True, eq=False, repr=False)
class NeuronAttribution:
    """Estimated change of the logit diff by patching each neuron alone, averaged over pairs.

    Attributes:
        effect: In logits; for "denoise" positive values recover the clean answer, for "noise" negative values
            take it away.
        gaps: Of each pair the logit diff of the source run minus that of the base run: what there is to move.
        by_class: ``effect`` over the pairs whose clean text is of each class alone; NaN where there is none.
        settings: Model, prompt, task, site, direction, positions and their frame, twins, the units of their pairs, how
            many texts were cut, steps.

    Example:
        >>> found = skn.attribute_neurons(model, prompt, task)
        >>> found.recovered[3, 1041]  # neuron 1041 of layer 3
    """

    effect: Float[Tensor, "layer neuron"]
    gaps: Float[Tensor, " pair"]
    settings: dict[str, Any]
    by_class: Float[Tensor, "class layer neuron"] | None = None

    @property
    def gap(self) -> float:
        """The mean gap over pairs."""
        return float(self.gaps.sum()) / len(self.gaps)

    @property
    def units(self) -> Units:
        """Which pairs belong together."""
        return units_told(self.settings.get("units"), len(self.gaps))

    @property
    def recovered(self) -> Float[Tensor, "layer neuron"]:
        """The same as a fraction of the gap, as :meth:`NeuronPatching.recovered` has it.

        Raises:
            ValueError: When the gap is zero, or its interval over units of pairs holds zero.
        """
        if doubt := no_fraction(self.gaps, self.units):
            raise ValueError(f"{doubt}; read effect, in logits")
        return self.effect / self.gap

    def top(self, n: int) -> NeuronSet:
        """The neurons that recover most by this estimate, highest first; they remember the twins that chose them.

        Raises:
            ValueError: When the gap is zero, its interval over pairs holds zero, or an effect is not finite.
        """
        if doubt := self._no_ranking():
            raise ValueError(f"{doubt}; no neuron recovers more than another, read effect, in logits")
        toward = self.effect if self.gap > 0 else -self.effect
        flat = rearrange(toward.masked_fill(toward.isnan(), -torch.inf), "layer neuron -> (layer neuron)")
        there = len(known(self.effect))
        order = flat.argsort(descending=True, stable=True)[: min(require_int(n, "n"), there)]
        n_layers, d_mlp = self.effect.shape
        choice = Choice.recorded(self.settings.get("chose"))
        choice = None if choice is None else replace(choice, score=toward)
        name = self.settings["model"]["name"]
        return NeuronSet(order // d_mlp, order % d_mlp, n_layers, width_in(self.effect), name, choice)

    def _no_ranking(self) -> str | None:
        unknown = ~self.effect.isfinite()
        if "d_mlp" in self.settings.get("model", {}):
            unknown &= present(len(self.effect), tuple(self.settings["model"]["d_mlp"]))
        if unknown.any():
            return f"{int(unknown.sum())} effects are not finite"
        return no_fraction(self.gaps, self.units)

    def to_dataframe(self) -> pd.DataFrame:
        """One row per neuron, in the model's order: ``layer``, ``index``, ``effect`` in logits, ``recovered``.

        Where the gap is zero, or its interval over pairs holds zero, ``recovered`` is NaN, and a warning says why.
        """
        frame = NeuronSet.from_mask(~self.effect.isnan()).to_dataframe()
        frame["effect"] = known(self.effect).tolist()
        if doubt := no_fraction(self.gaps, self.units):
            warnings.warn(f"{doubt}; recovered is NaN, read effect, in logits", stacklevel=2)
            return frame.assign(recovered=float("nan"))
        frame["recovered"] = known(self.recovered).tolist()
        return frame

    def each_class(self, neurons: Neurons) -> pd.DataFrame:
        """A row per neuron and ``class`` of the clean text: ``effect`` over the pairs of this class alone, in logits,
        ``rest_effect`` over all others, and ``n_pairs``: of several classes a neuron may move one alone.

        Raises:
            ValueError: For neurons of another model.

        Example:
            >>> attribution.each_class(attribution.top(10))
        """
        neurons = as_neurons(neurons)
        neurons.require_fits(len(self.effect), width_in(self.effect))
        labels = torch.tensor(clean_labels_of(self.settings))
        assert self.by_class is not None  # for type checkers: it stands beside the classes
        whole = self.effect[neurons.layer, neurons.index] * len(labels)
        rows = []
        for label in labels.unique().tolist():
            n = int((labels == label).sum())
            own = self.by_class[label, neurons.layer, neurons.index]
            rest = (
                (whole - own * n) / (len(labels) - n) if n < len(labels) else torch.full_like(own, torch.nan)
            )
            table = neurons.to_dataframe().assign(**{"class": label})
            rows.append(table.assign(effect=own.tolist(), rest_effect=rest.tolist(), n_pairs=n))
        return pd.concat(rows).sort_index(kind="stable").reset_index(drop=True)

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write it as safetensors, whole or not at all; returns its path."""
        tensors = {"effect": self.effect, "gaps": self.gaps}
        tensors |= {} if self.by_class is None else {"by_class": self.by_class}
        return save_tensors(path, KIND, tensors, {"settings": self.settings})

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "NeuronAttribution":
        """What :meth:`save` wrote.

        Raises:
            FileNotFoundError: When there is no such file.
            ValueError: When the file is corrupt or holds something else.
        """
        tensors, header = load_tensors(path, KIND)
        with sound(path, KIND):
            if tensors["effect"].ndim != 2:
                raise ValueError(
                    f"effect must be [layer, neuron], got shape {tuple(tensors['effect'].shape)}"
                )
            if tensors["gaps"].ndim != 1 or not len(tensors["gaps"]):
                raise ValueError(f"gaps must be [pair], got shape {tuple(tensors['gaps'].shape)}")
            return cls(tensors["effect"], tensors["gaps"], header["settings"], tensors.get("by_class"))

    def __repr__(self) -> str:
        best = None if self._no_ranking() else list(self.top(3))
        names = ("direction", "positions", "steps")
        shown = {name: self.settings.get(name) for name in names}
        told = {"n_pairs": len(self.gaps), "units": units_said(self.units)}
        return one_line(self, shape=list(self.effect.shape), gap=self.gap, best=best, **told, **shown)

    def _repr_html_(self) -> str:
        return html_of(self)

    def plot(self, scores: Any, chosen: Neurons | None = None) -> Any:
        """A plotly ``Figure`` of what can be read against what moves: ``skn.plots.plot_read_and_drive``.

        Args:
            scores: Of the same model: what can be read.
            chosen: Neurons to mark.

        Raises:
            ImportError: Without plotly.
        """
        chosen = None if chosen is None else as_neurons(chosen)
        return plotted("plot_read_and_drive")(scores, self, chosen)


def attribute_neurons(
    model: TransformerBridge,
    prompt: SoftPrompt,
    task: Task,
    *,
    twins: Twins | str = "select",
    direction: str = "denoise",
    positions: Positions = "prompt",
    steps: int = 1,
    max_length: int | None = None,
    run: RunOptions = RunOptions(),
) -> NeuronAttribution:
    """Estimate for every neuron what :func:`~tl_skillneurons.patch_neurons` would find for it alone.

    Args:
        task, positions, max_length: As in :func:`~tl_skillneurons.patch_neurons`.
        twins: Likewise; by default those of ``select``, for this chooses neurons (:meth:`NeuronAttribution.top`).
        steps: Runs between base and source whose gradients are averaged; 1 takes that of the base run.

    Raises:
        ValueError: Inside ``torch.no_grad()`` or ``torch.inference_mode()``, where a run has no graph; for pairs of
            unequal length.

    Example:
        >>> attribution = skn.attribute_neurons(model, prompt, task)
        >>> attribution.top(20)
    """
    if torch.is_inference_mode_enabled() or not torch.is_grad_enabled():
        raise ValueError(
            "attribution needs gradients; call it outside torch.no_grad() and torch.inference_mode()"
        )
    require_option(direction, "direction", DIRECTIONS)
    require_int(steps, "steps")
    prompted = PromptedModel.for_task(model, prompt, task, max_length=max_length, run=run)
    pairs = twins_of(task, twins)
    sides = pairs.encode(prompted)
    source, base = sides if direction == "denoise" else sides[::-1]
    n_layers, width = neuron_shape(model)
    sums = torch.zeros(task.n_classes, n_layers, widest(width), dtype=torch.float64)
    sums.masked_fill_(~present(n_layers, width), torch.nan)
    gaps, n_pairs = torch.empty(len(pairs.pairs)), len(pairs.pairs)
    with prompted.attached() as virtual, progress_bar("attribution", n_pairs, show=run.progress) as advance:
        for rows in prompted.batches(base):
            of_base, of_source = (prompted.assemble([ids[i] for i in rows], rows) for ids in (base, source))
            change, gaps[rows] = _attribute(
                prompted, of_base, of_source, virtual, pairs.labels[rows], positions, steps
            )
            for layer, of_layer in change.items():
                sums[:, layer, : of_layer.shape[1]].index_add_(0, pairs.labels[rows], of_layer)
            advance(len(rows))
    settings = {
        "model": model_record(model),
        "prompt": prompt_record(prompt),
        "max_length": prompted.max_length,
        "task": {"name": task.name, "fingerprint": task.fingerprint},
        "site": SITE,
        "direction": direction,
        "positions": positions_record(positions),
        "positions_frame": "with virtual tokens",
        "twins": twins_record(twins),
        "clean_labels": list(pairs.clean_labels),
        "units": units_record(pairs.together),
        "n_cut": pairs.n_cut(prompted),
        "chose": Choice(
            twins if isinstance(twins, str) else "twins", frozenset(text_fingerprints(pairs.texts))
        ).record,
        "steps": steps,
    }
    n_each = pairs.labels.bincount(minlength=task.n_classes)[:, None, None]
    return NeuronAttribution(sums.sum(0) / n_pairs, gaps, settings, sums / n_each)


def _attribute(
    prompted: PromptedModel,
    base: PromptedTokens,
    source: PromptedTokens,
    virtual: VirtualTokens,
    labels: Tensor,
    positions: Positions,
    steps: int,
) -> tuple[dict[int, Float[Tensor, "batch neuron"]], Float[Tensor, " batch"]]:
    """Each layer's estimated change of each pair, and each pair's gap."""
    require(prompted.model, "neurons")
    names = neuron_hooks(prompted.model)
    embeds: dict[str, Tensor] = {}
    acts: dict[str, list[Tensor]] = {"base": [], "source": []}
    where: dict[str, Tensor] = {}

    def keep_embed(side: str) -> Callable[..., None]:
        def note(act: Tensor, hook: HookPoint) -> None:
            embeds[side] = act.detach()

        return note

    def keep(side: str) -> Callable[..., None]:
        def note(act: Tensor, hook: HookPoint) -> None:
            acts[side].append(act.detach())
            where["columns"] = columns(positions, act, hook)

        return note

    diffs = {}
    with torch.no_grad():
        for side, tokens in (("base", base), ("source", source)):
            hooks: list[Hook] = [("embed.hook_out", keep_embed(side))]
            hooks += [(name, keep(side)) for name in names.values()]
            diffs[side] = _diff(prompted, tokens, virtual, hooks, labels)
    gradients = [torch.zeros_like(act) for act in acts["base"]]
    for step in range(steps):
        share = 0.0 if steps == 1 else (step + 0.5) / steps
        between = torch.lerp(embeds["base"], embeds["source"], share)
        live: list[Tensor] = []

        def start(act: Tensor, hook: HookPoint, between: Tensor = between) -> Tensor:
            return between.clone().requires_grad_(True)

        def hold(act: Tensor, hook: HookPoint, live: list[Tensor] = live) -> Tensor:
            live.append(act)
            return act  # which OPT, that shows a view, would else go on without

        hooks = [("embed.hook_out", start), *((name, hold) for name in names.values())]
        total = _diff(prompted, base, virtual, hooks, labels).sum()
        for gradient, new in zip(gradients, torch.autograd.grad(total, live), strict=True):
            gradient += new / steps
    chosen = where["columns"][..., None]
    change = {
        layer: ((s - b).double() * g.double() * chosen).sum(1).cpu()
        for layer, b, s, g in zip(names, acts["base"], acts["source"], gradients, strict=True)
    }
    return change, (diffs["source"] - diffs["base"]).float().cpu()


def _diff(
    prompted: PromptedModel, tokens: PromptedTokens, virtual: VirtualTokens, hooks: Hooks, labels: Tensor
) -> Float[Tensor, " batch"]:
    return logit_diff(prompted.read_out(tokens, virtual, hooks), labels)
