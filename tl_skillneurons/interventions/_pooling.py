"""Metrics over several prompts that answer the same examples. Tensors in, numbers out."""

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tl_skillneurons.stats.metrics import per_example, value_of

_MOST_NUMBERS = 2**24  # of one chunk of rows: 128 MB in float64


def pooled_value(
    metric: str, outputs: Float[Tensor, "prompt example output"], labels: Int[Tensor, " example"] | None
) -> float:
    """A metric's mean over prompts; equal numbers of right answers give equal values, however they are spread."""
    if metric == "calibration_error":
        return math.fsum(value_of(metric, one, labels) for one in outputs) / len(outputs)
    return float(each_prompts_examples(metric, outputs, labels).mean())


def each_prompts_examples(
    metric: str, outputs: Float[Tensor, "prompt example output"], labels: Int[Tensor, " example"] | None
) -> Float[Tensor, "prompt example"]:
    """A metric's value for each prompt and example."""
    return torch.stack([per_example(metric, one, labels) for one in outputs])
