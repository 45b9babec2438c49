"""Do other label words give other skill neurons? (Wang et al., 2022, section 5.3)

Prompts are tuned for the same texts and labels with other label words, and with random ones. If neurons are about the
task, the set should change no more than it does from one seed to another with the words unchanged, which is the
yardstick.

What it does not show: that the set outlives the label words says that it isn't about these, not what else it is about.
Any wording is tuned on the same texts. The controls are other seeds of the same wording, random label words, and what
two runs agree on where both have the same permuted labels, for runs on the same texts are never independent.
"""

import hashlib
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import combinations
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from transformer_lens.model_bridge import TransformerBridge

from tl_skillneurons._checks import require_int, require_seed
from tl_skillneurons._results import html_of, one_line
from tl_skillneurons._widths import known
from tl_skillneurons.models.input_cache import InputCache, runs_text_apart
from tl_skillneurons.models.records import model_label
from tl_skillneurons.models.sites import has_language_model_head, require_supported
from tl_skillneurons.models.tokenizing import label_tokens
from tl_skillneurons.prompts.prompted_model import PromptedModel
from tl_skillneurons.prompts.run import RunOptions
from tl_skillneurons.prompts.soft_prompt import SoftPrompt
from tl_skillneurons.prompts.tuning.fit import fit_soft_prompts
from tl_skillneurons.scores.agreement import agreements
from tl_skillneurons.scores.neuron_scores import NeuronScores
from tl_skillneurons.scores.predictivity import require_orders, score_neurons
from tl_skillneurons.scores.rules import rule_answers
from tl_skillneurons.stats.hypothesis_tests import require_draws
from tl_skillneurons.stats.ranks import spearman
from tl_skillneurons.studies._common import (
    file_name,
    load_with_scores,
    null_of,
    save_with_scores,
    settings_of,
)
from tl_skillneurons.tasks.task import Task
from tl_skillneurons.tasks.two_classes import require_two_classes

KIND = "LabelWordComparison"
_N_AGREE = 99  # permutations that agreement of runs is compared with
_N_BEST = 10  # neurons whose accuracy on report stands beside each wording


@dataclass(frozen=True, eq=False)
class LabelWordComparison:
    """How much the skill neurons change with the label words, beside how much they change with the seed.

    Attributes:
        pairs: A row for every two runs, a run being a wording and a seed: ``one``, ``other``, ``seed_one``,
            ``seed_other``, ``same_words``, ``same_seed``; Spearman's correlation of their predictivities
            (``spearman``), the middle 95 % of it where both have the same permuted labels (``null_low``,
            ``null_high``), and its two-sided ``p_value``; of their tops ``n_shared``, ``jaccard``, of random sets
            ``chance_jaccard``, and how often permuted labels make them share as many (``p_shared``). All four are NaN
            where layers differ in width. What two runs with other words share stands beside what two with the same
            words share.
        wordings: A row per run: ``wording``, ``seed``, its label ``words``; how tuning ended (``outcome``); on
            ``report`` the ``prompt_accuracy``, the ``majority`` class's share, and the mean accuracy ``best_ten`` of
            the ten best neurons; on ``select`` the ``best`` predictivity and the ``level`` that luck reaches in 5 % of
            cases (permuted labels).
        label_words: By wording, the word (or its token id) of each class.
        scores: By wording and seed.
        settings: Model, task and settings, as plain JSON values.

    Example:
        >>> found = skn.studies.compare_label_words(model, task, {"mood": {0: " sad", 1: " glad"}})
        >>> found.summary()[["same_words", "same_seed", "spearman"]]
    """

    pairs: pd.DataFrame
    wordings: pd.DataFrame
    label_words: dict[str, dict[int, str | int]]
    scores: dict[tuple[str, int], NeuronScores]
    settings: dict[str, Any] = field(default_factory=dict)

    def __repr__(self) -> str:
        other_seed = self.pairs[~self.pairs.same_seed]
        return one_line(
            self,
            wordings=list(self.label_words),
            n_seeds=int(self.wordings.seed.nunique()),
            spearman_other_words=float(other_seed[~other_seed.same_words].spearman.mean()),
            spearman_same_words=float(other_seed[other_seed.same_words].spearman.mean()),
        )

    def _repr_html_(self) -> str:
        return html_of(self)

    def to_dataframe(self) -> pd.DataFrame:
        """A copy of :attr:`pairs`."""
        return self.pairs.copy()

    def summary(self) -> pd.DataFrame:
        """Pairs with the same and with other words, by the same and by other seeds: how alike they are on average.

        Columns: ``same_words``, ``same_seed``, ``n_pairs``, ``spearman`` with its ``lowest`` and ``highest``, and the
        mean of its ``null_low`` and ``null_high``; ``jaccard``, ``chance_jaccard``. Other words and another seed are to
        be compared with the same words and another seed: runs of one seed also share their first prompt and the order
        of examples.
        """
        grouped = self.pairs.groupby(["same_words", "same_seed"], sort=True)
        frame = grouped.agg(
            n_pairs=("spearman", "size"),
            spearman=("spearman", "mean"),
            lowest=("spearman", "min"),
            highest=("spearman", "max"),
            null_low=("null_low", "mean"),
            null_high=("null_high", "mean"),
            jaccard=("jaccard", "mean"),
            chance_jaccard=("chance_jaccard", "mean"),
        )
        return frame.reset_index()

    def save(self, folder: str | os.PathLike[str]) -> Path:
        """Write the comparison to a folder: its tables as JSON, and a file for the scores of each run."""
        settings = {
            **self.settings,
            "label_words": [[name, list(w.items())] for name, w in self.label_words.items()],
        }
        tables = {"pairs": self.pairs, "wordings": self.wordings}
        return save_with_scores(folder, KIND, settings, tables, list(self.scores.values()))

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> "LabelWordComparison":
        """The comparison that :meth:`save` wrote.

        Raises:
            FileNotFoundError: When a file is missing.
            ValueError: When one is corrupt or holds something else.
        """
        tables, settings, scores = load_with_scores(folder, KIND, ("pairs", "wordings"), "wordings")
        words = {name: {int(k): word for k, word in items} for name, items in settings.pop("label_words")}
        runs = zip(tables["wordings"].wording, map(int, tables["wordings"].seed), strict=True)
        return cls(
            **tables, label_words=words, scores=dict(zip(runs, scores, strict=True)), settings=settings
        )


def compare_label_words(
    model: TransformerBridge,
    task: Task,
    label_words: Mapping[str, Mapping[int, str | int]],
    *,
    n_random: int = 1,
    seeds: Iterable[int] = (0, 1),
    amount: float | int = 0.02,
    n_permutations: int = 1000,
    seed: int = 0,
    folder: str | os.PathLike[str] | None = None,
    run: RunOptions = RunOptions(),
    **tuning: Any,
) -> LabelWordComparison:
    """Prompts tuned and all neurons scored once for each wording of the labels and each seed, compared in pairs.

    It does not show what the neurons are about where they stay: any wording is tuned on the same texts. A wording whose
    prompts did not learn the task (``prompt_accuracy``) says nothing about its neurons, and two seeds are a coarse
    yardstick.

    Args:
        label_words: By name, another word (or its token id) for each class; the task's own go by "own".
        n_random: So many more wordings of random tokens, "random 0" and so on: neither special ones nor the task's own.
        seeds: Of the prompts, each scored by itself; at least two.
        amount: The tops that are compared, as a share of each layer or a count (:meth:`NeuronScores.top`).
        n_permutations: For each run's level; at least 19. The first 99 tell how far runs agree by themselves.
        seed: Draws the random words and the permutations.
        folder: Where prompts are kept, in a folder for each wording; the same call goes on where it stopped.
        run: Keys and values of the texts (causal models) are kept here even without ``run.cache``.
        tuning: Settings of :func:`~tl_skillneurons.fit_soft_prompts`: ``n_virtual_tokens``, ``n_steps``, ``training``,
            ``max_length`` and so on.

    Raises:
        ValueError: For a model without a language-model head or a linear read-out, which read no label words; a task
            of more than two classes; no other wording, a name twice, words that it can't answer with; a single seed.

    Example:
        >>> found = skn.studies.compare_label_words(model, task, {"mood": {0: " sad", 1: " glad"}}, seeds=range(3))
        >>> found.summary()
    """
    require_seed(seed)
    require_supported(model)
    if not has_language_model_head(model) or tuning.get("readout") == "linear":
        raise ValueError(
            f"prompts of {model_label(model)} are read out by a trained linear map, so label words are never read; "
            "compare label words on a model with a language-model head and readout='label_words'"
        )
    require_two_classes(task)
    require_draws(n_permutations, name="n_permutations")
    require_orders(task, n_permutations, 0.05)
    require_int(n_random, "n_random", minimum=0)
    seeds = list(seeds)
    if len(seeds) < 2:
        raise ValueError(
            f"seeds must be at least two, got {seeds}: what another seed changes is what other words are measured by"
        )
    tasks = _wordings(model, task, label_words, random_label_words(model, task, n_random, seed))
    if run.cache is None and runs_text_apart(model):
        run = replace(run, cache=InputCache(model))
    scores: dict[tuple[str, int], NeuronScores] = {}
    rows = []
    for name, worded in tasks.items():
        where = None if folder is None else Path(folder) / _folder_name(name)
        prompts = fit_soft_prompts(model, worded, seeds=seeds, folder=where, run=run, **tuning)
        for number, prompt in zip(seeds, prompts, strict=True):
            found = score_neurons(
                model, prompt, worded, n_permutations=n_permutations, seed=seed, keep_outcomes=True, run=run
            )
            scores[name, number] = found
            of_run = {"wording": name, "seed": number, "words": _shown(model, worded.label_words)}
            rows.append(of_run | _measure(model, prompt, worded, found, run))
    pairs = _pairs(scores, amount, min(n_permutations, _N_AGREE), seed)
    counts: dict[str, Any] = {"n_random": n_random, "seeds": seeds, "amount": amount, "seed": seed}
    return LabelWordComparison(
        pairs=pairs,
        wordings=pd.DataFrame(rows),
        label_words={name: dict(worded.label_words) for name, worded in tasks.items()},
        scores={key: replace(found, outcomes=None) for key, found in scores.items()},
        settings=settings_of(model, task, **counts, n_permutations=n_permutations, tuning=tuning),
    )


def _folder_name(name: str) -> str:
    """A folder of its own for each wording, also where letters are left out that a file's name can't hold."""
    shown = file_name(name)
    if shown and "-" not in name and shown == name.replace(" ", "-"):
        return shown
    return f"{shown}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"


def _pairs(
    scores: Mapping[tuple[str, int], NeuronScores], amount: float | int, n_permutations: int, seed: int
) -> pd.DataFrame:
    """How alike every two runs are, and how alike permuted labels make them."""
    tops = {key: found.top(amount) for key, found in scores.items()}
    numbers = {key: str(number) for number, key in enumerate(scores)}
    by_luck = {}
    first, *_ = scores
    if isinstance(scores[first].d_mlp, int):
        named = {numbers[key]: found for key, found in scores.items()}
        n_top = len(tops[first]) // scores[first].n_layers
        by_luck = agreements(
            named, list(combinations(named, 2)), n_top, n_permutations=n_permutations, seed=seed
        )
    rows = []
    for one, other in combinations(scores, 2):
        shared = asdict(tops[one].overlap(tops[other]))
        null = by_luck[numbers[one], numbers[other]].row(-1) if by_luck else {}
        rows.append(
            {
                "one": one[0],
                "other": other[0],
                "seed_one": one[1],
                "seed_other": other[1],
                "same_words": one[0] == other[0],
                "same_seed": one[1] == other[1],
                "spearman": spearman(known(scores[one].predictivity), known(scores[other].predictivity)),
                **{name: null.get(name, float("nan")) for name in ("null_low", "null_high", "p_value")},
                **{name: shared[name] for name in ("n_shared", "jaccard", "chance_jaccard")},
                "p_shared": null.get("p_shared", float("nan")),
            }
        )
    return pd.DataFrame(rows)


def random_label_words(
    model: TransformerBridge, task: Task, n_draws: int, seed: int = 0
) -> list[dict[int, int]]:
    """``n_draws`` wordings of random tokens, all different: neither special ones nor the task's own label words.

    More draws of a seed begin with the same ones.

    Raises:
        ValueError: When the vocabulary has too few tokens.

    Example:
        >>> [words] = skn.studies.random_label_words(model, task, 1)  # {0: 4711, 1: 815}
    """
    tokenizer = model.tokenizer
    taken = {*tokenizer.all_special_ids, *(i for ids in label_tokens(model, task.label_words) for i in ids)}
    taken |= {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    free = [i for i in range(min(model.W_U.shape[1], len(tokenizer))) if i not in taken]
    needed = n_draws * task.n_classes
    if len(free) < needed:
        raise ValueError(
            f"{n_draws} wordings of random label words take {needed} tokens, the vocabulary has {len(free)} besides "
            "special ones and the task's own; lower n_random"
        )
    generator = torch.Generator().manual_seed(require_seed(seed))
    drawn = [free[i] for i in torch.randperm(len(free), generator=generator)[:needed].tolist()]
    classes = range(task.n_classes)
    return [{c: drawn[draw * task.n_classes + c] for c in classes} for draw in range(n_draws)]


def _wordings(
    model: TransformerBridge,
    task: Task,
    given: Mapping[str, Mapping[int, str | int]],
    random: Sequence[Mapping[int, str | int]],
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
        label_tokens(model, worded.label_words)
    return tasks


def _measure(
    model: TransformerBridge, prompt: SoftPrompt, task: Task, scores: NeuronScores, run: RunOptions
) -> dict[str, Any]:
    """What stands beside one run: did its prompt learn the task, and do its best neurons hold on ``report``?"""
    best = scores.top(min(_N_BEST, len(known(scores.predictivity))), per="model")
    return {
        "outcome": prompt.provenance.get("outcome"),
        "prompt_accuracy": PromptedModel.for_task(model, prompt, task, run=run).accuracy(task),
        "best_ten": float(rule_answers(model, prompt, task, scores, best, run=run).mean()),
        "majority": max(task.class_counts("report")) / len(task.split("report")),
        "best": float(known(scores.predictivity).max()),
        "level": null_of(scores).level(),
        "role_of_accuracy": "report",
        "role_of_best": "select",
    }


def _shown(model: TransformerBridge, label_words: Mapping[int, str | int]) -> str:
    words = [label_words[c] for c in sorted(label_words)]
    return " / ".join(
        repr(model.tokenizer.decode([word]) if isinstance(word, int) else word) for word in words
    )
