"""How much two sets of neurons share, beside what sets of the same sizes share by luck.

Two sets with ``a`` and ``b`` neurons of a layer of ``d_mlp``, one of them drawn at random, share
``Hypergeometric(d_mlp, a, b)`` neurons there; over layers these add, so that the exact law of the whole overlap is
their convolution::

    P(shared = k) = sum over k1 + ... + kL = k of the product over layers of C(a, kl) C(d_mlp - a, b - kl) / C(d_mlp, b)

What it does not show: neurons are correlated, and sets that were chosen in one way (the most active, say) share more
than this luck without a skill in common. The control for that is a set chosen under permuted labels. That two sets
are drawn per layer, and so share layers by construction, counts for nothing here.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass

import pandas as pd
import torch
from jaxtyping import Float
from scipy.stats import hypergeom
from torch import Tensor

from tl_skillneurons._results import html_of
from tl_skillneurons._widths import Width, in_layer


@dataclass(frozen=True)
class Overlap:
    """What two sets share (:meth:`NeuronSet.overlap`).

    Attributes:
        n_shared: Neurons in both.
        jaccard: Of all neurons in either, the share that is in both.
        chance_shared, chance_jaccard: What random sets with as many neurons of each layer share on average.
        p_value: The probability that random ones share as many: that one of the sets was drawn at random, neuron by
            neuron. A small one is no evidence of anything shared: sets chosen by labels that mean nothing share more
            than random ones (:func:`~tl_skillneurons.scores.score_agreement` compares with these).
    """

    n_shared: int
    jaccard: float
    chance_shared: float
    chance_jaccard: float
    p_value: float

    def to_dataframe(self) -> pd.DataFrame:
        """One row, a column per number."""
        return pd.DataFrame([asdict(self)])

    def _repr_html_(self) -> str:
        return html_of(self)


def overlap_beside_chance(
    n_shared: int, one: Mapping[int, int], other: Mapping[int, int], d_mlp: Width
) -> Overlap:
    """What ``n_shared`` neurons in both mean for sets with so many neurons of each layer (layer -> how many)."""
    mass = overlap_distribution(one, other, d_mlp)
    counts = torch.arange(len(mass), dtype=torch.float64)
    total = sum(one.values()) + sum(other.values())
    return Overlap(
        n_shared=n_shared,
        jaccard=n_shared / (total - n_shared),
        chance_shared=float((mass * counts).sum()),
        chance_jaccard=float((mass * counts / (total - counts)).sum()),
        p_value=min(1.0, float(mass[n_shared:].sum())) if n_shared else 1.0,
    )


def overlap_distribution(
    one: Mapping[int, int], other: Mapping[int, int], d_mlp: Width
) -> Float[Tensor, " shared"]:
    """The probability of sharing 0, 1, 2, ... neurons, for sets with so many neurons of each layer."""
    mass = torch.ones(1, dtype=torch.float64)
    for layer in sorted(set(one) & set(other)):
        own = hypergeometric(in_layer(d_mlp, layer), one[layer], other[layer])
        kernel = own.flip(0)[None, None]
        padded = torch.nn.functional.pad(mass, (len(own) - 1, len(own) - 1))[None, None]
        mass = torch.nn.functional.conv1d(padded, kernel)[0, 0]
    return mass


def hypergeometric(total: int, marked: int, drawn: int) -> Float[Tensor, " hit"]:
    """The probability of 0, 1, ..., min(marked, drawn) marked ones among ``drawn`` of ``total``."""
    hits = range(min(marked, drawn) + 1)
    return torch.from_numpy(hypergeom.pmf(hits, total, marked, drawn))
