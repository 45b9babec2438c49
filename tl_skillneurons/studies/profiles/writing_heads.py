"""Which heads write the label into each neuron, beside the same for a random neuron of its layer.

:mod:`~tl_skillneurons.attention.writers` for each neuron alone, on at most :data:`N_EXAMPLES` of ``select``, which
chooses; the random neurons are taken apart in the same runs. What it does not show stands there. Neurons that the same
examples chose hold labels further apart than they should, and so do their heads; random neurons were chosen by nobody.
"""

from dataclasses import replace

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from tl_skillneurons.attention.writers import HeadWriters, head_writers
from tl_skillneurons.neurons.neuron_set import NeuronSet
from tl_skillneurons.prompts.prompted_model import PromptedModel
from tl_skillneurons.tasks.task import Task

N_HEADS, N_EXAMPLES = 3, 64


def writing_heads(
    prompted: PromptedModel,
    task: Task,
    neurons: NeuronSet,
    projection: str,
    *,
    class_id: int,
    seed: int,
) -> pd.DataFrame:
    """The heads whose contribution differs most between the class and all others, of each neuron.

    Raises:
        ValueError: For a model whose heads don't show, or what :func:`~tl_skillneurons.attention.head_writers` refuses.
    """
    assert prompted.prompt is not None  # for type checkers
    few = task.limit(select=min(N_EXAMPLES, task.n_examples["select"]), seed=seed)
    random = neurons.random_like(seed)
    both = NeuronSet.from_pairs([*neurons, *random])
    found = head_writers(
        prompted.model,
        prompted.prompt,
        few,
        both,
        projection=projection,
        class_id=class_id if task.n_classes > 2 else None,
        seed=seed,
        max_length=prompted.max_length,
        run=prompted.run,
    )
    n = len(neurons)
    own, control = (
        _of(found, which, rows) for which, rows in ((neurons, slice(None, n)), (random, slice(n, None)))
    )
    in_sd, random_in_sd = _in_sd(own), _in_sd(control)
    n_heads = in_sd.shape[2]
    rows = []
    for number, (layer, index) in enumerate(neurons):
        strongest = random_in_sd[number].abs().flatten()
        beside = {
            "random_in_sd": float(strongest.max()),
            "random_p_family": float(control.separation.p_family[number].flatten()[strongest.argmax()]),
        }
        for at in in_sd[number].abs().flatten().argsort(descending=True, stable=True)[:N_HEADS].tolist():
            where = (number, at // n_heads, at % n_heads)
            rows.append(
                {
                    "layer": layer,
                    "index": index,
                    "head_layer": where[1],
                    "head": where[2],
                    "difference": float(own.separation.difference[where]),
                    "in_sd": float(in_sd[where]),
                    "p_family": float(own.separation.p_family[where]),
                    **beside,
                }
            )
    return pd.DataFrame(rows)


def _of(found: HeadWriters, neurons: NeuronSet, rows: slice) -> HeadWriters:
    return replace(
        found,
        neurons=neurons,
        heads=found.heads[:, rows],
        mlps=found.mlps[:, rows],
        embed=found.embed[:, rows],
    )


def _in_sd(writers: HeadWriters) -> Float[Tensor, "neuron layer head"]:
    """Differences of class means in standard deviations of all that is written into the neuron; 0 where that never
    changes."""
    written = writers.heads.double().sum((-2, -1)) + writers.mlps.double().sum(-1) + writers.embed.double()
    spread = written.std(0, correction=0)
    never = spread <= 1e-12 * written.abs().amax(0)
    ratio = torch.where(never, 0, 1 / torch.where(never, 1, spread))
    return writers.separation.difference * ratio[:, None, None]
