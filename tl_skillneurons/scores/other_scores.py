"""Other scores than predictivity, and other targets than labels: one interface, one null, one selection.

:func:`measure_scores` gives any of the scores of :mod:`~tl_skillneurons.scores.kinds` for a task's labels from one
pass over ``select`` (with another over ``baseline`` where thresholds are needed). :func:`correlate_neurons` takes
any number per example: a rating, a reward margin of two answers, the model's own confidence or loss
(:func:`answer_targets`). Both give :class:`~tl_skillneurons.scores.NeuronStatistic`.

Memory: the activations of as many layers as fit into ``memory`` bytes; more layers take more passes.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from tl_skillneurons._checks import require_int, require_option
from tl_skillneurons._files import fingerprint
from tl_skillneurons._progress import progress_bar
from tl_skillneurons.models.input_cache import InputCache
from tl_skillneurons.models.records import model_record
from tl_skillneurons.models.sites import neuron_shape
from tl_skillneurons.prompts.activations import MEMORY, layers_at_a_time
from tl_skillneurons.prompts.prompted_model import PromptedModel
from tl_skillneurons.prompts.run import as_list, prompt_record, require_sees_text
from tl_skillneurons.prompts.soft_prompt import SoftPrompt
from tl_skillneurons.prompts.streaming import READINGS, stand_alike
from tl_skillneurons.scores.kinds import CORRELATIONS, OF_HITS, OF_VALUES, accuracy, best_threshold
from tl_skillneurons.scores.neuron_statistic import NeuronStatistic
from tl_skillneurons.scores.null import NullTally
from tl_skillneurons.scores.outcomes import MOST_NUMBERS
from tl_skillneurons.scores.passes import summaries
from tl_skillneurons.scores.tallies import threshold
from tl_skillneurons.stats.permutation import permuted_labels
from tl_skillneurons.tasks.task import Task, require_two_classes, twin_pairs

LABEL_SCORES = (*OF_VALUES, *OF_HITS, "best_threshold")
ANSWERS = ("confidence", "probability", "loss", "logit_diff")
_SLACK = 1e-9  # relative: what rounding makes of equal scores

Score = Callable[[Tensor, Tensor], Tensor]
"""From activations ``[example, column]`` and targets ``[row, example]`` to scores ``[row, column]``."""


def measure_scores(
    model: Any,
    prompts: SoftPrompt | Sequence[SoftPrompt] | None,
    task: Task,
    scores: Sequence[str] = ("auc", "mean_difference", "mutual_information"),
    *,
    n_permutations: int = 0,
    seed: int = 0,
    positions: str = "prompt",
    aggregate: str = "mean",
    memory: int = MEMORY,
    batch_size: int | None = None,
    batch_tokens: int | None = None,
    max_length: int | None = None,
    cache: InputCache | None = None,
    progress: bool = True,
) -> dict[str, NeuronStatistic]:
    """Several scores of every neuron on role ``select``, by name.

    Args:
        scores: Of "auc", "mean_difference", "pearson", "spearman", "accuracy", "balanced_accuracy",
            "mutual_information" (the last three by the thresholds of role ``baseline``), and "best_threshold",
            whose thresholds are those that tell the labels of ``baseline`` apart best.
        n_permutations: Label permutations for ``.significant()``; 0 for none.
        memory: Bytes that kept activations may take.

    Raises:
        ValueError: For a task of more than two classes (take a binary subtask), an unknown score, or activations
            that are the same for every example.
    """
    require_two_classes(task)
    for name in scores:
        require_option(name, "scores", LABEL_SCORES)
    if not scores:
        raise ValueError(f"scores must name at least one of {', '.join(LABEL_SCORES)}, got none")
    split = task.split("select")
    labels = torch.tensor(split["label"])
    rows = labels[None]
    if n_permutations:
        pairs = twin_pairs(split)
        rows = torch.cat([rows, permuted_labels(labels, n_permutations, seed=seed, pairs=pairs)])
    options = {"positions": positions, "batch_size": batch_size, "batch_tokens": batch_tokens}
    prompted = _prompted(model, prompts, positions, max_length, cache)
    limits: dict[str, list[Tensor]] = {}
    dtype = model.W_E.dtype
    if set(scores) & set(OF_HITS):
        found, _ = summaries(prompted, task, options)
        limits["mean"] = [threshold(summary.mean, dtype) for summary in found]
    if "best_threshold" in scores:
        limits["best"] = _best_thresholds(prompted, task, options, memory)

    def score_of(name: str, prompt: int, layer: int, position: slice, neurons: slice) -> Score:
        if name in OF_VALUES:
            return OF_VALUES[name]
        kind = "best" if name == "best_threshold" else "mean"
        limit = limits[kind][prompt][layer][position, neurons].flatten()
        of_hits = accuracy if name == "best_threshold" else OF_HITS[name]
        return lambda acts, targets: of_hits(acts > limit, targets)

    provenance = {
        **_provenance(model, prompts, prompted),
        "task": {"name": task.name, "fingerprint": task.fingerprint},
        "target": "label",
        "n_baseline": task.n_examples["baseline"],
    }
    settings = {"role": "select", "positions": positions, "aggregate": aggregate, "provenance": provenance}
    return _measure(
        prompted, list(split["text"]), rows, scores, score_of, options, memory, seed, settings, progress
    )


def correlate_neurons(
    model: Any,
    prompts: SoftPrompt | Sequence[SoftPrompt] | None,
    texts: Sequence[str],
    targets: Sequence[float | int] | Tensor,
    *,
    kind: str = "pearson",
    weights: Sequence[float | int] | Tensor | None = None,
    role: str = "select",
    target: str = "target",
    n_permutations: int = 0,
    seed: int = 0,
    positions: str = "prompt",
    aggregate: str = "mean",
    memory: int = MEMORY,
    batch_size: int | None = None,
    batch_tokens: int | None = None,
    max_length: int | None = None,
    cache: InputCache | None = None,
    progress: bool = True,
) -> NeuronStatistic:
    """The correlation of every neuron's activation with a number per text.

    Args:
        texts: Such as ``task.split("select")["text"]``; for pairwise preferences the texts of the pair in one
            template, with the difference of rewards as target.
        targets: One number for each text.
        kind: "pearson" or "spearman".
        weights: How much each example counts, 0 or more.
        role: What to record as the examples' role.
        target: What to call the target.
        n_permutations: Permutations of the targets (a weight stays with its text); 0 for none.

    Raises:
        ValueError: For targets that are constant, not finite or not one per text, weights that are negative or sum
            to zero, or activations that are the same for every example.
    """
    require_option(kind, "kind", CORRELATIONS)
    require_int(n_permutations, "n_permutations", minimum=0)
    values = _targets(targets, len(texts))
    weight = None if weights is None else _weights(weights, len(texts))
    if (values == values[0] if weight is None else values[weight > 0] == values[weight > 0][0]).all():
        raise ValueError(f"{target} is {float(values[0]):g} for every example; nothing can correlate with it")
    rows = values[None]
    if n_permutations:
        orders = math.lgamma(len(values) + 1)
        if orders < math.log(n_permutations + 1):
            raise ValueError(f"{len(values)} examples have too few orders for {n_permutations} permutations")
        generator = torch.Generator().manual_seed(require_int(seed, "seed", minimum=0))
        order = torch.rand(n_permutations, len(values), generator=generator, dtype=torch.float64).argsort(1)
        rows = torch.cat([rows, values[order]])
    options = {"positions": positions, "batch_size": batch_size, "batch_tokens": batch_tokens}
    prompted = _prompted(model, prompts, positions, max_length, cache)

    def score_of(name: str, prompt: int, layer: int, position: slice, neurons: slice) -> Score:
        return lambda acts, drawn: CORRELATIONS[name](acts, drawn, weight)

    provenance = {
        **_provenance(model, prompts, prompted),
        "target": target,
        "targets": fingerprint(values),
        "weights": None if weight is None else fingerprint(weight),
    }
    settings = {"role": role, "positions": positions, "aggregate": aggregate, "provenance": provenance}
    found = _measure(prompted, list(texts), rows, [kind], score_of, options, memory, seed, settings, progress)
    return found[kind]


def answer_targets(
    model: Any,
    prompt: SoftPrompt,
    task: Task,
    what: str = "confidence",
    *,
    role: str = "select",
    batch_size: int | None = None,
    batch_tokens: int | None = None,
    cache: InputCache | None = None,
) -> Float[Tensor, " example"]:
    """One number per example of ``role`` from the model's own answers, as a target for :func:`correlate_neurons`.

    Args:
        what: "confidence", the probability given to the class it answers; "probability", to the right class;
            "loss", minus its logarithm in nats; "logit_diff", logit of class 1 minus class 0 (two classes).
    """
    require_option(what, "what", ANSWERS)
    split = task.split(role)
    prompted = PromptedModel(model, prompt, task.label_words, cache=cache)
    with torch.no_grad():
        logits = prompted.class_logits(list(split["text"]), batch_size=batch_size, batch_tokens=batch_tokens)
    logits = logits.double().cpu()
    if what == "logit_diff":
        require_two_classes(task)
        return logits[:, 1] - logits[:, 0]
    log_p = logits.log_softmax(1)
    right = log_p.gather(1, torch.tensor(split["label"])[:, None])[:, 0]
    return {"confidence": log_p.amax(1).exp(), "probability": right.exp(), "loss": -right}[what]


def _measure(
    prompted: list[PromptedModel],
    texts: list[str],
    rows: Tensor,
    names: Sequence[str],
    score_of: Callable[..., Score],
    options: dict[str, Any],
    memory: int,
    seed: int,
    settings: dict[str, Any],
    progress: bool,
) -> dict[str, NeuronStatistic]:
    """Each named score under the true targets (the first row) and, where there are more rows, its null."""
    n_layers, d_mlp = neuron_shape(prompted[0].model)
    n_positions = _n_positions(prompted[0], options["positions"])
    shape = (len(prompted), n_layers, n_positions, d_mlp)
    values = {name: torch.empty(shape, dtype=torch.float64) for name in names}
    n_draws = len(rows) - 1
    nulls = {
        name: NullTally(len(prompted), n_layers, d_mlp, n_draws, settings["aggregate"], slack=_SLACK)
        for name in names
    }
    wide = max(1, MOST_NUMBERS // (n_positions * max(len(rows), len(texts))))
    every = slice(0, n_positions)
    varies = False
    with progress_bar("scores", n_layers, show=progress) as advance:
        for layer, acts in layers_at_a_time(
            prompted, texts, n_positions=n_positions, memory=memory, **options
        ):
            varies = varies or _varies(acts)
            for start in range(0, d_mlp, wide):
                neurons = slice(start, min(start + wide, d_mlp))
                columns = acts[..., neurons].flatten(2)
                for name in names:
                    found = torch.stack(
                        [
                            score_of(name, k, layer, every, neurons)(columns[k], rows)
                            for k in range(len(prompted))
                        ]
                    ).unflatten(2, (n_positions, -1))
                    values[name][:, layer, :, neurons] = found[:, 0]
                    if n_draws:
                        nulls[name].add(layer, neurons, found.abs().amax(2))
            advance()
    if not varies:
        raise ValueError(
            "every neuron's activation is the same for every example at the positions read; are the texts equal, or "
            "does the prompt not see them?"
        )
    found = {}
    for name in names:
        null = nulls[name].mean_null(seed) if n_draws else None
        found[name] = NeuronStatistic(name, values[name], len(texts), null=null, **settings)
    return found


def _varies(acts: Float[Tensor, "prompt example position neuron"]) -> bool:
    """Whether any activation differs between examples by more than rounding."""
    apart = acts.amax(1) - acts.amin(1)
    return bool((apart > 64 * torch.finfo(acts.dtype).eps * acts.abs().amax()).any())


def _best_thresholds(
    prompted: list[PromptedModel], task: Task, options: dict[str, Any], memory: int
) -> list[Float[Tensor, "layer position neuron"]]:
    split = task.split("baseline")
    labels = torch.tensor(split["label"])
    n_positions = _n_positions(prompted[0], options["positions"])
    n_layers, d_mlp = neuron_shape(prompted[0].model)
    limits = torch.empty(len(prompted), n_layers, n_positions, d_mlp, dtype=torch.float64)
    texts = list(split["text"])
    for layer, acts in layers_at_a_time(prompted, texts, n_positions=n_positions, memory=memory, **options):
        for k, of_prompt in enumerate(acts):
            for position in range(n_positions):
                limits[k, layer, position] = best_threshold(of_prompt[:, position], labels)
    return [threshold(one, prompted[0].model.W_E.dtype) for one in limits]


def _prompted(
    model: Any, prompts: Any, positions: str, max_length: int | None, cache: InputCache | None
) -> list[PromptedModel]:
    require_option(positions, "positions", READINGS)
    prompted = [
        PromptedModel(model, prompt, max_length=max_length, cache=cache) for prompt in as_list(prompts)
    ]
    if len(stand_alike(prompted)) > 1:
        raise ValueError("prompts of one set must have equally many virtual tokens and one placement")
    for one in prompted:
        require_sees_text(one, positions)
    return prompted


def _n_positions(prompted: PromptedModel, positions: str) -> int:
    return prompted.n_prompt_positions if positions == "prompt" else 1


def _provenance(model: Any, prompts: Any, prompted: list[PromptedModel]) -> dict[str, Any]:
    described = [None if one is None else prompt_record(one) for one in as_list(prompts)]
    return {"model": model_record(model), "prompts": described, "max_length": prompted[0].max_length}


def _targets(targets: Any, n: int) -> Float[Tensor, " example"]:
    values = torch.as_tensor(targets).detach().double().cpu()
    if values.shape != (n,):
        raise ValueError(f"targets must be one number for each of {n} texts, got shape {tuple(values.shape)}")
    if not values.isfinite().all():
        at = int((~values.isfinite()).nonzero()[0])
        raise ValueError(f"targets must be finite, got {float(values[at])} for example {at}; leave it out")
    return values


def _weights(weights: Any, n: int) -> Float[Tensor, " example"]:
    values = torch.as_tensor(weights).detach().double().cpu()
    if values.shape != (n,) or not values.isfinite().all() or (values < 0).any():
        raise ValueError(f"weights must be one number of at least 0 for each of {n} texts")
    if not values.sum() > 0:
        raise ValueError("weights sum to zero, so no example counts; give some example a weight above 0")
    return values
