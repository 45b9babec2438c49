"""Does the permutation null keep its promise on a model's own activations? Shuffle the labels and see.

With labels that mean nothing, anything called significant at ``alpha`` is a false alarm, and false alarms may come
in a share ``alpha`` of repetitions. The activations stay the model's, with all their correlations; only ``select``
labels are shuffled (within pairs, for twins). For power, one neuron at one position is made to agree with the shuffled
labels on a given share of examples, and it is counted how often it is called significant.
"""

from dataclasses import dataclass, replace

import torch

from tl_skillneurons._checks import require_int
from tl_skillneurons._progress import progress_bar
from tl_skillneurons.scores.null import permutation_null
from tl_skillneurons.scores.outcomes import RuleOutcomes, pack
from tl_skillneurons.stats.chance import clopper_pearson
from tl_skillneurons.stats.intervals import require_draws
from tl_skillneurons.stats.permutation import permuted_labels


@dataclass(frozen=True)
class Calibration:
    """How often shuffled labels were called significant, and how often a planted neuron was.

    Attributes:
        n_repetitions: Shufflings.
        n_false: Repetitions in which any neuron was called significant.
        n_found: Repetitions in which the planted neuron was.
        alpha: The level.
        planted: Share of examples on which the planted neuron agrees with the label.
        n_examples: Examples.
    """

    n_repetitions: int
    n_false: int
    n_found: int
    alpha: float
    planted: float
    n_examples: int

    @property
    def false_interval(self) -> tuple[float, float]:
        """The exact 95 % interval of the share of false alarms; ``alpha`` lies in it if the promise is kept."""
        return clopper_pearson(self.n_false, self.n_repetitions)

    @property
    def power_interval(self) -> tuple[float, float]:
        """The exact 95 % interval of the share of repetitions that found the planted neuron."""
        return clopper_pearson(self.n_found, self.n_repetitions)


def check_calibration(
    outcomes: RuleOutcomes,
    *,
    n_repetitions: int = 200,
    n_permutations: int = 99,
    alpha: float = 0.05,
    planted: float = 0.65,
    aggregate: str = "mean",
    seed: int = 0,
    progress: bool = True,
) -> Calibration:
    """Shuffle labels ``n_repetitions`` times, and each time test all neurons, with a planted one and without.

    Args:
        outcomes: A model's, from ``score_neurons(..., keep_outcomes=True).outcomes``.
        planted: Accuracy of the planted neuron, in [0.5, 1].

    Raises:
        ValueError: For too few permutations for ``alpha``, or labels of more than two classes.
    """
    require_int(n_repetitions, "n_repetitions")
    require_draws(n_permutations, alpha, name="n_permutations")
    if not 0.5 <= planted <= 1:
        raise ValueError(f"planted must be an accuracy in [0.5, 1], got {planted}")
    if set(outcomes.labels.tolist()) != {0, 1}:
        raise ValueError(
            f"labels must be of two classes, 0 and 1, got {sorted(set(outcomes.labels.tolist()))}"
        )
    shuffled = permuted_labels(outcomes.labels, n_repetitions, seed=seed, pairs=outcomes.pairs)
    generator = torch.Generator().manual_seed(seed)
    n_false = n_found = 0
    settings = {"n_permutations": n_permutations, "aggregate": aggregate}
    with progress_bar("shuffled labels", n_repetitions, show=progress) as advance:
        for repetition, labels in enumerate(shuffled):
            own = replace(outcomes, labels=labels)
            null = permutation_null(own, seed=seed + 1 + repetition, **settings)
            n_false += bool((null.family() <= alpha).any())
            right = torch.rand(len(labels), generator=generator) < planted
            bit = torch.where(right, labels, 1 - labels).bool()
            with_one = _plant(own, bit)
            null = permutation_null(with_one, seed=seed + 1 + repetition, **settings)
            n_found += bool(null.family()[0, 0] <= alpha)
            advance()
    return Calibration(n_repetitions, n_false, n_found, alpha, planted, len(outcomes.labels))


def _plant(outcomes: RuleOutcomes, bit: torch.Tensor) -> RuleOutcomes:
    """The outcomes with neuron 0 of layer 0 replaced at the first position, for every prompt."""
    above = outcomes.above.clone()
    first = pack(bit[:, None])[:, 0]  # the bit in the byte's highest place
    above[:, :, 0, 0, 0] = (above[:, :, 0, 0, 0] & 0x7F) | first
    return replace(outcomes, above=above)
