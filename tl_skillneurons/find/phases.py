"""From labelled text to skill neurons with their evidence: tune, score, select, check on ``report``, ablate.

A run lives in a folder. Each phase leaves a file there when it is finished and is not run again; an
interrupted one goes on where it stopped. ``run.json`` holds the settings, the versions and every number the
report prints.
"""

import os
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

from transformer_lens.model_bridge import TransformerBridge

from tl_skillneurons._checks import require_int, require_seed, selection_size
from tl_skillneurons._files import load_tensors
from tl_skillneurons._processes import rank_and_count
from tl_skillneurons.find.findings import Findings
from tl_skillneurons.find.folder import (
    EFFECTS,
    NEURONS,
    PROMPTS,
    RULES,
    SCORES,
    begin,
    describe_task,
    measured_with,
    record,
    require_of,
)
from tl_skillneurons.interventions.effect_panel import KIND, EffectPanel
from tl_skillneurons.interventions.effects import measure_effects
from tl_skillneurons.models.input_cache import InputCache, runs_text_apart
from tl_skillneurons.models.records import model_record
from tl_skillneurons.models.sites import has_language_model_head, neuron_shape
from tl_skillneurons.models.tokenizing import label_token_ids
from tl_skillneurons.neurons import SITE, NeuronSet
from tl_skillneurons.prompts.run import RunOptions, prompt_record
from tl_skillneurons.prompts.soft_prompt import SoftPrompt
from tl_skillneurons.prompts.tuning.fit import fit_soft_prompts
from tl_skillneurons.prompts.tuning.schedule import TrainingOptions
from tl_skillneurons.scores.evaluated_rules import AllRules
from tl_skillneurons.scores.neuron_scores import NeuronScores
from tl_skillneurons.scores.predictivity import require_orders, score_neurons
from tl_skillneurons.scores.rules import evaluate_rules
from tl_skillneurons.stats.hypothesis_tests import require_draws
from tl_skillneurons.tasks.task import Task, require_two_classes


def find_skill_neurons(
    model: TransformerBridge,
    task: Task,
    *,
    out: str | os.PathLike[str],
    n_virtual_tokens: int = 16,
    n_prompts: int = 5,
    n_steps: int = 300,
    top: float | int = 0.02,
    n_random: int = 20,
    n_permutations: int = 1000,
    seed: int = 0,
    training: TrainingOptions = TrainingOptions(),
    run: RunOptions = RunOptions(),
) -> Findings:
    """Run every phase that ``out`` does not hold yet.

    Args:
        model: In eval mode; it comes back as it was.
        out: The run's folder.
        n_virtual_tokens: Length of each soft prompt.
        n_prompts: Soft prompts, of seeds ``seed``, ``seed + 1``, ...
        n_steps: Training steps of each, at most.
        top: Skill neurons per layer, as a share or a count (see :meth:`NeuronScores.top`).
        n_random: Sets of random neurons, and as many matched ones, beside the effect; 19 at least.
        n_permutations: Label permutations for the chance level of the scores.
        seed: Everything random follows from it.
        training: How prompts are trained.
        run: How to run; without a cache the keys and values of texts are kept in one of this call's own.

    Returns:
        What was found, whichever phases ran now and whichever stood in ``out``.

    Raises:
        ValueError: When ``out`` holds a run of other settings, under several processes, or for what the phases refuse.

    Example:
        >>> found = skn.find_skill_neurons(model, task, out="run", n_prompts=2)
        >>> found.skill, found.on_report.mean()
    """
    if rank_and_count()[1] > 1:
        raise ValueError(
            "a run's folder is kept by one process, and a launcher started several; start one, or share the work "
            "in a script of your own with fit_soft_prompts and score_neurons"
        )
    out = Path(out)
    require_int(n_prompts, "n_prompts")
    seeds = list(range(require_seed(seed), seed + n_prompts))
    # what would be refused later is refused before anything is done
    require_two_classes(task)
    selection_size(top, neuron_shape(model)[1], per="layer")
    require_draws(n_random)
    require_draws(n_permutations, name="n_permutations")
    require_orders(task, n_permutations, 0.05)
    if has_language_model_head(model):
        label_token_ids(model, task.label_words)
    settings = {
        "model": model_record(model),
        "site": SITE,
        "task": describe_task(task),
        "n_virtual_tokens": n_virtual_tokens,
        "n_steps": n_steps,
        **asdict(training),
        "top": top,
        "n_random": n_random,
        "n_permutations": n_permutations,
        "seeds": seeds,
        "effects": {"interventions": ["mean"], "positions": "prompt", "reference": "baseline"},
    }
    begin(out, settings, task)
    if run.cache is None and runs_text_apart(model):
        run = replace(run, cache=InputCache(model))
    prompts = fit_soft_prompts(
        model,
        task,
        n_virtual_tokens=n_virtual_tokens,
        seeds=seeds,
        n_steps=n_steps,
        training=training,
        folder=out / PROMPTS,
        run=run,
    )
    scores = _scores(model, prompts, task, out, (n_permutations, seed), run)
    skill = scores.top(top)
    skill.to_json(out / NEURONS)
    rules = _rules(model, prompts, task, scores, out / RULES, run)
    effects = _effects(model, prompts, task, skill, out / EFFECTS, (n_random, seed), run)
    record(out, finished=True)
    return Findings(
        task=task,
        model=settings["model"],
        prompts=prompts,
        scores=scores,
        skill=skill,
        rules=rules,
        effects=effects,
        settings=settings,
        folder=out,
    )


def _scores(
    model: TransformerBridge,
    prompts: Sequence[SoftPrompt],
    task: Task,
    out: Path,
    permutations: tuple[int, int],
    run: RunOptions,
) -> NeuronScores:
    """The scores of all prompts with their null; each prompt's are kept until all are there."""
    whole = out / SCORES
    described = [prompt_record(prompt) for prompt in prompts]
    if whole.exists():
        scores = NeuronScores.load(whole)
        require_of(whole, scores.provenance, described, task)
        return scores
    parts = []
    for prompt, description in zip(prompts, described, strict=True):
        part = out / PROMPTS / f"scores-seed{prompt.seed}.safetensors"
        if part.exists():
            require_of(part, NeuronScores.load(part).provenance, [description], task)
        else:
            score_neurons(model, prompt, task, keep_outcomes=True, run=run).save(part)
        parts.append(part)
    scores = NeuronScores.of_prompts([NeuronScores.load(part) for part in parts])
    scores = scores.with_null(permutations[0], seed=permutations[1])
    scores.save(whole)
    for part in parts:
        part.unlink()
    return scores


def _rules(
    model: TransformerBridge,
    prompts: Sequence[SoftPrompt],
    task: Task,
    scores: NeuronScores,
    path: Path,
    run: RunOptions,
) -> AllRules:
    """Every neuron's rule on ``report``, from the file or into it."""
    if not path.exists():
        evaluate_rules(model, prompts, task, scores, run=run).save(path)
    rules = AllRules.load(path)
    require_of(path, rules.provenance, scores.provenance["prompts"], task)
    return rules


def _effects(
    model: TransformerBridge,
    prompts: Sequence[SoftPrompt],
    task: Task,
    skill: NeuronSet,
    path: Path,
    draws: tuple[int, int],
    run: RunOptions,
) -> EffectPanel:
    """The effect of the skill neurons and of their controls, from the file where it is finished."""
    n_random, seed = draws
    if path.exists() and load_tensors(path, KIND)[1].get("finished"):
        panel = EffectPanel.load(path)
        require_of(path, measured_with(panel), [prompt_record(prompt) for prompt in prompts], task)
        return panel
    return measure_effects(
        model,
        prompts,
        task,
        skill,
        interventions="mean",
        n_random=n_random,
        seed=seed,
        path=path,
        run=run,
    )
