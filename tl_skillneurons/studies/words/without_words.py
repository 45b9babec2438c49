"""What is left of skill neurons without the task's strongest words? (Wang et al., 2022, section 5.3)

The words whose presence goes most with the label are found on ``train``, from texts and labels alone. The set's rules,
as ``select`` chose them, are then right on so many texts of ``report`` that have one of these words, and on so many
that have none. A neuron that detects the words has nothing to go by on the latter and falls to what guessing gives.

What it does not show: weaker words are still there, and so are pairs of words, negation and whatever else goes with the
label; texts without strong words are fewer and harder, for the prompt and for random neurons too, which stand beside.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from operator import or_
from typing import Any

import pandas as pd
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from tl_skillneurons._checks import require_int
from tl_skillneurons.models.input_cache import InputCache
from tl_skillneurons.neurons import NeuronSet
from tl_skillneurons.prompts.prompted_model import PromptedModel
from tl_skillneurons.prompts.run import as_list
from tl_skillneurons.prompts.soft_prompt import SoftPrompt
from tl_skillneurons.scores.neuron_scores import NeuronScores
from tl_skillneurons.scores.rules import rule_answers
from tl_skillneurons.stats.chance import rank_p_value
from tl_skillneurons.stats.intervals import bootstrap_mean, require_draws
from tl_skillneurons.studies.words.selectivity import distinct_words, word_correlations, word_presence
from tl_skillneurons.tasks.task import Task, require_two_classes

_MOST_NUMBERS = 2**24  # of one run's answers: 128 MB in float64
_ROUNDING = 1e-9  # of a correlation that is 0


@dataclass(frozen=True, eq=False)
class AccuracyWithoutWords:
    """Accuracy of a set's rules on texts with and without the words that go most with the label.

    Attributes:
        words: A row per word, the strongest first: ``word``, its correlation ``r`` with label 1 on ``train``, and the
            ``n_texts`` of ``train`` that have it.
        groups: A row per group of texts (``"all"``, ``"with words"``, ``"without words"``): ``n_examples``; the mean
            ``accuracy`` of the neurons over prompts with its bootstrap interval over examples (``low``, ``high``);
            ``majority``, the share of the group's larger class; of random neurons ``random_median``, ``random_max``
            and the share ``p_random`` of them that are as good; ``prompt_accuracy``, the model's own with the prompts,
            on average. A group without a text has NaN.
    """

    words: pd.DataFrame
    groups: pd.DataFrame

    def to_dataframe(self) -> pd.DataFrame:
        """:attr:`groups`."""
        return self.groups.copy()


def accuracy_without_words(
    model: Any,
    prompts: SoftPrompt | Sequence[SoftPrompt] | None,
    task: Task,
    scores: NeuronScores,
    neurons: NeuronSet,
    *,
    n_words: int = 20,
    min_texts: int = 5,
    role: str = "report",
    n_random: int = 20,
    seed: int = 0,
    batch_size: int | None = None,
    batch_tokens: int | None = None,
    cache: InputCache | None = None,
) -> AccuracyWithoutWords:
    """The accuracy of the neurons' rules on ``role``: on all texts, on those with, and on those without strong words.

    It does not show that no word matters: weaker words, and words together, are still there. Where the prompt and
    random neurons fall as well, the texts without the words are harder, and not the neurons simpler.

    Args:
        prompts: Those the scores are of; ``None`` has no ``prompt_accuracy``.
        n_words: How many of the strongest words; all that count where there are fewer.
        min_texts: A word counts when it stands in, and is absent from, at least so many texts of ``train``; and at
            least so many texts of ``role`` must be without the words.
        n_random: Draws of as many random neurons of the same layers, with the rules that ``select`` chose for them.

    Raises:
        ValueError: For a task of more than two classes, an empty set, scores of other prompts, too few draws, or when
            too few texts are without the words.
    """
    require_two_classes(task)
    require_int(n_words, "n_words")
    require_int(min_texts, "min_texts")
    require_draws(n_random)
    neurons.require_fits(scores.n_layers, scores.d_mlp)
    if not len(neurons):
        raise ValueError("neurons must hold at least one neuron, got none")
    words = strongest_words(task, n_words, min_texts)
    split = task.split(role)
    texts, labels = list(split["text"]), torch.tensor(split["label"])
    strong = set(words.word)
    have = torch.tensor([not strong.isdisjoint(distinct_words(text)) for text in texts])
    left = int((~have).sum())
    if left < min_texts:
        raise ValueError(
            f"{left} of {len(texts)} texts of role {role!r} have none of the {len(words)} strongest words, and at "
            f"least {min_texts} must; lower n_words (got {n_words})"
        )
    whole = NeuronSet(neurons.layer, neurons.index, scores.n_layers, scores.d_mlp, neurons.model)
    options = {"batch_size": batch_size, "batch_tokens": batch_tokens}
    sets = [whole, *(whole.random_like(seed + draw) for draw in range(n_random))]
    chosen = as_list(prompts)
    right = _count_right(model, prompts, task, scores, sets, role, {**options, "cache": cache})
    right_of_prompt = torch.full((len(texts),), torch.nan, dtype=torch.float64)
    if not any(prompt is None for prompt in chosen):
        answers = [_right_answers(model, prompt, task, texts, labels, cache, options) for prompt in chosen]
        right_of_prompt = torch.stack(answers).double().mean(0)
    rows = []
    for name, group in (("all", have | ~have), ("with words", have), ("without words", ~have)):
        row = {"texts": name, "n_examples": int(group.sum())}
        if group.any():
            low, high = bootstrap_mean(right[0, group] / (len(whole) * len(chosen)), seed=seed)
            of_set, *random = (
                right[:, group].sum(1) / (row["n_examples"] * len(whole) * len(chosen))
            ).tolist()
            share = float((labels[group] == 1).double().mean())
            row |= {
                "accuracy": of_set,
                "low": float(low),
                "high": float(high),
                "majority": max(share, 1 - share),
                "random_median": float(torch.tensor(random, dtype=torch.float64).quantile(0.5)),
                "random_max": max(random),
                "p_random": rank_p_value(of_set, random, smaller=False),
                "prompt_accuracy": float(right_of_prompt[group].mean()),
            }
        rows.append(row)
    return AccuracyWithoutWords(words, pd.DataFrame(rows).assign(n_random=n_random, role=role))


def strongest_words(task: Task, n_words: int, min_texts: int) -> pd.DataFrame:
    """The words of ``train`` whose presence goes most with label 1, in either direction; the first in the alphabet
    first among equals. Words that don't go with it at all, as all but one of a pair of twins, are none of them.

    Raises:
        ValueError: When no word stands in, and is absent from, ``min_texts`` texts, or none goes with the label.
    """
    split = task.split("train")
    words, present = word_presence(list(split["text"]), min_texts)
    r = word_correlations(present, torch.tensor(split["label"]).double()[:, None])[:, 0]
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


def _count_right(
    model: Any,
    prompts: SoftPrompt | Sequence[SoftPrompt] | None,
    task: Task,
    scores: NeuronScores,
    sets: list[NeuronSet],
    role: str,
    options: dict[str, Any],
) -> Float[Tensor, "set example"]:
    """How many of each set's rules, over prompts, are right on each example: as many sets in one run as fit."""
    size = len(as_list(prompts)) * len(task.split(role)) * len(sets[0])
    rows = []
    for start in range(0, len(sets), n := max(1, _MOST_NUMBERS // size)):
        some = sets[start : start + n]
        union = reduce(or_, some)
        right = rule_answers(model, prompts, task, scores, union, role=role, **options).sum(0)
        place = {neuron: number for number, neuron in enumerate(union)}
        rows += [right[:, [place[neuron] for neuron in one]].sum(1) for one in some]
    return torch.stack(rows)


def _right_answers(
    model: Any,
    prompt: SoftPrompt,
    task: Task,
    texts: list[str],
    labels: Tensor,
    cache: InputCache | None,
    options: dict[str, Any],
) -> Bool[Tensor, " example"]:
    prompted = PromptedModel(model, prompt, task.label_words, cache=cache)
    with torch.no_grad():
        return prompted.class_logits(texts, **options).argmax(1).cpu() == labels
