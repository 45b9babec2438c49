"""The passes over a role that scores are made of: thresholds, right answers, and single answers.

Under ``torchrun`` or ``accelerate launch`` each process runs its share of the batches, and each gets the whole.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tl_skillneurons._processes import gather, rank_and_count
from tl_skillneurons._progress import Advance, progress_bar
from tl_skillneurons._widths import widest
from tl_skillneurons.models.hooks import Hooks
from tl_skillneurons.models.sites import neuron_shape
from tl_skillneurons.prompts.prompted_model import PromptedModel
from tl_skillneurons.prompts.streaming import Add, Reduce, stand_alike, stream_activations
from tl_skillneurons.scores.neuron_scores import NeuronScores
from tl_skillneurons.scores.outcomes import RuleOutcomes, count_right, pack
from tl_skillneurons.scores.tallies import Summary, add_moments, count_above, moments, summarize, threshold
from tl_skillneurons.tasks.task import Task

Padded = dict[str, int]
"""The number of a pass's batches, of their tokens, and how many of these are padding."""


def summaries(
    prompted: Sequence[PromptedModel],
    task: Task,
    positions: str,
    *,
    fwd_hooks: Hooks = (),
    advance: Advance | None = None,
) -> tuple[list[Summary], Padded]:
    """What thresholds come from, over role ``baseline``: one summary per prompt, and how the batches were padded."""
    n_layers, width = neuron_shape(prompted[0].model)
    found: list[list[Tensor | None]] = [[None] * n_layers for _ in prompted]

    def reduce(prompt: int, layer: int, acts: Tensor, example: Tensor) -> Tensor:
        return moments(acts)

    def add(prompt: int, layer: int, kept: Tensor, example: Tensor) -> None:
        found[prompt][layer] = add_moments(found[prompt][layer], kept)

    texts = list(task.split("baseline")["text"])
    padded = _stream(prompted, texts, reduce, add, positions, fwd_hooks, advance)
    everyone = gather([_on_cpu(layers) for layers in found])
    of_prompts = []
    for prompt in range(len(prompted)):
        layers: list[Tensor | None] = [None] * n_layers
        for process in everyone:
            layers = [
                a if b is None else add_moments(a, b) for a, b in zip(layers, process[prompt], strict=True)
            ]  # of a layer that is left out nobody has any
        of_prompts.append(summarize(layers, len(texts), widest(width)))
    return of_prompts, padded


def _stream(
    prompted: Sequence[PromptedModel],
    texts: list[str],
    reduce: Reduce,
    add: Add,
    positions: str,
    fwd_hooks: Hooks,
    advance: Advance | None,
) -> Padded:
    """This process's share of the batches; ``advance`` hears of them as often as there are processes."""
    rank, count = rank_and_count()

    def step(n_done: int) -> None:
        if advance is not None:
            advance(n_done * count)

    return stream_activations(
        prompted,
        texts,
        reduce,
        add,
        positions=positions,
        fwd_hooks=fwd_hooks,
        rank_and_count=(rank, count),
        advance=step,
    )


def _on_cpu(layers: list[Tensor | None]) -> list[Tensor | None]:
    """The same on the CPU, in one transfer where they are on one device; a process without a batch has none."""
    known = [m for m in layers if m is not None]
    if len(known) < len(layers):
        return layers
    alike = len({(m.device, m.shape) for m in known}) == 1
    return list(torch.stack(known).cpu()) if alike else [m.cpu() for m in known]


def count_correct(
    prompted: Sequence[PromptedModel],
    task: Task,
    role: str,
    baselines: Sequence[Float[Tensor, "layer position neuron"]],
    classes: Sequence[int],
    positions: str,
    *,
    fwd_hooks: Hooks = (),
    advance: Advance | None = None,
) -> tuple[list[Int[Tensor, "class layer position neuron"]], Padded]:
    """On how many examples of ``role`` "above the baseline means this class, else another" is right.

    One tensor per prompt, and how the batches were padded.
    """
    split = task.split(role)
    model = prompted[0].model
    label = torch.tensor(split["label"], device=model.cfg.device)
    labels = torch.stack([label == c for c in classes]).long()
    limits = [threshold(baseline, model.W_E.dtype).to(model.cfg.device) for baseline in baselines]
    correct = [
        torch.zeros(len(classes), *b.shape, dtype=torch.int64, device=model.cfg.device) for b in baselines
    ]

    def reduce(prompt: int, layer: int, acts: Tensor, example: Tensor) -> Tensor:
        limit = limits[prompt][layer][:, : acts.shape[-1]].to(acts)
        return count_above(acts, limit, labels[:, example].to(acts.device))

    def add(prompt: int, layer: int, kept: Tensor, example: Tensor) -> None:
        correct[prompt][:, layer, :, : kept.shape[-1]] += kept.to(correct[prompt].device)

    padded = _stream(prompted, list(split["text"]), reduce, add, positions, fwd_hooks, advance)
    everyone = gather([c.cpu() for c in correct])
    return [torch.stack(of_prompt).sum(0) for of_prompt in zip(*everyone, strict=True)], padded


def every_accuracy(
    prompted: Sequence[PromptedModel], task: Task, scores: NeuronScores, role: str, progress: bool
) -> Float[Tensor, "prompt layer position neuron"]:
    """The accuracy of "above means label 1" everywhere, from one pass over ``role`` for prompts that stand alike."""
    accuracy = torch.empty(scores.baseline.shape, dtype=torch.float64)
    n_examples = task.n_examples[role]
    rank, _ = rank_and_count()
    with (
        prompted[0].run.one_use(),
        progress_bar(f"rules on {role}", n_examples * len(prompted), show=progress and rank == 0) as advance,
    ):
        for group in stand_alike(prompted):

            def step(n_done: int, n_prompts: int = len(group)) -> None:
                advance(n_done * n_prompts)

            alike = [prompted[number] for number in group]
            baselines = [scores.baseline[number] for number in group]
            classes = [scores.class_id]
            correct, _ = count_correct(alike, task, role, baselines, classes, scores.positions, advance=step)
            for number, right in zip(group, correct, strict=True):
                accuracy[number] = right[0].double() / n_examples
    accuracy.masked_fill_(scores.baseline.isnan(), torch.nan)  # where there is no neuron
    return accuracy


def rule_outcomes(
    prompted: Sequence[PromptedModel],
    task: Task,
    role: str,
    baselines: Sequence[Float[Tensor, "layer position neuron"]],
    positions: str,
    *,
    fwd_hooks: Hooks = (),
    advance: Advance | None = None,
) -> tuple[RuleOutcomes, Padded]:
    """Where each neuron is above its baseline on each example of ``role``, and how the batches were padded."""
    split = task.split(role)
    model = prompted[0].model
    n_layers, n_positions, d_mlp = baselines[0].shape
    _, width = neuron_shape(model)
    limits = [threshold(baseline, model.W_E.dtype).to(model.cfg.device) for baseline in baselines]
    shape = (len(baselines), len(split), n_layers, n_positions, (d_mlp + 7) // 8)
    above = torch.zeros(shape, dtype=torch.uint8)

    def reduce(prompt: int, layer: int, acts: Tensor, example: Tensor) -> Tensor:
        return pack(acts > limits[prompt][layer][:, : acts.shape[-1]].to(acts))

    def add(prompt: int, layer: int, kept: Tensor, example: Tensor) -> None:
        above[prompt, example, layer, :, : kept.shape[-1]] = kept

    padded = _stream(prompted, list(split["text"]), reduce, add, positions, fwd_hooks, advance)
    first, *others = gather(above)
    for other in others:  # an example ran in one process, elsewhere its bits are 0
        first = first | other
    return RuleOutcomes(first, torch.tensor(split["label"]), width, role, task.units(role)), padded


def correct_of(
    outcomes: RuleOutcomes, classes: Sequence[int]
) -> Int[Tensor, "prompt class layer position neuron"]:
    """What :func:`count_correct` counts, from single answers."""
    n_prompts, n, n_layers, n_positions, _ = outcomes.above.shape
    rows = torch.stack([outcomes.labels == c for c in classes]).long()
    shape = (n_prompts, len(classes), n_layers, n_positions, widest(outcomes.d_mlp))
    correct = torch.zeros(shape, dtype=torch.int64)
    for layer, neurons, counted in count_right(outcomes, torch.ones_like(rows), rows):
        for prompt, twice in enumerate(counted):
            correct[prompt, :, layer, :, neurons] = (twice.long() + n) // 2
    return correct


def chosen_activations(
    prompted: PromptedModel,
    texts: list[str],
    layer: Int[Tensor, " chosen"],
    position: Int[Tensor, " chosen"],
    index: Int[Tensor, " chosen"],
    *,
    positions: str = "prompt",
) -> Float[Tensor, "example chosen"]:
    """The activations of chosen neurons, each at its own position."""
    kept = torch.empty(len(texts), len(layer), dtype=prompted.model.W_E.dtype)
    columns = {k: (layer == k).nonzero().flatten() for k in layer.unique().tolist()}

    def reduce(number: int, at: int, acts: Tensor, example: Tensor) -> Tensor:
        own = columns.get(at, torch.empty(0, dtype=torch.int64))
        return acts[:, position[own].to(acts.device), index[own].to(acts.device)].cpu()

    def add(number: int, at: int, acts: Tensor, example: Tensor) -> None:
        if at in columns:
            kept[example[:, None], columns[at]] = acts

    stream_activations([prompted], texts, reduce, add, positions=positions)
    return kept
