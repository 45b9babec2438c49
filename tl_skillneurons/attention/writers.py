"""Which heads bring the label to chosen neurons: decompositions averaged over a task.

For each example ``x``, what head ``h`` writes into neuron ``n``, ``c_hn(x)``: its pre-activation, or of gated MLPs its
activation (:mod:`~tl_skillneurons.attention.decomposition`), is averaged over the prompt positions. A head
*separates* the labels at a neuron by::

    separation_hn = mean of c_hn(x) over label 1  -  mean of c_hn(x) over label 0

The null deals the labels out anew to the examples' units (:mod:`~tl_skillneurons.stats.units`), the same for all heads
and neurons; the family-wise p-value compares with the largest difference, in standard deviations, of all of them
(Westfall and Young, 1993). This chooses heads, so it looks at ``select``, and its heads remember what chose them.
Neurons that ``select`` chose hold its labels further apart than other examples', and so do the heads that write into
them: the table says where the neurons were chosen.

What it does not show: that the model needs the head (ablate it), nor where the head got it from beyond the
position it read (:mod:`~tl_skillneurons.attention.sources` tells the positions). Control: the same for random neurons
of the same layers, ``neurons.random_like(seed)``.
"""

import os
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from tl_skillneurons._checks import require_int, require_seed
from tl_skillneurons._files import load_tensors, save_tensors, sound
from tl_skillneurons._pictures import plotted
from tl_skillneurons._progress import progress_bar
from tl_skillneurons._results import html_of, one_line
from tl_skillneurons.attention._over_task import POSITIONS, decomposed, settings_of, small_batches
from tl_skillneurons.attention.chosen import ChosenHeads
from tl_skillneurons.attention.projections import projection_of
from tl_skillneurons.neurons.choice import THESE, UNKNOWN, Choice, require_apart, text_fingerprints
from tl_skillneurons.neurons.neuron_set import SITE, Neurons, NeuronSet, as_neurons
from tl_skillneurons.prompts.prompted_model import PromptedModel
from tl_skillneurons.prompts.run import RunOptions, require_tuned_for
from tl_skillneurons.prompts.soft_prompt import SoftPrompt
from tl_skillneurons.stats.hypothesis_tests import LabelDifference, permutation_difference
from tl_skillneurons.stats.intervals import bootstrap_counts, bootstrap_ends, bootstrap_mean
from tl_skillneurons.stats.units import Units
from tl_skillneurons.tasks.subtasks import against_rest
from tl_skillneurons.tasks.task import Task
from tl_skillneurons.tasks.two_classes import require_class

_PARTS = ("heads", "mlps", "embed")


@dataclass(frozen=True, eq=False)
class HeadWriters:
    """What every head and MLP writes into chosen neurons, example by example, averaged over prompt positions.

    Attributes:
        neurons: In the order of the axis ``neuron``.
        heads, mlps, embed: Contributions to what ``settings["projection"]`` names, in its own units.
        labels: Class of each example: 1 for the class that is told from the others, 0 for these.
        role: Where the examples come from, which choose the heads.
        units: Which examples belong together; labels are permuted and examples resampled by them.
        texts: A fingerprint of each example's text.
        settings: Model, task, prompt, ``max_length``, projection, neuron site, frame of positions, permutations and
            their seed, the unit and how many there are, where the neurons were chosen.

    Example:
        >>> writers = skn.attention.head_writers(model, prompt, task, skill)
        >>> writers.top_heads(3)
    """

    neurons: NeuronSet
    heads: Float[Tensor, "example neuron layer head"]
    mlps: Float[Tensor, "example neuron layer"]
    embed: Float[Tensor, "example neuron"]
    labels: Int[Tensor, " example"]
    role: str
    units: Units
    texts: tuple[str, ...]
    settings: dict[str, Any]

    @cached_property
    def separation(self) -> LabelDifference:
        """Each head's difference of class means at each neuron, ``[neuron, layer, head]``, with its null."""
        seed, n_draws = self.settings["seed"], self.settings["n_permutations"]
        return permutation_difference(
            self._by_neuron, self.labels, n_draws=n_draws, seed=seed, units=self.units
        )

    def top_heads(self, n: int = 10) -> ChosenHeads:
        """The heads that separate the labels most: by the absolute difference, averaged over the neurons.

        They remember which examples chose them, and :func:`head_effects` refuses to measure them on these.
        """
        strength = self.separation.difference.abs().mean(0)
        order = strength.flatten().argsort(descending=True, stable=True)[: require_int(n, "n")]
        n_heads = strength.shape[1]
        heads = tuple((int(i) // n_heads, int(i) % n_heads) for i in order)
        return ChosenHeads(heads, self.role, frozenset(self.texts))

    def to_dataframe(self, *, confidence: float = 0.95, seed: int = 0) -> pd.DataFrame:
        """One row per head, strongest first.

        Columns: ``layer``, ``head``; ``difference``, the absolute difference of class means averaged over the
        neurons; ``share``, of the sum over all heads (NaN where none separates the labels at all);
        ``n_significant``, the neurons at which it is beyond the family-wise 5 % level; and of the neuron where it
        separates most ``neuron_layer``, ``neuron_index``, ``at_most`` with its bootstrap interval over units (of each
        class where a unit has one label), and its ``p_family``;
        ``neurons_chosen`` "on these examples", on which separations are too large, "on other examples" or "unknown".
        """
        require_seed(seed)
        found = self.separation
        strength = found.difference.abs().mean(0)
        best = found.difference.abs().argmax(0)
        low, high = self._interval(confidence, seed)
        whole = float(strength.sum()) or torch.nan
        rows = []
        for layer, head in self.top_heads(strength.numel()):
            at = int(best[layer, head])
            rows.append(
                {
                    "layer": layer,
                    "head": head,
                    "difference": float(strength[layer, head]),
                    "share": float(strength[layer, head]) / whole,
                    "n_significant": int((found.p_family[:, layer, head] <= 0.05).sum()),
                    "neuron_layer": int(self.neurons.layer[at]),
                    "neuron_index": int(self.neurons.index[at]),
                    "at_most": float(found.difference[at, layer, head]),
                    "low": float(low[at, layer, head]),
                    "high": float(high[at, layer, head]),
                    "p_family": float(found.p_family[at, layer, head]),
                }
            )
        return pd.DataFrame(rows).assign(neurons_chosen=self.settings.get("neurons_chosen", UNKNOWN))

    @property
    def _by_neuron(self) -> Float[Tensor, "neuron layer head example"]:
        return rearrange(self.heads, "example neuron layer head -> neuron layer head example")

    def _interval(self, confidence: float, seed: int) -> tuple[Tensor, Tensor]:
        """Of the difference. Where a unit has one label, each class's mean has its bootstrap interval and half-widths
        add in quadrature; otherwise both classes' means are of the same drawn units."""
        values = self._by_neuron
        rows = [(self.labels == c).nonzero().flatten() for c in (0, 1)]
        means = [values[..., own].double().mean(-1) for own in rows]
        difference = means[1] - means[0]
        if set(self.units.member[rows[0]].tolist()) & set(self.units.member[rows[1]].tolist()):
            return self._interval_of_shared_units(confidence, seed)
        ends = [
            bootstrap_mean(values[..., own], confidence=confidence, seed=seed + c, units=self.units.take(own))
            for c, own in enumerate(rows)
        ]
        down = ((means[1] - ends[1][0]).square() + (ends[0][1] - means[0]).square()).sqrt()
        up = ((ends[1][1] - means[1]).square() + (means[0] - ends[0][0]).square()).sqrt()
        return difference - down, difference + up

    def _interval_of_shared_units(self, confidence: float, seed: int) -> tuple[Tensor, Tensor]:
        """By draws of units; one without an example of each class has no difference and is left out."""
        generator = torch.Generator().manual_seed(seed)
        counts = bootstrap_counts(len(self.labels), 2000, generator, units=self.units)
        weights = [counts * (self.labels == c) for c in (0, 1)]
        usable = (weights[0].sum(1) > 0) & (weights[1].sum(1) > 0)
        share = [weight[usable] / weight[usable].sum(1, keepdim=True) for weight in weights]
        drawn = self._by_neuron.double() @ (share[1] - share[0]).T
        flat = rearrange(drawn, "neuron layer head draw -> (neuron layer head) draw")
        rows = rearrange(self._by_neuron.double(), "neuron layer head example -> (neuron layer head) example")
        own = [(self.labels == c).double() / int((self.labels == c).sum()) for c in (0, 1)]
        of_class = [(rows - (rows @ weight)[:, None]) * weight for weight in own]
        pulls = of_class[1] - of_class[0]
        low, high = bootstrap_ends(flat, confidence, self.units, rows @ (own[1] - own[0]), pulls)
        return low.reshape(drawn.shape[:-1]), high.reshape(drawn.shape[:-1])

    def __repr__(self) -> str:
        n_examples, n_neurons, n_layers, n_heads = self.heads.shape
        shape = {"n_neurons": n_neurons, "n_layers": n_layers, "n_heads": n_heads, "n_examples": n_examples}
        units = f"{len(self.units)} ({self.units.what})"
        chosen = {"neurons_chosen": THESE} if self.settings.get("neurons_chosen") == THESE else {}
        told = {"role": self.role, "units": units, "projection": self.settings["projection"]}
        return one_line(self, **shape, **told, **chosen)

    def _repr_html_(self) -> str:
        return html_of(self)

    plot = plotted("plot_heads")

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the result to one safetensors file, whole or not at all."""
        neurons = {name: getattr(self.neurons, name) for name in ("n_layers", "d_mlp", "model")}
        neurons["pairs"] = [list(pair) for pair in self.neurons]
        neurons["choice"] = None if self.neurons.choice is None else self.neurons.choice.record
        header = {"neurons": neurons, "role": self.role, "settings": self.settings}
        header |= {"unit": self.units.what, "texts": list(self.texts)}
        tensors = {name: getattr(self, name) for name in (*_PARTS, "labels")} | {"units": self.units.member}
        if self.units.pair is not None:
            tensors["pairs"] = self.units.pair
        if self.neurons.choice is not None and self.neurons.choice.score is not None:
            tensors["score"] = self.neurons.choice.score
        return save_tensors(path, "HeadWriters", tensors, header)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "HeadWriters":
        """The result that :meth:`save` wrote.

        Raises:
            FileNotFoundError: When there is no such file.
            ValueError: When the file is corrupt or holds something else.
        """
        tensors, header = load_tensors(path, "HeadWriters")
        with sound(path, "HeadWriters"):
            neurons = dict(header["neurons"])
            pairs = [(layer, index) for layer, index in neurons.pop("pairs")]
            kept = {name: tensors[name] for name in (*_PARTS, "labels")}
            choice = Choice.recorded(neurons.pop("choice"))
            choice = None if choice is None else replace(choice, score=tensors.get("score"))
            known = NeuronSet.from_pairs(pairs, **neurons, choice=choice)
            units = Units(tensors["units"], header["unit"], tensors.get("pairs"))
            texts = tuple(header["texts"])
            if not len(texts) == units.n_examples == len(kept["labels"]):
                raise ValueError(
                    f"it tells {len(texts)} texts, {units.n_examples} units' and {len(kept['labels'])} labels"
                )
            return cls(
                known, **kept, role=header["role"], units=units, texts=texts, settings=header["settings"]
            )


def head_writers(
    model: TransformerBridge,
    prompt: SoftPrompt,
    task: Task,
    neurons: Neurons,
    *,
    projection: str | None = None,
    role: str = "select",
    n_permutations: int = 1000,
    seed: int = 0,
    max_length: int | None = None,
    class_id: int | None = None,
    run: RunOptions = RunOptions(),
) -> HeadWriters:
    """Decompose ``neurons`` over all examples of ``role``.

    Keeps ``examples * neurons * layers * heads`` numbers.

    Args:
        projection: "pre", or of a gated MLP "up" or "post" (:func:`~tl_skillneurons.attention.decompose`); by default
            "post" of gated MLPs, whose gate alone may not know the label, and "pre" of others.
        role: Whose examples choose; heads chosen on ``report`` can't be measured there.
        max_length: Longest sequence in tokens; by default what the prompt was tuned with.
        class_id: The class that is told from all others, which are then one; must be said of more than two.
        run: Without a limit of its own, batches hold 512 tokens.

    Raises:
        ValueError: For a task of more than two classes without a ``class_id``, too few units for so many permutations,
            or what a decomposition refuses.

    Example:
        >>> writers = skn.attention.head_writers(model, prompt, task, skill)
        >>> control = skn.attention.head_writers(model, prompt, task, skill.random_like(0))
    """
    neurons = as_neurons(neurons)
    require_seed(seed)
    chosen = require_class(task, class_id)
    require_int(n_permutations, "n_permutations")
    require_tuned_for(prompt, task)
    prompted = PromptedModel(model, prompt, max_length=max_length, run=small_batches(run))
    projection = projection_of(model, neurons, projection)
    split = task.split(role)
    texts, units = list(split["text"]), task.units(role)
    labels = against_rest(torch.tensor(split["label"]), chosen)
    units.permuted(labels, 1)  # refuses labels of no other order before anything runs
    rows: dict[str, list[Tensor]] = {name: [] for name in _PARTS}
    order: list[int] = []
    with progress_bar(f"who writes, on {role}", len(texts), show=run.progress) as advance:
        for batch, parts in decomposed(prompted, texts, neurons, projection, by_source=False):
            order += batch
            for name, kept in rows.items():
                kept.append(getattr(parts, name).mean(1).cpu())
            advance(len(batch))
    back = torch.tensor(order).argsort()
    joined = {name: torch.cat(kept)[back] for name, kept in rows.items()}
    settings = settings_of(
        prompted,
        task,
        site=SITE,
        positions=POSITIONS,
        projection=projection,
        n_cut=prompted.n_truncated(texts),
        neurons_chosen=require_apart(
            neurons.choice, texts, insist=True, by=""
        ),  # it chooses, so it may look there
        n_permutations=n_permutations,
        seed=seed,
        unit=units.what,
        n_units=len(units),
        smallest_p=max(units.smallest_p(labels), 1 / (1 + n_permutations)),
        **({} if class_id is None else {"class_id": chosen}),
    )
    return HeadWriters(
        neurons,
        **joined,
        labels=labels,
        role=role,
        units=units,
        texts=tuple(text_fingerprints(texts)),
        settings=settings,
    )
