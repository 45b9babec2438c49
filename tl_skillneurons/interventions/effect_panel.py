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

Two controls stand beside each: random neurons of the same layers, and random neurons matched on mean absolute
activation and output-weight norm. The rank p-value asks how often a control does at least as much harm; for
"keep" (everything but these neurons held at the mean) how often a control keeps at least as much.

What it does not show: which neuron of a set matters; that a harmless set is unused (later layers may repair
what is missing: compare direct and total effect); anything beyond this role's examples. The p-values are per
row, not corrected for the number of rows.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from tl_skillneurons._checks import require_option
from tl_skillneurons.stats.chance import clopper_pearson, rank_p_value
from tl_skillneurons.stats.intervals import bootstrap_mean, calibration_error, mcnemar

CONTROLS = ("random", "matched")
TASK_METRICS = ("accuracy", "logit_diff", "probability", "calibration_error")
_LARGER_IS_WORSE = ("calibration_error", "cross_entropy")
_N_BOOTSTRAP_OF_BINS = 500


@dataclass(frozen=True)
class Condition:
    """One intervention at one kind of position on one set of neurons.

    Attributes:
        intervention: Its name and amount, for example ``"noise 0.5"``.
        positions: "all", "prompt" or "text".
        size: What was asked for, per layer; ``"whole"`` for the set as given.
        neurons: "chosen", or the control: "random" or "matched".
        draw: Which control; 0 for the chosen neurons.
        n_neurons: How many neurons the set has.
    """

    intervention: str
    positions: str
    size: str
    neurons: str
    draw: int
    n_neurons: int

    @property
    def key(self) -> str:
        """Names the condition in a file."""
        return f"{self.intervention}, {self.positions}, {self.size}, {self.neurons} {self.draw}"


@dataclass(frozen=True, eq=False)
class Measured:
    """What one task (or plain text) gave under every condition.

    Attributes:
        task: Its name, or ``"plain text"``.
        effect: "total" or "direct".
        labels: Class of each example; ``None`` for plain text.
        intact: Class logits of the intact model, or the cross-entropy of each text.
        outputs: The same under each condition, by its key; a condition that can't act here is not among them.
    """

    task: str
    effect: str
    labels: Int[Tensor, " example"] | None
    intact: Float[Tensor, "example output"]
    outputs: dict[str, Float[Tensor, "example output"]]

    @property
    def metrics(self) -> tuple[str, ...]:
        """What can be read from the outputs."""
        return ("cross_entropy",) if self.labels is None else TASK_METRICS


@dataclass(frozen=True, eq=False)
class EffectPanel:
    """The effects of interventions on a set of neurons beside those of its controls.

    Attributes:
        conditions: All that was done, the chosen neurons before their controls.
        measured: The task's total effects first, then its direct ones, other tasks and plain text, where asked
            for.
        role: Whose examples of the task answered.
        settings: What made the panel: model, site, prompt, neurons, reference, seed.
    """

    conditions: tuple[Condition, ...]
    measured: tuple[Measured, ...]
    role: str
    settings: dict[str, Any]

    def to_dataframe(self, *, confidence: float = 0.95, seed: int = 0) -> pd.DataFrame:
        """One row per task, effect, intervention, positions, size and metric, for the chosen neurons.

        Columns: ``intact``, ``value``, ``change`` with its bootstrap interval over examples (``change_low``,
        ``change_high``; the same resampled examples for all rows of a task); for accuracy the exact interval of
        ``value`` and McNemar's p against the intact model (``value_low``, ``value_high``, ``p_mcnemar``); for
        each control the median and range of ``value`` over its draws and the rank p (``random_median``,
        ``random_min``, ``random_max``, ``p_random``, and ``matched_...``).
        """
        return pd.DataFrame(list(self._rows(confidence, seed)))

    def draws(self) -> pd.DataFrame:
        """One row per task, effect, condition and metric: the chosen neurons' value and each control's."""
        rows = []
        for measured in self.measured:
            for condition in self._conditions_of(measured):
                output = measured.outputs[condition.key]
                for metric in measured.metrics:
                    value = value_of(metric, output, measured.labels)
                    rows.append({**_names(measured, condition), "metric": metric, "value": value})
                    rows[-1] |= {"neurons": condition.neurons, "draw": condition.draw}
        return pd.DataFrame(rows)

    def specificity(self, metric: str = "accuracy") -> pd.DataFrame:
        """How much more the chosen neurons' intervention costs this task than the others.

        One row per intervention, positions and size: the drop on the task, the mean drop on the other tasks,
        their ratio (NaN where the others lose nothing), the same two drops of the median random control, and
        the increase of plain text's cross-entropy (NaN where it was not measured).

        Raises:
            ValueError: When no other task was measured, or for an unknown metric.
        """
        require_option(metric, "metric", TASK_METRICS)
        total = [m for m in self.measured if m.effect == "total" and m.labels is not None]
        if len(total) < 2:
            raise ValueError(
                "specificity needs another task to compare with; give measure_effects other_tasks=[(task, prompt)]"
            )
        plain = next((m for m in self.measured if m.labels is None), None)
        rows = []
        for condition in self.conditions:
            if condition.neurons != "chosen":
                continue
            on, *off = (_drop(m, condition, metric) for m in total)
            controls = self._draws_of(condition, "random")
            on_random, *off_random = (
                float(torch.tensor([_drop(m, c, metric) for c in controls], dtype=torch.float64).median())
                for m in total
            )
            off_mean = sum(off) / len(off)
            in_plain = plain is not None and condition.key in plain.outputs
            rows.append(
                {
                    **_names(total[0], condition),
                    "metric": metric,
                    "drop": on,
                    "other_drop": off_mean,
                    "ratio": on / off_mean if off_mean else float("nan"),
                    "random_drop": on_random,
                    "random_other_drop": sum(off_random) / len(off_random),
                    "cross_entropy_increase": -_drop(plain, condition, "cross_entropy")
                    if in_plain
                    else float("nan"),
                }
            )
        return pd.DataFrame(rows)

    def _conditions_of(self, measured: Measured) -> list[Condition]:
        return [c for c in self.conditions if c.key in measured.outputs]

    def _draws_of(self, chosen: Condition, control: str) -> list[Condition]:
        same = ("intervention", "positions", "size")
        return [
            c
            for c in self.conditions
            if c.neurons == control and all(getattr(c, name) == getattr(chosen, name) for name in same)
        ]

    def _rows(self, confidence: float, seed: int) -> Iterator[dict[str, Any]]:
        for measured in self.measured:
            chosen = [c for c in self._conditions_of(measured) if c.neurons == "chosen"]
            asked = [(condition, metric) for condition in chosen for metric in measured.metrics]
            ends = _intervals(measured, asked, confidence, seed)
            for (condition, metric), (low, high) in zip(asked, ends, strict=True):
                output = measured.outputs[condition.key]
                intact = value_of(metric, measured.intact, measured.labels)
                value = value_of(metric, output, measured.labels)
                row = {**_names(measured, condition), "metric": metric, "intact": intact, "value": value}
                row |= {"change": value - intact, "change_low": low, "change_high": high}
                row |= _exact(metric, measured, output, confidence)
                for control in CONTROLS:
                    drawn = [
                        value_of(metric, measured.outputs[c.key], measured.labels)
                        for c in self._draws_of(condition, control)
                    ]
                    row |= _beside(control, value, drawn, _smaller_is_extreme(metric, condition))
                yield {**row, "n_examples": len(output), "role": self.role}


def value_of(
    metric: str, output: Float[Tensor, "example output"], labels: Int[Tensor, " example"] | None
) -> float:
    """One metric of one condition."""
    if metric == "calibration_error":
        return calibration_error(*_confidence(output, labels))
    return float(per_example(metric, output, labels).mean())


def per_example(
    metric: str, output: Float[Tensor, "example output"], labels: Int[Tensor, " example"] | None
) -> Float[Tensor, " example"]:
    """A metric's value for each example, whose mean it is; float64."""
    output = output.double()
    if metric == "cross_entropy":
        return output[:, 0]
    right = output.gather(1, labels[:, None])[:, 0]
    if metric == "accuracy":
        return (output.argmax(1) == labels).double()
    if metric == "probability":
        return (right - output.logsumexp(1)).exp()
    others = output.scatter(1, labels[:, None], -torch.inf)
    return right - others.amax(1)


def _confidence(output: Tensor, labels: Tensor | None) -> tuple[Tensor, Tensor]:
    probability, predicted = output.double().softmax(1).max(1)
    return probability, predicted == labels


def _names(measured: Measured, condition: Condition) -> dict[str, Any]:
    return {
        "task": measured.task,
        "effect": measured.effect,
        "intervention": condition.intervention,
        "positions": condition.positions,
        "size": condition.size,
        "n_neurons": condition.n_neurons,
    }


def _drop(measured: Measured, condition: Condition, metric: str) -> float:
    output = measured.outputs[condition.key]
    return value_of(metric, measured.intact, measured.labels) - value_of(metric, output, measured.labels)


def _smaller_is_extreme(metric: str, condition: Condition) -> bool:
    harm_is_smaller = metric not in _LARGER_IS_WORSE
    return harm_is_smaller != (condition.intervention == "keep")


def _intervals(
    measured: Measured, asked: list[tuple[Condition, str]], confidence: float, seed: int
) -> list[tuple[float, float]]:
    """Bootstrap intervals of the changes: intact and changed answers of an example are resampled together."""
    means = [number for number, (_, metric) in enumerate(asked) if metric != "calibration_error"]
    ends: dict[int, tuple[float, float]] = {}
    if means:
        changes = torch.stack([_change(measured, *asked[number]) for number in means])
        low, high = bootstrap_mean(changes, confidence=confidence, seed=seed)
        ends |= dict(zip(means, zip(low.tolist(), high.tolist(), strict=True), strict=True))
    for number, (condition, metric) in enumerate(asked):
        if metric == "calibration_error":
            ends[number] = _calibration_interval(measured, condition, confidence, seed)
    return [ends[number] for number in range(len(asked))]


def _change(measured: Measured, condition: Condition, metric: str) -> Float[Tensor, " example"]:
    output = measured.outputs[condition.key]
    return per_example(metric, output, measured.labels) - per_example(
        metric, measured.intact, measured.labels
    )


def _calibration_interval(
    measured: Measured, condition: Condition, confidence: float, seed: int
) -> tuple[float, float]:
    generator = torch.Generator().manual_seed(seed)
    output = measured.outputs[condition.key]
    before, after = _confidence(measured.intact, measured.labels), _confidence(output, measured.labels)
    changes = torch.empty(_N_BOOTSTRAP_OF_BINS, dtype=torch.float64)
    for draw in range(_N_BOOTSTRAP_OF_BINS):
        rows = torch.randint(len(output), (len(output),), generator=generator)
        changed, was = (calibration_error(*(v[rows] for v in pair)) for pair in (after, before))
        changes[draw] = changed - was
    tail = (1 - confidence) / 2
    low, high = changes.quantile(torch.tensor([tail, 1 - tail], dtype=torch.float64)).tolist()
    return low, high


def _exact(metric: str, measured: Measured, output: Tensor, confidence: float) -> dict[str, float]:
    nan = float("nan")
    if metric != "accuracy":
        return {"value_low": nan, "value_high": nan, "p_mcnemar": nan}
    before, after = (o.argmax(1) == measured.labels for o in (measured.intact, output))
    low, high = clopper_pearson(int(after.sum()), len(after), confidence=confidence)
    return {"value_low": low, "value_high": high, "p_mcnemar": mcnemar(before, after).p_value}


def _beside(control: str, value: float, drawn: list[float], smaller: bool) -> dict[str, float]:
    values = torch.tensor(drawn, dtype=torch.float64)
    names = ("median", "min", "max")
    found = {f"{control}_{name}": float(getattr(values, name)()) for name in names}
    return {**found, f"p_{control}": rank_p_value(value, values, smaller=smaller)}
