"""What of a neuron is taken apart: what makes it fire.

Of an MLP without a gate that is the pre-activation. Of a gated one the neuron is a product, ``act(gate) * up``, and
either factor alone may hardly know the label that their product tells: there both are taken apart
(:mod:`~tl_skillneurons.attention.decomposition` says how), unless one is asked for.
"""

from transformer_lens.model_bridge import TransformerBridge

from tl_skillneurons._checks import require_option
from tl_skillneurons.neurons.neuron_set import NeuronSet

PROJECTIONS = {
    "pre": ("hook_pre",),
    "up": ("hook_pre_linear",),
    "post": ("hook_pre", "hook_pre_linear"),
}
"""The pre-activation proper (of a gated MLP: the gate's), what a gated MLP multiplies it with, and their product, the
activation."""


def projection_of(model: TransformerBridge, neurons: NeuronSet, asked: str | None = None) -> str:
    """What was asked for, else "post" where all of these neurons are of gated MLPs, and "pre" where not.

    Raises:
        ValueError: For another name.

    Example:
        >>> projection_of(skn.load_model("smollm2"), scores.top(3))
        'post'
    """
    if asked is not None:
        return require_option(asked, "projection", PROJECTIONS)
    points = model.hook_dict
    gated = all(f"blocks.{layer}.mlp.hook_pre_linear" in points for layer in neurons.by_layer())
    return "post" if gated else "pre"
