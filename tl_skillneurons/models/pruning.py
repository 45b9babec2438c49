"""A smaller model that keeps chosen neurons: the paper's pruned model (Wang et al., 2022, section 6.1), exactly.

The MLPs are really smaller. A dropped neuron that is held at a constant adds the same to the residual stream
everywhere, so its part goes into the output projection's bias (made where there is none), once; nothing of the kept
neurons goes there. The result equals the full model with the dropped neurons held by hooks, to rounding.

Each layer has a width of its own, 0 included. So ``cfg.d_mlp`` is no longer every layer's width, and what stacks layers
(``model.W_in``, scoring) takes whole models only; prompts are tuned and run, and the input cache works, as before.

What it does not show: that the rest was useless. Compare with keeping random neurons.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from tl_skillneurons._widths import in_layer, present, said, widest
from tl_skillneurons.models.copies import copy_model, require_does_the_same
from tl_skillneurons.models.layers import neuron_widths
from tl_skillneurons.models.projections import Linear, like, n_inputs, weight_of
from tl_skillneurons.models.records import model_label
from tl_skillneurons.models.sites import neuron_hooks, neuron_shape, output_projection
from tl_skillneurons.neurons.neuron_set import Neurons, as_neurons


def prune(
    model: TransformerBridge,
    keep: Neurons,
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
            when nothing at all would be kept, or for MLPs that can't be cut: which normalise their neurons together
            (BitNet), or whose projections are of another kind. The result is compared with the model whose neurons
            are held, and refused where it differs.

    Example:
        >>> small = skn.prune(model, scores.top(0.1), scores.mean_baseline())
        >>> skn.PromptedModel(small, prompts[0], task.label_words).accuracy(task)
    """
    keep = as_neurons(keep)
    n_layers, width = neuron_shape(model)
    shape, there = (n_layers, widest(width)), present(n_layers, width)
    keep.require_fits(n_layers, width)
    if tuple(values.shape) != shape:
        raise ValueError(
            f"values must be [layer, neuron] = {list(shape)} of this model, got {list(values.shape)}"
        )
    if not values[there].isfinite().all():
        raise ValueError("values must be finite, got NaN or infinity")
    with_neurons = [layer for layer in range(n_layers) if in_layer(width, layer)]
    pruned = with_neurons if layers is None else sorted(set(layers))
    outside = [layer for layer in pruned if not 0 <= layer < shape[0]]
    if outside:
        raise ValueError(f"layers must be in [0, {shape[0]}), got {outside[0]}")
    if bare := [layer for layer in pruned if not in_layer(width, layer)]:
        raise ValueError(f"layer {bare[0]} has no neurons to prune ({said(width)}); leave it out of layers")
    kept = {
        layer: keep.by_layer().get(layer, torch.empty(0, dtype=torch.int64)).sort().values for layer in pruned
    }
    if pruned == with_neurons and not len(keep):
        raise ValueError("nothing would be kept in any layer; give keep at least one neuron, or spare layers")
    smaller = copy_model(model)
    smaller.cfg.d_mlp = shape[
        1
    ]  # the widest layer's: the width before; not every architecture adapter gets it right
    for layer in pruned:
        own = in_layer(width, layer)
        _require_cuttable(model, layer, own)
        _cut(smaller, layer, kept[layer], values[layer, :own])
    names = neuron_hooks(model)
    held = [(names[layer], _held(kept[layer], values[layer, : in_layer(width, layer)])) for layer in pruned]
    require_does_the_same(smaller, model, held, f"{model_label(model)} can't be pruned, the smaller one")
    return smaller


def widths(model: TransformerBridge) -> list[int]:
    """How many neurons each layer's MLP has."""
    there = neuron_widths(model)
    return [
        n_inputs(output_projection(model, layer).original_component) if own else 0
        for layer, own in enumerate(there)
    ]


def _require_cuttable(model: TransformerBridge, layer: int, d_mlp: int) -> None:
    """Refuse an MLP that is more than projections in and out and what happens to each neuron alone."""
    mlp: Any = model.blocks[layer].mlp
    where = f"layer {layer} of {model_label(model)} can't be pruned"
    whole = (
        mlp.original_component if mlp.name is not None else None
    )  # BERT's and OPT's is no module of its own
    norms = (
        []
        if whole is None
        else [n for n, part in whole.named_modules() if "norm" in type(part).__name__.lower()]
    )
    if norms:
        raise ValueError(
            f"{where}: its MLP normalises all neurons together ({norms[0]}), so dropping some changes the rest; hold "
            "them instead, by ablate"
        )
    for name in ("in", "gate", "out"):
        part = getattr(_projection(model, layer, name), "original_component", None)
        if part is None and name == "gate":
            continue
        n = _neurons_of(part, name) if isinstance(part, Linear) else 0
        if n not in ((d_mlp,) if name == "out" else (d_mlp, 2 * d_mlp)):
            what = (
                "missing"
                if part is None
                else f"a {type(part).__name__} for {n or 'an unknown number of'} neurons"
            )
            raise ValueError(
                f"{where}: its {name} projection is {what}, it must be an nn.Linear or Conv1D for {d_mlp}; hold "
                "neurons instead, by ablate"
            )


def _neurons_of(linear: Linear, name: str) -> int:
    return weight_of(linear).shape[1 if name == "out" else 0]


def _held(kept: Int[Tensor, " kept"], value: Float[Tensor, " neuron"]) -> Callable[..., Tensor]:
    """A hook function that holds what is dropped."""

    def hook_function(act: Tensor, hook: Any) -> Tensor:
        new = value.to(act).expand(act.shape).clone()
        new[..., kept.to(act.device)] = act[..., kept.to(act.device)]
        return new

    return hook_function


def _projection(model: TransformerBridge, layer: int, name: str) -> Any:
    """The bridge's part of a layer's projection "in", "gate" or "out"; ``None`` where it has none."""
    mlp = model.blocks[layer].mlp
    # of a dense layer beside sparse ones, whose "gate" is the router
    return getattr(mlp, f"dense_{name}" if "dense_out" in mlp._modules else name, None)


def _cut(
    model: TransformerBridge, layer: int, keep: Int[Tensor, " kept"], value: Float[Tensor, " neuron"]
) -> None:
    """Make one MLP smaller, in place."""
    for name in ("in", "gate"):
        part = _projection(model, layer, name)
        if part is not None and getattr(part, "original_component", None) is not None:
            linear = part.original_component
            fused = _neurons_of(linear, name) == 2 * len(value)  # ModernBERT's: what is gated, then the gate
            part.set_original_component(
                _outputs(linear, torch.cat([keep, keep + len(value)]) if fused else keep)
            )
    out = output_projection(model, layer)
    out.set_original_component(_inputs(out.original_component, keep, value))


def _outputs(linear: Linear, keep: Int[Tensor, " kept"]) -> Linear:
    """The projection into the neurons, with the kept ones alone."""
    weight = weight_of(linear)[keep.to(linear.weight.device)]
    bias = None if linear.bias is None else linear.bias.detach()[keep.to(linear.bias.device)]
    return like(linear, weight, bias)


def _inputs(linear: Linear, keep: Int[Tensor, " kept"], value: Float[Tensor, " neuron"]) -> Linear:
    """The projection out of the neurons; what the dropped ones always add is in its bias."""
    whole = weight_of(linear)
    held = value.to(device=whole.device, dtype=torch.float64).clone()
    held[keep.to(whole.device)] = 0  # the kept ones speak for themselves
    added = whole.double() @ held
    bias = added if linear.bias is None else linear.bias.detach().double() + added
    return like(linear, whole[:, keep.to(whole.device)], bias.to(whole.dtype))
