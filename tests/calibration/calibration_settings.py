"""What is simulated: labels, activations and differences without any effect, and what belongs together in them.

Everything is drawn anew for every shuffle, by hand and not by the package's own permutations. A planted neuron is right
on 0.65 of the units, on all texts of a unit or none, as everything else here is shared within a unit. A planted
difference is positive in 0.65 of the units.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from tl_skillneurons.scores.outcomes import RuleOutcomes, pack
from tl_skillneurons.stats.units import Units

PLANTED = 0.65
N_NEURONS = 40
N_TEXTS = 160
SHARED = 0.3
"""Standard deviation of what a text has of its own, beside 1 of what its unit shares."""


@dataclass(frozen=True, eq=False)
class Setting:
    """One kind of data.

    Attributes:
        labels: In the order of which labels are shuffled: of each text, or of each unit where ``by_unit``.
        by_unit: Whether a unit's texts share one label.
        words: The number of each text's word pair, for activations that follow the word, and not the text.
        scale: How large a text's differences are; ``tied`` rounds them, and the activations.
        n_prompts: Prompts whose scores are averaged.
        class_id: The class that is told from the rest.
        naive: What would be permuted by one who forgot what belongs together.
        of_answers: Whether tests of right answers are another thing here than with normal activations.
    """

    name: str
    units: Units
    labels: Tensor
    by_unit: bool = False
    words: Tensor | None = None
    scale: Tensor | None = None
    tied: bool = False
    n_prompts: int = 1
    class_id: int = 1
    naive: Units | None = None
    of_answers: bool = True

    @property
    def n(self) -> int:
        return self.units.n_examples

    def outcomes(self, generator: torch.Generator) -> RuleOutcomes:
        """Labels, and above or below their mean what activations have nothing to do with them."""
        labels, acts = self.drawn(generator)
        above = acts > acts.mean(1, keepdim=True)
        return RuleOutcomes(pack(above[:, :, None, None]), labels, N_NEURONS, units=self.units)

    def drawn(self, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Labels, and activations ``[prompt, text, neuron]`` that have nothing to do with them."""
        labels = self._drawn_labels(generator)
        shape = (self.n_prompts, self.n, N_NEURONS)
        acts = torch.randn(shape, generator=generator)
        if self.n_prompts > 1:
            acts = acts + torch.randn(shape[1:], generator=generator)
        if self.words is not None:  # what the model makes of a word, one way or the other
            of_word = torch.randn(len(self.units), N_NEURONS, generator=generator)
            acts = acts + (2.0 * labels - 1)[:, None] * of_word[self.units.member]
        elif self.by_unit:
            shared = torch.randn(len(self.units), N_NEURONS, generator=generator)
            acts = SHARED * acts + shared[self.units.member]
        elif self.units.pair is not None:
            acts = acts + torch.randn(len(self.units), N_NEURONS, generator=generator)[self.units.member]
        return labels, acts.round() if self.tied else acts

    def planted(self, outcomes: RuleOutcomes, generator: torch.Generator) -> RuleOutcomes:
        """The same with one neuron that is right on 0.65 of the units."""
        right = (torch.rand(len(self.units), generator=generator) < PLANTED)[self.units.member]
        is_class = outcomes.labels == self.class_id
        return outcomes.replaced(torch.where(right, is_class, ~is_class), layer=0, position=0, neuron=0)

    def differences(self, n_rows: int, generator: torch.Generator, *, planted: bool = False) -> Tensor:
        """``[row, text]``, symmetric about 0 unit by unit."""
        of_unit = torch.randn(n_rows, len(self.units), generator=generator, dtype=torch.float64)
        if planted:
            up = torch.rand(of_unit.shape, generator=generator) < PLANTED
            of_unit = torch.where(up, of_unit.abs(), -of_unit.abs())
        own = of_unit[:, self.units.member]
        if not self.units.are_single:
            own = own + SHARED * torch.randn(own.shape, generator=generator, dtype=torch.float64)
        own = own if self.scale is None else own * self.scale
        return own.round() if self.tied else own

    def changes(
        self, n_rows: int, generator: torch.Generator, lost: float, gained: float
    ) -> tuple[Tensor, Tensor]:
        """Right answers before and after, ``[row, text]``: a unit is lost, gained or left as it is, as a whole."""
        drawn = torch.rand(n_rows, len(self.units), generator=generator)[:, self.units.member]
        before = torch.rand(drawn.shape, generator=generator) < 0.8
        is_lost, is_gained = drawn < lost, drawn > 1 - gained
        return (before | is_lost) & ~is_gained, (before | is_gained) & ~is_lost

    def _drawn_labels(self, generator: torch.Generator) -> Tensor:
        if (
            self.units.pair is not None
        ):  # which twin is of which label: the words, or the pair, turned at random
            turned = torch.randint(0, 2, (len(self.units),), generator=generator)[self.units.member]
            return self.labels ^ turned
        order = torch.randperm(len(self.labels), generator=generator)
        return self.labels[order][self.units.member] if self.by_unit else self.labels[order]


def settings() -> list[Setting]:
    """All of them."""
    texts = Units.single(N_TEXTS)
    halves, rare = torch.arange(N_TEXTS) % 2, (torch.arange(N_TEXTS) < 0.15 * N_TEXTS).long()
    quarters = torch.arange(N_TEXTS) % 4
    normal = Setting("normal", texts, halves)
    return [
        normal,
        replace(normal, name="tied", tied=True, of_answers=False),
        replace(normal, name="imbalanced 15/85", labels=rare, scale=1.0 + rare, of_answers=False),
        _grouped(2),
        _grouped(8),
        _twins(),
        _word_pairs(),
        replace(normal, name="3 prompts", n_prompts=3, of_answers=False),
        replace(
            normal,
            name="4 classes, 1 vs rest",
            labels=quarters,
            scale=1.0 + quarters,
            class_id=2,
            of_answers=False,
        ),
    ]


def few_groups() -> Setting:
    """As few units as a bootstrap may have to do with."""
    return replace(_grouped(8, 20), name="groups of 8, few")


def _grouped(size: int, n_groups: int = 60) -> Setting:
    groups = torch.arange(n_groups).repeat_interleave(size)
    units = Units.of([groups.tolist()], what="group")
    naive = Units.single(len(groups))
    return Setting(f"groups of {size}", units, torch.arange(n_groups) % 2, by_unit=True, naive=naive)


def _twins(n_pairs: int = 80) -> Setting:
    pair = torch.arange(n_pairs).repeat_interleave(2)
    units = Units.of([pair.tolist()], what="pair of twins", pair=pair)
    return Setting("twins", units, torch.arange(2 * n_pairs) % 2)


def _word_pairs(n_words: int = 26, n_pairs: int = 100) -> Setting:
    pair = torch.arange(n_pairs).repeat_interleave(2)
    drawn = torch.randint(n_words, (n_pairs,), generator=torch.Generator().manual_seed(0))
    word = torch.cat([torch.arange(n_words), drawn[n_words:]])[pair]
    units = Units.of([word.tolist()], what="word pair", pair=pair)
    twins = Units.of([pair.tolist()], what="pair of twins", pair=pair)
    return Setting("word pairs", units, torch.arange(2 * n_pairs) % 2, words=word, naive=twins)
