"""PEFT's prompt-tuning folders: ``adapter_config.json`` and ``adapter_model.safetensors`` with
``prompt_embeddings``.

PEFT feeds its prompt as ``inputs_embeds``: that is the unit of what is in a folder. A soft prompt is in the units of
``embed.hook_out``, which some models scale after ``inputs_embeds``.
"""

import json
import os
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from tl_skillneurons._files import write_json, write_whole

CONFIG, WEIGHTS, EMBEDDING = "adapter_config.json", "adapter_model.safetensors", "prompt_embeddings"


def read_peft(
    folder: str | os.PathLike[str],
) -> tuple[Float[Tensor, "virtual_token d_embed"], dict[str, Any]]:
    """The virtual tokens in a PEFT prompt-tuning folder, and where they come from."""
    folder = Path(folder)
    for name in (CONFIG, WEIGHTS):
        if not (folder / name).is_file():
            raise FileNotFoundError(
                f"{folder} has no {name}; give the folder that PEFT's save_pretrained wrote"
            )
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        content = (folder / WEIGHTS).read_bytes()  # a mapped file would change with its folder
        tensors = {name: tensor.clone() for name, tensor in load(content).items()}
    except (ValueError, RecursionError, SafetensorError) as error:
        raise ValueError(f"{folder} is corrupt: {error}") from error
    kind = config.get("peft_type") if isinstance(config, dict) else None
    if kind != "PROMPT_TUNING":
        raise ValueError(
            f"{folder} holds a PEFT adapter of type {kind}; only PROMPT_TUNING is virtual tokens at the input "
            "(prefix tuning adds keys and values in every layer)"
        )
    if EMBEDDING not in tensors:
        raise ValueError(f"{folder / WEIGHTS} must hold {EMBEDDING!r}, got {sorted(tensors)}")
    embedding = tensors[EMBEDDING].to(torch.float32)
    said = (config.get("num_virtual_tokens"), config.get("token_dim"))
    if tuple(embedding.shape) != said:
        raise ValueError(
            f"{folder} says [num_virtual_tokens, token_dim] = {list(said)}, its tensor is {list(embedding.shape)}"
        )
    return embedding, {"source": "PEFT prompt tuning", "base_model": config.get("base_model_name_or_path")}


def write_peft(
    folder: str | os.PathLike[str],
    embedding: Float[Tensor, "virtual_token d_embed"],
    provenance: dict[str, Any],
) -> Path:
    """Write the virtual tokens as PEFT's prompt tuning of a causal language model reads them."""
    n_virtual_tokens, width = embedding.shape
    model = provenance.get("model", {})
    config = {
        "peft_type": "PROMPT_TUNING",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": provenance.get("base_model") or model.get("name"),
        "num_virtual_tokens": n_virtual_tokens,
        "token_dim": width,
        "num_transformer_submodules": 1,
        "num_layers": model.get("n_layers"),
        "prompt_tuning_init": "RANDOM",
        "inference_mode": True,
    }
    write_whole(
        Path(folder) / WEIGHTS, save({EMBEDDING: embedding.cpu().contiguous()}, metadata={"format": "pt"})
    )
    write_json(Path(folder) / CONFIG, config)
    return Path(folder)
