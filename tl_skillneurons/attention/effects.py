"""Do the heads matter that write into skill neurons? Ablate them, and look at the neurons and the answers again.

Heads' outputs are held (:mod:`~tl_skillneurons.attention.head_ablation`), and the neurons are scored anew by how far
apart they hold the labels, in standard deviations of the intact run. With ``a_n(x)`` a neuron's activation averaged
over the prompt positions::

    separation_n = (mean of a_n(x) over label 1  -  mean of a_n(x) over label 0) / std of the intact a_n(x)

The answers are the class logits of the same runs.

Two controls stand beside it: as many random heads of the same layers (of other layers where one has too few others),
and random ones among those that write as much (norm of a head's output, and of its output weights). No control is
drawn twice. Where the layers have so few heads that one of the two can't give a p-value of 0.05, a third stands beside
them, random heads of all layers. What it does not show: by which path a head matters, for an ablated head is missing
everywhere; and a head whose ablation changes nothing may have others that stand in (Wang et al., 2023).
"""

import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from einops import reduce
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformer_lens.hook_points import HookPoint
from transformer_lens.model_bridge import TransformerBridge

from tl_skillneurons._checks import require_option, require_seed
from tl_skillneurons._files import load_tensors, save_tensors, sound
from tl_skillneurons._progress import progress_bar
from tl_skillneurons._results import html_of, one_line
from tl_skillneurons.attention._heads import Head, require_heads
from tl_skillneurons.attention._over_task import settings_of
from tl_skillneurons.attention.chosen import require_heads_apart
from tl_skillneurons.attention.each_class import answers, head_effects_on_each_class
from tl_skillneurons.attention.head_ablation import ablate_heads, controls_of_heads
from tl_skillneurons.attention.outputs import HeadOutputs, head_outputs
from tl_skillneurons.interventions.asked import Examples
from tl_skillneurons.interventions.kinds import How, Intervention, as_intervention
from tl_skillneurons.interventions.references import reference_rows
from tl_skillneurons.models.hooks import Hook
from tl_skillneurons.models.input_cache import InputCache, runs_text_apart
from tl_skillneurons.models.sites import head_output_weights, neuron_hooks, neuron_shape
from tl_skillneurons.neurons.choice import require_apart
from tl_skillneurons.neurons.controls import ALIKE, few_alternatives, standardised_differences
from tl_skillneurons.neurons.neuron_set import SITE, Neurons, NeuronSet, as_neurons
from tl_skillneurons.prompts.positions import NAMED, ActsAt, current_tokens
from tl_skillneurons.prompts.prompted_model import PromptedModel
from tl_skillneurons.prompts.run import RunOptions
from tl_skillneurons.prompts.soft_prompt import SoftPrompt
from tl_skillneurons.stats.hypothesis_tests import rank_p_value, require_draws
from tl_skillneurons.stats.ranks import median
from tl_skillneurons.tasks.task import Task
from tl_skillneurons.tasks.two_classes import require_class

KIND = "HeadEffects"
_ENOUGH = 19  # distinct controls give a p-value of 0.05
_ROUNDING = 1e-6  # of the largest activation: below it a neuron is constant
_TENSORS = ("logits", "activations", "labels")


@dataclass(frozen=True, eq=False)
class HeadEffects:
    """What ablating heads does to neurons and answers, beside random heads of the same layers.

    Attributes:
        heads: Which heads.
        controls: Each control's draws, none twice: "random", "matched", "all_layers" where these have too few.
        logits: Class logits: intact, ablated, and of each draw, the random ones before the matched ones.
        activations: The neurons' activations, averaged over prompt positions, likewise.
        labels: Class of each example.
        role: Where the examples come from.
        settings: Model, task, prompt, ``max_length``, neurons, site, ablation, reference, seed.

    Example:
        >>> found = skn.attention.head_effects(model, prompt, task, writers.top_heads(3), skill)
        >>> found.to_dataframe()[["measure", "intact", "ablated", "random_median", "p_random"]]
    """

    heads: tuple[Head, ...]
    controls: Mapping[str, tuple[tuple[Head, ...], ...]]
    logits: Float[Tensor, "condition example n_classes"]
    activations: Float[Tensor, "condition example neuron"]
    labels: Int[Tensor, " example"]
    role: str
    settings: dict[str, Any]

    @property
    def separation(self) -> Float[Tensor, "condition neuron"]:
        """How far apart each neuron holds the labels, in its intact standard deviations; with its sign. NaN where it is
        constant in the intact run: there is nothing to measure it by."""
        acts = self.activations.double()
        own = self.labels == self.settings.get("class_id", 1)
        apart = acts[:, own].mean(1) - acts[:, ~own].mean(1)
        return apart / torch.where(self._constant, torch.nan, acts[0].std(0, correction=0))

    @property
    def _constant(self) -> Bool[Tensor, " neuron"]:
        """Which neurons vary in the intact run by no more than rounding does."""
        intact = self.activations[0].double()
        return intact.std(0, correction=0) <= _ROUNDING * intact.abs().amax(0)

    def to_dataframe(self) -> pd.DataFrame:
        """One row per measure: ``accuracy``, ``logit_diff`` and ``separation`` (absolute, mean over the neurons that
        vary in the intact run; :attr:`notes` says how many don't. Without any it and its columns are NaN).

        Columns ``intact``, ``ablated``, and for each control the median and range over its draws and the two-sided
        rank p-value of being as far from the middle (``random_median``, ``random_min``, ``random_max``, ``p_random``,
        and ``matched_...``), beside ``smallest_p_random``, what so many distinct draws allow; ``n_cut``, how many texts
        lost their end; ``heads_chosen`` and ``neurons_chosen`` "on other examples", "on these examples" (by insistence)
        or "unknown".
        """
        return self.table({**answers(self), "separation": self.separation.abs().nanmean(1)})

    def table(self, values: Mapping[str, Float[Tensor, " condition"]]) -> pd.DataFrame:
        """A row per measure, from its value under each condition."""
        rows = []
        for name, value in values.items():
            intact, ablated, *others = value.tolist()
            row: dict[str, Any] = {"measure": name, "intact": intact, "ablated": ablated}
            for control, draws in self.controls.items():
                drawn, others = others[: len(draws)], others[len(draws) :]
                row |= {f"{control}_median": median(drawn), f"{control}_min": min(drawn)}
                ranked = name != "separation" or not self._constant.all()
                row |= {
                    f"{control}_max": max(drawn),
                    f"p_{control}": rank_p_value(ablated, drawn, "two-sided") if ranked else torch.nan,
                    f"smallest_p_{control}": 1 / (len(draws) + 1),
                }
            rows.append(row)
        chosen = self.settings["heads_chosen"]
        frame = pd.DataFrame(rows).assign(n_examples=len(self.labels), role=self.role, heads_chosen=chosen)
        frame = frame.assign(neurons_chosen=self.settings["neurons_chosen"], n_cut=self.settings["n_cut"])
        frame.attrs["notes"] = list(self.notes)
        return frame

    @property
    def notes(self) -> tuple[str, ...]:
        """What a reader of the p-values must know, in words: controls that are too few, or not alike; and how many
        neurons the separation leaves out."""
        found = list(self.settings["notes"])
        if n := int(self._constant.sum()):
            found.append(
                f"separation: {n} of {len(self._constant)} neurons are constant in the intact run and left out of it"
            )
        return tuple(found)

    def __repr__(self) -> str:
        return one_line(
            self,
            heads=self.heads if len(self.heads) <= 5 else f"{len(self.heads)} heads",
            how=self.settings["how"],
            positions=self.settings["positions"],
            n_neurons=self.activations.shape[2],
            n_random=self.settings["n_random"],
            n_examples=len(self.labels),
            role=self.role,
            heads_chosen=self.settings["heads_chosen"],
            **({"notes": self.notes} if self.notes else {}),
        )

    _repr_html_ = html_of
    each_class = head_effects_on_each_class

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the result to one safetensors file, whole or not at all."""
        header = {"heads": _plain(self.heads), "role": self.role, "settings": self.settings}
        header["controls"] = {name: [_plain(one) for one in drawn] for name, drawn in self.controls.items()}
        return save_tensors(path, KIND, {name: getattr(self, name) for name in _TENSORS}, header)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "HeadEffects":
        """The result that :meth:`save` wrote.

        Raises:
            FileNotFoundError: When there is no such file.
            ValueError: When the file is corrupt or holds something else.
        """
        tensors, header = load_tensors(path, KIND)
        with sound(path, KIND):
            controls = {
                name: tuple(tuple(require_heads(one)) for one in drawn)
                for name, drawn in header["controls"].items()
            }
            kept = {name: tensors[name] for name in _TENSORS}
            n_conditions = 2 + sum(map(len, controls.values()))
            if not n_conditions == len(kept["logits"]) == len(kept["activations"]):
                raise ValueError(f"it tells {n_conditions} conditions, and holds {len(kept['logits'])}")
            heads = tuple(require_heads(header["heads"]))
            return cls(heads, controls, **kept, role=header["role"], settings=header["settings"])


def head_effects(
    model: TransformerBridge,
    prompt: SoftPrompt,
    task: Task,
    heads: Sequence[Head],
    neurons: Neurons,
    *,
    how: How = "mean",
    positions: str = "prompt",
    n_random: int = 20,
    seed: int = 0,
    examples: Examples = Examples(),
    class_id: int | None = None,
    run: RunOptions = RunOptions(),
) -> HeadEffects:
    """Ablate ``heads``, then up to ``n_random`` controls of each kind, and look at neurons and answers each time.

    Args:
        heads: Pairs (layer, head); those of :meth:`HeadWriters.top_heads` know which examples chose them.
        how: An intervention, as in :func:`ablate_heads`.
        positions: Where the heads' outputs are held: "prompt" (what the prompt positions get), "text", "special"
            (the tokens that the tokenizer puts around it) or "all".
        n_random: Distinct draws of each control, or all that there are; 19 at least, as a p-value of 0.05 needs.
        examples: Whose answers count; whose ``n_reference``, evenly from all classes and units, give the heads' means.
            Not those that chose the heads or the neurons, unless ``Examples(on_chosen_examples=True)`` insists.
        class_id: Of more than two classes, the one that neurons are to tell from others; ``each_class()`` has all.

    Raises:
        ValueError: For heads or neurons of another model or that these examples chose, an intervention without its
            reference, or fewer draws than a p-value of 0.05 needs.

    Example:
        >>> found = skn.attention.head_effects(model, prompt, task, [(5, 1), (7, 3)], skill)
        >>> found.to_dataframe()
    """
    neurons = as_neurons(neurons)
    told_apart = require_class(task, class_id)
    require_draws(n_random)
    require_seed(seed)
    require_option(positions, "positions", NAMED)
    what = as_intervention(how)
    neurons.require_fits(*neuron_shape(model))
    if not len(neurons):
        raise ValueError("neurons must hold at least one neuron, got none")
    n_layers, n_heads = len(model.blocks), int(model.cfg.n_heads)
    pairs = require_heads(heads, n_layers, n_heads)
    split = task.split(examples.role)
    texts, labels = list(split["text"]), torch.tensor(split["label"])
    insist, by = examples.on_chosen_examples, "Examples(on_chosen_examples=True)"
    chosen = require_heads_apart(heads, texts, insist=insist, by=by)
    neurons_chosen = require_apart(neurons.choice, texts, insist=insist, by=by)
    if run.cache is None and positions == "prompt" and runs_text_apart(model):
        run = replace(run, cache=InputCache(model))
    prompted = PromptedModel.for_task(model, prompt, task, max_length=examples.max_length, run=run)
    reference = _measure_reference(prompted, task, what, positions, examples)
    match = _match(model, reference)
    controls = _controls(pairs, n_random, seed, match)

    def hooks_of(held: Sequence[Head]) -> list[Hook]:
        classes = labels if what.needs_labels else None
        return ablate_heads(held, how=what, values=reference, positions=positions, classes=classes, seed=seed)

    conditions = [[], hooks_of(pairs)]
    conditions += [hooks_of(drawn) for draws in controls.values() for drawn in draws]
    logits, acts = [], []
    progress = progress_bar("ablating heads", len(conditions), show=run.progress)
    with progress as advance, prompted.answering(texts) as answers, torch.no_grad():
        for hooks in conditions:
            kept = torch.empty(len(texts), len(neurons), dtype=model.W_E.dtype)
            logits.append(answers([*hooks, *_readers(model, neurons, kept)]).cpu())
            acts.append(kept)
            advance()
    settings = settings_of(
        prompted,
        task,
        neurons=[list(pair) for pair in neurons],
        site=SITE,
        heads_chosen=chosen,
        neurons_chosen=neurons_chosen,
        n_cut=prompted.n_truncated(texts),
        how=what.name,
        positions=positions,
        positions_frame="with virtual tokens",
        reference=[examples.reference, examples.n_reference],
        matched_on=["output-weight norm", *(["output norm"] if reference else [])],
        n_random=n_random,
        notes=_notes(pairs, controls, n_random, match),
        seed=seed,
        **({} if class_id is None else {"class_id": told_apart}),
    )
    drawn = {kind: tuple(tuple(one) for one in draws) for kind, draws in controls.items()}
    return HeadEffects(
        tuple(pairs), drawn, torch.stack(logits), torch.stack(acts), labels, examples.role, settings
    )


def output_weight_norms(model: TransformerBridge) -> Float[Tensor, "layer head"]:
    """Of each head the Frobenius norm of the weights that carry its output to the residual stream."""
    norms = [
        reduce(
            head_output_weights(model, layer).detach().double().square(), "head d_head d_model -> head", "sum"
        ).sqrt()
        for layer in range(len(model.blocks))
    ]
    return torch.stack([one.cpu() for one in norms])


def _measure_reference(
    prompted: PromptedModel, task: Task, what: Intervention, positions: str, examples: Examples
) -> HeadOutputs | None:
    """What the heads do on reference examples, where any are asked for.

    Raises:
        ValueError: When the intervention needs some that there are not.
    """
    if examples.reference is None:
        if what.needs or what.edits_others:
            raise ValueError(
                f"intervention {what.name!r} holds heads at what they do on reference examples; give "
                "reference='baseline', or another role"
            )
        return None
    rows = reference_rows(task, examples.reference, examples.n_reference)
    split = task.split(examples.reference)
    texts, labels = list(split["text"]), torch.tensor(split["label"])
    return head_outputs(
        prompted, [texts[row] for row in rows.tolist()], labels=labels[rows], positions=positions
    )


def _controls(
    heads: Sequence[Head], n: int, seed: int, match: Float[Tensor, "quantity layer head"]
) -> dict[str, list[list[Head]]]:
    """Distinct draws of each control, and of heads of all layers where one of these can't give a p-value of 0.05."""
    _, n_layers, n_heads = match.shape
    draw = partial(controls_of_heads, heads, n, seed=seed, n_heads=n_heads, n_layers=n_layers)
    controls = {"random": draw(), "matched": draw(match=match)}
    if min(map(len, controls.values())) < _ENOUGH:
        controls["all_layers"] = draw(all_layers=True)
    return controls


def _notes(
    heads: Sequence[Head],
    controls: Mapping[str, Sequence[Sequence[Head]]],
    n_asked: int,
    match: Float[Tensor, "quantity layer head"],
) -> list[str]:
    """Which controls are too few, and which are not alike (also a warning) in what they were matched on."""
    found = []
    for kind, draws in controls.items():
        if note := few_alternatives(len(draws), n_asked, of="heads"):
            found.append(f"{kind}: {note}")
    if "all_layers" in controls:
        found.append("all_layers: heads of all layers, for where the heads' own layers have too few others")
    _, n_layers, n_heads = match.shape
    own, *drawn = (
        NeuronSet.from_pairs(one, n_layers=n_layers, d_mlp=n_heads)
        for one in (sorted(heads), *controls["matched"])
    )
    apart = standardised_differences(own, drawn, match)
    if (apart.abs() > ALIKE).any():
        by = ", ".join(f"{value:+.2f}" for value in apart.tolist())
        told = f"matched: they differ from the heads by {by} standard deviations in what they were matched on"
        warnings.warn(told, stacklevel=3)
        found.append(told)
    return found


def _match(model: TransformerBridge, reference: HeadOutputs | None) -> Float[Tensor, "quantity layer head"]:
    norms = output_weight_norms(model)
    return norms[None] if reference is None else torch.stack([reference.size, norms])


def _readers(
    model: TransformerBridge, neurons: NeuronSet, kept: Float[Tensor, "example neuron"]
) -> list[Hook]:
    """Hooks that write the neurons' activations, averaged over prompt positions, into ``kept``."""
    names = neuron_hooks(model)

    def reader(layer: int, index: Int[Tensor, " own"]) -> Callable[..., None]:
        feature = (neurons.layer == layer).nonzero().flatten()

        def note(act: Tensor, hook: HookPoint) -> None:
            tokens = current_tokens(hook)
            assert tokens is not None  # it runs in a PromptedModel
            rows = torch.arange(len(act), device=act.device)[:, None]
            at = act[rows, tokens.prompt_columns().to(act.device)]
            kept[tokens.example.cpu()[:, None], feature] = at[..., index.to(act.device)].mean(1).cpu()

        return note

    return [
        (names[layer], ActsAt("prompt", reader(layer, index)))  # looks there alone
        for layer, index in neurons.by_layer().items()
    ]


def _plain(heads: Sequence[Head]) -> list[list[int]]:
    return [list(head) for head in heads]
