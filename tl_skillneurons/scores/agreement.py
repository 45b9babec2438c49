"""How far the scores of two tasks, or of one task in two models, agree: rankings and tops, beside what luck gives.

Neurons are correlated, and some answer to any labels better than others, so rankings and tops agree a little whatever
the labels mean. The null keeps all of this: the labels of one side's ``select`` examples are dealt out anew to its
units (:mod:`~tl_skillneurons.stats.units`), and the rankings and tops that it then has are compared with the other
side's. That takes the single answers (``score_neurons(..., keep_outcomes=True)``); each side that kept them is permuted
in turn, and the larger p-value of the two sides counts: agreement takes labels that mean something on both. Two sides
with the same labels of the same texts (two prompts of one task, one task at two checkpoints) are permuted together,
each draw giving both the same new labels: labels that mean nothing make such sides agree too, which permuting one of
them can't show. Few units have few orders; all are counted then, and ``smallest_p`` says what they allow. Where one
side alone kept its answers, as of two kinds of score, the null is too narrow if both go by the same labels: a small p
then says that they do, and not that these mean anything (``labels_of`` tells whose labels were permuted). Where neither
side kept them, neurons are permuted within their layers in place of labels, which treats them as independent: that null
is too narrow.

With ``rho`` Spearman's correlation of the neurons' scores and ``rho_b`` that of draw ``b`` of the ``B`` of a side::

    p_value  = min(1, 2 * (1 + min(draws with rho_b >= rho, draws with rho_b <= rho)) / (1 + B))
    p_shared = (1 + draws whose tops share as many neurons) / (1 + B)

Agreement does not show that two tasks use the same neurons for the same thing.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pandas as pd
import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int, Num
from torch import Tensor

from tl_skillneurons._checks import require_seed
from tl_skillneurons._files import load_tensors, save_tensors, sound
from tl_skillneurons._pictures import plotted
from tl_skillneurons._results import html_of
from tl_skillneurons._widths import even
from tl_skillneurons.scores.neuron_scores import NeuronScores
from tl_skillneurons.scores.null import permuted_scores
from tl_skillneurons.scores.outcomes import RuleOutcomes, described
from tl_skillneurons.scores.ranked import Scored, require_one_model, strength
from tl_skillneurons.stats.permutation import row_orders
from tl_skillneurons.stats.ranks import average_ranks
from tl_skillneurons.stats.units import components

KIND = "Agreement"
TOGETHER, IN_TURN = "both sides together", "each side in turn"
ALONE, NEITHER = "one side alone", "neither side"
"""Whose labels were permuted; one side's alone can't show that labels which both go by mean nothing."""
_QUANTILES = (0.025, 0.975)


@dataclass(frozen=True, eq=False)
class Agreement:
    """How far two scores agree; the last row of each is over all layers, those before it are layers.

    Attributes:
        spearman: Spearman's correlation of the neurons' scores.
        null: The same under the null.
        n_shared: Neurons that are in both tops.
        shared_null: The same under permuted labels; ``None`` where neurons were permuted.
        n_top: Best neurons of each layer whose overlap is counted.
        seed: Of the permutations.
        units: What labels were dealt out to, of each side that was permuted: ``"60 units (group)"``.
        sides: How many of the draws permuted each side, one side after the other; one number where both were permuted
            together.
        labels_of: Whose labels were permuted: :data:`TOGETHER`, :data:`IN_TURN`, :data:`ALONE` or :data:`NEITHER`.

    Example:
        >>> found = skn.scores.score_agreement(scores, other_scores, 30)
        >>> found.row(-1)["spearman"], found.row(-1)["p_value"]
    """

    spearman: Float[Tensor, " row"]
    null: Float[Tensor, "draw row"]
    n_shared: Int[Tensor, " row"]
    shared_null: Int[Tensor, "draw row"] | None
    n_top: int = 0
    seed: int = 0
    units: tuple[str, ...] = ()
    sides: tuple[int, ...] = ()
    labels_of: str = ""

    def __repr__(self) -> str:
        found = self.row(-1)
        return (
            f"Agreement(spearman {found['spearman']:.3f} over all layers, {found['null_low']:.3f} to "
            f"{found['null_high']:.3f} under permuted {self._whose}{self._by}, {found['n_shared']} of the best "
            f"{self.n_top} of each layer shared, {len(self.null)} draws, no p below {self.smallest_p:.2g})"
        )

    def _repr_html_(self) -> str:
        return html_of(self)

    plot = plotted("plot_agreement")

    @property
    def _by(self) -> str:
        return f" of {' and '.join(self.units)}" if self.units else ""

    @property
    def _whose(self) -> str:
        return f"labels of {self.labels_of}" if self.labels_of not in ("", NEITHER) else self.permuted

    @property
    def permuted(self) -> str:
        """What the null permutes: "labels" or "neurons"."""
        return "neurons" if self.shared_null is None else "labels"

    def row(self, row: int) -> dict[str, float | int | str]:
        """One row's Spearman, the middle 95 % of its null (``null_low``, ``null_high``, the wider where two sides were
        permuted), its two-sided ``p_value``, and ``p_shared``, how often permuted labels share as many neurons (NaN
        where neurons were permuted); of two sides the larger p-value."""
        found, shared = float(self.spearman[row]), int(self.n_shared[row])
        quantiles = torch.tensor(_QUANTILES, dtype=torch.float64)
        ends = [side[:, row].quantile(quantiles).tolist() for side in self._sides(self.null)]
        low, high = min(low for low, _ in ends), max(high for _, high in ends)
        p_shared = float("nan")
        if self.shared_null is not None:
            p_shared = max(_share(side[:, row] >= shared) for side in self._sides(self.shared_null))
        two_sided = [
            2 * min(_share(side[:, row] >= found - 1e-12), _share(side[:, row] <= found + 1e-12))
            for side in self._sides(self.null)
        ]
        return {
            "spearman": found,
            "null_low": low,
            "null_high": high,
            "p_value": float("nan") if found != found else min(1.0, max(two_sided)),
            "n_shared": int(self.n_shared[row]),
            "p_shared": p_shared,
            "permuted": self.permuted,
            "labels_of": self.labels_of,
            "smallest_p": self.smallest_p,
        }

    @property
    def smallest_p(self) -> float:
        """The smallest two-sided p-value that so many draws of each side can give."""
        return min(1.0, 2 / (1 + min(self.sides or (len(self.null),))))

    def _sides(self, draws: Num[Tensor, "draw row"]) -> tuple[Num[Tensor, "own row"], ...]:
        return draws.split(list(self.sides or (len(draws),)))

    def to_dataframe(self) -> pd.DataFrame:
        """A row per layer, and last, with ``layer`` -1, one over all; the columns of :meth:`row`."""
        n_layers = len(self.spearman) - 1
        frame = pd.DataFrame([{"layer": k, **self.row(k)} for k in (*range(n_layers), -1)])
        frame.attrs["units"] = list(self.units)
        return frame

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write it to one safetensors file, whole or not at all."""
        tensors = {"spearman": self.spearman, "null": self.null, "n_shared": self.n_shared}
        if self.shared_null is not None:
            tensors["shared_null"] = self.shared_null
        header = {
            "n_top": self.n_top,
            "seed": self.seed,
            "units": list(self.units),
            "sides": list(self.sides),
            "labels_of": self.labels_of,
        }
        return save_tensors(path, KIND, tensors, header)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "Agreement":
        """What :meth:`save` wrote.

        Raises:
            FileNotFoundError: When there is no such file.
            ValueError: When the file is corrupt, or holds something else.
        """
        tensors, header = load_tensors(path, KIND)
        with sound(path, KIND):
            return cls(
                **{name: tensors[name] for name in ("spearman", "null", "n_shared")},
                shared_null=tensors.get("shared_null"),
                n_top=header["n_top"],
                seed=header["seed"],
                units=tuple(header.get("units", ())),
                sides=tuple(header.get("sides", ())),
                labels_of=header.get("labels_of", ""),
            )


def score_agreement(
    one: Scored, other: Scored, n_top: int, *, n_permutations: int = 1000, seed: int = 0
) -> Agreement:
    """How far two scores agree, beside what luck gives; no model is run.

    Args:
        n_top: Best neurons of each layer whose overlap is counted, the lowest index first among equals.
        n_permutations: Of each side's labels, or of the neurons.

    Returns:
        A row per layer, and a last one over all.

    Raises:
        ValueError: For scores of different models.

    Example:
        >>> skn.scores.score_agreement(scores, other_scores, 30).to_dataframe()
    """
    require_seed(seed)
    scores = {"one": one, "other": other}
    require_one_model(scores)
    pair = ("one", "other")
    return agreements(scores, [pair], n_top, n_permutations=n_permutations, seed=seed)[pair]


def agreements(
    scores: Mapping[str, Scored],
    pairs: Sequence[tuple[str, str]],
    n_top: int,
    *,
    n_permutations: int = 1000,
    seed: int = 0,
) -> dict[tuple[str, str], Agreement]:
    """The agreement of each of ``pairs``, names of ``scores`` of one shape; no model is run.

    Args:
        n_top: Best neurons of each layer whose overlap is counted, the lowest index first among equals.
        n_permutations: Of each side's labels, or of the neurons.
    """
    for score in scores.values():
        even(score.d_mlp, "agreement of scores")
    ranked = {name: _Ranked.of(strength(score).double(), n_top) for name, score in scores.items()}
    null: dict[tuple[str, str], list[Tensor]] = {pair: [] for pair in pairs}
    shared: dict[tuple[str, str], list[Tensor]] = {pair: [] for pair in pairs}
    units: dict[tuple[str, str], list[str]] = {pair: [] for pair in pairs}
    sides: dict[tuple[str, str], list[int]] = {pair: [] for pair in pairs}
    drawn = partial(_permuted, n_permutations=n_permutations, n_top=n_top, seed=seed)
    joint = [pair for pair in pairs if _share_labels(*(scores[name] for name in pair))]
    for group in _joined(list(scores), joint):
        own = {name: kept for name in group if (kept := _with_outcomes(scores[name])) is not None}
        of_group = [pair for pair in joint if pair[0] in own]
        for draws in zip(*map(drawn, own.values()), strict=True):
            at = dict(zip(own, draws, strict=True))
            for pair in of_group:
                ranks, beside = (at[name] for name in pair)
                null[pair].append(ranks.spearman(beside))
                shared[pair].append(ranks.shared(beside))
        for pair in of_group:
            units[pair].append(described(own[pair[0]][1].units))
            sides[pair].append(len(null[pair]))
    for name, score in scores.items():
        others = [pair for pair in pairs if name in pair and pair not in joint]
        kept = _with_outcomes(score)
        if not others or kept is None:
            continue
        before = {pair: len(null[pair]) for pair in others}
        for ranks in drawn(kept):
            for pair in others:
                other_side = ranked[pair[1] if pair[0] == name else pair[0]]
                null[pair].append(ranks.spearman(other_side))
                shared[pair].append(ranks.shared(other_side))
        for pair in others:
            units[pair].append(described(kept[1].units))
            sides[pair].append(len(null[pair]) - before[pair])
    for pair in pairs:
        if not null[pair]:
            generator = torch.Generator().manual_seed(seed)
            one, other = (ranked[name] for name in pair)
            null[pair] = [one.spearman(other.shuffled(generator)) for _ in range(n_permutations)]
    return {
        (one, other): Agreement(
            spearman=ranked[one].spearman(ranked[other]),
            null=torch.stack(null[one, other]),
            n_shared=ranked[one].shared(ranked[other]),
            shared_null=torch.stack(shared[one, other]) if shared[one, other] else None,
            n_top=n_top,
            seed=seed,
            units=tuple(dict.fromkeys(units[one, other])),
            sides=tuple(sides[one, other]),
            labels_of=TOGETHER
            if (one, other) in joint
            else (NEITHER, ALONE, IN_TURN)[len(sides[one, other])],
        )
        for one, other in pairs
    }


def _joined(names: list[str], pairs: Sequence[tuple[str, str]]) -> list[list[str]]:
    """The names that pairs join, directly or through others, in groups."""
    member = components(len(names), [(names.index(one), names.index(other)) for one, other in pairs])
    inside = {name for pair in pairs for name in pair}
    groups: dict[int, list[str]] = {}
    for name, number in zip(names, member, strict=True):
        if name in inside:
            groups.setdefault(number, []).append(name)
    return list(groups.values())


def _with_outcomes(score: Scored) -> tuple[NeuronScores, RuleOutcomes] | None:
    """Scores that can be counted again under other labels."""
    if not isinstance(score, NeuronScores) or score.outcomes is None:
        return None
    return score, score.outcomes


def _share_labels(one: Scored, other: Scored) -> bool:
    """Whether both go by the same labels of the same texts, so that labels which mean nothing make them alike."""
    kept, beside = _with_outcomes(one), _with_outcomes(other)
    if kept is None or beside is None:
        return False
    (score, mine), (score_beside, theirs) = kept, beside
    read, read_beside = (
        of.provenance.get("task", {}).get("roles", {}).get(answers.role)
        for of, answers in ((score, mine), (score_beside, theirs))
    )
    return (
        read == read_beside and torch.equal(mine.labels, theirs.labels) and mine.units.same_as(theirs.units)
    )


def _permuted(
    kept: tuple[NeuronScores, RuleOutcomes], *, n_permutations: int, n_top: int, seed: int
) -> Iterator["_Ranked"]:
    score, outcomes = kept
    for block in permuted_scores(
        outcomes, n_permutations, seed=seed, aggregate=score.aggregate, class_id=score.class_id
    ):
        yield from (_Ranked.of(drawn, n_top) for drawn in block)


@dataclass(frozen=True, eq=False)
class _Ranked:
    """One score's ranks within layers and in all, centred and of length 1, so that products are correlations."""

    by_layer: Float[Tensor, "layer neuron"]
    overall: Float[Tensor, "layer neuron"]
    top: Bool[Tensor, "layer neuron"]

    @classmethod
    def of(cls, score: Float[Tensor, "layer neuron"], n_top: int) -> "_Ranked":
        n_layers = len(score)
        by_layer = _unit(average_ranks(score.T).T)
        flat = _unit(average_ranks(score.flatten())[None])
        overall = rearrange(flat, "1 (layer neuron) -> layer neuron", layer=n_layers)
        best = score.argsort(dim=1, descending=True, stable=True)[:, :n_top]
        return cls(by_layer, overall, torch.zeros_like(score, dtype=torch.bool).scatter_(1, best, True))

    def spearman(self, other: "_Ranked") -> Float[Tensor, " row"]:
        rows = (self.by_layer * other.by_layer).sum(1)
        return torch.cat([rows, (self.overall * other.overall).sum()[None]]).clamp(-1, 1)

    def shared(self, other: "_Ranked") -> Int[Tensor, " row"]:
        rows = (self.top & other.top).sum(1)
        return torch.cat([rows, rows.sum()[None]])

    def shuffled(self, generator: torch.Generator) -> "_Ranked":
        """The neurons permuted within their layers."""
        order = row_orders(len(self.by_layer), self.by_layer.shape[1], generator, dtype=torch.float32)
        return _Ranked(*(part.gather(1, order) for part in (self.by_layer, self.overall, self.top)))


def _share(extreme: Bool[Tensor, " draw"]) -> float:
    return (1 + int(extreme.sum())) / (1 + len(extreme))


def _unit(rows: Float[Tensor, "row item"]) -> Float[Tensor, "row item"]:
    """Centred rows of length 1; NaN where all are equal, so that a correlation with them is not a number."""
    centred = rows - rows.mean(1, keepdim=True)
    return centred / centred.norm(dim=1, keepdim=True)
