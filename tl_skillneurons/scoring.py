"""Score every MLP neuron in two streaming passes: one over role ``baseline``, one over ``select``.

The equations are in :mod:`~tl_skillneurons.scores`. The model stops after the last layer's neurons, so the
vocabulary is never projected; an activation is read at the scored positions and gone with its batch; what is
kept has [layer, position, neuron] entries however many examples there are. Sums are float64, counts are
integers.

Read at the prompt positions, or, as the paper's comparison, at the text's own tokens (special tokens left
out): the last one, their mean or their maximum, with a prompt or without any.
"""

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformer_lens.model_bridge.exceptions import StopAtLayerException

from tl_skillneurons._checks import require_int, require_option
from tl_skillneurons._files import fingerprint
from tl_skillneurons._progress import Advance, progress_bar
from tl_skillneurons.positions import PromptedTokens
from tl_skillneurons.prompted import Hooks, PromptedModel, length_batches
from tl_skillneurons.scores import NeuronScores
from tl_skillneurons.sites import neuron_hooks, neuron_shape
from tl_skillneurons.soft_prompt import SoftPrompt, describe_model, model_differences
from tl_skillneurons.task import Task

READINGS = ("prompt", "last", "mean", "max")

Visit = Callable[[int, Float[Tensor, "batch position neuron"], Int[Tensor, " batch"]], None]
"""Takes a layer, its neurons' activations at the scored positions, and which example each row is."""


def score_neurons(
    model: Any,
    prompts: SoftPrompt | Sequence[SoftPrompt] | None,
    task: Task,
    *,
    batch_size: int = 32,
    positions: str = "prompt",
    aggregate: str = "mean",
    max_length: int | None = None,
    fwd_hooks: Hooks = (),
    progress: bool = True,
) -> NeuronScores:
    """Baselines from role ``baseline``, accuracies from role ``select``, for every neuron, position and
    prompt.

    Args:
        prompts: One, several (equally long), or ``None`` for the bare text, which has no prompt positions to
            score.
        positions: ``"prompt"``, or ``"last"``, ``"mean"``, ``"max"`` over the text's own tokens.
        aggregate: How prompts are combined: ``"mean"``, or ``"min"``.
        fwd_hooks: Run in every batch before the neurons are read, for example an ablation upstream of them.

    Raises:
        ValueError: For a task of more than two classes, a prefix prompt of a causal model scored at its own
            positions (they never see the text), activations that are not finite (which layer, which example),
            or a model that does not fit the prompts.
    """
    require_option(positions, "positions", READINGS)
    require_int(batch_size, "batch_size")
    require_two_classes(task)
    chosen = _as_list(prompts)
    lengths = sorted({prompt.n_virtual_tokens for prompt in chosen if prompt is not None})
    if positions == "prompt" and len(lengths) > 1:
        raise ValueError(
            f"prompts of one set need equally many virtual tokens, got {lengths}; score them apart"
        )
    scores = []
    for number, prompt in enumerate(chosen):
        phase = "scoring" + (f", prompt {number + 1} of {len(chosen)}" if len(chosen) > 1 else "")
        prompted = PromptedModel(model, prompt, max_length=max_length)
        _require_sees_text(prompted, positions)
        scores.append(
            _score_one(prompted, task, positions, aggregate, batch_size, fwd_hooks, phase, progress)
        )
    return NeuronScores.of_prompts(scores)


def rule_accuracy(
    model: Any,
    prompts: SoftPrompt | Sequence[SoftPrompt] | None,
    task: Task,
    scores: NeuronScores,
    *,
    role: str = "report",
    batch_size: int = 32,
    max_length: int | None = None,
    progress: bool = True,
) -> Float[Tensor, "prompt layer position neuron"]:
    """Accuracy on ``role`` of every neuron's rule, with the thresholds that ``scores`` took from role
    ``baseline``.

    Give it to :meth:`NeuronScores.rule_accuracy` for the accuracy of selected neurons on examples that did
    not select them.

    Raises:
        ValueError: When the scores are of another model, or of other prompts.
    """
    chosen = _as_list(prompts)
    _require_measured_here(scores, model, chosen)
    scored = []
    for number, (prompt, baseline) in enumerate(zip(chosen, scores.baseline, strict=True)):
        prompted = PromptedModel(model, prompt, max_length=max_length)
        labels = torch.tensor(task.split(role)["label"])
        phase = f"rules on {role}, prompt {number + 1} of {len(chosen)}"
        with progress_bar(phase, len(labels), show=progress) as advance:
            correct = _count_correct(
                prompted, task, role, baseline, scores.positions, batch_size, (), advance
            )
        scored.append(correct.double() / len(labels))
    return torch.stack(scored)


def neuron_activations(
    model: Any,
    prompt: SoftPrompt | None,
    texts: Sequence[str],
    *,
    positions: str = "prompt",
    batch_size: int = 32,
) -> Float[Tensor, "example layer neuron"]:
    """Each text's neuron activations, averaged over the scored positions: reference values for resample
    ablation.

    Unlike scoring it keeps every activation, ``len(texts) * n_layers * d_mlp`` numbers in the model's dtype.
    """
    require_option(positions, "positions", READINGS)
    prompted = PromptedModel(model, prompt)
    _require_sees_text(prompted, positions)
    n_layers, d_mlp = neuron_shape(model)
    kept = torch.empty(len(texts), n_layers, d_mlp, dtype=model.W_E.dtype)

    def keep(layer: int, acts: Tensor, example: Tensor) -> None:
        kept[example.cpu(), layer] = acts.mean(1).cpu()

    stream_activations(prompted, texts, keep, positions=positions, batch_size=batch_size)
    return kept


def stream_activations(
    prompted: PromptedModel,
    texts: Sequence[str],
    visit: Visit,
    *,
    positions: str = "prompt",
    batch_size: int = 32,
    fwd_hooks: Hooks = (),
    advance: Advance | None = None,
) -> None:
    """Run ``texts`` in batches of similar length and hand each layer's activations at the scored positions to
    ``visit``.

    Raises:
        ValueError: When an activation is not finite; names the layer and the example.
        RuntimeError: When a layer did not show its neurons once per batch, which would look like "no effect".
    """
    model = prompted.model
    names = neuron_hooks(model)
    ids = prompted.encode(texts)
    with prompted.attached() as virtual, torch.no_grad():
        for batch in length_batches([len(i) for i in ids], batch_size):
            tokens = prompted.assemble([ids[i] for i in batch], batch)
            read, seen = reading(tokens, positions), []

            def read_layer(
                act: Tensor, hook: Any, layer: int, read: Any, seen: list[int], example: Tensor
            ) -> None:
                acts = read(act)
                if not acts.isfinite().all():
                    row = int((~acts.isfinite()).flatten(1).any(1).nonzero()[0])
                    number = int(example[row])
                    raise ValueError(
                        f"activations are not finite in layer {layer} on example {number} ({texts[number]!r}); "
                        "load the model in float32, or leave that example out"
                    )
                visit(layer, acts, example)
                seen.append(layer)
                if layer == len(names) - 1:
                    raise StopAtLayerException(acts)

            hooks = [
                (name, _at_layer(read_layer, k, read, seen, tokens.example)) for k, name in enumerate(names)
            ]
            prompted.forward(tokens, virtual, [*fwd_hooks, *hooks])
            if seen != list(range(len(names))):
                raise RuntimeError(
                    f"expected each of {len(names)} layers to show its neurons once, saw layers {seen}"
                )
            if advance is not None:
                advance(len(batch))


def _at_layer(read_layer: Callable[..., None], layer: int, *bound: Any) -> Callable[..., None]:
    def hook_function(act: Tensor, hook: Any) -> None:
        read_layer(act, hook, layer, *bound)

    return hook_function


def reading(
    tokens: PromptedTokens, positions: str
) -> Callable[[Tensor], Float[Tensor, "batch position neuron"]]:
    """A function that takes ``[batch, pos, neuron]`` to the scored positions of this batch."""
    if positions == "prompt":
        columns = tokens.prompt_columns()
        if (columns == columns[0]).all():  # always, unless padding was asked for on the other side
            first, last = int(columns[0, 0]), int(columns[0, -1])
            return lambda act: act[:, first : last + 1]
        rows = torch.arange(len(tokens), device=columns.device)[:, None]
        return lambda act: act[rows, columns]
    own = tokens.is_text & ~tokens.is_special
    if positions == "last":
        last_column = own.shape[1] - 1 - own.int().flip(1).argmax(1)
        rows = torch.arange(len(tokens), device=own.device)
        return lambda act: act[rows, last_column][:, None]
    if positions == "max":
        return lambda act: act.masked_fill(~own.to(act.device)[..., None], -torch.inf).amax(1, keepdim=True)
    return lambda act: _masked_mean(act, own)


def _masked_mean(act: Tensor, own: Bool[Tensor, "batch pos"]) -> Tensor:
    own = own.to(act.device)
    wide = act.masked_fill(~own[..., None], 0).sum(1, keepdim=True, dtype=torch.float64)
    return (wide / own.sum(1)[:, None, None]).to(act.dtype)


def threshold(baseline: Float[Tensor, "*axes"], dtype: torch.dtype) -> Float[Tensor, "*axes"]:
    """The largest value of ``dtype`` that is at most ``baseline``: an activation of that dtype is above it
    exactly when it is above ``baseline`` itself, so the comparison needs no wider copy of the activations."""
    rounded = baseline.to(dtype)
    below = torch.nextafter(rounded, torch.full_like(rounded, -torch.inf))
    return torch.where(rounded.to(baseline.dtype) > baseline, below, rounded)


def _as_list(prompts: Any) -> list[SoftPrompt | None]:
    chosen = [prompts] if prompts is None or isinstance(prompts, SoftPrompt) else list(prompts)
    if not chosen:
        raise ValueError("prompts must hold at least one soft prompt; give None to score the bare text")
    return chosen


def require_two_classes(task: Task) -> None:
    """Refuse a task that predictivity is not defined for.

    Raises:
        ValueError: When the task has more than two classes.
    """
    if task.n_classes != 2:
        raise ValueError(
            f"predictivity is defined for two classes, {task.name} has {task.n_classes}; "
            "score each of task.binary_subtasks() with prompts of its own"
        )


def _require_measured_here(scores: NeuronScores, model: Any, prompts: Sequence[SoftPrompt | None]) -> None:
    here, there = neuron_shape(model), (scores.n_layers, scores.d_mlp)
    if here != there:
        name = scores.provenance.get("model", {}).get("name", "another model")
        raise ValueError(
            f"the scores are of {name} with [layer, neuron] = {list(there)}, {model.cfg.model_name} has "
            f"{list(here)}; score this model"
        )
    differs = model_differences(scores.provenance.get("model", {}), model)
    if differs:
        warnings.warn(f"these scores are of another model ({differs})", stacklevel=3)
    measured = scores.provenance.get("prompts", [None] * len(scores.baseline))
    given = [None if prompt is None else describe_prompt(prompt) for prompt in prompts]
    if len(given) != len(scores.baseline) or any(m and g != m for m, g in zip(measured, given, strict=True)):
        raise ValueError(
            f"the scores are of {len(scores.baseline)} prompts that are not the {len(given)} given; "
            "give the prompts that were scored, in the same order"
        )


def _require_sees_text(prompted: PromptedModel, positions: str) -> None:
    if positions != "prompt":
        return
    if prompted.prompt is None:
        raise ValueError(
            "without a prompt there are no prompt positions; use positions='last', 'mean' or 'max'"
        )
    if prompted.causal and prompted.prompt.placement == "prefix":
        raise ValueError(
            "this prompt is a prefix and the model is causal: its positions come before the text and never see it, "
            "so their activations are the same for every input and predict nothing; use positions='last', 'mean' or "
            "'max', or tune a suffix prompt with fit_soft_prompts"
        )


def _score_one(
    prompted: PromptedModel,
    task: Task,
    positions: str,
    aggregate: str,
    batch_size: int,
    fwd_hooks: Hooks,
    phase: str,
    progress: bool,
) -> NeuronScores:
    n_baseline, n_select = task.n_examples["baseline"], task.n_examples["select"]
    with progress_bar(phase, n_baseline + n_select, show=progress) as advance:
        baseline, std, mean_abs = _moments(prompted, task, positions, batch_size, fwd_hooks, advance)
        correct = _count_correct(
            prompted, task, "select", baseline, positions, batch_size, fwd_hooks, advance
        )
    prompt = prompted.prompt
    described = None if prompt is None else describe_prompt(prompt)
    return NeuronScores(
        baseline=baseline[None],
        std=std[None].float(),
        mean_abs=mean_abs[None].float(),
        correct=correct[None],
        n_baseline=n_baseline,
        n_select=n_select,
        class_counts=tuple(task.class_counts("select")),
        positions=positions,
        aggregate=aggregate,
        provenance={
            "model": describe_model(prompted.model),
            "task": {"name": task.name, "fingerprint": task.fingerprint},
            "prompts": [described],
            "max_length": prompted.max_length,
        },
    )


def describe_prompt(prompt: SoftPrompt) -> dict[str, Any]:
    """What scores record of the prompt they were measured with."""
    return {
        "seed": prompt.seed,
        "n_virtual_tokens": prompt.n_virtual_tokens,
        "placement": prompt.placement,
        "prepend_bos": prompt.prepend_bos,
        "sha256": fingerprint(*prompt.parameters()),
    }


def _moments(
    prompted: PromptedModel, task: Task, positions: str, batch_size: int, fwd_hooks: Hooks, advance: Advance
) -> tuple[Tensor, Tensor, Tensor]:
    """Mean, standard deviation and mean absolute activation over role ``baseline``, each [layer, position, neuron]."""
    n_layers, _ = neuron_shape(prompted.model)
    sums: list[Tensor | None] = [None] * n_layers
    lowest: list[Tensor | None] = [None] * n_layers

    def add(layer: int, acts: Tensor, example: Tensor) -> None:
        wide = acts.double()
        batch = torch.stack([wide.sum(0), wide.square().sum(0), wide.abs().sum(0)])
        sums[layer] = batch if sums[layer] is None else sums[layer].add_(batch)
        low = wide.amin(0)
        lowest[layer] = low if lowest[layer] is None else torch.minimum(lowest[layer], low)

    texts = list(task.split("baseline")["text"])
    stream_activations(
        prompted, texts, add, positions=positions, batch_size=batch_size, fwd_hooks=fwd_hooks, advance=advance
    )
    mean, square, absolute = (torch.stack(sums) / len(texts)).cpu().unbind(1)
    mean = mean.maximum(torch.stack(lowest).cpu())  # rounding must not put the mean of a constant below it
    return mean, (square - mean.square()).clamp(min=0).sqrt(), absolute


def _count_correct(
    prompted: PromptedModel,
    task: Task,
    role: str,
    baseline: Float[Tensor, "layer position neuron"],
    positions: str,
    batch_size: int,
    fwd_hooks: Hooks,
    advance: Advance,
) -> Int[Tensor, "layer position neuron"]:
    """On how many examples of ``role`` "above the baseline means label 1" is right."""
    split = task.split(role)
    device, dtype = prompted.model.cfg.device, prompted.model.W_E.dtype
    labels = torch.tensor(split["label"], dtype=torch.bool, device=device)
    limits = threshold(baseline, dtype).to(device)
    correct = torch.zeros(baseline.shape, dtype=torch.int64, device=device)

    def count(layer: int, acts: Tensor, example: Tensor) -> None:
        fires = acts > limits[layer].to(acts)
        correct[layer] += (fires == labels[example, None, None].to(fires.device)).sum(0).to(correct.device)

    stream_activations(
        prompted,
        list(split["text"]),
        count,
        positions=positions,
        batch_size=batch_size,
        fwd_hooks=fwd_hooks,
        advance=advance,
    )
    return correct.cpu()
