"""What is left of skill neurons without the task's strongest words, and with other label words?

- :func:`accuracy_without_words`: the words whose presence goes most with the label are found on ``train``, from texts
  and labels alone. The set's rules, as ``select`` chose them, are then right on so many texts of ``report`` that have
  one of these words, and on so many that have none. A neuron that detects the words has nothing to go by on the latter
  and falls to what guessing gives.
- :func:`compare_label_words`: prompts are tuned for the same texts and labels with other label words, and with random
  ones. If neurons are about the task, the set should change no more than it does from one seed to another with the
  words unchanged, which is the yardstick (Wang et al., 2022, section 5.3).

What they don't show: weaker words are still there, and so are pairs of words, negation and whatever else goes with
the label; texts without strong words are fewer and harder, for the prompt and for random neurons too, which stand
beside. That the set outlives the label words says that it isn't about these, not what else it is about.
"""

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import reduce
from itertools import combinations
from operator import or_
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from tl_skillneurons._checks import require_int
from tl_skillneurons.effects import accuracy
from tl_skillneurons.input_cache import InputCache, runs_text_apart
from tl_skillneurons.intervals import bootstrap_mean, require_draws
from tl_skillneurons.neurons import NeuronSet
from tl_skillneurons.overlaps import compare_sets, spearman
from tl_skillneurons.prompted import PromptedModel
from tl_skillneurons.scores import NeuronScores
from tl_skillneurons.scoring import as_list, require_two_classes, score_neurons
from tl_skillneurons.selected import rule_answers
from tl_skillneurons.sites import has_language_model_head, model_label, require_supported
from tl_skillneurons.soft_prompt import SoftPrompt
from tl_skillneurons.statistics import rank_p_value
from tl_skillneurons.task import Task
from tl_skillneurons.tokenizing import label_token_ids
from tl_skillneurons.tuning import fit_soft_prompts
from tl_skillneurons.words import distinct_words, word_correlations, word_presence

_MOST_NUMBERS = 2**24  # of one run's answers: 128 MB in float64
_ROUNDING = 1e-9  # of a correlation that is 0
_N_BEST = 10  # neurons whose accuracy on report stands beside each wording


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


@dataclass(frozen=True, eq=False)
class LabelWordComparison:
    """How much the skill neurons change with the label words, beside how much they change with the seed.

    Attributes:
        pairs: A row for every two runs, a run being a wording and a seed: ``one``, ``other``, ``seed_one``,
            ``seed_other``, ``same_words``, ``same_seed``; Spearman's correlation of their predictivities
            (``spearman``); of their tops ``n_shared``, ``jaccard``, ``chance_jaccard`` and the hypergeometric
            ``p_value``.
        wordings: A row per run: ``wording``, ``seed``, its label ``words``; how tuning ended (``outcome``); on
            ``report`` the ``prompt_accuracy``, the ``majority`` class's share, and the mean accuracy ``best_ten`` of
            the ten best neurons; on ``select`` the ``best`` predictivity and the ``level`` that luck reaches in 5 % of
            cases (permuted labels).
        label_words: By wording, the word (or its token id) of each class.
        scores: By wording and seed.
    """

    pairs: pd.DataFrame
    wordings: pd.DataFrame
    label_words: dict[str, dict[int, str | int]]
    scores: dict[tuple[str, int], NeuronScores]

    def to_dataframe(self) -> pd.DataFrame:
        """:attr:`pairs`."""
        return self.pairs.copy()

    def summary(self) -> pd.DataFrame:
        """Pairs with the same and with other words, by the same and by other seeds: how alike they are on average.

        Columns: ``same_words``, ``same_seed``, ``n_pairs``, ``spearman`` with its ``lowest`` and ``highest``,
        ``jaccard``, ``chance_jaccard``. Other words and another seed are to be compared with the same words and another
        seed: runs of one seed also share their first prompt and the order of examples.
        """
        grouped = self.pairs.groupby(["same_words", "same_seed"], sort=True)
        frame = grouped.agg(
            n_pairs=("spearman", "size"),
            spearman=("spearman", "mean"),
            lowest=("spearman", "min"),
            highest=("spearman", "max"),
            jaccard=("jaccard", "mean"),
            chance_jaccard=("chance_jaccard", "mean"),
        )
        return frame.reset_index()


def compare_label_words(
    model: Any,
    task: Task,
    label_words: Mapping[str, Mapping[int, str | int]],
    *,
    n_random: int = 1,
    seeds: Iterable[int] = (0, 1),
    amount: float | int = 0.02,
    n_permutations: int = 1000,
    seed: int = 0,
    folder: str | os.PathLike[str] | None = None,
    progress: bool = True,
    **tuning: Any,
) -> LabelWordComparison:
    """Tune prompts and score all neurons once for each wording of the labels and each seed.

    It does not show what the neurons are about where they stay: any wording is tuned on the same texts. A wording whose
    prompts did not learn the task (``prompt_accuracy``) says nothing about its neurons, and two seeds are a coarse
    yardstick.

    Args:
        label_words: By name, another word (or its token id) for each class; the task's own go by "own".
        n_random: So many more wordings of random tokens, "random 0" and so on: neither special ones nor the task's own.
        seeds: Of the prompts, each scored by itself; at least two.
        amount: The tops that are compared, as a share of each layer or a count (:meth:`NeuronScores.top`).
        n_permutations: For each run's level; at least 19.
        seed: Draws the random words and the permutations.
        folder: Where prompts are kept, in a folder for each wording; the same call goes on where it stopped.
        tuning: Settings of :func:`~tl_skillneurons.fit_soft_prompts`.

    Raises:
        ValueError: For a model without a language-model head or a linear read-out, which read no label words; a task
            of more than two classes; no other wording, a name twice, or words that are not one token; a single seed.
    """
    require_supported(model)
    if not has_language_model_head(model) or tuning.get("readout") == "linear":
        raise ValueError(
            f"prompts of {model_label(model)} are read out by a trained linear map, so label words are never read; "
            "compare label words on a model with a language-model head and readout='label_words'"
        )
    require_two_classes(task)
    require_draws(n_permutations, name="n_permutations")
    require_int(n_random, "n_random", minimum=0)
    seeds = list(seeds)
    if len(seeds) < 2:
        raise ValueError(
            f"seeds must be at least two, got {seeds}: what another seed changes is what other words are measured by"
        )
    tasks = _wordings(model, task, label_words, random_label_words(model, task, n_random, seed))
    cache = tuning.pop("cache", None)
    if cache is None and runs_text_apart(model):
        cache = InputCache(model, tuning.get("cache_budget", 0.25))
    scores: dict[tuple[str, int], NeuronScores] = {}
    rows = []
    for name, worded in tasks.items():
        where = None if folder is None else Path(folder) / re.sub(r"\W+", "-", name)
        options = {"seeds": seeds, "folder": where, "cache": cache, "progress": progress, **tuning}
        for number, prompt in zip(seeds, fit_soft_prompts(model, worded, **options), strict=True):
            run = score_neurons(
                model,
                prompt,
                worded,
                n_permutations=n_permutations,
                seed=seed,
                cache=cache,
                progress=progress,
            )
            scores[name, number] = run
            rows.append(
                {"wording": name, "seed": number, "words": _shown(model, worded.label_words)}
                | _measure(model, prompt, worded, run, cache)
            )
    tops = {key: run.top(amount) for key, run in scores.items()}
    pairs = []
    for one, other in combinations(scores, 2):
        shared = asdict(compare_sets(tops[one], tops[other]))
        pairs.append(
            {
                "one": one[0],
                "other": other[0],
                "seed_one": one[1],
                "seed_other": other[1],
                "same_words": one[0] == other[0],
                "same_seed": one[1] == other[1],
                "spearman": spearman(
                    scores[one].predictivity.flatten(), scores[other].predictivity.flatten()
                ),
                **{name: shared[name] for name in ("n_shared", "jaccard", "chance_jaccard", "p_value")},
            }
        )
    words = {name: dict(worded.label_words) for name, worded in tasks.items()}
    return LabelWordComparison(pd.DataFrame(pairs), pd.DataFrame(rows), words, scores)


def random_label_words(model: Any, task: Task, n_draws: int, seed: int = 0) -> list[dict[int, int]]:
    """``n_draws`` wordings of random tokens, all different: neither special ones nor the task's own label words.

    More draws of a seed begin with the same ones.

    Raises:
        ValueError: When the vocabulary has too few tokens.
    """
    tokenizer = model.tokenizer
    taken = {*tokenizer.all_special_ids, *label_token_ids(model, task.label_words).tolist()}
    taken |= {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    free = [i for i in range(min(model.W_U.shape[1], len(tokenizer))) if i not in taken]
    needed = n_draws * task.n_classes
    if len(free) < needed:
        raise ValueError(
            f"{n_draws} wordings of random label words take {needed} tokens, the vocabulary has {len(free)} besides "
            "special ones and the task's own; lower n_random"
        )
    generator = torch.Generator().manual_seed(require_int(seed, "seed", minimum=0))
    drawn = [free[i] for i in torch.randperm(len(free), generator=generator)[:needed].tolist()]
    classes = range(task.n_classes)
    return [{c: drawn[draw * task.n_classes + c] for c in classes} for draw in range(n_draws)]


def _wordings(
    model: Any,
    task: Task,
    given: Mapping[str, Mapping[int, str | int]],
    random: list[dict[int, int]],
) -> dict[str, Task]:
    """The task in each wording, its own first; words that can't be read are refused before anything is tuned."""
    drawn = {f"random {number}": words for number, words in enumerate(random)}
    twice = sorted({"own", *drawn} & set(given))
    if twice:
        raise ValueError(f"label_words must not go by {twice[0]!r}, which is the name of another wording")
    if not given and not drawn:
        raise ValueError(
            "there is no other wording to compare with; give label_words, or n_random of at least 1"
        )
    tasks = {"own": task}
    for name, words in {**given, **drawn}.items():
        tasks[name] = replace(task, label_words=dict(words))
    for worded in tasks.values():
        label_token_ids(model, worded.label_words)
    return tasks


def _measure(
    model: Any, prompt: SoftPrompt, task: Task, scores: NeuronScores, cache: InputCache | None
) -> dict[str, Any]:
    """What stands beside one run: did its prompt learn the task, and do its best neurons hold on ``report``?"""
    split = task.split("report")
    prompted = PromptedModel(model, prompt, task.label_words, cache=cache)
    best = scores.top(min(_N_BEST, scores.predictivity.numel()), per="model")
    return {
        "outcome": prompt.provenance.get("outcome"),
        "prompt_accuracy": accuracy(prompted, list(split["text"]), list(split["label"])),
        "best_ten": float(rule_answers(model, prompt, task, scores, best, cache=cache).mean()),
        "majority": max(task.class_counts("report")) / len(split),
        "best": float(scores.predictivity.max()),
        "level": scores.null.level(),
        "role_of_accuracy": "report",
        "role_of_best": "select",
    }


def _shown(model: Any, label_words: Mapping[int, str | int]) -> str:
    words = [label_words[c] for c in sorted(label_words)]
    return " / ".join(
        repr(model.tokenizer.decode([word]) if isinstance(word, int) else word) for word in words
    )
