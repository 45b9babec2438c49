"""What neurons (or other features) do on reference examples, and what an intervention gets to see of it.

Reference values are taken apart at the prompt positions, at the text, at the special tokens around it and at a chat
template, since neurons do other things there (a first token can be a thousand times as active): an intervention at all
positions holds each position at the value of its kind. A value that is usual at the prompt can be far from usual in the
text, and would harm whatever the neuron encodes.
"""

import heapq
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformer_lens.hook_points import HookPoint

from tl_skillneurons._checks import require_int
from tl_skillneurons._results import html_of_fields, short_repr
from tl_skillneurons._widths import known, present, width_in
from tl_skillneurons.prompts.activations import neuron_activations
from tl_skillneurons.prompts.positions import current_tokens
from tl_skillneurons.prompts.prompted_model import PromptedModel
from tl_skillneurons.stats.units import Units
from tl_skillneurons.tasks.task import Task

VALUES = {
    "mean": "[layer, neuron]",
    "std": "[layer, neuron]",
    "class_mean": "[class, layer, neuron]",
    "activations": "[example, layer, neuron]",
}
"""The kinds of reference values, by their axes."""
_SOURCES = {
    "mean": "scores.mean_baseline()",
    "std": "scores.mean_std()",
    "class_mean": "each class's mean, [class, layer, neuron]",
    "activations": "neuron_activations(model, prompt, texts)",
}


@dataclass(frozen=True, eq=False)
class GivenValues:
    """Reference values that somebody brings along, e.g. ``GivenValues(mean=scores.mean_baseline())``.

    Example:
        >>> reference = GivenValues(mean=scores.mean_baseline())
    """

    __repr__ = short_repr
    _repr_html_ = html_of_fields

    mean: Float[Tensor, "layer feature"] | None = None
    std: Float[Tensor, "layer feature"] | None = None
    class_mean: Float[Tensor, "class layer feature"] | None = None
    activations: Float[Tensor, "example layer feature"] | None = None


@dataclass(frozen=True, eq=False)
class Reference:
    """What every neuron does at one kind of position on reference examples, averaged within each example.

    Attributes:
        activations: In the model's dtype.
        labels: Class of each reference example.

    Example:
        >>> reference = Reference(neuron_activations(model, prompt, texts), labels)
        >>> hooks = skn.ablate(skill, how="noise", values=reference)
    """

    __repr__ = short_repr
    _repr_html_ = html_of_fields

    activations: Float[Tensor, "example layer neuron"]
    labels: Int[Tensor, " example"]

    @cached_property
    def mean(self) -> Float[Tensor, "layer neuron"]:
        """Mean over all reference examples."""
        return self.activations.double().mean(0).float()

    @cached_property
    def class_mean(self) -> Float[Tensor, "class layer neuron"]:
        """Mean over the reference examples of each class (:func:`class_means`)."""
        return class_means(self.activations, self.labels)

    @cached_property
    def std(self) -> Float[Tensor, "layer neuron"]:
        """Standard deviation over reference examples."""
        return self.activations.double().std(0, correction=0).float()

    @cached_property
    def mean_absolute(self) -> Float[Tensor, "layer neuron"]:
        """Mean of the absolute activation."""
        return self.activations.double().abs().mean(0).float()


def absent_classes(labels: Int[Tensor, " example"]) -> list[int]:
    """Classes below the highest one that no example has.

    Example:
        >>> absent_classes(torch.tensor([0, 3, 1]))
        [2]
    """
    return sorted(set(range(int(labels.max()) + 1)) - set(labels.tolist()))


def class_means(
    activations: Float[Tensor, "example layer feature"], labels: Int[Tensor, " example"]
) -> Float[Tensor, "class layer feature"]:
    """Mean over the examples of each class, from class 0 to the highest one.

    Raises:
        ValueError: When there is no example of a class.

    Example:
        >>> class_means(torch.tensor([[[1.0]], [[3.0]], [[8.0]]]), torch.tensor([0, 0, 1])).flatten().tolist()
        [2.0, 8.0]
    """
    if absent := absent_classes(labels):
        raise ValueError(
            f"the reference has no example of class {absent[0]}, so there is no mean of it; give examples of every "
            f"class from 0 to {int(labels.max())}"
        )
    n_classes = int(labels.max()) + 1
    return torch.stack([activations[labels == c].double().mean(0) for c in range(n_classes)]).float()


ReferenceValues = Reference | GivenValues
"""Whatever has reference values, by layer."""

References = Mapping[str, Reference]
"""The reference at "prompt", "text", "special" and "template" positions, or at those of them that are needed."""


@dataclass(frozen=True, eq=False)
class At:
    """Where an edit happens and what it may need to know: one layer's chosen features, in one batch.

    Attributes:
        hook: The hook point.
        layer: Its layer.
        feature: Which of the layer's features were chosen, in the order of the last axis of what is edited.
        n_rows: How many examples the batch has.
        reference: Where reference values come from, if from anywhere.
        labels: Class of every example that runs, in the caller's order.
        seed: Of whatever is drawn.

    Example:
        >>> def halfway_to_the_mean(old, at):  # an intervention of one's own
        ...     return (old + at.mean.to(old)) / 2
    """

    __repr__ = short_repr
    _repr_html_ = html_of_fields

    hook: HookPoint
    layer: int
    feature: Int[Tensor, " feature"]
    n_rows: int
    reference: ReferenceValues | None = None
    labels: Int[Tensor, " example"] | None = None
    seed: int = 0
    kept: dict[str, Tensor] = field(default_factory=dict, repr=False)

    @property
    def mean(self) -> Float[Tensor, " feature"]:
        """Reference mean of each chosen feature."""
        return self._of("mean")

    @property
    def std(self) -> Float[Tensor, " feature"]:
        """Reference standard deviation of each chosen feature."""
        return self._of("std")

    @property
    def class_mean(self) -> Float[Tensor, "class feature"]:
        """Reference mean of each class."""
        return self._of("class_mean")

    @property
    def activations(self) -> Float[Tensor, "reference feature"]:
        """The chosen features on each reference example."""
        return self._of("activations")

    def toward(self, label: int) -> Float[Tensor, " feature"]:
        """One standard deviation of the reference activations along the direction to a class, as a vector.

        The direction is that from the mean of the other classes' means to the mean of this class.

        Raises:
            ValueError: When the reference has no such class, or no other.
        """
        kind = f"toward {label}"
        if kind not in self.kept:
            means = self.class_mean.double()
            if not 0 <= label < len(means) or len(means) < 2:
                raise ValueError(
                    f"a direction to class {label} needs the means of that class and of another, and the reference "
                    f"has those of the classes 0 to {len(means) - 1}"
                )
            others = [c for c in range(len(means)) if c != label]
            direction = means[label] - means[others].mean(0)
            length = direction.norm()
            unit = direction / length if length else direction
            along = self.activations.double() @ unit.to(self.activations.device)
            self.kept[kind] = along.std(correction=0).to(unit) * unit
        return self.kept[kind]

    @cached_property
    def examples(self) -> list[int]:
        """Each row's number in the caller's order; its row where nobody said otherwise."""
        tokens = current_tokens(self.hook)
        return list(range(self.n_rows)) if tokens is None else tokens.example.tolist()

    @property
    def classes(self) -> Int[Tensor, " batch"]:
        """Each row's class.

        Raises:
            ValueError: When the classes of the examples were not given, or of too few.
        """
        if self.labels is None:
            raise ValueError("nobody gave the classes of the examples; give ablate(classes=...)")
        if max(self.examples) >= len(self.labels):
            raise ValueError(
                f"classes names the class of {len(self.labels)} examples, and example {max(self.examples)} runs; "
                "give one for each text, in their order"
            )
        return self.labels[self.examples]

    def generators(self, *, per_layer: bool = False) -> list[torch.Generator]:
        """One for each row, which depends on the seed and the example's number alone, whatever the batch.

        Args:
            per_layer: Whether the layer counts as well; otherwise an example has the same one in every layer.
        """
        more = (self.layer,) if per_layer else ()
        return [_generator(self.seed, example, *more) for example in self.examples]

    def _of(self, kind: str) -> Tensor:
        """Reference values of the chosen features, cut out once for all batches."""
        if kind not in self.kept:
            values = None if self.reference is None else getattr(self.reference, kind)
            if values is None:
                raise ValueError(
                    f"this intervention reads the reference {kind!r}, which nobody gave; give values="
                    f"{_SOURCES[kind]}"
                )
            self.kept[kind] = values[..., self.layer, self.feature]
        return self.kept[kind]


def _generator(*numbers: int) -> torch.Generator:
    seed = 0
    for number in numbers:
        seed = (seed * 1_000_003 + number + 1) % 2**63
    return torch.Generator().manual_seed(seed)


def given_values(name: str, needs: tuple[str, ...], values: Tensor | None) -> GivenValues | None:
    """One tensor of reference values as the kind that an intervention needs.

    Args:
        name: What the intervention is called, for messages.
        needs: The kinds of values that it reads, see :data:`VALUES`.

    Raises:
        ValueError: When values are missing or not needed, of the wrong shape, empty or not finite.
    """
    if not needs:
        if values is not None:
            raise ValueError(f"how={name!r} takes no values; use how='mean' to hold neurons at values")
        return None
    kind, axes = needs[0], VALUES[needs[0]]
    if values is None:
        raise ValueError(
            f"how={name!r} needs values to hold the neurons at, got none; give values={_SOURCES[kind]}"
        )
    if len(needs) > 1:
        raise ValueError(
            f"how={name!r} needs several kinds of values ({', '.join(needs)}); give GivenValues(...) with each"
        )
    if values.ndim != axes.count(",") + 1:
        raise ValueError(f"values for how={name!r} must be {axes}, got shape {tuple(values.shape)}")
    if not len(values):
        raise ValueError(f"values for how={name!r} must not be empty, got shape {tuple(values.shape)}")
    if not known(values).isfinite().all() or not torch.equal(
        ~values.isnan(),
        present(
            values.shape[-2], width_in(values.flatten(0, -3)[0] if values.ndim > 2 else values)
        ).expand_as(values),
    ):
        raise ValueError(f"values for how={name!r} must be finite, wherever a layer has a neuron")
    return GivenValues(**{kind: values})


def reference_rows(task: Task, role: str, n_examples: int | None) -> Int[Tensor, " row"]:
    """Up to ``n_examples`` of ``role``, evenly from all classes and their units (:func:`evenly`).

    Args:
        n_examples: ``None`` for all.
    """
    labels = torch.tensor(task.split(role)["label"])
    most = len(labels) if n_examples is None else require_int(n_examples, "n_reference")
    quota = most if n_examples is None else max(1, most // task.n_classes)
    return evenly(labels, task.units(role), quota)


def evenly(labels: Int[Tensor, " example"], units: Units, quota: int) -> Int[Tensor, " row"]:
    """The rows of up to ``quota`` examples of each class, in their order, from as many units as can be.

    Classes take turns. Each takes the example whose unit it has taken least, among these the one whose unit all classes
    together have taken least, then the first; with units of single examples, the first ones of each class.

    Example:
        >>> labels = torch.tensor([0, 0, 0, 1, 1])
        >>> evenly(labels, Units.of([["a", "a", "b", "c", "a"]]), 2).tolist()
        [0, 2, 3, 4]
    """
    of_unit: dict[int, dict[int, list[int]]] = {}
    for row, (label, unit) in enumerate(zip(labels.tolist(), units.member.tolist(), strict=True)):
        of_unit.setdefault(label, {}).setdefault(unit, []).append(row)
    waiting = {c: [(0, 0, rows[0]) for rows in of_unit[c].values()] for c in sorted(of_unit)}
    taken = dict.fromkeys(range(len(units)), 0)
    chosen = []
    for _ in range(quota):
        for c, heap in waiting.items():  # built in the order of rows, so it is a heap
            while heap:
                own, together, row = heapq.heappop(heap)
                unit = int(units.member[row])
                if taken[unit] == together:
                    break
                heapq.heappush(heap, (own, taken[unit], row))  # another class has taken of it since
            else:
                continue
            chosen.append(row)
            taken[unit] += 1
            rows = of_unit[c][unit]
            if own + 1 < len(rows):
                heapq.heappush(heap, (own + 1, taken[unit], rows[own + 1]))
    return torch.tensor(sorted(chosen), dtype=torch.int64)


def measure_references(
    prompted: PromptedModel, task: Task, role: str, n_examples: int | None, places: Iterable[str]
) -> dict[str, Reference]:
    """Activations on up to ``n_examples`` of ``role``, evenly from all classes and units (:func:`reference_rows`).

    Keeps ``n_examples * n_layers * d_mlp`` numbers for each of ``places`` ("prompt", "text", "special", "template").

    Args:
        n_examples: ``None`` for all.

    Raises:
        ValueError: When activations are not finite.
    """
    split = task.split(role)
    labels = torch.tensor(split["label"])
    rows = reference_rows(task, role, n_examples)
    texts = list(split["text"])
    texts = [texts[row] for row in rows.tolist()]
    reading = {"prompt": "prompt", "text": "mean", "special": "special", "template": "template"}
    found = {}
    for place in places:
        activations = neuron_activations(
            prompted.model,
            prompted.prompt,
            texts,
            positions=reading[place],
            max_length=prompted.max_length,
            run=prompted.run,
            chat=prompted.chat,
        )
        if not known(activations).isfinite().all():  # NaN were refused before, but where there is no neuron
            raise ValueError(
                "activations on the reference examples are not finite; load the model in float32"
            )
        found[place] = Reference(activations, labels[rows])
    return found
