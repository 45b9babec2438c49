"""What one run found: every phase's result, by its name."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from jaxtyping import Float
from torch import Tensor

from tl_skillneurons._results import html_of, one_line
from tl_skillneurons.interventions.effect_panel import EffectPanel
from tl_skillneurons.neurons import NeuronSet
from tl_skillneurons.prompts.soft_prompt import SoftPrompt
from tl_skillneurons.scores.evaluated_rules import AllRules
from tl_skillneurons.scores.neuron_scores import NeuronScores
from tl_skillneurons.tasks.task import Task


@dataclass(frozen=True, eq=False, repr=False)
class Findings:
    """What one run found.

    Attributes:
        task: The labelled text.
        model: What the run records of its model: plain JSON values.
        prompts: The soft prompts, one per seed.
        scores: Every neuron's scores, thresholds from ``baseline``, accuracies on ``select``, with their null and every
            rule's answers, so that ``significant`` and ``studies.diagnose`` work on them.
        skill: The skill neurons, best first.
        rules: Every neuron's rule on ``report``, which chose nothing.
        effects: What holding the skill neurons at their mean at the prompt positions does to the answers on
            ``report``, beside random and matched neurons; for each prompt, and pooled.
        settings: Everything that was asked for, as plain JSON values.
        folder: Where the run lives.

    Example:
        >>> found = skn.find_skill_neurons(model, task, out="run")
        >>> found.effects.to_dataframe(each_prompt=False)
    """

    task: Task
    model: dict[str, Any]
    prompts: list[SoftPrompt]
    scores: NeuronScores
    skill: NeuronSet
    rules: AllRules
    effects: EffectPanel
    settings: dict[str, Any]
    folder: Path

    @property
    def on_select(self) -> Float[Tensor, " neuron"]:
        """Accuracy of each skill neuron's rule on ``select``, which chose it: too good."""
        return self.scores.accuracy_of(self.skill)

    @property
    def on_report(self) -> Float[Tensor, " neuron"]:
        """The same on ``report``, which chose nothing."""
        return self.rules.accuracy_of(self.skill)

    def to_dataframe(self) -> pd.DataFrame:
        """One row per skill neuron, best first: layer, index, on_select, on_report."""
        return self.skill.to_dataframe().assign(
            on_select=self.on_select.numpy(), on_report=self.on_report.numpy()
        )

    def __repr__(self) -> str:
        return one_line(
            self,
            task=self.task.name,
            n_prompts=len(self.prompts),
            n_skill_neurons=len(self.skill),
            on_select=float(self.on_select.mean()),
            on_report=float(self.on_report.mean()),
        )

    def _repr_html_(self) -> str:
        return html_of(self)
