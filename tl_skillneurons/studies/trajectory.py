"""How predictivity came about: every neuron scored with the prompt as it was at each evaluation of its tuning.

Rows run from the initial prompt (step 0) to the last evaluation. "Final" is the prompt that tuning kept, the best one
on held-back examples: the one that is used afterwards. It need not be the last; its row says ``kept``.

- **How high scores get.** The best and the median predictivity on ``select``, the level that the best reaches by luck
  at that very step (permuted labels), and how many neurons are above it.
- **When the final top came about.** Mean accuracy of the final top neurons' rules, with the positions and directions
  that ``select`` chose at each step: on ``select`` (too good) and on ``report``, beside as many random neurons of the
  same layers; what the step's own top shares with the final one, and Spearman's correlation of all predictivities
  with the final ones, both beside the same where both steps have the same permuted labels.
- **What the prompt can do meanwhile.** Its accuracy on ``report`` with an exact interval, and how far it has moved.

What it does not show: that tuning made the neurons. Most of it may be there with the initial prompt, which is what the
first row is for; and a step is no sample of prompts: neighbouring rows are alike because the prompts are. Controls are
the first row, the level of permuted labels, and random neurons of the same layers.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pandas as pd
from jaxtyping import Float
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from tl_skillneurons._checks import require_seed
from tl_skillneurons._pictures import plotted
from tl_skillneurons._progress import progress_bar
from tl_skillneurons._results import html_of, one_line
from tl_skillneurons._widths import even
from tl_skillneurons.models.input_cache import InputCache, runs_text_apart
from tl_skillneurons.models.sites import neuron_shape
from tl_skillneurons.neurons.choice import Choice, require_apart
from tl_skillneurons.neurons.neuron_set import NeuronSet
from tl_skillneurons.prompts.prompted_model import PromptedModel
from tl_skillneurons.prompts.run import RunOptions
from tl_skillneurons.prompts.soft_prompt import SoftPrompt
from tl_skillneurons.scores.agreement import agreements
from tl_skillneurons.scores.neuron_scores import NeuronScores
from tl_skillneurons.scores.one_prompt import scores_of_prompt
from tl_skillneurons.scores.predictivity import require_orders, score_neurons
from tl_skillneurons.scores.ranked import require_one_model
from tl_skillneurons.scores.rules import rule_answers
from tl_skillneurons.scores.selection import top_neurons
from tl_skillneurons.stats.hypothesis_tests import require_draws
from tl_skillneurons.stats.ranks import median, spearman
from tl_skillneurons.stats.rates import rate_interval
from tl_skillneurons.stats.units import Units
from tl_skillneurons.studies._common import (
    load_tables,
    null_of,
    right_answers,
    save_tables,
    settings_of,
    soft_prompts,
)
from tl_skillneurons.tasks.task import Task
from tl_skillneurons.tasks.two_classes import require_two_classes

KIND = "PromptTrajectory"
_ALPHA = 0.05
_N_AGREE = 99  # permutations that agreement with the final scores is compared with
_COLUMNS = (
    *("prompt", "step", "kept", "accuracy", "accuracy_low", "accuracy_high"),
    *("best", "level", "n_significant", "median"),
    *("top_on_select", "top_on_report", "random_on_report"),
    *("jaccard", "chance_jaccard", "p_shared", "spearman", "null_low", "null_high", "p_value"),
    *("distance", "neurons_chosen"),
)


@dataclass(frozen=True, eq=False)
class PromptTrajectory:
    """How prompts and their neurons' predictivity changed during tuning.

    Attributes:
        steps: A row per prompt and kept step: ``prompt``, ``step``, ``kept`` (whether this is the prompt itself);
            ``accuracy`` of the prompt on ``report`` with its 95 % interval, exact where each text is a unit, else by
            bootstrap of the units; of all neurons on ``select`` the
            ``best`` and ``median`` predictivity, the ``level`` that the best reaches by luck in 5 % of cases, and
            ``n_significant`` above it; of the final top's rules, as this step chose them, the mean accuracy
            ``top_on_select`` and ``top_on_report``, and ``random_on_report`` of random neurons; ``jaccard`` of this
            step's top with the final one, of random sets ``chance_jaccard``, and ``p_shared``, how often the same
            permuted labels make both share as many; ``spearman`` with the final predictivities, the middle 95 % of it
            under these labels (``null_low``, ``null_high``) and its two-sided ``p_value``;
            ``distance`` from the initial prompt, as a share of its norm; ``neurons_chosen`` "on other examples" than
            those of ``report``, "on these examples" (by insistence) or "unknown".
        settings: Model, task, prompts and settings, as plain JSON values; what labels of ``select`` were dealt out to
            for the level (``unit``), and how many there are (``n_units``).

    Example:
        >>> found = skn.studies.prompt_trajectory(model, prompts, task)
        >>> found.steps[["step", "best", "level"]]
    """

    steps: pd.DataFrame
    settings: dict[str, Any] = field(default_factory=dict)

    def __repr__(self) -> str:
        kept = self.steps[self.steps.kept]
        return one_line(
            self,
            n_prompts=int(self.steps.prompt.nunique()),
            n_steps=int(self.steps.step.nunique()),
            best=float(kept.best.mean()),
            level=float(kept.level.mean()),
            best_at_start=float(self.steps.groupby("prompt").best.first().mean()),
        )

    def _repr_html_(self) -> str:
        return html_of(self)

    plot = plotted("plot_trajectory")

    def to_dataframe(self) -> pd.DataFrame:
        """A copy of :attr:`steps`; ``attrs`` tells the unit of the level."""
        frame = self.steps.copy()
        frame.attrs |= {name: self.settings[name] for name in ("unit", "n_units") if name in self.settings}
        return frame

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the trajectory to one JSON file, whole or not at all."""
        return save_tables(path, KIND, self.settings, {"steps": self.steps})

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "PromptTrajectory":
        """The trajectory that :meth:`save` wrote.

        Raises:
            FileNotFoundError: When there is no such file.
            ValueError: When the file is corrupt or holds something else.
        """
        tables, settings = load_tables(path, KIND, ("steps",))
        return cls(**tables, settings=settings)


def prompt_trajectory(
    model: TransformerBridge,
    prompts: SoftPrompt | Sequence[SoftPrompt],
    task: Task,
    *,
    scores: NeuronScores | None = None,
    amount: float | int = 0.02,
    n_permutations: int = 1000,
    seed: int = 0,
    max_length: int | None = None,
    on_chosen_examples: bool = False,
    run: RunOptions = RunOptions(),
) -> PromptTrajectory:
    """All neurons scored with each snapshot of each prompt, and the final top neurons followed back to the start.

    Args:
        prompts: Tuned with ``fit_soft_prompts(..., training=TrainingOptions(snapshots=True))``.
        scores: Whose top and predictivities are the final ones, for example those of all prompts together or of other
            prompts; ``None`` takes each prompt's own, as tuning kept it.
        amount: The tops, as a share of each layer or a count (:meth:`NeuronScores.top`).
        n_permutations: Label permutations of each step's level. They take one bit of memory per snapshot, example of
            ``select``, layer, position and neuron. The first 99 tell how far steps agree by themselves.
        seed: Draws the permutations and the random neurons.
        max_length: Longest sequence in tokens; by default what each prompt was tuned with.
        on_chosen_examples: Follow the final top on ``report`` though some of its texts chose it, as those of scores of
            another task may; every row then says so.
        run: Keys and values of the texts (causal models) are kept here even without ``run.cache``.

    Raises:
        ValueError: For prompts without snapshots, a task of more than two classes, scores of another model, of texts
            cut to another length or of examples that are on ``report`` here, or too few permutations.

    Example:
        >>> prompts = skn.fit_soft_prompts(model, task, training=skn.prompts.TrainingOptions(snapshots=True))
        >>> found = skn.studies.prompt_trajectory(model, prompts, task)
        >>> found.steps[["prompt", "step", "accuracy", "best", "level", "top_on_report", "random_on_report"]]
    """
    chosen = soft_prompts(prompts)
    require_two_classes(task)
    require_draws(n_permutations, _ALPHA, name="n_permutations")
    require_seed(seed)
    even(neuron_shape(model)[1], "a trajectory")
    snapshots = [_snapshots(prompt, number) for number, prompt in enumerate(chosen)]
    require_orders(task, n_permutations, _ALPHA)
    if scores is not None:
        _require_one_length(scores, model, chosen, max_length)
    if run.cache is None and runs_text_apart(model):
        run = replace(run, cache=InputCache(model))
    units = task.units("report")
    on_report = list(task.split("report")["text"])
    if scores is not None:  # refused before anything is run
        known = Choice.recorded(scores.provenance.get("chose"))
        require_apart(known, on_report, insist=on_chosen_examples, by="on_chosen_examples=True")
    frames = []
    for number, (prompt, (steps, kept_at)) in enumerate(zip(chosen, snapshots, strict=True)):
        prompt.require_fits(model)
        found = score_neurons(
            model,
            steps,
            task,
            n_permutations=n_permutations,
            seed=seed,
            keep_outcomes=True,
            max_length=max_length,
            run=run,
        )
        if scores is not None:
            require_one_model({"the scores given": scores, f"those of prompt {number}": found})
        final = found.predictivity_by_prompt[kept_at] if scores is None else scores.predictivity
        top = top_neurons(final, amount, chose=(scores or found).provenance.get("chose"))
        where_chosen = require_apart(
            top.choice, on_report, insist=on_chosen_examples, by="on_chosen_examples=True"
        )
        # one draw to compare with, for all steps alike; no rank p-value is made of it
        both = top | top.random_like(seed)
        with progress_bar(f"prompt {number} on report", 2 * len(steps), show=run.progress) as advance:
            right = []
            for step in steps:
                prompted = PromptedModel.for_task(model, step, task, max_length=max_length, run=run)
                right.append(right_answers(prompted, task).double())
                advance()
            answers = rule_answers(model, steps, task, found, both, max_length=max_length, run=run).mean(1)
            advance(len(steps))
        frame = pd.DataFrame([_of_scores(found, at, final, top, amount) for at in range(len(steps))])
        frame = frame.join(_by_luck(found, scores or kept_at, len(top), n_permutations, seed))
        frame["top_on_report"] = [float(row[: len(top)].mean()) for row in answers]
        frame["random_on_report"] = [float(row[len(top) :].mean()) for row in answers]
        frame["step"] = [entry["step"] for entry in prompt.history]
        frame["kept"] = [at == kept_at for at in range(len(steps))]
        frame["neurons_chosen"] = where_chosen
        of_prompts = _of_prompts(steps, right, units)
        frames.append(pd.concat([of_prompts, frame], axis=1).assign(prompt=number))
    settings = settings_of(
        model, task, chosen, amount=amount, n_permutations=n_permutations, seed=seed, max_length=max_length
    )
    settings["scores"] = "each prompt's own" if scores is None else scores.provenance
    labelled = task.units("select")
    settings |= {"unit": labelled.what, "n_units": len(labelled), "n_units_report": len(units)}
    return PromptTrajectory(pd.concat(frames, ignore_index=True)[list(_COLUMNS)], settings)


def _of_scores(
    found: NeuronScores,
    at: int,
    final: Float[Tensor, "layer neuron"],
    top: NeuronSet,
    amount: float | int,
) -> dict[str, float]:
    """How high the scores of one snapshot are, and how like the final ones."""
    null = null_of(found)
    ranked = found.predictivity_by_prompt[at]
    shared = top_neurons(ranked, amount).overlap(top)
    return {
        "best": float(ranked.max()),
        "level": null.level(_ALPHA, prompt=at),
        "n_significant": int((null.family(prompt=at) <= _ALPHA).sum()),
        "median": median(ranked.flatten()),
        "top_on_select": float(ranked[top.layer, top.index].mean()),
        "jaccard": shared.jaccard,
        "chance_jaccard": shared.chance_jaccard,
        "spearman": spearman(ranked.flatten(), final.flatten()),
    }


def _by_luck(
    found: NeuronScores, final: NeuronScores | int, n_top: int, n_permutations: int, seed: int
) -> pd.DataFrame:
    """How far each snapshot agrees with the final scores, or those of a snapshot, where labels mean nothing."""
    steps = {f"step {at}": scores_of_prompt(found, at) for at in range(found.n_prompts)}
    last = steps[f"step {final}"] if isinstance(final, int) else final
    agree = agreements(
        {**steps, "final": last},
        [(name, "final") for name in steps],
        n_top // found.n_layers,
        n_permutations=min(n_permutations, _N_AGREE),
        seed=seed,
    )
    rows = [agree[name, "final"].row(-1) for name in steps]
    return pd.DataFrame(rows)[["p_shared", "null_low", "null_high", "p_value"]]


def _of_prompts(
    steps: Sequence[SoftPrompt], right: Sequence[Float[Tensor, " example"]], units: Units
) -> pd.DataFrame:
    """What the prompt could do at each evaluation, with intervals, and how far it had moved."""
    rows = [step.embedding.detach().double() for step in steps]
    ends = [rate_interval(one, units) for one in right]
    return pd.DataFrame(
        {
            "accuracy": [float(one.mean()) for one in right],
            "accuracy_low": [low for low, _ in ends],
            "accuracy_high": [high for _, high in ends],
            "distance": [float((row - rows[0]).norm() / rows[0].norm()) for row in rows],
        }
    )


def _require_one_length(
    scores: NeuronScores, model: TransformerBridge, prompts: Sequence[SoftPrompt], max_length: int | None
) -> None:
    """Refuse scores, be they of other prompts, that were measured on texts cut to another length."""
    for prompt in prompts:
        own = PromptedModel(model, prompt, max_length=max_length).max_length
        was = scores.provenance.get("max_length", own)
        if was != own:
            raise ValueError(
                f"the scores given were measured with max_length={was}, this trajectory would be with "
                f"max_length={own}; give scores measured at that length, or max_length={was}"
            )


def _snapshots(prompt: SoftPrompt, number: int) -> tuple[list[SoftPrompt], int]:
    """The prompt as it was at each entry of its history, and which of them it is."""
    if prompt.snapshots is None:
        raise ValueError(
            f"prompt {number} has no snapshots of its tuning; tune it with "
            "fit_soft_prompts(..., training=TrainingOptions(snapshots=True))"
        )
    same = prompt.snapshots.eq(prompt.embedding).flatten(1).all(1)
    if not same.any():
        raise ValueError(f"prompt {number} is none of its own snapshots; give it as fit_soft_prompts made it")
    readouts = prompt.readout_snapshots
    steps = [
        SoftPrompt(
            embedding,
            placement=prompt.placement,
            readout=None if readouts is None else readouts[at],
            prepend_bos=prompt.prepend_bos,
            chat=prompt.chat,
            max_length=prompt.max_length,
            seed=prompt.seed,
        )
        for at, embedding in enumerate(prompt.snapshots)
    ]
    return steps, int(same.int().argmax())  # the first of equals
