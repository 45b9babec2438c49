"""How predictivity came about: every neuron scored with the prompt as it was at each evaluation of its tuning.

Rows run from the initial prompt (step 0) to the last evaluation. "Final" is the prompt that tuning kept, the best one
on held-back examples: the one that is used afterwards. It need not be the last; its row says ``kept``.

- **How high scores get.** The best and the median predictivity on ``select``, the level that the best reaches by luck
  at that very step (permuted labels), and how many neurons are above it.
- **When the final top came about.** Mean accuracy of the final top neurons' rules, with the positions and directions
  that ``select`` chose at each step: on ``select`` (too good) and on ``report``, beside as many random neurons of the
  same layers; what the step's own top shares with the final one, beside luck; Spearman's correlation of all
  predictivities with the final ones.
- **What the prompt can do meanwhile.** Its accuracy on ``report`` with an exact interval, and how far it has moved.

What it does not show: that tuning made the neurons. Most of it may be there with the initial prompt, which is what the
first row is for; and a step is no sample of prompts: neighbouring rows are alike because the prompts are.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from tl_skillneurons._checks import require_int
from tl_skillneurons._progress import progress_bar
from tl_skillneurons.interventions.effects import accuracy
from tl_skillneurons.models.input_cache import InputCache, runs_text_apart
from tl_skillneurons.prompts.prompted_model import PromptedModel
from tl_skillneurons.prompts.run import as_list
from tl_skillneurons.prompts.soft_prompt import SoftPrompt
from tl_skillneurons.scores.neuron_scores import NeuronScores
from tl_skillneurons.scores.overlap import compare_sets
from tl_skillneurons.scores.predictivity import score_neurons
from tl_skillneurons.scores.ranked import require_one_model
from tl_skillneurons.scores.rules import rule_answers
from tl_skillneurons.scores.selection import top_neurons
from tl_skillneurons.stats.chance import clopper_pearson
from tl_skillneurons.stats.intervals import require_draws
from tl_skillneurons.stats.ranks import spearman
from tl_skillneurons.tasks.task import Task, require_two_classes

_ALPHA = 0.05


@dataclass(frozen=True, eq=False)
class PromptTrajectory:
    """How prompts and their neurons' predictivity changed during tuning.

    Attributes:
        steps: A row per prompt and kept step: ``prompt``, ``step``, ``kept`` (whether this is the prompt itself);
            ``accuracy`` of the prompt on ``report`` with its exact 95 % interval; of all neurons on ``select`` the
            ``best`` and ``median`` predictivity, the ``level`` that the best reaches by luck in 5 % of cases, and
            ``n_significant`` above it; of the final top's rules, as this step chose them, the mean accuracy
            ``top_on_select`` and ``top_on_report``, and ``random_on_report`` of random neurons; ``jaccard`` of this
            step's top with the final one and ``chance_jaccard``; ``spearman`` with the final predictivities;
            ``distance`` from the initial prompt, as a share of its norm.
    """

    steps: pd.DataFrame

    def to_dataframe(self) -> pd.DataFrame:
        """A copy of :attr:`steps`."""
        return self.steps.copy()


def prompt_trajectory(
    model: Any,
    prompts: SoftPrompt | Sequence[SoftPrompt],
    task: Task,
    *,
    scores: NeuronScores | None = None,
    amount: float | int = 0.02,
    n_permutations: int = 1000,
    seed: int = 0,
    batch_size: int | None = None,
    batch_tokens: int | None = None,
    cache: InputCache | None = None,
    progress: bool = True,
) -> PromptTrajectory:
    """Score all neurons with each snapshot of each prompt, and follow the final top neurons back to the start.

    Args:
        prompts: Tuned with ``fit_soft_prompts(..., snapshots=True)``.
        scores: Whose top and predictivities are the final ones, for example those of all prompts together or of other
            prompts; ``None`` takes each prompt's own, as tuning kept it.
        amount: The tops, as a share of each layer or a count (:meth:`NeuronScores.top`).
        n_permutations: Label permutations of each step's level. They take one bit of memory per snapshot, example of
            ``select``, layer, position and neuron.
        seed: Draws the permutations and the random neurons.
        cache: Keys and values of the texts (causal models); by default one of its own.

    Raises:
        ValueError: For prompts without snapshots, a task of more than two classes, scores of another model, or too few
            permutations.
    """
    chosen = as_list(prompts)
    require_two_classes(task)
    require_draws(n_permutations, _ALPHA, name="n_permutations")
    require_int(seed, "seed", minimum=0)
    kept_at = [_kept_at(prompt, number) for number, prompt in enumerate(chosen)]
    if cache is None and runs_text_apart(model):
        cache = InputCache(model)
    batches = {"batch_size": batch_size, "batch_tokens": batch_tokens}
    split = task.split("report")
    texts, labels = list(split["text"]), list(split["label"])
    frames = []
    for number, prompt in enumerate(chosen):
        prompt.require_fits(model)
        steps = _snapshots(prompt)
        found = score_neurons(
            model,
            steps,
            task,
            n_permutations=n_permutations,
            seed=seed,
            cache=cache,
            progress=progress,
            **batches,
        )
        if scores is not None:
            require_one_model({"the scores given": scores, f"those of prompt {number}": found})
        ranked = found.predictivity_by_prompt
        final = ranked[kept_at[number]] if scores is None else scores.predictivity
        top = top_neurons(final, amount)
        random = top.random_like(seed)
        with progress_bar(f"prompt {number} on report", 2 * len(steps), show=progress) as advance:
            right = []
            for step in steps:
                prompted = PromptedModel(model, step, task.label_words, cache=cache)
                right.append(accuracy(prompted, texts, labels, **batches))
                advance()
            answers = rule_answers(model, steps, task, found, top | random, cache=cache, **batches).mean(1)
            advance(len(steps))
        initial = prompt.snapshots[0].double()
        rows = []
        for at, entry in enumerate(prompt.history):
            low, high = clopper_pearson(round(right[at] * len(texts)), len(texts))
            shared = compare_sets(top_neurons(ranked[at], amount), top)
            rows.append(
                {
                    "prompt": number,
                    "step": entry["step"],
                    "kept": at == kept_at[number],
                    "accuracy": right[at],
                    "accuracy_low": low,
                    "accuracy_high": high,
                    "best": float(ranked[at].max()),
                    "level": found.null.level(_ALPHA, prompt=at),
                    "n_significant": int((found.null.family(prompt=at) <= _ALPHA).sum()),
                    "median": float(ranked[at].median()),
                    "top_on_select": float(ranked[at][top.layer, top.index].mean()),
                    "top_on_report": float(answers[at, : len(top)].mean()),
                    "random_on_report": float(answers[at, len(top) :].mean()),
                    "jaccard": shared.jaccard,
                    "chance_jaccard": shared.chance_jaccard,
                    "spearman": spearman(ranked[at].flatten(), final.flatten()),
                    "distance": float((prompt.snapshots[at].double() - initial).norm() / initial.norm()),
                }
            )
        frames.append(pd.DataFrame(rows))
    return PromptTrajectory(pd.concat(frames, ignore_index=True))


def _kept_at(prompt: SoftPrompt | None, number: int) -> int:
    """Which of its snapshots the prompt itself is."""
    if prompt is None or prompt.snapshots is None:
        raise ValueError(
            f"prompt {number} has no snapshots of its tuning; tune it with fit_soft_prompts(..., snapshots=True)"
        )
    same = (prompt.snapshots == prompt.embedding).flatten(1).all(1)
    if not same.any():
        raise ValueError(f"prompt {number} is none of its own snapshots; give it as fit_soft_prompts made it")
    return int(same.int().argmax())  # the first of equals


def _snapshots(prompt: SoftPrompt) -> list[SoftPrompt]:
    """The prompt as it was at each entry of its history."""
    readouts = [None] * len(prompt.history) if prompt.readout is None else prompt.readout_snapshots
    return [
        SoftPrompt(
            embedding,
            placement=prompt.placement,
            readout=readout,
            prepend_bos=prompt.prepend_bos,
            seed=prompt.seed,
        )
        for embedding, readout in zip(prompt.snapshots, readouts, strict=True)
    ]
