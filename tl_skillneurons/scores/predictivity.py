"""Predictivity: how well one threshold on one neuron tells two labels apart (Wang et al., 2022, section 3).

With a(N, p, x) the activation of neuron N at prompt position p on input x, and y(x) its label, 0 or 1::

    a_bsl(N, p)       = mean over role baseline of a(N, p, x)
    acc(N, p)         = share of role select on which 1[a(N, p, x) > a_bsl(N, p)] = y(x)        (strictly greater)
    predictivity(N)   = mean over prompts of  max over p of  max(acc(N, p), 1 - acc(N, p))

Read at the prompt positions, or, as the paper's comparison, at the text's own tokens (special tokens left
out): the last one, their mean or their maximum, with a prompt or without any. Two streaming passes, one over each role:
an activation is gone with its batch, and what is kept (:mod:`~tl_skillneurons.scores.tallies`) has [layer, position,
neuron] entries however many examples there are. Under ``torchrun`` or ``accelerate launch`` each process runs its share
of the batches, and all return the scores of one process alone.

What it does not show: that the model uses a predictive neuron (ablation beside random controls tells), nor that its
rule is as good on other examples: ``select`` chose it (:func:`~tl_skillneurons.scores.evaluate_rules` measures it on
``report``). The control is what the best of all these scores reaches by luck: under permuted labels
(``n_permutations=``, :mod:`~tl_skillneurons.scores.null`), with :meth:`NeuronScores.chance_level` as an upper bound.

A bfloat16 model scores in its own dtype (sums and thresholds don't). SST-2, one prompt of 8 virtual tokens,
bfloat16 against float32 weights: Spearman correlation of the predictivities 0.980, mean and largest
difference 0.006 and 0.043, 83 % of the top 2 % shared (SmolLM2-135M, 300 baseline and 300 select examples);
0.948, 0.005 and 0.043, 77 % (MiniLM-L6, 600 and 400, a weak prompt). So single ranks should come from float32.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from tl_skillneurons._checks import require_int, require_option, require_seed
from tl_skillneurons._processes import rank_and_count
from tl_skillneurons._progress import progress_bar
from tl_skillneurons.models.hooks import Hooks
from tl_skillneurons.prompts.prompted_model import PromptedModel
from tl_skillneurons.prompts.run import RunOptions
from tl_skillneurons.prompts.soft_prompt import SoftPrompt
from tl_skillneurons.prompts.streaming import READINGS, stand_alike
from tl_skillneurons.scores.measured import prompted_set, provenance_of, task_provenance
from tl_skillneurons.scores.neuron_scores import NeuronScores
from tl_skillneurons.scores.outcomes import RuleOutcomes
from tl_skillneurons.scores.passes import Padded, correct_of, count_correct, rule_outcomes, summaries
from tl_skillneurons.scores.tallies import Summary
from tl_skillneurons.stats.units import require_reachable
from tl_skillneurons.tasks.task import Task
from tl_skillneurons.tasks.two_classes import require_two_classes


def score_neurons(
    model: TransformerBridge,
    prompts: SoftPrompt | Sequence[SoftPrompt] | None,
    task: Task,
    *,
    positions: str = "prompt",
    aggregate: str = "mean",
    n_permutations: int = 0,
    seed: int = 0,
    keep_outcomes: bool = False,
    max_length: int | None = None,
    fwd_hooks: Hooks = (),
    run: RunOptions = RunOptions(),
) -> NeuronScores:
    """Baselines from role ``baseline``, accuracies from role ``select``, for every neuron, position and
    prompt.

    Args:
        prompts: One, several (equally long), or ``None`` for the bare text, which has no prompt positions to
            score.
        positions: ``"prompt"``; ``"last"``, ``"mean"``, ``"max"`` over the text's own tokens; or another of
            :data:`~tl_skillneurons.prompts.streaming.READINGS`: "readout", "template", "answer_last" and so on.
        aggregate: How prompts are combined: ``"mean"``, or ``"min"``.
        n_permutations: Label permutations, drawn by ``seed``, for ``scores.significant()``; 0 for none. They take
            one bit of memory per prompt, example of ``select``, layer, position and neuron.
        keep_outcomes: Keep these bits with the scores, for :func:`~tl_skillneurons.studies.diagnose`.
        max_length: Longest sequence in tokens, virtual tokens included; longer texts are cut. ``None`` is what the
            prompts were tuned with. The scores record it.
        fwd_hooks: Run in every batch before the neurons are read, for example an ablation upstream of them.
        run: Batches, cache, progress. Without a cache, a text's keys and values are shared by all prompts and freed
            with their batch.

    Returns:
        The scores; ``provenance["batches"]`` tells for each role how many batches and tokens ran, and how many
        of these were padding, and ``provenance["n_cut"]`` how many texts lost their end.

    Raises:
        ValueError: For a task of more than two classes, a prefix prompt of a causal model scored at its own
            positions (they never see the text), activations that are not finite (which layer, which example),
            or a model that does not fit the prompts.

    Example:
        >>> scores = skn.score_neurons(model, prompts, task, n_permutations=1000)
        >>> scores.top(0.02), scores.null.level()
    """
    require_seed(seed)
    require_two_classes(task)
    what = _What(positions, aggregate, n_permutations, seed, keep_outcomes, max_length, fwd_hooks)
    [scores] = _score(model, prompts, task, [1], what, run)
    return scores


def score_classes(
    model: TransformerBridge,
    prompts: SoftPrompt | Sequence[SoftPrompt] | None,
    task: Task,
    *,
    positions: str = "prompt",
    aggregate: str = "mean",
    n_permutations: int = 0,
    seed: int = 0,
    keep_outcomes: bool = False,
    max_length: int | None = None,
    fwd_hooks: Hooks = (),
    run: RunOptions = RunOptions(),
) -> list[NeuronScores]:
    """The scores of "this class against all others" for each class, from one prompt that tells all of them apart.

    One pass over each role serves all classes: the cheaper way beside a prompt for each of
    ``task.binary_subtasks()``. The skill neurons of the task are the union of equally many of each class
    (:func:`~tl_skillneurons.scores.top_union`). Each class has a null of its own, by the same permutations. Of ``k``
    equally frequent classes a rule that says "another" to everything is right on ``1 - 1/k``: scores, and the level of
    luck, start there. ``score_labels`` on a binary subtask has "balanced_accuracy", which starts at one half.

    Args:
        prompts, positions, aggregate, n_permutations, seed, keep_outcomes, max_length, fwd_hooks, run: As for
            :func:`score_neurons`.

    Returns:
        One for each class, in the order of the class ids.

    Raises:
        ValueError: As :func:`score_neurons`, but for the number of classes.

    Example:
        >>> classes = skn.scores.score_classes(model, prompts, task)
        >>> skill = skn.scores.top_union(classes, 0.005)
    """
    require_seed(seed)
    what = _What(positions, aggregate, n_permutations, seed, keep_outcomes, max_length, fwd_hooks)
    return _score(model, prompts, task, list(range(task.n_classes)), what, run)


def require_orders(task: Task, n_permutations: int, alpha: float = 1.0) -> None:
    """See, before a pass is run, that the labels of ``select`` can be permuted, and p-values be as small as ``alpha``.

    Raises:
        ValueError: Otherwise.
    """
    if not require_int(n_permutations, "n_permutations", minimum=0):
        return
    units, labels = task.units("select"), torch.tensor(task.split("select")["label"])
    units.permuted(labels, 1)  # refuses labels of no other order
    least = units.smallest_p(labels)
    require_reachable(alpha, smallest_p=least, n_units=len(units), what=units.what)


@dataclass(frozen=True)
class _What:
    """What is measured, and what is kept of it; see :func:`score_neurons`."""

    positions: str
    aggregate: str
    n_permutations: int
    seed: int
    keep_outcomes: bool
    max_length: int | None
    fwd_hooks: Hooks

    @property
    def single(self) -> bool:
        """Whether every single answer is needed, and not their counts alone."""
        return self.keep_outcomes or self.n_permutations > 0


def _score(
    model: TransformerBridge,
    prompts: SoftPrompt | Sequence[SoftPrompt] | None,
    task: Task,
    classes: list[int],
    what: _What,
    run: RunOptions,
) -> list[NeuronScores]:
    """The scores of each class; every prompt is run once."""
    require_option(what.positions, "positions", READINGS)
    require_orders(task, what.n_permutations)
    prompted = prompted_set(model, prompts, what.positions, task=task, max_length=what.max_length, run=run)
    _require_one_length(prompted, what.positions)
    found: list[list[NeuronScores]] = [[] for _ in prompted]
    for group in stand_alike(prompted):
        alike = [prompted[number] for number in group]
        phase = "scoring" + (f", {len(group)} of {len(prompted)} prompts" if len(prompted) > 1 else "")
        measured = _measure(alike, task, classes, what, phase, run.progress)
        for place, number in enumerate(group):
            found[number] = [
                _of_class(measured, place, at, class_id, task, what, alike)
                for at, class_id in enumerate(classes)
            ]
    scores = [NeuronScores.of_prompts(of_class) for of_class in zip(*found, strict=True)]
    if what.n_permutations:
        scores = [one.with_null(what.n_permutations, seed=what.seed) for one in scores]
    return scores if what.keep_outcomes else [replace(one, outcomes=None) for one in scores]


def _require_one_length(prompted: Sequence[PromptedModel], positions: str) -> None:
    lengths = sorted({one.prompt.n_virtual_tokens for one in prompted if one.prompt is not None})
    if positions == "prompt" and len(lengths) > 1:
        raise ValueError(
            f"prompts of one set need equally many virtual tokens, got {lengths}; score them apart"
        )


@dataclass(frozen=True)
class _Measured:
    """Of each prompt of a group: summary of ``baseline``, right answers on ``select`` by class, single answers, and
    what is recorded of the task."""

    summaries: list[Summary]
    correct: list[Int[Tensor, "class layer position neuron"]]
    outcomes: RuleOutcomes | None
    batches: dict[str, Padded]
    of_task: dict[str, Any]


def _measure(
    prompted: Sequence[PromptedModel],
    task: Task,
    classes: list[int],
    what: _What,
    phase: str,
    progress: bool,
) -> _Measured:
    """One pass over role ``baseline`` and one over ``select``."""
    rank, _ = rank_and_count()
    roles = ("baseline", "select")
    n = sum(task.n_examples[role] for role in roles)
    with prompted[0].run.one_use(), progress_bar(phase, n, show=progress and rank == 0) as advance:
        found, padded = summaries(prompted, task, what.positions, fwd_hooks=what.fwd_hooks, advance=advance)
        limits = [summary.mean for summary in found]
        outcomes = None
        if what.single:
            outcomes, padded_too = rule_outcomes(
                prompted, task, "select", limits, what.positions, fwd_hooks=what.fwd_hooks, advance=advance
            )
            correct = list(correct_of(outcomes, classes))
        else:
            correct, padded_too = count_correct(
                prompted,
                task,
                "select",
                limits,
                classes,
                what.positions,
                fwd_hooks=what.fwd_hooks,
                advance=advance,
            )
    batches = dict(zip(roles, (padded, padded_too), strict=True))
    return _Measured(found, correct, outcomes, batches, task_provenance(prompted[0], task, roles))


def _of_class(
    measured: _Measured,
    place: int,
    at: int,
    class_id: int,
    task: Task,
    what: _What,
    alike: Sequence[PromptedModel],
) -> NeuronScores:
    """One class's scores from one prompt, ``alike[place]``; ``at`` is the class's place in what was counted."""
    summary = measured.summaries[place]
    counts = task.class_counts("select")
    provenance: dict[str, Any] = {
        **provenance_of([alike[place]]),
        **measured.of_task,
        "batches": measured.batches,
    }
    return NeuronScores(
        baseline=summary.mean[None],
        std=summary.std[None].float(),
        mean_abs=summary.mean_abs[None].float(),
        correct=measured.correct[place][at][None],
        n_baseline=task.n_examples["baseline"],
        n_select=task.n_examples["select"],
        class_counts=(sum(counts) - counts[class_id], counts[class_id]),
        positions=what.positions,
        aggregate=what.aggregate,
        class_id=class_id,
        outcomes=None if measured.outcomes is None else measured.outcomes.of_prompt(place),
        provenance=provenance,
    )
