"""Profiles of a few neurons: what drives each, what its rule is worth, what it writes, and who writes into it.

Built of other rooms' measurements; passes over texts are shared by all neurons, and keys and values of texts by all
parts (those of ``run.cache``, or of a cache of this call's own). A profile explains nothing by itself: it shows where
to look, beside controls, and each part says what it doesn't show.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from tl_skillneurons._checks import require_int, require_option, require_seed
from tl_skillneurons._progress import progress_bar
from tl_skillneurons.attention.projections import projection_of
from tl_skillneurons.models.input_cache import InputCache, runs_text_apart
from tl_skillneurons.neurons.choice import require_apart
from tl_skillneurons.neurons.neuron_set import Neurons, NeuronSet, as_neurons
from tl_skillneurons.prompts.prompted_model import PromptedModel
from tl_skillneurons.prompts.run import RunOptions
from tl_skillneurons.prompts.soft_prompt import SoftPrompt
from tl_skillneurons.scores.measured import require_measured_here
from tl_skillneurons.scores.neuron_scores import NeuronScores
from tl_skillneurons.scores.passes import chosen_activations
from tl_skillneurons.scores.rules import accuracy_of_set, right_by_rule
from tl_skillneurons.studies._common import settings_of, soft_prompts
from tl_skillneurons.studies.profiles.driving import (
    MEASURES,
    answers_and_activations,
    extreme_examples,
    taken_apart,
    text_table,
)
from tl_skillneurons.studies.profiles.output_words import output_words
from tl_skillneurons.studies.profiles.result import NeuronProfiles
from tl_skillneurons.studies.profiles.single_effects import single_effects
from tl_skillneurons.studies.profiles.writing_heads import writing_heads
from tl_skillneurons.tasks.task import Task

N_RANDOM = 100
"""Random neurons of each layer beside the words that its neurons write."""

PARTS = ("words", "output_words", "effects", "heads")
"""The parts of a profile that can be left out; activations, rules and texts are always there."""


def profile_neurons(
    model: TransformerBridge,
    prompts: SoftPrompt | Sequence[SoftPrompt],
    task: Task,
    scores: NeuronScores,
    neurons: Neurons,
    *,
    role: str = "report",
    n_texts: int = 8,
    prompt: int = 0,
    parts: Sequence[str] = PARTS,
    seed: int = 0,
    on_chosen_examples: bool = False,
    run: RunOptions = RunOptions(),
) -> NeuronProfiles:
    """Profile chosen neurons on the examples of ``role``.

    Args:
        prompts: Those that were scored, in the same order; texts are cut as they were for the scores.
        scores: Measured at prompt positions; they tell each neuron's position, threshold and direction.
        neurons: A few, such as the best 20: the cost of ``words`` grows with their number.
        n_texts: So many texts that drive each highest, and as many lowest (at most half of the examples each).
        prompt: The number of the prompt whose texts and words are shown; activations and rules are of all.
        parts: Which of :data:`PARTS` to make.
        seed: Of the bootstrap, the random neurons (:data:`N_RANDOM` of each layer, beside the words that its neurons
            write) and the permutations.
        on_chosen_examples: Profile neurons though some examples of ``role`` chose them; every row then says so.
        run: Batches, cache, progress.

    Raises:
        ValueError: For an empty set, neurons that these examples chose, scores of other prompts, positions or another
            task, or an unknown part.

    Example:
        >>> profiles = skn.studies.profile_neurons(model, prompts, task, scores, scores.top(20, per="model"))
        >>> for text in profiles.of(14, 371).highest:
        ...     print(text.activation, [(piece.text, piece.moved) for piece in text.pieces])
    """
    neurons = as_neurons(neurons)
    chosen = soft_prompts(prompts)
    require_seed(seed)
    require_int(n_texts, "n_texts")
    for part in parts:
        require_option(part, "parts", PARTS)
    if scores.positions != "prompt":
        raise ValueError(
            f"profiles are of neurons at the prompt, and these scores were read at positions={scores.positions!r}; "
            "score with positions='prompt'"
        )
    if not 0 <= require_int(prompt, "prompt", minimum=0) < len(chosen):
        raise ValueError(f"prompt must be in [0, {len(chosen)}), got {prompt}")
    max_length = scores.provenance.get("max_length")
    require_measured_here(scores, model, chosen, task=task, max_length=max_length)
    neurons.require_fits(scores.n_layers, scores.d_mlp)
    if not len(neurons):
        raise ValueError("neurons must hold at least one neuron, got none")
    split = task.split(role)
    insist, by = on_chosen_examples, "on_chosen_examples=True"
    require_apart(neurons.choice, list(split["text"]), insist=insist, by=by)
    if run.cache is None and runs_text_apart(model):
        run = replace(run, cache=InputCache(model))
    texts, labels = list(split["text"]), torch.tensor(split["label"])
    position = scores.rules()[0][:, neurons.layer, neurons.index]
    prompted = PromptedModel(model, chosen[prompt], max_length=max_length, run=run)
    activations, answers, left_out = _over_examples(
        model, chosen, task, texts, neurons, position, max_length, run
    )
    right = right_by_rule(activations, labels, scores, neurons)
    rules = accuracy_of_set(right, prompted, task, scores, neurons, role=role, seed=seed)
    extremes = extreme_examples(activations[prompt], n_texts)
    shown_answers = None if answers is None else answers[prompt]
    driving = text_table(neurons, extremes, texts, labels, shown_answers, activations[prompt])
    whole = NeuronSet(neurons.layer, neurons.index, scores.n_layers, scores.d_mlp, neurons.model)
    projection = projection_of(model, neurons)

    def effects() -> tuple[pd.DataFrame, Tensor]:
        answering = PromptedModel.for_task(model, chosen[prompt], task, max_length=max_length, run=run)
        held_at = scores.mean_baseline(prompt)
        return single_effects(answering, task, role, neurons, held_at, seed=seed)

    makers: dict[str, Callable[[], Any]] = {
        "words": lambda: taken_apart(prompted, texts, neurons, position[prompt], driving),
        "output_words": lambda: output_words(prompted, texts, neurons, n_random=N_RANDOM, seed=seed),
        "effects": effects,
        "heads": lambda: writing_heads(
            prompted, task, whole, projection, class_id=scores.class_id, seed=seed
        ),
    }
    made: dict[str, Any] = {}
    for part in (one for one in PARTS if one in parts):
        try:
            made[part] = makers[part]()
        except ValueError as error:
            left_out[part] = str(error)
    driving, words = made.get("words", (driving, None))
    written, beside = made.get("output_words", (None, None))
    alone, every = made.get("effects", (None, None))
    number = torch.arange(len(chosen))[:, None]
    return NeuronProfiles(
        neurons=neurons,
        activations=activations,
        baseline=scores.baseline[number, neurons.layer, position, neurons.index],
        position=position,
        labels=labels,
        answers=answers,
        rules=rules.table,
        texts=driving,
        words=words,
        output_words=written,
        output_null=beside,
        effects=alone,
        driving=every,
        heads=made.get("heads"),
        left_out=left_out,
        settings=settings_of(
            model,
            task,
            chosen,
            role=role,
            label_names=list(task.label_names),
            label_words=[task.label_words[k] for k in sorted(task.label_words)],
            class_id=scores.class_id,
            n_texts=n_texts,
            prompt=prompt,
            parts=[part for part in PARTS if part in parts],
            measure=MEASURES[projection],
            n_random=N_RANDOM,
            n_cut=prompted.n_truncated(texts),
            max_length=max_length,
            seed=seed,
            unit=rules.unit,
            n_units=rules.n_units,
            about=rules.about,
            neurons_chosen=rules.neurons_chosen,
        ),
    )


def _over_examples(
    model: TransformerBridge,
    prompts: Sequence[SoftPrompt],
    task: Task,
    texts: list[str],
    neurons: NeuronSet,
    position: Int[Tensor, "prompt neuron"],
    max_length: int | None,
    run: RunOptions,
) -> tuple[Float[Tensor, "prompt example neuron"], Int[Tensor, "prompt example"] | None, dict[str, str]]:
    """Activations, and answers where they can be read out (else the reason), of every prompt on every text."""
    reason: dict[str, str] = {}
    try:
        each = [PromptedModel.for_task(model, one, task, max_length=max_length, run=run) for one in prompts]
    except ValueError as error:
        reason["answers"] = str(error)
        each = [PromptedModel(model, one, max_length=max_length, run=run) for one in prompts]
    activations, answers = [], []
    with progress_bar("what drives each neuron", len(prompts), show=run.progress) as advance:
        for one, at in zip(each, position, strict=True):
            if reason:
                activations.append(chosen_activations(one, texts, neurons.layer, at, neurons.index))
            else:
                logits, acts = answers_and_activations(one, texts, neurons, at)
                activations.append(acts)
                answers.append(logits.argmax(1))
            advance()
    return torch.stack(activations), torch.stack(answers) if answers else None, reason
