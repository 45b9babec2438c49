"""What is left of skill neurons without the task's strongest words? (Wang et al., 2022, section 5.3)

The words whose presence goes most with the label are found on ``train``, from texts and labels alone. The set's rules,
as ``select`` chose them, are then right on so many texts of ``report`` that have one of these words, and on so many
that have none. A neuron that detects the words has nothing to go by on the latter and falls to what guessing gives.

What it does not show: weaker words are still there, and so are pairs of words, negation and whatever else goes with the
label; texts without strong words are fewer and harder, for the prompt and for random neurons too, which stand beside.
The control is random neurons of the same layers, with rules of their own; no draw stands twice. Intervals are over the
task's units: what belongs together is drawn together.
"""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import reduce
from operator import or_
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from tl_skillneurons._checks import require_int, require_seed
from tl_skillneurons._results import html_of, one_line
from tl_skillneurons.neurons.choice import require_apart
from tl_skillneurons.neurons.controls import draw_controls
from tl_skillneurons.neurons.neuron_set import Neurons, NeuronSet, as_neurons
from tl_skillneurons.prompts.prompted_model import PromptedModel
from tl_skillneurons.prompts.run import RunOptions, as_list
from tl_skillneurons.prompts.soft_prompt import SoftPrompt
from tl_skillneurons.scores.measured import require_measured_here
from tl_skillneurons.scores.neuron_scores import NeuronScores
from tl_skillneurons.scores.rules import rule_answers
from tl_skillneurons.stats.hypothesis_tests import rank_p_value, require_draws
from tl_skillneurons.stats.intervals import interval_scope, two_level_bootstrap
from tl_skillneurons.stats.ranks import median
from tl_skillneurons.stats.units import Units
from tl_skillneurons.studies._common import load_tables, right_answers, save_tables, settings_of
from tl_skillneurons.studies.words.presence import distinct_words, word_correlations, word_presence
from tl_skillneurons.tasks.subtasks import against_rest
from tl_skillneurons.tasks.task import Task
from tl_skillneurons.tasks.two_classes import require_class

KIND = "AccuracyWithoutWords"
_TOLD = ("unit", "n_units", "about", "smallest_p", "warnings")
_MOST_NUMBERS = 2**24  # of one run's answers: 128 MB in float64
_ROUNDING = 1e-9  # of a correlation that is 0


@dataclass(frozen=True, eq=False)
class AccuracyWithoutWords:
    """Accuracy of a set's rules on texts with and without the words that go most with the label.

    Attributes:
        words: A row per word, the strongest first: ``word``, its correlation ``r`` with label 1 on ``train``, and the
            ``n_texts`` of ``train`` that have it.
        groups: A row per group of texts (``"all"``, ``"with words"``, ``"without words"``): ``n_examples`` and the
            ``n_units`` they belong to; the mean ``accuracy`` of the neurons over prompts with its interval over units,
            and over prompts where there are enough (``low``, ``high``; ``about`` in the settings);
            ``majority``, the share of the group's larger class; of random neurons ``random_median``, ``random_max``
            and the share ``p_random`` of them that are as good; ``prompt_accuracy``, the model's own with the prompts,
            on average. A group without a text has NaN.
        settings: Model, task, prompts and settings, as plain JSON values; the ``unit`` of the intervals and how many
            there are (``n_units``), the ``smallest_p`` that the draws allow, and ``warnings`` of too few.

    Example:
        >>> found = skn.studies.accuracy_without_words(model, prompts, task, scores, skill)
        >>> found.words.head(), found.groups[["texts", "accuracy", "majority", "random_median"]]
    """

    words: pd.DataFrame
    groups: pd.DataFrame
    settings: dict[str, Any] = field(default_factory=dict)

    def __repr__(self) -> str:
        every, _, without = self.groups.itertuples()
        return one_line(
            self,
            n_words=len(self.words),
            accuracy=every.accuracy,
            without_words=without.accuracy,
            random_without_words=without.random_median,
            n_examples=every.n_examples,
            n_without=without.n_examples,
            **_told(self.settings),
        )

    def _repr_html_(self) -> str:
        return html_of(self)

    def to_dataframe(self) -> pd.DataFrame:
        """A copy of :attr:`groups`; ``attrs`` tells the unit and what the random draws allow."""
        frame = self.groups.copy()
        frame.attrs |= {name: self.settings[name] for name in _TOLD if name in self.settings}
        return frame

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write both tables to one JSON file, whole or not at all."""
        return save_tables(path, KIND, self.settings, {"words": self.words, "groups": self.groups})

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "AccuracyWithoutWords":
        """What :meth:`save` wrote.

        Raises:
            FileNotFoundError: When there is no such file.
            ValueError: When the file is corrupt or holds something else.
        """
        tables, settings = load_tables(path, KIND, ("words", "groups"))
        return cls(**tables, settings=settings)


def accuracy_without_words(
    model: TransformerBridge,
    prompts: SoftPrompt | Sequence[SoftPrompt] | None,
    task: Task,
    scores: NeuronScores,
    neurons: Neurons,
    *,
    n_words: int = 20,
    min_texts: int = 5,
    role: str = "report",
    n_random: int = 20,
    seed: int = 0,
    on_chosen_examples: bool = False,
    run: RunOptions = RunOptions(),
) -> AccuracyWithoutWords:
    """The accuracy of the neurons' rules on ``role``: on all texts, on those with, and on those without strong words.

    It does not show that no word matters: weaker words, and words together, are still there. Where the prompt and
    random neurons fall as well, the texts without the words are harder, and not the neurons simpler.

    Args:
        prompts: Those the scores are of; ``None`` has no ``prompt_accuracy``.
        scores: Of more than two classes those of one of them (:func:`~tl_skillneurons.scores.score_classes`), which is
            told from all others: by the rules, the words and the prompts.
        n_words: How many of the strongest words; all that count where there are fewer.
        min_texts: A word counts when it stands in, and is absent from, at least so many texts of ``train``; and at
            least so many texts of ``role`` must be without the words.
        n_random: Distinct draws of as many random neurons of the same layers, with the rules that ``select`` chose for
            them; all where there are fewer.
        seed: Of the first draw, and of the bootstrap.
        on_chosen_examples: Measure though some texts of ``role`` chose the neurons; every row then says so.

    Raises:
        ValueError: For an empty set, scores of other prompts, neurons that these texts chose, too few draws, or when
            too few texts are without the words.

    Example:
        >>> found = skn.studies.accuracy_without_words(model, prompts, task, scores, skill)
        >>> found.groups[["texts", "accuracy", "low", "high", "majority", "random_median", "p_random"]]
    """
    neurons = as_neurons(neurons)
    require_seed(seed)
    require_int(n_words, "n_words")
    require_int(min_texts, "min_texts")
    require_draws(n_random)
    neurons.require_fits(scores.n_layers, scores.d_mlp)
    if not len(neurons):
        raise ValueError("neurons must hold at least one neuron, got none")
    chosen = as_list(prompts)
    max_length = scores.provenance.get("max_length")  # texts are cut as they were for the scores
    require_measured_here(scores, model, chosen, task=task, max_length=max_length)
    words = strongest_words(task, n_words, min_texts, class_id=scores.class_id)
    split = task.split(role)
    by = "on_chosen_examples=True"
    where_chosen = require_apart(neurons.choice, list(split["text"]), insist=on_chosen_examples, by=by)
    have = _has_any(list(split["text"]), set(words.word))
    left = int((~have).sum())
    if left < min_texts:
        raise ValueError(
            f"{left} of {len(have)} texts of role {role!r} have none of the {len(words)} strongest words, and at "
            f"least {min_texts} must; lower n_words (got {n_words})"
        )
    whole = NeuronSet(neurons.layer, neurons.index, scores.n_layers, scores.d_mlp, neurons.model)
    controls = draw_controls(whole, n_random, seed=seed)
    sets = [whole, *controls.sets]
    units = task.units(role)

    def answers(some: NeuronSet) -> Float[Tensor, "prompt example chosen"]:
        return rule_answers(model, prompts, task, scores, some, role=role, max_length=max_length, run=run)

    n_rules = len(whole) * len(chosen)
    right = _count_right(sets, answers, max(1, _MOST_NUMBERS // (n_rules * len(have))))
    labels = against_rest(torch.tensor(split["label"]), scores.class_id)
    of_prompts = torch.full((len(labels),), torch.nan, dtype=torch.float64)
    if None not in chosen:
        prompted = [PromptedModel.for_task(model, p, task, max_length=max_length, run=run) for p in chosen]
        of_prompts = torch.stack(
            [right_answers(one, task, role, class_id=scores.class_id) for one in prompted]
        )
        of_prompts = of_prompts.double().mean(0)
    rows = []
    for name, group in (("all", have | ~have), ("with words", have), ("without words", ~have)):
        own = units.take(group.nonzero().flatten())
        row: dict[str, Any] = {"texts": name, "n_examples": own.n_examples, "n_units": len(own)}
        if group.any():
            row |= _of_group(right[:, :, group], len(whole), labels[group], own, seed)
            row["prompt_accuracy"] = float(of_prompts[group].mean())
        rows.append(row)
    counts = {"n_words": n_words, "min_texts": min_texts, "n_random": n_random, "n_neurons": len(whole)}
    settings = settings_of(model, task, chosen, **counts, role=role, seed=seed, max_length=max_length)
    settings |= {"unit": units.what, "n_units": len(units), "about": interval_scope(len(chosen), units)}
    settings |= {"smallest_p": controls.smallest_p, "warnings": list(controls.warnings)}
    groups = pd.DataFrame(rows).assign(n_random=len(controls.sets), role=role, neurons_chosen=where_chosen)
    return AccuracyWithoutWords(words, groups, settings)


def strongest_words(task: Task, n_words: int, min_texts: int, *, class_id: int | None = None) -> pd.DataFrame:
    """The words of ``train`` whose presence goes most with label 1, in either direction; the first in the alphabet
    first among equals. Words that don't go with it at all, as all but one of a pair of twins, are none of them.

    Args:
        n_words: At most so many.
        min_texts: A word counts when it stands in, and is absent from, at least so many texts.
        class_id: The class that counts as label 1, all others as 0; must be said of more than two.

    Returns:
        A row per word: ``word``, its correlation ``r`` with label 1, and the ``n_texts`` that have it.

    Raises:
        ValueError: When no word stands in, and is absent from, ``min_texts`` texts, or none goes with the label; for
            more than two classes without a ``class_id``.

    Example:
        >>> skn.studies.strongest_words(task, n_words=10, min_texts=5)  # word, r, n_texts
    """
    split = task.split("train")
    labels = against_rest(torch.tensor(split["label"]), require_class(task, class_id))
    words, present = word_presence(list(split["text"]), min_texts)
    r = word_correlations(present, labels.double()[:, None])[:, 0]
    strength = torch.where(r.abs() > _ROUNDING, r.abs(), 0)
    first = strength.sort(descending=True, stable=True).indices[: min(n_words, int((strength > 0).sum()))]
    if not len(first):
        raise ValueError(
            f"none of the {len(words)} words that stand in at least {min_texts} texts of role 'train' goes with the "
            "label; give more texts or a lower min_texts"
        )
    n_texts = torch.bincount(present.indices()[0], minlength=len(words))
    return pd.DataFrame(
        {"word": [words[i] for i in first.tolist()], "r": r[first].numpy(), "n_texts": n_texts[first].numpy()}
    )


def _told(settings: dict[str, Any]) -> dict[str, Any]:
    """What a line says of the unit, and of draws that were too few."""
    told = {"units": f"{settings['n_units']} ({settings['unit']})"} if "unit" in settings else {}
    return {**told, **({"warnings": settings["warnings"]} if settings.get("warnings") else {})}


def _has_any(texts: Sequence[str], words: set[str]) -> Bool[Tensor, " text"]:
    return torch.tensor([not words.isdisjoint(distinct_words(text)) for text in texts])


def _count_right(
    sets: Sequence[NeuronSet],
    answers: Callable[[NeuronSet], Float[Tensor, "prompt example chosen"]],
    at_once: int,
) -> Float[Tensor, "set prompt example"]:
    """How many of each set's rules are right on each example; so many sets are read in one run."""
    rows = []
    for start in range(0, len(sets), at_once):
        some = sets[start : start + at_once]
        union = reduce(or_, some)
        right = answers(union)
        place = {neuron: number for number, neuron in enumerate(union)}
        rows += [right[:, :, [place[neuron] for neuron in one]].sum(2) for one in some]
    return torch.stack(rows)


def _of_group(
    right: Float[Tensor, "set prompt example"],
    n_neurons: int,
    labels: Int[Tensor, " example"],
    units: Units,
    seed: int,
) -> dict[str, float]:
    """One group's columns; the set stands first, random ones behind it. Sums of counts, so that equals stay equal."""
    low, high = two_level_bootstrap(right[0] / n_neurons, seed=seed, units=units)
    of_set, *random = (right.sum((1, 2)) / (right[0].numel() * n_neurons)).tolist()
    share = float((labels == 1).double().mean())
    return {
        "accuracy": of_set,
        "low": float(low),
        "high": float(high),
        "majority": max(share, 1 - share),
        "random_median": median(random),
        "random_max": max(random),
        "p_random": rank_p_value(of_set, random, "greater"),
    }
