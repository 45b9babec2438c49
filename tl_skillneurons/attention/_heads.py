"""What a head is, which choices of heads make sense, and heads as an axis of their own."""

from collections.abc import Sequence

from einops import rearrange
from jaxtyping import Float
from torch import Tensor

Head = tuple[int, int]
"""A head's layer and its number there."""


def require_heads(
    heads: Sequence[Sequence[int]], n_layers: int | None = None, n_heads: int | None = None
) -> list[Head]:
    """The heads as pairs of plain integers, in their order.

    Args:
        n_layers, n_heads: Layers of the model and heads of a layer, where they are known.

    Raises:
        ValueError: For no head, a head twice, what is no pair, or a head outside the model.
    """
    pairs = []
    for head in heads:
        if len(head) != 2 or any(isinstance(n, bool) or int(n) != n or n < 0 for n in head):
            raise ValueError(f"heads must be pairs (layer, head) of integers from 0, got {head!r}")
        pairs.append((int(head[0]), int(head[1])))
    if not pairs:
        raise ValueError("heads must hold at least one (layer, head), got none")
    twice = [pair for pair in pairs if pairs.count(pair) > 1]
    if twice:
        raise ValueError(f"heads must be distinct, got {twice[0]} twice")
    if n_layers is not None and n_heads is not None:
        outside = [pair for pair in pairs if pair[0] >= n_layers or pair[1] >= n_heads]
        if outside:
            raise ValueError(
                f"heads must have layer in [0, {n_layers}) and head in [0, {n_heads}), got {outside[0]}"
            )
    return pairs


def by_head(values: Float[Tensor, "..."], n_heads: int) -> Float[Tensor, "..."]:
    """``[batch, pos, head, d_head]``, of what shows its heads like that or as one axis ``[batch, pos, d]``."""
    if values.ndim == 4:
        return values
    return rearrange(values, "batch pos (head d_head) -> batch pos head d_head", head=n_heads)
