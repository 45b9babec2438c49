"""A smaller model that keeps chosen neurons: the paper's pruned model (Wang et al., 2022, section 6.1), exactly.

The MLPs are really smaller. A dropped neuron that is held at a constant adds the same to the residual stream
everywhere, so its part goes into the output projection's bias (made where there is none), once; nothing of the kept
neurons goes there. The result equals the full model with the dropped neurons held by hooks, to rounding.

Each layer has a width of its own, 0 included. So ``cfg.d_mlp`` is no longer every layer's width, and what stacks layers
(``model.W_in``, scoring) takes whole models only; prompts are tuned and run, and the input cache works, as before.

What it does not show: that the rest was useless. Compare with keeping random neurons.
"""

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformer_lens.model_bridge import TransformerBridge
from transformers.pytorch_utils import Conv1D

from tl_skillneurons._widths import in_layer, present, said, widest
from tl_skillneurons.models.copies import copy_model
from tl_skillneurons.models.hooks import hooked
from tl_skillneurons.models.layers import neuron_widths
from tl_skillneurons.models.records import model_label
from tl_skillneurons.models.sites import neuron_hooks, neuron_shape, output_projection
from tl_skillneurons.neurons.neuron_set import Neurons, as_neurons

Linear = nn.Linear | Conv1D
"""A projection, as Hugging Face writes it: GPT-2 has its weights the other way round."""


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
    held = {layer: (kept[layer], values[layer, : in_layer(width, layer)]) for layer in pruned}
    _require_equal(model, smaller, held)
    return smaller


def widths(model: TransformerBridge) -> list[int]:
    """How many neurons each layer's MLP has."""
    there = neuron_widths(model)
    return [
        _n_inputs(output_projection(model, layer).original_component) if own else 0
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
    return _weight(linear).shape[1 if name == "out" else 0]


@torch.no_grad()
def _require_equal(
    model: TransformerBridge,
    smaller: TransformerBridge,
    dropped: Mapping[int, tuple[Int[Tensor, " kept"], Float[Tensor, " neuron"]]],
) -> None:
    """Refuse a smaller model that is not the whole one with the dropped neurons held."""
    names = neuron_hooks(model)

    def held(layer: int) -> Callable[..., Tensor]:
        kept, value = dropped[layer]

        def hook_function(act: Tensor, hook: Any) -> Tensor:
            new = value.to(act).expand(act.shape).clone()
            new[..., kept.to(act.device)] = act[..., kept.to(act.device)]
            return new

        return hook_function

    ids = torch.arange(1, 7, device=model.cfg.device)[None] % model.W_E.shape[0]
    with hooked(model, [(names[layer], held(layer)) for layer in dropped]):
        expected = model(ids).double()
    try:
        found = smaller(ids).double()
    except RuntimeError as error:
        raise ValueError(
            f"{model_label(model)} can't be pruned, the smaller one doesn't run ({error}); hold neurons by ablate"
        ) from error
    exact = 1e-3 if model.W_E.dtype in (torch.float32, torch.float64) else 5e-2
    off = float((found - expected).abs().max() / expected.abs().max())
    if not off <= exact:
        raise ValueError(
            f"{model_label(model)} can't be pruned, the smaller one's logits are off by {off:.2g} of the largest; "
            "hold neurons by ablate"
        )


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
