"""What ranks the neurons, whichever score it is."""

from collections.abc import Mapping

from jaxtyping import Float
from torch import Tensor

from tl_skillneurons.scores.neuron_scores import NeuronScores
from tl_skillneurons.scores.neuron_statistic import NeuronStatistic

Scored = NeuronScores | NeuronStatistic
"""A score of every neuron: predictivity, or any other."""


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
    """What ranks the neurons: predictivity in [0.5, 1], or the absolute score.

    Raises:
        TypeError: For anything that is no score.
    """
    if isinstance(score, NeuronScores):
        return score.predictivity
    if isinstance(score, NeuronStatistic):
        return score.score
    raise TypeError(f"a score must be a NeuronScores or a NeuronStatistic, got {type(score).__name__}")
