"""From labelled text to skill neurons with their evidence, phase by phase.

====================  ====================================================================  =========================
phase                 what                                                                  its file
====================  ====================================================================  =========================
tuning prompts        soft prompts, one per seed, on ``train``                              ``prompts/``
asking prompts        their answers on ``report``, beside the majority's                    ``answers.safetensors``
scoring neurons       predictivity on ``select``, with every answer and the null            ``scores.safetensors``
rules on report       every neuron's rule on ``report``                                     ``rules_on_report...``
readability           the best neurons beside random ones, probes and luck                  ``readability/``
effects               the skill neurons held at their mean, beside every control            ``effects.safetensors``
sizes                 the same for sets of several sizes, on fewer examples                 ``curve.safetensors``
stability             agreement of the prompts                                              ``stability.safetensors``
price                 perplexity of plain text                                              ``price.safetensors``
profiles              what texts and words drive the best neurons, one by one               ``profiles.safetensors``
====================  ====================================================================  =========================

Each phase leaves its file when it is finished and is not run again; an interrupted one goes on where it stopped. Where
no prompt beats always saying the commonest label, the phases after the second are not run; where some do, these alone
are used.
"""

import contextlib
import os
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from transformer_lens.model_bridge import TransformerBridge

from tl_skillneurons._checks import require_int, require_seed, selection_size
from tl_skillneurons._files import load_tensors
from tl_skillneurons._processes import rank_and_count
from tl_skillneurons._widths import even
from tl_skillneurons.find.answers import ALPHA, PromptAnswers, measure_answers
from tl_skillneurons.find.clock import timed
from tl_skillneurons.find.evidence import Evidence, best_few, examples_of, sizes_of
from tl_skillneurons.find.findings import Findings
from tl_skillneurons.find.folder import (
    AGREEMENT,
    ANSWERS,
    CURVE,
    EFFECTS,
    NEURONS,
    PRICE,
    PROFILES,
    PROMPTS,
    READABLE,
    RULES,
    SCORES,
    answered_by,
    begin,
    describe_task,
    is_finished,
    load_run,
    measured_with,
    record,
    require_of,
)
from tl_skillneurons.find.price import can_be_priced, measure_price
from tl_skillneurons.find.readability import measure_readability
from tl_skillneurons.find.stability import measure_stability
from tl_skillneurons.interventions.asked import Beyond
from tl_skillneurons.interventions.controls import with_controls
from tl_skillneurons.interventions.effect_panel import KIND, EffectPanel
from tl_skillneurons.interventions.effects import measure_effects
from tl_skillneurons.models.chat_templates import ChatFrame
from tl_skillneurons.models.input_cache import InputCache, runs_text_apart
from tl_skillneurons.models.records import model_record
from tl_skillneurons.models.sites import has_language_model_head, is_causal, max_length, neuron_shape
from tl_skillneurons.models.tokenizing import label_tokens
from tl_skillneurons.neurons.neuron_set import SITE, NeuronSet
from tl_skillneurons.prompts.run import RunOptions, prompt_record
from tl_skillneurons.prompts.soft_prompt import SoftPrompt
from tl_skillneurons.prompts.tuning.fit import fit_soft_prompts
from tl_skillneurons.prompts.tuning.schedule import TrainingOptions
from tl_skillneurons.scores.evaluated_rules import AllRules
from tl_skillneurons.scores.neuron_scores import NeuronScores
from tl_skillneurons.scores.predictivity import require_orders, score_neurons
from tl_skillneurons.scores.rules import evaluate_rules
from tl_skillneurons.studies.profiles.run import profile_neurons
from tl_skillneurons.tasks.task import Task
from tl_skillneurons.tasks.two_classes import require_two_classes


def find_skill_neurons(
    model: TransformerBridge,
    task: Task,
    *,
    out: str | os.PathLike[str],
    n_virtual_tokens: int = 16,
    n_prompts: int = 5,
    n_steps: int = 300,
    top: float | int = 0.02,
    positive: int | str | None = None,
    evidence: Evidence = Evidence(),
    seed: int = 0,
    training: TrainingOptions = TrainingOptions(),
    run: RunOptions = RunOptions(),
) -> Findings:
    """Run every phase that ``out`` does not hold yet.

    Args:
        model: In eval mode; it comes back as it was.
        task: Of two classes, or of more with ``positive``.
        out: The run's folder.
        n_virtual_tokens: Length of each soft prompt.
        n_prompts: Soft prompts, of seeds ``seed``, ``seed + 1``, ...
        n_steps: Training steps of each, at most.
        top: Skill neurons per layer, as a share or a count (see :meth:`NeuronScores.top`).
        positive: The label that is told from all others; of two classes it becomes label 1.
        evidence: How many controls, permutations and examples.
        seed: Everything random follows from it.
        training: How prompts are trained.
        run: How to run; without a cache the keys and values of texts are kept in one of this call's own.

    Returns:
        What was found, whichever phases ran now and whichever stood in ``out``.

    Raises:
        ValueError: When ``out`` holds a run of other settings, under several processes, or for what the phases refuse.

    Example:
        >>> found = skn.find_skill_neurons(model, task, out="run", n_prompts=2)
        >>> for verdict in found.verdicts:
        ...     print(verdict.question, verdict.answer)
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
    if positive is not None:
        task = against_others(task, positive)
    require_two_classes(task)
    selection_size(top, even(neuron_shape(model)[1], "find_skill_neurons"), per="layer")
    require_orders(task, evidence.n_permutations, ALPHA)
    longest = max_length(model)
    n_positions = require_int(n_virtual_tokens, "n_virtual_tokens") + (not is_causal(model))
    if longest is not None and n_positions >= longest:
        raise ValueError(
            f"n_virtual_tokens must leave room for text, {model.cfg.model_name} takes sequences of at most {longest} "
            f"tokens, got {n_virtual_tokens}; use fewer"
        )
    if has_language_model_head(model):
        label_tokens(model, task.label_words)
    if task.chat is not None:
        ChatFrame(model, task.chat)
    settings = {
        "model": model_record(model),
        "site": SITE,
        "task": describe_task(task),
        "n_virtual_tokens": n_virtual_tokens,
        "n_steps": n_steps,
        **asdict(training),
        "top": top,
        **asdict(evidence),
        "seeds": seeds,
        "effects": {"interventions": ["mean"], "positions": "prompt", "reference": "baseline"},
    }
    begin(out, settings, task)
    if is_finished(out):
        with contextlib.suppress(FileNotFoundError):  # of a file that was deleted, its phase runs again
            return load_run(out)
    if run.cache is None and runs_text_apart(model):
        run = replace(run, cache=InputCache(model))
    with timed(out, "tuning prompts"):
        fitted = fit_soft_prompts(
            model,
            task,
            n_virtual_tokens=n_virtual_tokens,
            seeds=seeds,
            n_steps=n_steps,
            training=training,
            folder=out / PROMPTS,
            run=run,
        )
    with timed(out, "asking prompts"):
        answers = _answers(model, fitted, task, out / ANSWERS, run)
    prompts = [fitted[number] for number in answers.beating]
    if prompts:
        _look_for_neurons(model, prompts, task, out, settings, run)
    record(out, finished=True)
    return replace(load_run(out), task=task, fitted=fitted)


def against_others(task: Task, positive: int | str) -> Task:
    """The task as one label against all others; that label is label 1.

    Raises:
        ValueError: When the task has no such label.
    """
    others = [label for label in task.label_names if label != positive]
    if len(others) == task.n_classes:
        raise ValueError(
            f"positive must be one of the labels {list(task.label_names)} of {task.name}, got {positive!r}"
        )
    [found] = task.binary_subtasks([(positive, others)])
    return found


def _look_for_neurons(
    model: TransformerBridge,
    prompts: list[SoftPrompt],
    task: Task,
    out: Path,
    settings: dict[str, Any],
    run: RunOptions,
) -> None:
    """All phases after the prompts."""
    seed, n_random = settings["seeds"][0], settings["n_random"]
    with timed(out, "scoring neurons"):
        scores = _scores(model, prompts, task, out, (settings["n_permutations"], seed), run)
        skill = scores.top(settings["top"])
        if not (out / NEURONS).exists():
            skill.to_json(out / NEURONS)
    with timed(out, "rules on report"):
        rules = _rules(model, prompts, task, scores, out / RULES, run)
    with timed(out, "readability"):
        measure_readability(
            model, prompts, task, scores, rules, n_random=n_random, seed=seed, folder=out / READABLE, run=run
        )
    with timed(out, "effects"):
        on = examples_of(task, settings["n_examples"], seed)
        _effects(model, prompts, on, {"whole": skill}, out / EFFECTS, (n_random, seed), run)
    with timed(out, "sizes"):
        on = examples_of(task, settings["n_curve_examples"], seed)
        d_mlp = even(scores.d_mlp, "find_skill_neurons")
        sizes = {name: scores.top(amount) for name, amount in sizes_of(settings["top"], d_mlp).items()}
        _effects(model, prompts, on, sizes, out / CURVE, (settings["n_curve_random"], seed), run)
    with timed(out, "stability"):
        measure_stability(scores, skill, seed=seed, path=out / AGREEMENT)
    with timed(out, "price"):
        if can_be_priced(model) and not (out / PRICE).exists():
            active = torch.stack([scores.mean_absolute(number) for number in range(scores.n_prompts)]).mean(0)
            drawn = with_controls({"whole": skill}, model, active, n_random, seed).sets
            sets = {(kind, draw): held for (_, kind, draw), held in drawn.items()}
            measure_price(model, prompts[0], task, sets, run).save(out / PRICE)
    with timed(out, "profiles"):
        if not (out / PROFILES).exists():
            best = best_few(skill, settings["n_profiled"])
            profile_neurons(model, prompts, task, scores, best, seed=seed, run=run).save(out / PROFILES)


def _answers(
    model: TransformerBridge, prompts: list[SoftPrompt], task: Task, path: Path, run: RunOptions
) -> PromptAnswers:
    """Every prompt's answers on ``report``, from the file or into it."""
    if not path.exists():
        measure_answers(model, prompts, task, run).save(path)
    answers = PromptAnswers.load(path)
    require_of(path, answered_by(answers), [prompt_record(prompt) for prompt in prompts], task)
    return answers


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
    sets: dict[str, NeuronSet],
    path: Path,
    draws: tuple[int, int],
    run: RunOptions,
) -> None:
    """The effect of each set and of its controls, from the file where it is finished."""
    n_random, seed = draws
    if path.exists() and load_tensors(path, KIND)[1].get("finished"):
        panel = EffectPanel.load(path)
        require_of(path, measured_with(panel), [prompt_record(prompt) for prompt in prompts], task)
        return
    measure_effects(
        model,
        prompts,
        task,
        sets,
        interventions="mean",
        n_random=n_random,
        seed=seed,
        beyond=Beyond(as_band=path.name == CURVE),
        path=path,
        run=run,
    )
