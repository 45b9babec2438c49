"""Path patching, head to neurons: what heads carry from one twin into chosen neurons, by the direct path alone.

Three runs (Wang et al., 2023; Goldowsky-Dill et al., 2023), base and source being twins of different label:

1. base and source, to know their heads' outputs;
2. base again, every head's and every MLP's output as in base, but for the chosen heads at the prompt positions,
   which write what they wrote in source: what reaches the chosen neurons now came straight through the residual
   stream and the norms;
3. base with the neurons at the values of run 2, everything else following: what the answer makes of it.

Two fractions are told, with ``d`` a run's logit diff and ``a`` its neurons' activations (mean over prompt positions)::

    recovered answer     = (mean of d_patched - mean of d_base) / (mean of d_source - mean of d_base)
    recovered activation = sum of (a_patched - a_base) * (a_source - a_base) / sum of (a_source - a_base)^2

The control is as many random heads of the same layers, no set twice, or of all layers where those have too few others
for a p-value of 0.05. What it does not show: paths through other heads, MLPs or
positions, which may carry as much.
"""

import math
import os
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformer_lens.hook_points import HookPoint
from transformer_lens.model_bridge import TransformerBridge

from tl_skillneurons._checks import require_seed
from tl_skillneurons._files import load_tensors, save_tensors, sound
from tl_skillneurons._progress import progress_bar
from tl_skillneurons._results import html_of, one_line
from tl_skillneurons.attention._heads import Head, require_heads
from tl_skillneurons.attention._over_task import POSITIONS, settings_of
from tl_skillneurons.attention.chosen import require_heads_apart
from tl_skillneurons.attention.head_ablation import controls_of_heads
from tl_skillneurons.interventions._measured import units_record, units_said, units_told
from tl_skillneurons.interventions.each_class import clean_labels_of, pairs_of_each_class
from tl_skillneurons.interventions.twins import INSIST, Twins, logit_diff, no_fraction, twins_of, twins_record
from tl_skillneurons.models.hooks import Hook
from tl_skillneurons.models.sites import head_hooks, mlp_outputs, neuron_hooks, neuron_shape
from tl_skillneurons.models.verification import require
from tl_skillneurons.neurons.neuron_set import SITE, Neurons, NeuronSet, as_neurons
from tl_skillneurons.prompts.attached import VirtualTokens
from tl_skillneurons.prompts.positions import PromptedTokens, columns
from tl_skillneurons.prompts.prompted_model import PromptedModel
from tl_skillneurons.prompts.run import RunOptions
from tl_skillneurons.prompts.soft_prompt import SoftPrompt
from tl_skillneurons.stats.hypothesis_tests import rank_p_value, require_draws
from tl_skillneurons.stats.intervals import doubtful_gap, ratio_interval
from tl_skillneurons.stats.ranks import median
from tl_skillneurons.stats.units import Units
from tl_skillneurons.tasks.task import Task

KIND = "PathPatching"
_TENSORS = ("logit_diff", "activations")


@dataclass(frozen=True, eq=False)
class PathPatching:
    """What heads carry into neurons by the direct path, beside random heads.

    Attributes:
        heads: The heads of each condition: the chosen ones, then each draw's.
        logit_diff: Base, source, then each condition; logit of the clean twin's label minus the other's. Base is
            the corrupted twin, source the clean one.
        activations: The neurons', averaged over prompt positions, likewise.
        settings: Model, task, prompt, ``max_length``, neurons, site, twins, the units of their pairs, how many texts
            were cut, draws and their seed.

    Example:
        >>> found = skn.attention.patch_heads_to_neurons(model, prompt, task, writers.top_heads(3), skill)
        >>> found.recovered_activation[0]  # 1 where all of it came by the direct path
    """

    heads: tuple[tuple[Head, ...], ...]
    logit_diff: Float[Tensor, "run pair"]
    activations: Float[Tensor, "run pair neuron"]
    settings: dict[str, Any]

    @property
    def recovered_answer(self) -> Float[Tensor, " condition"]:
        """How far the mean logit diff went from base to source.

        Raises:
            ValueError: When the gap between base and source is zero, or its interval over units of pairs holds zero.
        """
        if doubt := self._no_answer():
            raise ValueError(f"{doubt}; read logit_diff")
        base, source, *patched = self.logit_diff.mean(1)
        return (torch.stack(patched) - base) / (source - base)

    def _no_answer(self) -> str | None:
        return no_fraction(self.logit_diff[1] - self.logit_diff[0], self.units)

    @property
    def units(self) -> Units:
        """Which pairs belong together."""
        return units_told(self.settings.get("units"), self.logit_diff.shape[1])

    @property
    def recovered_activation(self) -> Float[Tensor, " condition"]:
        """How far the neurons went: their change projected on that from base to source, over pairs and neurons.

        Raises:
            ValueError: When no neuron differs between base and source, or one's activation is not finite.
        """
        if doubt := self._no_way():
            raise ValueError(f"{doubt}; read activations")
        base, source = self.activations[:2]
        way = source - base
        return ((self.activations[2:] - base) * way).sum((1, 2)) / way.square().sum()

    def _no_way(self) -> str | None:
        if not self.activations.isfinite().all():
            return "activations are not finite: there is no fraction of their change"
        if not (self.activations[1] - self.activations[0]).square().sum() > 0:
            return "the neurons are the same in base and source: there is no change to recover"
        return None

    def _interval(self, name: str, confidence: float, seed: int) -> tuple[float, float]:
        """Of what the chosen heads recovered, the ratio of two means over pairs; NaN where the second is in doubt."""
        base, source, patched = (self.activations if name == "activation" else self.logit_diff)[:3]
        part, gap = patched - base, source - base
        if name == "activation":
            part, gap = (part * gap).sum(1), gap.square().sum(1)
        how: dict[str, Any] = {"confidence": confidence, "seed": seed, "units": self.units}
        if doubtful_gap(gap, **how):
            return math.nan, math.nan
        low, high = ratio_interval(part, gap, **how)
        return float(low), float(high)

    def to_dataframe(self, *, confidence: float = 0.95, seed: int = 0) -> pd.DataFrame:
        """Two rows, ``measure`` "activation" and "answer": ``recovered`` with its bootstrap interval over units
        (``low``, ``high``, of the ratio; NaN of too few units), and of the random heads median, range and the rank p of
        recovering as much (``random_median``, ``random_min``, ``random_max``, ``p_random``);
        ``smallest_p``, what so many distinct draws allow, and ``drawn_from`` which layers;
        ``heads_chosen`` and ``neurons_chosen`` "on other examples", "on these examples" (by insistence) or "unknown".

        Where :attr:`recovered_activation` or :attr:`recovered_answer` is refused its row holds NaN, and a warning says
        why. ``n_pairs`` twins in ``n_units`` of what ``unit`` says; ``n_cut`` of their texts lost their end.
        """
        require_seed(seed)
        rows: list[dict[str, Any]] = []
        doubts = {"activation": (self._no_way(), "activations"), "answer": (self._no_answer(), "logit_diff")}
        for name, (doubt, instead) in doubts.items():
            if doubt:
                warnings.warn(f"{doubt}; what the {name} recovered is NaN, read {instead}", stacklevel=2)
                columns = (
                    "recovered",
                    "low",
                    "high",
                    "random_median",
                    "random_min",
                    "random_max",
                    "p_random",
                )
                rows.append({"measure": name, **dict.fromkeys(columns, torch.nan)})
                continue
            recovered, *drawn = getattr(self, f"recovered_{name}").tolist()
            row = {"measure": name, "recovered": recovered, "random_median": median(drawn)}
            row |= dict(zip(("low", "high"), self._interval(name, confidence, seed), strict=True))
            row |= {"random_min": min(drawn), "random_max": max(drawn)}
            rows.append({**row, "p_random": rank_p_value(recovered, drawn, "greater")})
        return pd.DataFrame(rows).assign(
            smallest_p=1 / len(self.heads),
            drawn_from=self.settings["drawn_from"],
            n_pairs=self.logit_diff.shape[1],
            unit=self.units.what,
            n_units=len(self.units),
            n_cut=self.settings.get("n_cut"),
            heads_chosen=self.settings["heads_chosen"],
            neurons_chosen=self.settings["neurons_chosen"],
        )

    def each_class(self, *, confidence: float = 0.95, seed: int = 0) -> pd.DataFrame:
        """The same between the twins whose clean text is of each ``class`` alone, and beside it between all other twins
        (``rest_recovered``, ``rest_low``, ``rest_high``)."""
        how: dict[str, Any] = {"confidence": confidence, "seed": require_seed(seed)}
        labels = clean_labels_of(self.settings)
        beside = ("recovered", "low", "high")
        return pairs_of_each_class(labels, lambda here: self._of_pairs(here).to_dataframe(**how), beside)

    def _of_pairs(self, here: Bool[Tensor, " pair"]) -> "PathPatching":
        units = units_record(self.units.take(here.nonzero().flatten()))
        settings = {**self.settings, "units": units}
        return PathPatching(self.heads, self.logit_diff[:, here], self.activations[:, here], settings)

    def __repr__(self) -> str:
        return one_line(
            self,
            heads=self.heads[0] if len(self.heads[0]) <= 5 else f"{len(self.heads[0])} heads",
            n_neurons=self.activations.shape[2],
            n_random=len(self.heads) - 1,
            n_pairs=self.logit_diff.shape[1],
            units=units_said(self.units),
            recovered_activation=None if self._no_way() else float(self.recovered_activation[0]),
            recovered_answer=None if self._no_answer() else float(self.recovered_answer[0]),
        )

    def _repr_html_(self) -> str:
        return html_of(self)

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the result to one safetensors file, whole or not at all."""
        heads = [[list(head) for head in condition] for condition in self.heads]
        header = {"heads": heads, "settings": self.settings}
        return save_tensors(path, KIND, {name: getattr(self, name) for name in _TENSORS}, header)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "PathPatching":
        """The result that :meth:`save` wrote.

        Raises:
            FileNotFoundError: When there is no such file.
            ValueError: When the file is corrupt or holds something else.
        """
        tensors, header = load_tensors(path, KIND)
        with sound(path, KIND):
            heads = tuple(tuple(require_heads(one)) for one in header["heads"])
            logit_diffs, activations = (tensors[name] for name in _TENSORS)
            if not len(heads) + 2 == len(logit_diffs) == len(activations):
                raise ValueError(f"it tells {len(heads)} conditions, and holds {len(logit_diffs) - 2}")
            return cls(heads, logit_diffs, activations, header["settings"])


def patch_heads_to_neurons(
    model: TransformerBridge,
    prompt: SoftPrompt,
    task: Task,
    heads: Sequence[Head],
    neurons: Neurons,
    *,
    twins: Twins | str = "report",
    n_random: int = 20,
    seed: int = 0,
    max_length: int | None = None,
    run: RunOptions = RunOptions(),
) -> PathPatching:
    """Patch the paths from ``heads`` at the prompt positions to ``neurons``, clean into corrupted.

    Args:
        task: Gives the label words, and the twins where it has them (:func:`~tl_skillneurons.minimal_pairs`).
        twins: The role of the task whose twins are taken, or other pairs of equal token length, ``Twins(...)``. Not
            those that chose the heads or the neurons, unless ``Twins.of(task, role, on_chosen_examples=True)`` insists.
        n_random: Distinct draws of random heads, or all that there are; 19 at least, as a p-value of 0.05 needs.
        max_length: Longest sequence in tokens; by default what the prompt was tuned with.

    Raises:
        ValueError: For pairs of unequal length, heads or neurons of another model or that these twins chose, or fewer
            draws than a p-value of 0.05 needs.

    Example:
        >>> found = skn.attention.patch_heads_to_neurons(model, prompt, task, writers.top_heads(3), skill)
        >>> found.to_dataframe()
    """
    neurons = as_neurons(neurons)
    neurons.require_fits(*neuron_shape(model))
    if not len(neurons):
        raise ValueError("neurons must hold at least one neuron, got none")
    require_draws(n_random)
    require_seed(seed)
    n_layers, n_heads = len(model.blocks), int(model.cfg.n_heads)
    chosen = require_heads(heads, n_layers, n_heads)
    draw = partial(controls_of_heads, chosen, n_random, seed=seed, n_heads=n_heads, n_layers=n_layers)
    draws, drawn_from = draw(), "the same layers"
    if len(draws) < 19:  # too few for a p-value of 0.05
        draws, drawn_from = draw(all_layers=True), "all layers"
    conditions = [chosen, *draws]
    prompted = PromptedModel.for_task(model, prompt, task, max_length=max_length, run=run)
    pairs = twins_of(task, twins)
    where_chosen = require_heads_apart(heads, pairs.texts, insist=pairs.on_chosen_examples, by=INSIST)
    neurons_chosen = pairs.where_chosen(neurons)
    clean, corrupted = pairs.encode(prompted)
    diffs = torch.empty(len(conditions) + 2, len(clean), dtype=torch.float64)
    acts = torch.empty(len(conditions) + 2, len(clean), len(neurons), dtype=torch.float64)
    with (
        progress_bar("path patching", len(clean), show=run.progress) as advance,
        prompted.attached() as virtual,
        torch.no_grad(),
    ):
        for rows in prompted.batches(clean):
            base, source = (prompted.assemble([ids[i] for i in rows], rows) for ids in (corrupted, clean))
            runs = _Runs(prompted, virtual, base, source, neurons)
            found = [runs.base, runs.source, *(runs.path(one) for one in conditions)]
            for number, (logits, values) in enumerate(found):
                diffs[number, rows] = logit_diff(logits.cpu(), pairs.labels[rows]).double()
                acts[number, rows] = values
            advance(len(rows))
    settings = settings_of(
        prompted,
        task,
        neurons=[list(pair) for pair in neurons],
        site=SITE,
        positions=POSITIONS,
        twins=twins_record(twins),
        clean_labels=list(pairs.clean_labels),
        units=units_record(pairs.together),
        n_cut=pairs.n_cut(prompted),
        drawn_from=drawn_from,
        heads_chosen=where_chosen,
        neurons_chosen=neurons_chosen,
        n_random=n_random,
        seed=seed,
    )
    return PathPatching(tuple(tuple(one) for one in conditions), diffs, acts, settings)


class _Runs:
    """The runs of one batch of twins."""

    def __init__(
        self,
        prompted: PromptedModel,
        virtual: VirtualTokens,
        base: PromptedTokens,
        source: PromptedTokens,
        neurons: NeuronSet,
    ) -> None:
        self.prompted, self.virtual, self.tokens, self.neurons = prompted, virtual, base, neurons
        model = prompted.model
        require(model, "neurons", "heads")
        self.heads = head_hooks(model)
        self.mlps = mlp_outputs(model)
        self.posts = {layer: neuron_hooks(model)[layer] for layer in neurons.by_layer()}
        at = base.prompt_columns()
        self.at = (torch.arange(len(base), device=at.device)[:, None], at)
        self.of_base: dict[str, Tensor] = {}
        self.of_source: dict[str, Tensor] = {}
        self.base = self._plain(base, self.of_base)
        self.source = self._plain(source, self.of_source)

    def path(self, heads: Sequence[Head]) -> tuple[Tensor, Tensor]:
        """Class logits and the neurons' activations with the paths from these heads patched."""
        moved: dict[str, Tensor] = {}
        frozen: list[Hook] = [(name, self._give(self.of_base[name])) for name in self.mlps]
        for layer, name in enumerate(self.heads):
            z = self.of_base[name]
            own = [head for at, head in heads if at == layer]
            if own:
                z = z.clone()
                where = columns("prompt", z, self.prompted.model.hook_dict[name])[..., None, None]
                z[:, :, own] = torch.where(where, self.of_source[name][:, :, own], z[:, :, own])
            frozen.append((name, self._give(z)))
        look: list[Hook] = [(name, self._note(name, moved)) for name in self.posts.values()]
        self._read_out(self.tokens, [*frozen, *look])
        put: list[Hook] = [
            (self.posts[layer], self._put(index, moved[self.posts[layer]]))
            for layer, index in self.neurons.by_layer().items()
        ]
        return self._read_out(self.tokens, put), self._activations(moved)

    def _plain(self, tokens: PromptedTokens, kept: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        names = [*self.heads, *self.mlps, *self.posts.values()]
        logits = self._read_out(tokens, [(name, self._note(name, kept)) for name in names])
        return logits, self._activations(kept)

    def _read_out(self, tokens: PromptedTokens, hooks: list[Hook]) -> Tensor:
        return self.prompted.read_out(tokens, self.virtual, hooks)

    def _activations(self, kept: dict[str, Tensor]) -> Float[Tensor, "pair neuron"]:
        found = torch.empty(len(self.tokens), len(self.neurons), dtype=torch.float64)
        for layer, index in self.neurons.by_layer().items():
            feature = (self.neurons.layer == layer).nonzero().flatten()
            values = kept[self.posts[layer]][self.at][..., index.to(self.at[1].device)]
            found[:, feature] = values.double().mean(1).cpu()
        return found

    @staticmethod
    def _note(name: str, kept: dict[str, Tensor]) -> Callable[..., None]:
        def note(act: Tensor, hook: HookPoint) -> None:
            kept[name] = act

        return note

    @staticmethod
    def _give(value: Tensor) -> Callable[..., Tensor]:
        return lambda act, hook: value

    def _put(self, index: Int[Tensor, " own"], moved: Tensor) -> Callable[..., Tensor]:
        def put(act: Tensor, hook: HookPoint) -> Tensor:
            where = columns("prompt", act, hook)[..., None]
            here = index.to(act.device)
            return act.index_copy(-1, here, torch.where(where, moved[..., here], act[..., here]))

        return put
