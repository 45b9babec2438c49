"""What ablating heads does to each class alone: of several classes one may give all of it.

Accuracy and logit diff are of the examples of one class, whose margin is against the best of the rest; the neurons'
separation is of that class from all others, over all examples. See :mod:`~tl_skillneurons.interventions.each_class`.
"""

import math
from dataclasses import replace
from typing import TYPE_CHECKING

import pandas as pd
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from tl_skillneurons.stats.metrics import per_example

if TYPE_CHECKING:
    from tl_skillneurons.attention.effects import HeadEffects


def head_effects_on_each_class(found: "HeadEffects") -> pd.DataFrame:
    """The rows of ``to_dataframe`` for each ``class`` (its number): accuracy and logit diff on its examples alone, the
    separation of this class from all others; and ``rest_intact`` and ``rest_ablated``, accuracy and logit diff on the
    examples of all other classes.

    Example:
        >>> found.each_class()[["class", "measure", "intact", "ablated", "p_random", "rest_intact", "rest_ablated"]]
    """
    tables = []
    for label in found.labels.unique().tolist():
        here = found.labels == label
        against = replace(found, settings={**found.settings, "class_id": label})
        apart = against.separation.abs().nanmean(1)
        table = found.table({**answers(found, here), "separation": apart})
        table["n_examples"] = [int(here.sum()), int(here.sum()), len(here)]
        table.insert(0, "class", label)
        if not here.all():
            rest = answers(found, ~here)
            for name, condition in (("rest_intact", 0), ("rest_ablated", 1)):
                table[name] = [*(float(values[condition]) for values in rest.values()), math.nan]
        tables.append(table)
    return pd.concat(tables, ignore_index=True)


def answers(
    found: "HeadEffects", here: Bool[Tensor, " example"] | None = None
) -> dict[str, Float[Tensor, " condition"]]:
    """Accuracy and logit diff under each condition, over these examples or all."""
    here = torch.ones_like(found.labels).bool() if here is None else here
    return {
        metric: torch.stack([per_example(metric, z[here], found.labels[here]).mean() for z in found.logits])
        for metric in ("accuracy", "logit_diff")
    }
