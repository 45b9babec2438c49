"""When in training do skill neurons appear, and do untrained models have them? (Wang et al., 2022, section 6)

The same discovery in several models of one shape: training checkpoints, a model of random weights, one whose layers
were shuffled. In each, prompts are tuned on the task (or carried over), all neurons are scored, and the scores stand
beside the level that luck reaches there (labels of ``select`` permuted). Compared with the last model are the
predictivities of all neurons and the best neurons, beside permuted labels, and what the last model's best neurons know
on ``report`` already, beside random neurons of the same layers.

What it does not show: that a neuron keeps its meaning while its score is the same, or why it appears. With prompts
tuned anew in every model, a better score can be the prompt's doing; carried prompts hold that fixed but fit their own
model best. Look at both.
"""

import copy
import gc
import os
import sys
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from tl_skillneurons._checks import require_int, require_option
from tl_skillneurons._files import fingerprint, load_tensors, require_writable, save_tensors, sound
from tl_skillneurons.models.input_cache import InputCache, runs_text_apart
from tl_skillneurons.neurons import selection_size
from tl_skillneurons.prompts.prompted_model import PromptedModel
from tl_skillneurons.prompts.soft_prompt import SoftPrompt
from tl_skillneurons.prompts.tuning.fit import fit_soft_prompts
from tl_skillneurons.scores.neuron_scores import NeuronScores
from tl_skillneurons.scores.predictivity import rule_accuracy, score_neurons
from tl_skillneurons.stats.intervals import require_draws
from tl_skillneurons.studies.checkpoints.comparison import CheckpointComparison, Measures, compare_checkpoints
from tl_skillneurons.studies.checkpoints.places import (
    Checkpoint,
    boot_checkpoint,
    file_name,
    identity,
    require_checkpoints,
    require_one_shape,
    shape_of,
    stated_shape,
)
from tl_skillneurons.tasks.task import Task, require_two_classes

KIND = "checkpoint measures"
PROMPTS, SCORES, MEASURES = "prompts", "scores.safetensors", "measures.safetensors"
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
    device: str | torch.device | None = None,
    dtype: torch.dtype | str = torch.float32,
    progress: bool = True,
    **tuning: Any,
) -> CheckpointComparison:
    """Find the skill neurons of ``task`` in every model, and compare them with the last model's.

    Models are loaded one after another and let go; what is measured of each is kept.

    Args:
        checkpoints: By name, in the order of training; the last is what the others are compared with. Each is a model,
            or says where one is (:data:`Checkpoint`). Untrained controls stand first:
            ``random_init_bridge(folder, seed=0)`` of TransformerLens, and :func:`shuffle_layers`.
        prompts: ``"each"`` tunes prompts in every model, ``"last"`` tunes them in the last one and carries them over;
            or give the prompts that are carried over.
        amount: The tops that are compared, as a share of each layer or a count (:meth:`NeuronScores.top`).
        n_top: Best neurons of the whole model that are tried on ``report``.
        n_random: Draws of random neurons beside them.
        n_permutations: Of the labels, for the level of luck and for what agrees with the last model by luck.
        folder: Where prompts and measures of each model are kept. The same call goes on where it stopped and loads
            nothing whose measures are there. A place is told by its name: what lies there must not change.
        device, dtype: For the models that are loaded here.
        tuning: Of :func:`~tl_skillneurons.fit_soft_prompts`: ``n_virtual_tokens``, ``seeds``, ``n_steps`` and so on.

    Raises:
        ValueError: For fewer than two models, models that differ in shape (named, before anything is measured where
            their configurations tell), a task of more than two classes, too few permutations or draws, or a ``folder``
            that holds other measures. What was measured before stays in ``folder``.
    """
    require_two_classes(task)
    require_draws(n_permutations, name="n_permutations")
    require_draws(n_random)
    require_int(n_top, "n_top")
    require_int(seed, "seed", minimum=0)
    names = require_checkpoints(checkpoints)
    carried = _carried(prompts, tuning)
    console = Console(file=sys.stderr, quiet=not progress)
    settings = {
        "task": task.fingerprint,
        "n_permutations": n_permutations,
        "seed": seed,
        "dtype": str(dtype).removeprefix("torch."),
        "tuning": _plain(tuning),
        "carried": prompts if carried is None else [fingerprint(*p.parameters()) for p in carried],
    }

    def place(name: str) -> Path | None:
        return None if folder is None else Path(folder) / file_name(name)

    kept = {name: {**settings, "checkpoint": identity(checkpoints[name])} for name in names}
    measured = {name: found for name in names if (found := _load(place(name), kept[name])) is not None}
    shapes = {name: stated_shape(checkpoints[name]) for name in names if name not in measured}
    shapes |= {name: (one.scores.n_layers, one.scores.d_mlp, 0) for name, one in measured.items()}
    require_one_shape({name: shapes[name] for name in names})
    if folder is not None:
        require_writable(folder)

    def boot(name: str) -> Any:
        model = boot_checkpoint(checkpoints[name], device, dtype)
        shapes[name] = n_layers, d_mlp, _ = shape_of(model)
        require_one_shape(shapes)
        selection_size(amount, d_mlp, per="layer")  # refused now rather than after the work
        selection_size(n_top, n_layers * d_mlp, per="model")
        return model

    if prompts == "last" and len(measured) < len(names):
        console.print(f"{names[-1]}: the prompts that all others get", highlight=False, markup=False)
        at = place(names[-1])
        carried, _ = _fit(boot(names[-1]), task, None if at is None else at / PROMPTS, None, tuning, progress)
    for number, name in enumerate(names):
        if name not in measured:
            console.print(f"{name} ({number + 1} of {len(names)})", highlight=False, markup=False)
            at = place(name)
            found = _measure(boot(name), task, carried, at, n_permutations, seed, tuning, progress)
            if at is not None:
                _save(found, at, kept[name])
            measured[name] = found
            gc.collect()
    return compare_checkpoints(
        {name: measured[name] for name in names}, task, amount, n_top, n_random, n_permutations, seed
    )


def _measure(
    model: Any,
    task: Task,
    carried: Sequence[SoftPrompt] | None,
    at: Path | None,
    n_permutations: int,
    seed: int,
    tuning: Mapping[str, Any],
    progress: bool,
) -> Measures:
    cache = InputCache(model) if runs_text_apart(model) else None
    with warnings.catch_warnings():
        # an early checkpoint learns nothing, a carried prompt is of another model: both are what is asked here
        warnings.filterwarnings("ignore", message=".*(not below chance|diverged|trained on another model)")
        outcome = "carried"
        if carried is None:
            folder = None if at is None else at / PROMPTS
            chosen, outcome = _fit(model, task, folder, cache, tuning, progress)
        else:
            chosen = [copy.deepcopy(prompt).to(model.cfg.device) for prompt in carried]
        options = {"cache": cache, "progress": progress}
        scores = score_neurons(
            model, chosen, task, n_permutations=n_permutations, seed=seed, keep_outcomes=True, **options
        )
        rules = rule_accuracy(model, chosen, task, scores, **options)
        split = task.split("report")
        labels = torch.tensor(split["label"])
        rows = []
        for prompt in chosen:
            prompted = PromptedModel(model, prompt, task.label_words, cache=cache)
            with torch.no_grad():
                answers = prompted.class_logits(list(split["text"])).argmax(1).cpu()
            rows.append((answers == labels).double())
    return Measures(scores, rules, torch.stack(rows), outcome)


def _fit(
    model: Any,
    task: Task,
    folder: Path | None,
    cache: InputCache | None,
    tuning: Mapping[str, Any],
    progress: bool,
) -> tuple[list[SoftPrompt], str]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*(not below chance|diverged)")
        fitted = fit_soft_prompts(model, task, folder=folder, cache=cache, progress=progress, **tuning)
    outcomes = [prompt.provenance["outcome"].partition(" (")[0] for prompt in fitted]
    return fitted, "; ".join(dict.fromkeys(outcomes))


def _carried(prompts: Any, tuning: Mapping[str, Any]) -> list[SoftPrompt] | None:
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


def _plain(value: Any) -> Any:
    """As JSON gives it back."""
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in sorted(value.items())}
    if isinstance(value, (list, tuple, range, set)):
        return [_plain(v) for v in value]
    return value if isinstance(value, (bool, int, float, str, type(None))) else str(value)


def _save(measures: Measures, at: Path, settings: dict[str, Any]) -> None:
    measures.scores.save(at / SCORES)
    tensors = {"rules": measures.rules, "right": measures.right}
    header = {
        "settings": settings,
        "outcome": measures.outcome,
        "roles": {"rules": "report", "right": "report"},
    }
    save_tensors(at / MEASURES, KIND, tensors, header)


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
        was = header["settings"]
        differs = [name for name, value in settings.items() if was.get(name) != value]
        if not differs:
            return Measures(
                NeuronScores.load(at / SCORES), tensors["rules"], tensors["right"], header["outcome"]
            )
    raise ValueError(
        f"{at} holds measures of another run ({', '.join(differs)} differ); choose another folder, or delete it"
    )
