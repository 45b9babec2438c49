"""Are they the same with another prompt? How far two prompts' rankings agree, and which neurons turn their sign.

For each two prompts, the overlap of their best neurons, and Spearman's correlation of all neurons' predictivity, beside
the same where the labels of ``select`` mean nothing: they are dealt out anew to its units, the same for both prompts
(:mod:`~tl_skillneurons.studies.permuted_stability`). Prompts that read the same texts with the same labels agree
whatever these mean; what is beyond that, is of the task. The overlap of the best decides: the many neurons that carry
nothing are ranked by what they have in common, which drowns the few in a correlation over all. And of the skill
neurons, the share of which a high activation speaks for one label under one prompt and for the other under another.

What it does not show: whether prompts of other lengths, seeds or label words would choose the same.
"""

from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from jaxtyping import Bool, Int
from torch import Tensor

from tl_skillneurons._files import load_tensors, save_tensors, sound
from tl_skillneurons._results import html_of, one_line
from tl_skillneurons.neurons.neuron_set import NeuronSet
from tl_skillneurons.scores.neuron_scores import NeuronScores
from tl_skillneurons.studies.diagnosis import agreement
from tl_skillneurons.studies.permuted_stability import StabilityNull, permuted_stability

KIND = "Stability"
N_PERMUTATIONS = 99
_NULL = ("spearman", "jaccard", "bootstrap")


@dataclass(frozen=True, eq=False, repr=False)
class Stability:
    """How far prompts agree about the neurons.

    Attributes:
        table: A row per two prompts, see :meth:`to_dataframe`; none of a single prompt.
        null: The same under permuted labels.
        skill: The skill neurons.
        direction: Of each skill neuron under each prompt: +1 where a high activation speaks for label 1, else -1.

    Example:
        >>> found.stability.turned.double().mean()  # the share of the skill neurons that prompts disagree about
    """

    table: pd.DataFrame
    null: StabilityNull
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
        """One row per two prompts: ``one``, ``other``; ``n_shared`` of their best, and on average under permuted labels
        (``null_shared``), ``jaccard``, ``null_jaccard`` and its one-sided ``p_jaccard``; ``spearman`` over all neurons,
        the median and the middle 95 % of it under permuted labels (``null_median``, ``null_low``, ``null_high``), its
        ``p_value``; the smallest p that so many permutations allow (``smallest_p``); and ``turned``, the share of the
        skill neurons that differ in sign.
        """
        return self.table

    def __repr__(self) -> str:
        agree = [round(one, 3) for one in self.table.spearman] if len(self.table) else []
        return one_line(self, spearman=agree, share_turned=self.share_turned, n_prompts=len(self.direction))

    def _repr_html_(self) -> str:
        return html_of(self)


def measure_stability(scores: NeuronScores, skill: NeuronSet, *, seed: int, path: Path) -> Stability:
    """The agreement of each two prompts; its null is kept in ``path``. No model is run.

    Args:
        scores: With their outcomes.
    """
    assert scores.outcomes is not None  # scores of a run have them
    if not path.exists():
        null = permuted_stability(
            scores.outcomes,
            skill.counts_per_layer(),
            n_permutations=N_PERMUTATIONS,
            n_resamplings=1,
            seed=seed,
            aggregate=scores.aggregate,
            class_id=scores.class_id,
        )
        told = {name: scores.provenance[name] for name in ("prompts", "task")}
        save_tensors(path, KIND, {name: getattr(null, name) for name in _NULL}, told)
    return load_stability(path, scores, skill)


def load_stability(path: Path, scores: NeuronScores, skill: NeuronSet) -> Stability:
    """What :func:`measure_stability` left in ``path``.

    Raises:
        FileNotFoundError: When there is no such file.
        ValueError: When it is corrupt, or of other prompts.
    """
    tensors, header = load_tensors(path, KIND)
    if header["prompts"] != scores.provenance["prompts"]:
        raise ValueError(f"{path} was measured with other prompts; delete it, or choose another folder")
    with sound(path, KIND):
        null = StabilityNull(**{name: tensors[name] for name in _NULL})
    direction = scores.direction_by_prompt[:, skill.layer, skill.index]
    rows = []
    for number, row in enumerate(agreement(scores, skill, null).to_dict("records")):
        drawn = null.spearman[:, number]
        ends = {"null_median": 0.5, "null_low": 0.025, "null_high": 0.975}
        told = {name: float(drawn.quantile(share)) for name, share in ends.items()} if len(drawn) else {}
        one, other = int(row["one"]), int(row["other"])
        overlap = null.jaccard[:, number]
        if len(overlap):  # of two sets of n, j of whose union they share, they share 2 n j / (1 + j)
            told["null_shared"] = float((2 * len(skill) * overlap / (1 + overlap)).mean())
        rows.append(
            {
                **{str(name): value for name, value in row.items()},
                **told,
                "p_value": row["p_spearman"],
                "smallest_p": 1 / (1 + len(drawn)),
                "turned": float((direction[one] != direction[other]).double().mean()),
            }
        )
    columns = ["null_spearman", "p_spearman"]
    table = pd.DataFrame(rows)
    return Stability(table.drop(columns=columns) if len(table) else table, null, skill, direction)
