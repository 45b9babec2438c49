"""Whether a model's vocabulary matrix can be read in place of the head that runs."""

from typing import Any

from torch import nn
from transformer_lens.model_bridge import TransformerBridge

from tl_skillneurons.models.hooks import is_of_the_host, torch_hooks
from tl_skillneurons.models.untouched import inner


def head_is_plain(model: TransformerBridge) -> bool:
    """Whether the head that runs is one linear layer with nothing on it: no adapter, no parametrisation, no hook of
    somebody else's, and the same layer that the model calls its output embedding."""
    head = inner(model.unembed)
    original: Any = model.original_model
    own = original.get_output_embeddings()
    if type(head) is not nn.Linear or own not in (model.unembed, head) or "forward" in vars(head):
        return False
    if model.W_U.data_ptr() != head.weight.data_ptr() and not model.compatibility_mode:
        return False
    parts = [model, model.original_model, *model.unembed.modules()]
    return all(is_of_the_host(hook) for part in parts for hook in torch_hooks(part))
