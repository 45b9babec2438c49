"""An intervention written into a copy of the weights, so that a model carries it anywhere.

What an MLP writes is ``W_out a + b_out``. An intervention that makes of each neuron ``n`` the same linear function of
its own activation, ``a'_n = f_n a_n + c_n``, at every position of every text, is another MLP of the same shape::

    W_out'[:, n] = f_n W_out[:, n]        b_out' = b_out + sum_n c_n W_out[:, n]

so nothing is approximated. ``Zero`` has f = 0, ``Scale`` its factor, ``Mean`` f = 0 and the mean as c, ``Shift`` f = 1
and its shift as c; ``Keep`` does one of these to all other neurons. What depends on the position, the example or chance
is no such function, and is refused.

What it does not show: anything that the hooks don't. Bake random neurons of the same layers too
(:meth:`~tl_skillneurons.NeuronSet.random_like`) and run the same evaluation on both.
"""

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from tl_skillneurons._widths import in_layer
from tl_skillneurons.interventions.ablation import Positions, ablate
from tl_skillneurons.interventions.kinds import (
    Call,
    How,
    Intervention,
    Keep,
    Noise,
    Resample,
    as_intervention,
)
from tl_skillneurons.interventions.references import ReferenceValues
from tl_skillneurons.models.copies import copy_model, require_does_the_same
from tl_skillneurons.models.exporting import can_hold_output_biases
from tl_skillneurons.models.projections import Linear, like, weight_of
from tl_skillneurons.models.records import model_label
from tl_skillneurons.models.sites import hf_config, neuron_hooks, neuron_shape, output_projection
from tl_skillneurons.neurons.neuron_set import Neurons, as_neurons

_HOOKS = "use its hooks instead (ablate)"


def bake(
    model: TransformerBridge,
    neurons: Neurons,
    how: How,
    *,
    values: Float[Tensor, "layer neuron"] | ReferenceValues | None = None,
    positions: Positions = "all",
) -> TransformerBridge:
    """A copy of ``model`` whose weights do to ``neurons`` what the hooks of :func:`ablate` do.

    ``model`` stays as it is; :func:`~tl_skillneurons.models.export_model` saves the copy as a Hugging Face folder that
    plain transformers and any evaluation harness read.

    Args:
        how: ``Zero()``, ``Scale(factor)``, ``Mean()``, ``Shift(toward, by)``, ``Keep`` of one of them, or an
            intervention of your own that does the same to every position.
        values: What it needs to know of the neurons, as :func:`ablate` takes it: for ``Mean()`` what each is held at.
        positions: ``"all"``, for weights act everywhere; anything else is refused rather than baked at all positions.

    Raises:
        ValueError: For what weights can't hold (fewer positions than all, classes, chance, functions); for a constant
            where the architecture has no output bias to put it into (Qwen, Gemma, Mistral); for neurons or values
            of another model; and where the copy does not answer as the model with hooks does.

    Example:
        >>> weaker = skn.interventions.bake(model, skill, Scale(0.5))
        >>> skn.models.export_model(weaker, "weaker-smollm2")
    """
    what = as_intervention(how)
    if reason := _refusal(what, positions):
        raise ValueError(f"weights can't hold {what.name!r}: {reason}; {_HOOKS}")
    chosen = as_neurons(neurons).of_model(model)
    if not len(chosen):
        raise ValueError("neurons must hold at least one neuron, got none")
    names, points, width = neuron_hooks(model), model.hook_dict, neuron_shape(model)[1]
    by_layer = {int(name.split(".")[1]): edit for name, edit in ablate(chosen, how=what, values=values)}
    baked = copy_model(model)
    for layer, edit in by_layer.items():
        linear = _linear(edit, points[names[layer]], in_layer(width, layer))
        if linear is None:
            raise ValueError(
                f"weights can't hold {what.name!r}: what it makes of a neuron is no linear function of that neuron's "
                f"own activation, the same at every position; {_HOOKS}"
            )
        part = output_projection(baked, layer)
        part.set_original_component(_written(part.original_component, *linear, model, layer))
    hooks = [(names[layer], edit) for layer, edit in by_layer.items()]
    require_does_the_same(baked, model, hooks, f"{model_label(model)} can't be baked, the copy")
    return baked


def _refusal(what: Intervention, positions: Positions) -> str | None:
    """Why weights can't hold an intervention, as far as its kind tells."""
    inner = what.other if isinstance(what, Keep) else what
    if not (isinstance(positions, str) and positions == "all"):
        return f"they act at all positions, and positions={positions!r} was asked for"
    if inner.needs_labels:
        return "it depends on the class of each example, which they don't know"
    if isinstance(inner, Resample):
        return "it gives each text the values of another example, and they are the same for all"
    if isinstance(inner, Noise):
        return "it draws noise for each text, and they are the same for all"
    if isinstance(inner, Call):
        return "nobody knows what a function does at other positions or texts"
    return None


@torch.no_grad()
def _linear(
    edit: Callable[..., Any], hook: Any, width: int
) -> tuple[Float[Tensor, " neuron"], Float[Tensor, " neuron"]] | None:
    """The factor and the constant of each neuron of a layer, float64, as a hook function shows them; ``None`` where it
    is no such function."""
    act = torch.randn(3, 2, width, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    constant = edit(torch.zeros_like(act), hook=hook)[0, 0]
    factor = edit(torch.ones_like(act), hook=hook)[0, 0] - constant
    same = torch.allclose(edit(act, hook=hook), factor * act + constant, rtol=1e-6, atol=1e-9)
    return (factor, constant) if same else None


def _written(
    linear: Any,
    factor: Float[Tensor, " neuron"],
    constant: Float[Tensor, " neuron"],
    model: TransformerBridge,
    layer: int,
) -> Linear:
    """The output projection with each neuron's factor in its weights and its constant in the bias."""
    where = f"layer {layer} of {model_label(model)}"
    if not isinstance(linear, Linear) or not linear.weight.is_floating_point():
        raise ValueError(
            f"{where} can't be baked: its output projection is a {type(linear).__name__}, it must be an nn.Linear or "
            "Conv1D of floating-point weights; merge adapters first, and load the model without quantisation"
        )
    if constant.any() and linear.bias is None and not can_hold_output_biases(model):
        raise ValueError(
            f"{where} can't be baked: a constant is written into the bias of the output projection, and "
            f"{hf_config(model).model_type} has none and no mlp_bias in its config; bake Zero() or Scale(factor), or "
            f"{_HOOKS}"
        )
    weight = weight_of(linear).double()
    factor, constant = factor.to(weight.device), constant.to(weight.device)
    bias = None if linear.bias is None else linear.bias.detach().double()
    if constant.any():
        added = weight @ constant
        bias = added if bias is None else bias + added
    old = linear.weight.dtype
    return like(linear, (weight * factor).to(old), None if bias is None else bias.to(old))
