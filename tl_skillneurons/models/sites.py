"""Where a model's neurons are, and what a model must be for neurons to be found in it.

A neuron is one coordinate of ``blocks.{layer}.mlp.hook_post``, the input of the MLP's output projection; for
a gated MLP that is ``act(gate) * up``. Hook points go by their canonical names here, which differ before and
after ``enable_compatibility_mode()``: a hook under its canonical name fires once per forward in both.
"""

import inspect
from collections.abc import Iterator
from typing import Any

from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn
from transformer_lens.model_bridge import TransformerBridge

from tl_skillneurons._widths import Width, left_out_said, width_of
from tl_skillneurons.models.causality import measured_sight
from tl_skillneurons.models.layers import layers_left_out, neuron_widths
from tl_skillneurons.models.records import model_label
from tl_skillneurons.neurons.neuron_set import SITE

_RECURRENT = ("mamba", "ssm", "mixer", "linear_attn")
_HEADS = ("ForMaskedLM", "ForPreTraining", "ForCausalLM", "LMHeadModel")


def require_supported(model: Any) -> None:
    """Return if neurons can be found in ``model``.

    Raises:
        TypeError: When it is not a ``TransformerBridge``.
        ValueError: When it has no MLP neurons in every layer of one stack, with the reason.
    """
    if not isinstance(model, TransformerBridge):
        raise TypeError(
            f"model must be a TransformerBridge, got {type(model).__module__}.{type(model).__name__}; "
            "boot one with load_model(name_or_folder) or boot_transformers(name_or_folder), or "
            "wrap a Hugging Face model: boot_transformers(name, hf_model=model, tokenizer=tokenizer)"
        )
    reason = config_refusal(hf_config(model)) or _refusal(model)
    if reason is not None:
        raise ValueError(f"can't find neurons in {model_label(model)}: {reason}")


def config_refusal(config: Any) -> str | None:
    """Why a model of this Hugging Face config can't be used, or ``None``; needs no weights.

    A reason that shows only in the booted model is left to :func:`require_supported`.
    """
    kind = str(getattr(config, "model_type", ""))
    if kind in _REFUSED_KINDS:
        return _REFUSED_KINDS[kind]
    if kind == "falcon" and getattr(config, "new_decoder_architecture", False):
        return (
            "it is a Falcon of the newer kind (new_decoder_architecture in its config), whose queries, keys and values "
            "TransformerLens cuts as if there were one key for all heads; use one of the older kind, such as falcon-7b"
        )
    if getattr(config, "is_encoder_decoder", False):
        return (
            "it is an encoder-decoder model, with two stacks of layers, so a layer and a neuron do not name "
            "one place; use a causal model, a BERT-like encoder, or a T5's encoder alone (load_model, or "
            "T5EncoderToRead)"
        )
    if kind == "gpt2" and getattr(config, "add_cross_attention", False):
        return (
            "it is a decoder for another model's encoder (add_cross_attention in its config), whose keys and values "
            "come in a form that TransformerLens does not take; use a GPT-2 of its own"
        )
    if getattr(config, "chunk_size_feed_forward", 0):
        return (
            "its MLPs run in pieces of a text (chunk_size_feed_forward in its config), so that a neuron's activations "
            "are not seen together; set it to 0 before booting, which changes no number"
        )
    if (
        getattr(config, "vision_config", None) is not None
        or getattr(config, "audio_config", None) is not None
    ):
        return (
            "it has parts for images or sound, which are not checked here; use a model of text alone, such as its "
            "language model saved on its own"
        )
    text = getattr(config, "text_config", None) or config
    if _experts_alone(text):
        return (
            "it is a mixture of experts in every layer, whose neurons have no hook point (mlp.hook_post is the block's "
            "output there); use a model with dense MLPs in some layers at least"
        )
    if getattr(text, "hidden_size_per_layer_input", 0):
        return (
            "it looks the tokens' ids up again in every layer (per-layer inputs), and virtual tokens have none; use a "
            "model without them"
        )
    if getattr(text, "num_kv_shared_layers", 0):
        return (
            "its last layers take the keys and values of earlier ones (num_kv_shared_layers in its config), which is "
            "not checked here; use a model whose layers have their own"
        )
    kinds = [kind, *map(str, getattr(text, "layer_types", None) or ())]
    if any(word in kind for kind in kinds for word in ("mamba", "rwkv", "recurrent", "linear_attention")):
        return _STATE_SPACE
    return None


_REFUSED_KINDS = {
    "albert": (
        "all its layers are one set of weights that runs several times, so a neuron of one layer is that of every "
        "layer; use an encoder whose layers have weights of their own"
    ),
    "umt5": (
        "each layer of a UMT5 has position biases of its own, which TransformerLens' T5 attention does not take; use "
        "the encoder of a T5 or mT5"
    ),
}
"""By the model type of their config."""

_EXPERT_COUNTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
_DENSE_LAYERS = (
    "mlp_only_layers",
    "decoder_sparse_step",
    "first_k_dense_replace",
    "num_dense_layers",
    "moe_layers",
    "moe_layer_start_index",
    "mlp_layer_types",
)
"""Where configs say which layers of a mixture of experts are dense."""


def _experts_alone(text: Any) -> bool:
    """Whether a config is of a mixture of experts and has no word for layers that are none."""
    return _names_experts(text) and not any(hasattr(text, name) for name in _DENSE_LAYERS)


def _names_experts(text: Any) -> bool:
    return any(isinstance(n := getattr(text, name, None), int) and n > 1 for name in _EXPERT_COUNTS)


_STATE_SPACE = (
    "it has state-space or other recurrent layers, which have no MLP neurons or carry padding on in their "
    "state; use a model whose layers are all attention and MLP"
)


def _refusal(model: TransformerBridge) -> str | None:
    stacks = model._modules  # model.blocks would fall through to the Hugging Face model's attributes
    if stacks.get("encoder_blocks") is not None or stacks.get("decoder_blocks") is not None:
        return "it has two stacks of layers (encoder and decoder); use a causal model or a BERT-like encoder"
    blocks: Any = stacks.get("blocks")
    if blocks is None or len(blocks) == 0:
        return "it has no transformer layers (no blocks); use a causal model or a BERT-like encoder"
    if any(word in part for kind in model.layer_types() for part in kind.split("+") for word in _RECURRENT):
        return _STATE_SPACE
    if getattr(stacks.get("embed"), "W_E", None) is None:
        return (
            "it has no token embedding, so it does not read text; use a causal model or a BERT-like encoder"
        )
    without = layers_left_out(model)
    if len(without) == len(blocks):
        return f"no layer has neurons to name: {left_out_said(without)}; use a model with dense MLPs"
    return None


def hf_config(model: TransformerBridge) -> Any:
    """The configuration of the Hugging Face model that is wrapped, or ``None``."""
    return getattr(model.original_model, "config", None)


def neuron_hooks(model: TransformerBridge) -> dict[int, str]:
    """The canonical name of the neuron hook point of each layer that has neurons, in the order of the layers."""
    points, without = model.hook_dict, layers_left_out(model)
    names = {k: f"blocks.{k}.{SITE}" for k in range(len(model.blocks)) if k not in without}
    return {layer: points[name].name or name for layer, name in names.items()}


def output_projection(model: TransformerBridge, layer: int) -> Any:
    """The projection out of a layer's MLP: the bridge's part, whose input its neurons are."""
    mlp = model.blocks[layer].mlp
    return mlp.dense_out if "dense_out" in mlp._modules else mlp.out  # of a dense layer beside sparse ones


def mlp_outputs(model: TransformerBridge) -> list[str]:
    """The hook point of each layer at which its MLP, or the experts in its place, writes towards the stream.

    Raises:
        ValueError: When a layer has neither, with its name.
    """
    with_neurons, points, found = neuron_hooks(model), model.hook_dict, []
    for layer in range(len(model.blocks)):
        whole = f"blocks.{layer}.mlp.hook_out"
        if layer in with_neurons:
            found.append(output_projection(model, layer).hook_out.name or whole)
        elif whole in points:
            found.append(points[whole].name or whole)
        else:
            raise ValueError(
                f"layer {layer} of {model_label(model)} has no MLP, so what the layers' MLPs write can't be compared"
            )
    return found


def head_hooks(model: TransformerBridge) -> list[str]:
    """The hook point of each layer at which its heads' outputs stand, before the output projection mixes them.

    Raises:
        ValueError: When a layer has no attention, with its name.
    """
    found = heads_shown(model)
    missing = [layer for layer in range(len(model.blocks)) if layer not in found]
    if missing:
        raise ValueError(
            f"layer {missing[0]} of {model_label(model)} has no attention heads (its parts: "
            f"{model.layer_types()[missing[0]]}), so heads can't be compared over all layers; neurons can be found, "
            "ablated and pruned all the same"
        )
    return list(found.values())


def heads_shown(model: TransformerBridge) -> dict[int, str]:
    """The same of the layers that have attention, by layer."""
    names = {layer: f"blocks.{layer}.attn.o.hook_in" for layer in range(len(model.blocks))}
    points = model.hook_dict
    return {layer: name for layer, name in names.items() if name in points}


def asking_for_patterns(model: TransformerBridge) -> dict[str, Any]:
    """What a run is given besides, so that attention patterns show: a few models (MPNet, DeBERTa) give them to who asks
    alone, the others by themselves or to nobody."""
    asked = "output_attentions"
    takes = asked in inspect.signature(model.original_model.forward).parameters
    return {asked: True} if takes and not is_causal(model) else {}


def head_output_weights(model: TransformerBridge, layer: int) -> Float[Tensor, "head d_head d_model"]:
    """What each head's output is multiplied with, the heads being those that :func:`mend_head_shapes` shows."""
    attention = model.blocks[layer].attn
    if not hasattr(attention.original_component, "v_head_dim"):
        return attention.W_O
    weight, width = attention.o.original_component.weight, attention.original_component.v_head_dim
    return rearrange(weight, "d_model (head d_head) -> head d_head d_model", d_head=width)


def mixer_outputs(model: TransformerBridge) -> list[str]:
    """The hook point of each layer at which its attention, or the convolution in its place, writes to the stream.

    Raises:
        ValueError: When a layer has neither, with its name.
    """
    points = model.hook_dict
    found = []
    for layer in range(len(model.blocks)):
        known = [f"blocks.{layer}.{part}.hook_out" for part in ("attn.o", "conv.out", "attn")]
        name = next((name for name in known if name in points), None)
        if name is None:
            raise ValueError(
                f"layer {layer} of {model_label(model)} has neither attention nor a convolution "
                f"(its parts: {model.layer_types()[layer]}), so what its MLP writes can't be told from the rest"
            )
        found.append(name)
    return found


def beside_neurons(model: TransformerBridge) -> list[str]:
    """The hook points at which all that is no layer's neurons writes to the stream: attention, convolutions, and the
    experts of layers without neurons to name.

    Raises:
        ValueError: When a layer has neither attention nor a convolution, with its name.
    """
    points, with_neurons = model.hook_dict, neuron_hooks(model)
    experts = [f"blocks.{k}.mlp.hook_out" for k in range(len(model.blocks)) if k not in with_neurons]
    return [*mixer_outputs(model), *(name for name in experts if name in points)]


def mend_head_shapes(model: TransformerBridge) -> None:
    """Let the hook point of each layer's head outputs show the heads that run.

    TransformerLens cuts what enters the output projection into pieces of ``cfg.d_head``. In latent attention (DeepSeek)
    that is the width of the keys, and the values have one of their own, ``v_head_dim``: pieces of heads would be taken
    for heads. Only the view is changed, never a number.
    """
    for block in model.blocks:
        attention = block._modules.get("attn")
        width = getattr(getattr(attention, "original_component", None), "v_head_dim", None)
        if not isinstance(width, int):
            continue
        conversion: Any = attention.o.hook_in.hook_conversion
        n_inputs = attention.o.original_component.weight.shape[-1]
        if conversion is not None and n_inputs % width == 0:
            conversion.n_heads, conversion.d_head = n_inputs // width, width


def neuron_shape(model: TransformerBridge) -> tuple[int, Width]:
    """``(n_layers, d_mlp)``; where the layers differ in their number of neurons, ``d_mlp`` is each layer's own."""
    widths = neuron_widths(model)
    return len(widths), width_of(widths)


def last_mlp_input(model: TransformerBridge) -> str:
    """The hook point through which all that enters the last layer's MLP goes.

    What leaves that MLP is added to the residual stream and read at a few positions only, so it need be
    computed at those alone.
    """
    last = len(model.blocks) - 1
    whole = model.blocks[last].mlp.name is not None  # BERT's and OPT's MLP is two projections of their layer
    return f"blocks.{last}.mlp.hook_in" if whole else f"blocks.{last}.mlp.in.hook_in"


def embedding_width(model: TransformerBridge) -> int:
    """The width of ``embed.hook_out``, where virtual tokens enter; not always ``cfg.d_model`` (OPT may
    project it)."""
    return model.embed.W_E.shape[1]


def is_causal(model: TransformerBridge) -> bool:
    """Whether each position sees only earlier ones (True), or all of them as in BERT (False): measured
    (:mod:`~tl_skillneurons.models.causality`), not read off a configuration."""
    return not measured_sight(model).later


def has_language_model_head(model: TransformerBridge) -> bool:
    """Whether the model's logits mean anything.

    False for an encoder whose checkpoint has no language-model head (``config.architectures`` names a bare
    encoder, or one with another head): TransformerLens boots it as a masked language model whose head is
    random.
    """
    names = getattr(hf_config(model), "architectures", None) or ()
    return is_causal(model) or not names or any(name.endswith(_HEADS) for name in names)


def max_length(model: TransformerBridge) -> int | None:
    """The longest sequence, virtual tokens and special tokens included; ``None`` when the model states no
    limit.

    With learned positions it is the number that can be used (RoBERTa reserves two of its table), with rotary
    or ALiBi positions the length that the config states.
    """
    n_ctx = getattr(model.cfg, "n_ctx", None)
    return int(n_ctx) if n_ctx and n_ctx > 0 else None


def require_eval(model: TransformerBridge, operation: str = "finding neurons") -> None:
    """Return if the model and every part of it is in eval mode.

    Raises:
        ValueError: When dropout and the like are on, with the parts that train.
    """
    training = {id(part): name for name, part in _named_parts(model) if part.training}
    if training:
        names = list(training.values())
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        raise ValueError(
            f"{operation} needs the model in eval mode, got train mode in {', '.join(names[:3])}{more}; "
            "call model.eval() first"
        )


def _named_parts(model: TransformerBridge) -> Iterator[tuple[str, nn.Module]]:
    for prefix, root in (("model", model), ("model.original_model", model.original_model)):
        for name, part in root.named_modules():
            yield (f"{prefix}.{name}" if name else prefix), part
