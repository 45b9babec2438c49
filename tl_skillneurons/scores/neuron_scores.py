"""Scores of predictivity as a result: what each neuron's rule got right, for selection, controls and files.

The equation stands in :mod:`~tl_skillneurons.scores.predictivity`. Of a task with more classes, each class has scores
of its own: "label 1" is that class, all others are label 0.

The best of hundreds of thousands of such scores is far above one half by luck. How far, permuted labels say
(``null``, :mod:`~tl_skillneurons.scores.null`), and an upper bound without them is
:meth:`NeuronScores.chance_level`. A predictive neuron need not be one that the model uses; ablation beside
random controls tells.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from tl_skillneurons._checks import differing, require_int, require_option, require_seed
from tl_skillneurons._files import load_tensors, save_tensors, sound
from tl_skillneurons._pictures import plotted
from tl_skillneurons._results import html_of, without_layers
from tl_skillneurons._widths import Width, width_in
from tl_skillneurons.neurons.neuron_set import SITE, Neurons, NeuronSet, as_neurons
from tl_skillneurons.scores.directions import agreement_of, common_direction, direction_columns
from tl_skillneurons.scores.null import PermutationNull, combine, permutation_null
from tl_skillneurons.scores.outcomes import RuleOutcomes
from tl_skillneurons.scores.selection import called_significant, every_neuron, top_neurons
from tl_skillneurons.scores.tallies import accuracy_at, best_positions
from tl_skillneurons.scores.units_said import said_of, unit_of
from tl_skillneurons.stats.chance import ChanceLevel, best_of_chance

KIND = "NeuronScores"
AGGREGATES = ("mean", "min")
_TENSORS = ("baseline", "std", "mean_abs", "correct")
_ONE_SET = ("n_baseline", "n_select", "class_counts", "positions", "site", "aggregate", "class_id")
_ONE_TASK = ("name", "label_names", "template", "label_words", "chat", "roles", "fingerprint")


@dataclass(frozen=True, eq=False)
class NeuronScores:
    """Thresholds and scores of every neuron at every scored position, for each prompt of a set.

    Attributes:
        baseline: Mean activation over role ``baseline``, the threshold.
        std, mean_abs: Its standard deviation and mean absolute value there.
        correct: On how many examples of role ``select`` the rule was right.
        n_baseline, n_select: Examples per role.
        class_counts: Examples of label 0 and of label 1 in ``select``.
        positions: What the position axis holds: ``"prompt"`` (the mask first, where there is one, then the
            virtual tokens), or one reading of the text's own tokens: ``"last"``, ``"mean"``, ``"max"``.
        site: The hook point, below ``blocks.{layer}.``, whose coordinates are the neurons.
        aggregate: How prompts are combined, ``"mean"`` (the paper) or ``"min"``.
        class_id: The class that counts as label 1.
        null: What permuted labels reach, where it was asked for.
        outcomes: Every rule's answer on every example of ``select``, where they were kept.
        provenance: Plain JSON values: model, task, prompts, settings; ``max_length`` is what texts were cut to.

    Example:
        >>> scores = skn.score_neurons(model, prompts, task)
        >>> skill = scores.top(0.02)
        >>> scores.accuracy_of(skill)
    """

    baseline: Float[Tensor, "prompt layer position neuron"]
    std: Float[Tensor, "prompt layer position neuron"]
    mean_abs: Float[Tensor, "prompt layer position neuron"]
    correct: Int[Tensor, "prompt layer position neuron"]
    n_baseline: int
    n_select: int
    class_counts: tuple[int, int]
    positions: str = "prompt"
    site: str = SITE
    aggregate: str = "mean"
    class_id: int = 1
    null: PermutationNull | None = None
    outcomes: RuleOutcomes | None = None
    provenance: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        require_option(self.aggregate, "aggregate", AGGREGATES)
        wanted = tuple(self.baseline.shape)
        for name in _TENSORS:
            if (shape := tuple(getattr(self, name).shape)) != wanted:
                raise ValueError(f"{name} must have the shape of baseline, {wanted}, got {shape}")

    def __repr__(self) -> str:
        n_prompts, n_layers, n_positions, d_mlp = self.baseline.shape
        return (
            f"NeuronScores({n_prompts} prompts, {n_layers} layers x {d_mlp} neurons, {n_positions} positions "
            f"({self.positions}), baseline {self.n_baseline} and select {self.n_select} examples"
            f"{said_of(self.provenance)}{without_layers(self)})"
        )

    def _repr_html_(self) -> str:
        return html_of(self)

    plot = plotted("plot_scores")

    @property
    def n_prompts(self) -> int:
        """Prompts of the set; the bare text counts as one."""
        return self.baseline.shape[0]

    @property
    def n_layers(self) -> int:
        """Layers of the model."""
        return self.baseline.shape[1]

    @property
    def d_mlp(self) -> Width:
        """Neurons per layer; each layer's own number where they differ."""
        return width_in(self.baseline[0, :, 0])

    @property
    def accuracy(self) -> Float[Tensor, "prompt layer position neuron"]:
        """Accuracy on ``select`` of "above the baseline means label 1"; below one half it speaks for label 0. NaN, as
        all scores, where a layer has no such neuron."""
        return (self.correct.double() / self.n_select).masked_fill(self._absent[:, None], torch.nan)

    @property
    def predictivity(self) -> Float[Tensor, "layer neuron"]:
        """Predictivity in [0.5, 1]: the best position of each prompt, combined over prompts."""
        best = best_positions(self.correct, self.n_select)[0]  # counts, so that equals stay equal
        n = self.n_select * (len(best) if self.aggregate == "mean" else 1)
        return (combine(best, self.aggregate).double() / n).masked_fill(self._absent, torch.nan)

    @property
    def predictivity_by_prompt(self) -> Float[Tensor, "prompt layer neuron"]:
        """The predictivity that each prompt alone gives."""
        best = best_positions(self.correct, self.n_select)[0].double() / self.n_select
        return best.masked_fill(self._absent, torch.nan)

    @property
    def direction(self) -> Int[Tensor, "layer neuron"]:
        """+1 where a high activation speaks for label 1 at every prompt's best position, -1 where it speaks for label 0
        at each, and 0 where prompts disagree."""
        return common_direction(self.direction_by_prompt)

    @property
    def direction_by_prompt(self) -> Int[Tensor, "prompt layer neuron"]:
        """Each prompt's direction at its best position: +1 where a high activation speaks for label 1, else -1."""
        return self.rules()[1]

    @property
    def direction_agreement(self) -> Float[Tensor, "layer neuron"]:
        """Share of the prompts that has the more frequent direction, in [0.5, 1]; at 1 there is one direction."""
        return agreement_of(self.direction_by_prompt)

    def mean_baseline(self, prompt: int = 0) -> Float[Tensor, "layer neuron"]:
        """Mean activation over ``baseline`` and over the prompt positions: what mean ablation holds neurons at."""
        return self._of(self.baseline, prompt)

    def mean_absolute(self, prompt: int = 0) -> Float[Tensor, "layer neuron"]:
        """Mean absolute activation, for controls matched on it (``NeuronSet.random_like(match=...)``)."""
        return self._of(self.mean_abs, prompt)

    def mean_std(self, prompt: int = 0) -> Float[Tensor, "layer neuron"]:
        """Standard deviation over ``baseline``, averaged over prompt positions: a unit for noise ablation."""
        return self._of(self.std, prompt)

    def _of(self, values: Tensor, prompt: int) -> Tensor:
        n_prompts = len(values)
        if not 0 <= require_int(prompt, "prompt", minimum=0) < n_prompts:
            raise ValueError(f"prompt must be in [0, {n_prompts}), got {prompt}")
        return values[prompt].mean(1)

    def top(self, amount: float | int, *, per: str = "layer") -> NeuronSet:
        """The neurons of highest predictivity, best first, the lowest layer and index first among equals.

        Args:
            amount: A share such as 0.02, of which int(share * neurons) are taken as in the paper, or an
                integer count.
            per: ``"layer"`` takes so many in each layer (the paper), ``"model"`` in the whole model.

        Raises:
            ValueError: When that is no neuron, or more than there are.
        """
        name = self.provenance.get("model", {}).get("name")
        return top_neurons(self.predictivity, amount, per=per, model=name, chose=self.provenance.get("chose"))

    def significant(self, alpha: float = 0.05, *, correction: str = "family") -> NeuronSet:
        """The neurons whose score luck does not explain, best first; the set may be empty.

        Args:
            alpha: With ``correction="family"`` the probability that any of them is there by luck (largest score
                under permuted labels; Westfall and Young); with ``"fdr"`` the expected share of them that is
                (Benjamini and Hochberg, by exact bounds: :mod:`~tl_skillneurons.scores.exact_tails`).

        Raises:
            ValueError: Without a permutation null, or with too few permutations for ``alpha``.
        """
        name = self.provenance.get("model", {}).get("name")
        chose = self.provenance.get("chose")
        return called_significant(self.predictivity, self._null(), alpha, correction, model=name, chose=chose)

    def with_null(self, n_permutations: int = 1000, *, seed: int = 0) -> "NeuronScores":
        """These scores with the permutation null that their kept outcomes give.

        Raises:
            ValueError: When no outcomes were kept, or the labels have too few orders.
        """
        require_seed(seed)
        if self.outcomes is None:
            raise ValueError(
                "these scores kept no outcomes to permute labels against; score with n_permutations=1000, or with "
                "keep_outcomes=True"
            )
        null = permutation_null(
            self.outcomes,
            n_permutations=n_permutations,
            seed=seed,
            aggregate=self.aggregate,
            class_id=self.class_id,
        )
        return replace(self, null=null)

    def _null(self) -> PermutationNull:
        if self.null is None:
            raise ValueError(
                "these scores have no permutation null; score with n_permutations=1000 "
                "(chance_level() is an upper bound without one)"
            )
        return self.null

    def chance_level(self, alpha: float = 0.05, *, per: str = "model") -> ChanceLevel:
        """What the best score reaches by luck, for all scores of the model or of one layer.

        An upper bound: it treats all positions, prompts and neurons as independent, and neurons are correlated. What
        belongs together counts as one example (units of unequal size as so many equal ones as vary alike).
        """
        require_option(per, "per", ("layer", "model"))
        n_scores = int((~self.baseline.isnan()).sum())
        if per == "layer":  # of the widest
            n_scores = self.baseline.numel() // self.n_layers
        share = max(self.class_counts) / sum(self.class_counts)
        n_examples = self.provenance.get("units", {}).get("n_effective", self.n_select)
        return best_of_chance(n_examples, n_scores, alpha=alpha, largest_class_share=share)

    def accuracy_of(self, neurons: Neurons) -> Float[Tensor, " chosen"]:
        """Accuracy on ``select`` of each neuron's rule, with the position and direction that ``select`` chose for each
        prompt: too good. :func:`~tl_skillneurons.scores.evaluate_rules` gives it on examples that chose nothing.

        Returns:
            The mean over prompts, in the order of ``neurons``.

        Raises:
            ValueError: For neurons outside the model.
        """
        neurons = as_neurons(neurons)
        return accuracy_at(self.accuracy, *self.rules(), neurons)

    def rules(self) -> tuple[Int[Tensor, "prompt layer neuron"], Int[Tensor, "prompt layer neuron"]]:
        """The position that ``select`` chose for each neuron and prompt, and the rule's direction there: +1 where
        "above" means label 1, -1 where it means label 0."""
        _, position, direction = best_positions(self.correct, self.n_select)
        return position, direction

    def to_dataframe(self) -> pd.DataFrame:
        """One row per neuron: layer, index, predictivity, direction (0 where prompts disagree), and the best position
        of the first prompt; of several prompts also ``direction_agreement``, the share of them that has the more
        frequent direction, and each prompt's, ``direction_0``, ``direction_1``, ...

        With a permutation null also ``p_family``, ``p_value`` (its own) and ``q_value``.
        """
        layer, index = every_neuron(self.n_layers, self.d_mlp)
        frame = pd.DataFrame(
            {
                "layer": layer.numpy(),
                "index": index.numpy(),
                "predictivity": self.predictivity[layer, index].numpy(),
                "direction": self.direction[layer, index].numpy(),
                "best_position": self.rules()[0][0, layer, index].numpy(),
            }
        )
        frame = frame.assign(**direction_columns(self.direction_by_prompt[:, layer, index]))
        frame = frame if self.null is None else frame.assign(**self.null.columns())
        frame.attrs.update(unit_of(self.provenance))
        return frame

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the scores to one safetensors file, whole or not at all."""
        tensors = {name: getattr(self, name) for name in _TENSORS}
        if self.null is not None:
            tensors |= self.null.tensors()
        if self.outcomes is not None:
            tensors |= self.outcomes.tensors()
        header = {
            "site": self.site,
            "frame": "with virtual tokens" if self.positions == "prompt" else "the text's own tokens",
            "axes": ["prompt", "layer", "position", "neuron"],
            "roles": {"baseline": self.n_baseline, "select": self.n_select},
            "class_counts": list(self.class_counts),
            "positions": self.positions,
            "aggregate": self.aggregate,
            "class_id": self.class_id,
            "null": None if self.null is None else self.null.record(),
            "provenance": self.provenance,
        }
        return save_tensors(path, KIND, tensors, header)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "NeuronScores":
        """The scores that :meth:`save` wrote.

        Raises:
            FileNotFoundError: When there is no such file.
            ValueError: When the file is corrupt, holds something else, or was measured at another site.
        """
        tensors, header = load_tensors(path, KIND)
        if header.get("site") != SITE:
            raise ValueError(f"{path} was measured at {header.get('site')}, this package measures at {SITE}")
        with sound(path, KIND):
            null = header.get("null")
            scores = cls(
                **{name: tensors[name] for name in _TENSORS},
                class_id=header.get("class_id", 1),
                null=None if null is None else PermutationNull.of_tensors(tensors, **null),
                outcomes=RuleOutcomes.of_tensors(
                    tensors,
                    width_in(tensors["baseline"][0, :, 0]),
                    unit=header["provenance"].get("units", {}).get("what", "text"),
                ),
                n_baseline=header["roles"]["baseline"],
                n_select=header["roles"]["select"],
                class_counts=tuple(header["class_counts"]),
                positions=header["positions"],
                site=header["site"],
                aggregate=header["aggregate"],
                provenance=header["provenance"],
            )
            scores._require_consistent()
        return scores

    @classmethod
    def of_prompts(cls, scores: Sequence["NeuronScores"]) -> "NeuronScores":
        """The scores of several prompts as one, from scores of each; the prompts stand in the order given.

        A null is of one set of prompts: of several it has to be drawn anew (:meth:`with_null`).

        Raises:
            ValueError: For none, or when they don't go together: other shapes, another model or task, other examples,
                another reading, texts cut to another length.
        """
        if not scores:
            raise ValueError("give the scores of at least one prompt, got none")
        first = scores[0]
        for other in scores[1:]:
            if apart := "; ".join(differing(first._settings(), other._settings())):
                raise ValueError(f"scores of one set must be measured alike; they differ in {apart}")
            if other.baseline.shape[1:] != first.baseline.shape[1:]:
                raise ValueError(
                    f"scores differ in [layer, position, neuron]: {tuple(first.baseline.shape[1:])} "
                    f"and {tuple(other.baseline.shape[1:])}; prompts of one set need equally many virtual tokens"
                )
        kept = [one.outcomes for one in scores if one.outcomes is not None]
        joined: dict[str, Any] = {n: torch.cat([getattr(one, n) for one in scores]) for n in _TENSORS}
        return replace(
            first,
            **joined,
            null=first.null if len(scores) == 1 else None,
            outcomes=RuleOutcomes.of_prompts(kept) if len(kept) == len(scores) else None,
            provenance={
                **first.provenance,
                "prompts": [prompt for one in scores for prompt in one.provenance.get("prompts", [])],
            },
        )

    def _settings(self) -> dict[str, Any]:
        """In what scores of one set are alike."""
        said = {name: getattr(self, name) for name in _ONE_SET}
        said |= {name: self.provenance.get(name) for name in ("model", "max_length")}
        said |= {f"task's {name}": self.provenance.get("task", {}).get(name) for name in _ONE_TASK}
        named = self.provenance.get("special_tokens") or {}
        tokens = {name: token for name, token in named.items() if name != "prepend_bos"}  # a prompt's own
        return {**said, "special_tokens": tokens}

    @property
    def _absent(self) -> Bool[Tensor, "layer neuron"]:
        """Where a layer has no such neuron, or nobody scored any."""
        return self.baseline[:1, :, :1].isnan().sum((0, 2)) > 0

    def _require_consistent(self) -> None:
        """Refuse what no run of scoring gives: a file that somebody else put together.

        Raises:
            ValueError: Otherwise.
        """
        count = self.correct
        if count.numel() and not 0 <= int(count.min()) <= int(count.max()) <= self.n_select:
            raise ValueError(f"correct must count examples of select, 0 to {self.n_select}")
        n_prompts, n_layers, n_positions, d_mlp = self.baseline.shape
        if self.null is not None:
            self.null.require_shape(n_prompts, n_layers, d_mlp)
        if self.outcomes is not None:
            self.outcomes.require_shape(n_prompts, self.n_select, n_layers, n_positions)
