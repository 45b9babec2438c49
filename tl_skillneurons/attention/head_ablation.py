"""Hold chosen heads' outputs, or change them otherwise, and draw the heads that stand beside them as controls.

A head's output ``z`` (``blocks.{layer}.attn.o.hook_in``, before the output projection mixes the heads) is edited by an
intervention (:mod:`~tl_skillneurons.interventions.kinds`), with ``head`` and ``d_head`` as one axis of features::

    z'[example, pos, h] = edit(z)[example, pos, h]   if head h is chosen and pos is, else z[example, pos, h]

What it does not show: by which path a head matters, for an ablated head is missing everywhere. The control is the
same done to :func:`random_heads_like`: other heads of the same layers, drawn freely or among those that write as much.
Controls are distinct (:func:`controls_of_heads`): one head of nine has eight alternatives in its layer, which allow no
p below 1/9; the heads of all layers are a larger pool.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor
from transformer_lens.hook_points import HookPoint

from tl_skillneurons._checks import require_int, require_option, require_seed
from tl_skillneurons.attention._heads import Head, require_heads
from tl_skillneurons.attention.outputs import HeadOutputs
from tl_skillneurons.interventions.ablation import FeatureEdit, Positions, digest_of
from tl_skillneurons.interventions.kinds import How, Intervention, as_intervention
from tl_skillneurons.interventions.references import VALUES, GivenValues, ReferenceValues
from tl_skillneurons.models.hooks import Hook
from tl_skillneurons.neurons.controls import distinct_draws
from tl_skillneurons.neurons.matching import draw_nearest, finite_match
from tl_skillneurons.prompts.positions import PLACES, ActsAt


def ablate_heads(
    heads: Sequence[Head],
    *,
    how: How = "zero",
    values: Float[Tensor, "layer head d_head"]
    | Float[Tensor, "reference layer head d_head"]
    | HeadOutputs
    | ReferenceValues
    | None = None,
    positions: Positions = "all",
    classes: Sequence[int] | Int[Tensor, " example"] | None = None,
    seed: int = 0,
) -> list[Hook]:
    """Hooks that ablate the outputs of ``heads``, one per layer that has any.

    Args:
        how: An intervention, as in :func:`~tl_skillneurons.ablate`: ``Zero()``, ``Mean()``, ``Noise(0.5)``, ..., a
            short name such as ``"mean"``, or a function ``(act, hook) -> act`` of the heads' outputs
            ``[batch, pos, feature]``, ``d_head`` features of each in the order of ``heads``.
        values: What it needs to know of all heads on reference examples. For "mean" what each is held at,
            ``[layer, head, d_head]`` (:func:`mean_head_outputs`); for "class_mean" the same for each class, for
            "resample" for each example. Or :func:`head_outputs`, which has them all.
        positions: "all"; "prompt" or "text", in :class:`~tl_skillneurons.PromptedModel` and inside ``attached``; or
            a slice or indices into the sequence, virtual tokens included.
        classes: For what goes by class: the class of each example that runs, in the caller's order.
        seed: Of what is drawn, by each example's place in the caller's order.

    Returns:
        Pairs of hook-point name and function.

    Raises:
        ValueError: For an unknown option, no head, a head twice, values that are missing or of the wrong shape; and,
            when the model runs, for heads outside the model.

    Example:
        >>> values = skn.attention.mean_head_outputs(model, prompt, texts)
        >>> hooks = skn.attention.ablate_heads([(5, 1)], how="mean", values=values, positions="prompt")
    """
    what = as_intervention(how)
    pairs = require_heads(heads)
    require_seed(seed)
    if isinstance(positions, str):
        require_option(positions, "positions", PLACES)
    reference, shape = _reference(what, values)
    if shape is not None:
        require_heads(pairs, *shape)
    if what.edits_others:
        pairs = _others(what, pairs, shape)
    labels = None if classes is None else torch.as_tensor(classes).long().cpu()
    if what.needs_labels and labels is None:
        raise ValueError(f"how={what.name!r} needs classes: the class of each example, in their order")
    of_layer: dict[int, list[int]] = {}
    for layer, head in pairs:
        of_layer.setdefault(layer, []).append(head)
    return [
        (
            f"blocks.{layer}.attn.o.hook_in",
            _HeadEdit(what, layer, tuple(own), positions, reference, labels, seed).hook_function,
        )
        for layer, own in sorted(of_layer.items())
    ]


def random_heads_like(
    heads: Sequence[Head],
    seed: int,
    *,
    n_heads: int,
    exclude: bool = True,
    n_layers: int | None = None,
    all_layers: bool = False,
    match: Float[Tensor, "layer head"] | Float[Tensor, "quantity layer head"] | None = None,
    n_nearest: int = 4,
) -> list[Head]:
    """As many random heads of each layer, the same for equal sets of heads whatever their order.

    Args:
        n_heads: Heads of a layer.
        exclude: Whether these heads themselves may not be drawn.
        n_layers: Where a layer has too few others, lets the rest be drawn from the other heads of this many
            layers.
        all_layers: Draw all of them from the other heads of all ``n_layers`` layers: a larger pool.
        match: A number for every head, or several, e.g. :attr:`HeadOutputs.size`: each head's stand-in is then drawn
            among the ``n_nearest`` that come nearest to it (of several numbers: in their ranks) and are still free.

    Raises:
        ValueError: When there are too few heads to draw from, or ``match`` is of other heads or not finite.

    Example:
        >>> skn.attention.random_heads_like([(0, 1), (0, 2), (3, 5)], 0, n_heads=8)
    """
    generator = torch.Generator().manual_seed(require_seed(seed))
    pairs = sorted(require_heads(heads))
    draw = _Draw(generator, None if match is None else finite_match(match), n_nearest, n_heads)
    draw.require_match(pairs)
    if all_layers:
        if n_layers is None:
            raise ValueError("all_layers=True needs n_layers, the layers of the model")
        return draw.of_model(pairs, _other_heads(pairs, pairs if exclude else (), n_layers, n_heads))
    drawn: list[Head] = []
    left: list[Head] = []
    for layer in dict.fromkeys(layer for layer, _ in pairs):
        own = [pair for pair in pairs if pair[0] == layer]
        pool = [(layer, head) for head in range(n_heads) if not (exclude and (layer, head) in own)]
        if len(pool) < len(own) and n_layers is None:
            raise ValueError(
                f"layer {layer} has {len(pool)} heads to draw {len(own)} random ones from ({n_heads} without these); "
                "give fewer heads, or draw with exclude=False"
            )
        drawn += draw.of_layer(own[: len(pool)], pool)
        left += own[len(pool) :]
    if not left or n_layers is None:
        return drawn
    return drawn + draw.of_model(left, _other_heads(left, [*pairs, *drawn], n_layers, n_heads))


def controls_of_heads(
    heads: Sequence[Head],
    n: int,
    *,
    seed: int = 0,
    n_heads: int,
    n_layers: int,
    all_layers: bool = False,
    match: Float[Tensor, "layer head"] | Float[Tensor, "quantity layer head"] | None = None,
) -> list[list[Head]]:
    """``n`` distinct draws of :func:`random_heads_like`, or all that there are: no set of heads twice.

    Raises:
        ValueError: For whatever :func:`random_heads_like` refuses.

    Example:
        >>> len(controls_of_heads([(0, 1)], 20, n_heads=9, n_layers=30))
        8
    """

    def draw(own_seed: int) -> list[Head]:
        return random_heads_like(
            heads, own_seed, n_heads=n_heads, n_layers=n_layers, all_layers=all_layers, match=match
        )

    return distinct_draws(draw, require_int(n, "n"), seed=seed, key=frozenset)


def _other_heads(wanted: Sequence[Head], taken: Sequence[Head], n_layers: int, n_heads: int) -> list[Head]:
    """All heads of the model but the taken ones.

    Raises:
        ValueError: When these are fewer than are wanted.
    """
    gone = set(taken)
    others = [(layer, h) for layer in range(n_layers) for h in range(n_heads) if (layer, h) not in gone]
    if len(others) < len(wanted):
        raise ValueError(
            f"the model has {n_layers * n_heads} heads, too few to draw {len(wanted)} more at random beside "
            f"{len(gone)}; give fewer heads"
        )
    return others


@dataclass(frozen=True, eq=False)
class _HeadEdit:
    """An intervention on chosen heads of one layer."""

    what: Intervention
    layer: int
    heads: tuple[int, ...]
    positions: Positions
    reference: ReferenceValues | None
    labels: Int[Tensor, " example"] | None
    seed: int
    _made: dict[int, FeatureEdit] = field(default_factory=dict, init=False, repr=False)

    @property
    def told(self) -> str:
        """What is done to how many heads, for records."""
        return f"{self.what.name} of {len(self.heads)} {'head' if len(self.heads) == 1 else 'heads'}"

    @property
    def digest(self) -> str | None:
        """The same for edits that do the same to the same heads, in files; ``None`` of a function."""
        read = [getattr(self.reference, name) for name in self.what.needs]
        values = [value if value.ndim < 2 else value[..., self.layer, :] for value in read]
        labels = [] if self.labels is None else [self.labels]
        return digest_of(self.what, self.positions, (self.layer, self.heads, self.seed), *labels, *values)

    @property
    def hook_function(self) -> ActsAt:
        """It, for TransformerLens, with the positions that it acts at."""
        return ActsAt(self._flat(1).acts_at, self)

    def __call__(
        self, act: Float[Tensor, "batch pos head d_head"], hook: HookPoint
    ) -> Float[Tensor, "batch pos head d_head"]:
        if act.ndim != 4:
            raise ValueError(
                f"{hook.name} shows all heads as one axis of {act.shape[-1]}; they can't be told apart"
            )
        n_heads, d_head = act.shape[2:]
        if max(self.heads) >= n_heads:
            raise ValueError(f"layer {self.layer} has {n_heads} heads, got head {max(self.heads)}")
        known = self.reference and self.what.needs and getattr(self.reference, self.what.needs[0])
        if isinstance(known, Tensor) and known.shape[-1] != n_heads * d_head:
            raise ValueError(
                f"values are {known.shape[-1]} wide, layer {self.layer} has {n_heads} heads of {d_head}; use values of "
                "this model"
            )
        flat = rearrange(act, "batch pos head d_head -> batch pos (head d_head)")
        edited = self._flat(d_head)(flat, hook=hook)
        return rearrange(edited, "batch pos (head d_head) -> batch pos head d_head", head=n_heads)

    def _flat(self, d_head: int) -> FeatureEdit:
        """The same on features, for heads of this width."""
        if d_head not in self._made:
            first = torch.tensor(self.heads)[:, None] * d_head
            feature = rearrange(first + torch.arange(d_head), "head d_head -> (head d_head)")
            self._made[d_head] = FeatureEdit(
                self.what,
                self.layer,
                feature,
                self.positions,
                reference=self.reference,
                labels=self.labels,
                seed=self.seed,
            )
        return self._made[d_head]


def _reference(
    what: Intervention, values: Tensor | HeadOutputs | ReferenceValues | None
) -> tuple[ReferenceValues | None, tuple[int, int] | None]:
    """Where the intervention's values come from, and of how many layers and heads they are, where that is known."""
    if isinstance(values, HeadOutputs):
        if "class_mean" in what.needs:
            _ = values.class_mean  # refuses a class without an example, by its number
        return values.values, (values.activations.shape[1], values.n_heads)
    if values is not None and not isinstance(values, Tensor):
        return values, None
    if (values is None) == bool(what.needs):
        needs = "needs values to hold the heads at" if what.needs else "takes no values"
        raise ValueError(
            f"how={what.name!r} {needs}; how='mean' takes values=mean_head_outputs(model, prompt, texts)"
        )
    if values is None:
        return None, None
    kind = what.needs[0]
    n_axes = VALUES[kind].count(",") + 2
    if values.ndim != n_axes or not values.numel() or not values.isfinite().all():
        axes = VALUES[kind].replace("neuron", "head, d_head")
        raise ValueError(
            f"values for how={what.name!r} must be finite, and {axes}, got shape {tuple(values.shape)}"
        )
    flat = rearrange(values, "... layer head d_head -> ... layer (head d_head)")
    return GivenValues(**{kind: flat}), (values.shape[-3], values.shape[-2])


def _others(what: Intervention, pairs: list[Head], shape: tuple[int, int] | None) -> list[Head]:
    if shape is None:
        raise ValueError(
            f"how={what.name!r} edits all other heads, and nobody said how many there are; give "
            "values=head_outputs(prompted, texts)"
        )
    return [
        (layer, head) for layer in range(shape[0]) for head in range(shape[1]) if (layer, head) not in pairs
    ]


@dataclass(frozen=True, eq=False)
class _Draw:
    """Draws stand-ins of heads from pools, freely or among those nearest in what they are matched on."""

    generator: torch.Generator
    match: Float[Tensor, "layer head"] | Float[Tensor, "quantity layer head"] | None
    n_nearest: int
    n_heads: int

    def require_match(self, heads: Sequence[Head]) -> None:
        require_int(self.n_nearest, "n_nearest")
        if self.match is None:
            return
        n_layers, n_heads = self.match.shape[-2:]
        if n_heads != self.n_heads or max(layer for layer, _ in heads) >= n_layers:
            raise ValueError(
                f"match must be [layer, head] of the model these heads are of, with {self.n_heads} heads in a layer, "
                f"got shape {tuple(self.match.shape)}"
            )

    def of_layer(self, own: Sequence[Head], pool: Sequence[Head]) -> list[Head]:
        """Stand-ins for heads of one layer, from that layer."""
        if self.match is None or not own:
            return self._free(len(own), pool)
        return self._nearest(self.match[..., own[0][0], :], own, pool, lambda head: head[1])

    def of_model(self, own: Sequence[Head], pool: Sequence[Head]) -> list[Head]:
        """Stand-ins from any layer."""
        if self.match is None:
            return self._free(len(own), pool)
        flat = rearrange(self.match, "... layer head -> ... (layer head)")
        return self._nearest(flat, own, pool, lambda head: head[0] * self.n_heads + head[1])

    def _free(self, n: int, pool: Sequence[Head]) -> list[Head]:
        order = torch.randperm(len(pool), generator=self.generator)[:n]
        return [pool[i] for i in order.tolist()]

    def _nearest(
        self, match: Tensor, own: Sequence[Head], pool: Sequence[Head], place: Callable[[Head], int]
    ) -> list[Head]:
        of_place = {place(head): head for head in pool}
        drawn = draw_nearest(
            match,
            torch.tensor([place(head) for head in own]),
            torch.tensor(list(of_place)),
            self.n_nearest,
            self.generator,
        )
        return [of_place[i] for i in drawn.tolist()]
