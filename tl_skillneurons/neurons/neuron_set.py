"""Sets of MLP neurons, their algebra and their files.

A :class:`NeuronSet` says nothing about what its neurons do. The control for anything done to it is
:meth:`NeuronSet.random_like`, the control for what two sets share is in :meth:`NeuronSet.overlap`.
"""

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, SupportsIndex, TypeAlias, overload

import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from tl_skillneurons._checks import require_int, require_seed, selection_size
from tl_skillneurons._files import sound
from tl_skillneurons._results import html_of
from tl_skillneurons._widths import Width, in_layer, present, require_width, said, widest
from tl_skillneurons.neurons.choice import Choice, joint
from tl_skillneurons.neurons.indices import (
    first_of_each,
    integers,
    layers_and_indices,
    one_shape,
    require_distinct,
    require_inside,
    require_mask,
    shape_of_blocks,
)
from tl_skillneurons.neurons.matching import draw_like, finite_match
from tl_skillneurons.neurons.overlap import Overlap, overlap_beside_chance
from tl_skillneurons.neurons.set_files import KIND, read_set, write_set

SITE = "mlp.hook_post"
"""The hook point, below ``blocks.{layer}.``, whose coordinates are the neurons: the input of the MLP's output
projection. For a gated MLP it is ``act(gate) * up``. Every artifact records it, for other tools call other
things neurons."""


@dataclass(frozen=True, eq=False, repr=False, init=False)
class NeuronSet:
    """MLP neurons of one model; ``layer[i]`` and ``index[i]`` name neuron ``i``.

    The order is kept as given (``NeuronScores.top`` puts the best first) but is not part of what the set is:
    two sets are equal when they hold the same neurons of models of the same shape.

    Attributes:
        layer: Layer of each neuron; integers in any form become an int64 tensor on the CPU, a copy of what was given.
        index: Index within the layer, likewise.
        n_layers: Layers of the model the set belongs to, if known.
        d_mlp: Neurons per layer of that model, if known; where layers differ a tuple with each layer's own number.
        model: The model's name, kept for the record; compared with nothing.
        choice: Which examples chose it, by which score, where that is known; compared with nothing. What is measured
            on these examples is refused, or marked.

    Raises:
        TypeError: When layers or indices are not integers (a bool is not one).
        ValueError: When they differ in number, name a neuron twice, or name one outside the model.

    Example:
        >>> skill = NeuronSet([2, 0, 2], [7, 3, 1], n_layers=4, d_mlp=10)
        >>> skill.counts_per_layer(), (2, 7) in skill
        ({0: 1, 2: 2}, True)
        >>> skill.random_like(seed=0).counts_per_layer()
        {0: 1, 2: 2}
    """

    layer: Int[Tensor, " neuron"]
    index: Int[Tensor, " neuron"]
    n_layers: int | None
    d_mlp: Width | None
    model: str | None
    choice: Choice | None

    def __init__(
        self,
        layer: Int[Tensor, " neuron"] | Iterable[SupportsIndex],
        index: Int[Tensor, " neuron"] | Iterable[SupportsIndex],
        n_layers: int | None = None,
        d_mlp: Width | None = None,
        model: str | None = None,
        choice: Choice | None = None,
    ) -> None:
        # written out because it takes lists, while the fields are always tensors
        fields = {
            "layer": integers(layer, "layer"),
            "index": integers(index, "index"),
            "n_layers": None if n_layers is None else require_int(n_layers, "n_layers"),
            "d_mlp": None if d_mlp is None else require_width(d_mlp),
            "model": model,
            "choice": choice,
        }
        for name, value in fields.items():
            object.__setattr__(self, name, value)
        if len(self.layer) != len(self.index):
            counts = f"{len(self.layer)} layers and {len(self.index)} indices"
            raise ValueError(f"layer and index must name one neuron each, got {counts}")
        require_inside(self.layer, self.index, self.n_layers, self.d_mlp)
        require_distinct(self)

    @classmethod
    def from_pairs(
        cls,
        pairs: Iterable[Sequence[SupportsIndex]],
        *,
        n_layers: int | None = None,
        d_mlp: Width | None = None,
        model: str | None = None,
        choice: Choice | None = None,
    ) -> "NeuronSet":
        """The neurons in a list of ``(layer, index)``, in its order; those of a ``set`` by layer and index."""
        return cls(*layers_and_indices(pairs), n_layers, d_mlp, model, choice)

    @classmethod
    def from_mask(cls, mask: Bool[Tensor, "layer neuron"], *, model: str | None = None) -> "NeuronSet":
        """The neurons where ``mask`` is true, by layer and index; the mask's shape is the model's."""
        layer, index = require_mask(mask).nonzero(as_tuple=True)
        return cls(layer, index, n_layers=mask.shape[0], d_mlp=mask.shape[1], model=model)

    def mask(self, n_layers: int | None = None, d_mlp: Width | None = None) -> Bool[Tensor, "layer neuron"]:
        """True at the set's neurons, ``[n_layers, d_mlp]``; the set's own shape unless it has none. Where layers differ
        it is as wide as the widest.

        Raises:
            ValueError: When nobody says the shape, or it contradicts the set.
        """
        n_layers, d_mlp = self._shape(n_layers, d_mlp)
        if n_layers is None or d_mlp is None:
            missing = " and ".join(n for n, v in (("n_layers", n_layers), ("d_mlp", d_mlp)) if v is None)
            raise ValueError(f"the set doesn't know its model's {missing}; give mask(n_layers, d_mlp)")
        mask = torch.zeros(n_layers, widest(d_mlp), dtype=torch.bool)
        mask[self.layer, self.index] = True
        return mask

    def require_fits(self, n_layers: int, d_mlp: Width) -> None:
        """Refuse a model, or values, of another shape than the set's own, or too small for its neurons.

        Raises:
            ValueError: Otherwise.
        """
        self._shape(n_layers, d_mlp)

    def of_model(self, model: Any) -> "NeuronSet":
        """The set as one of this model's: it knows the model's shape and name.

        Args:
            model: Anything with ``blocks[layer].mlp.W_out`` of shape ``[d_mlp, d_model]``: a TransformerBridge.

        Raises:
            ValueError: When the model's shape contradicts the set or no layer has a single output projection.
        """
        n_layers, d_mlp = self._shape(*shape_of_blocks(model))
        name = getattr(model.cfg, "model_name", None)
        return NeuronSet(self.layer, self.index, n_layers, d_mlp, name or self.model, self.choice)

    def by_layer(self) -> dict[int, Int[Tensor, " neuron"]]:
        """Layer -> indices of its neurons, in the set's order; lowest layer first, empty ones left out."""
        return {layer: self.index[self.layer == layer] for layer in self.layer.unique().tolist()}

    def counts_per_layer(self) -> dict[int, int]:
        """Layer -> how many of the set's neurons it has; lowest layer first, empty ones left out."""
        return {layer: len(index) for layer, index in self.by_layer().items()}

    def complement(self, n_layers: int | None = None, d_mlp: Width | None = None) -> "NeuronSet":
        """All other neurons of the model, ordered by layer and index; see :meth:`mask` for its shape."""
        others = ~self.mask(n_layers, d_mlp)
        n_layers, d_mlp = self._shape(n_layers, d_mlp)
        assert n_layers is not None and d_mlp is not None  # for type checkers: mask refuses
        layer, index = (others & present(n_layers, d_mlp)).nonzero(as_tuple=True)
        return NeuronSet(layer, index, n_layers, d_mlp, self.model)

    def first_per_layer(self, n: int) -> "NeuronSet":
        """The first ``n`` neurons of each layer that has any, in the set's order.

        Raises:
            ValueError: When one of these layers has fewer.
        """
        require_int(n, "n")
        return self._part(first_of_each(list(self), dict.fromkeys(self.by_layer(), n)))

    def nested(self, amounts: Sequence[float | int], d_mlp: Width | None = None) -> dict[str, "NeuronSet"]:
        """The first of each layer, in several sizes: ``str(amount)`` -> set, each within the next larger one.

        Args:
            amounts: A float is a share of a layer's neurons (rounded down), an integer a count.
            d_mlp: Neurons per layer, for a set that doesn't know.

        Raises:
            ValueError: Without amounts, when an amount is no neuron or more than a layer of the set has, or when
                ``d_mlp`` is unknown.

        Example:
            >>> best_first = NeuronSet([0, 0, 0, 1, 1, 1], [5, 2, 9, 4, 0, 7], n_layers=2, d_mlp=10)
            >>> {size: list(some) for size, some in best_first.nested([1, 0.2]).items()}
            {'1': [(0, 5), (1, 4)], '0.2': [(0, 5), (0, 2), (1, 4), (1, 0)]}
        """
        if not len(amounts):
            raise ValueError("amounts must hold at least one size, got none; the set itself is the whole")
        _, width = self._shape(None, d_mlp)
        if width is None:
            raise ValueError("the set doesn't know its model's d_mlp; give nested(amounts, d_mlp)")
        sizes = {layer: in_layer(width, layer) for layer in self.by_layer()}

        def first(amount: float | int) -> "NeuronSet":
            wanted = {layer: selection_size(amount, n, per="layer") for layer, n in sizes.items()}
            return self._part(first_of_each(list(self), wanted))

        return {str(amount): first(amount) for amount in amounts}

    def overlap(self, other: "Neurons", *, d_mlp: Width | None = None) -> Overlap:
        """How much two sets share, and how much sets of their sizes per layer share by luck.

        Args:
            d_mlp: Neurons per layer, where neither set knows.

        Raises:
            ValueError: For empty sets, sets of different models, or when nobody knows ``d_mlp``.

        Example:
            >>> one, other = (NeuronSet([0, 0], index, n_layers=1, d_mlp=4) for index in ([0, 1], [1, 2]))
            >>> found = one.overlap(other)
            >>> found.n_shared, round(found.chance_shared, 3), round(found.p_value, 3)
            (1, 1.0, 0.833)
        """
        shared = self & (other := as_neurons(other))
        _, width = shared._shape(None, d_mlp)
        if width is None:
            raise ValueError("neither set knows its model's d_mlp; give overlap(other, d_mlp=...)")
        if not len(self) or not len(other):
            raise ValueError(f"both sets must hold neurons, got {len(self)} and {len(other)}")
        return overlap_beside_chance(len(shared), self.counts_per_layer(), other.counts_per_layer(), width)

    def random_like(
        self,
        seed: int,
        *,
        d_mlp: Width | None = None,
        n_layers: int | None = None,
        exclude: bool = True,
        match: Float[Tensor, "layer neuron"] | Float[Tensor, "quantity layer neuron"] | None = None,
        n_nearest: int = 20,
        among: Bool[Tensor, "layer neuron"] | None = None,
    ) -> "NeuronSet":
        """Equally many random neurons of each layer: the control for whatever is done to this set.

        Neuron ``i`` of the result stands for neuron ``i`` of this set, in its layer. Equal sets get the same control by
        the same seed, in whatever order theirs are.

        Args:
            seed: Feeds a generator of its own; the caller's random state stays as it is.
            d_mlp: Neurons per layer, for a set that doesn't know.
            n_layers: Layers, likewise; needed only for the result to know its shape.
            exclude: Whether this set's neurons may not be drawn.
            match: A number for every neuron, e.g. the mean absolute activation, or several. Each stand-in is then drawn
                uniformly among the ``n_nearest`` that come nearest in it (of several: in ranks within the layer).
            n_nearest: Fewer match better and vary less from seed to seed.
            among: Which neurons may be drawn; all without.

        Raises:
            ValueError: When a layer has too few neurons to draw from, when ``d_mlp`` is unknown, or when ``match`` has
                another shape or holds a number that is not finite.
        """
        seed = require_seed(seed)
        n_nearest = require_int(n_nearest, "n_nearest")
        if match is not None:
            known = self._shape(n_layers, d_mlp)
            match = finite_match(match, *known)
            n_layers, d_mlp = match.shape[-2], known[1] or match.shape[-1]
        n_layers, d_mlp = self._shape(n_layers, d_mlp)
        if d_mlp is None:
            raise ValueError("the set doesn't know its model's d_mlp; give random_like(seed, d_mlp=...)")
        drawn = draw_like(
            self.layer,
            self.index,
            d_mlp,
            seed=seed,
            exclude=exclude,
            match=match,
            n_nearest=n_nearest,
            among=among,
        )
        return NeuronSet(self.layer, drawn, n_layers=n_layers, d_mlp=d_mlp, model=self.model)

    def to_json(self, path: str | os.PathLike[str]) -> Path:
        """Write the set to a file that a person can read, whole or not at all; returns its path.

        ``layers`` lists the neurons of each layer in ascending order, ``ranked`` all ``[layer, index]`` in
        the set's order.
        """
        shape = {"n_layers": self.n_layers, "d_mlp": self.d_mlp, "model": self.model}
        return write_set(path, self, site=SITE, shape=shape, choice=self.choice)

    @classmethod
    def from_json(cls, path: str | os.PathLike[str]) -> "NeuronSet":
        """The set that :meth:`to_json` wrote.

        Raises:
            FileNotFoundError: When there is no such file.
            ValueError: When the file is corrupt, holds something else, or contradicts itself.
        """
        pairs, known = read_set(path, SITE)
        with sound(path, KIND):
            return cls.from_pairs(pairs, **known)

    def to_dataframe(self) -> pd.DataFrame:
        """One row per neuron in the set's order, with columns ``layer`` and ``index``."""
        return pd.DataFrame({"layer": self.layer.tolist(), "index": self.index.tolist()}, dtype="int64")

    def __len__(self) -> int:
        return len(self.layer)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return zip(self.layer.tolist(), self.index.tolist(), strict=True)

    def __contains__(self, pair: Sequence[SupportsIndex]) -> bool:
        layer, index = map(int, pair)
        return bool(((self.layer == layer) & (self.index == index)).any())

    @overload
    def __getitem__(self, place: int) -> tuple[int, int]: ...

    @overload
    def __getitem__(self, place: slice) -> "NeuronSet": ...

    def __getitem__(self, place: int | slice) -> "tuple[int, int] | NeuronSet":
        """A neuron's ``(layer, index)``; of a slice the set of these neurons, chosen as this one was."""
        pairs = list(self)
        return self._part(pairs[place]) if isinstance(place, slice) else pairs[place]

    def __or__(self, other: "Neurons") -> "NeuronSet":
        own, other = set(self), as_neurons(other)
        return self._like(other, [*self, *(pair for pair in other if pair not in own)])

    def __and__(self, other: "Neurons") -> "NeuronSet":
        others = set(other := as_neurons(other))
        return self._like(other, [pair for pair in self if pair in others])

    def __sub__(self, other: "Neurons") -> "NeuronSet":
        others = set(other := as_neurons(other))
        left = self._like(other, [pair for pair in self if pair not in others])
        return self._part(left, left.n_layers, left.d_mlp)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, NeuronSet):
            return NotImplemented
        return (self.n_layers, self.d_mlp, set(self)) == (other.n_layers, other.d_mlp, set(other))

    def __hash__(self) -> int:
        return hash((self.n_layers, self.d_mlp, frozenset(self)))

    def __repr__(self) -> str:
        first = ", ".join(map(str, islice(self, 3)))
        more = ", ..." if len(self) > 3 else ""
        width = said(self.d_mlp)
        shape = (
            f"n_layers={self.n_layers}, d_mlp={f'({width})' if ' ' in width else width}, model={self.model!r}"
        )
        return f"NeuronSet({len(self)} neurons: [{first}{more}], {shape})"

    def _repr_html_(self) -> str:
        return html_of(self)

    def _shape(self, n_layers: int | None, d_mlp: Width | None) -> tuple[int | None, Width | None]:
        """The model's shape, from the set or the caller, who may not contradict each other or the neurons."""
        shape = one_shape((self.n_layers, self.d_mlp), (n_layers, d_mlp))
        require_inside(self.layer, self.index, *shape)
        return shape

    def _like(self, other: "NeuronSet", pairs: Iterable[tuple[int, int]]) -> "NeuronSet":
        """``pairs`` as a set of the model that both sets belong to."""
        n_layers, d_mlp = one_shape((self.n_layers, self.d_mlp), (other.n_layers, other.d_mlp))
        model = self.model if self.model == other.model else None
        choice = joint(self.choice, other.choice)
        return NeuronSet.from_pairs(pairs, n_layers=n_layers, d_mlp=d_mlp, model=model, choice=choice)

    def _part(
        self, pairs: Iterable[tuple[int, int]], n_layers: int | None = None, d_mlp: Width | None = None
    ) -> "NeuronSet":
        """Some of its own neurons, chosen as it was."""
        n_layers, d_mlp = n_layers or self.n_layers, d_mlp or self.d_mlp
        return NeuronSet.from_pairs(
            pairs, n_layers=n_layers, d_mlp=d_mlp, model=self.model, choice=self.choice
        )


Neurons: TypeAlias = NeuronSet | Iterable[Sequence[SupportsIndex]]
"""Neurons as every function takes them: a set, or plain pairs ``(layer, index)`` in a list, a set or an array."""


def as_neurons(neurons: Neurons) -> NeuronSet:
    """The set itself, or that of plain pairs, of which nobody knows the model's shape or what chose them.

    Raises:
        TypeError: For what is no set of neurons and no pairs of integers.
    """
    return neurons if isinstance(neurons, NeuronSet) else NeuronSet.from_pairs(neurons)
