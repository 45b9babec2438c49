"""How good selected neurons are on examples that did not select them, with intervals.

``select`` chose the neurons, their positions and their directions, and so flatters them. The same rules on ``report``
don't know those examples.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from tl_skillneurons.models.input_cache import InputCache
from tl_skillneurons.neurons import NeuronSet
from tl_skillneurons.prompts.prompted_model import PromptedModel
from tl_skillneurons.prompts.run import as_list
from tl_skillneurons.prompts.soft_prompt import SoftPrompt
from tl_skillneurons.prompts.streaming import stream_activations
from tl_skillneurons.scores.measured import require_measured_here
from tl_skillneurons.scores.neuron_scores import NeuronScores, best_positions
from tl_skillneurons.stats.intervals import bootstrap_mean
from tl_skillneurons.tasks.task import Task


@dataclass(frozen=True, eq=False)
class SelectedAccuracy:
    """Accuracy of selected neurons' rules, averaged over prompts, with bootstrap intervals over examples.

    Attributes:
        mean: Of all neurons of the set.
        low, high: Its 95 % interval.
        neurons: A row per neuron: ``layer``, ``index``, ``on_select`` (too good), ``accuracy``, ``low``, ``high``.
        role: Where the examples come from.
        n_examples: How many there are.
    """

    mean: float
    low: float
    high: float
    neurons: pd.DataFrame
    role: str
    n_examples: int

    def __str__(self) -> str:
        return (
            f"{len(self.neurons)} neurons: {self.mean:.3f} ({self.low:.3f} to {self.high:.3f}) on {self.n_examples} "
            f"examples of {self.role}, {self.neurons.on_select.mean():.3f} on select, which chose them"
        )


def selected_accuracy(
    model: Any,
    prompts: SoftPrompt | Sequence[SoftPrompt] | None,
    task: Task,
    scores: NeuronScores,
    neurons: NeuronSet,
    *,
    role: str = "report",
    seed: int = 0,
    batch_size: int | None = None,
    batch_tokens: int | None = None,
    cache: InputCache | None = None,
) -> SelectedAccuracy:
    """The accuracy on ``role`` of each neuron's rule, and of the set on average.

    Raises:
        ValueError: For an empty set, neurons of another model, or scores of another model or other prompts.
    """
    if not len(neurons):
        raise ValueError("neurons must hold at least one neuron, got none")
    options = {"batch_size": batch_size, "batch_tokens": batch_tokens, "cache": cache}
    right = rule_answers(model, prompts, task, scores, neurons, role=role, **options).mean(0)
    each_low, each_high = bootstrap_mean(right.T, seed=seed)
    low, high = bootstrap_mean(right.mean(1), seed=seed)
    frame = pd.DataFrame(
        {
            "layer": neurons.layer.numpy(),
            "index": neurons.index.numpy(),
            "on_select": scores.rule_accuracy(neurons).numpy(),
            "accuracy": right.mean(0).numpy(),
            "low": each_low.numpy(),
            "high": each_high.numpy(),
        }
    )
    return SelectedAccuracy(float(right.mean()), float(low), float(high), frame, role, len(right))


def rule_answers(
    model: Any,
    prompts: SoftPrompt | Sequence[SoftPrompt] | None,
    task: Task,
    scores: NeuronScores,
    neurons: NeuronSet,
    *,
    role: str = "report",
    batch_size: int | None = None,
    batch_tokens: int | None = None,
    cache: InputCache | None = None,
) -> Float[Tensor, "prompt example chosen"]:
    """Whether each neuron's rule, as ``select`` chose it for each prompt, is right on each example: 1 or 0.

    Raises:
        ValueError: When the scores are of another model, or of other prompts.
    """
    chosen = as_list(prompts)
    require_measured_here(scores, model, chosen)
    neurons.require_fits(scores.n_layers, scores.d_mlp)
    _, where, sign = best_positions(scores.correct, scores.n_select)
    labels = torch.tensor(task.split(role)["label"]) == scores.class_id
    layer, index = neurons.layer, neurons.index
    options = {"positions": scores.positions, "batch_size": batch_size, "batch_tokens": batch_tokens}
    texts = list(task.split(role)["text"])
    rows = []
    for number, prompt in enumerate(chosen):
        prompted = PromptedModel(model, prompt, cache=cache)
        position = where[number, layer, index]
        acts = chosen_activations(prompted, texts, layer, position, index, options)
        above = acts.double() > scores.baseline[number, layer, position, index]
        says_one = above == (sign[number, layer, index] > 0)
        rows.append((says_one == labels[:, None]).double())
    return torch.stack(rows)


def chosen_activations(
    prompted: PromptedModel,
    texts: list[str],
    layer: Int[Tensor, " chosen"],
    position: Int[Tensor, " chosen"],
    index: Int[Tensor, " chosen"],
    options: dict[str, Any],
) -> Float[Tensor, "example chosen"]:
    """The activations of chosen neurons, each at its own position."""
    kept = torch.empty(len(texts), len(layer), dtype=prompted.model.W_E.dtype)
    columns = {k: (layer == k).nonzero().flatten() for k in layer.unique().tolist()}

    def reduce(number: int, at: int, acts: Tensor, example: Tensor) -> Tensor:
        own = columns.get(at, torch.empty(0, dtype=torch.int64))
        return acts[:, position[own].to(acts.device), index[own].to(acts.device)].cpu()

    def add(number: int, at: int, acts: Tensor, example: Tensor) -> None:
        if at in columns:
            kept[example[:, None], columns[at]] = acts

    stream_activations([prompted], texts, reduce, add, **options)
    return kept
