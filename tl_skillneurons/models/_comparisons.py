"""By how much two tensors differ, and whether that is more than rounding."""

import math

import torch
from torch import Tensor

_ROUNDING = {torch.float64: 1e-5, torch.float32: 2e-4, torch.float16: 2e-2, torch.bfloat16: 8e-2}
"""Of the largest value; float64 too, since some models multiply queries and keys in float32."""


def rounding(dtype: torch.dtype) -> float:
    """The largest relative difference that is taken for rounding in this dtype."""
    return _ROUNDING.get(dtype, 8e-2)


def difference(found: Tensor, expected: Tensor) -> float:
    """The largest difference of two tensors of one shape, as a share of the largest expected value.

    Raises:
        ValueError: When their shapes differ.
    """
    if found.shape != expected.shape:
        raise ValueError(
            f"its shape is {list(found.shape)}, that of the model's own is {list(expected.shape)}"
        )
    found, expected = found.double(), expected.double().to(found.device)
    if not found.numel():
        return 0.0
    off, largest = float((found - expected).abs().max()), float(expected.abs().max())
    if math.isfinite(off) and math.isfinite(largest):
        return off / (largest or 1.0)
    finite = expected.isfinite()
    if not torch.equal(found.isfinite(), finite):
        return float("inf")  # what is not finite in both is for those to refuse who read it
    found, expected = found.where(finite, 0), expected.where(finite, 0)
    largest = float(expected.abs().max())
    return float((found - expected).abs().max()) / (largest or 1.0)


def constant_ratio(found: Tensor, expected: Tensor, tolerance: float) -> float | None:
    """The one factor by which ``found`` is ``expected``, or ``None`` where there is none."""
    if found.shape != expected.shape:
        return None
    found, expected = found.double(), expected.double().to(found.device)
    total = float((expected * expected).sum())
    if not total:
        return None
    ratio = float((found * expected).sum()) / total
    if abs(ratio - round(ratio, 3)) < 1e-6 * abs(ratio):
        ratio = round(ratio, 3)  # 12 rather than 12.0000003
    return ratio if ratio and difference(found, ratio * expected) <= tolerance else None
