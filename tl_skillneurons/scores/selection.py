"""From a score of every neuron to a set of neurons: the best of each layer or of the model, or the significant."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tl_skillneurons._checks import require_option, selection_size
from tl_skillneurons._widths import Width, in_layer, n_neurons, present, width_in
from tl_skillneurons.neurons.choice import Choice
from tl_skillneurons.neurons.neuron_set import NeuronSet
from tl_skillneurons.scores.null import PermutationNull
from tl_skillneurons.stats.hypothesis_tests import require_draws

CORRECTIONS = ("family", "fdr")


def top_neurons(
    score: Float[Tensor, "layer neuron"],
    amount: float | int,
    *,
    per: str = "layer",
    model: str | None = None,
    chose: Mapping[str, Any] | None = None,
) -> NeuronSet:
    """The neurons of highest score, best first, the lowest layer and index first among equals. A score of NaN is of no
    neuron: the layer has fewer.

    Args:
        chose: What the scores record of the examples that choose; the set remembers them, and the scores.
        amount: A share such as 0.02, of which int(share * neurons) are taken, or an integer count.
        per: ``"layer"`` takes so many in each layer (Wang et al., 2022), ``"model"`` in the whole model.
    """
    require_option(per, "per", ("layer", "model"))
    n_layers, wide = score.shape
    width = width_in(score)
    ranks = score.masked_fill(score.isnan(), -torch.inf)  # last, and never taken: there are not so many
    if per == "layer":
        chosen = ranks.argsort(dim=1, descending=True, stable=True)
        counts = [
            selection_size(amount, own, per="layer") if (own := in_layer(width, layer)) else 0
            for layer in range(n_layers)
        ]
        flat = torch.cat([chosen[layer, :count] + layer * wide for layer, count in enumerate(counts)])
        count = sum(counts)
    else:
        count = selection_size(amount, n_neurons(n_layers, width), per=per)
        flat = torch.arange(score.numel())
    order = ranks.flatten()[flat].argsort(descending=True, stable=True)
    flat = flat[order][:count]
    return NeuronSet(flat // wide, flat % wide, n_layers, width, model, _choice(score, chose))


def called_significant(
    score: Float[Tensor, "layer neuron"],
    null: PermutationNull,
    alpha: float = 0.05,
    correction: str = "family",
    *,
    model: str | None = None,
    chose: Mapping[str, Any] | None = None,
) -> NeuronSet:
    """The neurons that are significant at ``alpha`` by the null's combined scores, best first."""
    require_option(correction, "correction", CORRECTIONS)
    if not 0 < alpha < 1:
        raise ValueError(f"alpha must be between 0 and 1, both excluded, got {alpha}")
    null.require_reachable(alpha)
    require_draws(null.n_permutations, alpha, name="n_permutations")
    p = null.family() if correction == "family" else null.q_value()
    called = (p.flatten() <= alpha).nonzero().flatten()
    flat = called[score.flatten()[called].argsort(descending=True, stable=True)]
    n_layers, wide = score.shape
    return NeuronSet(flat // wide, flat % wide, n_layers, width_in(score), model, _choice(score, chose))


def _choice(score: Float[Tensor, "layer neuron"], chose: Mapping[str, Any] | None) -> Choice | None:
    known = Choice.recorded(None if chose is None else dict(chose))
    return None if known is None else replace(known, score=score)


def every_neuron(n_layers: int, d_mlp: Width) -> tuple[Int[Tensor, " neuron"], Int[Tensor, " neuron"]]:
    """Layer and index of each neuron of the model, in the order that a flattened [layer, neuron] has."""
    layer, index = present(n_layers, d_mlp).nonzero(as_tuple=True)
    return layer, index
