"""When in training do skill neurons appear, and do untrained models have them? (Wang et al., 2022, section 6)

The same discovery in several models of one shape: training checkpoints, a model of random weights, one whose layers
were shuffled. In each, prompts are tuned on the task (or carried over), all neurons are scored, and the scores stand
beside the level that luck reaches there (labels of ``select`` permuted). Compared with the last model are the
predictivities of all neurons and the best neurons, beside permuted labels, and what the last model's best neurons know
on ``report`` already, beside random neurons of the same layers.

What it does not show: that a neuron keeps its meaning while its score is the same, or why it appears. With prompts
tuned anew in every model, a better score can be the prompt's doing; carried prompts hold that fixed but fit their own
model best. Look at both. Controls are models of random weights (``random_init_bridge(folder, seed=0)`` of
TransformerLens) and of shuffled layers (:func:`~tl_skillneurons.models.shuffle_layers`), compared like the others.
"""

import copy
import gc
import os
import sys
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from transformer_lens.model_bridge import TransformerBridge

from tl_skillneurons._checks import differing, require_int, require_option, require_seed
from tl_skillneurons._files import fingerprint, load_tensors, require_writable, save_tensors, sound
from tl_skillneurons._terminal import shown
from tl_skillneurons._widths import even
from tl_skillneurons.models.input_cache import InputCache, runs_text_apart
from tl_skillneurons.neurons.neuron_set import selection_size
from tl_skillneurons.prompts.prompted_model import PromptedModel
from tl_skillneurons.prompts.run import RunOptions
from tl_skillneurons.prompts.soft_prompt import SoftPrompt
from tl_skillneurons.prompts.tuning.fit import fit_soft_prompts
from tl_skillneurons.scores.evaluated_rules import AllRules
from tl_skillneurons.scores.neuron_scores import NeuronScores
from tl_skillneurons.scores.predictivity import require_orders, score_neurons
from tl_skillneurons.scores.rules import evaluate_rules
from tl_skillneurons.stats.hypothesis_tests import require_draws
from tl_skillneurons.studies._common import file_name, plain, right_answers
from tl_skillneurons.studies.checkpoints.comparison import CheckpointComparison, Measures, compare_checkpoints
from tl_skillneurons.studies.checkpoints.places import (
    Checkpoint,
    LoadOptions,
    boot_checkpoint,
    identity,
    require_checkpoints,
    require_one_shape,
    shape_of,
    stated_shape,
)
from tl_skillneurons.tasks.task import Task
from tl_skillneurons.tasks.two_classes import require_two_classes

KIND = "checkpoint measures"
PROMPTS, SCORES, RULES, MEASURES = (
    "prompts",
    "scores.safetensors",
    "rules.safetensors",
    "measures.safetensors",
)
WHENCE = ("each", "last")


def over_checkpoints(
    checkpoints: Mapping[str, Checkpoint],
    task: Task,
    *,
    prompts: str | SoftPrompt | Sequence[SoftPrompt] = "each",
    amount: float | int = 0.02,
    n_top: int = 10,
    n_random: int = 20,
    n_permutations: int = 1000,
    seed: int = 0,
    folder: str | os.PathLike[str] | None = None,
    load: LoadOptions = LoadOptions(),
    run: RunOptions = RunOptions(),
    **tuning: Any,
) -> CheckpointComparison:
    """The skill neurons of ``task`` in every model, each beside its chance level, and beside the last model's.

    Models are loaded one after another and let go; what is measured of each is kept.

    Args:
        checkpoints: By name, in the order of training; the last is what the others are compared with. Each is a model,
            or says where one is (:data:`Checkpoint`). Untrained controls stand first.
        prompts: ``"each"`` tunes prompts in every model, ``"last"`` tunes them in the last one and carries them over;
            or give the prompts that are carried over.
        amount: The tops that are compared, as a share of each layer or a count (:meth:`NeuronScores.top`).
        n_top: Best neurons of the whole model that are tried on ``report``.
        n_random: Distinct draws of random neurons beside them; all where there are fewer.
        n_permutations: Of the labels, for the level of luck and for what agrees with the last model by luck.
        seed: Draws permutations, random neurons and the bootstrap.
        folder: Where prompts and measures of each model are kept. The same call goes on where it stopped and loads
            nothing whose measures are there. A place is told by its name: what lies there must not change.
        load: For the models that are loaded here.
        run: Batches and progress; a cache is of one model, so each has its own here.
        tuning: Of :func:`~tl_skillneurons.fit_soft_prompts`: ``n_virtual_tokens``, ``seeds``, ``n_steps``,
            ``training``, ``max_length`` and so on.

    Raises:
        ValueError: For fewer than two models, models that differ in shape (named, before anything is measured where
            their configurations tell), a task of more than two classes, too few permutations or draws, or a ``folder``
            that holds other measures. What was measured before stays in ``folder``.

    Example:
        >>> models = {step: f"EleutherAI/pythia-70m@step{step}" for step in ("0", "1000", "143000")}
        >>> found = skn.studies.over_checkpoints(models, task, n_virtual_tokens=8, folder="pythia")
        >>> found.appears(), found.to_dataframe()[["checkpoint", "best", "level", "spearman"]]
    """
    require_two_classes(task)
    require_draws(n_permutations, name="n_permutations")
    require_orders(task, n_permutations, 0.05)
    require_draws(n_random)
    require_int(n_top, "n_top")
    require_seed(seed)
    names = require_checkpoints(checkpoints)
    carried = _carried(prompts, tuning)
    console = Console(file=sys.stderr, quiet=not run.progress)
    what = _What(task, n_permutations, seed, tuning, run)
    settings = {
        "task": task.fingerprint,
        "n_permutations": n_permutations,
        "seed": seed,
        "dtype": str(load.dtype).removeprefix("torch."),
        "tuning": plain(tuning),
        "carried": prompts if carried is None else [_record(prompt) for prompt in carried],
    }

    def place(name: str) -> Path | None:
        return None if folder is None else Path(folder) / file_name(name)

    kept = {name: {**settings, "checkpoint": identity(checkpoints[name])} for name in names}
    measured = {name: found for name in names if (found := _load(place(name), kept[name])) is not None}
    shapes = {name: stated_shape(checkpoints[name]) for name in names if name not in measured}
    shapes |= {
        name: (one.scores.n_layers, even(one.scores.d_mlp, "a comparison of checkpoints"), 0)
        for name, one in measured.items()
    }
    require_one_shape({name: shapes[name] for name in names})
    if folder is not None:
        require_writable(folder)

    def boot(name: str) -> TransformerBridge:
        model = boot_checkpoint(checkpoints[name], load)
        shapes[name] = n_layers, d_mlp, _ = shape_of(model)
        require_one_shape(shapes)
        selection_size(amount, d_mlp, per="layer")  # refused now rather than after the work
        selection_size(n_top, n_layers * d_mlp, per="model")
        return model

    if prompts == "last" and len(measured) < len(names):
        console.print(shown(f"{names[-1]}: the prompts that all others get"))
        carried, _ = what.fit(boot(names[-1]), place(names[-1]))
    for number, name in enumerate(names):
        if name not in measured:
            console.print(shown(f"{name} ({number + 1} of {len(names)})"))
            at = place(name)
            measured[name] = what.measure(boot(name), carried, at)
            if at is not None:
                _save(measured[name], at, kept[name])
            gc.collect()
    counts = {"n_top": n_top, "n_random": n_random, "n_permutations": n_permutations, "seed": seed}
    in_order = {name: measured[name] for name in names}
    compare = partial(compare_checkpoints, in_order, task, amount=amount)
    compared = compare(n_top=n_top, n_random=n_random, n_permutations=n_permutations, seed=seed)
    where = {name: kept[name]["checkpoint"] for name in names}
    of_run = {**settings, "amount": amount, **counts, "checkpoints": where}
    return replace(compared, settings={**of_run, **compared.settings})


@dataclass(frozen=True, eq=False)
class _What:
    """What is done in every model."""

    task: Task
    n_permutations: int
    seed: int
    tuning: Mapping[str, Any]
    run: RunOptions

    def options(self, model: TransformerBridge) -> RunOptions:
        """How to run this model, with a cache of its own."""
        return replace(self.run, cache=InputCache(model) if runs_text_apart(model) else None)

    def fit(
        self, model: TransformerBridge, at: Path | None, run: RunOptions | None = None
    ) -> tuple[list[SoftPrompt], str]:
        """Prompts of this model, and how their tuning ended."""
        folder = None if at is None else at / PROMPTS
        with warnings.catch_warnings():
            # an early checkpoint learns nothing, which is what is asked here
            warnings.filterwarnings("ignore", message=".*(not below chance|diverged)")
            fitted = fit_soft_prompts(
                model, self.task, folder=folder, run=run or self.options(model), **self.tuning
            )
        outcomes = [prompt.provenance["outcome"].partition(" (")[0] for prompt in fitted]
        return fitted, "; ".join(dict.fromkeys(outcomes))

    def measure(
        self, model: TransformerBridge, carried: Sequence[SoftPrompt] | None, at: Path | None
    ) -> Measures:
        """Scores, rules and answers of this model, with prompts tuned here or carried over."""
        run, outcome = self.options(model), "carried"
        if carried is None:
            chosen, outcome = self.fit(model, at, run)
        else:
            chosen = [copy.deepcopy(prompt).to(model.cfg.device) for prompt in carried]
        with warnings.catch_warnings():
            # a carried prompt is of another model, which is what is asked here
            warnings.filterwarnings("ignore", message=".*trained on another model")
            scores = score_neurons(
                model,
                chosen,
                self.task,
                n_permutations=self.n_permutations,
                seed=self.seed,
                keep_outcomes=True,
                run=run,
            )
            rules = evaluate_rules(model, chosen, self.task, scores, run=run)
            prompted = [PromptedModel.for_task(model, prompt, self.task, run=run) for prompt in chosen]
            right = torch.stack([right_answers(one, self.task) for one in prompted]).double()
        return Measures(scores, rules, right, outcome)


def _record(prompt: SoftPrompt) -> dict[str, Any]:
    """What tells a carried prompt from another."""
    how: dict[str, Any] = {name: getattr(prompt, name) for name in ("placement", "prepend_bos", "max_length")}
    how |= {} if prompt.chat is None else {"chat": prompt.chat.record}
    return {**how, "sha256": fingerprint(*prompt.parameters())}


def _carried(
    prompts: str | SoftPrompt | Sequence[SoftPrompt], tuning: Mapping[str, Any]
) -> list[SoftPrompt] | None:
    if isinstance(prompts, str):
        require_option(prompts, "prompts", WHENCE)
        return None
    chosen = [prompts] if isinstance(prompts, SoftPrompt) else list(prompts)
    if not chosen:
        raise ValueError("prompts must hold at least one soft prompt to carry over, got none")
    if tuning:
        raise ValueError(
            f"prompts that are carried over are tuned already, got settings of tuning as well ({', '.join(tuning)}); "
            "leave these out, or let prompts be 'each' or 'last'"
        )
    return chosen


def _save(measures: Measures, at: Path, settings: dict[str, Any]) -> None:
    """Write one model's measures; the file that says what they are comes last."""
    measures.scores.save(at / SCORES)
    measures.rules.save(at / RULES)
    header = {"settings": settings, "outcome": measures.outcome, "roles": {"right": "report"}}
    save_tensors(at / MEASURES, KIND, {"right": measures.right}, header)


def _load(at: Path | None, settings: dict[str, Any]) -> Measures | None:
    """The measures kept there, or ``None`` where there are none yet.

    Raises:
        ValueError: When they are of other settings.
    """
    if at is None or not (at / MEASURES).exists():
        return None
    path = at / MEASURES
    tensors, header = load_tensors(path, KIND)
    with sound(path, KIND):
        was, now = _flat(header["settings"]), _flat(settings)
        apart = differing(was, {**dict.fromkeys(was), **now})
        if not apart:
            scores, rules = NeuronScores.load(at / SCORES), AllRules.load(at / RULES)
            return Measures(scores, rules, tensors["right"], header["outcome"])
    raise ValueError(
        f"{at} holds measures of another run ({'; '.join(apart)}); choose another folder, or delete it"
    )


def _flat(settings: Mapping[str, Any], before: str = "") -> dict[str, Any]:
    """Nested settings by their dotted names."""
    found: dict[str, Any] = {}
    for name, value in settings.items():
        found |= (
            _flat(value, f"{before}{name}.") if isinstance(value, Mapping) else {f"{before}{name}": value}
        )
    return found
