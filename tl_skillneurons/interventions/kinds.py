"""What can be done to chosen neurons, each a small value: the place to add an intervention.

==================== ================================================================================
Zero                 held at 0, which may be far from any value they take
Mean                 held at the reference mean
ClassMean            held at the reference mean of the example's own class: what is lost is all but the class
OtherClassMean       held at the mean of the next class (of two: the other one): says the wrong label
Resample             held at the values of one reference example, drawn for each example
Noise(sigma)         plus Gaussian noise, ``sigma`` times each neuron's reference standard deviation: one vector
                     per example and layer, the same at every position (Wang et al., 2022, section 4)
Scale(factor)        times ``factor``; several factors make a dose-response curve
Shift(toward, by)    plus ``by`` standard deviations along the direction to a class, the same in every example (Li et
                     al., 2023, "Inference-time intervention", section 3)
Keep(other)          all *other* neurons of the model edited (held at the mean): sufficiency, not necessity
==================== ================================================================================

A new one is a frozen class with :meth:`Intervention.edit`, and a row of :data:`SHORT_NAMES` if it deserves a short
name. A plain function ``(act, hook) -> act`` over the chosen neurons' activations works as well.

What none of them shows by itself: that the neurons encode what is lost. The control is the same done to random
neurons (:meth:`~tl_skillneurons.NeuronSet.random_like`).
"""

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from tl_skillneurons._checks import require_int, require_option
from tl_skillneurons.interventions.references import At

Edited = Float[Tensor, "batch pos feature"]
"""The chosen features of one batch: neurons of a layer, or heads' outputs with ``head`` and ``d_head`` as one axis."""


@dataclass(frozen=True)
class Intervention:
    """One thing to do to features of a model; subclass it, frozen, with :meth:`edit`.

    Example:
        >>> @dataclass(frozen=True)
        ... class TwiceTheMean(Intervention):
        ...     uses = ("mean",)
        ...
        ...     def edit(self, old, at):
        ...         return 2 * at.mean.to(old).expand_as(old)
    """

    uses: ClassVar[tuple[str, ...]] = ()
    """Which reference values :meth:`edit` reads: of "mean", "std", "class_mean" and "activations"."""
    edits_others: ClassVar[bool] = False
    """Whether what is edited is everything but what was chosen."""

    @property
    def name(self) -> str:
        """The class in small letters, and its numbers: "other_class_mean", "scale 0.5"."""
        words = re.sub(r"(?<!^)(?=[A-Z])", "_", type(self).__name__).lower()
        amounts = [getattr(self, field.name) for field in fields(self)]
        return " ".join([words, *(f"{a:g}" for a in amounts if isinstance(a, int | float))])

    @property
    def needs(self) -> tuple[str, ...]:
        """Which reference values this one reads."""
        return self.uses

    @property
    def needs_labels(self) -> bool:
        """Whether it depends on the class of each example."""
        return "class_mean" in self.needs

    @property
    def per_position(self) -> bool:
        """Whether what happens at a position depends on nothing at other positions."""
        return True

    def edit(self, old: Edited, at: At) -> Edited:
        """What ``old`` becomes, in a new tensor of the same shape, dtype and device.

        Each position is edited on its own, from its own value and what ``at`` knows: where only some positions
        run, only these are given.
        """
        raise NotImplementedError(f"{type(self).__name__} says nothing of what to do; define edit(old, at)")


@dataclass(frozen=True)
class Zero(Intervention):
    """Held at 0, which may be far from any value that the neurons take.

    Example:
        >>> skn.measure_effects(model, prompts, task, neurons, interventions=[Zero()])
    """

    def edit(self, old: Edited, at: At) -> Edited:
        return torch.zeros_like(old)


@dataclass(frozen=True)
class Mean(Intervention):
    """Held at the reference mean.

    Example:
        >>> skn.measure_effects(model, prompts, task, neurons, interventions=[Mean()])
    """

    uses = ("mean",)

    def edit(self, old: Edited, at: At) -> Edited:
        return at.mean.to(old).expand_as(old)


@dataclass(frozen=True)
class ClassMean(Intervention):
    """Held at the reference mean of the example's own class.

    Example:
        >>> skn.measure_effects(model, prompts, task, neurons, interventions=[ClassMean(), OtherClassMean()])
    """

    uses = ("class_mean",)

    def edit(self, old: Edited, at: At) -> Edited:
        return at.class_mean[at.classes].to(old)[:, None].expand_as(old)


@dataclass(frozen=True)
class OtherClassMean(Intervention):
    """Held at the reference mean of the next class, of two classes the other one.

    Example:
        >>> skn.measure_effects(model, prompts, task, neurons, interventions=[ClassMean(), OtherClassMean()])
    """

    uses = ("class_mean",)

    def edit(self, old: Edited, at: At) -> Edited:
        if len(at.class_mean) < 2:
            raise ValueError(
                "the reference has the mean of class 0 alone, so there is none of another class; give examples of all"
            )
        following = (at.classes + 1) % len(at.class_mean)
        return at.class_mean[following].to(old)[:, None].expand_as(old)


@dataclass(frozen=True)
class Resample(Intervention):
    """Held at the values of one reference example: another for each example, the same in every layer.

    Example:
        >>> skn.measure_effects(model, prompts, task, neurons, interventions=[Resample()])
    """

    uses = ("activations",)

    def edit(self, old: Edited, at: At) -> Edited:
        n = len(at.activations)
        drawn = [int(torch.randint(n, (), generator=generator)) for generator in at.generators()]
        return at.activations[drawn].to(old)[:, None].expand_as(old)


@dataclass(frozen=True)
class Noise(Intervention):
    """Plus Gaussian noise, one vector per example and layer, the same at every position.

    Args:
        sigma: In standard deviations of the neuron.
        absolute: Counts ``sigma`` in the activation's own units instead, as the paper does (0.1 there).

    Raises:
        ValueError: For a sigma that is not positive and finite.

    Example:
        >>> Noise(0.5).name
        'noise 0.5'
    """

    sigma: float | int = 1.0
    absolute: bool = False
    uses = ("std",)

    def __post_init__(self) -> None:
        if not 0 < self.sigma < math.inf:
            raise ValueError(f"sigma must be positive and finite, got {self.sigma}")

    @property
    def name(self) -> str:
        return f"noise {self.sigma:g}" + (" absolute" if self.absolute else "")

    @property
    def needs(self) -> tuple[str, ...]:
        return () if self.absolute else self.uses

    def edit(self, old: Edited, at: At) -> Edited:
        n = old.shape[-1]
        noise = torch.stack([torch.randn(n, generator=own) for own in at.generators(per_layer=True)])
        scale = self.sigma if self.absolute else self.sigma * at.std.to(noise)
        return old + (scale * noise).to(old)[:, None]


@dataclass(frozen=True)
class Scale(Intervention):
    """Times ``factor``: 0 is zero ablation, 1 changes nothing.

    Raises:
        ValueError: For a factor that is negative or not finite.

    Example:
        >>> Scale(0.5).edit(torch.tensor([[[2.0]]]), at=None).item()
        1.0
    """

    factor: float | int = 2.0

    def __post_init__(self) -> None:
        if not 0 <= self.factor < math.inf:
            raise ValueError(f"factor must be at least 0 and finite, got {self.factor}")

    def edit(self, old: Edited, at: At) -> Edited:
        return old * self.factor


@dataclass(frozen=True)
class Shift(Intervention):
    """Plus ``by`` standard deviations along the direction from the other classes to one class, in each layer.

    The direction is the difference between the class's reference mean and the mean of the other classes', over the
    chosen neurons of a layer, at length 1; the unit is the standard deviation of the reference activations along it
    (:meth:`At.toward`). Where the means don't differ nothing is shifted.

    Args:
        toward: The class.
        by: How far; negative goes away from the class, 0 nowhere.

    Raises:
        ValueError: For a class that is no integer from 0 on, or an amount that is not finite.

    Example:
        >>> reference = Reference(skn.prompts.neuron_activations(model, prompt, texts), labels)
        >>> prompted.generate(texts, interventions=skn.ablate(skill, how=Shift(1, by=3.0), values=reference))
    """

    toward: int
    by: float | int = 1.0
    uses = ("class_mean", "activations")

    def __post_init__(self) -> None:
        require_int(self.toward, "toward", minimum=0)
        if not math.isfinite(self.by):
            raise ValueError(f"by must be finite, got {self.by}")

    @property
    def name(self) -> str:
        return f"shift to {self.toward} by {self.by:g}"

    @property
    def needs_labels(self) -> bool:
        return False  # the class is the one that was named, whatever the example's own

    def edit(self, old: Edited, at: At) -> Edited:
        return old + (self.by * at.toward(self.toward)).to(old)


@dataclass(frozen=True)
class Keep(Intervention):
    """All other neurons of the model edited by ``other``, and the chosen ones left alone.

    Example:
        >>> skn.measure_effects(model, prompts, task, neurons, interventions=[Keep(Mean()), Keep(Zero())])
    """

    other: Intervention = Mean()
    edits_others = True

    def __post_init__(self) -> None:
        if self.other.edits_others:
            raise ValueError(f"{self.other.name!r} edits all others itself; give Keep(Mean()) or the like")

    @property
    def name(self) -> str:
        return "keep" if self.other == Mean() else f"keep, others {self.other.name}"

    @property
    def needs(self) -> tuple[str, ...]:
        return self.other.needs

    def edit(self, old: Edited, at: At) -> Edited:
        return self.other.edit(old, at)


@dataclass(frozen=True)
class Call(Intervention):
    """What a plain function ``(act, hook) -> act`` makes of them; ``None`` leaves them as they are."""

    function: Callable[..., Tensor | None]

    @property
    def name(self) -> str:
        return str(getattr(self.function, "__name__", type(self.function).__name__))

    @property
    def per_position(self) -> bool:
        return False  # nobody knows

    def edit(self, old: Edited, at: At) -> Tensor:
        new = self.function(old, hook=at.hook)
        return old if new is None else new


SHORT_NAMES: dict[str, Intervention] = {
    "zero": Zero(),
    "mean": Mean(),
    "class_mean": ClassMean(),
    "other_class_mean": OtherClassMean(),
    "resample": Resample(),
    "noise": Noise(),
    "scale": Scale(),
    "keep": Keep(),
}
"""What a string stands for."""

How = str | Intervention | Callable[..., Tensor | None]
"""An intervention: a short name, a value, or a function ``(act, hook) -> act``."""


def as_intervention(how: How, name: str = "how") -> Intervention:
    """The value that a short name, a value or a function stands for.

    Raises:
        ValueError: For an unknown name.
        TypeError: For anything else.
    """
    if isinstance(how, str):
        return SHORT_NAMES[require_option(how, name, SHORT_NAMES)]
    if isinstance(how, Intervention):
        return how
    if callable(how) and not isinstance(how, type):
        return Call(how)
    raise TypeError(
        f"{name} must be a name such as 'mean', an intervention such as Mean(), or a function (act, hook) -> act; "
        f"got {how!r}"
    )


def as_interventions(how: How | Sequence[How]) -> list[Intervention]:
    """Several of them, each once.

    Raises:
        ValueError: For none, or for two different ones of one name.
    """
    given: Sequence[Any] = how if isinstance(how, Sequence) and not isinstance(how, str) else [how]
    chosen = list(dict.fromkeys(as_intervention(one, "interventions") for one in given))
    if not chosen:
        raise ValueError("interventions must hold at least one, got none")
    names = [one.name for one in chosen]
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise ValueError(f"two interventions are called {twice[0]!r}; give their functions different names")
    return chosen
