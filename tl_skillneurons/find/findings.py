"""What one run found: every phase's result, by its name."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd
from jaxtyping import Float
from torch import Tensor

from tl_skillneurons._results import html_of, one_line
from tl_skillneurons.find.answers import PromptAnswers
from tl_skillneurons.find.price import Price
from tl_skillneurons.find.readability import Readability
from tl_skillneurons.find.said import label_said
from tl_skillneurons.find.stability import Stability
from tl_skillneurons.find.verdicts import (
    Verdict,
    judge_answers,
    judge_effects,
    judge_price,
    judge_readability,
    judge_stability,
)
from tl_skillneurons.interventions.effect_panel import EffectPanel
from tl_skillneurons.neurons.neuron_set import NeuronSet
from tl_skillneurons.prompts.soft_prompt import SoftPrompt
from tl_skillneurons.scores.evaluated_rules import AllRules
from tl_skillneurons.scores.neuron_scores import NeuronScores
from tl_skillneurons.studies.profiles.result import NeuronProfiles
from tl_skillneurons.tasks.task import Task


@dataclass(frozen=True, eq=False)
class Neurons:
    """What a run found out about neurons, where some prompt does the task.

    Attributes:
        scores, skill, rules, readability, effects, curve, stability, price, profiles: As in :class:`Findings`.
    """

    scores: NeuronScores
    skill: NeuronSet
    rules: AllRules
    readability: Readability
    effects: EffectPanel
    curve: EffectPanel
    stability: Stability
    price: Price | None
    profiles: NeuronProfiles


@dataclass(frozen=True, eq=False, repr=False)
class Findings:
    """What one run found.

    Where no prompt beats always saying the commonest label (``stopped``), there is nothing but the prompts and their
    answers; asking for more is refused with that sentence.

    Attributes:
        task: The labelled text.
        model: What the run records of its model: plain JSON values.
        fitted: The soft prompts, one per seed.
        answers: What each of them answers on ``report``, beside the majority.
        neurons: What was found out about neurons; ``None`` where the run stopped.
        settings: Everything that was asked for, as plain JSON values.
        seconds: Of each phase, what it took on a clock (``wall``) and of processors (``cpu``).
        folder: Where the run lives.

    Example:
        >>> found = skn.find_skill_neurons(model, task, out="run")
        >>> [(verdict.question, verdict.answer) for verdict in found.verdicts]
        >>> found.effects.to_dataframe(each_prompt=False)
    """

    task: Task
    model: dict[str, Any]
    fitted: list[SoftPrompt]
    answers: PromptAnswers
    neurons: Neurons | None
    settings: dict[str, Any]
    seconds: dict[str, dict[str, float]]
    folder: Path

    @property
    def stopped(self) -> bool:
        """Whether no prompt does the task, so that no neurons were looked for."""
        return self.neurons is None

    @cached_property
    def used(self) -> tuple[int, ...]:
        """The numbers of the prompts that beat the majority."""
        return self.answers.beating

    @property
    def prompts(self) -> list[SoftPrompt]:
        """The prompts that neurons were looked for with: those that beat the majority."""
        return [self.fitted[number] for number in self.used]

    @property
    def scores(self) -> NeuronScores:
        """Every neuron's scores, thresholds from ``baseline``, accuracies on ``select``, with their null and every
        rule's answers, so that ``significant`` and ``studies.diagnose`` work on them."""
        return self._found.scores

    @property
    def skill(self) -> NeuronSet:
        """The skill neurons, best first: of each layer the share (or count) ``top`` of highest predictivity."""
        return self._found.skill

    @property
    def rules(self) -> AllRules:
        """Every neuron's rule on ``report``, which chose nothing."""
        return self._found.rules

    @property
    def readability(self) -> Readability:
        """How well the label is read off the best neurons, beside random ones, probes and luck."""
        return self._found.readability

    @property
    def effects(self) -> EffectPanel:
        """What holding the skill neurons at their mean at the prompt positions does to the answers on ``report``,
        beside random, matched and least predictive neurons; for each prompt, and pooled."""
        return self._found.effects

    @property
    def curve(self) -> EffectPanel:
        """The same for sets of several sizes, named by their share or count, on fewer examples with fewer controls."""
        return self._found.curve

    @property
    def stability(self) -> Stability:
        """How far prompts agree about the neurons."""
        return self._found.stability

    @property
    def price(self) -> Price | None:
        """What plain text costs with the skill neurons held; ``None`` for encoders, of which it isn't measured."""
        return self._found.price

    @property
    def profiles(self) -> NeuronProfiles:
        """What texts and words drive the best skill neurons, one by one."""
        return self._found.profiles

    @property
    def on_select(self) -> Float[Tensor, " neuron"]:
        """Accuracy of each skill neuron's rule on ``select``, which chose it: too good."""
        return self.scores.accuracy_of(self.skill)

    @property
    def on_report(self) -> Float[Tensor, " neuron"]:
        """The same on ``report``, which chose nothing."""
        return self.rules.accuracy_of(self.skill)

    @cached_property
    def verdicts(self) -> tuple[Verdict, ...]:
        """What all of it allows to say, a verdict a question; the first alone where the run stopped."""
        run = str(self.folder)
        words = [label_said(self.task, label) for label in range(self.task.n_classes)]
        first = judge_answers(self.answers, words, run)
        if self.neurons is None:
            return (first,)
        return (
            first,
            judge_readability(self.readability, run),
            judge_effects(self.effects, run),
            judge_stability(self.stability, run),
            judge_price(self.price, run),
        )

    def to_dataframe(self) -> pd.DataFrame:
        """One row per skill neuron, best first: layer, index, on_select, on_report; none where the run stopped."""
        if self.stopped:
            return pd.DataFrame({name: [] for name in ("layer", "index", "on_select", "on_report")})
        return self.skill.to_dataframe().assign(
            on_select=self.on_select.numpy(), on_report=self.on_report.numpy()
        )

    @property
    def _found(self) -> Neurons:
        if self.neurons is None:
            raise ValueError(f"this run has no neurons. {self.verdicts[0].sentence}")
        return self.neurons

    def __repr__(self) -> str:
        told: dict[str, Any] = {"n_prompts": len(self.fitted)}
        if self.neurons is not None:
            told |= {"n_skill_neurons": len(self.skill), "on_report": float(self.on_report.mean())}
        verdicts = [verdict.answer for verdict in self.verdicts]
        return one_line(self, task=self.task.name, **told, verdicts=verdicts)

    def _repr_html_(self) -> str:
        return html_of(self)
