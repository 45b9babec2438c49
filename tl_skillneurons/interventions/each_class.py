"""What an effect is on the examples of each class alone, and on all others: of several classes one may give all of it.

An effect on the margin to the best other class is a mean over examples of all classes. With ``d(x)`` the change of a
metric on example ``x``, ``n`` examples in all and ``n_c`` of class ``c``::

    change = sum over c of n_c / n * change_c,      change_c = mean of d(x) over the examples of class c

On these examples the margin is that of class ``c`` against the best of the rest, so ``change_c`` is the control that
one class alone gives. Beside it stands the change of all other examples. It does not show why: a class may lose alone
because the neurons tell it from others, or because they make the model say it less often whatever the text; then the
others gain, and classes that lose and gain may leave a change of nothing on the whole.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from tl_skillneurons._checks import require_seed
from tl_skillneurons.interventions._measured import Measured, units_record, units_told
from tl_skillneurons.stats.intervals import FEWEST_UNITS

if TYPE_CHECKING:
    from tl_skillneurons.interventions.effect_panel import EffectPanel

_MEANS = ("accuracy", "logit_diff", "probability")
"""Metrics that are means over examples, so that classes have their share of them."""


def largest_share(
    change: Float[Tensor, " example"], labels: Int[Tensor, " example"]
) -> tuple[int, float] | None:
    """The class whose examples have the largest share of a mean change, and the mean change of all other examples.

    ``None`` where nothing changes on the whole, or all examples are of one class.

    Example:
        >>> largest_share(torch.tensor([-2.0, -2.0, 0.0, 0.5]), torch.tensor([0, 0, 1, 2]))
        (0, 0.25)
    """
    total = float(change.sum())
    sums = torch.zeros(int(labels.max()) + 1, dtype=torch.float64).index_add_(0, labels, change.double())
    largest = int((sums if total > 0 else -sums).argmax())
    rest = labels != largest
    return (largest, float(change[rest].mean())) if total and rest.any() else None


def largest_class(measured: Measured, metric: str, key: str, prompt: int | str) -> dict[str, float]:
    """The columns of a panel's row that say so, of a task of more than two classes."""
    if measured.labels is None or measured.intact.shape[2] < 3:
        return {}
    found = None
    if metric in _MEANS:
        change = measured.of_examples(metric, key) - measured.of_examples(metric)
        found = largest_share(change[prompt] if isinstance(prompt, int) else change.mean(0), measured.labels)
    largest, rest = found or (math.nan, math.nan)
    return {"largest_class": float(largest), "change_without": rest}


def effects_on_each_class(
    panel: "EffectPanel", *, confidence: float = 0.95, seed: int = 0, each_prompt: bool = False
) -> pd.DataFrame:
    """The effects on the examples of each class alone, beside the same of the controls: the rows of ``to_dataframe``
    for each ``class`` (its number), of metrics that are means over examples.

    Besides its columns: ``rest_change`` with its interval (``rest_low``, ``rest_high``), of the examples of all other
    classes; ``share`` of the whole change that is this class's (negative where it moves against the others; NaN where
    the whole change's interval holds zero); and ``alone``, whether it is the only class of which an effect is
    established (whose interval excludes zero, over 8 units or more).

    Args:
        each_prompt: With several prompts, the rows of each as well.

    Example:
        >>> panel.each_class()[["intervention", "metric", "class", "change", "rest_change", "share", "alone"]]
    """
    how: dict[str, Any] = {"confidence": confidence, "seed": require_seed(seed), "each_prompt": each_prompt}
    found = []
    for measured in panel.measured:
        if measured.labels is not None:
            tables = list(_of_task(panel, measured, how))
            changes = pd.concat([_is_established(one) for one in tables], axis=1)
            for number, one in enumerate(tables):
                one["alone"] = changes.iloc[:, number] & (changes.sum(axis=1) == 1)
            found += tables
    return pd.concat(found, ignore_index=True)


def pairs_of_each_class(
    clean_labels: Sequence[int],
    table: Callable[[Bool[Tensor, " pair"]], pd.DataFrame],
    beside: Sequence[str],
) -> pd.DataFrame:
    """What was found between the twins whose clean text is of each ``class``, and in columns ``rest_...`` between all
    other twins.

    Args:
        table: What is told of some of the pairs; the same rows whichever they are.
        beside: The columns that are told of the others as well.
    """
    labels, found = torch.tensor(list(clean_labels)), []
    for label in labels.unique().tolist():
        here = labels == label
        own = table(here)
        own.insert(0, "class", label)
        if not here.all():
            rest = table(~here)
            own[[f"rest_{name}" for name in beside]] = rest[list(beside)].to_numpy()
        found.append(own)
    return pd.concat(found, ignore_index=True)


def clean_labels_of(settings: Mapping[str, Any]) -> list[int]:
    """The class of each clean text, as a result between twins records it.

    Raises:
        ValueError: For a result that was made before it was recorded.
    """
    if "clean_labels" not in settings:
        raise ValueError(
            "this result was kept by an earlier version, which didn't record the classes of the clean texts; make it "
            "again"
        )
    return list(settings["clean_labels"])


def _is_established(table: pd.DataFrame) -> "pd.Series[bool]":
    """Whether each row's interval excludes zero, of units that are enough for one."""
    enough = table.get("n_units", table.n_examples) >= FEWEST_UNITS
    return enough & ((table.change_low > 0) | (table.change_high < 0))


def _of_task(panel: "EffectPanel", measured: Measured, how: dict[str, Any]) -> Iterator[pd.DataFrame]:
    """A table for each class of one task."""
    assert measured.labels is not None  # for type checkers: plain text has no classes
    labels = measured.labels
    whole = _table(panel, measured, torch.ones_like(labels).bool(), how)
    for label in labels.unique().tolist():
        here = labels == label
        own = _table(panel, measured, here, how)
        own.insert(list(own.columns).index("metric") + 1, "class", label)
        if not here.all():
            rest = _table(panel, measured, ~here, how)
            own["rest_change"], own["rest_low"], own["rest_high"] = (
                rest[name] for name in ("change", "change_low", "change_high")
            )
            uncertain = (whole.change_low <= 0) & (whole.change_high >= 0)
            share = own.change * own.n_examples / (whole.change * whole.n_examples)
            own["share"] = share.mask(uncertain)
        yield own


def _table(
    panel: "EffectPanel", measured: Measured, here: Bool[Tensor, " example"], how: dict[str, Any]
) -> pd.DataFrame:
    """A panel's table of some examples of one task."""
    assert measured.labels is not None  # for type checkers: plain text has no classes
    some = Measured(
        measured.task,
        measured.effect,
        measured.labels[here],
        measured.intact[:, here],
        {key: output[:, here] for key, output in measured.outputs.items()},
    )
    units = panel.settings.get("units", {})
    if measured.task in units:
        kept = units_told(units[measured.task], len(here)).take(here.nonzero().flatten())
        units = {**units, measured.task: units_record(kept)}
    own = replace(panel, measured=(some,), settings={**panel.settings, "units": units})
    return pd.DataFrame(list(own._rows(**how, metrics=_MEANS)))
