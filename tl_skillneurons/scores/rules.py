"""How good neurons' rules are on examples that did not choose them.

With a_bsl(N, p) the threshold from role ``baseline``, and p*(N), d(N) = +1 or -1 the position and the direction that
role ``select`` chose::

    rule(N, x)     = 1[a(N, p*, x) > a_bsl(N, p*)] if d = +1, else 1 - 1[...]
    accuracy(N)    = mean over prompts, and over the examples of ``role``, of 1[rule(N, x) = y(x)]

``select`` chose the neurons, their positions and their directions, and so flatters them. The same rules on ``report``
don't know those examples, and may fall below one half there. An accurate rule does not show that the model uses the
neuron. The control: random neurons of the same layers, by the rules that ``select`` chose for them
(``rules.accuracy_of(neurons.random_like(seed))``), and the level of the permutation null. The rule is that of Wang et
al. (2022, section 3); testing it on examples apart is this package's.
"""

from collections.abc import Sequence
from typing import Any, overload

import pandas as pd
import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from tl_skillneurons._checks import require_seed
from tl_skillneurons.neurons.choice import require_apart, text_fingerprints
from tl_skillneurons.neurons.neuron_set import Neurons, as_neurons
from tl_skillneurons.prompts.prompted_model import PromptedModel
from tl_skillneurons.prompts.run import RunOptions, as_list
from tl_skillneurons.prompts.soft_prompt import SoftPrompt
from tl_skillneurons.scores.directions import common_direction, direction_columns
from tl_skillneurons.scores.evaluated_rules import AllRules, RuleAccuracy
from tl_skillneurons.scores.measured import require_measured_here
from tl_skillneurons.scores.neuron_scores import NeuronScores
from tl_skillneurons.scores.passes import chosen_activations, every_accuracy
from tl_skillneurons.stats.intervals import interval_scope, two_level_bootstrap
from tl_skillneurons.tasks.task import Task


@overload
def evaluate_rules(
    model: TransformerBridge,
    prompts: SoftPrompt | Sequence[SoftPrompt] | None,
    task: Task,
    scores: NeuronScores,
    neurons: None = None,
    *,
    role: str = "report",
    seed: int = 0,
    max_length: int | None = None,
    on_chosen_examples: bool = False,
    run: RunOptions = RunOptions(),
) -> AllRules: ...


@overload
def evaluate_rules(
    model: TransformerBridge,
    prompts: SoftPrompt | Sequence[SoftPrompt] | None,
    task: Task,
    scores: NeuronScores,
    neurons: Neurons,
    *,
    role: str = "report",
    seed: int = 0,
    max_length: int | None = None,
    on_chosen_examples: bool = False,
    run: RunOptions = RunOptions(),
) -> RuleAccuracy: ...


def evaluate_rules(
    model: TransformerBridge,
    prompts: SoftPrompt | Sequence[SoftPrompt] | None,
    task: Task,
    scores: NeuronScores,
    neurons: Neurons | None = None,
    *,
    role: str = "report",
    seed: int = 0,
    max_length: int | None = None,
    on_chosen_examples: bool = False,
    run: RunOptions = RunOptions(),
) -> AllRules | RuleAccuracy:
    """How good neurons' rules are on ``role``: with the thresholds of ``baseline``, and the positions and directions
    that ``select`` chose.

    Args:
        prompts: Those that were scored, in the same order; ``None`` for scores of the bare text.
        neurons: A set, or ``None`` for every neuron.
        role: Examples that chose nothing; on ``"select"``, which chose positions and directions, rules are too good.
        seed: Of the bootstrap, for a set: of the examples' units, and from three prompts on of the prompts too.
        max_length: Longest sequence in tokens; ``None`` is what the prompts were tuned with. It must be what the scores
            were measured with.
        on_chosen_examples: Measure a set though some examples of ``role`` chose it; its table then says so. Of every
            neuron it's ``rules.accuracy_of(neurons)`` that asks.
        run: Batches, cache, progress.

    Returns:
        For a set a :class:`RuleAccuracy`, with the mean over the set and its interval; for every neuron
        :class:`AllRules`, which gives the accuracy of any set and can be saved.

    Raises:
        ValueError: For an empty set, neurons of another model, neurons that these examples chose, or scores of another
            model, other prompts, another task or texts cut to another length.

    Example:
        >>> skn.scores.evaluate_rules(model, prompts, task, scores, scores.top(0.02)).mean
        >>> rules = skn.scores.evaluate_rules(model, prompts, task, scores)
    """
    neurons = None if neurons is None else as_neurons(neurons)
    require_seed(seed)
    if neurons is None:
        require_measured_here(scores, model, prompts, task=task, max_length=max_length)
        each = [
            PromptedModel(model, one, max_length=max_length, run=run, chat=task.chat)
            for one in as_list(prompts)
        ]
        position, direction = scores.rules()
        return AllRules(
            accuracy=every_accuracy(each, task, scores, role, run.progress),
            position=position,
            direction=direction,
            role=role,
            n_examples=task.n_examples[role],
            positions=scores.positions,
            provenance=_with_cut(scores.provenance, each[0], task, role),
            texts=frozenset(text_fingerprints(task.split(role)["text"])),
        )
    if not len(neurons):
        raise ValueError("neurons must hold at least one neuron, got none")
    texts, by = list(task.split(role)["text"]), "on_chosen_examples=True"
    require_apart(neurons.choice, texts, insist=on_chosen_examples, by=by)
    answers = rule_answers(model, prompts, task, scores, neurons, role=role, max_length=max_length, run=run)
    prompted = PromptedModel(model, as_list(prompts)[0], max_length=max_length, chat=task.chat)
    return accuracy_of_set(answers, prompted, task, scores, neurons, role=role, seed=seed)


def accuracy_of_set(
    answers: Float[Tensor, "prompt example chosen"],
    prompted: PromptedModel,
    task: Task,
    scores: NeuronScores,
    neurons: Neurons,
    *,
    role: str,
    seed: int,
) -> RuleAccuracy:
    """What :func:`evaluate_rules` gives for a set, of answers that stand ready (:func:`rule_answers`).

    Args:
        prompted: The model with one of the prompts, which tells how many texts were cut.
    """
    neurons = as_neurons(neurons)
    right, units = answers.mean(0), task.units(role)
    each_low, each_high = two_level_bootstrap(
        rearrange(answers, "prompt example chosen -> chosen prompt example"), seed=seed, units=units
    )
    low, high = two_level_bootstrap(answers.mean(2), seed=seed, units=units)
    by_prompt = scores.direction_by_prompt[:, neurons.layer, neurons.index]
    table = pd.DataFrame(
        {
            "layer": neurons.layer.numpy(),
            "index": neurons.index.numpy(),
            "direction": common_direction(by_prompt).numpy(),
            **direction_columns(by_prompt),
            "on_select": scores.accuracy_of(neurons).numpy(),
            "accuracy": right.mean(0).numpy(),
            "low": each_low.numpy(),
            "high": each_high.numpy(),
        }
    )
    return RuleAccuracy(
        mean=float(right.mean()),
        low=float(low),
        high=float(high),
        table=table,
        role=role,
        n_examples=len(right),
        seed=seed,
        unit=units.what,
        n_units=len(units),
        about=interval_scope(len(answers), units),
        neurons_chosen=require_apart(neurons.choice, list(task.split(role)["text"]), insist=True, by=""),
        provenance=_with_cut(scores.provenance, prompted, task, role),
    )


def _with_cut(provenance: dict[str, Any], prompted: PromptedModel, task: Task, role: str) -> dict[str, Any]:
    n_cut = {**provenance.get("n_cut", {}), role: prompted.n_truncated(list(task.split(role)["text"]))}
    return {**provenance, "n_cut": n_cut}


def rule_answers(
    model: TransformerBridge,
    prompts: SoftPrompt | Sequence[SoftPrompt] | None,
    task: Task,
    scores: NeuronScores,
    neurons: Neurons,
    *,
    role: str = "report",
    max_length: int | None = None,
    run: RunOptions = RunOptions(),
) -> Float[Tensor, "prompt example chosen"]:
    """Whether each neuron's rule, as ``select`` chose it for each prompt, is right on each example: 1 or 0.

    Raises:
        ValueError: When the scores are of another model, other prompts, another task, or texts cut otherwise.
    """
    neurons = as_neurons(neurons)
    require_measured_here(scores, model, prompts, task=task, max_length=max_length)
    neurons.require_fits(scores.n_layers, scores.d_mlp)
    labels = torch.tensor(task.split(role)["label"])
    layer, index = neurons.layer, neurons.index
    texts = list(task.split(role)["text"])
    rows = []
    for prompt, where in zip(as_list(prompts), scores.rules()[0], strict=True):
        prompted = PromptedModel(model, prompt, max_length=max_length, run=run, chat=task.chat)
        at = where[layer, index]
        rows.append(chosen_activations(prompted, texts, layer, at, index, positions=scores.positions))
    return right_by_rule(torch.stack(rows), labels, scores, neurons)


def right_by_rule(
    activations: Float[Tensor, "prompt example chosen"],
    labels: Int[Tensor, " example"],
    scores: NeuronScores,
    neurons: Neurons,
) -> Float[Tensor, "prompt example chosen"]:
    """Whether each neuron's rule is right on each example, 1 or 0, of activations at the position of the rule."""
    neurons = as_neurons(neurons)
    layer, index = neurons.layer, neurons.index
    where, direction = (one[:, layer, index] for one in scores.rules())
    number = torch.arange(len(activations))[:, None]
    above = activations.double() > scores.baseline[number, layer, where, index][:, None]
    says_one = above == (direction[:, None] > 0)
    return (says_one == (labels == scores.class_id)[:, None]).double()
