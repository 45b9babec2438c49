"""Where the models are that are compared: booted already, in folders, on the hub, or made by a function."""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformer_lens.model_bridge import TransformerBridge

from tl_skillneurons._files import fingerprint
from tl_skillneurons._widths import even
from tl_skillneurons.models.loading import load_model, stated_config
from tl_skillneurons.models.packaged import PACKAGED
from tl_skillneurons.models.records import model_record
from tl_skillneurons.models.sites import neuron_shape, require_supported
from tl_skillneurons.studies._common import file_name

Checkpoint = TransformerBridge | str | os.PathLike[str] | Callable[[], TransformerBridge]
"""A booted model; a folder, a packaged name, or a hub model with or without a revision, such as
``"EleutherAI/pythia-70m@step1000"``; or a function without arguments that boots a model."""


@dataclass(frozen=True)
class LoadOptions:
    """How models that are named are loaded, as :func:`~tl_skillneurons.load_model` takes it.

    Attributes:
        device: Where to; ``None`` chooses.
        dtype: Of the weights.

    Example:
        >>> skn.studies.over_checkpoints(models, task, load=skn.studies.LoadOptions(dtype="bfloat16"))
    """

    device: str | torch.device | None = None
    dtype: torch.dtype | str = torch.float32


def require_checkpoints(checkpoints: Mapping[str, Checkpoint]) -> list[str]:
    """The names, which must be at least two and give files of different names.

    Raises:
        ValueError: Otherwise.
        TypeError: For a name that is no string.
    """
    names = list(checkpoints)
    if len(names) < 2:
        raise ValueError(f"give at least two checkpoints by name to compare, got {names}")
    wrong = [name for name in names if not isinstance(name, str) or not name]
    if wrong:
        raise TypeError(f"checkpoints must go by names that are strings, got {wrong[0]!r}")
    files = [file_name(name) for name in names]
    twice = [name for name, file in zip(names, files, strict=True) if files.count(file) > 1]
    if twice:
        raise ValueError(f"checkpoints {twice[0]!r} and {twice[1]!r} would be kept in one folder; rename one")
    return names


def boot_checkpoint(where: Checkpoint, load: LoadOptions) -> TransformerBridge:
    """The model itself."""
    if isinstance(where, (str, os.PathLike)):
        source, revision = _parts(where)
        return load_model(source, revision=revision, device=load.device, dtype=load.dtype, verbose=False)
    model = where if isinstance(where, TransformerBridge) else where()
    require_supported(model)
    return model


def _parts(where: str | os.PathLike[str]) -> tuple[str, str | None]:
    """A folder or a name, and the revision that stands behind its last @."""
    text = os.fspath(where)
    if "@" in text and not Path(text).expanduser().exists():
        source, _, revision = text.rpartition("@")
        return source, revision
    return text, None


def shape_of(model: TransformerBridge) -> tuple[int, int, int]:
    """``(n_layers, d_mlp, d_model)``."""
    n_layers, width = neuron_shape(model)
    return n_layers, even(width, "a comparison of checkpoints"), int(model.cfg.d_model)


def stated_shape(where: Checkpoint) -> tuple[int, int, int] | None:
    """``(n_layers, d_mlp, d_model)`` as far as it is known before weights are read: 0 or ``None`` is not known."""
    if isinstance(where, TransformerBridge):
        require_supported(where)
        return shape_of(where)
    if not isinstance(where, (str, os.PathLike)) or os.fspath(where) in PACKAGED:
        return None
    source, revision = _parts(where)
    config = stated_config(source, revision=revision)
    widths = (getattr(config, name, None) for name in ("intermediate_size", "ffn_dim", "n_inner"))
    return (config.num_hidden_layers, next((width for width in widths if width), 0), config.hidden_size)


def require_one_shape(shapes: Mapping[str, tuple[int, int, int] | None]) -> None:
    """Refuse models whose neurons can't be compared one by one, as far as their shapes are known.

    Raises:
        ValueError: Otherwise; names the first and the one that differs.
    """
    known = {name: shape for name, shape in shapes.items() if shape is not None}
    for name, shape in known.items():
        first, reference = next(iter(known.items()))
        if any(a and b and a != b for a, b in zip(shape, reference, strict=True)):
            raise ValueError(
                f"checkpoints must have one shape: {first!r} has [n_layers, d_mlp, d_model] = {list(reference)}, "
                f"{name!r} has {list(shape)}; compare models of one architecture and size"
            )


def identity(where: Checkpoint) -> dict[str, Any] | str:
    """What tells a checkpoint from another in a folder of measures: its place, or some of a booted model's weights."""
    if isinstance(where, TransformerBridge):
        some = [where.W_E, where.blocks[0].mlp.W_out, where.blocks[len(where.blocks) - 1].mlp.W_out]
        return {**model_record(where), "sha256": fingerprint(*some)}
    return os.fspath(where) if isinstance(where, (str, os.PathLike)) else "made by a function"
