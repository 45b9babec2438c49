"""Scores of activations that stand ready: no model is run, so labels may come from the run that read them.

Whether a model is right is known once it has answered, and the neurons were read on the way
(:func:`~tl_skillneurons.prompts.answers_and_neurons`): scoring them by it takes no second reading of the texts. The
scores are those of :mod:`~tl_skillneurons.scores.kinds` that need no threshold of other examples, with the same null of
labels dealt out anew.

What they do not show: how good the best neurons are elsewhere. Leave examples out, and measure them there.
"""

from collections.abc import Iterator, Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from tl_skillneurons._checks import require_int, require_option, require_seed
from tl_skillneurons.scores.kinds import KINDS
from tl_skillneurons.scores.layers import score_layers
from tl_skillneurons.scores.measured import chose_record, unit_record
from tl_skillneurons.scores.neuron_statistic import NeuronStatistic
from tl_skillneurons.stats.units import Units, require_units

READY = tuple(name for name, kind in KINDS.items() if kind.hits is None)
"""The scores that take activations as they are."""


def score_activations(
    activations: Float[Tensor, "example layer neuron"],
    labels: Int[Tensor, " labelled"] | Bool[Tensor, " labelled"],
    texts: Sequence[str],
    kind: str = "auc",
    *,
    n_permutations: int = 0,
    seed: int = 0,
    positions: str = "readout",
    units: Units | None = None,
) -> NeuronStatistic:
    """A score of every neuron by labels of the examples, as :func:`~tl_skillneurons.scores.score_labels` gives it.

    Args:
        activations: Of each example, such as :func:`~tl_skillneurons.prompts.neuron_activations` gives; NaN where a
            layer has no such neuron.
        labels: 0 and 1, or ``False`` and ``True``, one for each example.
        texts: The examples' texts: equal ones are one unit, and what was chosen on them is not measured on them.
        kind: "auc" (``2 * AUC - 1``), "mean_difference", "pearson" or "spearman".
        n_permutations: Label permutations, drawn by ``seed``, for ``.significant()``; 0 for none.
        positions: Where the activations were read, for the record.
        units: Which examples belong together; by default equal texts.

    Raises:
        ValueError: For another score, labels of one class or of others than 0 and 1, units, labels or texts of other
            examples, or activations that are the same for every example.

    Example:
        >>> logits, activations = skn.prompts.answers_and_neurons(prompted, texts)
        >>> right = logits.argmax(1) == labels
        >>> skn.scores.score_activations(activations, right, texts, n_permutations=1000).significant()
    """
    require_option(kind, "kind", READY)
    require_seed(seed)
    n = len(activations)
    if len(labels) != n or len(texts) != n:
        raise ValueError(
            f"activations, labels and texts must be of the same examples, got {n}, {len(labels)} and {len(texts)}"
        )
    y = labels.detach().long().cpu()
    if set(y.tolist()) != {0, 1}:
        raise ValueError(f"labels must hold 0 and 1, and nothing else, got {sorted(set(y.tolist()))}")
    units = Units.of([list(texts)]) if units is None else require_units(n, units)
    rows = y[None]
    if require_int(n_permutations, "n_permutations", minimum=0):
        rows = torch.cat([rows, units.permuted(y, n_permutations, seed=seed)])
    acts = activations.detach().cpu()
    if not (acts.nan_to_num() != acts[:1].nan_to_num()).any():
        raise ValueError("every neuron's activation is the same for every example; are the texts equal?")

    def score(columns: Tensor, drawn: Tensor, layer: int, neurons: slice) -> Tensor:
        return KINDS[kind].score(columns[0], drawn)[None]

    shape = (1, acts.shape[1], 1, acts.shape[2])
    walked = score_layers(_layers(acts), rows, {kind: score}, shape, aggregate="mean", seed=seed)[kind]
    return NeuronStatistic(
        name=kind,
        values=walked.values,
        n_examples=n,
        role="select",
        positions=positions,
        null=None if walked.null is None else walked.null.of_units(units, y),
        provenance={"target": "label", "units": unit_record(units), "chose": chose_record("select", texts)},
    )


def _layers(
    activations: Float[Tensor, "example layer neuron"],
) -> Iterator[tuple[int, Float[Tensor, "prompt example position neuron"]]]:
    """Each layer's own neurons.

    Raises:
        ValueError: For a NaN where another example has a number.
    """
    for layer in range(activations.shape[1]):
        own = activations[:, layer]
        there = ~own.isnan()
        width = int(there[0].sum())
        if not there[:, :width].all() or there[:, width:].any():
            raise ValueError(
                f"activations of layer {layer} have NaN for some examples or between neurons; leave those examples out"
            )
        if width:
            yield layer, own[None, :, None, :width]
