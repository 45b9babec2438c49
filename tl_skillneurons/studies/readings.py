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
each stands beside its own level. What is compared is ``report``: the mean accuracy of each reading's best neurons,
example by example, minus that of the tuned prompts on the same examples.
"""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from tl_skillneurons._checks import require_int
from tl_skillneurons.models.input_cache import InputCache
from tl_skillneurons.models.sites import neuron_shape
from tl_skillneurons.neurons import NeuronSet
from tl_skillneurons.prompts.run import as_list
from tl_skillneurons.prompts.soft_prompt import SoftPrompt
from tl_skillneurons.prompts.tuning.fit import fit_soft_prompts
from tl_skillneurons.prompts.tuning.schedule import embedding_rows
from tl_skillneurons.scores.neuron_scores import NeuronScores
from tl_skillneurons.scores.predictivity import score_neurons
from tl_skillneurons.scores.rules import rule_answers
from tl_skillneurons.stats.intervals import bootstrap_mean
from tl_skillneurons.tasks.task import Task, require_two_classes

POOLED = ("last", "mean", "max")


@dataclass(frozen=True, eq=False)
class ReadingComparison:
    """Scores by reading, and how well each reading's best neurons do on ``report``.

    Attributes:
        scores: By reading, its scores with their null.
        tops: By reading, its best neurons.
        accuracy: By reading, for each example of ``report`` the share of the best neurons (over all prompts) that
            are right.
    """

    scores: dict[str, NeuronScores]
    tops: dict[str, NeuronSet]
    accuracy: dict[str, Float[Tensor, " example"]]

    def to_dataframe(self, *, confidence: float = 0.95, seed: int = 0) -> pd.DataFrame:
        """One row per reading.

        Columns: ``reading``, ``n_prompts``, ``n_positions``; on ``select`` the ``best`` predictivity, the ``level``
        that luck reaches in 5 % of cases (permuted labels), ``n_significant`` neurons above it; on ``report`` the
        mean ``accuracy`` of the best neurons with its bootstrap interval over examples (``low``, ``high``), and
        ``minus_tuned`` with its paired interval (``minus_low``, ``minus_high``).
        """
        names = list(self.scores)
        values = torch.stack([self.accuracy[name] for name in names])
        low, high = bootstrap_mean(values, confidence=confidence, seed=seed)
        apart = values - values[:1]
        apart_low, apart_high = bootstrap_mean(apart, confidence=confidence, seed=seed)
        rows = []
        for number, name in enumerate(names):
            scores = self.scores[name]
            row = {
                "reading": name,
                "n_prompts": len(scores.baseline),
                "n_positions": scores.baseline.shape[2],
                "best": float(scores.predictivity.max()),
                "level": scores.null.level(),
                "n_significant": len(scores.significant()),
                "accuracy": float(values[number].mean()),
                "low": float(low[number]),
                "high": float(high[number]),
                "minus_tuned": float(apart[number].mean()),
                "minus_low": float(apart_low[number]),
                "minus_high": float(apart_high[number]),
            }
            rows.append(row)
        return pd.DataFrame(rows).assign(n_examples=values.shape[1], role="report")


def compare_readings(
    model: Any,
    prompts: SoftPrompt | Sequence[SoftPrompt | None] | None,
    task: Task,
    *,
    random: bool = True,
    natural: Sequence[str] = (),
    shuffled: Mapping[str, Any] | None = None,
    pooled: Sequence[str] = POOLED,
    reinitialised: Any = None,
    n_top: int = 10,
    n_permutations: int = 1000,
    seed: int = 0,
    batch_size: int | None = None,
    batch_tokens: int | None = None,
    cache: InputCache | None = None,
    progress: bool = True,
) -> ReadingComparison:
    """Score all neurons with the tuned prompts and with each control.

    Args:
        random: As many prompts of random tokens.
        natural: Sentences that stand where the virtual tokens do, such as " All in all, the film was".
        shuffled: Settings of :func:`~tl_skillneurons.fit_soft_prompts`, those of the tuned prompts, with which as
            many prompts are tuned on permuted labels; ``None`` leaves that control out.
        pooled: Of "last", "mean", "max": the text without a prompt.
        reinitialised: A model of the same shape with random weights, such as
            ``transformer_lens.model_bridge.random_init_bridge(folder, seed=0)``.
        n_top: Best neurons of the whole model that are compared on ``report``.
        n_permutations: For each reading's level; at least 19.

    Raises:
        ValueError: For a task of more than two classes, prompts of different kinds, or a re-initialised model of
            another shape.
    """
    require_two_classes(task)
    require_int(n_top, "n_top")
    tuned = as_list(prompts)
    if any(prompt is None for prompt in tuned):
        raise ValueError("give the tuned prompts; readings without a prompt come by pooled=")
    if reinitialised is not None and neuron_shape(reinitialised) != neuron_shape(model):
        raise ValueError(
            f"the re-initialised model must have the shape of the model, {neuron_shape(model)}, got "
            f"{neuron_shape(reinitialised)}"
        )
    plan: dict[str, tuple[Any, Any, str]] = {"tuned": (model, tuned, "prompt")}
    if random:
        plan["random"] = (model, _random_prompts(model, tuned, seed), "prompt")
    for number, text in enumerate(natural):
        name = "natural" if len(natural) == 1 else f"natural {number}"
        plan[name] = (model, [natural_prompt(model, text, tuned[0])], "prompt")
    if shuffled is not None:
        noise = task.with_shuffled_labels(seed)
        settings = {"seeds": range(len(tuned)), "n_virtual_tokens": tuned[0].n_virtual_tokens, **shuffled}
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*not below chance")  # which is what it is for
            plan["shuffled"] = (
                model,
                fit_soft_prompts(model, noise, progress=progress, **settings),
                "prompt",
            )
    for how in pooled:
        plan[how] = (model, None, how)
    if reinitialised is not None:
        plain = [_bare(prompt.embedding, prompt) for prompt in tuned]
        plan["reinitialised"] = (reinitialised, plain, "prompt")
    options = {"batch_size": batch_size, "batch_tokens": batch_tokens}
    scores, tops, accuracy = {}, {}, {}
    for name, (of_model, of_prompts, positions) in plan.items():
        kept = cache if of_model is model and positions == "prompt" else None
        scores[name] = score_neurons(
            of_model,
            of_prompts,
            task,
            positions=positions,
            n_permutations=n_permutations,
            seed=seed,
            cache=kept,
            progress=progress,
            **options,
        )
        tops[name] = scores[name].top(n_top, per="model")
        accuracy[name] = rule_answers(
            of_model, of_prompts, task, scores[name], tops[name], cache=kept, **options
        ).mean((0, 2))
    return ReadingComparison(scores, tops, accuracy)


def natural_prompt(model: Any, text: str, like: SoftPrompt) -> SoftPrompt:
    """The embeddings of a text's tokens as a prompt that stands where ``like`` does.

    Raises:
        ValueError: When the text has no token.
    """
    ids = model.tokenizer(text, add_special_tokens=False)["input_ids"]
    if not ids:
        raise ValueError(f"a natural-language prompt must have at least one token, got {text!r}")
    return _bare(embedding_rows(model, torch.tensor(ids)), like)


def _random_prompts(model: Any, like: Sequence[SoftPrompt], seed: int) -> list[SoftPrompt]:
    generator = torch.Generator().manual_seed(require_int(seed, "seed", minimum=0))
    n_words = min(model.W_E.shape[0], model.cfg.d_vocab)
    return [
        _bare(
            embedding_rows(model, torch.randint(n_words, (one.n_virtual_tokens,), generator=generator)), one
        )
        for one in like
    ]


def _bare(embedding: Tensor, like: SoftPrompt) -> SoftPrompt:
    return SoftPrompt(embedding.detach(), placement=like.placement, prepend_bos=like.prepend_bos)
