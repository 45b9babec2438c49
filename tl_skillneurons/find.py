"""From labelled text to skill neurons with their evidence: tune, score, select, check on ``report``, ablate.

A run lives in a folder. Each phase leaves a file there when it is finished and is not run again; an
interrupted one goes on where it stopped. ``run.json`` holds the settings, the versions and every number the
report prints.
"""

import os
import platform
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from jaxtyping import Float
from torch import Tensor

from tl_skillneurons._checks import require_int
from tl_skillneurons._files import load_tensors, package_version, read_json, save_tensors, write_json
from tl_skillneurons._processes import rank_and_count
from tl_skillneurons.interventions.effects import AblationEffect, ablation_effect
from tl_skillneurons.models.input_cache import InputCache, runs_text_apart
from tl_skillneurons.models.records import model_record
from tl_skillneurons.models.sites import SITE, has_language_model_head, neuron_shape
from tl_skillneurons.models.tokenizing import label_token_ids
from tl_skillneurons.neurons import NeuronSet, selection_size
from tl_skillneurons.prompts.run import prompt_record
from tl_skillneurons.prompts.soft_prompt import SoftPrompt
from tl_skillneurons.prompts.tuning.fit import fit_soft_prompts
from tl_skillneurons.scores.neuron_scores import NeuronScores
from tl_skillneurons.scores.predictivity import require_orders, rule_accuracy, score_neurons
from tl_skillneurons.stats.intervals import require_draws
from tl_skillneurons.tasks.task import Task, require_two_classes

RUN, PROMPTS, SCORES, NEURONS, RULES, EFFECTS = (
    "run.json",
    "prompts",
    "scores.safetensors",
    "neurons.json",
    "rules_on_report.safetensors",
    "ablation.json",
)
_RECORDED = ("transformer-lens", "torch", "transformers", "datasets", "safetensors", "numpy")


@dataclass(frozen=True, eq=False)
class Findings:
    """What one run found.

    Attributes:
        prompts: The soft prompts, one per seed.
        scores: Every neuron's scores, thresholds from ``baseline``, accuracies on ``select``.
        skill: The skill neurons, best first.
        on_select: Accuracy of each skill neuron's rule on ``select``, which chose it: too good.
        on_report: The same on ``report``, which chose nothing.
        effect: Accuracy on ``report`` of the intact model, with the skill neurons ablated, and with random
            controls ablated.
    """

    task: Task
    prompts: list[SoftPrompt]
    scores: NeuronScores
    skill: NeuronSet
    on_select: Float[Tensor, " neuron"]
    on_report: Float[Tensor, " neuron"]
    effect: AblationEffect


def find_skill_neurons(
    model: Any,
    task: Task,
    *,
    out: str | os.PathLike[str],
    n_virtual_tokens: int = 16,
    n_prompts: int = 5,
    n_steps: int = 300,
    batch_size: int = 16,
    top: float | int = 0.02,
    n_random: int = 5,
    n_permutations: int = 1000,
    seed: int = 0,
    progress: bool = True,
) -> Findings:
    """Run every phase that ``out`` does not hold yet.

    Args:
        out: The run's folder.
        n_prompts: Soft prompts, of seeds ``seed``, ``seed + 1``, ...
        top: Skill neurons per layer, as a share or a count (see :meth:`NeuronScores.top`).
        n_random: Random controls of the ablation.
        n_permutations: Label permutations for the chance level of the scores.

    Raises:
        ValueError: When ``out`` holds a run of other settings, under several processes, or for what the phases refuse.
    """
    if rank_and_count()[1] > 1:
        raise ValueError(
            "a run's folder is kept by one process, and a launcher started several; start one, or share the work "
            "in a script of your own with fit_soft_prompts and score_neurons"
        )
    out = Path(out)
    require_int(n_prompts, "n_prompts")
    seeds = list(range(require_int(seed, "seed", minimum=0), seed + n_prompts))
    # what would be refused later is refused before anything is done
    require_two_classes(task)
    selection_size(top, neuron_shape(model)[1], per="layer")
    require_draws(n_permutations, name="n_permutations")
    require_orders(task, n_permutations, seed)
    if has_language_model_head(model):
        label_token_ids(model, task.label_words)
    settings = {
        "model": model_record(model),
        "site": SITE,
        "task": describe_task(task),
        "n_virtual_tokens": n_virtual_tokens,
        "n_steps": n_steps,
        "batch_size": batch_size,
        "top": top,
        "n_random": n_random,
        "n_permutations": n_permutations,
        "seeds": seeds,
        "ablation": {
            "how": "mean",
            "values": "baseline",
            "positions": "all",
            "controls": "random, same layers",
        },
    }
    _begin(out / RUN, settings)
    cache = InputCache(model) if runs_text_apart(model) else None
    prompts = fit_soft_prompts(
        model,
        task,
        n_virtual_tokens=n_virtual_tokens,
        seeds=seeds,
        n_steps=n_steps,
        batch_size=batch_size,
        folder=out / PROMPTS,
        cache=cache,
        progress=progress,
    )
    scores = _scores(model, prompts, task, out, (n_permutations, seed), cache, progress)
    skill = scores.top(top)
    skill.to_json(out / NEURONS)
    rules = _rules(model, prompts, task, scores, out, cache, progress)
    effect = ablation_effect(
        model,
        prompts,
        task,
        skill,
        values=[scores.mean_baseline(k) for k in range(len(prompts))],
        n_random=n_random,
        seed=seed,
        cache=cache,
        path=out / EFFECTS,
        progress=progress,
    )
    return Findings(
        task=task,
        prompts=prompts,
        scores=scores,
        skill=skill,
        on_select=scores.rule_accuracy(skill),
        on_report=scores.rule_accuracy(skill, rules),
        effect=effect,
    )


def record(out: str | os.PathLike[str], numbers: dict[str, Any]) -> Path:
    """Add ``numbers`` (what the report prints) to the finished run in ``out``."""
    path = Path(out) / RUN
    return write_json(path, {**read_json(path, "run"), "finished": True, "numbers": numbers})


def describe_task(task: Task) -> dict[str, Any]:
    """What a run records of its task: enough to know the data again."""
    return {
        "name": task.name,
        "fingerprint": task.fingerprint,
        "template": task.template,
        "label_words": {str(k): v for k, v in task.label_words.items()},
        "n_examples": task.n_examples,
        "dropped_as_also_in_a_later_role": task.dropped,
        "notes": list(task.notes),
    }


def _begin(path: Path, settings: dict[str, Any]) -> None:
    if path.exists():
        was = read_json(path, "run")["settings"]
        differs = [f"{k}: {was.get(k)!r} there, {v!r} now" for k, v in settings.items() if was.get(k) != v]
        if differs:
            raise ValueError(
                f"{path.parent} holds a run of other settings ({'; '.join(differs)}); "
                "choose another folder for this one"
            )
        return
    content = {"kind": "run", "format": 1, "versions": _versions(), "settings": settings, "finished": False}
    write_json(path, content)


def _versions() -> dict[str, str]:
    found = {"tl_skillneurons": package_version(), "python": platform.python_version()}
    for name in _RECORDED:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _scores(
    model: Any,
    prompts: Sequence[SoftPrompt],
    task: Task,
    out: Path,
    permutations: tuple[int, int],
    cache: InputCache | None,
    progress: bool,
) -> NeuronScores:
    """The scores of all prompts with their null; each prompt's are kept until all are there."""
    whole = out / SCORES
    described = [prompt_record(prompt) for prompt in prompts]
    if whole.exists():
        scores = NeuronScores.load(whole)
        _require_of(whole, scores, described, task)
        return scores
    parts = []
    for prompt, description in zip(prompts, described, strict=True):
        part = out / PROMPTS / f"scores-seed{prompt.seed}.safetensors"
        if part.exists():
            _require_of(part, NeuronScores.load(part), [description], task)
        else:
            score_neurons(model, prompt, task, keep_outcomes=True, cache=cache, progress=progress).save(part)
        parts.append(part)
    scores = NeuronScores.of_prompts([NeuronScores.load(part) for part in parts])
    scores = replace(scores.with_null(permutations[0], seed=permutations[1]), outcomes=None)
    scores.save(whole)
    for part in parts:
        part.unlink()
    return scores


def _require_of(path: Path, scores: NeuronScores, described: list[dict[str, Any]], task: Task) -> None:
    was = scores.provenance
    if was["prompts"] != described or was["task"]["fingerprint"] != task.fingerprint:
        raise ValueError(
            f"{path} was measured with other prompts or another task; delete it, or choose another folder"
        )


def _rules(
    model: Any,
    prompts: Sequence[SoftPrompt],
    task: Task,
    scores: NeuronScores,
    out: Path,
    cache: InputCache | None,
    progress: bool,
) -> Float[Tensor, "prompt layer position neuron"]:
    def compute() -> Tensor:
        return rule_accuracy(model, prompts, task, scores, role="report", cache=cache, progress=progress)

    return _kept(
        out / RULES,
        compute,
        {"role": "report", "task": task.fingerprint, "prompts": scores.provenance["prompts"]},
    )


def _kept(path: Path, compute: Callable[[], Tensor], header: dict[str, Any]) -> Tensor:
    """The tensor in ``path``, computed and written there if it isn't yet."""
    if not path.exists():
        save_tensors(path, "RuleAccuracy", {"accuracy": compute()}, header)
    tensors, was = load_tensors(path, "RuleAccuracy")
    if any(was.get(key) != value for key, value in header.items()):
        raise ValueError(
            f"{path} was measured with other prompts or another task; delete it, or choose another folder"
        )
    return tensors["accuracy"]
