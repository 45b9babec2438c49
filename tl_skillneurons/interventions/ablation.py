"""Hooks that hold chosen MLP neurons at a value, or change them otherwise, while the model runs.

What is done is an intervention (:mod:`~tl_skillneurons.interventions.kinds`); this module says where: ``new`` of the
chosen features at the chosen positions, the old activation everywhere else::

    act'[example, pos, feature] = edit(act)[example, pos, feature]   if feature is chosen and pos is, else act[...]

Features are the last axis of an activation, so the same serves heads whose outputs are flattened to one axis. The
control is the same done to ``neurons.random_like(seed)``: without it a drop says only that the model was disturbed.

Hooks are pairs of hook-point name and function, for ``model.run_with_hooks(fwd_hooks=...)`` and
``model.hooks(fwd_hooks=...)``.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformer_lens.hook_points import HookPoint

from tl_skillneurons._checks import require_option, require_seed
from tl_skillneurons._files import fingerprint
from tl_skillneurons._widths import Width, in_layer, width_in
from tl_skillneurons.interventions.kinds import Call, How, Intervention, Keep, as_intervention
from tl_skillneurons.interventions.references import At, References, ReferenceValues, given_values
from tl_skillneurons.models.hooks import Hook
from tl_skillneurons.neurons.neuron_set import Neurons, as_neurons
from tl_skillneurons.prompts.positions import NAMED, PLACES, ActsAt, Positions, columns


def positions_record(positions: Positions) -> Any:
    """How results record positions, as plain JSON values: :func:`positions_of` reads it."""
    if isinstance(positions, slice):
        return {"slice": [positions.start, positions.stop, positions.step]}
    return positions if isinstance(positions, str) else [int(i) for i in positions]


def positions_of(record: Any) -> Positions:
    """The positions that :func:`positions_record` recorded."""
    return slice(*record["slice"]) if isinstance(record, dict) else record


def ablate(
    neurons: Neurons,
    *,
    how: How = "zero",
    values: Float[Tensor, "layer neuron"]
    | Float[Tensor, "reference layer neuron"]
    | ReferenceValues
    | None = None,
    positions: Positions = "all",
    classes: Sequence[int] | Int[Tensor, " example"] | None = None,
    seed: int = 0,
) -> list[Hook]:
    """Hooks that ablate ``neurons``, one per layer that has any.

    Args:
        how: An intervention (:mod:`~tl_skillneurons.interventions.kinds`): ``Zero()``, ``Mean()``, ``ClassMean()``,
            ``OtherClassMean()``, ``Resample()``, ``Noise(sigma)``, ``Scale(factor)``, ``Keep(other)``, one of your
            own, a short name such as ``"mean"``, or a function ``(act, hook) -> act`` of the chosen neurons'
            activations ``[batch, pos, neuron]``.
        values: What it needs to know of the neurons on reference examples. For "mean" what each is held at,
            ``[layer, neuron]`` (``scores.mean_baseline()``); for "noise" the standard deviations that sigma counts
            in (``scores.mean_std()``); for "class_mean" and "other_class_mean" the mean of each class,
            ``[class, layer, neuron]``; for "resample" activations ``[example, layer, neuron]``
            (:func:`~tl_skillneurons.prompts.neuron_activations`), of which each example of the run takes all its
            neurons from one. Or a :class:`~tl_skillneurons.interventions.references.Reference`, which has them all.
        positions: ``"all"``; ``"prompt"`` or ``"text"``, in :class:`~tl_skillneurons.PromptedModel` and inside
            ``attached``, where every other token is text; in the former also ``"special"``, the tokens that the
            tokenizer puts around a text and that are none of it, ``"template"``, for texts in a chat, and
            ``"generated"``, what the model writes (``generate``); or a slice or indices into the sequence, virtual
            tokens included, from the example's first token where padding is known.
        classes: For what goes by class: the class of each example, by its place in the caller's order.
        seed: Of what is drawn: with it, what an example gets depends on its place in the caller's order alone, not
            on the batches it is run in.

    Returns:
        Pairs of hook-point name and function. An ablation of no neuron is an empty list.

    Raises:
        ValueError: For an unknown option, values that are missing or of the wrong shape; and, when the model
            runs, for neurons outside the model or positions that nobody knows.

    Example:
        >>> hooks = skn.ablate(skill, how="mean", values=scores.mean_baseline(), positions="prompt")
        >>> prompted.class_logits(texts, fwd_hooks=hooks)
    """
    neurons = as_neurons(neurons)
    what = as_intervention(how)
    require_seed(seed)
    if isinstance(positions, str):
        require_option(positions, "positions", PLACES)
    reference, shape = _reference(what, values)
    if shape is not None:
        neurons.require_fits(*shape)
    if what.edits_others:
        neurons = neurons.complement(*(shape or ()))
    labels = _classes(what, classes, reference)
    width = neurons.d_mlp if shape is None else shape[1]
    widths = {layer: None if width is None else in_layer(width, layer) for layer in neurons.by_layer()}
    return [
        (
            f"blocks.{layer}.mlp.hook_post",
            FeatureEdit(what, layer, index, positions, widths[layer], reference, labels, seed).hook_function,
        )
        for layer, index in neurons.by_layer().items()
    ]


def ablate_where_known(
    neurons: Neurons,
    how: Intervention,
    positions: str,
    references: References,
    *,
    labels: Int[Tensor, " example"] | None,
    seed: int,
) -> list[Hook]:
    """Hooks of one intervention with the reference values of each kind of position at that kind.

    Args:
        positions: "prompt", "text", "special", "template", or "all": those of them that there are references for, each
            at its own values.
        labels: Classes of the examples that will run.
    """
    neurons = as_neurons(neurons)
    if not how.needs:
        return ablate(neurons, how=how, positions=positions, seed=seed)
    classes = labels if how.needs_labels else None
    hooks: list[Hook] = []
    known = [where for where in NAMED if where in references]
    for where in known if positions == "all" else [positions]:
        hooks += ablate(
            neurons, how=how, values=references[where], positions=where, classes=classes, seed=seed
        )
    return hooks


@dataclass(frozen=True, eq=False)
class FeatureEdit:
    """An intervention on chosen features of one layer, as a hook function.

    Attributes:
        what: What is done.
        layer: Whose reference values it is done with.
        feature: Which features, of the last axis.
        positions: Where.
        width: How many features the layer must have, where that is known.
        reference: Reference values.
        labels: Class of each example that runs.
        seed: Of what is drawn.
    """

    what: Intervention
    layer: int
    feature: Int[Tensor, " feature"]
    positions: Positions = "all"
    width: int | None = None
    reference: ReferenceValues | None = None
    labels: Int[Tensor, " example"] | None = None
    seed: int = 0
    _kept: dict[str, Tensor] = field(default_factory=dict, init=False, repr=False)

    @property
    def told(self) -> str:
        """What is done to how many features, for records."""
        return f"{self.what.name} of {len(self.feature)}"

    @property
    def digest(self) -> str | None:
        """The same for edits that do the same to the same features, in files; ``None`` of a function, which no file can
        tell from another."""
        read = [getattr(self.reference, name) for name in self.what.needs]
        values = [v if v.ndim < 2 else v[..., self.layer, :][..., self.feature.to(v.device)] for v in read]
        labels = [] if self.labels is None else [self.labels]
        said = (self.layer, self.seed)
        return digest_of(self.what, self.positions, said, self.feature, *labels, *values)

    @property
    def acts_at(self) -> str:
        """The positions it declares: "chosen", which promises nothing, where it may look at others."""
        known = isinstance(self.positions, str) and self.what.per_position
        return str(self.positions) if known else "chosen"

    @property
    def hook_function(self) -> ActsAt:
        """It, for TransformerLens."""
        return ActsAt(self.acts_at, self)

    def __call__(
        self, act: Float[Tensor, "batch pos all_features"], hook: HookPoint
    ) -> Float[Tensor, "batch pos all_features"]:
        if self.feature.max() >= act.shape[-1] or self.width not in (None, act.shape[-1]):
            raise ValueError(
                f"{hook.name} has {act.shape[-1]} neurons, the ablation was made for "
                f"{self.width or 'at least ' + str(int(self.feature.max()) + 1)}; use neurons and values of this model"
            )
        here = self.feature.to(act.device)
        old = act[..., here]
        at = At(hook, self.layer, self.feature, len(act), self.reference, self.labels, self.seed, self._kept)
        new = self.what.edit(old, at)
        if new.shape != old.shape:
            raise ValueError(
                f"intervention {self.what.name!r} must give {list(old.shape)} as it got, gave {list(new.shape)}"
            )
        if not (isinstance(self.positions, str) and self.positions == "all"):
            new = torch.where(columns(self.positions, act, hook)[..., None], new, old)
        return act.index_copy(-1, here, new)  # a new tensor: other hooks may keep the original


def digest_of(
    what: Intervention, positions: Positions, said: tuple[Any, ...], *tensors: Tensor
) -> str | None:
    """One string for edits that do the same, by what is done, where, what else is said and these tensors; ``None`` of a
    function."""
    if isinstance(what.other if isinstance(what, Keep) else what, Call):
        return None
    where = positions.tolist() if isinstance(positions, Tensor) else positions
    return hashlib.sha256(f"{(what, where, *said)!r} {fingerprint(*tensors)}".encode()).hexdigest()


def _reference(
    what: Intervention, values: Tensor | ReferenceValues | None
) -> tuple[ReferenceValues | None, tuple[int, Width] | None]:
    """Where the intervention's values come from, and for how many layers and neurons they are."""
    reference = values if isinstance(values, ReferenceValues) else given_values(what.name, what.needs, values)
    if reference is None or not what.needs:
        return reference, None
    some = getattr(reference, what.needs[0])
    if some is None:
        return reference, None
    return reference, (some.shape[-2], width_in(some.reshape(-1, *some.shape[-2:])[0]))


def _classes(
    what: Intervention, classes: Sequence[int] | Tensor | None, reference: ReferenceValues | None
) -> Int[Tensor, " example"] | None:
    if not what.needs_labels:
        if classes is not None:
            raise ValueError(f"classes are for what goes by class, got them with how={what.name!r}")
        return None
    if classes is None:
        raise ValueError(f"how={what.name!r} needs classes: the class of each example, in their order")
    found = torch.as_tensor(classes, device="cpu")
    if found.ndim != 1 or found.is_floating_point() or not len(found):
        raise ValueError(f"classes must be a list of integers, one per example, got {classes!r}")
    means = None if reference is None else reference.class_mean
    n_classes = int(found.max()) + 1 if means is None else len(means)
    if found.min() < 0 or found.max() >= n_classes:
        raise ValueError(
            f"classes must be in [0, {n_classes}), the classes that values has, got {int(found.min())} to "
            f"{int(found.max())}"
        )
    return found.long()
