"""How stable is a neuron set: would another prompt, other examples, or a neighbour have done as well?

Three questions, for any set, ours or one written by hand::

    prompts:   rho(predictivity under prompt i, under prompt j),  and Jaccard of their tops
    examples:  Jaccard(top of resampled select, set)              over bootstrap samples of select
    twins:     max over neurons m outside of |r(a_n, a_m)|        of each neuron n, over examples

- **Prompts**. Do prompts of other seeds rank the neurons alike? Spearman's correlation of predictivities over all
  neurons, and what the tops of two prompts share (as many per layer as the set has).
- **Examples**. Is the set found again when the examples of ``select`` are resampled? The Jaccard similarity of the
  resampled top with the set, by the bootstrap of units; the prompts and thresholds stay.
- **Twins**. Does a neuron outside the set say the same? Of each neuron the largest correlation, in absolute value,
  with any neuron outside, over examples, activations averaged over the positions of the first prompt; and the same
  for random neurons of the same layers.

What it does not show: stability is not truth. A set can be found again each time and matter nowhere. Controls: the best
of thousands agree by themselves, whatever the labels mean, and have neighbours that say the same, so all three stand
beside the same of what permuted labels choose (:mod:`~tl_skillneurons.studies.permuted_stability`), never beside
independent sets; the third also beside random neurons.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from tl_skillneurons._checks import require_int, require_seed
from tl_skillneurons._results import html_of, one_line
from tl_skillneurons._widths import even
from tl_skillneurons.models.sites import neuron_shape
from tl_skillneurons.neurons.neuron_set import Neurons, NeuronSet, as_neurons
from tl_skillneurons.prompts.activations import neuron_activations
from tl_skillneurons.prompts.run import RunOptions, as_list
from tl_skillneurons.prompts.soft_prompt import SoftPrompt
from tl_skillneurons.scores.measured import require_measured_here
from tl_skillneurons.scores.neuron_scores import NeuronScores
from tl_skillneurons.scores.null import combine
from tl_skillneurons.scores.outcomes import RuleOutcomes, count_right
from tl_skillneurons.scores.predictivity import score_neurons
from tl_skillneurons.stats.ranks import spearman
from tl_skillneurons.studies._common import load_tables, save_tables, settings_of
from tl_skillneurons.studies.permuted_stability import (
    StabilityNull,
    pairs_of,
    permuted_stability,
    share_as_large,
)
from tl_skillneurons.tasks.task import Task

KIND = "Diagnosis"
_MOST_LOOKED_AT = 100  # neurons of each permutation's top whose neighbours are looked for


@dataclass(frozen=True, eq=False)
class Diagnosis:
    """How stable a neuron set is.

    Attributes:
        prompts: A row per pair of prompts: ``spearman`` and ``jaccard`` of their tops, each with its mean under
            permuted labels (``null_...``) and how often these agree as much (``p_...``). Empty for a single prompt.
        jaccard: Similarity of the set with the top of each bootstrap sample of ``select``.
        null: A row per permutation of labels: ``spearman`` and ``jaccard`` of two prompts (mean over pairs);
            ``bootstrap``, how far the permuted labels' own top is found again; and ``twins``, the median correlation of
            this top's neurons with the nearest one outside it (of 100 of them, evenly, where there are more).
        twins: A row per neuron: its nearest neuron outside the set and their ``correlation`` over ``select``, and
            ``random``, the same for the random neuron that stands for it.
        n_examples: Examples of ``select``.
        settings: Model, task, prompts, neurons, ``max_length`` and settings, as plain JSON values.

    Example:
        >>> skn.studies.diagnose(model, prompts, task, skill, scores=scores).to_dataframe()
    """

    prompts: pd.DataFrame
    jaccard: Float[Tensor, " draw"]
    null: pd.DataFrame
    twins: pd.DataFrame
    n_examples: int
    settings: dict[str, Any] = field(default_factory=dict)

    def __repr__(self) -> str:
        return one_line(
            self,
            n_neurons=len(self.twins),
            n_prompt_pairs=len(self.prompts),
            jaccard=float(self.jaccard.mean()),
            null_jaccard=float(self.null.bootstrap.mean()),
            twin_correlation=float(self.twins.correlation.abs().median()),
            n_examples=self.n_examples,
        )

    def _repr_html_(self) -> str:
        return html_of(self)

    def to_dataframe(self) -> pd.DataFrame:
        """One row per question: ``value``, its range (``low``, ``high``), its ``control``, ``p_value`` if it has one.

        Of prompts the mean and range over pairs, of the bootstrap the mean and 95 % interval, of twins the median and
        quartiles, all beside their mean under ``n_permutations`` permutations of the labels and how often these come up
        to them; of twins ``random`` is the median of random neurons.
        """
        rows = []

        def add(name: str, value: float, low: float, high: float, **more: float) -> None:
            rows.append({"quantity": name, "value": value, "low": low, "high": high, **more})

        def beside(value: float, drawn: str) -> dict[str, float]:
            """The middle of the null, and how often it comes up to the value."""
            null = self.null[drawn].to_numpy()
            return {"control": float(null.mean()), "p_value": share_as_large(value, null)}

        if len(self.prompts):
            rho, shared = self.prompts.spearman, self.prompts.jaccard
            of_rho, of_shared = beside(rho.mean(), "spearman"), beside(shared.mean(), "jaccard")
            add("prompts: Spearman of predictivity", rho.mean(), rho.min(), rho.max(), **of_rho)
            add("prompts: Jaccard of the tops", shared.mean(), shared.min(), shared.max(), **of_shared)
        low, high = self.jaccard.quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
        again = float(self.jaccard.mean())
        add("examples: bootstrap Jaccard", again, low, high, **beside(again, "bootstrap"))
        size = self.twins.correlation.abs()
        low, high = float(size.quantile(0.25)), float(size.quantile(0.75))
        few = float(size.iloc[_evenly(len(size)).tolist()].median())
        random = float(self.twins.random.abs().median())
        add(
            "twins: correlation outside",
            float(size.median()),
            low,
            high,
            **beside(few, "twins"),
            random=random,
        )
        frame = pd.DataFrame(
            rows, columns=["quantity", "value", "low", "high", "control", "p_value", "random"]
        )
        return frame.assign(role="select", n_examples=self.n_examples, n_permutations=len(self.null))

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the diagnosis to one JSON file, whole or not at all."""
        whole = pd.DataFrame({"n_examples": [self.n_examples]})
        draws = pd.DataFrame({"jaccard": self.jaccard.numpy()})
        tables = {"prompts": self.prompts, "draws": draws, "twins": self.twins}
        tables |= {"null": self.null, "whole": whole}
        return save_tables(path, KIND, self.settings, tables)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "Diagnosis":
        """The diagnosis that :meth:`save` wrote.

        Raises:
            FileNotFoundError: When there is no such file.
            ValueError: When the file is corrupt or holds something else.
        """
        tables, settings = load_tables(path, KIND, ("prompts", "draws", "twins", "null", "whole"))
        jaccard = torch.tensor(tables["draws"].jaccard.to_numpy())
        n = int(tables["whole"].n_examples[0])
        return cls(tables["prompts"], jaccard, tables["null"], tables["twins"], n, settings)


def diagnose(
    model: TransformerBridge,
    prompts: SoftPrompt | Sequence[SoftPrompt] | None,
    task: Task,
    neurons: Neurons,
    *,
    scores: NeuronScores | None = None,
    n_bootstrap: int = 200,
    n_permutations: int = 99,
    seed: int = 0,
    max_length: int | None = None,
    run: RunOptions = RunOptions(),
) -> Diagnosis:
    """Look at a neuron set from all three sides, on role ``select``.

    Args:
        scores: Of these prompts on this task, with their outcomes (``score_neurons(..., keep_outcomes=True)``);
            measured here otherwise; give them for readings of the bare text, where ``prompts`` is ``None``.
        n_bootstrap: Bootstrap samples.
        n_permutations: Permutations of the labels, or as many as so few units allow.
        seed: Of the bootstrap, the permutations and the random neurons.
        max_length: Longest sequence in tokens; by default what the prompts were tuned with. It must be what the
            scores were measured with.

    Raises:
        ValueError: For an empty set, neurons of another model, or scores that don't go with task, prompts and
            ``max_length``.

    Example:
        >>> found = skn.studies.diagnose(model, prompts, task, skill, scores=scores)
        >>> found.to_dataframe()[["quantity", "value", "control"]]
    """
    neurons = as_neurons(neurons)
    neurons = neurons.of_model(model)
    even(neuron_shape(model)[1], "a diagnosis")
    if not len(neurons):
        raise ValueError("neurons must hold at least one neuron, got none")
    require_int(n_bootstrap, "n_bootstrap")
    require_int(n_permutations, "n_permutations")
    require_seed(seed)
    if scores is None:
        scores = score_neurons(model, prompts, task, keep_outcomes=True, max_length=max_length, run=run)
    measured = scores.provenance.get("task", {}).get("fingerprint", task.fingerprint)
    if scores.outcomes is None or measured != task.fingerprint:
        what = "kept no outcomes" if scores.outcomes is None else "are of another task"
        raise ValueError(f"these scores {what}; score this task with keep_outcomes=True, or give none")
    require_measured_here(scores, model, prompts, task=task, max_length=max_length)
    texts = list(task.split("select")["text"])
    first, *_ = chosen = as_list(prompts)
    acts = neuron_activations(
        model, first, texts, positions=scores.positions, max_length=max_length, run=run, chat=task.chat
    )
    jaccard = bootstrap_jaccard(
        scores.outcomes,
        neurons,
        n_draws=n_bootstrap,
        seed=seed,
        aggregate=scores.aggregate,
        class_id=scores.class_id,
    )
    null = permuted_stability(
        scores.outcomes,
        neurons.counts_per_layer(),
        n_permutations=n_permutations,
        seed=seed,
        aggregate=scores.aggregate,
        class_id=scores.class_id,
    )
    twins = nearest_outside(acts, neurons)
    # one draw, neuron by neuron: each stand-in is another neuron, and no rank p-value is made of them
    twins["random"] = nearest_outside(acts, neurons.random_like(seed)).correlation
    settings = settings_of(
        model,
        task,
        chosen,
        neurons=list(neurons),
        positions=scores.positions,
        max_length=scores.provenance.get("max_length"),
        n_bootstrap=n_bootstrap,
        unit=scores.outcomes.units.what,
        n_units=len(scores.outcomes.units),
        n_permutations=len(null.bootstrap),
        seed=seed,
    )
    return Diagnosis(
        prompts=agreement(scores, neurons, null),
        jaccard=jaccard,
        null=null.to_dataframe().assign(twins=_nearest_by_luck(acts, null)),
        twins=twins,
        n_examples=len(texts),
        settings=settings,
    )


def agreement(scores: NeuronScores, neurons: Neurons, null: StabilityNull) -> pd.DataFrame:
    """Of each pair of prompts: how alike they rank all neurons, and what their tops share, beside permuted labels.

    The tops have as many neurons of each layer as ``neurons``.
    """
    neurons = as_neurons(neurons)
    each = scores.predictivity_by_prompt
    counts = neurons.counts_per_layer()
    tops = [_top_of_layers(score, counts) for score in each]
    rows = []
    for number, (one, other) in enumerate(pairs_of(len(each))):
        shared = tops[one].overlap(tops[other])
        found = {"spearman": spearman(each[one].flatten(), each[other].flatten()), "jaccard": shared.jaccard}
        row: dict[str, float] = {"one": one, "other": other, "n_shared": shared.n_shared, **found}
        for name, drawn in (("spearman", null.spearman[:, number]), ("jaccard", null.jaccard[:, number])):
            row |= {
                f"null_{name}": float(drawn.mean()),
                f"p_{name}": share_as_large(found[name], drawn.numpy()),
            }
        rows.append(row)
    return pd.DataFrame(rows)


def bootstrap_jaccard(
    outcomes: RuleOutcomes,
    neurons: Neurons,
    *,
    n_draws: int = 200,
    seed: int = 0,
    aggregate: str = "mean",
    class_id: int = 1,
) -> Float[Tensor, " draw"]:
    """How much of the set each resampling of the examples finds again, by tops with as many per layer.

    What belongs together (twins, groups: ``outcomes.units``) is resampled together.
    """
    neurons = as_neurons(neurons)
    require_int(n_draws, "n_draws")
    generator = torch.Generator().manual_seed(require_seed(seed))
    weights = outcomes.units.weights(n_draws, generator)
    labels = (outcomes.labels == class_id).long().expand(n_draws, -1)
    n_layers = outcomes.above.shape[2]
    d_mlp = even(outcomes.d_mlp, "resampling a set")
    scores = torch.empty(n_draws, n_layers, d_mlp)
    for layer, chunk, counted in count_right(outcomes, weights, labels):
        best = torch.stack([right.abs_().amax(1) for right in counted])
        scores[:, layer, chunk] = combine(best, aggregate)
    mask = neurons.mask(n_layers, d_mlp)
    shared = torch.zeros(n_draws, dtype=torch.int64)
    for layer, count in neurons.counts_per_layer().items():
        top = scores[:, layer].argsort(dim=1, descending=True, stable=True)[:, :count]
        shared += mask[layer][top].sum(1)
    return shared.double() / (2 * len(neurons) - shared)


def nearest_outside(acts: Float[Tensor, "example layer neuron"], neurons: Neurons) -> pd.DataFrame:
    """Of each neuron the one outside the set that goes most with it, up or down, and their correlation.

    Constant neurons correlate with nothing: 0. Memory: ``chosen * neurons of a layer`` numbers.
    """
    neurons = as_neurons(neurons)
    n_layers, d_mlp = acts.shape[1:]
    own = _standard(acts[:, neurons.layer, neurons.index])
    best = torch.zeros(len(neurons), dtype=torch.float64)
    place = torch.zeros(2, len(neurons), dtype=torch.int64)
    inside = neurons.mask(n_layers, d_mlp)
    for layer in range(n_layers):
        r = own.T @ _standard(acts[:, layer])
        r[:, inside[layer]] = 0
        found, index = r.abs().max(1)
        nearer = found > best.abs()
        best[nearer] = r.gather(1, index[:, None])[nearer, 0]
        place[0, nearer], place[1, nearer] = layer, index[nearer]
    return pd.DataFrame(
        {
            "layer": neurons.layer.numpy(),
            "index": neurons.index.numpy(),
            "nearest_layer": place[0].numpy(),
            "nearest_index": place[1].numpy(),
            "correlation": best.clamp(-1, 1).numpy(),
        }
    )


def _nearest_by_luck(
    acts: Float[Tensor, "example layer neuron"], null: StabilityNull
) -> NDArray[np.floating]:
    """Of each permutation's own top the median correlation, up or down, with the nearest neuron outside it."""
    if null.tops is None or not len(null.tops):
        return np.zeros(0)
    places = [top.nonzero() for top in null.tops]
    some = torch.stack([place[_evenly(len(place))] for place in places])  # equally many of each
    own = [_standard(acts[:, draw[:, 0], draw[:, 1]]).float() for draw in some]
    best = torch.zeros(some.shape[:2])
    for layer in range(acts.shape[1]):
        others = _standard(acts[:, layer]).float()
        for draw, values in enumerate(own):
            r = (values.T @ others).abs_()
            r[:, null.tops[draw, layer]] = 0
            best[draw] = best[draw].maximum(r.amax(1))
    return best.double().quantile(0.5, dim=1).clamp(max=1).numpy()


def _evenly(n: int) -> Int[Tensor, " place"]:
    """At most :data:`_MOST_LOOKED_AT` of ``n`` places, evenly."""
    return torch.linspace(0, n - 1, min(n, _MOST_LOOKED_AT)).round().long()


def _standard(values: Float[Tensor, "example neuron"]) -> Float[Tensor, "example neuron"]:
    wide = values.double()
    wide = wide - wide.mean(0)
    length = wide.norm(dim=0)
    constant = length <= 1e-7 * values.double().norm(dim=0)
    return wide / torch.where(constant, torch.inf, length)


def _top_of_layers(score: Float[Tensor, "layer neuron"], counts: dict[int, int]) -> NeuronSet:
    order = score.argsort(dim=1, descending=True, stable=True)
    pairs = [(layer, index) for layer, count in counts.items() for index in order[layer, :count].tolist()]
    return NeuronSet.from_pairs(pairs, n_layers=score.shape[0], d_mlp=score.shape[1])
