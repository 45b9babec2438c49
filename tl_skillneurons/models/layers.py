"""Layers in which no neuron can be named, and how results say so.

A mixture of experts has layers whose neurons are in one three-dimensional weight, with no hook point; a hybrid has
layers without an MLP. Such layers are left out: they run as they are, and nothing is scored, drawn or changed there.
"""

from typing import Any

from transformer_lens.model_bridge import TransformerBridge

_MIXTURE = (
    "a mixture of experts, whose neurons have no hook point (mlp.hook_post is the block's output there)"
)
_NO_MLP = "no MLP"
_NO_PROJECTION = "no single output projection (W_out) of [d_mlp, d_model]"


def layers_left_out(model: TransformerBridge) -> dict[int, str]:
    """The layers in which no neuron can be named, and what they have instead: none in most models.

    Of a mixture of experts these are the sparse layers, of a hybrid those without an MLP. Neurons are found, ablated
    and counted in the other layers alone; every result's record names those left out (``left_out``).

    Example:
        >>> layers_left_out(deepseek)
        {1: "a mixture of experts, whose neurons have no hook point (...)", ...}
    """
    found = {}
    for layer, block in enumerate(model.blocks):
        mlp: Any = block._modules.get("mlp")
        neurons = getattr(mlp, "hook_post", None)  # of the bridge's own names, without making a list of all
        if neurons is None:
            found[layer] = _NO_MLP
        elif neurons is mlp.hook_out:
            found[layer] = _MIXTURE
        elif getattr(getattr(mlp, "W_out", None), "ndim", 0) != 2:
            found[layer] = _NO_PROJECTION
    return found


def neuron_widths(model: TransformerBridge) -> list[int]:
    """How many neurons each layer has: 0 in one that is left out, and any number in a pruned model's."""
    without = layers_left_out(model)
    return [  # cfg.d_mlp is wrong for OPT, Falcon and others
        0 if layer in without else block.mlp.W_out.shape[0] for layer, block in enumerate(model.blocks)
    ]
