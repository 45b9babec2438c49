"""What can be done to a set of neurons in :func:`~tl_skillneurons.measure_effects`, and the values it needs.

==================== ================================================================================
zero                 held at 0
mean                 held at the reference mean
class_mean           held at the reference mean of the example's own class: what is lost is all but the class
other_class_mean     held at the mean of the next class (of two: the other one): says the wrong label
resample             held at the values of one reference example, drawn for each example
noise                plus Gaussian noise, ``sigma`` times each neuron's reference standard deviation
scale                times ``factor``
keep                 all *other* neurons of the model held at the reference mean: sufficiency, not necessity
==================== ================================================================================

Reference values are taken apart at the prompt positions and at the text, since neurons do other things there:
an intervention at all positions holds each position at the value of its kind. A value that is usual at the
prompt can be far from usual in the text, and would harm whatever the neuron encodes.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tl_skillneurons._checks import require_option
from tl_skillneurons.interventions._old_ablation import Hook, ablate
from tl_skillneurons.neurons import NeuronSet
from tl_skillneurons.prompts.activations import neuron_activations
from tl_skillneurons.prompts.prompted_model import PromptedModel
from tl_skillneurons.tasks.task import Task

INTERVENTIONS = (
    "zero",
    "mean",
    "class_mean",
    "other_class_mean",
    "resample",
    "noise",
    "scale",
    "keep",
)
POSITIONS = ("all", "prompt", "text")
_NO_REFERENCE = ("zero", "scale")
_PER_CLASS = ("class_mean", "other_class_mean")
_VALUES = {"mean": "mean", "class_mean": "class_mean", "resample": "activations", "noise": "std"}


@dataclass(frozen=True)
class Intervention:
    """One thing to do to a set of neurons; ``amount`` is the sigma of "noise" and the factor of "scale"."""

    how: str
    amount: float | None = None

    def __str__(self) -> str:
        return self.how if self.amount is None else f"{self.how} {self.amount:g}"

    @property
    def needs_reference(self) -> bool:
        """Whether it holds neurons at, or measures in, what they do on reference examples."""
        return self.how not in _NO_REFERENCE

    @property
    def needs_labels(self) -> bool:
        """Whether it depends on the class of each example."""
        return self.how in _PER_CLASS


def choose_interventions(
    names: Sequence[str], sigmas: Sequence[float | int], factors: Sequence[float | int]
) -> list[Intervention]:
    """The interventions by name: one for each sigma where noise is among them, for each factor where scale is.

    Raises:
        ValueError: For an unknown name, none at all, a sigma that is not positive or a negative factor.
    """
    if isinstance(names, str) or not names:
        raise ValueError(f"interventions must be a list of at least one name, got {names!r}")
    chosen: list[Intervention] = []
    for name in dict.fromkeys(names):
        require_option(name, "interventions", INTERVENTIONS)
        amounts: Sequence[float | int | None] = {"noise": sigmas, "scale": factors}.get(name, [None])
        if not len(amounts):
            raise ValueError(
                f"intervention {name!r} needs {'sigmas' if name == 'noise' else 'factors'}, got none"
            )
        chosen += [Intervention(name, None if a is None else float(a)) for a in amounts]
    for one in chosen:
        low = one.amount is not None and (one.amount <= 0 if one.how == "noise" else one.amount < 0)
        if low or one.amount in (float("inf"),) or one.amount != one.amount:
            bound = "sigmas must be positive" if one.how == "noise" else "factors must be at least 0"
            raise ValueError(f"{bound} and finite, got {one.amount}")
    return chosen


@dataclass(frozen=True, eq=False)
class Reference:
    """What every neuron does at one kind of position on reference examples, averaged within each example.

    Attributes:
        activations: In the model's dtype.
        labels: Class of each reference example.
    """

    activations: Float[Tensor, "example layer neuron"]
    labels: Int[Tensor, " example"]

    @cached_property
    def mean(self) -> Float[Tensor, "layer neuron"]:
        """Mean over all reference examples."""
        return self.activations.double().mean(0).float()

    @cached_property
    def class_mean(self) -> Float[Tensor, "class layer neuron"]:
        """Mean over the reference examples of each class."""
        classes = range(int(self.labels.max()) + 1)
        return torch.stack([self.activations[self.labels == c].double().mean(0) for c in classes]).float()

    @cached_property
    def std(self) -> Float[Tensor, "layer neuron"]:
        """Standard deviation over reference examples."""
        return self.activations.double().std(0, correction=0).float()

    @cached_property
    def mean_absolute(self) -> Float[Tensor, "layer neuron"]:
        """Mean of the absolute activation."""
        return self.activations.double().abs().mean(0).float()


References = Mapping[str, Reference]
"""The reference at "prompt" and at "text" positions, or at those of the two that are needed."""


def measure_references(
    prompted: PromptedModel, task: Task, role: str, n_examples: int, places: Iterable[str]
) -> dict[str, Reference]:
    """Activations on up to ``n_examples`` of ``role``, evenly from all classes: the first of each.

    Keeps ``n_examples * n_layers * d_mlp`` numbers for each of ``places`` ("prompt", "text").

    Raises:
        ValueError: When a class has no example there.
    """
    split = task.split(role)
    labels = torch.tensor(split["label"])
    quota = max(1, n_examples // task.n_classes)
    rows = torch.cat([(labels == c).nonzero().flatten()[:quota] for c in range(task.n_classes)]).sort().values
    missing = sorted(set(range(task.n_classes)) - set(labels[rows].tolist()))
    if missing:
        raise ValueError(
            f"role {role!r} of {task.name} has no example of class {missing[0]} to take reference values from; "
            "choose another reference role"
        )
    texts = list(split["text"])
    texts = [texts[row] for row in rows.tolist()]
    reading = {"prompt": "prompt", "text": "mean"}
    model, prompt, cache = prompted.model, prompted.prompt, prompted.cache
    return {
        place: Reference(
            neuron_activations(model, prompt, texts, positions=reading[place], cache=cache), labels[rows]
        )
        for place in places
    }


def hooks_of(
    intervention: Intervention,
    neurons: NeuronSet,
    positions: str,
    references: References,
    *,
    labels: Int[Tensor, " example"] | None,
    n_classes: int,
    seed: int,
) -> list[Hook]:
    """The hooks of one intervention on one set; ``labels`` are the classes of the examples that will run."""
    how, amount = intervention.how, intervention.amount
    options: dict[str, Any] = {"seed": seed}
    if how == "zero":
        return ablate(neurons, how="zero", positions=positions)
    if how == "scale":
        return ablate(neurons, how="scale", factor=amount, positions=positions)
    if how == "keep":
        neurons, how = neurons.complement(), "mean"
    if how in _PER_CLASS:
        options["classes"] = labels if how == "class_mean" else (labels + 1) % n_classes
    if how == "noise":
        options["sigma"] = amount
    hooks: list[Hook] = []
    for where in ("prompt", "text") if positions == "all" else (positions,):
        method = "class_mean" if how in _PER_CLASS else how
        values = getattr(references[where], _VALUES[method])
        hooks += ablate(neurons, how=method, values=values, positions=where, **options)
    return hooks
