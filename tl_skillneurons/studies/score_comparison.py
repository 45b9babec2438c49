"""Do different scores name the same neurons, and which of them foretells what a neuron does?

Of two scores ``s`` and ``t`` of all neurons, and their tops ``S`` and ``T`` of one size::

    rho(s, t) = Spearman's correlation over all neurons          jaccard = |S and T| / |S or T|

beside what is left of both where the labels of one of the two are dealt out anew to their units
(:mod:`~tl_skillneurons.scores.agreement`), and what interventions on each top change
(:func:`~tl_skillneurons.measure_effects`) beside random and matched neurons.

What it does not show: which score is right. Scores of the same activations and labels agree by construction; a small p
says no more than that both follow the labels. The effects are the better judge, and only where tops are equally large.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

import pandas as pd

from tl_skillneurons._checks import require_seed
from tl_skillneurons._results import html_of, one_line
from tl_skillneurons.interventions.effect_panel import EffectPanel
from tl_skillneurons.scores.agreement import ALONE, agreements
from tl_skillneurons.scores.ranked import Scored, require_one_model
from tl_skillneurons.stats.hypothesis_tests import require_draws


@dataclass(frozen=True, eq=False)
class ScoreComparison:
    """How far scores agree, and what the neurons that each calls best do.

    Attributes:
        agreement: A row per pair of scores: ``one``, ``other``; over all neurons ``spearman``, the middle 95 % of its
            null (``null_low``, ``null_high``) and its ``p_value``; of their tops ``n_shared`` and its ``p_shared``;
            what was ``permuted`` ("labels" of a side whose outcomes were kept, else "neurons", as if these were
            independent), ``labels_of`` whom ("both sides together", "each side in turn", "one side alone": then p says
            no more than that both follow the same labels) and the ``smallest_p`` that there is; of the tops
            ``jaccard``, and of random sets ``chance_jaccard``.
        effects: Where panels were given, a row per score and intervention: what it changes (``change`` with its
            interval) beside random and matched controls; of each intervention the largest loss first.
        settings: The scores by name, the size of the tops, the metric, permutations and their seed, and the ``units``
            whose labels were permuted.

    Example:
        >>> found = skn.studies.compare_scores({"predictivity": scores, "auc": auc})
        >>> found.agreement[["one", "other", "spearman", "null_high", "jaccard", "p_shared"]]
    """

    agreement: pd.DataFrame
    effects: pd.DataFrame | None = None
    settings: dict[str, Any] = field(default_factory=dict)

    def __repr__(self) -> str:
        return one_line(
            self,
            **self.settings,
            spearman=float(self.agreement.spearman.mean()),
            jaccard=float(self.agreement.jaccard.mean()),
            permuted=" and ".join(
                sorted(set(map(_whose, self.agreement.permuted, self.agreement.labels_of)))
            ),
        )

    def _repr_html_(self) -> str:
        return html_of(self)

    def to_dataframe(self) -> pd.DataFrame:
        """A copy of :attr:`agreement`."""
        return self.agreement.copy()


def _whose(permuted: str, labels_of: str) -> str:
    if permuted != "labels":
        return permuted
    return f"labels of {labels_of}" + (" (p too small)" if labels_of == ALONE else "")


def compare_scores(
    scores: Mapping[str, Scored],
    *,
    amount: float | int = 0.02,
    panels: Mapping[str, EffectPanel] | None = None,
    metric: str = "logit_diff",
    n_permutations: int = 1000,
    seed: int = 0,
) -> ScoreComparison:
    """Compare scores of one model, by name: on all neurons, on their tops, and by what their tops do.

    Args:
        amount: The tops that are compared, as a share of each layer or a count (:meth:`NeuronScores.top`).
        panels: Of each score's top neurons, the panel of :func:`~tl_skillneurons.measure_effects`; equally many
            neurons of each, or the comparison would be unfair. Of several prompts the pooled rows are compared.
        metric: Of the panels: the score whose neurons lose most of it foretells the causal effect best.
        n_permutations: Of the labels of scores that kept their outcomes, else of the neurons within layers.
        seed: Draws the permutations.

    Raises:
        ValueError: For fewer than two scores, scores of different models, too few permutations, or panels that don't
            go with the scores.

    Example:
        >>> others = skn.scores.score_labels(model, prompts, task, ["auc", "mutual_information"])
        >>> found = skn.studies.compare_scores({"predictivity": scores, **others})
    """
    require_seed(seed)
    require_one_model(scores)
    require_draws(n_permutations, name="n_permutations")
    tops = {name: score.top(amount) for name, score in scores.items()}
    names, pairs = list(scores), list(combinations(scores, 2))
    n_top = len(tops[names[0]]) // next(iter(scores.values())).n_layers
    found = agreements(scores, pairs, n_top, n_permutations=n_permutations, seed=seed)
    rows = []
    for one, other in pairs:
        shared = tops[one].overlap(tops[other])
        beside = {"jaccard": shared.jaccard, "chance_jaccard": shared.chance_jaccard}
        rows.append({"one": one, "other": other, **found[one, other].row(-1), **beside})
    effects = None if panels is None else _effects(panels, names, metric)
    settings = {
        "scores": names,
        "amount": amount,
        "metric": metric,
        "n_permutations": n_permutations,
        "seed": seed,
    }
    settings["units"] = sorted({unit for one in found.values() for unit in one.units})
    return ScoreComparison(pd.DataFrame(rows), effects, settings)


def _effects(panels: Mapping[str, EffectPanel], names: list[str], metric: str) -> pd.DataFrame:
    unknown = [name for name in panels if name not in names]
    if unknown or not panels:
        raise ValueError(f"panels must go by the names of the scores, {names}, got {list(panels)}")
    frames = []
    for name, panel in panels.items():
        frame = panel.to_dataframe(each_prompt=False)
        frame = frame[(frame.metric == metric) & (frame.effect == "total")]
        frames.append(frame.assign(score=name))
    joined = pd.concat(frames, ignore_index=True)
    sizes = joined.groupby("score").n_neurons.apply(lambda n: tuple(sorted(set(n))))
    if sizes.nunique() > 1:
        raise ValueError(f"the panels must be of equally large sets, got n_neurons {sizes.to_dict()}")
    joined = joined.assign(change=joined.value - joined.intact)
    wanted = ["score", "intervention", "n_neurons", "intact", "value", "change", "change_low", "change_high"]
    wanted += [
        "neurons_chosen",
        "random_median",
        "random_min",
        "p_random",
        "matched_median",
        "p_matched",
        "least_median",
        "p_least",
    ]
    order = joined.sort_values(["intervention", "n_neurons", "change"], kind="stable")
    return order[[name for name in wanted if name in order]].reset_index(drop=True)
