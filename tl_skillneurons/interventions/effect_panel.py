"""What interventions on neurons do to a model's answers: one tidy table, every effect beside its controls.

Read from class logits ``z`` of each example with label ``y`` (total effect: the model runs on with the
intervention; direct effect: later layers and norm scales as in the intact run, see
:mod:`~tl_skillneurons.interventions.direct_effects`):

* ``accuracy``: share of examples with ``argmax z = y``; with the exact interval of Clopper and Pearson and
  McNemar's paired test against the intact model
* ``logit_diff``: mean of ``z_y - max over other classes``
* ``probability``: mean of ``softmax(z)_y`` over the class logits
* ``calibration_error``: expected calibration error (Guo et al., 2017), 10 bins of equal width
* ``cross_entropy``: of plain text without a prompt, in nats per token
  (:mod:`~tl_skillneurons.interventions.plain_text`)

Larger is better for the first three, worse for the last two; ``change`` is value minus intact.

Controls stand beside each: random neurons of the same layers, random neurons matched on mean absolute activation and
output-weight norm, and matched ones of the less predictive half of their layers, where the set knows which score chose
it (:mod:`~tl_skillneurons.interventions.controls`). Their p-value is the two-sided rank p
(:func:`~tl_skillneurons.stats.rank_p_value`): how many of the controls' values are as far from the middle of all
as the chosen neurons' is, whichever way; which way it is, ``value`` beside the control's median says. With several
prompts every number is there for each, and pooled: the mean over prompts, among the controls' means.

What it does not show: which neuron of a set matters; that a harmless set is unused (later layers may repair
what is missing: compare direct and total effect); anything beyond this role's examples. The p-values are per
row, not corrected for the number of rows.
"""

import math
import os
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from tl_skillneurons._checks import require_option, require_seed
from tl_skillneurons._files import load_tensors, save_tensors, sound
from tl_skillneurons._pictures import plotted
from tl_skillneurons._results import html_of, one_line
from tl_skillneurons.interventions._measured import (
    POOLED,
    TASK_METRICS,
    Condition,
    Measured,
    exact_of,
    intervals_of,
    units_recorded,
    units_told,
)
from tl_skillneurons.interventions.controls import CONTROLS
from tl_skillneurons.interventions.each_class import effects_on_each_class, largest_class
from tl_skillneurons.neurons.choice import THESE
from tl_skillneurons.stats.hypothesis_tests import rank_p_value
from tl_skillneurons.stats.intervals import interval_scope
from tl_skillneurons.stats.ranks import median

KIND = "EffectPanel"


@dataclass(frozen=True, eq=False, repr=False)
class EffectPanel:
    """The effects of interventions on sets of neurons beside those of their controls.

    Attributes:
        conditions: All that was done, the chosen neurons before their controls.
        measured: The task's total effects first, then its direct ones, other tasks and plain text, where asked
            for.
        role: Whose examples of the task answered.
        settings: What made the panel: model, site, prompts, neurons and where they were chosen, units, how many texts
            were cut, controls and how alike they are, reference, seed.

    Example:
        >>> panel = skn.EffectPanel.load("effects.safetensors")
        >>> frame = panel.to_dataframe(each_prompt=False)
        >>> frame[frame.metric == "accuracy"][["intervention", "intact", "value", "random_median", "p_random"]]
    """

    conditions: tuple[Condition, ...]
    measured: tuple[Measured, ...]
    role: str
    settings: dict[str, Any]

    def to_dataframe(
        self, *, confidence: float = 0.95, seed: int = 0, each_prompt: bool = True
    ) -> pd.DataFrame:
        """One row per task, effect, prompt, intervention, positions, set and metric, for the chosen neurons.

        Columns: ``intact``, ``value``, ``change`` with its bootstrap interval over examples (``change_low``,
        ``change_high``; the same resampled examples for all rows of a task); for accuracy the exact interval of
        ``value`` (where examples are independent) and McNemar's p against the intact model (``value_low``,
        ``value_high``, ``p_mcnemar``), resampled and turned by units (``unit``, ``n_units``); for
        each control the median and range of ``value`` over its draws, the two-sided rank p and the smallest that so
        many distinct draws allow (``random_median``, ``random_min``, ``random_max``, ``p_random``,
        ``smallest_p_random``; ``matched_...``, and ``least_...`` where there is the third control; :attr:`notes` says
        why not); ``n_cut``, how many of the texts lost their end; ``neurons_chosen`` "on other examples", "on these
        examples" (by insistence) or "unknown"; ``about``, what other prompts and examples the intervals speak for. Of
        more than two classes ``largest_class``, whose examples have the largest share of the change, and
        ``change_without``, what it is on all others: near 0 where one class alone gives it (:meth:`each_class`).

        With several prompts each has its rows (``prompt`` 0, 1, ...), and the rows "pooled" are of the means over
        prompts, their interval over prompts and examples; exact interval and McNemar's test are of single prompts.

        Args:
            each_prompt: False for the pooled rows alone (those of the prompt, where there is one).
        """
        require_seed(seed)
        asked = (confidence, seed, each_prompt)
        if asked not in self._tables:
            self._tables[asked] = pd.DataFrame(list(self._rows(*asked)))
            self._tables[asked].attrs["notes"] = list(self.notes)
        return self._tables[asked].copy()

    @cached_property
    def _tables(self) -> dict[tuple[float, int, bool], pd.DataFrame]:
        """Tables that were asked for: their intervals take a second."""
        return {}

    @property
    def notes(self) -> tuple[str, ...]:
        """What a reader of the p-values must know, in words: controls that are too few, not alike, or not drawn."""
        return tuple(self.settings.get("notes", ()))

    def draws(self) -> pd.DataFrame:
        """One row per task, effect, prompt, condition and metric: the chosen neurons' value and each control's."""
        rows = []
        for measured in self.measured:
            for prompt in measured.prompts:
                for condition in self._conditions_of(measured):
                    for metric in measured.metrics:
                        value = measured.value(metric, condition.key, prompt)
                        rows.append({**_names(measured, prompt, condition), "metric": metric, "value": value})
                        rows[-1] |= {"neurons": condition.neurons, "draw": condition.draw}
        return pd.DataFrame(rows)

    def specificity(self, metric: str = "accuracy") -> pd.DataFrame:
        """How much more the chosen neurons' intervention costs this task than the others.

        One row per intervention, positions and set: the drop on the task (its mean over prompts), the mean drop on
        the other tasks with its 95 % interval (``other_drop_low``, ``other_drop_high``; each task's in quadrature) and
        their ratio (NaN, with a warning, where that interval holds zero), the same two drops of the median random
        control, and the increase of plain text's cross-entropy (NaN where it was not measured).

        Raises:
            ValueError: When no other task was measured, or for an unknown metric.
        """
        require_option(metric, "metric", TASK_METRICS)
        total = [m for m in self.measured if m.effect == "total" and m.labels is not None]
        if len(total) < 2:
            raise ValueError(
                "specificity needs another task to compare with; give measure_effects "
                "beyond=Beyond(other_tasks=[(task, prompt)])"
            )
        plain = next((m for m in self.measured if m.labels is None), None)
        rows, unsure = [], False
        for condition in self.conditions:
            if condition.neurons != "chosen":
                continue
            on, *off = (_drop(m, condition, metric) for m in total)
            controls = self._draws_of(condition, "random")
            on_random, *off_random = (median([_drop(m, c, metric) for c in controls]) for m in total)
            off_mean = sum(off) / len(off)
            low, high = self._drop_interval(total[1:], condition, metric)
            certain = low > 0 or high < 0
            unsure = unsure or not certain
            in_plain = plain is not None and condition.key in plain.outputs
            rows.append(
                {
                    **_names(total[0], total[0].prompts[-1], condition),
                    "metric": metric,
                    "drop": on,
                    "other_drop": off_mean,
                    "other_drop_low": low,
                    "other_drop_high": high,
                    "ratio": on / off_mean if certain else float("nan"),
                    "random_drop": on_random,
                    "random_other_drop": sum(off_random) / len(off_random),
                    "cross_entropy_increase": -_drop(plain, condition, "cross_entropy")
                    if plain is not None and in_plain
                    else float("nan"),
                }
            )
        if unsure:
            warnings.warn(
                "the other tasks may lose nothing (the interval of other_drop holds zero): ratio is NaN there, read "
                "the drops",
                stacklevel=2,
            )
        return pd.DataFrame(rows)

    def _drop_interval(
        self, tasks: Sequence[Measured], condition: Condition, metric: str
    ) -> tuple[float, float]:
        """Of the mean drop over tasks: their half-widths on either side add in quadrature."""
        drops, down, up = [], [], []
        for one in tasks:
            units = units_recorded(self.settings.get("units", {}).get(one.task))
            [(low, high)] = intervals_of(one, one.prompts[-1], [(condition, metric)], 0.95, 0, units)
            drops.append(_drop(one, condition, metric))
            down.append(drops[-1] + high)  # a drop is minus a change
            up.append(-low - drops[-1])
        middle = sum(drops) / len(drops)
        return middle - math.hypot(*down) / len(drops), middle + math.hypot(*up) / len(drops)

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the panel as safetensors, whole or not at all; returns its path."""
        return save_tensors(path, KIND, self.tensors(), self.header())

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "EffectPanel":
        """The panel that :meth:`save` wrote, or ``measure_effects(path=...)`` when it was done.

        Raises:
            FileNotFoundError: When there is no such file.
            ValueError: When the file is corrupt, of an interrupted call, or holds something else.
        """
        tensors, header = load_tensors(path, KIND)
        if not header.get("finished"):
            raise ValueError(
                f"{path} is of a call that was interrupted; the same measure_effects(path=...) goes on with it"
            )
        with sound(path, KIND):
            conditions = tuple(Condition(**one) for one in header["conditions"])
            measured = tuple(
                _measured(tensors, number, one, conditions) for number, one in enumerate(header["measured"])
            )
            return cls(conditions, measured, header["role"], header["settings"])

    def tensors(self) -> dict[str, Tensor]:
        """All outputs by their names in a file, see :func:`tensor_name`."""
        found = {}
        for number, measured in enumerate(self.measured):
            if measured.labels is not None:
                found[tensor_name(number, None, "labels")] = measured.labels.clone()  # files hold no views
            for what, output in [("intact", measured.intact), *measured.outputs.items()]:
                for prompt, one in enumerate(output):
                    found[tensor_name(number, prompt, what)] = one.clone()
        return found

    def header(self) -> dict[str, Any]:
        """What a file says beside the outputs."""
        measured = [
            {"task": m.task, "effect": m.effect, "n_prompts": len(m.intact), "of": list(m.outputs)}
            for m in self.measured
        ]
        conditions = [asdict(condition) for condition in self.conditions]
        return {
            "settings": self.settings,
            "role": self.role,
            "conditions": conditions,
            "measured": measured,
            "finished": True,
        }

    def __repr__(self) -> str:
        first = self.measured[0]
        return one_line(
            self,
            task=first.task,
            role=self.role,
            n_examples=first.intact.shape[1],
            n_prompts=len(first.intact),
            interventions=list(dict.fromkeys(c.intervention for c in self.conditions)),
            positions=list(dict.fromkeys(c.positions for c in self.conditions)),
            n_neurons={c.set: c.n_neurons for c in self.conditions},
            n_random=1 + max(c.draw for c in self.conditions),
            **self._told(),
        )

    def _told(self) -> dict[str, Any]:
        """What a line says only where there is something to say."""
        first = self.measured[0].task
        chosen = self.settings.get("neurons_chosen", {}).get(first, {})
        told: dict[str, Any] = {}
        if units := self.settings.get("units", {}).get(first):
            told["units"] = f"{units['n']} ({units['what']})"
        if any(cut := self.settings.get("n_cut", {}).get(first, [])):
            told["n_cut"] = max(cut)
        if THESE in chosen.values():
            told["neurons_chosen"] = THESE
        if self.notes:
            told["notes"] = list(self.notes)
        return told

    def _repr_html_(self) -> str:
        return html_of(self)

    plot = plotted("plot_effects")
    each_class = effects_on_each_class

    def _conditions_of(self, measured: Measured) -> list[Condition]:
        return [c for c in self.conditions if c.key in measured.outputs]

    def _draws_of(self, chosen: Condition, control: str) -> list[Condition]:
        same = ("intervention", "positions", "set")
        return [
            c
            for c in self.conditions
            if c.neurons == control and all(getattr(c, name) == getattr(chosen, name) for name in same)
        ]

    def _rows(
        self, confidence: float, seed: int, each_prompt: bool, metrics: Sequence[str] | None = None
    ) -> Iterator[dict[str, Any]]:
        for measured in self.measured:
            record = self.settings.get("units", {}).get(measured.task)
            units = units_recorded(record)
            told = {"unit": record["what"], "n_units": record["n"]} if record else {}
            cut = self.settings.get("n_cut", {}).get(measured.task)
            where_chosen = self.settings.get("neurons_chosen", {}).get(measured.task, {})
            controls = [c for c in CONTROLS if any(one.neurons == c for one in self.conditions)]
            chosen = [c for c in self._conditions_of(measured) if c.neurons == "chosen"]
            asked = [(condition, metric) for condition in chosen for metric in metrics or measured.metrics]
            for prompt in measured.prompts if each_prompt else measured.prompts[-1:]:
                ends = intervals_of(measured, prompt, asked, confidence, seed, units)
                for (condition, metric), (low, high) in zip(asked, ends, strict=True):
                    intact = measured.value(metric, None, prompt)
                    value = measured.value(metric, condition.key, prompt)
                    row = {**_names(measured, prompt, condition), "metric": metric}
                    row |= {"intact": intact, "value": value, "change": value - intact}
                    row |= {"change_low": low, "change_high": high}
                    row |= exact_of(metric, measured, prompt, condition, confidence, units)
                    row |= largest_class(measured, metric, condition.key, prompt)
                    for control in controls:
                        drawn = [
                            measured.value(metric, c.key, prompt) for c in self._draws_of(condition, control)
                        ]
                        row |= _beside(control, value, drawn)
                    if cut is not None:
                        told["n_cut"] = cut[prompt] if isinstance(prompt, int) else max(cut)
                    if condition.set in where_chosen:
                        told["neurons_chosen"] = where_chosen[condition.set]
                    n = measured.intact.shape[1]
                    told["about"] = interval_scope(
                        len(measured.intact) if prompt == POOLED else 1, units_told(record, n, "text")
                    )
                    yield {**row, "n_examples": n, **told, "role": self.role}


def tensor_name(measured: int, prompt: int | None, what: str) -> str:
    """What an output is called in a file.

    Args:
        measured: Which of the panel's ``measured``.
        what: "intact", "labels" (of no prompt) or a condition's key.
    """
    return f"{measured}, {what}" if prompt is None else f"{measured}, prompt {prompt}, {what}"


def _measured(
    tensors: dict[str, Tensor], number: int, header: dict[str, Any], conditions: tuple[Condition, ...]
) -> Measured:
    def stacked(what: str) -> Tensor:
        return torch.stack([tensors[tensor_name(number, k, what)] for k in range(header["n_prompts"])])

    known = {condition.key for condition in conditions}
    if not set(header["of"]) <= known:
        raise ValueError(f"outputs of {header['task']} are of conditions that are not told")
    labels = tensors.get(tensor_name(number, None, "labels"))
    if labels is None and header["task"] != "plain text":
        raise KeyError(tensor_name(number, None, "labels"))
    outputs = {key: stacked(key) for key in header["of"]}
    return Measured(header["task"], header["effect"], labels, stacked("intact"), outputs)


def _names(measured: Measured, prompt: int | str, condition: Condition) -> dict[str, Any]:
    return {
        "task": measured.task,
        "effect": measured.effect,
        "prompt": prompt,
        "intervention": condition.intervention,
        "positions": condition.positions,
        "set": condition.set,
        "n_neurons": condition.n_neurons,
    }


def _drop(measured: Measured, condition: Condition, metric: str) -> float:
    return measured.value(metric) - measured.value(metric, condition.key)


def _beside(control: str, value: float, drawn: list[float]) -> dict[str, float]:
    if not drawn:
        return {}
    found = {"median": median(drawn), "min": min(drawn), "max": max(drawn)}
    named = {f"{control}_{name}": number for name, number in found.items()}
    named[f"p_{control}"] = rank_p_value(value, drawn, "two-sided")
    return {**named, f"smallest_p_{control}": 1 / (len(drawn) + 1)}
