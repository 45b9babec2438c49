"""Decompositions batch by batch over texts, and what results of a task record of where they come from."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from tl_skillneurons.attention.decomposition import PreActivationParts, decompose_batch
from tl_skillneurons.models.records import model_record
from tl_skillneurons.neurons.neuron_set import NeuronSet
from tl_skillneurons.prompts.prompted_model import PromptedModel
from tl_skillneurons.prompts.run import RunOptions, prompt_record
from tl_skillneurons.tasks.task import Task

_BATCH_TOKENS = 512  # a decomposition holds gradients for every neuron, so its batches are small
POSITIONS = "mean over prompt positions, with virtual tokens"
"""How results say where they were read."""


def small_batches(run: RunOptions) -> RunOptions:
    """Batches that leave room for gradients, where nobody asked for others."""
    limited = run.batch_size is not None or run.batch_tokens is not None
    return run if limited else replace(run, batch_tokens=_BATCH_TOKENS)


def decomposed(
    prompted: PromptedModel, texts: list[str], neurons: NeuronSet, projection: str, *, by_source: bool
) -> Iterator[tuple[list[int], PreActivationParts]]:
    """Each batch of texts (their numbers) and its decomposition."""
    ids = prompted.encode(texts)
    with prompted.attached() as virtual:
        for batch in prompted.batches(ids):
            tokens = prompted.assemble([ids[i] for i in batch], batch)
            yield (
                batch,
                decompose_batch(
                    prompted, tokens, virtual, neurons, projection=projection, by_source=by_source
                ),
            )


def settings_of(prompted: PromptedModel, task: Task, **more: Any) -> dict[str, Any]:
    """Model, task, prompt, length, and whatever else made a result, as plain JSON values."""
    return {
        "model": model_record(prompted.model),
        "task": task.name,
        "prompt": None if prompted.prompt is None else prompt_record(prompted.prompt),
        "max_length": prompted.max_length,
        **more,
    }
