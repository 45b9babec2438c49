"""How much two neuron sets share, beside what sets of the same sizes share by luck, and how rankings agree.

Two sets with ``a`` and ``b`` neurons of a layer of ``d_mlp``, one of them drawn at random, share
``Hypergeometric(d_mlp, a, b)`` neurons there; over layers these add, so that the exact law of the whole overlap is
their convolution. Sets that are drawn per layer share layers by construction, and this counts for nothing here.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from tl_skillneurons.neurons import NeuronSet


@dataclass(frozen=True)
class Overlap:
    """What two sets share.

    Attributes:
        n_shared: Neurons in both.
        jaccard: Of all neurons in either, the share that is in both.
        chance_shared, chance_jaccard: What random sets with as many neurons of each layer share on average.
        p_value: The probability that random ones share as many.
    """

    n_shared: int
    jaccard: float
    chance_shared: float
    chance_jaccard: float
    p_value: float


def compare_sets(one: NeuronSet, other: NeuronSet, *, d_mlp: int | None = None) -> Overlap:
    """How much two sets share, and how much sets of their sizes per layer share by luck.

    Raises:
        ValueError: For empty sets, sets of different models, or when neither knows ``d_mlp``.
    """
    width = d_mlp or one.d_mlp or other.d_mlp
    if width is None:
        raise ValueError("neither set knows its model's d_mlp; give compare_sets(..., d_mlp=...)")
    if not len(one) or not len(other):
        raise ValueError(f"both sets must hold neurons, got {len(one)} and {len(other)}")
    shared = len(one & other)
    mass = overlap_distribution(one.counts_per_layer(), other.counts_per_layer(), width)
    counts = torch.arange(len(mass), dtype=torch.float64)
    total = len(one) + len(other)
    return Overlap(
        n_shared=shared,
        jaccard=shared / (total - shared),
        chance_shared=float((mass * counts).sum()),
        chance_jaccard=float((mass * counts / (total - counts)).sum()),
        p_value=min(1.0, float(mass[shared:].sum())) if shared else 1.0,
    )


def overlap_distribution(one: dict[int, int], other: dict[int, int], d_mlp: int) -> Float[Tensor, " shared"]:
    """The probability of sharing 0, 1, 2, ... neurons, for sets with so many neurons of each layer."""
    mass = torch.ones(1, dtype=torch.float64)
    for layer in sorted(set(one) & set(other)):
        own = hypergeometric(d_mlp, one[layer], other[layer])
        kernel = own.flip(0)[None, None]
        padded = torch.nn.functional.pad(mass, (len(own) - 1, len(own) - 1))[None, None]
        mass = torch.nn.functional.conv1d(padded, kernel)[0, 0]
    return mass


def hypergeometric(total: int, marked: int, drawn: int) -> Float[Tensor, " hit"]:
    """The probability of 0, 1, ..., min(marked, drawn) marked ones among ``drawn`` of ``total``."""
    hits = torch.arange(min(marked, drawn) + 1, dtype=torch.float64)

    def log_choose(n: Tensor | int, k: Tensor | int) -> Tensor:
        n, k = torch.as_tensor(n, dtype=torch.float64), torch.as_tensor(k, dtype=torch.float64)
        return torch.lgamma(n + 1) - torch.lgamma(k + 1) - torch.lgamma(n - k + 1)

    possible = drawn - hits <= total - marked
    rest = (drawn - hits).clamp(max=total - marked)
    log_mass = log_choose(marked, hits) + log_choose(total - marked, rest) - log_choose(total, drawn)
    return torch.where(possible, log_mass, -math.inf).exp()
