"""Directions steered along in the neurons' place, each as far as the neurons go at the same dose.

In every layer that holds neurons of the set, at the same positions, a vector is added to all neurons of the layer::

    a' = a + sign * norm[dose, layer] * u[layer]

with ``u`` a direction of length 1 (:mod:`~tl_skillneurons.studies.steering.directions`) and ``norm`` the mean Euclidean
norm, over the positions that were steered, of what the chosen neurons' intervention changed there at this dose: both
move the input of the output projection equally far. ``sign`` is that of the dose: toward the class where it is above
the dose that changes nothing, else away from it.
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from tl_skillneurons._files import fingerprint
from tl_skillneurons.interventions.references import Reference, reference_rows
from tl_skillneurons.models.hooks import Hook
from tl_skillneurons.models.sites import neuron_shape
from tl_skillneurons.neurons.choice import Choice, text_fingerprints
from tl_skillneurons.neurons.neuron_set import NeuronSet
from tl_skillneurons.prompts.positions import ActsAt, columns
from tl_skillneurons.stats.units import Units
from tl_skillneurons.studies.steering.curve import Key, Values, rows_of
from tl_skillneurons.studies.steering.directions import Directions, Vectors, directions_in, random_directions
from tl_skillneurons.studies.steering.equal_price import PRICE, Path, compare_paths
from tl_skillneurons.studies.steering.measures import CLASS
from tl_skillneurons.studies.steering.options import SteeringOptions
from tl_skillneurons.studies.steering.writing import Judged
from tl_skillneurons.tasks.task import Task

RANDOM = "random direction"
"""What stands beside every direction: one drawn even in all directions, in the same layers and as long."""

Norms = Mapping[tuple[str, int], Mapping[int, float]]
"""By a set's name and the number of a dose, how far the intervention goes in each layer."""


@dataclass(frozen=True, eq=False)
class Push:
    """A vector added to all neurons of a layer, as a hook function.

    Attributes:
        vector: As long as the layer is wide.
        positions: Where.
    """

    vector: Float[Tensor, " neuron"]
    positions: str

    @property
    def told(self) -> str:
        """What it does, for records."""
        return f"push of length {float(self.vector.norm()):g}"

    @property
    def digest(self) -> str:
        """The same for pushes that do the same, in files."""
        return hashlib.sha256(f"push {self.positions} {fingerprint(self.vector)}".encode()).hexdigest()

    def __call__(
        self, act: Float[Tensor, "batch pos neuron"], hook: Any
    ) -> Float[Tensor, "batch pos neuron"]:
        here = columns(self.positions, act, hook)
        return torch.where(here[..., None], act + self.vector.to(act), act)


def pushes(vectors: Vectors, lengths: Mapping[int, float], sign: int, positions: str) -> list[Hook]:
    """Hooks that add each layer's direction at its length; none of length 0."""
    return [
        (
            f"blocks.{layer}.mlp.hook_post",
            ActsAt(positions, Push(sign * lengths[layer] * unit, positions)),
        )
        for layer, unit in vectors.items()
        if lengths[layer] and unit.any()
    ]


def choice_of(task: Task, options: SteeringOptions) -> Choice:
    """What directions are fitted on, so that nobody measures them on it unawares."""
    texts = task.split(options.reference)["text"]
    rows = reference_rows(task, options.reference, options.n_reference).tolist()
    return Choice(options.reference, frozenset(text_fingerprints(texts[row] for row in rows)))


@dataclass(frozen=True, eq=False)
class Rivals:
    """What is steered along in the place of sets of neurons.

    Attributes:
        directions: By the rival's name, in every layer that any of the sets has neurons in.
        random: By a set's name its random directions, draw by draw.
        layers: By a set's name the layers that it has neurons in.
        signs: Of every dose: 1 toward the class, -1 away from it.
        positions: Where.
        toward: The class.
    """

    directions: Mapping[str, Directions]
    random: Mapping[str, Sequence[Vectors]]
    layers: Mapping[str, Sequence[int]]
    signs: Sequence[int]
    positions: str
    toward: int

    @classmethod
    def of(
        cls,
        model: TransformerBridge,
        task: Task,
        sets: Mapping[str, NeuronSet],
        reference: Reference,
        doses: Sequence[float],
        toward: int,
        n_random: int,
        options: SteeringOptions,
    ) -> "Rivals":
        """The directions that were asked for, fitted on reference examples, and random ones."""
        _, width = neuron_shape(model)
        rows = reference_rows(task, options.reference, options.n_reference)
        fit = {"toward": toward, "seed": options.seed}
        units = task.units(options.reference).take(rows)
        layers = {name: sorted(one.by_layer()) for name, one in sets.items()}
        every = sorted(set().union(*layers.values()))
        directions = {
            name: directions_in(reference, units, width, every, name, **fit) for name in options.rival_names
        }
        random = {name: random_directions(own, width, n_random, options.seed) for name, own in layers.items()}
        signs = [1 if dose >= options.neutral else -1 for dose in doses]
        return cls(directions, random, layers, signs, options.positions, toward)

    def __len__(self) -> int:
        """How many ways there are to write at each dose of each set."""
        return len(self.directions) + len(next(iter(self.random.values())))

    def hooks(
        self, name: str, dose: int, norms: Mapping[int, float]
    ) -> Iterator[tuple[Key, str, list[Hook]]]:
        """Every rival of a set at a dose, and the random directions: the key, what a file calls it, and the hooks.

        Args:
            norms: How far to go in each layer.
        """
        sign = self.signs[dose]
        way = f"{'+' if sign > 0 else '-'}, {name}"
        for rival, one in self.directions.items():
            vectors = {layer: one.vectors[layer] for layer in self.layers[name]}
            condition = f"{rival} of class {self.toward} {way}"
            yield (name, dose, rival, 0), condition, pushes(vectors, norms, sign, self.positions)
        for draw, vectors in enumerate(self.random[name]):
            condition = f"{RANDOM} {draw} {way}"
            yield (name, dose, RANDOM, draw), condition, pushes(vectors, norms, sign, self.positions)

    def notes(self, role: str, n_reference: int) -> list[str]:
        """What a reader of the rivals' numbers must know, in words."""
        found = []
        for name, one in self.directions.items():
            auc = sorted(one.auc.values())
            reads = f"; held-out ROC area {auc[0]:.2f} to {auc[-1]:.2f} over {len(auc)} layers" if auc else ""
            found.append(
                f"{name}: over all neurons of a layer, fitted on {n_reference} texts of {role!r}{reads}"
            )
        return found


@dataclass(frozen=True)
class Beside:
    """What rivals did beside the neurons: rows of :attr:`SteeringCurve.rivals`, of what each draw gave, and of
    :attr:`SteeringCurve.comparison`, and what the settings say."""

    rivals: list[dict[str, Any]]
    draws: list[dict[str, Any]]
    comparison: list[dict[str, Any]]
    settings: dict[str, Any]

    @classmethod
    def of(
        cls,
        judged: Judged,
        rivals: Rivals,
        norms: Norms,
        of_neurons: Mapping[tuple[str, float], bool],
        doses: Sequence[float],
        units: Units,
        options: SteeringOptions,
    ) -> "Beside":
        """The same from what was measured of every answer.

        Args:
            of_neurons: Of a set and a dose, whether it leaves its controls' range.
        """
        rows, draws = _rival_rows(judged, rivals, norms, doses, units, options.seed)
        fell = {(name, "chosen", dose): one for (name, dose), one in of_neurons.items()}
        fell |= {(row["set"], row["rival"], row["dose"]): row["collapse"] for row in rows}
        compared = _comparison_rows(judged, rivals, fell, doses, units, options)
        told = {
            "rivals": {name: {"auc": one.auc} for name, one in rivals.directions.items()},
            "norms": {
                name: {f"{dose:g}": norms[name, k] for k, dose in enumerate(doses)} for name in rivals.layers
            },
        }
        return cls(rows, draws, compared, told)


def _rival_rows(
    judged: Judged, rivals: Rivals, norms: Norms, doses: Sequence[float], units: Units, seed: int
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """A row per set, rival, dose and measure, and what each draw gave."""
    rows: list[dict[str, Any]] = []
    draws: list[dict[str, Any]] = []
    random: list[dict[str, Any]] = []
    number = {dose: k for k, dose in enumerate(doses)}
    for rival in rivals.directions:
        beside = {
            (name, dose, "chosen" if kind == rival else "random", draw): values
            for (name, dose, kind, draw), values in judged.rivals.items()
            if kind in (rival, RANDOM)
        }
        found, drawn = rows_of(judged.untouched, beside, doses, units, seed, kinds=("random",))
        for row in found:
            far = norms[row["set"], number[row["dose"]]].values()
            rows.append({"set": row["set"], "rival": rival, **row, "norm": sum(far) / len(far)})
        draws += [row | {"neurons": rival} for row in drawn if row["neurons"] == "chosen"]
        random = [row | {"neurons": RANDOM} for row in drawn if row["neurons"] == "random"]  # of all rivals
    return rows, draws + random


def _comparison_rows(
    judged: Judged,
    rivals: Rivals,
    collapse: Mapping[tuple[str, str, float], bool],
    doses: Sequence[float],
    units: Units,
    options: SteeringOptions,
) -> list[dict[str, Any]]:
    """What neurons and each rival change at equal perplexity, of each set and way.

    Args:
        collapse: Of a set, "chosen" or a rival, and a dose, whether it leaves its controls' range.
    """
    order = sorted(
        (k for k, dose in enumerate(doses) if dose != options.neutral),
        key=lambda k: abs(doses[k] - options.neutral),
    )
    rows: list[dict[str, Any]] = []
    for name in rivals.layers:
        for way, sign in (("toward", 1), ("away", -1)):
            numbers = [k for k in order if rivals.signs[k] == sign]
            if not numbers:
                continue

            def path(
                values: Mapping[Key, Values], kind: str, name: str = name, numbers: list[int] = numbers
            ) -> Path:
                points = [judged.untouched, *(values[name, k, kind, 0] for k in numbers)]
                fell = [collapse[name, kind, doses[k]] for k in numbers]
                return Path([doses[k] for k in numbers], points, fell)

            measures = {one: sign if one == CLASS else 0 for one in judged.untouched if one != PRICE}
            for rival in rivals.directions:
                neurons, direction = path(judged.neurons, "chosen"), path(judged.rivals, rival)
                compared = compare_paths(neurons, direction, measures, units, seed=options.seed)
                rows += [{"set": name, "rival": rival, "way": way, **row} for row in compared]
    return rows
