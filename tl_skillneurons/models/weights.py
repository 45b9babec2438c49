"""The weights of a model that run but that its bridge's ``state_dict`` leaves out.

They are those of parts that the adapter has no name for, inside one that it has: DeBERTa's relative positions, T5's,
queries, keys and values in one matrix. What saves a model, or moves its weights, has to take them too.
"""

from torch import Tensor, nn
from transformer_lens.model_bridge import TransformerBridge

from tl_skillneurons.models.untouched import inner


def unlisted_weights(model: TransformerBridge) -> dict[str, Tensor]:
    """These parameters and persistent buffers by their name in ``model.original_model``.

    Left out as well is what no longer runs: a matrix that the bridge holds split (queries, keys and values of
    gpt_neox, the gated projection of phi3).
    """
    known = {_place(tensor) for tensor in model.state_dict().values() if tensor.numel()}
    known |= {_place(tensor) for part in _split_parts(model) for tensor in part.state_dict().values()}
    own = model.original_model.state_dict(keep_vars=True)
    return {name: tensor for name, tensor in own.items() if tensor.numel() and _place(tensor) not in known}


def _split_parts(model: TransformerBridge) -> list[nn.Module]:
    """The matrices that bridges hold split, none of which runs."""
    found = []
    for part in model.modules():
        if callable(getattr(part, "split_qkv_matrix", None)):
            found.append(part._modules.get("qkv"))
        if callable(getattr(part, "split_gate_up_matrix", None)):
            found.append(getattr(inner(part), getattr(part, "fused_attr", ""), None))
    return [inner(part) for part in found if part is not None]


def _place(tensor: Tensor) -> tuple[int, int]:
    return tensor.data_ptr(), tensor.numel()
