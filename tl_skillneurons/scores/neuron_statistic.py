"""One score of every neuron, whatever it measures, with its null, its selection and its file."""

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from tl_skillneurons._checks import require_option
from tl_skillneurons._files import load_tensors, save_tensors, sound
from tl_skillneurons._pictures import plotted
from tl_skillneurons._results import html_of, without_layers
from tl_skillneurons._widths import Width, width_in
from tl_skillneurons.neurons.neuron_set import SITE, NeuronSet
from tl_skillneurons.scores.directions import agreement_of, common_direction, direction_columns
from tl_skillneurons.scores.null import PermutationNull
from tl_skillneurons.scores.selection import called_significant, every_neuron, top_neurons
from tl_skillneurons.scores.units_said import said_of, unit_of

KIND = "NeuronStatistic"
AGGREGATES = ("mean", "min")


@dataclass(frozen=True, eq=False)
class NeuronStatistic:
    """A signed score of every neuron at every position, for each prompt of a set; 0 says no relation.

    From :func:`~tl_skillneurons.scores.score_labels`, :func:`~tl_skillneurons.scores.score_targets` or
    :func:`~tl_skillneurons.scores.score_gradients`.

    Attributes:
        name: What was measured (:mod:`~tl_skillneurons.scores.kinds`, :mod:`~tl_skillneurons.scores.gradients`).
        values: The score; positive where a high activation goes with a high target or with label 1.
        n_examples: Examples it was measured on.
        role: Where they come from.
        positions: What the position axis holds, as in :class:`~tl_skillneurons.NeuronScores`.
        aggregate: How prompts are combined, "mean" or "min".
        null: What permuted targets reach, where it was asked for.
        site: The hook point whose coordinates are the neurons.
        provenance: Plain JSON values: model, task, prompts, target, settings.

    Example:
        >>> auc = skn.scores.score_labels(model, prompts, task, ["auc"])["auc"]
        >>> auc.top(0.02)
    """

    name: str
    values: Float[Tensor, "prompt layer position neuron"]
    n_examples: int
    role: str
    positions: str = "prompt"
    aggregate: str = "mean"
    null: PermutationNull | None = None
    site: str = SITE
    provenance: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        require_option(self.aggregate, "aggregate", AGGREGATES)
        if self.null is not None:
            self.null.require_shape(self.n_prompts, self.n_layers, self.values.shape[3])

    def __repr__(self) -> str:
        n_prompts, n_layers, n_positions, d_mlp = self.values.shape
        return (
            f"NeuronStatistic({self.name}, {n_prompts} prompts, {n_layers} layers x {d_mlp} neurons, {n_positions} "
            f"positions ({self.positions}), {self.n_examples} examples of {self.role}{said_of(self.provenance)}"
            f"{without_layers(self)})"
        )

    def _repr_html_(self) -> str:
        return html_of(self)

    plot = plotted("plot_scores")

    @property
    def n_prompts(self) -> int:
        """Prompts of the set; the bare text counts as one."""
        return self.values.shape[0]

    @property
    def n_layers(self) -> int:
        """Layers of the model."""
        return self.values.shape[1]

    @property
    def d_mlp(self) -> Width:
        """Neurons per layer; each layer's own number where they differ."""
        return width_in(self.values[0, :, 0])

    @property
    def score(self) -> Float[Tensor, "layer neuron"]:
        """The absolute value at each prompt's best position, combined over prompts: what ranks the neurons."""
        best = self.values.abs().amax(2)
        return best.mean(0) if self.aggregate == "mean" else best.amin(0)

    @property
    def direction(self) -> Int[Tensor, "layer neuron"]:
        """+1 where a high activation goes with a high target or label 1 at every prompt's best position, -1 where it
        goes with a low one at each, and 0 where prompts disagree."""
        return common_direction(self.direction_by_prompt)

    @property
    def direction_by_prompt(self) -> Int[Tensor, "prompt layer neuron"]:
        """Each prompt's direction at its best position: +1 where a high activation goes with a high target, else -1."""
        where = self.values.abs().argmax(2, keepdim=True)
        return torch.where(self.values.gather(2, where)[:, :, 0] >= 0, 1, -1)

    @property
    def direction_agreement(self) -> Float[Tensor, "layer neuron"]:
        """Share of the prompts that has the more frequent direction, in [0.5, 1]; at 1 there is one direction."""
        return agreement_of(self.direction_by_prompt)

    def top(self, amount: float | int, *, per: str = "layer") -> NeuronSet:
        """The neurons of highest score, as :meth:`NeuronScores.top`."""
        return top_neurons(self.score, amount, per=per, model=self._model, chose=self.provenance.get("chose"))

    def significant(self, alpha: float = 0.05, *, correction: str = "family") -> NeuronSet:
        """The neurons whose score luck does not explain, as :meth:`NeuronScores.significant`.

        Raises:
            ValueError: Without a permutation null, or with too few permutations for ``alpha``.
        """
        if self.null is None:
            raise ValueError(f"this {self.name} has no permutation null; measure it with n_permutations=1000")
        chose = self.provenance.get("chose")
        return called_significant(self.score, self.null, alpha, correction, model=self._model, chose=chose)

    @property
    def _model(self) -> str | None:
        return self.provenance.get("model", {}).get("name")

    def to_dataframe(self) -> pd.DataFrame:
        """One row per neuron: layer, index, score, direction (0 where prompts disagree; of several prompts also each
        one's, and their agreement); with a null ``p_family``, ``p_value``, ``q_value``."""
        layer, index = every_neuron(self.n_layers, self.d_mlp)
        frame = pd.DataFrame(
            {
                "layer": layer.numpy(),
                "index": index.numpy(),
                self.name: self.score[layer, index].numpy(),
                "direction": self.direction[layer, index].numpy(),
            }
        )
        frame = frame.assign(**direction_columns(self.direction_by_prompt[:, layer, index]))
        frame = frame if self.null is None else frame.assign(**self.null.columns())
        frame.attrs.update(unit_of(self.provenance))
        return frame

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the score to one safetensors file, whole or not at all."""
        tensors = {"values": self.values} | ({} if self.null is None else self.null.tensors())
        header = {
            "name": self.name,
            "site": self.site,
            "frame": "with virtual tokens" if self.positions == "prompt" else "the text's own tokens",
            "axes": ["prompt", "layer", "position", "neuron"],
            "roles": {self.role: self.n_examples},
            "positions": self.positions,
            "aggregate": self.aggregate,
            "null": None if self.null is None else self.null.record(),
            "provenance": self.provenance,
        }
        return save_tensors(path, KIND, tensors, header)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "NeuronStatistic":
        """The score that :meth:`save` wrote.

        Raises:
            FileNotFoundError: When there is no such file.
            ValueError: When the file is corrupt, holds something else, or was measured at another site.
        """
        tensors, header = load_tensors(path, KIND)
        if header.get("site") != SITE:
            raise ValueError(f"{path} was measured at {header.get('site')}, this package measures at {SITE}")
        with sound(path, KIND):
            [(role, n_examples)] = header["roles"].items()
            null = header["null"]
            return cls(
                name=header["name"],
                values=tensors["values"],
                n_examples=n_examples,
                role=role,
                positions=header["positions"],
                aggregate=header["aggregate"],
                null=None if null is None else PermutationNull.of_tensors(tensors, **null),
                site=header["site"],
                provenance=header["provenance"],
            )
