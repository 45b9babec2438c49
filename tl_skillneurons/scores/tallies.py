"""Sums and counts over examples, kept per [position, neuron], which batches and processes add to.

Sums are float64, and the sum that thresholds come from carries its rounding error along (Knuth's two-sum): it
does not depend on how examples were put into batches or in which order these came. Counts are integers.
"""

from dataclasses import dataclass

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor

from tl_skillneurons._widths import width_in
from tl_skillneurons.neurons.neuron_set import Neurons, as_neurons

_NO_FLOAT64 = ("mps",)


def moments(acts: Float[Tensor, "batch position neuron"]) -> Float[Tensor, "5 position neuron"]:
    """Of one batch: the sum, a zero for its rounding error, the sum of squares, of magnitudes, and the lowest
    value; float64."""
    if acts.device.type in _NO_FLOAT64:
        acts = acts.cpu()
    found = torch.zeros(5, *acts.shape[1:], dtype=torch.float64, device=acts.device)
    total, _, square, absolute, lowest = found.unbind(0)
    lowest.copy_(acts.amin(0))
    # on a CPU an example at a time: what is written in between stays in the processor's cache
    for rows in acts if acts.device.type == "cpu" else [acts]:
        wide = rows.double()
        if wide.ndim == 3:
            total += wide.sum(0)
            square += wide.square().sum(0)
            absolute += wide.abs().sum(0)
        else:
            total += wide
            square.addcmul_(wide, wide)
            absolute += wide.abs()
    return found


def add_moments(
    one: Float[Tensor, "5 position neuron"] | None, other: Float[Tensor, "5 position neuron"]
) -> Float[Tensor, "5 position neuron"]:
    """The moments of both, in the memory of ``one``: what is kept for long is not moved about the heap."""
    if one is None:
        return other
    total = one[0] + other[0]
    part = total - one[0]
    lost = (one[0] - (total - part)) + (other[0] - part)
    one[0] = total
    one[1] += other[1] + lost
    one[2:4] += other[2:4]
    one[4] = torch.minimum(one[4], other[4])
    return one


@dataclass(frozen=True)
class Summary:
    """What thresholds and noise levels come from, each [layer, position, neuron], float64 on the CPU."""

    mean: Float[Tensor, "layer position neuron"]
    std: Float[Tensor, "layer position neuron"]
    mean_abs: Float[Tensor, "layer position neuron"]


def summarize(
    layers: list[Float[Tensor, "5 position neuron"] | None], n_examples: int, wide: int | None = None
) -> Summary:
    """Mean, standard deviation and mean magnitude over ``n_examples``; NaN where a layer has no such neuron.

    Args:
        wide: How many neurons the widest layer has, where that is none of these.
    """
    known = next(m for m in layers if m is not None)
    wide = max(m.shape[-1] for m in layers if m is not None) if wide is None else wide
    each = known.new_full((len(layers), *known.shape[:2], wide), torch.nan, device="cpu")
    for layer, own in enumerate(layers):
        if own is not None:
            each[layer, ..., : own.shape[-1]] = own.cpu()
    total, lost, square, absolute, lowest = each.unbind(1)
    mean = ((total + lost) / n_examples).maximum(
        lowest
    )  # rounding must not put the mean of a constant below it
    variance = (square / n_examples - mean.square()).clamp(min=0)
    return Summary(mean, variance.sqrt(), absolute / n_examples)


def count_above(
    acts: Float[Tensor, "batch position neuron"],
    limits: Float[Tensor, "position neuron"],
    labels: Int[Tensor, "class batch"],
) -> Int[Tensor, "class position neuron"]:
    """On how many examples of one batch "above its limit means label 1" is right, by each row of labels."""
    above = rearrange((acts > limits).float(), "batch pos neuron -> batch (pos neuron)")
    sign = torch.where(labels == 1, 1.0, -1.0)  # above is right on label 1 and wrong on label 0
    right = rearrange(sign @ above, "row (pos neuron) -> row pos neuron", pos=len(limits))  # whole, so exact
    return right.to(torch.int64) + (labels == 0).sum(1)[:, None, None]


def threshold(baseline: Float[Tensor, "*axes"], dtype: torch.dtype) -> Float[Tensor, "*axes"]:
    """The largest value of ``dtype`` that is at most ``baseline``: an activation of that dtype is above it
    exactly when it is above ``baseline`` itself, so the comparison needs no wider copy of the activations."""
    rounded = baseline.to(dtype)
    below = torch.nextafter(rounded, torch.full_like(rounded, -torch.inf))
    return torch.where(rounded.to(baseline.dtype) > baseline, below, rounded)


def accuracy_at(
    accuracy: Float[Tensor, "prompt layer position neuron"],
    position: Int[Tensor, "prompt layer neuron"],
    direction: Int[Tensor, "prompt layer neuron"],
    neurons: Neurons,
) -> Float[Tensor, " chosen"]:
    """Each neuron's accuracy at its position and in its direction, the mean over prompts."""
    neurons = as_neurons(neurons)
    neurons.require_fits(accuracy.shape[1], width_in(accuracy[0, :, 0]))
    at_best = accuracy.gather(2, position.unsqueeze(2))[:, :, 0]
    directed = torch.where(direction > 0, at_best, 1 - at_best)
    return directed[:, neurons.layer, neurons.index].mean(0)


def best_positions(
    correct: Int[Tensor, "prompt layer position neuron"], n: int
) -> tuple[
    Int[Tensor, "prompt layer neuron"],
    Int[Tensor, "prompt layer neuron"],
    Int[Tensor, "prompt layer neuron"],
]:
    """Per prompt and neuron: max(correct, n - correct) at its best position, that position, and its sign
    there.

    The first position counts among equals; the sign is +1 where at least half of the ``n`` answers are right.
    """
    either = torch.maximum(correct, n - correct)
    best = either.amax(2)
    where = (either == best.unsqueeze(2)).int().argmax(2)  # argmax gives the first of equals
    sign = torch.where(2 * correct.gather(2, where.unsqueeze(2))[:, :, 0] >= n, 1, -1)
    return best, where, sign
