"""What steering did at each dose, as a table: what was wanted, what it cost, and the same of controls."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from tl_skillneurons._pictures import plotted
from tl_skillneurons._results import html_of, one_line
from tl_skillneurons.stats.intervals import bootstrap_mean
from tl_skillneurons.stats.units import Units
from tl_skillneurons.studies._common import load_tables, records, save_tables
from tl_skillneurons.studies.steering.measures import CLASS
from tl_skillneurons.studies.steering.numbers import beside_controls, outside, perplexity

KIND = "SteeringCurve"
_TABLES = ("doses", "draws", "answers", "rivals", "comparison")
KINDS = ("random", "matched")
"""The controls that stand beside every dose."""

Key = tuple[str, int, str, int]
"""A set's name, the number of a dose, "chosen" or the control's kind, and its draw."""
Values = dict[str, Float[Tensor, " text"]]
"""By the name of a measure, its value of each text's answer."""


@dataclass(frozen=True, eq=False)
class SteeringCurve:
    """Dose against what was wanted and what it cost; make it with :func:`~tl_skillneurons.studies.steer`.

    Attributes:
        doses: A row per ``set``, ``dose`` and ``measure``: "class" (the probability of the class by the prompts' own
            read-out), every measure that was asked for, and of the price "cross_entropy" (nats per written token under
            the untouched model), "repeated" (share of 3-token runs that stood there before) and "empty" (share of
            answers of white space alone). ``untouched`` is the mean over texts without steering, ``value`` with it,
            ``change`` their difference with ``change_low`` and ``change_high`` (95 %, other texts); of each control
            ``random_median``, ``random_min``, ``random_max``, the two-sided rank p ``p_random`` and the smallest that
            so many draws allow, ``smallest_p_random``; the same of ``matched``. Beside each measure the dose's
            ``perplexity`` (``exp`` of the mean cross-entropy), that of the controls, ``perplexity_min`` and
            ``perplexity_max``, and ``collapse``: whether it leaves their range, upwards or downwards. ``intervention``,
            ``n_neurons``, ``n_texts``, ``n_units`` and where the neurons were chosen, ``neurons_chosen``.
        draws: A row per set, dose, ``neurons`` ("chosen", "random", "matched"), ``draw`` and measure: the mean
            ``value`` over texts.
        answers: What was written after each text, untouched (without a dose) and at each dose of each set; ``by`` is
            "neurons", or the rival in their place.
        settings: What made it, as plain JSON values.
        rivals: A row per ``set``, ``rival``, ``dose`` and ``measure``, with the columns of ``doses``, where ``random``
            controls are random directions and there are no matched ones. ``norm`` is how far the neurons go and each of
            these too: the Euclidean norm of the change of a layer's neurons, averaged over positions and layers
            (``settings["norms"]`` has every layer's). ``direction_fitted`` says on what, seen from the texts.
        comparison: What neurons and rivals change at the same perplexity
            (:func:`~tl_skillneurons.studies.steering.equal_price.compare_paths`): a row per ``set``, ``rival``, ``way``
            ("toward" the class, or "away"), measure and level, with a ``verdict``.

    Example:
        >>> curve = skn.studies.steer(model, prompts, task, skill, toward=1)
        >>> curve.to_dataframe()[["dose", "measure", "change", "p_matched", "perplexity", "collapse"]]
    """

    doses: pd.DataFrame
    draws: pd.DataFrame
    answers: pd.DataFrame
    settings: dict[str, Any]
    rivals: pd.DataFrame = field(default_factory=pd.DataFrame)
    comparison: pd.DataFrame = field(default_factory=pd.DataFrame)

    _repr_html_ = html_of
    plot = plotted("plot_steering")

    def __repr__(self) -> str:
        own = [row for row in records(self.doses) if row["measure"] == CLASS]
        best = max(own, key=lambda row: abs(row["change"]))
        return one_line(
            self,
            toward=self.settings["toward"],
            doses=self.settings["doses"],
            largest_change=float(best["change"]),
            at_dose=float(best["dose"]),
            p_random=float(best["p_random"]),
            p_matched=float(best["p_matched"]),
            n_collapsed=sum(bool(row["collapse"]) for row in own),
            n_texts=int(best["n_texts"]),
            **({"at_equal_perplexity": told} if (told := self.verdicts) else {}),
        )

    @property
    def verdicts(self) -> tuple[str, ...]:
        """Which steers the class more at equal perplexity, of each set, rival and way, over all levels that can be
        compared."""
        rows = [row for row in records(self.comparison) if row["at"] == "mean" and row["measure"] == CLASS]
        return tuple(f"{row['set']}, {row['rival']}, {row['way']}: {row['verdict']}" for row in rows)

    @property
    def notes(self) -> tuple[str, ...]:
        """What a reader of the numbers must know, in words."""
        return tuple(self.settings["notes"])

    def to_dataframe(self) -> pd.DataFrame:
        """A copy of :attr:`doses`."""
        return self.doses.copy()

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write it to one JSON file, whole or not at all."""
        return save_tables(path, KIND, self.settings, {name: getattr(self, name) for name in _TABLES})

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "SteeringCurve":
        """What :meth:`save` wrote.

        Raises:
            FileNotFoundError: When there is no such file.
            ValueError: When the file is corrupt or holds something else.
        """
        tables, settings = load_tables(path, KIND, _TABLES)
        return cls(**tables, settings=settings)


def rows_of(
    untouched: Values,
    steered: Mapping[Key, Values],
    doses: Sequence[float],
    units: Units,
    seed: int,
    *,
    kinds: Sequence[str] = KINDS,
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The rows of :attr:`SteeringCurve.doses`, without what the settings say, and of :attr:`SteeringCurve.draws`.

    Args:
        untouched: What was measured of each answer without steering.
        steered: The same of every set at every dose, and of its controls.
        kinds: Of the controls.
    """
    chosen = [key for key in steered if key[2] == "chosen"]
    names = list(untouched)
    changes = torch.stack(
        [torch.stack([steered[key][name] - untouched[name] for name in names]) for key in chosen]
    )
    low, high = bootstrap_mean(changes, units=units, seed=seed)
    rows = []
    for number, key in enumerate(chosen):
        of_set, dose = key[0], key[1]
        beside = {kind: [steered[k] for k in steered if k[:3] == (of_set, dose, kind)] for kind in kinds}
        spread = [perplexity(one["cross_entropy"]) for drawn in beside.values() for one in drawn]
        own = perplexity(steered[key]["cross_entropy"])
        price = {
            "perplexity": own,
            "perplexity_min": min(spread),
            "perplexity_max": max(spread),
            "collapse": outside(own, spread),
        }
        for place, name in enumerate(names):
            value = steered[key][name]
            controls = {kind: torch.stack([one[name] for one in drawn]) for kind, drawn in beside.items()}
            rows.append(
                {
                    "set": of_set,
                    "dose": doses[dose],
                    "measure": name,
                    "untouched": float(untouched[name].mean()),
                    "value": float(value.mean()),
                    "change": float(changes[number, place].mean()),
                    "change_low": float(low[number, place]),
                    "change_high": float(high[number, place]),
                    **beside_controls(value, controls),
                    **price,
                }
            )
    draws = [
        {
            "set": of_set,
            "dose": doses[dose],
            "neurons": kind,
            "draw": draw,
            "measure": name,
            "value": float(value.mean()),
        }
        for (of_set, dose, kind, draw), values in steered.items()
        for name, value in values.items()
    ]
    return rows, draws
