"""How a model is described in files and messages, and how it differs from one that was described."""

import hashlib
import os
from typing import Any

import torch
from transformer_lens.model_bridge import TransformerBridge

from tl_skillneurons.models.layers import layers_left_out, neuron_widths


def model_record(model: TransformerBridge) -> dict[str, Any]:
    """What artifacts record of a model: its name, architecture, sizes and dtype, and where there are any, in
    ``left_out``, the layers in which no neuron can be named, with the reason."""
    cfg = model.cfg
    without = layers_left_out(model)
    record = {
        "name": str(cfg.model_name).rstrip("/").rpartition("/")[2]
        if os.path.isdir(str(cfg.model_name))
        else str(cfg.model_name),
        "architecture": str(cfg.architecture),
        "n_layers": int(cfg.n_layers),
        "d_model": int(cfg.d_model),
        "d_vocab": int(model.W_E.shape[0]),
        "dtype": str(cfg.dtype).removeprefix("torch."),
    }
    widths = neuron_widths(model)
    if len(set(widths)) > 1:
        record["d_mlp"] = widths
    if without:
        record["left_out"] = {str(layer): why for layer, why in without.items()}
    return record


def model_differences(recorded: dict[str, Any], model: TransformerBridge) -> str:
    """How the model that an artifact records differs from this one, or nothing; their dtypes may differ."""
    here = model_record(model)
    differs = {k: v for k, v in recorded.items() if k in here and k != "dtype" and here[k] != v}
    return "; ".join(f"{k}: {was!r} then, {here[k]!r} here" for k, was in differs.items())


def model_label(model: TransformerBridge) -> str:
    """What to call the model in a message: the name it was booted under and its class."""
    name, kind = getattr(model.cfg, "model_name", None), type(model.original_model).__name__
    return f"{name} ({kind})" if name else kind


def weights_fingerprint(model: TransformerBridge, n_values: int = 64) -> str:
    """SHA-256 of every parameter's name, shape and dtype and of ``n_values`` of its values, evenly spaced.

    It tells models, checkpoints and fine-tuned copies apart, wherever their weights lie; one changed number it may not.
    """
    digest = hashlib.sha256()
    for name, parameter in sorted(model.original_model.named_parameters()):
        flat = parameter.detach().flatten()
        at = (
            torch.linspace(0, max(0, len(flat) - 1), min(n_values, len(flat)), dtype=torch.float64)
            .round()
            .long()
        )
        some = flat[at.to(flat.device)].cpu().contiguous()
        digest.update(f"{name} {tuple(parameter.shape)} {parameter.dtype} ".encode())
        digest.update(some.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
