"""What the parts of a whole leave unexplained, said wherever something is taken apart.

Parts that should sum to a whole and don't are no parts of it. Up to 1e-3 of the whole is rounding in float32; more is
always said, and where it is more than the rounding of the model's own numbers, with what it must be.
"""

import warnings

import torch

SMALL = 1e-3
"""The share of the whole that is left without a word."""
_ROUNDED = 5e-2  # of bfloat16 and float16


def is_rounding(share: float, dtype: torch.dtype) -> bool:
    """Whether no more of the whole is missing than numbers of this type lose; NaN is more.

    Example:
        >>> is_rounding(0.01, torch.bfloat16), is_rounding(0.01, torch.float32)
        (True, False)
    """
    return share <= (SMALL if dtype in (torch.float32, torch.float64) else _ROUNDED)


def tell_remainder(share: float, whole: str, dtype: torch.dtype, otherwise: str, *, stacklevel: int) -> None:
    """Warn of a share of ``whole`` above :data:`SMALL` that its parts leave unexplained.

    Args:
        otherwise: What it must come from where it is more than rounding.
    """
    if share <= SMALL:
        return
    numbers = str(dtype).removeprefix("torch.")
    why = f"its numbers are {numbers}, which round" if is_rounding(share, dtype) else otherwise
    warnings.warn(f"the parts leave {share:.2g} of {whole} unexplained: {why}", stacklevel=stacklevel + 1)
