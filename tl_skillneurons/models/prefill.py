"""Keys and values of texts that stand before what is still to come."""

import copy
from contextlib import suppress
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge
from transformer_lens.model_bridge.exceptions import StopAtLayerException
from transformers import DynamicCache

from tl_skillneurons.models.hooks import hooked


def prefill(
    model: TransformerBridge, ids: Int[Tensor, "batch text_pos"], mask: Int[Tensor, "batch text_pos"]
) -> DynamicCache:
    """Run texts, padded on the left, as far as the last layer's keys and values; nothing after them is computed."""
    past = DynamicCache()  # without a config it keeps every key, in sliding-window layers too
    last = f"blocks.{len(model.blocks) - 1}.attn.hook_out"

    def stop(act: Any, hook: Any) -> None:
        raise StopAtLayerException(act)

    with suppress(StopAtLayerException), hooked(model, [(last, stop)]), torch.no_grad():
        model(ids, attention_mask=mask, past_key_values=past)
    return past


def fork(past: DynamicCache) -> DynamicCache:
    """A cache that holds the same tensors and grows on its own."""
    new = copy.copy(past)
    new.layers = [copy.copy(layer) for layer in past.layers]
    return new
