"""What ranks the neurons, whichever score it is."""

from collections.abc import Mapping
from typing import Any

from jaxtyping import Float
from torch import Tensor

from tl_skillneurons.scores.neuron_scores import NeuronScores
from tl_skillneurons.scores.neuron_statistic import NeuronStatistic

Scored = Any
"""A :class:`NeuronScores` or a :class:`NeuronStatistic`."""


def require_one_model(scores: Mapping[str, Scored]) -> None:
    """Refuse scores that can't be compared.

    Raises:
        ValueError: For fewer than two, or scores of different models.
    """
    if len(scores) < 2:
        raise ValueError(f"give at least two scores by name to compare, got {list(scores)}")
    shapes = {name: tuple(strength(score).shape) for name, score in scores.items()}
    models = {name: score.provenance.get("model", {}).get("name") for name, score in scores.items()}
    if len(set(shapes.values())) > 1 or len(set(models.values())) > 1:
        raise ValueError(f"scores must be of one model, got {models} with [layer, neuron] = {shapes}")


def strength(score: Scored) -> Float[Tensor, "layer neuron"]:
    """What ranks the neurons: predictivity, or the absolute score."""
    if isinstance(score, NeuronScores):
        return score.predictivity
    if isinstance(score, NeuronStatistic):
        return score.score
    raise TypeError(f"a score must be a NeuronScores or a NeuronStatistic, got {type(score).__name__}")
