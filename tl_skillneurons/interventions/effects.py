"""Run a model under interventions on neurons and on their controls.

:mod:`~tl_skillneurons.interventions.effect_panel` reads what they did, and says what that shows.

What is kept of a run is its class logits, a few numbers per example; every metric, interval and test comes
from them afterwards.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from tl_skillneurons._checks import listed, require_int, require_option, require_seed
from tl_skillneurons._progress import Advance, progress_bar
from tl_skillneurons.interventions._kept_outputs import KeptOutputs
from tl_skillneurons.interventions._measured import Condition, Measured, units_record
from tl_skillneurons.interventions.ablation import ablate_where_known
from tl_skillneurons.interventions.asked import Beyond, Examples
from tl_skillneurons.interventions.controls import with_controls
from tl_skillneurons.interventions.direct_effects import direct_logits
from tl_skillneurons.interventions.effect_panel import EffectPanel
from tl_skillneurons.interventions.kinds import Call, How, Intervention, as_interventions
from tl_skillneurons.interventions.plain_text import reading, require_head
from tl_skillneurons.interventions.references import References, measure_references
from tl_skillneurons.models.hooks import Hook, Hooks
from tl_skillneurons.models.input_cache import InputCache, runs_text_apart
from tl_skillneurons.models.records import model_record
from tl_skillneurons.models.sites import neuron_shape
from tl_skillneurons.models.verification import require
from tl_skillneurons.neurons.choice import require_apart
from tl_skillneurons.neurons.neuron_set import SITE, Neurons, NeuronSet, as_neurons
from tl_skillneurons.prompts.positions import NAMED
from tl_skillneurons.prompts.prompted_model import PromptedModel
from tl_skillneurons.prompts.run import RunOptions, prompt_record
from tl_skillneurons.prompts.soft_prompt import SoftPrompt
from tl_skillneurons.stats.hypothesis_tests import require_draws
from tl_skillneurons.tasks.task import Task


def measure_effects(
    model: TransformerBridge,
    prompts: SoftPrompt | Sequence[SoftPrompt],
    task: Task,
    neurons: Neurons | Mapping[str, Neurons],
    *,
    interventions: How | Sequence[How] = ("zero", "mean"),
    positions: str | Sequence[str] = "prompt",
    n_random: int = 20,
    seed: int = 0,
    examples: Examples = Examples(),
    beyond: Beyond = Beyond(),
    path: str | os.PathLike[str] | None = None,
    run: RunOptions = RunOptions(),
) -> EffectPanel:
    """What every intervention on ``neurons`` does to the task, beside ``n_random`` draws of each control.

    The controls are random neurons, matched ones and least predictive ones
    (:mod:`~tl_skillneurons.interventions.controls`); the last where the set knows which score chose it.

    Args:
        prompts: One, or several: each then has its own numbers, with its own reference values, and the same
            controls; beside them stand the numbers pooled over prompts.
        neurons: The neurons, or several sets by name, e.g. ``{"1%": scores.top(0.01), "2%": scores.top(0.02)}``.
        interventions: One or several (:mod:`~tl_skillneurons.interventions.kinds`): values such as ``Mean()`` or
            ``Noise(0.5)``, short names, functions ``(act, hook) -> act``.
        positions: One or several of "prompt", "text" (what was written), "special" (the tokens that the tokenizer puts
            around it), "template" (of a task with a chat) and "all", each kind at its own values; where only the
            prompt is touched, the keys and values of the texts are computed once for all conditions (causal models,
            suffix prompts).
        n_random: Distinct draws of each control, or all that there are; 19 at least, for fewer can't give a p-value of
            0.05 (``Beyond(as_band=True)`` takes fewer).
        seed: Of the controls and of what interventions draw.
        examples: Whose answers count, and where reference values come from.
        beyond: Direct effects, other tasks, plain text.
        path: A file that keeps what is measured; the same call goes on where it stopped, and finds more
            interventions, positions or draws to add. Finished, ``EffectPanel.load(path)`` reads it.
        run: How to run; its cache is shared with other calls.

    Returns:
        A panel; ``to_dataframe()`` has a row per prompt, intervention, positions, set and metric.

    Raises:
        ValueError: For neurons of another model, neurons that these examples chose, an intervention without its
            reference, fewer draws than a p-value needs, controls that differ by more than is allowed, or a ``path`` of
            other settings; nothing is run then, but references for the controls.

    Example:
        >>> panel = skn.measure_effects(model, prompts, task, skill, interventions=["mean", Noise(0.5)])
        >>> panel.to_dataframe(each_prompt=False)[["intervention", "metric", "change", "random_median", "p_random"]]
    """
    chosen = as_interventions(interventions)
    places = _require_places(positions)
    sets = _require_sets(neurons, model)
    if beyond.as_band:
        require_int(n_random, "n_random")
    else:
        require_draws(n_random, 0.05)
    require_seed(seed)
    _require_reference(chosen, examples)
    if path is not None and any(isinstance(one, Call) for one in chosen):
        raise ValueError(
            "a file can't tell one function from another of the same name; make it a frozen class as in "
            "interventions/kinds.py, or leave path out"
        )
    if run.cache is None and places == ["prompt"] and runs_text_apart(model):
        run = replace(run, cache=InputCache(model))
    _require_names([task, *(other for other, _ in beyond.other_tasks)])
    runs = [_TaskRun(model, one, t, examples, run) for t, one in [(task, prompts), *beyond.other_tasks]]
    require(model, "neurons")
    if "template" in places and (plain_tasks := [one.task.name for one in runs if one.task.chat is None]):
        raise ValueError(
            f"positions='template' needs texts in a chat template, and {plain_tasks[0]!r} has none; make the task with "
            "chat=, or leave 'template' out"
        )
    where_chosen = {one.task.name: one.where_chosen(sets) for one in runs}
    plain = PromptedModel(model, None, max_length=examples.max_length, run=run)
    if len(beyond.plain_texts):
        require_head(plain)
        if not {"text", "all"} & set(places):
            raise ValueError(
                "plain texts have no prompt positions; give positions 'text' or 'all' as well, or leave "
                "plain_texts out"
            )
    settings = _settings(model, runs, sets, examples, beyond)
    settings |= {"interventions": [one.name for one in chosen], "positions": places}
    settings |= {"n_random": n_random, "seed": seed, "neurons_chosen": where_chosen}
    kept = KeptOutputs(None if path is None else Path(path), settings)
    with run.one_use():
        needed = ["prompt"]  # controls are matched there
        needed += ["text"] if set(places) & {"text", "all"} else []
        for one in runs:
            in_chat = bool(set(places) & {"template", "all"}) and one.task.chat is not None
            special = "special" in places or ("all" in places and one.has_special_tokens)
            one.measure_references([*needed, *["special"] * special, *["template"] * in_chat])
        drawn = with_controls(
            sets, model, runs[0].mean_absolute, n_random, seed, most_difference=beyond.most_difference
        )
        settings |= {"controls": drawn.told, "notes": drawn.notes}
        plan = _Plan(chosen, places, drawn.sets, seed)
        n_runs = sum(len(one.prompted) for one in runs) * (1 + len(plan.conditions))
        n_runs += beyond.direct * len(runs[0].prompted)
        n_runs += bool(len(beyond.plain_texts)) * (1 + len(plan.in_plain_text))
        measured: list[Measured] = []
        phase = "measuring sizes" if beyond.as_band else "measuring effects"
        with kept, progress_bar(phase, n_runs, show=run.progress) as advance:
            for number, one in enumerate(runs):
                measured.append(one.total(plan, kept, len(measured), advance))
                if number == 0 and beyond.direct:
                    measured.append(one.direct(plan, kept, measured[0], len(measured), advance))
            if len(beyond.plain_texts):
                hooks = partial(plan.hooks, references=runs[0].references[0], place="text")
                kept_as = (len(measured), 0)
                with reading(plain, beyond.plain_texts, seed=seed) as losses:
                    intact, outputs = kept.each(
                        *kept_as, lambda held: losses(held)[:, None], hooks, plan.in_plain_text, advance
                    )
                measured.append(_stacked("plain text", "total", None, [intact], [outputs]))
            panel = EffectPanel(tuple(plan.conditions), tuple(measured), examples.role, settings)
            kept.finish(panel)
    return panel


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
            Condition(what.name, where, name, kind, draw, len(held))
            for what in self.interventions
            for where in self.places
            for (name, kind, draw), held in self.sets.items()
        ]

    @cached_property
    def by_name(self) -> dict[str, Intervention]:
        return {what.name: what for what in self.interventions}

    @cached_property
    def in_plain_text(self) -> list[Condition]:
        """The conditions that can act on text without a prompt and without a label."""
        return [
            c
            for c in self.conditions
            if c.positions in ("text", "all") and not self.by_name[c.intervention].needs_labels
        ]

    def hooks(
        self,
        condition: Condition,
        *,
        references: References,
        labels: Tensor | None = None,
        place: str | None = None,
    ) -> list[Hook]:
        """The condition's hooks, at its own positions or at ``place``."""
        what = self.by_name[condition.intervention]
        held = self.sets[condition.set, condition.neurons, condition.draw]
        where = place or condition.positions
        return ablate_where_known(held, what, where, references, labels=labels, seed=self.seed)


class _TaskRun:
    """One task's examples of one role, with each of its prompts in place."""

    def __init__(
        self,
        model: TransformerBridge,
        prompts: SoftPrompt | Sequence[SoftPrompt],
        task: Task,
        examples: Examples,
        run: RunOptions,
    ) -> None:
        chosen = [prompts] if isinstance(prompts, SoftPrompt) else list(prompts)
        if not chosen:
            raise ValueError("prompts must hold at least one soft prompt, got none")
        split = task.split(examples.role)
        self.task, self.examples = task, examples
        self.texts, self.labels = list(split["text"]), torch.tensor(split["label"])
        self.prompted = [
            PromptedModel.for_task(model, prompt, task, max_length=examples.max_length, run=run)
            for prompt in chosen
        ]
        self.records = [prompt_record(prompt) for prompt in chosen]
        self.references: list[References] = [{} for _ in chosen]

    def where_chosen(self, sets: Mapping[str, NeuronSet]) -> dict[str, str]:
        """Where each set was chosen, seen from these examples.

        Raises:
            ValueError: When they chose one, and nobody insists.
        """
        insist, by = self.examples.on_chosen_examples, "Examples(on_chosen_examples=True)"
        return {
            name: require_apart(one.choice, self.texts, insist=insist, by=by) for name, one in sets.items()
        }

    @property
    def has_special_tokens(self) -> bool:
        """Whether the tokenizer puts any around a text."""
        return bool(self.prompted[0].tokens(self.texts[:1]).is_special.any())

    def n_cut(self) -> list[int]:
        """How many of the texts are too long for each prompt and lose their end."""
        return [one.n_truncated(self.texts) for one in self.prompted]

    def measure_references(self, places: Sequence[str]) -> None:
        """Reference values for each prompt, where any are asked for."""
        role, n = self.examples.reference, self.examples.n_reference
        if role is not None:
            self.references = [measure_references(one, self.task, role, n, places) for one in self.prompted]

    @property
    def mean_absolute(self) -> Float[Tensor, "layer neuron"] | None:
        """Mean absolute activation at the prompt, averaged over prompts."""
        if not self.references[0]:
            return None
        return torch.stack([one["prompt"].mean_absolute for one in self.references]).mean(0)

    def total(self, plan: _Plan, kept: KeptOutputs, number: int, advance: Advance) -> Measured:
        """What the model answers under every condition."""
        found = []
        for k, one in enumerate(self.prompted):
            with one.answering(self.texts) as logits, torch.no_grad():
                found.append(kept.each(number, k, logits, self._hooks(plan, k), plan.conditions, advance))
        intact, outputs = zip(*found, strict=True)
        return _stacked(self.task.name, "total", self.labels, intact, outputs)

    def direct(
        self, plan: _Plan, kept: KeptOutputs, total: Measured, number: int, advance: Advance
    ) -> Measured:
        """What it would answer with each condition's direct effect alone."""
        reaching = [c for c in plan.conditions if c.positions in ("prompt", "all")]
        outputs = []
        for k, one in enumerate(self.prompted):
            hooks = partial(self._hooks(plan, k), place="prompt")

            def run(
                conditions: Sequence[Condition],
                one: PromptedModel = one,
                intact: Tensor = total.intact[k],
                hooks: Callable[..., Hooks] = hooks,
            ) -> list[Tensor]:
                return direct_logits(one, self.texts, intact, [hooks(condition) for condition in conditions])

            outputs.append(kept.at_once(number, k, run, reaching, advance))
        return _stacked(self.task.name, "direct", self.labels, list(total.intact), outputs)

    def _hooks(self, plan: _Plan, k: int) -> Callable[..., list[Hook]]:
        return partial(plan.hooks, references=self.references[k], labels=self.labels)


def _stacked(
    task: str,
    effect: str,
    labels: Tensor | None,
    intact: Sequence[Tensor],
    outputs: Sequence[dict[str, Tensor]],
) -> Measured:
    """What each prompt gave, with prompts as the first axis."""
    together = {key: torch.stack([of_prompt[key] for of_prompt in outputs]) for key in outputs[0]}
    return Measured(task, effect, labels, torch.stack(list(intact)), together)


def _require_names(tasks: Sequence[Task]) -> None:
    names = [task.name for task in tasks]
    if twice := [name for name in names if names.count(name) > 1]:
        raise ValueError(
            f"tasks must have different names, by which their rows go, got {twice[0]!r} twice; give "
            "dataclasses.replace(task, name=...) as the other"
        )


def _require_places(positions: str | Sequence[str]) -> list[str]:
    places = [positions] if isinstance(positions, str) else list(dict.fromkeys(positions))
    if not places:
        raise ValueError(f"positions must hold at least one of {listed(NAMED)}, got none")
    return [require_option(one, "positions", NAMED) for one in places]


def _require_sets(neurons: Neurons | Mapping[str, Neurons], model: TransformerBridge) -> dict[str, NeuronSet]:
    """The sets by name, each knowing the model's shape."""
    given = neurons if isinstance(neurons, Mapping) else {"whole": neurons}
    sets = {name: as_neurons(one) for name, one in given.items()}
    if not sets:
        raise ValueError("neurons must hold at least one set, got none")
    shape = neuron_shape(model)
    for name, one in sets.items():
        one.require_fits(*shape)
        if not len(one):
            raise ValueError(f"neurons must hold at least one neuron, got none in {name!r}")
        sets[name] = NeuronSet(one.layer, one.index, *shape, one.model, one.choice)
    return sets


def _require_reference(chosen: Sequence[Intervention], examples: Examples) -> None:
    needing = [one.name for one in chosen if one.needs]
    if examples.reference is None and needing:
        raise ValueError(
            f"intervention {needing[0]!r} holds neurons at what they do on reference examples; give "
            "Examples(reference='baseline'), or another role"
        )
    if examples.n_reference is not None:
        require_int(examples.n_reference, "n_reference")


def _settings(
    model: TransformerBridge,
    runs: Sequence[_TaskRun],
    sets: Mapping[str, NeuronSet],
    examples: Examples,
    beyond: Beyond,
) -> dict[str, Any]:
    """What made a panel, as plain JSON values."""
    matched_on = ["output-weight norm"] + (["mean absolute activation"] if examples.reference else [])
    return {
        "model": model_record(model),
        "site": SITE,
        "tasks": [[one.task.name, one.task.fingerprint] for one in runs],
        "units": {one.task.name: units_record(one.task.units(examples.role)) for one in runs},
        "n_cut": {one.task.name: one.n_cut() for one in runs},
        "prompts": [one.records for one in runs],
        "role": examples.role,
        "neurons": {name: [list(pair) for pair in one] for name, one in sets.items()},
        "positions_frame": "with virtual tokens",
        "matched_on": matched_on,
        "reference": [examples.reference, examples.n_reference],
        "direct": beyond.direct,
        "plain_texts": list(beyond.plain_texts),
        "max_length": [[prompted.max_length for prompted in one.prompted] for one in runs],
    }
