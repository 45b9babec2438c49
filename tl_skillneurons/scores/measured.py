"""Scores are used where they were measured: same model, same prompts, texts cut to the same length."""

import warnings
from collections.abc import Sequence
from typing import Any

from tl_skillneurons.models.records import model_differences
from tl_skillneurons.models.sites import neuron_shape
from tl_skillneurons.prompts.run import prompt_record
from tl_skillneurons.prompts.soft_prompt import SoftPrompt
from tl_skillneurons.scores.neuron_scores import NeuronScores


def require_measured_here(scores: NeuronScores, model: Any, prompts: Sequence[SoftPrompt | None]) -> None:
    """Refuse scores of another model, or of other prompts.

    Raises:
        ValueError: Otherwise.
    """
    here, there = neuron_shape(model), (scores.n_layers, scores.d_mlp)
    if here != there:
        name = scores.provenance.get("model", {}).get("name", "another model")
        raise ValueError(
            f"the scores are of {name} with [layer, neuron] = {list(there)}, {model.cfg.model_name} has "
            f"{list(here)}; score this model"
        )
    differs = model_differences(scores.provenance.get("model", {}), model)
    if differs:
        warnings.warn(f"these scores are of another model ({differs})", stacklevel=3)
    measured = scores.provenance.get("prompts", [None] * len(scores.baseline))
    given = [None if prompt is None else prompt_record(prompt) for prompt in prompts]
    if len(given) != len(scores.baseline) or any(m and g != m for m, g in zip(measured, given, strict=True)):
        raise ValueError(
            f"the scores are of {len(scores.baseline)} prompts that are not the {len(given)} given; "
            "give the prompts that were scored, in the same order"
        )
