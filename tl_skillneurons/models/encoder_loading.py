"""Encoders from their files: masked language models, the bare encoders of these, and T5's encoder.

A checkpoint without the whole of a masked-LM head gets a random one. That is told by the config of the booted model,
whose ``architectures`` then name the bare encoder
(:func:`~tl_skillneurons.models.sites.has_language_model_head`).
"""

from typing import Any

import torch
from transformer_lens.model_bridge import TransformerBridge

from tl_skillneurons.models._refused import Refused
from tl_skillneurons.models.encoder_adapters import MASKED_LM, register_encoders
from tl_skillneurons.models.sites import hf_config
from tl_skillneurons.models.t5_encoder import T5_ENCODERS, T5EncoderToRead


def is_encoder(config: Any) -> bool:
    """Whether :func:`boot_encoder` loads models of this Hugging Face config."""
    return config.model_type in MASKED_LM or config.model_type in T5_ENCODERS


def boot_encoder(source: str, placement: dict[str, Any], dtype: torch.dtype) -> TransformerBridge:
    """The bridge of an encoder.

    Args:
        source: A folder, or a name on the hub.
        placement: ``device`` or ``device_map``, and perhaps ``revision``, as ``boot_transformers`` takes them.

    Raises:
        Refused: When weights other than those of the head are missing, or the model doesn't run in ``dtype``.
    """
    from transformers import AutoConfig, AutoModelForMaskedLM

    config = AutoConfig.from_pretrained(source, revision=placement.get("revision"))
    is_t5 = config.model_type in T5_ENCODERS
    kind: Any = T5_ENCODERS[config.model_type] if is_t5 else AutoModelForMaskedLM
    model, info = kind.from_pretrained(
        source,
        dtype=dtype,
        device_map=placement.get("device_map"),
        revision=placement.get("revision"),
        output_loading_info=True,
    )
    architecture, head = ("", ()) if is_t5 else MASKED_LM[config.model_type]
    lost = sorted(key for key in info["missing_keys"] if not key.startswith(head))
    if lost:
        raise Refused(
            f"the weights of {source} are incomplete: {', '.join(lost[:3])} and {len(lost)} in all missing"
        )
    if is_t5:
        model = T5EncoderToRead(model)
    else:
        model.config.architectures = [architecture]
    if "device" in placement:
        model.to(placement["device"])
    register_encoders()
    bridge = TransformerBridge.boot_transformers(
        source,
        hf_model=model.eval(),
        device=str(model.device),
        dtype=dtype,
        revision=placement.get("revision"),
    )
    _require_runs(bridge, dtype)
    if info["missing_keys"]:  # of the head
        hf_config(bridge).architectures = [architecture.replace("ForMaskedLM", "Model")]
    return bridge


def _require_runs(model: TransformerBridge, dtype: torch.dtype) -> None:
    """Refuse a dtype that the model mixes with another (DeBERTa 1 in bfloat16, a gated T5 in float16)."""
    try:
        with torch.no_grad():
            model(torch.ones(1, 2, dtype=torch.long, device=model.cfg.device))
    except RuntimeError as error:
        name = str(dtype).removeprefix("torch.")
        raise Refused(
            f"a {type(model.original_model).__name__} does not run in {name} ({error}); load it with dtype='float32'"
        ) from error


def random_model(source: str, dtype: torch.dtype, device: torch.device | str) -> TransformerBridge:
    """A model like that in ``source``, with random weights; only its config and tokenizer are read."""
    from transformer_lens.tools.analysis.interchange import random_init_bridge
    from transformers import AutoConfig

    register_encoders()
    config = AutoConfig.from_pretrained(source)
    if config.model_type not in T5_ENCODERS:
        return random_init_bridge(source, seed=0, dtype=dtype, device=device)
    with torch.random.fork_rng(devices=[]):
        model: Any = T5EncoderToRead(T5_ENCODERS[config.model_type](config))
        model.to(device=device, dtype=dtype)
        return TransformerBridge.boot_transformers(source, hf_model=model, device=str(device), dtype=dtype)
