"""Which way a neuron points, prompt by prompt: one direction is stated only where all prompts agree.

A neuron that is predictive under two prompts may mean label 1 under one and label 0 under the other, since each prompt
moves what its positions hold. "High activation means label 1" is then true of neither the neuron nor the model.
"""

from typing import Any

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor


def common_direction(by_prompt: Int[Tensor, "prompt *axes"]) -> Int[Tensor, "*axes"]:
    """The direction, +1 or -1, that all prompts share; 0 where they disagree."""
    return torch.where((by_prompt == by_prompt[:1]).all(0), by_prompt[0], 0)


def agreement_of(by_prompt: Int[Tensor, "prompt *axes"]) -> Float[Tensor, "*axes"]:
    """Share of the prompts that has the more frequent direction, in [0.5, 1]."""
    up = (by_prompt > 0).sum(0)
    return torch.maximum(up, len(by_prompt) - up).double() / len(by_prompt)


def direction_columns(by_prompt: Int[Tensor, "prompt *axes"]) -> dict[str, Any]:
    """Of several prompts, columns of a table with a row per neuron: their agreement, and each one's direction."""
    if len(by_prompt) == 1:
        return {}
    flat = rearrange(by_prompt, "prompt ... -> prompt (...)")
    each = {f"direction_{k}": one.numpy() for k, one in enumerate(flat)}
    return {"direction_agreement": agreement_of(flat).numpy(), **each}
