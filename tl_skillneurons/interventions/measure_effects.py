"""Run a model under interventions on neurons and on their controls.

:mod:`~tl_skillneurons.interventions.effect_panel` reads what they did.

What is kept of a run is its class logits, a few numbers per example; every metric, interval and test comes
from them afterwards.
"""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from tl_skillneurons._checks import require_int, require_option
from tl_skillneurons._files import fingerprint
from tl_skillneurons._progress import progress_bar
from tl_skillneurons.interventions._kept_outputs import KeptOutputs
from tl_skillneurons.interventions._old_kinds import (
    POSITIONS,
    Intervention,
    References,
    choose_interventions,
    hooks_of,
    measure_references,
)
from tl_skillneurons.interventions.ablation import Hook
from tl_skillneurons.interventions.direct_effects import direct_logits
from tl_skillneurons.interventions.effect_panel import CONTROLS, Condition, EffectPanel, Measured
from tl_skillneurons.interventions.plain_text import cross_entropy, require_head
from tl_skillneurons.models.input_cache import InputCache, runs_text_apart
from tl_skillneurons.models.records import model_record
from tl_skillneurons.models.sites import neuron_shape
from tl_skillneurons.neurons import SITE, NeuronSet, selection_size
from tl_skillneurons.prompts.prompted_model import PromptedModel
from tl_skillneurons.prompts.soft_prompt import SoftPrompt
from tl_skillneurons.stats.hypothesis_tests import require_draws
from tl_skillneurons.tasks.task import Task


def measure_effects(
    model: Any,
    prompt: SoftPrompt,
    task: Task,
    neurons: NeuronSet,
    *,
    interventions: Sequence[str] = ("zero", "mean"),
    positions: Sequence[str] = ("prompt",),
    sizes: Sequence[float | int] | None = None,
    sigmas: Sequence[float | int] = (0.5, 1.0, 2.0),
    factors: Sequence[float | int] = (0.0, 0.5, 1.5, 2.0),
    n_random: int = 20,
    role: str = "report",
    reference: str | None = "baseline",
    n_reference: int = 256,
    direct: bool = False,
    other_tasks: Sequence[tuple[Task, SoftPrompt]] = (),
    plain_texts: Sequence[str] = (),
    seed: int = 0,
    batch_size: int | None = None,
    batch_tokens: int | None = None,
    max_length: int | None = None,
    cache: InputCache | None = None,
    path: str | os.PathLike[str] | None = None,
    progress: bool = True,
) -> EffectPanel:
    """What every intervention on ``neurons`` does to the task, beside ``n_random`` draws of two controls.

    Args:
        interventions: Of "zero", "mean", "class_mean", "other_class_mean", "resample", "noise", "scale" and
            "keep" (:mod:`~tl_skillneurons.interventions.kinds`).
        positions: Of "prompt", "text" and "all"; where only the prompt is touched, the keys and values of the
            texts are computed once for all conditions (causal models, suffix prompts).
        sizes: Sets of these sizes instead of the whole one: shares of a layer's neurons or counts per layer,
            the first of each layer in the set's order (``scores.top`` puts the best first).
        sigmas, factors: One "noise" for each sigma, in standard deviations of the neuron; one "scale" for each
            factor.
        n_random: Draws of each control; 19 at least, for fewer can't give a p-value of 0.05.
        role: Whose examples answer.
        reference: Whose examples give means, spreads and values to resample, up to ``n_reference`` of them,
            evenly from the classes. ``None`` for none: then only "zero" and "scale", and controls are matched on
            output weights alone.
        direct: Whether to give direct effects too (:mod:`~tl_skillneurons.interventions.direct_effects`).
        other_tasks: Tasks with a prompt of their own that the same neurons are tried on, held at their own
            reference values; they answer with the same role.
        plain_texts: Texts whose cross-entropy is measured without a prompt, under interventions at "text" and
            "all" positions; the neurons of such a run are held at the task's reference at the text.
        cache: Keys and values of texts, to share with other calls.
        path: A file that keeps what is measured; the same call goes on where it stopped.

    Raises:
        ValueError: For neurons of another model, an intervention without its reference, fewer draws than a
            p-value needs, or a ``path`` of other settings; nothing is run then.
    """
    chosen = choose_interventions(interventions, sigmas, factors)
    places = _require_places(positions)
    n_layers, d_mlp = neuron_shape(model)
    neurons.require_fits(n_layers, d_mlp)
    neurons = NeuronSet(neurons.layer, neurons.index, n_layers, d_mlp, neurons.model)
    if not len(neurons):
        raise ValueError("neurons must hold at least one neuron, got none")
    require_draws(n_random, 0.05)
    require_int(n_reference, "n_reference")
    require_int(seed, "seed", minimum=0)
    needing = [str(one) for one in chosen if one.needs_reference]
    if reference is None and needing:
        raise ValueError(
            f"intervention {needing[0]!r} holds neurons at what they do on reference examples; give "
            "reference='baseline', or another role"
        )
    if cache is None and places == ["prompt"] and runs_text_apart(model):
        cache = InputCache(model)
    options = {"batch_size": batch_size, "batch_tokens": batch_tokens}
    tasks = [(task, prompt), *other_tasks]
    prompted = [PromptedModel(model, p, t.label_words, max_length=max_length, cache=cache) for t, p in tasks]
    plain = PromptedModel(model, None, max_length=max_length)
    if len(plain_texts):
        require_head(plain)
    sized = _sized(neurons, sizes, d_mlp)
    settings = {
        "model": model_record(model),
        "site": SITE,
        "tasks": [[t.name, t.fingerprint, fingerprint(*p.parameters())] for t, p in tasks],
        "role": role,
        "neurons": [list(pair) for pair in neurons],
        "sizes": list(sized),
        "interventions": [str(one) for one in chosen],
        "positions": places,
        "positions_frame": "with virtual tokens",
        "n_random": n_random,
        "matched_on": ["output-weight norm"] + (["mean absolute activation"] if reference else []),
        "reference": [reference, n_reference],
        "direct": direct,
        "plain_texts": list(plain_texts),
        "max_length": max_length,
        "seed": seed,
    }
    kept = KeptOutputs(None if path is None else Path(path), settings)
    kinds = [p for p in ("prompt", "text") if p in places or "all" in places]
    if len(plain_texts) and "text" not in kinds:
        raise ValueError(
            "plain texts have no prompt positions; give positions 'text' or 'all' as well, or leave plain_texts out"
        )
    needed = list(dict.fromkeys(["prompt", *kinds]))  # controls are matched at the prompt
    references = [
        {} if reference is None else measure_references(one, t, reference, n_reference, needed)
        for one, (t, _) in zip(prompted, tasks, strict=True)
    ]
    sets = _with_controls(sized, model, references[0], n_random, seed)
    plan = _Plan(chosen, places, sets, seed)
    total = len(tasks) * (1 + len(plan.conditions)) + direct
    total += bool(len(plain_texts)) * (1 + len(plan.in_plain_text()))
    measured = []
    with kept, progress_bar("measuring effects", total, show=progress) as advance:
        for number, (one, (t, _), values) in enumerate(zip(prompted, tasks, references, strict=True)):
            run = _TaskRun(one, t, role, options)
            hooks = partial(plan.hooks, references=values, labels=run.labels, n_classes=t.n_classes)
            intact, outputs = kept.each(f"task {number}", run.logits, hooks, plan.conditions, advance)
            measured.append(Measured(t.name, "total", run.labels, intact, outputs))
            if number == 0 and direct:
                reaching = [c for c in plan.conditions if c.positions != "text"]
                outputs = kept.at_once("direct", partial(run.direct, intact, hooks), reaching, advance)
                measured.append(Measured(t.name, "direct", run.labels, intact, outputs))
        if len(plain_texts):
            losses = partial(_losses, plain, plain_texts, seed, options)
            hooks = partial(plan.hooks, references=references[0], place="text")
            intact, outputs = kept.each("plain text", losses, hooks, plan.in_plain_text(), advance)
            measured.append(Measured("plain text", "total", None, intact, outputs))
    return EffectPanel(tuple(plan.conditions), tuple(measured), role, settings)


@dataclass(frozen=True, eq=False)
class _Plan:
    """All conditions of a panel, and the hooks of each."""

    interventions: list[Intervention]
    places: list[str]
    sets: dict[tuple[str, str, int], NeuronSet]
    seed: int

    @cached_property
    def conditions(self) -> list[Condition]:
        return [
            Condition(str(what), where, size, kind, draw, len(held))
            for what in self.interventions
            for where in self.places
            for (size, kind, draw), held in self.sets.items()
        ]

    @cached_property
    def by_name(self) -> dict[str, Intervention]:
        return {str(what): what for what in self.interventions}

    def in_plain_text(self) -> list[Condition]:
        """The conditions that can act on text without a prompt and without a label."""
        return [
            c
            for c in self.conditions
            if c.positions != "prompt" and not self.by_name[c.intervention].needs_labels
        ]

    def hooks(
        self,
        condition: Condition,
        *,
        references: References,
        labels: Tensor | None = None,
        n_classes: int = 0,
        place: str | None = None,
    ) -> list[Hook]:
        """The condition's hooks, at its own positions or at ``place``."""
        return hooks_of(
            self.by_name[condition.intervention],
            self.sets[condition.size, condition.neurons, condition.draw],
            place or condition.positions,
            references,
            labels=labels,
            n_classes=n_classes,
            seed=self.seed,
        )


class _TaskRun:
    """One task's examples of one role, with its prompt in place."""

    def __init__(
        self,
        prompted: PromptedModel,
        task: Task,
        role: str,
        options: dict[str, Any],
    ) -> None:
        split = task.split(role)
        self.prompted, self.options = prompted, options
        self.texts, self.labels = list(split["text"]), torch.tensor(split["label"])

    def logits(self, hooks: Sequence[Hook]) -> Float[Tensor, "example n_classes"]:
        with torch.no_grad():
            return self.prompted.class_logits(self.texts, hooks, **self.options).cpu()

    def direct(
        self, intact: Tensor, hooks: Callable[..., list[Hook]], conditions: Sequence[Condition]
    ) -> list[Float[Tensor, "example n_classes"]]:
        at_prompt = [hooks(condition, place="prompt") for condition in conditions]
        return direct_logits(self.prompted, self.texts, intact, at_prompt, **self.options)


def _losses(
    plain: PromptedModel, texts: Sequence[str], seed: int, options: dict[str, Any], hooks: Sequence[Hook]
) -> Float[Tensor, "text 1"]:
    return cross_entropy(plain, texts, hooks, seed=seed, **options)[:, None]


def _require_places(positions: Sequence[str]) -> list[str]:
    if isinstance(positions, str) or not len(positions):
        raise ValueError(f"positions must be a list of 'prompt', 'text' and 'all', got {positions!r}")
    return [require_option(one, "positions", POSITIONS) for one in dict.fromkeys(positions)]


def _sized(neurons: NeuronSet, sizes: Sequence[float | int] | None, d_mlp: int) -> dict[str, NeuronSet]:
    """The sets to try, by the name of their size."""
    if sizes is None:
        return {"whole": neurons}
    if not len(sizes):
        raise ValueError("sizes must hold at least one size, got none; leave them out for the whole set")
    counts = {str(size): selection_size(size, d_mlp, per="layer") for size in sizes}
    return {name: neurons.first_per_layer(count) for name, count in counts.items()}


def _with_controls(
    sized: dict[str, NeuronSet], model: Any, references: References, n_random: int, seed: int
) -> dict[tuple[str, str, int], NeuronSet]:
    """Every set and the draws of its controls, by size, kind and draw."""
    norms = output_norms(model)
    match = norms if not references else torch.stack([references["prompt"].mean_absolute, norms])
    sets: dict[tuple[str, str, int], NeuronSet] = {}
    for size, held in sized.items():
        sets[size, "chosen", 0] = held
        for kind in CONTROLS:
            options = {"match": match} if kind == "matched" else {}
            for draw in range(n_random):
                sets[size, kind, draw] = held.random_like(seed + draw, **options)
    return sets


def output_norms(model: Any) -> Float[Tensor, "layer neuron"]:
    """Euclidean norm of what each neuron writes to the residual stream per unit of activation: its row of
    ``W_out``."""
    norms = [block.mlp.W_out.detach().double().norm(dim=1).cpu() for block in model.blocks]
    return torch.stack(norms).float()
