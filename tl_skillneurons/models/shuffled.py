"""A model's own layers in another order: trained parts that make no trained whole.

A control for discoveries in trained models. What it does not show: that order is what matters. The shuffled model has
the weights' statistics of the trained one but computes nothing that was trained for; random weights, TransformerLens'
``random_init_bridge``, are the control without either.
"""

import torch
from torch import Tensor, nn
from transformer_lens.model_bridge import TransformerBridge

from tl_skillneurons._checks import require_seed
from tl_skillneurons.models.copies import copy_model
from tl_skillneurons.models.sites import neuron_shape, require_supported


def shuffle_layers(model: TransformerBridge, seed: int = 0) -> TransformerBridge:
    """A copy of ``model`` whose layers' weights stand in a random other order; ``model`` stays as it is.

    Args:
        seed: Draws the order, which is never the model's own.

    Returns:
        The copy, called ``"<name>, layers shuffled"``, frozen where ``model`` is.

    Raises:
        ValueError: When there is one layer, or layers differ in the shapes of their weights.

    Example:
        >>> control = skn.models.shuffle_layers(model, seed=0)
        >>> found = skn.studies.over_checkpoints({"shuffled": control, "trained": model}, task)
    """
    require_supported(model)
    n_layers, _ = neuron_shape(model)
    if n_layers < 2:
        raise ValueError(f"there is nothing to shuffle in one layer ({model.cfg.model_name})")
    generator = torch.Generator().manual_seed(require_seed(seed))
    order = torch.arange(n_layers)
    while (order == torch.arange(n_layers)).all():
        order = torch.randperm(n_layers, generator=generator)
    shuffled = copy_model(model)
    for layer, source in enumerate(order.tolist()):
        here, there = (_weights(of.blocks[at]) for of, at in ((shuffled, layer), (model, source)))
        if {name: w.shape for name, w in here.items()} != {name: w.shape for name, w in there.items()}:
            raise ValueError(
                f"layers {layer} and {source} of {model.cfg.model_name} differ in their weights and can't change places"
            )
        with torch.no_grad():
            for name, weight in here.items():
                weight.copy_(there[name])
    shuffled.cfg.model_name = f"{model.cfg.model_name}, layers shuffled"
    return shuffled


def _weights(block: nn.Module) -> dict[str, Tensor]:
    """All that a layer holds, also what its bridge's ``state_dict`` leaves out."""
    return dict([*block.named_parameters(), *block.named_buffers()])
