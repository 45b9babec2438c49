"""What one task gave under every condition, and what is read from it: of a prompt, or pooled over prompts."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tl_skillneurons._results import html_of_fields, short_repr
from tl_skillneurons.stats.hypothesis_tests import mcnemar
from tl_skillneurons.stats.intervals import (
    bootstrap_mean,
    clopper_pearson,
    two_level_bootstrap,
    two_level_calibration,
)
from tl_skillneurons.stats.metrics import per_example, value_of
from tl_skillneurons.stats.units import Units

TASK_METRICS = ("accuracy", "logit_diff", "probability", "calibration_error")
POOLED = "pooled"
"""In the place of a prompt's number: the mean over all prompts."""


@dataclass(frozen=True)
class Condition:
    """One intervention at one kind of position on one set of neurons.

    Attributes:
        intervention: Its name, for example ``"noise 0.5"``.
        positions: "all", "prompt", "text" or "template".
        set: The set's name; ``"whole"`` where there is one without a name.
        neurons: "chosen", or the control: "random", "matched" or "least".
        draw: Which control; 0 for the chosen neurons.
        n_neurons: How many neurons the set has.

    Example:
        >>> panel.measured[0].outputs.keys()  # each is the key of one of panel.conditions
    """

    intervention: str
    positions: str
    set: str
    neurons: str
    draw: int
    n_neurons: int

    @property
    def key(self) -> str:
        """Names the condition in a file."""
        return f"{self.intervention}, {self.positions}, {self.set}, {self.neurons} {self.draw}"


@dataclass(frozen=True, eq=False)
class Measured:
    """What one task (or plain text) gave under every condition.

    Attributes:
        task: Its name, or ``"plain text"``.
        effect: "total" or "direct".
        labels: Class of each example; ``None`` for plain text.
        intact: Class logits of the intact model with each prompt, or the cross-entropy of each text.
        outputs: The same under each condition, by its key; a condition that can't act here is not among them.
    """

    __repr__ = short_repr
    _repr_html_ = html_of_fields

    task: str
    effect: str
    labels: Int[Tensor, " example"] | None
    intact: Float[Tensor, "prompt example output"]
    outputs: dict[str, Float[Tensor, "prompt example output"]]

    def __post_init__(self) -> None:
        odd = [key for key, one in self.outputs.items() if one.shape != self.intact.shape]
        if odd or (self.labels is not None and len(self.labels) != self.intact.shape[1]):
            raise ValueError(
                f"outputs of {self.task} must all be {list(self.intact.shape)}, as intact and labels"
            )

    @property
    def metrics(self) -> tuple[str, ...]:
        """What can be read from the outputs."""
        return ("cross_entropy",) if self.labels is None else TASK_METRICS

    @property
    def prompts(self) -> list[int | str]:
        """The numbers of the prompts, "pooled" where there are several; "none" for plain text."""
        if self.labels is None:
            return ["none"]
        n = len(self.intact)
        return [*range(n), *([POOLED] if n > 1 else [])]

    def output(self, key: str | None = None) -> Float[Tensor, "prompt example output"]:
        """The output of a condition, or of the intact model."""
        return self.intact if key is None else self.outputs[key]

    def value(self, metric: str, key: str | None = None, prompt: int | str = POOLED) -> float:
        """One metric of one condition (or of the intact model), of a prompt or pooled: the mean over prompts.

        Equal numbers of right answers give equal pooled values, however they are spread over prompts.
        """
        output = self.output(key)
        if len(output) == 1 or prompt != POOLED:
            return value_of(metric, output[_row(prompt)], self.labels)
        if metric == "calibration_error":
            return math.fsum(value_of(metric, one, self.labels) for one in output) / len(output)
        return float(self.of_examples(metric, key).mean())

    def of_examples(self, metric: str, key: str | None = None) -> Float[Tensor, "prompt example"]:
        """A metric's value for each prompt and example, whose mean it is."""
        return torch.stack([per_example(metric, one, self.labels) for one in self.output(key)])


def units_record(units: Units) -> dict[str, Any]:
    """Which examples belong together, as plain JSON values; nothing more than the name where each stands alone."""
    together = {} if units.are_single else {"member": units.member.tolist()}
    return {"what": units.what, "n": len(units), **together}


def units_recorded(record: dict[str, Any] | None) -> Units | None:
    """What :func:`units_record` told; ``None`` where every example stands alone."""
    if record is None or "member" not in record:
        return None
    return Units(torch.tensor(record["member"], dtype=torch.int64), record["what"])


def units_told(record: dict[str, Any] | None, n: int, what: str = "pair of twins") -> Units:
    """The units of ``n`` examples by their record, with their name; each its own, called ``what``, without one."""
    if record is None:
        return Units(torch.arange(n), what)
    return units_recorded(record) or Units(torch.arange(n), record["what"])


def units_said(units: Units) -> str:
    """How a result's line says them."""
    return f"{len(units)} ({units.what})"


def intervals_of(
    measured: Measured,
    prompt: int | str,
    asked: list[tuple[Condition, str]],
    confidence: float,
    seed: int,
    units: Units | None = None,
) -> list[tuple[float, float]]:
    """Bootstrap intervals of the changes: intact and changed answers of an example are resampled together, and with
    them those of all examples of its unit."""
    means = [number for number, (_, metric) in enumerate(asked) if metric != "calibration_error"]
    ends: dict[int, tuple[float, float]] = {}
    if means:
        changes = torch.stack(
            [
                measured.of_examples(metric, condition.key) - measured.of_examples(metric)
                for condition, metric in (asked[number] for number in means)
            ]
        )
        if prompt == POOLED:
            low, high = two_level_bootstrap(changes, confidence=confidence, seed=seed, units=units)
        else:
            low, high = bootstrap_mean(
                changes[:, _row(prompt)], confidence=confidence, seed=seed, units=units
            )
        ends |= dict(zip(means, zip(low.tolist(), high.tolist(), strict=True), strict=True))
    for number, (condition, metric) in enumerate(asked):
        if metric == "calibration_error":
            ends[number] = _calibration_interval(measured, prompt, condition, confidence, seed, units)
    return [ends[number] for number in range(len(asked))]


def _calibration_interval(
    measured: Measured,
    prompt: int | str,
    condition: Condition,
    confidence: float,
    seed: int,
    units: Units | None,
) -> tuple[float, float]:
    assert measured.labels is not None  # for type checkers: plain text has no calibration error
    chosen = slice(None) if prompt == POOLED else slice(_row(prompt), _row(prompt) + 1)
    before, after = (measured.output(key)[chosen] for key in (None, condition.key))
    return two_level_calibration(
        before, after, measured.labels, confidence=confidence, seed=seed, units=units
    )


def exact_of(
    metric: str,
    measured: Measured,
    prompt: int | str,
    condition: Condition,
    confidence: float,
    units: Units | None = None,
) -> dict[str, float]:
    """The exact interval of an accuracy and McNemar's p against the intact model, of one prompt; else NaN.

    McNemar's test turns whole units. The interval of Clopper and Pearson takes examples to be independent, so there
    is none where they are not.
    """
    nan = float("nan")
    if metric != "accuracy" or prompt == POOLED:
        return {"value_low": nan, "value_high": nan, "p_mcnemar": nan}
    before, after = (measured.of_examples(metric, key)[_row(prompt)].bool() for key in (None, condition.key))
    low, high = nan, nan
    if units is None:
        low, high = clopper_pearson(int(after.sum()), len(after), confidence=confidence)
    p_value = mcnemar(before, after, units=units).p_value
    return {"value_low": low, "value_high": high, "p_mcnemar": p_value}


def _row(prompt: int | str) -> int:
    """Where a prompt's output stands; what has no number stands first."""
    return prompt if isinstance(prompt, int) else 0
