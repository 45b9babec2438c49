"""Exact p-values of predictivity under permuted labels, however small: for false discovery rates over many neurons.

A thousand permutations can't give a p-value below 1/1001, and among 46,080 neurons Benjamini and Hochberg's rule needs
one far smaller for the first. For one neuron at one position the law is known. With ``m`` of ``n`` examples above the
threshold and ``n1`` of label 1, the hits among label 1 are ``H ~ Hypergeometric(n, n1, m)``, and ``2 * right - n = 4 H
- 2 m + n - 2 n1``. Exchanged within pairs of twins, only pairs of which one is above count, ``d`` of them:
``2 * right - n = 2 (2 B - d)``, ``B ~ Binomial(d, 1/2)``.

A neuron's score is the best of its positions, so its p-value is at most the sum of theirs (Bonferroni). Of several
prompts the mean reaches ``t`` only where some prompt reaches ``t``: the sum over prompts; the minimum only where each
does: the lowest. A bound, never too small.

Of any other units (groups, twins that share their words) the law is another one; there is no bound then.
"""

import torch
from einops import einsum
from jaxtyping import Float, Int
from scipy.stats import binom
from torch import Tensor

from tl_skillneurons._widths import widest
from tl_skillneurons.neurons.overlap import hypergeometric
from tl_skillneurons.scores.outcomes import RuleOutcomes
from tl_skillneurons.stats.units import Units


def bound_p(
    outcomes: RuleOutcomes, *, aggregate: str = "mean", class_id: int = 1
) -> Float[Tensor, "scope layer neuron"] | None:
    """An upper bound of each neuron's p-value, of each prompt and, last, of all combined; ``None`` where units are
    neither single texts nor pairs of twins with both labels."""
    labels = (outcomes.labels == class_id).long()
    n_prompts, n, n_layers, _, _ = outcomes.above.shape
    sign = (2 * labels - 1).float()
    n_ones = int(labels.sum())
    place = None if outcomes.units.are_single else outcomes.units.member.argsort(stable=True)
    if place is not None and not _plain_twins(outcomes.units, labels):
        return None
    tails: dict[int, Tensor] = {}

    def reach(
        count: Int[Tensor, "position neuron"], size: Int[Tensor, " neuron"]
    ) -> Float[Tensor, " neuron"]:
        """The summed probabilities over positions of reaching ``size``, an absolute ``2 * right - n``."""
        for m in count.unique().tolist():
            if m not in tails:
                tails[m] = _hypergeometric_tail(n, n_ones, m) if place is None else _binomial_tail(n, m)
        known = count.unique()
        table = torch.stack([tails[m] for m in known.tolist()])
        return table[torch.searchsorted(known, count), size.expand_as(count)].sum(0)

    shape = (n_prompts + 1, n_layers, widest(outcomes.d_mlp))
    p = torch.full(shape, torch.nan, dtype=torch.float64)
    for layer, neurons in outcomes.chunks(n):
        counts, sizes = [], []
        for prompt in range(n_prompts):
            bits = outcomes.unpack(prompt, layer, neurons)
            total = 2 * einsum(sign, bits, "example, example pos neuron -> pos neuron") + n - 2 * n_ones
            sizes.append(total.abs().amax(0).long())
            counts.append((bits.sum(0) if place is None else _discordant(bits[place])).long())
            p[prompt, layer, neurons] = reach(counts[-1], sizes[-1])
        if aggregate == "mean":
            size = -(-torch.stack(sizes).sum(0) // n_prompts)  # some prompt has at least the mean
            p[-1, layer, neurons] = torch.stack([reach(count, size) for count in counts]).sum(0)
        else:
            size = torch.stack(sizes).amin(0)
            p[-1, layer, neurons] = torch.stack([reach(count, size) for count in counts]).amin(0)
    return p.clamp(max=1)


def _plain_twins(units: Units, labels: Int[Tensor, " example"]) -> bool:
    """Whether every unit is one pair of twins, one of label 1 and one of label 0."""
    if units.pair is None or not bool((units.sizes == 2).all()):
        return False
    pair = units.pair[units.member.argsort(stable=True)]
    return bool((pair[0::2] == pair[1::2]).all() and (pair >= 0).all() and (units.sums(labels) == 1).all())


def _discordant(bits: Float[Tensor, "example position neuron"]) -> Float[Tensor, "position neuron"]:
    """Pairs, which stand one after another, of which just one is above."""
    return (bits[0::2] != bits[1::2]).float().sum(0)


def _hypergeometric_tail(n: int, n_ones: int, m: int) -> Float[Tensor, " size"]:
    mass = hypergeometric(n, n_ones, m)
    return _tail(n, mass, 4 * torch.arange(len(mass)) - 2 * m + n - 2 * n_ones)


def _binomial_tail(n: int, d: int) -> Float[Tensor, " size"]:
    mass = torch.from_numpy(binom.pmf(range(d + 1), d, 0.5))
    return _tail(n, mass, 2 * (2 * torch.arange(d + 1) - d))


def _tail(n: int, mass: Float[Tensor, " hit"], value: Int[Tensor, " hit"]) -> Float[Tensor, " size"]:
    """The probability of an absolute value of at least 0, 1, ..., n."""
    at = torch.zeros(n + 1, dtype=torch.float64).index_add_(0, value.abs().clamp(max=n), mass)
    return at.flip(0).cumsum(0).flip(0)
