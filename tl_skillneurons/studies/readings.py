"""Why does prompt tuning help? The same scores read with tuned prompts and with everything less than that.

Each reading scores all neurons on the same examples in the same way; what differs is what stands beside the text:

=================== ===================================================================================
tuned               the prompts given
random              as many random tokens of the vocabulary: virtual tokens, but no training
natural             a sentence of natural language
shuffled            prompts tuned on labels that were permuted: training, but nothing to learn
last, mean, max     no prompt: the text's own last token, their mean, their maximum
reinitialised       the tuned prompts in a model of random weights: training of the prompt, none of the model
=================== ===================================================================================

Readings differ in how many positions the best is taken from, so their best scores on ``select`` are not comparable:
each stands beside its own level. What is compared is ``report``: with ``right_rn(x)`` whether neuron ``n``'s rule is
right under reading ``r``, and ``T_r`` its best neurons::

    accuracy_r    = mean over x of  mean over n in T_r (and prompts) of right_rn(x)
    minus_tuned_r = accuracy_r - accuracy_tuned,   paired by example, intervals by units

What it does not show: why a reading does better; a prompt that helps may only show the neurons a better place. The
controls are the readings themselves (the design of control tasks: Hewitt and Liang, 2019).
"""

import math
import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from tl_skillneurons._checks import require_int, require_option, require_seed
from tl_skillneurons._results import html_of, one_line
from tl_skillneurons._widths import known
from tl_skillneurons.models.sites import neuron_shape
from tl_skillneurons.models.tokenizing import piece_ids
from tl_skillneurons.neurons.neuron_set import NeuronSet
from tl_skillneurons.prompts.prompted_model import PromptedModel
from tl_skillneurons.prompts.run import RunOptions
from tl_skillneurons.prompts.soft_prompt import SoftPrompt
from tl_skillneurons.prompts.tuning.fit import fit_soft_prompts
from tl_skillneurons.prompts.tuning.schedule import embedding_rows
from tl_skillneurons.scores.neuron_scores import NeuronScores
from tl_skillneurons.scores.predictivity import require_orders, score_neurons
from tl_skillneurons.scores.rules import rule_answers
from tl_skillneurons.stats.intervals import (
    FEWEST_PROMPTS,
    bootstrap_mean,
    interval_scope,
    two_level_bootstrap,
)
from tl_skillneurons.stats.skewness import student_quantile
from tl_skillneurons.stats.units import Units
from tl_skillneurons.studies._common import load_with_scores, null_of, save_with_scores, settings_of
from tl_skillneurons.tasks.task import Task
from tl_skillneurons.tasks.two_classes import require_two_classes

KIND = "ReadingComparison"
UNTUNED = ("random", "last", "mean", "max")
"""The readings that need nothing more than the model and the prompts."""


@dataclass(frozen=True, eq=False)
class ReadingComparison:
    """Scores by reading, and how well each reading's best neurons do on ``report``.

    Attributes:
        scores: By reading, its scores with their null.
        tops: By reading, its best neurons.
        accuracy: By reading, for each prompt and example of ``report`` the share of the best neurons that are right.
        units: Which examples of ``report`` belong together; intervals draw them together.
        settings: Model, task, prompts, ``max_length`` and settings, as plain JSON values.

    Example:
        >>> found = skn.studies.compare_readings(model, prompts, task, natural=["In short, it was"])
        >>> found.to_dataframe()[["reading", "best", "level", "accuracy", "minus_tuned"]]
    """

    scores: dict[str, NeuronScores]
    tops: dict[str, NeuronSet]
    accuracy: dict[str, Float[Tensor, "prompt example"]]
    units: Units
    settings: dict[str, Any] = field(default_factory=dict)

    def __repr__(self) -> str:
        shown = {name: round(float(right.mean()), 3) for name, right in self.accuracy.items()}
        return one_line(
            self, accuracy=shown, n_examples=self.accuracy["tuned"].shape[1], n_units=len(self.units)
        )

    def _repr_html_(self) -> str:
        return html_of(self)

    def save(self, folder: str | os.PathLike[str]) -> Path:
        """Write it to a folder: a file for each reading's scores, and one with the rest, which is written last."""
        names = pd.DataFrame({"reading": list(self.scores)})
        right = pd.DataFrame(
            {f"{k} {name}": row.numpy() for name, one in self.accuracy.items() for k, row in enumerate(one)}
        )
        units = pd.DataFrame({"member": self.units.member.numpy()})
        tables = {"readings": names, "accuracy": right, "units": units}
        return save_with_scores(folder, KIND, self.settings, tables, list(self.scores.values()))

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> "ReadingComparison":
        """The comparison that :meth:`save` wrote.

        Raises:
            FileNotFoundError: When a file is missing.
            ValueError: When one is corrupt or holds something else.
        """
        tables, settings, kept = load_with_scores(folder, KIND, ("readings", "accuracy", "units"), "readings")
        scores = dict(zip(tables["readings"].reading, kept, strict=True))
        tops = {name: one.top(settings["n_top"], per="model") for name, one in scores.items()}
        accuracy = {
            name: torch.stack(
                [torch.tensor(tables["accuracy"][f"{k} {name}"].to_numpy()) for k in range(one.n_prompts)]
            )
            for name, one in scores.items()
        }
        units = Units(torch.tensor(tables["units"].member.to_numpy()), settings["unit"])
        return cls(scores, tops, accuracy, units, settings)

    def to_dataframe(self, *, confidence: float = 0.95, seed: int = 0) -> pd.DataFrame:
        """One row per reading.

        Columns: ``reading``, ``n_prompts``, ``n_positions``; on ``select`` the ``best`` predictivity, the ``level``
        that luck reaches in 5 % of cases (permuted labels), ``n_significant`` neurons above it; on ``report`` the
        mean ``accuracy`` of the best neurons with its interval over units, and over prompts where there are enough
        (``low``, ``high``; ``about`` says what it speaks for), and ``minus_tuned`` with its own (``minus_low``,
        ``minus_high``; units are paired, prompts are not).
        """
        require_seed(seed)
        rows = []
        tuned, units = self.accuracy["tuned"], self.units
        for name, scores in self.scores.items():
            own = self.accuracy[name]
            low, high = two_level_bootstrap(own, confidence=confidence, seed=seed, units=units)
            apart = own.mean(0) - tuned.mean(0)
            widths = [0.0] if name == "tuned" else [_prompts_width(one, confidence) for one in (own, tuned)]
            middle = float(apart.mean())
            ends = bootstrap_mean(apart, confidence=confidence, seed=seed, units=units)
            down, up = (abs(float(end) - middle) for end in ends)
            row = {
                "reading": name,
                "n_prompts": len(scores.baseline),
                "n_positions": scores.baseline.shape[2],
                "best": float(known(scores.predictivity).max()),
                "level": null_of(scores).level(),
                "n_significant": len(scores.significant()),
                "accuracy": float(own.mean()),
                "low": float(low),
                "high": float(high),
                "minus_tuned": middle,
                "minus_low": middle - math.hypot(down, *widths),
                "minus_high": middle + math.hypot(up, *widths),
                "about": interval_scope(len(own), self.units),
            }
            rows.append(row)
        return pd.DataFrame(rows).assign(
            n_examples=tuned.shape[1], unit=self.units.what, n_units=len(self.units), role="report"
        )


def compare_readings(
    model: TransformerBridge,
    prompts: SoftPrompt | Sequence[SoftPrompt | None] | None,
    task: Task,
    readings: Sequence[str] = UNTUNED,
    *,
    natural: Sequence[str] = (),
    shuffled: Mapping[str, Any] | None = None,
    reinitialised: TransformerBridge | None = None,
    n_top: int = 10,
    n_permutations: int = 1000,
    seed: int = 0,
    max_length: int | None = None,
    run: RunOptions = RunOptions(),
) -> ReadingComparison:
    """Score all neurons with the tuned prompts and with each control.

    Args:
        readings: Of "random" (as many prompts of random tokens) and "last", "mean", "max" (the text without a prompt).
        natural: Sentences that stand where the virtual tokens do, such as " All in all, the film was".
        shuffled: Settings of :func:`~tl_skillneurons.fit_soft_prompts`, those of the tuned prompts, with which as
            many prompts are tuned on permuted labels; ``None`` leaves that control out.
        reinitialised: A model of the same shape with random weights, such as
            ``transformer_lens.model_bridge.random_init_bridge(folder, seed=0)``.
        n_top: Best neurons of the whole model that are compared on ``report``.
        n_permutations: For each reading's level; at least 19.
        max_length: Longest sequence in tokens, virtual tokens included; by default what the prompts were tuned with.
            Readings without a prompt see the same part of each text.

    Raises:
        ValueError: For a task of more than two classes or too few units for a level, prompts of different kinds or
            lengths, or a re-initialised model of another shape.

    Example:
        >>> found = skn.studies.compare_readings(
        ...     model, prompts, task, natural=["In short, it was"], shuffled={"n_steps": 300}
        ... )
        >>> found.to_dataframe()
    """
    require_seed(seed)
    require_two_classes(task)
    require_orders(task, n_permutations, 0.05)
    require_int(n_top, "n_top")
    for one in readings:
        require_option(one, "readings", UNTUNED)
    given = [prompts] if prompts is None or isinstance(prompts, SoftPrompt) else list(prompts)
    tuned = [prompt for prompt in given if prompt is not None]
    if not tuned or len(tuned) < len(given):
        raise ValueError('give the tuned prompts; readings without a prompt come by readings=["last", ...]')
    if reinitialised is not None and neuron_shape(reinitialised) != neuron_shape(model):
        raise ValueError(
            f"the re-initialised model must have the shape of the model, {neuron_shape(model)}, got "
            f"{neuron_shape(reinitialised)}"
        )
    plan = {"tuned": _Reading(model, tuned, "prompt", max_length)}
    if "random" in readings:
        plan["random"] = _Reading(model, _random_prompts(model, tuned, seed), "prompt", max_length)
    for number, text in enumerate(natural):
        name = "natural" if len(natural) == 1 else f"natural {number}"
        plan[name] = _Reading(model, [natural_prompt(model, text, tuned[0])], "prompt", max_length)
    if shuffled is not None:
        noise = _tuned_on_noise(model, tuned, task.with_shuffled_labels(seed), shuffled, max_length, run)
        plan["shuffled"] = _Reading(model, noise, "prompt", max_length)
    for how in readings:
        if how != "random":
            plan[how] = _Reading(model, None, how, _text_length(model, tuned[0], max_length))
    if reinitialised is not None:
        plain = [_bare(prompt.embedding, prompt) for prompt in tuned]
        plan["reinitialised"] = _Reading(reinitialised, plain, "prompt", max_length)
    scores, tops, accuracy = {}, {}, {}
    for name, (of_model, of_prompts, positions, length) in plan.items():
        own = run if of_model is model and positions == "prompt" else replace(run, cache=None)
        scores[name] = score_neurons(
            of_model,
            of_prompts,
            task,
            positions=positions,
            n_permutations=n_permutations,
            seed=seed,
            max_length=length,
            run=own,
        )
        tops[name] = scores[name].top(n_top, per="model")
        accuracy[name] = rule_answers(
            of_model, of_prompts, task, scores[name], tops[name], max_length=length, run=own
        ).mean(2)
    units = task.units("report")
    settings = settings_of(
        model,
        task,
        tuned,
        unit=units.what,
        n_units=len(units),
        natural=list(natural),
        shuffled=shuffled,
        n_top=n_top,
        n_permutations=n_permutations,
        max_length=scores["tuned"].provenance.get("max_length"),
        seed=seed,
    )
    return ReadingComparison(scores, tops, accuracy, units, settings)


def _prompts_width(right: Float[Tensor, "prompt example"], confidence: float) -> float:
    """How far the interval over other prompts reaches; 0 of too few."""
    n = len(right)
    if n < FEWEST_PROMPTS:
        return 0.0
    return student_quantile(n, confidence) * float(right.mean(1).std()) / math.sqrt(n)


class _Reading(NamedTuple):
    """How one reading is scored."""

    model: TransformerBridge
    prompts: list[SoftPrompt] | None
    positions: str
    max_length: int | None


def _text_length(model: TransformerBridge, prompt: SoftPrompt, max_length: int | None) -> int | None:
    """The longest text alone that is as long as what stands beside the prompt; ``None`` where nobody set a limit."""
    wanted = prompt.max_length if max_length is None else max_length
    return None if wanted is None else wanted - PromptedModel(model, prompt).n_prompt_positions


def _tuned_on_noise(
    model: TransformerBridge,
    tuned: Sequence[SoftPrompt],
    noise: Task,
    settings: Mapping[str, Any],
    max_length: int | None,
    run: RunOptions,
) -> list[SoftPrompt]:
    """As many prompts of the same kind, tuned on a task with nothing to learn."""
    length = tuned[0].max_length if max_length is None else max_length
    alike = {
        "seeds": range(len(tuned)),
        "n_virtual_tokens": tuned[0].n_virtual_tokens,
        "max_length": length,
        "run": run,
    }
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*not below chance")  # which is what it is for
        return fit_soft_prompts(model, noise, **{**alike, **settings})


def natural_prompt(model: TransformerBridge, text: str, like: SoftPrompt) -> SoftPrompt:
    """The embeddings of a text's tokens as a prompt that stands where ``like`` does.

    Raises:
        ValueError: When the text has no token.

    Example:
        >>> natural_prompt(model, " All in all, the film was", prompts[0])
    """
    ids = piece_ids(model, text)
    if not ids:
        raise ValueError(f"a natural-language prompt must have at least one token, got {text!r}")
    return _bare(embedding_rows(model, torch.tensor(ids)), like)


def _random_prompts(model: TransformerBridge, like: Sequence[SoftPrompt], seed: int) -> list[SoftPrompt]:
    generator = torch.Generator().manual_seed(require_seed(seed))
    n_words = min(model.W_E.shape[0], model.cfg.d_vocab)
    return [
        _bare(
            embedding_rows(model, torch.randint(n_words, (one.n_virtual_tokens,), generator=generator)), one
        )
        for one in like
    ]


def _bare(embedding: Float[Tensor, "virtual_token d_embed"], like: SoftPrompt) -> SoftPrompt:
    return SoftPrompt(
        embedding.detach(),
        placement=like.placement,
        prepend_bos=like.prepend_bos,
        chat=like.chat,
        max_length=like.max_length,
    )
