"""Can the prompts do the task? Their answers on ``report`` beside those of always saying the same.

With ``right_p(x)`` whether prompt ``p`` is right on example ``x``, and ``most`` the label that most examples have::

    accuracy   = mean of right_p(x)                      majority = mean of 1[y(x) = most]
    balanced   = mean over labels of the accuracy on the examples of that label
    p_majority = p of McNemar's test of right_p against 1[y = most], whole units turned, times the number of prompts

A prompt beats the majority when it is right more often, at ``p_majority <= 0.05``: of several that learnt nothing one
or the other is out by chance more often than a single one (Bonferroni). One that doesn't has no skill that
neurons could be looked for; it may answer the commoner label on every text and be right on 87 % of them.

What it does not show: that the prompt learnt the task from ``train``; an untuned prompt, or one tuned on shuffled
labels, may do as well (``studies.compare_readings``).
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from tl_skillneurons._files import load_tensors, save_tensors, sound
from tl_skillneurons._progress import progress_bar
from tl_skillneurons._results import html_of, one_line
from tl_skillneurons.prompts.prompted_model import PromptedModel
from tl_skillneurons.prompts.run import RunOptions, prompt_record
from tl_skillneurons.prompts.soft_prompt import SoftPrompt
from tl_skillneurons.stats.hypothesis_tests import mcnemar
from tl_skillneurons.stats.intervals import bootstrap_counts, bootstrap_ends
from tl_skillneurons.stats.rates import rate_interval
from tl_skillneurons.stats.units import Units
from tl_skillneurons.tasks.task import Task

KIND = "PromptAnswers"
ALPHA = 0.05
"""The level of every verdict's tests."""


@dataclass(frozen=True, eq=False, repr=False)
class PromptAnswers:
    """What each prompt answers on ``report``.

    Attributes:
        logits: Class logits.
        labels: Class of each example.
        units: Which examples belong together; intervals and tests go by them.
        settings: Prompts and task, as plain JSON values; of each prompt how tuning went.

    Example:
        >>> found.answers.to_dataframe()[["seed", "accuracy", "majority", "p_majority", "beats_majority"]]
    """

    logits: Float[Tensor, "prompt example n_classes"]
    labels: Int[Tensor, " example"]
    units: Units
    settings: dict[str, Any]

    @property
    def answers(self) -> Int[Tensor, "prompt example"]:
        """The class that each prompt answers."""
        return self.logits.argmax(2)

    @property
    def right(self) -> Bool[Tensor, "prompt example"]:
        """Whether that is the example's."""
        return self.answers == self.labels

    @property
    def commonest(self) -> int:
        """The class that most examples have; the lowest among equals."""
        return int(self.labels.bincount().argmax())

    @property
    def majority(self) -> float:
        """Its share of the examples: how often whoever always says it is right."""
        return float((self.labels == self.commonest).double().mean())

    @property
    def beating(self) -> tuple[int, ...]:
        """The numbers of the prompts that beat the majority."""
        frame = self.to_dataframe()
        return tuple(int(prompt) for prompt in frame.prompt[frame.beats_majority])

    def to_dataframe(self, *, seed: int = 0) -> pd.DataFrame:
        """One row per prompt: ``prompt``, ``seed``, ``accuracy`` and ``balanced`` with 95 % intervals
        (``accuracy_low``, ...; exact where examples stand alone, otherwise bootstrapped by units), ``majority``,
        ``p_majority``, ``beats_majority``; ``says``, the class it answers most, and on which share of the texts
        (``says_share``); how tuning went (``outcome``, ``held_back``, ``n_cut``).
        """
        always = self.labels == self.commonest
        rows = []
        for number, (right, answers) in enumerate(zip(self.right, self.answers, strict=True)):
            accuracy = float(right.double().mean())
            low, high = rate_interval(right, self.units, seed=seed)
            balanced, balanced_low, balanced_high = balanced_accuracy(
                right, self.labels, self.units, seed=seed
            )
            p_value = min(1.0, len(self.right) * mcnemar(always, right, units=self.units).p_value)
            counts = answers.bincount()
            told = self.settings["prompts"][number]
            rows.append(
                {
                    "prompt": number,
                    "seed": told["seed"],
                    "accuracy": accuracy,
                    "accuracy_low": low,
                    "accuracy_high": high,
                    "balanced": balanced,
                    "balanced_low": balanced_low,
                    "balanced_high": balanced_high,
                    "majority": self.majority,
                    "p_majority": p_value,
                    "beats_majority": bool(accuracy > self.majority and p_value <= ALPHA),
                    "says": int(counts.argmax()),
                    "says_share": float(counts.max()) / len(answers),
                    "outcome": told["outcome"],
                    "held_back": told["held_back"],
                    "n_cut": told["n_cut"],
                }
            )
        return pd.DataFrame(rows).assign(
            role="report", n_examples=len(self.labels), unit=self.units.what, n_units=len(self.units)
        )

    def __repr__(self) -> str:
        accuracy = [round(one, 3) for one in self.right.double().mean(1).tolist()]
        n = len(self.labels)
        return one_line(
            self, accuracy=accuracy, majority=self.majority, n_examples=n, n_units=len(self.units)
        )

    def _repr_html_(self) -> str:
        return html_of(self)

    def save(self, path: Path) -> Path:
        """Write it to one safetensors file, whole or not at all."""
        tensors = {"logits": self.logits, "labels": self.labels, "units": self.units.member}
        return save_tensors(path, KIND, tensors, {"settings": self.settings, "unit": self.units.what})

    @classmethod
    def load(cls, path: Path) -> "PromptAnswers":
        """What :meth:`save` wrote.

        Raises:
            FileNotFoundError: When there is no such file.
            ValueError: When the file is corrupt or holds something else.
        """
        tensors, header = load_tensors(path, KIND)
        with sound(path, KIND):
            units = Units(tensors["units"], header["unit"])
            return cls(tensors["logits"], tensors["labels"], units, header["settings"])


def measure_answers(
    model: TransformerBridge, prompts: list[SoftPrompt], task: Task, run: RunOptions
) -> PromptAnswers:
    """Every prompt's answers on ``report``."""
    split = task.split("report")
    texts = list(split["text"])
    logits, told = [], []
    with progress_bar("asking prompts", len(prompts), show=run.progress) as advance:
        for prompt in prompts:
            prompted = PromptedModel.for_task(model, prompt, task, run=run)
            with torch.no_grad():
                logits.append(prompted.class_logits(texts).float().cpu())
            told.append(
                {
                    **prompt_record(prompt),
                    "outcome": prompt.provenance["outcome"],
                    "held_back": prompt.provenance["held_back_accuracy"],
                    "n_cut": prompted.n_truncated(texts),
                }
            )
            advance()
    settings = {"task": {"name": task.name, "fingerprint": task.fingerprint}, "prompts": told}
    return PromptAnswers(torch.stack(logits), torch.tensor(split["label"]), task.units("report"), settings)


def balanced_accuracy(
    right: Bool[Tensor, " example"], labels: Int[Tensor, " example"], units: Units, *, seed: int = 0
) -> tuple[float, float, float]:
    """The mean over classes of the accuracy on their examples, and its 95 % bootstrap interval over units.

    A draw of the bootstrap that lacks a class goes by the others.

    Example:
        >>> right, labels = torch.tensor([True] * 9 + [False]), torch.tensor([0] * 9 + [1])
        >>> balanced_accuracy(right, labels, Units.single(10))[0]  # always says 0
        0.5
    """
    weights = bootstrap_counts(len(right), 2000, torch.Generator().manual_seed(seed), units=units)
    of_class = torch.nn.functional.one_hot(labels).double()
    of_class = of_class[:, of_class.sum(0) > 0]
    value = (of_class * right.double()[:, None]).sum(0) / of_class.sum(0)
    drawn = (weights @ (of_class * right.double()[:, None])) / (weights @ of_class)
    low, high = bootstrap_ends(drawn.nanmean(1)[None], 0.95, units)
    return float(value.mean()), float(low), float(high)
