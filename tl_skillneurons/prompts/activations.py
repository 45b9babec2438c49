"""Activations of a few layers at a time, kept for all examples: for scores that need them together, such as ranks.

Where sums and counts are enough nothing is kept (:mod:`~tl_skillneurons.prompts.streaming`). Ranks, and any score under
permuted targets, need every example's value. So as many layers as fit into ``memory`` bytes are kept per pass,
in the model's dtype, in the order of the examples whatever the batches; more layers take more passes.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from tl_skillneurons._checks import require_int, require_option
from tl_skillneurons._widths import in_layer, widest
from tl_skillneurons.models.batches import run_batches
from tl_skillneurons.models.hooks import Hook
from tl_skillneurons.models.sites import neuron_hooks, neuron_shape
from tl_skillneurons.models.verification import require
from tl_skillneurons.neurons.neuron_set import Neurons, as_neurons
from tl_skillneurons.prompts._forward import finite_logits
from tl_skillneurons.prompts.prompted_model import PromptedModel
from tl_skillneurons.prompts.run import RunOptions, require_sees_text
from tl_skillneurons.prompts.soft_prompt import SoftPrompt
from tl_skillneurons.prompts.streaming import READINGS, reading, stream_activations
from tl_skillneurons.tasks.chat import Chat

MEMORY = 2**30
"""Bytes that kept activations take at most, unless asked otherwise."""


def layers_at_a_time(
    prompted: Sequence[PromptedModel],
    texts: Sequence[str],
    *,
    n_positions: int,
    memory: int = MEMORY,
    **options: Any,
) -> Iterator[tuple[int, Float[Tensor, "prompt example position neuron"]]]:
    """One layer after another, with every prompt's activations on all texts; layers without neurons are left out.

    Args:
        prompted: Prompts that stand alike (:func:`~tl_skillneurons.prompts.streaming.stand_alike`).
        n_positions: Positions that are read.
        memory: Bytes that kept activations may take; at least one layer is kept.
        options: Of :func:`~tl_skillneurons.prompts.streaming.stream_activations`.
    """
    model = prompted[0].model
    n_layers, d_mlp = neuron_shape(model)
    dtype = model.W_E.dtype
    shape = (len(prompted), len(texts), n_positions)
    of_layer = torch.Size(shape).numel() * widest(d_mlp) * dtype.itemsize
    there = [layer for layer in range(n_layers) if in_layer(d_mlp, layer)]
    size = max(1, min(len(there), require_int(memory, "memory") // of_layer))
    for first in range(0, len(there), size):
        layers = there[first : first + size]
        kept = {layer: torch.empty(*shape, in_layer(d_mlp, layer), dtype=dtype) for layer in layers}

        def reduce(
            prompt: int, layer: int, acts: Tensor, example: Tensor, layers: list[int] = layers
        ) -> Tensor:
            return acts.cpu() if layer in layers else acts.new_empty(0)

        def add(
            prompt: int, layer: int, acts: Tensor, example: Tensor, kept: dict[int, Tensor] = kept
        ) -> None:
            if layer in kept:
                kept[layer][prompt, example] = acts

        stream_activations(prompted, texts, reduce, add, **options)
        for layer in layers:
            yield layer, kept.pop(layer)


def neuron_activations(
    model: TransformerBridge,
    prompt: SoftPrompt | None,
    texts: Sequence[str],
    *,
    positions: str = "prompt",
    max_length: int | None = None,
    run: RunOptions = RunOptions(),
    chat: Chat | None = None,
) -> Float[Tensor, "example layer neuron"]:
    """Each text's neuron activations, averaged over the scored positions: reference values for resample
    ablation.

    Unlike scoring it keeps every activation, ``len(texts) * n_layers * d_mlp`` numbers in the model's dtype; NaN where
    a layer has no such neuron.

    Args:
        positions: ``"prompt"``; ``"last"``, ``"mean"`` or ``"max"`` over the text's own tokens; ``"template"`` for
            the mean over what a chat template puts around it, ``"readout"`` for where the answer is read;
            ``"answer_first"``, ``"answer_last"`` or ``"answer"`` (the mean) of an answer that stands behind the text.
        max_length: Longest sequence in tokens; by default what the prompt was tuned with.
        chat: What stands around the texts in a conversation; by default what the prompt was tuned in.

    Raises:
        ValueError: For positions that never see the text, or an activation that is not finite.

    Example:
        >>> values = skn.prompts.neuron_activations(model, prompt, texts)
        >>> hooks = skn.ablate(skill, how="resample", values=values)
    """
    require_option(positions, "positions", READINGS)
    prompted = PromptedModel(model, prompt, max_length=max_length, run=run, chat=chat)
    require_sees_text(prompted, positions)
    n_layers, d_mlp = neuron_shape(model)
    kept = torch.full((len(texts), n_layers, widest(d_mlp)), torch.nan, dtype=model.W_E.dtype)

    def reduce(number: int, layer: int, acts: Tensor, example: Tensor) -> Tensor:
        return acts.mean(1).cpu()

    def add(number: int, layer: int, means: Tensor, example: Tensor) -> None:
        kept[example, layer, : means.shape[-1]] = means

    stream_activations([prompted], texts, reduce, add, positions=positions)
    return kept


def set_activations(
    model: TransformerBridge,
    prompt: SoftPrompt | None,
    texts: Sequence[str],
    neurons: Neurons,
    *,
    positions: str = "prompt",
    max_length: int | None = None,
    run: RunOptions = RunOptions(),
    chat: Chat | None = None,
) -> Float[Tensor, "example feature"]:
    """Activations of the set alone, averaged over the scored positions; feature ``i`` is neuron ``i`` of the set.

    For ``fit_sparse_probe`` and any other probe. All that is kept is ``len(texts) * len(neurons)`` numbers, in
    the model's dtype.

    Args:
        positions: ``"prompt"``; ``"last"``, ``"mean"`` or ``"max"`` over the text's own tokens; ``"template"`` for
            the mean over what a chat template puts around it, ``"readout"`` for where the answer is read;
            ``"answer_first"``, ``"answer_last"`` or ``"answer"`` (the mean) of an answer that stands behind the text.
        max_length: Longest sequence in tokens; by default what the prompt was tuned with.
        chat: What stands around the texts in a conversation; by default what the prompt was tuned in.

    Raises:
        ValueError: For an empty set, neurons outside the model, or positions that never see the text.

    Example:
        >>> features = skn.prompts.set_activations(model, prompt, texts, skill)
        >>> fit_sparse_probe(features, labels, k=1)
    """
    neurons = as_neurons(neurons)
    require_option(positions, "positions", READINGS)
    prompted = PromptedModel(model, prompt, max_length=max_length, run=run, chat=chat)
    require_sees_text(prompted, positions)
    neurons.require_fits(*neuron_shape(model))
    if not len(neurons):
        raise ValueError("there is nothing to read of an empty set; give at least one neuron")
    feature = {layer: (neurons.layer == layer).nonzero()[:, 0] for layer in neurons.by_layer()}
    kept = torch.empty(len(texts), len(neurons), dtype=model.W_E.dtype)

    def reduce(number: int, layer: int, acts: Tensor, example: Tensor) -> Tensor:
        index = neurons.index[feature[layer]] if layer in feature else torch.empty(0, dtype=torch.long)
        return acts[..., index.to(acts.device)].mean(1).cpu()

    def add(number: int, layer: int, means: Tensor, example: Tensor) -> None:
        if layer in feature:
            kept[example[:, None], feature[layer]] = means

    stream_activations([prompted], texts, reduce, add, positions=positions)
    return kept


def answers_and_neurons(
    prompted: PromptedModel, texts: Sequence[str]
) -> tuple[Float[Tensor, "example n_classes"], Float[Tensor, "example layer neuron"]]:
    """What the model answers to each text, and every neuron's activation where that is read, from one run of the texts.

    For neurons that tell whether the model will be right: the answers say where it is, and
    :func:`~tl_skillneurons.scores.score_activations` scores the activations by that. It keeps every activation, as
    :func:`neuron_activations` does.

    Returns:
        The class logits, columns in the order of the class ids, as :meth:`PromptedModel.class_logits` gives them; and
        the activations at the read-out, in the model's dtype, NaN where a layer has no such neuron.

    Raises:
        ValueError: Without label words or a read-out, for label words of several tokens, whose scores take runs of
            their own, or when logits are not finite.

    Example:
        >>> prompted = skn.PromptedModel.for_task(model, None, task)
        >>> logits, activations = skn.prompts.answers_and_neurons(prompted, texts)
        >>> right = logits.argmax(1) == labels
    """
    require(prompted.model, "neurons")
    if prompted.words is not None and prompted.words.need_scores:
        raise ValueError(
            "label words of several tokens are read at several positions, each in a run of its own; give words of one "
            "token, or take class_logits and neuron_activations one after the other"
        )
    ids = prompted.encode(texts)
    if not ids:
        raise ValueError("texts must not be empty")
    names = neuron_hooks(prompted.model)
    n_layers, d_mlp = neuron_shape(prompted.model)
    kept = torch.full((len(ids), n_layers, widest(d_mlp)), torch.nan, dtype=prompted.model.W_E.dtype)
    answers: dict[int, Tensor] = {}
    with prompted.attached() as virtual, torch.no_grad():

        def run(batch: list[int]) -> None:
            tokens = prompted.assemble([ids[i] for i in batch], batch)
            read = reading(tokens, "readout")
            found: dict[int, Tensor] = {}

            def at(layer: int) -> Any:
                def keep(act: Tensor, hook: Any) -> None:
                    found[layer] = read(act)[:, 0].cpu()

                return keep

            hooks: list[Hook] = [(name, at(layer)) for layer, name in names.items()]
            answers.update(zip(batch, prompted.read_out(tokens, virtual, hooks), strict=True))
            if missing := [layer for layer in names if layer not in found]:
                raise RuntimeError(f"the neurons of layer {missing[0]} were not seen before the read-out")
            for layer, acts in found.items():
                kept[batch, layer, : acts.shape[-1]] = acts

        run_batches(prompted.batches(ids), run)
    return finite_logits(torch.stack([answers[i] for i in range(len(ids))]), texts).cpu(), kept
