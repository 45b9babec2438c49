"""What evaluating rules (:mod:`~tl_skillneurons.scores.rules`) gives: of every neuron, or of chosen ones.

An accuracy on examples that chose a neuron, its position or its direction flatters it; both say where that is so.
"""

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
from jaxtyping import Float, Int
from torch import Tensor

from tl_skillneurons._files import (
    FORMAT,
    load_tensors,
    package_version,
    read_json,
    save_tensors,
    sound,
    write_json,
)
from tl_skillneurons._results import html_of, without_layers
from tl_skillneurons._widths import width_in
from tl_skillneurons.neurons.choice import THESE, UNKNOWN, require_unlike
from tl_skillneurons.neurons.neuron_set import SITE, Neurons, NeuronSet, as_neurons
from tl_skillneurons.scores.selection import every_neuron
from tl_skillneurons.scores.tallies import accuracy_at

ALL_RULES, RULE_ACCURACY = "AllRules", "RuleAccuracy"
_PLAIN = (
    "mean",
    "low",
    "high",
    "role",
    "n_examples",
    "seed",
    "unit",
    "n_units",
    "about",
    "neurons_chosen",
    "provenance",
)


@dataclass(frozen=True, eq=False)
class AllRules:
    """Accuracy of every neuron's rule on examples that did not choose it.

    Attributes:
        accuracy: Of "above the threshold means label 1" at every position; below one half it speaks for label 0.
        position: The position that ``select`` chose for each neuron and prompt.
        direction: The rule's direction there, as ``select`` chose it: +1 or -1.
        role, n_examples: Where the examples come from, and how many there are.
        positions: What the position axis holds, as in :class:`~tl_skillneurons.NeuronScores`.
        provenance: That of the scores: model, task, prompts, settings.
        texts: A fingerprint of each example's text, by which a set says whether they chose it; empty where unknown.

    Example:
        >>> rules = skn.scores.evaluate_rules(model, prompts, task, scores)
        >>> rules.accuracy_of(skill).mean(), rules.accuracy_of(skill.random_like(0)).mean()
    """

    accuracy: Float[Tensor, "prompt layer position neuron"]
    position: Int[Tensor, "prompt layer neuron"]
    direction: Int[Tensor, "prompt layer neuron"]
    role: str
    n_examples: int
    positions: str = "prompt"
    provenance: dict[str, Any] = field(default_factory=dict)
    texts: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        n_prompts, n_layers, n_positions, d_mlp = self.accuracy.shape
        for name in ("position", "direction"):
            if getattr(self, name).shape != (n_prompts, n_layers, d_mlp):
                raise ValueError(
                    f"{name} must be [prompt, layer, neuron] = {[n_prompts, n_layers, d_mlp]} as accuracy is, got "
                    f"{list(getattr(self, name).shape)}"
                )
        at = self.position
        if at.numel() and not 0 <= int(at.min()) <= int(at.max()) < n_positions:
            raise ValueError(f"position must be in [0, {n_positions}), where accuracy has values")

    def __repr__(self) -> str:
        n_prompts, n_layers, n_positions, d_mlp = self.accuracy.shape
        return (
            f"AllRules({n_prompts} prompts, {n_layers} layers x {d_mlp} neurons, {n_positions} positions "
            f"({self.positions}), {self.n_examples} examples of {self.role}"
            f"{without_layers(self)})"
        )

    def _repr_html_(self) -> str:
        return html_of(self)

    def where_chosen(self, neurons: Neurons, *, on_chosen_examples: bool = False) -> str:
        """Where a set was chosen, seen from these examples: "on other examples", "on these examples" or "unknown".

        Raises:
            ValueError: When these examples chose it, unless ``on_chosen_examples`` insists.
        """
        insist, by = on_chosen_examples, "on_chosen_examples=True"
        return require_unlike(as_neurons(neurons).choice, sorted(self.texts), insist=insist, by=by)

    def accuracy_of(self, neurons: Neurons, *, on_chosen_examples: bool = False) -> Float[Tensor, " chosen"]:
        """Accuracy of each neuron's rule, the mean over prompts, in the order of ``neurons``; in [0, 1].

        Args:
            on_chosen_examples: Measure a set though some of these examples chose it, which flatters it.

        Raises:
            ValueError: For neurons outside the model, or a set that these examples chose, unless the caller insists.
        """
        neurons = as_neurons(neurons)
        self.where_chosen(neurons, on_chosen_examples=on_chosen_examples)
        return accuracy_at(self.accuracy, self.position, self.direction, neurons)

    def to_dataframe(self) -> pd.DataFrame:
        """One row per neuron: layer, index, accuracy of its rule (mean over prompts), role, and whether it chose."""
        n_layers, d_mlp = self.accuracy.shape[1], width_in(self.accuracy[0, :, 0])
        layer, index = every_neuron(n_layers, d_mlp)
        accuracy = self.accuracy_of(NeuronSet(layer, index, n_layers=n_layers, d_mlp=d_mlp))
        return pd.DataFrame(
            {
                "layer": layer.numpy(),
                "index": index.numpy(),
                "accuracy": accuracy.numpy(),
                "role": self.role,
                "chose_them": self.role == "select",
            }
        )

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the rules to one safetensors file, whole or not at all."""
        tensors = {"accuracy": self.accuracy, "position": self.position, "direction": self.direction}
        header = {
            "site": SITE,
            "axes": ["prompt", "layer", "position", "neuron"],
            "roles": {self.role: self.n_examples},
            "positions": self.positions,
            "provenance": self.provenance,
            "texts": sorted(self.texts),
        }
        return save_tensors(path, ALL_RULES, tensors, header)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "AllRules":
        """The rules that :meth:`save` wrote.

        Raises:
            FileNotFoundError: When there is no such file.
            ValueError: When the file is corrupt, holds something else, or was measured at another site.
        """
        tensors, header = load_tensors(path, ALL_RULES)
        if header.get("site") != SITE:
            raise ValueError(f"{path} was measured at {header.get('site')}, this package measures at {SITE}")
        with sound(path, ALL_RULES):
            [(role, n_examples)] = header["roles"].items()
            return cls(
                **{name: tensors[name] for name in ("accuracy", "position", "direction")},
                role=role,
                n_examples=n_examples,
                positions=header["positions"],
                provenance=header["provenance"],
                texts=frozenset(header.get("texts", ())),
            )


@dataclass(frozen=True, eq=False)
class RuleAccuracy:
    """Accuracy of a set's rules, averaged over prompts; bootstrap intervals over units, and over enough prompts.

    Attributes:
        mean: Of all neurons of the set.
        low, high: Its 95 % interval.
        table: A row per neuron: ``layer``, ``index``, ``direction`` (0 where prompts disagree; of several prompts also
            each one's, and their agreement), ``on_select`` (too good), ``accuracy``, ``low``, ``high``.
        role, n_examples: Where the examples come from, and how many there are.
        seed: Of the bootstrap.
        unit, n_units: What was resampled, and how many of them there were.
        about: What other prompts and examples the intervals speak for.
        neurons_chosen: "on these examples", on which they look better than they are, "on other examples" or "unknown".
        provenance: That of the scores, with how many texts of ``role`` were cut.

    Example:
        >>> print(skn.scores.evaluate_rules(model, prompts, task, scores, skill))
        61 neurons: 0.741 (0.715 to 0.768) on 872 examples of report, 0.752 on select, which chose them
    """

    mean: float
    low: float
    high: float
    table: pd.DataFrame
    role: str
    n_examples: int
    seed: int = 0
    unit: str = "text"
    n_units: int | None = None
    about: str = ""
    neurons_chosen: str = UNKNOWN
    provenance: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        here = ", some of which chose them" if self.neurons_chosen == THESE else ""
        return (
            f"{len(self.table)} neurons: {self.mean:.3f} ({self.low:.3f} to {self.high:.3f}) on {self.n_examples} "
            f"examples of {self.role}{here}, {self.table.on_select.mean():.3f} on select, which chose them"
        )

    def __repr__(self) -> str:
        about = f"; intervals speak for {self.about}" if self.about else ""
        chosen = f"; neurons chosen {THESE}" if self.neurons_chosen == THESE else ""
        return f"RuleAccuracy({self}{about}{chosen})"

    def _repr_html_(self) -> str:
        return html_of(self)

    def to_dataframe(self) -> pd.DataFrame:
        """The table, role, whether it chose the rules (``chose_them``), where neurons were chosen; ``attrs``: units."""
        told: dict[str, Any] = {"chose_them": self.role == "select", "neurons_chosen": self.neurons_chosen}
        frame = self.table.assign(role=self.role, **told)
        frame.attrs.update(unit=self.unit, n_units=self.n_units, about=self.about)
        return frame

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write it as JSON, whole or not at all."""
        content = {"kind": RULE_ACCURACY, "format": FORMAT, "package_version": package_version()}
        content |= {name: getattr(self, name) for name in _PLAIN}
        return write_json(path, {**content, "table": self.table.to_dict("list")})

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "RuleAccuracy":
        """What :meth:`save` wrote.

        Raises:
            FileNotFoundError: When there is no such file.
            ValueError: When the file is no JSON, or holds something else.
        """
        content = read_json(path, RULE_ACCURACY)
        with sound(path, RULE_ACCURACY):
            return cls(table=pd.DataFrame(content["table"]), **{name: content[name] for name in _PLAIN})
