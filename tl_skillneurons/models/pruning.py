"""A smaller model that keeps chosen neurons: the paper's pruned model (Wang et al., 2022, section 6.1), exactly.

The MLPs are really smaller. A dropped neuron that is held at a constant adds the same to the residual stream
everywhere, so its part goes into the output projection's bias (made where there is none), once; nothing of the kept
neurons goes there. The result equals the full model with the dropped neurons held by hooks, to rounding.

Each layer has a width of its own, 0 included. So ``cfg.d_mlp`` is no longer every layer's width, and what stacks layers
(``model.W_in``, scoring) takes whole models only; prompts are tuned and run, and the input cache works, as before.

What it does not show: that the rest was useless. Compare with keeping random neurons.
"""

import warnings
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformer_lens.model_bridge import TransformerBridge
from transformers.pytorch_utils import Conv1D

from tl_skillneurons.models.copies import copy_model
from tl_skillneurons.models.sites import neuron_shape
from tl_skillneurons.neurons import NeuronSet

Linear = nn.Linear | Conv1D
"""A projection, as Hugging Face writes it: GPT-2 has its weights the other way round."""


def prune(
    model: TransformerBridge,
    keep: NeuronSet,
    values: Float[Tensor, "layer neuron"],
    *,
    layers: Sequence[int] | None = None,
) -> Any:
    """A new ``TransformerBridge`` with the neurons of ``keep`` alone; ``model`` stays as it is.

    Args:
        keep: The neurons that stay, in ascending order of their index within each layer.
        values: What the dropped neurons are held at, everywhere: ``scores.mean_baseline()`` at the prompt, as in the
            paper, or their mean at the text, ``score_neurons(model, None, task, positions="mean").mean_baseline()``,
            which is nearer to what they do at most positions.
        layers: The layers to prune; the others keep all their neurons. ``None`` prunes every layer.

    Raises:
        ValueError: For neurons or values of another model, layers that the model lacks, values that are not finite,
            or when nothing at all would be kept.

    Example:
        >>> small = skn.prune(model, scores.top(0.1), scores.mean_baseline())
        >>> skn.PromptedModel(small, prompts[0], task.label_words).accuracy(task)
    """
    shape = neuron_shape(model)
    keep.require_fits(*shape)
    if tuple(values.shape) != shape:
        raise ValueError(
            f"values must be [layer, neuron] = {list(shape)} of this model, got {list(values.shape)}"
        )
    if not values.isfinite().all():
        raise ValueError("values must be finite, got NaN or infinity")
    pruned = list(range(shape[0])) if layers is None else sorted(set(layers))
    outside = [layer for layer in pruned if not 0 <= layer < shape[0]]
    if outside:
        raise ValueError(f"layers must be in [0, {shape[0]}), got {outside[0]}")
    kept = {
        layer: keep.by_layer().get(layer, torch.empty(0, dtype=torch.int64)).sort().values for layer in pruned
    }
    if len(pruned) == shape[0] and not len(keep):
        raise ValueError("nothing would be kept in any layer; give keep at least one neuron, or spare layers")
    smaller = copy_model(model)
    smaller.cfg.d_mlp = shape[1]  # the width before; not every architecture adapter gets it right
    for layer in pruned:
        _cut(smaller.blocks[layer].mlp, kept[layer], values[layer])
    return smaller


def widths(model: TransformerBridge) -> list[int]:
    """How many neurons each layer's MLP has."""
    return [_n_inputs(block.mlp.out.original_component) for block in model.blocks]


def _cut(mlp: Any, keep: Int[Tensor, " kept"], value: Float[Tensor, " neuron"]) -> None:
    """Make one MLP smaller, in place."""
    for name in ("in", "gate"):
        part = getattr(mlp, name, None)
        if part is not None and getattr(part, "original_component", None) is not None:
            part.set_original_component(_outputs(part.original_component, keep))
    out = mlp.out.original_component
    mlp.out.set_original_component(_inputs(out, keep, value))


def _outputs(linear: Linear, keep: Int[Tensor, " kept"]) -> Linear:
    """The projection into the neurons, with the kept ones alone."""
    weight = _weight(linear)[keep.to(linear.weight.device)]
    bias = None if linear.bias is None else linear.bias.detach()[keep.to(linear.bias.device)]
    return _like(linear, weight, bias)


def _inputs(linear: Linear, keep: Int[Tensor, " kept"], value: Float[Tensor, " neuron"]) -> Linear:
    """The projection out of the neurons; what the dropped ones always add is in its bias."""
    whole = _weight(linear)
    held = value.to(device=whole.device, dtype=torch.float64).clone()
    held[keep.to(whole.device)] = 0  # the kept ones speak for themselves
    added = whole.double() @ held
    bias = added if linear.bias is None else linear.bias.detach().double() + added
    return _like(linear, whole[:, keep.to(whole.device)], bias.to(whole.dtype))


def _weight(linear: Linear) -> Float[Tensor, "output input"]:
    weight = linear.weight.detach()
    return weight.T if isinstance(linear, Conv1D) else weight


def _n_inputs(linear: Linear) -> int:
    return _weight(linear).shape[1]


def _like(
    linear: Linear, weight: Float[Tensor, "output input"], bias: Float[Tensor, " output"] | None
) -> Linear:
    """A layer of the same class with these weights, frozen or not as the old one."""
    n_outputs, n_inputs = weight.shape
    if isinstance(linear, Conv1D) and n_inputs:  # which can't be run without inputs, where a Linear can
        new: Linear = Conv1D(n_outputs, n_inputs)
        weight = weight.T
    else:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Initializing zero-element tensors")
            new = nn.Linear(n_inputs, n_outputs, bias=bias is not None, device="meta")
    needs = linear.weight.requires_grad
    new.weight = nn.Parameter(weight.clone().contiguous(), requires_grad=needs)
    if bias is not None:
        new.bias = nn.Parameter(bias.clone(), requires_grad=needs)
    return new.train(linear.training)
