"""How good answers are, read from class logits; no model is run.

Of the class logits ``z`` of an example with label ``y``:

* ``accuracy``: 1 where ``argmax z = y``, else 0
* ``logit_diff``: ``z_y - max over other classes``
* ``probability``: ``softmax(z)_y``, over the class logits only
* ``calibration_error``: expected calibration error (Guo et al., 2017, equation 3), of all examples together: examples
  in bins of equal width by the probability given to the predicted class; the mean over examples of
  ``|accuracy - mean probability|`` of their bin
* ``cross_entropy``: of plain text, in nats per token; the output is this number itself

Larger is better for the first three, worse for the last two. What they do not show: whether the answer would have
been another word than a label word, since only the label words' logits are looked at.
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from tl_skillneurons._checks import require_int, require_option

TASK_METRICS = ("accuracy", "logit_diff", "probability", "calibration_error")
"""What can be read from class logits and labels."""

METRICS = (*TASK_METRICS, "cross_entropy")
"""What can be read from a model's outputs, plain text included."""

LARGER_IS_WORSE = ("calibration_error", "cross_entropy")
"""Of these metrics less is better."""


def value_of(
    metric: str, output: Float[Tensor, "example output"], labels: Int[Tensor, " example"] | None
) -> float:
    """One metric of all examples together.

    Args:
        metric: One of :data:`METRICS`.
        output: Class logits, or the cross-entropy of each text.
        labels: Class of each example; ``None`` for plain text.

    Raises:
        ValueError: For an unknown metric, or class logits without labels.

    Example:
        >>> value_of("accuracy", torch.tensor([[2.0, 0.0], [1.0, 0.0]]), torch.tensor([0, 1]))
        0.5
    """
    if metric == "calibration_error":
        return calibration_error(*answer_confidence(output, _require_labels(metric, labels)))
    return float(per_example(metric, output, labels).mean())


def per_example(
    metric: str, output: Float[Tensor, "example output"], labels: Int[Tensor, " example"] | None
) -> Float[Tensor, " example"]:
    """A metric's value for each example, whose mean it is; float64.

    Raises:
        ValueError: For a metric that single examples don't have, or class logits without labels.

    Example:
        >>> per_example("logit_diff", torch.tensor([[2.0, 0.5], [1.0, 0.0]]), torch.tensor([0, 1])).tolist()
        [1.5, -1.0]
    """
    require_option(metric, "metric", [one for one in METRICS if one != "calibration_error"])
    output = output.double()
    if metric == "cross_entropy":
        return output[:, 0]
    labels = _require_labels(metric, labels)
    right = output.gather(1, labels[:, None])[:, 0]
    if metric == "accuracy":
        return (output.argmax(1) == labels).double()
    if metric == "probability":
        return (right - output.logsumexp(1)).exp()
    others = output.scatter(1, labels[:, None], -torch.inf)
    return right - others.amax(1)


def answer_confidence(
    output: Float[Tensor, "example class"], labels: Int[Tensor, " example"]
) -> tuple[Float[Tensor, " example"], Bool[Tensor, " example"]]:
    """The probability that each example's predicted class got (float64), and whether the prediction was right.

    Example:
        >>> probability, right = answer_confidence(torch.tensor([[0.0, 0.0], [0.0, 50.0]]), torch.tensor([1, 1]))
        >>> probability.tolist(), right.tolist()
        ([0.5, 1.0], [False, True])
    """
    probability, predicted = output.double().softmax(1).max(1)
    return probability, predicted == labels


def calibration_error(
    probability: Float[Tensor, " example"], correct: Bool[Tensor, " answer"], *, n_bins: int = 10
) -> float:
    """Expected calibration error in [0, 1]; 0 where each bin is right as often as it says.

    Args:
        probability: What the predicted class was given.
        correct: Whether the prediction was right.

    Raises:
        ValueError: When the two differ in length or are empty, or for probabilities outside [0, 1].

    Example:
        >>> round(calibration_error(torch.tensor([0.9, 0.9]), torch.tensor([False, False])), 3)
        0.9
    """
    if len(probability) != len(correct) or not len(probability):
        raise ValueError(
            f"probability and correct must hold the same examples, got {len(probability)} and {len(correct)}"
        )
    if not ((probability >= 0) & (probability <= 1)).all():
        raise ValueError("probability must be in [0, 1]")
    gaps = calibration_gaps(probability, correct, n_bins=n_bins)
    return float(gaps.sum(0).abs().sum() / len(probability))


def calibration_gaps(
    probability: Float[Tensor, " example"], correct: Bool[Tensor, " example"], *, n_bins: int = 10
) -> Float[Tensor, "example bin"]:
    """Each example's part in the gap of its bin (float64): whether it was right, less the probability it was given.

    Of any examples the calibration error is the sum over bins of ``|sum of their gaps|``, divided by their number.
    """
    place = (probability.double() * require_int(n_bins, "n_bins")).ceil().long().clamp(1, n_bins) - 1
    gaps = torch.zeros(len(probability), n_bins, dtype=torch.float64, device=probability.device)
    return gaps.scatter_(1, place[:, None], (correct.double() - probability.double())[:, None])


def _require_labels(metric: str, labels: Int[Tensor, " example"] | None) -> Int[Tensor, " example"]:
    if labels is None:
        raise ValueError(f"{metric} needs the class of each example, got no labels")
    return labels
