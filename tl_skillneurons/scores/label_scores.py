"""Other scores than predictivity for a task's labels: one pass, one null, one selection for all of them.

What each score is stands in :mod:`~tl_skillneurons.scores.kinds`. With s(N, p) the score of neuron N at position p by
the labels of role ``select``::

    score(N) = mean over prompts of  max over p of  |s(N, p)|

It does not show that the model uses a neuron, nor how good the best of many is elsewhere: compare with the null of
permuted labels (``n_permutations=``), and measure what was chosen on role ``report``.

Memory: the activations of as many layers as fit into ``memory`` bytes; more layers take more passes.
"""

from collections.abc import Iterable, Iterator, Sequence

import torch
from jaxtyping import Float
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from tl_skillneurons._checks import require_option, require_seed
from tl_skillneurons._progress import Advance, progress_bar
from tl_skillneurons._widths import widest
from tl_skillneurons.models.sites import neuron_shape
from tl_skillneurons.prompts.activations import MEMORY, layers_at_a_time
from tl_skillneurons.prompts.prompted_model import PromptedModel
from tl_skillneurons.prompts.run import RunOptions
from tl_skillneurons.prompts.soft_prompt import SoftPrompt
from tl_skillneurons.prompts.streaming import READINGS
from tl_skillneurons.scores.kinds import KINDS, Kind, best_threshold
from tl_skillneurons.scores.layers import Scorer, Walked, score_layers
from tl_skillneurons.scores.measured import prompted_set, provenance_of, require_alike, task_provenance
from tl_skillneurons.scores.neuron_statistic import NeuronStatistic
from tl_skillneurons.scores.null import label_rows
from tl_skillneurons.scores.passes import summaries
from tl_skillneurons.scores.tallies import threshold
from tl_skillneurons.tasks.subtasks import against_rest
from tl_skillneurons.tasks.task import Task
from tl_skillneurons.tasks.two_classes import require_class

LABEL_SCORES = tuple(KINDS)


def score_labels(
    model: TransformerBridge,
    prompts: SoftPrompt | Sequence[SoftPrompt] | None,
    task: Task,
    kinds: Sequence[str] = ("auc", "mean_difference", "mutual_information"),
    *,
    n_permutations: int = 0,
    seed: int = 0,
    positions: str = "prompt",
    aggregate: str = "mean",
    memory: int = MEMORY,
    max_length: int | None = None,
    class_id: int | None = None,
    run: RunOptions = RunOptions(),
) -> dict[str, NeuronStatistic]:
    """Several scores of every neuron on role ``select``, by name.

    Args:
        prompts: One, several (equally long), or ``None`` for the bare text.
        kinds: Of "auc", "mean_difference", "pearson", "spearman", "accuracy", "balanced_accuracy",
            "mutual_information" (the last three by the thresholds of role ``baseline``), and "best_threshold",
            whose thresholds are those that tell the labels of ``baseline`` apart best.
        n_permutations: Label permutations, drawn by ``seed``, for ``.significant()``; 0 for none.
        positions: ``"prompt"``; ``"last"``, ``"mean"``, ``"max"`` over the text's own tokens; or another of
            :data:`~tl_skillneurons.prompts.streaming.READINGS`: "readout", "template", "answer_last" and so on.
        aggregate: How prompts are combined: ``"mean"``, or ``"min"``.
        memory: Bytes that kept activations may take.
        max_length: Longest sequence in tokens; ``None`` is what the prompts were tuned with.
        class_id: The class that is told from all others, which are then one; must be said of more than two.
        run: Batches, cache, progress.

    Raises:
        ValueError: For a task of more than two classes without a ``class_id``, an unknown score, or activations
            that are the same for every example.

    Example:
        >>> found = skn.scores.score_labels(model, prompts, task, ["auc"], n_permutations=1000)
        >>> found["auc"].significant()
    """
    require_seed(seed)
    chosen = require_class(task, class_id)
    require_option(positions, "positions", READINGS)
    for name in kinds:
        require_option(name, "kinds", LABEL_SCORES)
    if not kinds:
        raise ValueError(f"kinds must name at least one of {', '.join(LABEL_SCORES)}, got none")
    rows = against_rest(label_rows(task, "select", n_permutations, seed=seed), chosen)
    prompted = prompted_set(model, prompts, positions, task=task, max_length=max_length, run=run)
    require_alike(prompted)
    limits = _limits(prompted, task, {KINDS[name].hits for name in kinds}, positions, memory, chosen)
    walked = score_texts(
        prompted,
        list(task.split("select")["text"]),
        rows,
        {name: _scorer(KINDS[name], limits) for name in kinds},
        positions=positions,
        aggregate=aggregate,
        seed=seed,
        memory=memory,
        progress=run.progress,
    )
    provenance = {
        **provenance_of(prompted),
        **task_provenance(prompted[0], task, ["baseline", "select"] if limits else ["select"]),
        "target": "label",
        "n_baseline": task.n_examples["baseline"],
        **({} if class_id is None else {"class_id": chosen}),
    }
    return {
        name: NeuronStatistic(
            name=name,
            values=one.values,
            n_examples=rows.shape[1],
            role="select",
            positions=positions,
            aggregate=aggregate,
            null=None if one.null is None else one.null.of_units(task.units("select"), rows[0]),
            provenance=provenance,
        )
        for name, one in walked.items()
    }


def score_texts(
    prompted: Sequence[PromptedModel],
    texts: list[str],
    rows: Tensor,
    scorers: dict[str, Scorer],
    *,
    positions: str,
    aggregate: str,
    seed: int,
    memory: int,
    progress: bool,
) -> dict[str, Walked]:
    """Each score of every neuron from its activations on ``texts``, under the true targets (the first row) and under
    permuted ones (the others).

    Raises:
        ValueError: For activations that are the same for every example.
    """
    n_layers, d_mlp = neuron_shape(prompted[0].model)
    n_positions = _n_positions(prompted[0], positions)
    shape = (len(prompted), n_layers, n_positions, widest(d_mlp))
    layers = layers_at_a_time(prompted, texts, n_positions=n_positions, memory=memory, positions=positions)
    n_read = n_layers if isinstance(d_mlp, int) else sum(map(bool, d_mlp))
    with prompted[0].run.one_use(), progress_bar("scores", n_read, show=progress) as advance:
        return score_layers(_varying(layers, advance), rows, scorers, shape, aggregate=aggregate, seed=seed)


def _varying(
    layers: Iterable[tuple[int, Float[Tensor, "prompt example position neuron"]]], advance: Advance
) -> Iterator[tuple[int, Float[Tensor, "prompt example position neuron"]]]:
    """The same layers; refused at the end when no activation differs between examples by more than rounding."""
    varies = False
    for layer, acts in layers:
        apart = acts.amax(1) - acts.amin(1)
        varies = varies or bool((apart > 64 * torch.finfo(acts.dtype).eps * acts.abs().amax()).any())
        yield layer, acts
        advance()
    if not varies:
        raise ValueError(
            "every neuron's activation is the same for every example at the positions read; are the texts equal, or "
            "does the prompt not see them?"
        )


def _scorer(kind: Kind, limits: dict[str, list[Float[Tensor, "layer position neuron"]]]) -> Scorer:
    """The score of each prompt's columns; hits are made of them where the score is of hits."""

    def score(columns: Tensor, rows: Tensor, layer: int, neurons: slice) -> Tensor:
        if kind.hits is None:
            return torch.stack([kind.score(own, rows) for own in columns])
        of_prompts = limits[kind.hits]
        return torch.stack(
            [
                kind.score(own > limit[layer][:, neurons].flatten(), rows)
                for own, limit in zip(columns, of_prompts, strict=True)
            ]
        )

    return score


def _limits(
    prompted: list[PromptedModel],
    task: Task,
    wanted: set[str | None],
    positions: str,
    memory: int,
    class_id: int,
) -> dict[str, list[Float[Tensor, "layer position neuron"]]]:
    """Each prompt's thresholds from role ``baseline``, rounded to the model's dtype so that they decide the same."""
    exact: dict[str, Iterable[Tensor]] = {}
    if "mean" in wanted:
        exact["mean"] = [summary.mean for summary in summaries(prompted, task, positions)[0]]
    if "best" in wanted:
        exact["best"] = _best_thresholds(prompted, task, positions, memory, class_id)
    dtype = prompted[0].model.W_E.dtype
    return {name: [threshold(one, dtype) for one in of_prompts] for name, of_prompts in exact.items()}


def _best_thresholds(
    prompted: list[PromptedModel], task: Task, positions: str, memory: int, class_id: int
) -> Float[Tensor, "prompt layer position neuron"]:
    split = task.split("baseline")
    labels = against_rest(torch.tensor(split["label"]), class_id)
    n_positions = _n_positions(prompted[0], positions)
    n_layers, d_mlp = neuron_shape(prompted[0].model)
    shape = (len(prompted), n_layers, n_positions, widest(d_mlp))
    limits = torch.full(shape, torch.nan, dtype=torch.float64)
    texts = list(split["text"])
    layers = layers_at_a_time(prompted, texts, n_positions=n_positions, memory=memory, positions=positions)
    for layer, acts in layers:
        for k, of_prompt in enumerate(acts):
            for position in range(n_positions):
                limits[k, layer, position, : acts.shape[-1]] = best_threshold(of_prompt[:, position], labels)
    return limits


def _n_positions(prompted: PromptedModel, positions: str) -> int:
    return prompted.n_prompt_positions if positions == "prompt" else 1
