"""What ranks the neurons, whichever score it is."""

from collections.abc import Mapping, Sequence

from jaxtyping import Float
from torch import Tensor

from tl_skillneurons.neurons.neuron_set import NeuronSet
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


def top_union(scores: Sequence[NeuronScores], amount: float | int, *, per: str = "layer") -> NeuronSet:
    """The skill neurons of a task of several classes: the union of the best of each subtask or class, equally
    many of each (Wang et al., 2022).

    Args:
        scores: Of each of ``task.binary_subtasks()``, or what :func:`~tl_skillneurons.scores.score_classes` gives.
        amount: For each subtask: 0.005 of four gives 2 % of a layer at most, less what they share.

    Raises:
        ValueError: Without a subtask, or for subtasks of different models.

    Example:
        >>> skill = skn.scores.top_union(skn.scores.score_classes(model, prompts, task), 0.005)
    """
    if not len(scores):
        raise ValueError("give the scores of at least one subtask, got none")
    union = scores[0].top(amount, per=per)
    for other in scores[1:]:
        union = union | other.top(amount, per=per)
    return union
