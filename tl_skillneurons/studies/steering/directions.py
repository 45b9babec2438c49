"""Directions that are no set of neurons, to steer along: over all neurons of a layer, from reference examples alone.

With ``x`` the activations of one layer's neurons on reference examples, averaged over the text, and ``y`` whether an
example is of the class, each is a vector of length 1 that points to the class:

* ``probe``: the weights ``w`` of a logistic regression with a ridge penalty, ``p(y) = sigmoid(w . x + b)``: the way on
  which the probe's answer rises most for its length. TransformerLens' ``fit_sparse_probe`` fits it, on four fifths of
  the examples; the penalty is the one of :data:`PENALTIES` that orders the others best.
* ``mean_difference``: from the mean of the other classes' means to the mean of the class. ``Shift`` goes along the same
  difference over chosen neurons alone.

What leaves the neurons of a layer is any direction of the residual stream that their output weights span, so these are
the usual steering vectors (Li et al., 2023, "Inference-time intervention"), written in the neurons' own space.

What they do not show: that the model reads the class along them. The control is a random direction.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformer_lens.tools.analysis.sparse_probing import SparseProbeConvergenceError, fit_sparse_probe

from tl_skillneurons._widths import Width, in_layer
from tl_skillneurons.interventions.references import Reference
from tl_skillneurons.stats.units import Units, require_units

PENALTIES = (1.0, 0.1, 0.01, 0.001)
"""Strengths of the ridge penalty on examples whose mean squared distance from their mean is 1; of equally good ones the
first."""
_HELD_OUT = 0.2
FEWEST = 5
"""Examples of the class, and of the others, that a probe takes."""

Vectors = dict[int, Float[Tensor, " neuron"]]
"""By layer, a vector over all its neurons, float64."""


@dataclass(frozen=True, eq=False)
class Directions:
    """A direction in each of some layers.

    Attributes:
        vectors: Of length 1; of zeros in a layer that does not tell the class at all.
        auc: By layer, how well a probe orders held-out examples (area under the ROC curve); empty for other directions.
    """

    vectors: Vectors
    auc: dict[int, float]


def probe_direction(
    activations: Float[Tensor, "example neuron"],
    is_class: Bool[Tensor, " example"],
    *,
    units: Units | None = None,
    seed: int = 0,
) -> tuple[Float[Tensor, " neuron"], float]:
    """The direction of a probe at length 1, and the area under its ROC curve on the held-out fifth of the examples.

    Args:
        units: Which examples belong together, and are held out together.
        seed: Of the fifth that is held out.

    Raises:
        ValueError: For fewer than five examples, or two units, of the class or of the others, or where no fit
            converges.

    Example:
        >>> x = torch.randn(200, 3, generator=torch.Generator().manual_seed(0))
        >>> direction, auc = probe_direction(x, x[:, 1] > 0)
        >>> direction.round(decimals=1).abs().tolist(), auc > 0.95
        ([0.0, 1.0, 0.0], True)
    """
    units = require_units(len(is_class), units)
    n, n_units = (
        min(len(of[kept]) if of is is_class else len(of[kept].unique()) for kept in (is_class, ~is_class))
        for of in (is_class, units.member)
    )
    if n < FEWEST or n_units < 2:
        raise ValueError(
            f"a probe takes {FEWEST} reference examples or more of the class, of 2 units ({units.what}) or more, and "
            f"as many of the others, got {n} of {n_units}; raise n_reference, or name another reference role"
        )
    centred = activations.double() - activations.double().mean(0)
    spread = centred.square().sum(1).mean().sqrt()
    if not spread:
        return torch.zeros(centred.shape[1], dtype=torch.float64), 0.5
    # a ridge keeps the weights in the span of the examples, which has far fewer axes than there are neurons
    left, size, axes = torch.linalg.svd(centred / spread, full_matrices=False)
    kept = size > size[0] * 1e-9
    within = left[:, kept] * size[kept]
    fits = []
    for penalty in PENALTIES:
        try:
            fits.append(
                fit_sparse_probe(
                    within,
                    is_class.long(),
                    k=within.shape[1],
                    test_fraction=_HELD_OUT,
                    groups=None if units.are_single else units.member,
                    l2_strength=penalty,
                    seed=seed,
                )
            )
        except SparseProbeConvergenceError:
            continue
    if not fits:
        raise ValueError("no probe of the reference activations converges; load the model in float32")
    best = max(fits, key=lambda fit: fit.metrics.roc_auc)  # the first of equals
    weights = torch.zeros(within.shape[1], dtype=torch.float64)
    weights[best.selected_features] = best.coefficients
    return _unit(weights @ axes[kept]), float(best.metrics.roc_auc)


def mean_difference(
    activations: Float[Tensor, "example neuron"], labels: Int[Tensor, " example"], toward: int
) -> Float[Tensor, " neuron"]:
    """From the mean of the other classes' means to the mean of class ``toward``, at length 1.

    Example:
        >>> mean_difference(torch.tensor([[0.0, 1.0], [3.0, 5.0]]), torch.tensor([0, 1]), 1).tolist()
        [0.6, 0.8]
    """
    means = {label: activations[labels == label].double().mean(0) for label in labels.unique().tolist()}
    others = [mean for label, mean in means.items() if label != toward]
    return _unit(means[toward] - torch.stack(others).mean(0))


def _of_probe(
    acts: Tensor, labels: Tensor, toward: int, units: Units, seed: int
) -> tuple[Tensor, float | None]:
    return probe_direction(acts, labels == toward, units=units, seed=seed)


def _of_means(
    acts: Tensor, labels: Tensor, toward: int, units: Units, seed: int
) -> tuple[Tensor, float | None]:
    return mean_difference(acts, labels, toward), None


DIRECTIONS: dict[str, Callable[[Tensor, Tensor, int, Units, int], tuple[Tensor, float | None]]] = {
    "probe": _of_probe,
    "mean_difference": _of_means,
}
"""What can be steered along, by its name: a function from one layer's activations, labels, the class, units and a seed
to a direction, and how well it reads held-out examples where that is known."""


def directions_in(
    reference: Reference,
    units: Units,
    width: Width,
    layers: Sequence[int],
    rival: str,
    *,
    toward: int,
    seed: int = 0,
) -> Directions:
    """The direction of this name in each of these layers.

    Args:
        units: Which of the reference examples belong together.

    Raises:
        ValueError: For reference examples of one class alone, or too few for a probe.
    """
    labels = reference.labels
    if toward not in labels or len(labels.unique()) < 2:
        raise ValueError(
            f"a direction to class {toward} takes reference examples of that class and of another, got those of "
            f"{labels.unique().tolist()}; name another reference role, or raise n_reference"
        )
    vectors: Vectors = {}
    auc: dict[int, float] = {}
    for layer in layers:
        own = reference.activations[:, layer, : in_layer(width, layer)].cpu()
        vectors[layer], reads = DIRECTIONS[rival](own, labels, toward, units, seed)
        if reads is not None:
            auc[layer] = reads
    return Directions(vectors, auc)


def random_directions(layers: Sequence[int], width: Width, n: int, seed: int) -> list[Vectors]:
    """``n`` times a direction in each layer, even in all directions; the first ones stay the same when more are drawn.

    Example:
        >>> [one] = random_directions([0], 4, 1, seed=0)
        >>> round(one[0].norm().item(), 6)
        1.0
    """
    generator = torch.Generator().manual_seed(seed)

    def drawn(layer: int) -> Tensor:
        return _unit(torch.randn(in_layer(width, layer), generator=generator, dtype=torch.float64))

    return [{layer: drawn(layer) for layer in layers} for _ in range(n)]


def _unit(vector: Float[Tensor, " neuron"]) -> Float[Tensor, " neuron"]:
    length = vector.norm()
    return vector / length if length else vector
