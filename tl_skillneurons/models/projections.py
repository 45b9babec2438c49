"""A layer's projections into its neurons and out of them, and others of their class in their place."""

import warnings

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

Linear = nn.Linear | Conv1D
"""A projection, as Hugging Face writes it: GPT-2 has its weights the other way round."""


def weight_of(linear: Linear) -> Float[Tensor, "output input"]:
    """A projection's weights, the outputs first, without a graph."""
    weight = linear.weight.detach()
    return weight.T if isinstance(linear, Conv1D) else weight


def n_inputs(linear: Linear) -> int:
    """How many inputs a projection has."""
    return weight_of(linear).shape[1]


def like(
    linear: Linear, weight: Float[Tensor, "output input"], bias: Float[Tensor, " output"] | None
) -> Linear:
    """A layer of the same class with these weights, frozen or not as the old one."""
    n_outputs, width = weight.shape
    if isinstance(linear, Conv1D) and width:  # which can't be run without inputs, where a Linear can
        with torch.device("meta"):  # nothing is drawn
            new: Linear = Conv1D(n_outputs, width)
        weight = weight.T
    else:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Initializing zero-element tensors")
            new = nn.Linear(width, n_outputs, bias=bias is not None, device="meta")
    needs = linear.weight.requires_grad
    new.weight = nn.Parameter(weight.clone().contiguous(), requires_grad=needs)
    if bias is not None:
        new.bias = nn.Parameter(bias.clone(), requires_grad=needs)
    return new.train(linear.training)
