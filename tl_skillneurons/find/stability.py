"""Are they the same with another prompt? How far two prompts' rankings agree, and which neurons turn their sign.

For each pair of prompts, Spearman's correlation of all neurons' predictivity and the overlap of their best, beside the
same under permuted labels (:mod:`~tl_skillneurons.scores.agreement`): prompts that read the same texts agree a
little whatever the labels mean. And of the skill neurons, the share of which a high activation speaks for one label
under one prompt and for the other under another.

What it does not show: whether prompts of other lengths, seeds or label words would choose the same.
"""

from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import pandas as pd
from jaxtyping import Bool, Int
from torch import Tensor

from tl_skillneurons._results import html_of, one_line
from tl_skillneurons.neurons import NeuronSet
from tl_skillneurons.scores.agreement import Agreement, score_agreement
from tl_skillneurons.scores.neuron_scores import NeuronScores
from tl_skillneurons.scores.one_prompt import scores_of_prompt

N_PERMUTATIONS = 99


@dataclass(frozen=True, eq=False, repr=False)
class Stability:
    """How far prompts agree about the neurons.

    Attributes:
        pairs: The numbers of each two prompts; none where there is a single one.
        agreements: How far they agree, in the order of ``pairs``.
        skill: The skill neurons.
        direction: Of each skill neuron under each prompt: +1 where a high activation speaks for label 1, else -1.

    Example:
        >>> found.stability.turned.double().mean()  # the share of the skill neurons that prompts disagree about
    """

    pairs: tuple[tuple[int, int], ...]
    agreements: tuple[Agreement, ...]
    skill: NeuronSet
    direction: Int[Tensor, "prompt chosen"]

    @property
    def turned(self) -> Bool[Tensor, " chosen"]:
        """Which skill neurons speak for one label under one prompt and for the other under another."""
        return (self.direction != self.direction[:1]).any(0)

    @property
    def share_turned(self) -> float:
        """The share of the skill neurons that do."""
        return float(self.turned.double().mean())

    def to_dataframe(self) -> pd.DataFrame:
        """One row per pair of prompts: ``one``, ``other``; over all layers the columns of
        :meth:`Agreement.row <tl_skillneurons.scores.Agreement.row>` (``spearman``, ``null_low``, ``null_high``,
        ``p_value``, ...) and ``null_median``; and ``turned``, the share of the skill neurons that differ in sign.
        """
        rows = []
        for (one, other), agreement in zip(self.pairs, self.agreements, strict=True):
            turned = float((self.direction[one] != self.direction[other]).double().mean())
            middle = float(agreement.null[:, -1].median())
            rows.append(
                {"one": one, "other": other, **agreement.row(-1), "null_median": middle, "turned": turned}
            )
        return pd.DataFrame(rows)

    def __repr__(self) -> str:
        agree = [round(float(one.spearman[-1]), 3) for one in self.agreements]
        return one_line(self, spearman=agree, share_turned=self.share_turned, n_prompts=len(self.direction))

    def _repr_html_(self) -> str:
        return html_of(self)


def measure_stability(scores: NeuronScores, skill: NeuronSet, *, seed: int, folder: Path) -> Stability:
    """The agreement of each two prompts; kept in ``folder`` and not computed again. No model is run."""
    n_top = max(skill.counts_per_layer().values())
    for one, other in combinations(range(scores.n_prompts), 2):
        path = _file(folder, one, other)
        if not path.exists():
            each = (scores_of_prompt(scores, one), scores_of_prompt(scores, other))
            score_agreement(*each, n_top, n_permutations=N_PERMUTATIONS, seed=seed).save(path)
    return load_stability(folder, scores, skill)


def load_stability(folder: Path, scores: NeuronScores, skill: NeuronSet) -> Stability:
    """What :func:`measure_stability` left in ``folder``.

    Raises:
        FileNotFoundError: When a file is missing.
        ValueError: When one is corrupt.
    """
    pairs = tuple(combinations(range(scores.n_prompts), 2))
    agreements = tuple(Agreement.load(_file(folder, *pair)) for pair in pairs)
    direction = scores.direction_by_prompt[:, skill.layer, skill.index]
    return Stability(pairs, agreements, skill, direction)


def _file(folder: Path, one: int, other: int) -> Path:
    return folder / f"agreement-{one}-{other}.safetensors"
