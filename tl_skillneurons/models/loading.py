"""Boot a language model for this package, frozen and in eval mode: packaged, from a local folder or the hub."""

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from safetensors import SafetensorError
from transformer_lens.model_bridge import TransformerBridge

from tl_skillneurons._checks import listed, near, require_option
from tl_skillneurons._terminal import shown
from tl_skillneurons._widths import left_out_said
from tl_skillneurons.models._refused import Refused
from tl_skillneurons.models.encoder_loading import boot_encoder, is_encoder
from tl_skillneurons.models.layers import layers_left_out, neuron_widths
from tl_skillneurons.models.packaged import PACKAGED, packaged_model, quiet
from tl_skillneurons.models.sites import (
    config_refusal,
    has_language_model_head,
    hf_config,
    mend_head_shapes,
    require_supported,
)
from tl_skillneurons.models.special_tokens import fresh_tokenizer, keep_special_tokens
from tl_skillneurons.models.t5_encoder import ARCHITECTURE, T5_ENCODERS
from tl_skillneurons.models.verification import is_switched_off, verify

_DEVICE_MAPS = ("auto", "balanced", "balanced_low_0", "sequential")
_DTYPES = ("float32", "bfloat16", "float16", "float64")
_LANGUAGE_MODELS = ("ForCausalLM", "LMHeadModel", "LMHeadCustomModel", "ForConditionalGeneration", "ModelLM")
_WEIGHTS = ("*.safetensors", "*.bin", "*.safetensors.index.json")
_TOKENIZERS = ("tokenizer.json", "tokenizer_config.json", "vocab.txt", "vocab.json", "*.model", "*.tiktoken")
_UNREACHABLE = {"LocalEntryNotFoundError", "ConnectionError", "ConnectError", "TimeoutException"}
_LOCAL_FORMS = (
    "give a local folder with config.json, the weights (model.safetensors) and the tokenizer's files, or "
    f"{' or '.join(map(repr, PACKAGED))}, which come from the package registry"
)


def load_model(
    name_or_path: str | os.PathLike[str],
    *,
    revision: str | None = None,
    device: str | torch.device | None = None,
    device_map: str | dict[str, Any] | None = None,
    dtype: torch.dtype | str = torch.float32,
    verbose: bool = True,
) -> TransformerBridge:
    """A booted ``TransformerBridge``, every parameter frozen, in eval mode, checked against the model inside it
    (:func:`~tl_skillneurons.models.verify`).

    Causal language models go through ``TransformerBridge.boot_transformers`` as they are, masked language models (BERT,
    RoBERTa and their kin, :mod:`~tl_skillneurons.models.encoder_adapters`) as well. An encoder's checkpoint without a
    language-model head is booted as a masked language model whose head is random (the same in every run) and never
    read: ``config.architectures`` then names the bare encoder, which
    :func:`~tl_skillneurons.models.sites.has_language_model_head` looks at. Of a T5 the encoder alone is loaded
    (:mod:`~tl_skillneurons.models.t5_encoder`).

    Args:
        name_or_path: ``"smollm2"`` or ``"minilm"`` (packaged, taken before any folder or hub model of that
            name), a local folder, or a name on the hub.
        revision: A branch, tag or commit of a hub model, such as the training checkpoint ``"step1000"`` of a Pythia
            model; the model is then called ``name@revision``.
        device: Where to put the model; by default the GPU if CUDA is there, else the CPU. Where a launcher
            (``torchrun``, ``accelerate launch``) sets ``LOCAL_RANK``, each process gets the GPU of that number.
        device_map: In place of ``device``, for a model over several GPUs: ``"auto"``, ``"balanced"`` and the
            like, or module names to devices, as ``from_pretrained`` takes it. Weights stay in memory: nothing
            goes to disk.
        dtype: ``torch.float32``, ``"bfloat16"`` and the like.
        verbose: Say on stderr, in one line, what was loaded.

    Raises:
        ValueError: When the model is of a kind that can't be used, with the reason; when it is not on the
            hub, or its files are corrupt; for an unknown device or dtype; for a revision of a model that is not on
            the hub; for ``device`` and ``device_map``
            together, or a ``device_map`` that can't be followed.
        FileNotFoundError: When a local folder, or something in it, is missing.
        PermissionError: When the hub does not give the model to this user.
        ConnectionError: When the hub can't be reached, or a packaged model's registry.

    Example:
        >>> model = skn.load_model("smollm2")
        >>> model.cfg.n_layers, model.cfg.d_mlp
        (30, 1536)
    """
    dtype, placement = _as_dtype(dtype), _as_placement(device, device_map)
    name, source, local = _find(name_or_path, verbose=verbose)
    if revision is not None:
        if local:
            raise ValueError(f"only models on the hub have revisions, {name} is here; leave revision out")
        placement["revision"] = revision
    console = Console(file=sys.stderr, quiet=not verbose)
    with _load_errors(name, source, local), quiet(hub_bars=verbose), _seeded(placement):
        with contextlib.nullcontext() if local else console.status(shown(f"asking the hub for {name}")):
            config = read_config(name, source, revision)  # takes half a minute when there is no network
        boot = boot_encoder if is_encoder(config) else _boot
        model = boot(source, placement, dtype)
        _require_in_memory(name, model)
        own = fresh_tokenizer(model, revision)
        keep_special_tokens(model, own)
    model.cfg.model_name = name if revision is None else f"{name}@{revision}"
    model.requires_grad_(False)
    model.eval()
    require_supported(model)
    mend_head_shapes(model)
    described = _describe(model.cfg.model_name, model, dtype)
    without = layers_left_out(model)
    described += f"\n  left out: {left_out_said(without)}" if without else ""
    if not is_switched_off():
        described += "".join(f"\n  {c.name} {c.told}" for c in verify(model, own).surprises)
    console.print(shown(described), soft_wrap=True)
    return model


def stated_config(name_or_path: str | os.PathLike[str], *, revision: str | None = None) -> Any:
    """The Hugging Face config of a model that :func:`load_model` would load; no weights are read.

    Raises:
        ValueError, FileNotFoundError, PermissionError, ConnectionError: As :func:`load_model` does.
    """
    name, source, local = _find(name_or_path, verbose=False)
    with _load_errors(name, source, local), quiet():
        return read_config(name, source, revision)


def _as_dtype(dtype: torch.dtype | str) -> torch.dtype:
    text = dtype.removeprefix("torch.") if isinstance(dtype, str) else str(dtype).removeprefix("torch.")
    return getattr(torch, require_option(text, "dtype", _DTYPES))


def _as_placement(
    device: str | torch.device | None, device_map: str | dict[str, Any] | None
) -> dict[str, Any]:
    """The keyword argument that says where the weights go: ``device`` or ``device_map``."""
    if device_map is None:
        return {"device": str(_default_device() if device is None else _as_device(device))}
    if device is not None:
        raise ValueError(
            f"give device or device_map, not both, got device={str(device)!r} and device_map={device_map!r}"
        )
    if isinstance(device_map, str):
        return {"device_map": require_option(device_map, "device_map", _DEVICE_MAPS)}
    kinds = {_as_device(target).type for target in device_map.values()}
    if len(kinds) != 1:
        raise ValueError(
            f"device_map must name devices of one kind, got {listed(sorted(kinds))}; "
            "use GPUs alone, or the CPU alone"
        )
    return {"device_map": device_map}


def _default_device() -> torch.device:
    """The GPU if CUDA is there, that of this process where a launcher started several; else the CPU."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    rank = os.environ.get("LOCAL_RANK")
    if rank is None:
        return torch.device("cuda")
    n_devices = torch.cuda.device_count()
    if not rank.isdecimal() or int(rank) >= n_devices:
        raise ValueError(
            f"LOCAL_RANK must be in [0, {n_devices}), the CUDA devices this process sees, got {rank!r}; start "
            "one process per GPU, or choose with device=..."
        )
    return torch.device("cuda", int(rank))


def _as_device(device: str | int | torch.device) -> torch.device:
    try:
        chosen = torch.device("cuda", device) if isinstance(device, int) else torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise ValueError(
            f"device must be 'cpu', 'cuda', 'cuda:1', 'mps' or the like, got {device!r}"
        ) from error
    if chosen.type == "meta":
        raise ValueError(f"device {device!r} holds no weights; use 'cpu'")
    if chosen.type == "cuda" and (chosen.index or 0) >= torch.cuda.device_count():
        raise ValueError(
            f"device {device!r} is not there: {torch.cuda.device_count()} CUDA devices; use 'cpu'"
        )
    if chosen.type == "mps" and not torch.backends.mps.is_available():
        raise ValueError(f"device {device!r} is not there: PyTorch finds no MPS here; use 'cpu'")
    return chosen


@contextlib.contextmanager
def _seeded(placement: dict[str, Any]) -> Iterator[None]:
    """Random numbers start from seed 0 in here, so that a head that is missing comes out the same every time.

    Those of the CPU and of the GPUs that the weights go to; all are as before afterwards.
    """
    targets = placement.get("device_map") or {"": placement["device"]}
    if isinstance(targets, str):
        gpus = [torch.device("cuda", index) for index in range(torch.cuda.device_count())]
    else:
        gpus = [target for target in map(_as_device, targets.values()) if target.type == "cuda"]
    with torch.random.fork_rng(devices=gpus):
        torch.default_generator.manual_seed(0)
        for gpu in gpus:
            with torch.cuda.device(gpu):
                torch.cuda.manual_seed(0)
        yield


def _find(name_or_path: str | os.PathLike[str], *, verbose: bool) -> tuple[str, str, bool]:
    """What to call the model, where it is, and whether that is here rather than on the hub."""
    name = os.fspath(name_or_path)
    if name in PACKAGED:
        return name, str(packaged_model(name, verbose=verbose)), True
    folder = Path(name).expanduser()
    if folder.is_dir():
        _require_complete(folder)
        return str(folder), str(folder), True
    if folder.exists():
        raise ValueError(f"{folder} is a file; {_LOCAL_FORMS}")
    if (
        isinstance(name_or_path, Path)
        or name.startswith((".", "~", os.sep))
        or name.count("/") > 1
        or "\\" in name
    ):
        raise FileNotFoundError(f"there is no folder {folder}; {_LOCAL_FORMS}")
    return name, name, False


def _require_complete(folder: Path) -> None:
    if not (folder / "config.json").is_file():
        adapter = (folder / "adapter_config.json").is_file()
        peft = "it is a PEFT adapter, load its base model here and the prompt with SoftPrompt.from_peft"
        raise FileNotFoundError(f"{folder} has no config.json; {peft if adapter else _LOCAL_FORMS}")
    for what, patterns in (("weights", _WEIGHTS), ("tokenizer files", _TOKENIZERS)):
        if not any(next(folder.glob(pattern), None) for pattern in patterns):
            raise FileNotFoundError(f"{folder} has no {what} ({', '.join(patterns)}); {_LOCAL_FORMS}")


def read_config(name: str, source: str, revision: str | None = None) -> Any:
    """The model's config, once it says nothing against the model; no weights are read for this."""
    from transformer_lens.model_bridge.sources.transformers import determine_architecture_from_hf_config
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(source, revision=revision, trust_remote_code=False)
    except ValueError as error:
        if "custom code" not in str(error) and "trust_remote_code" not in str(error):
            raise
        raise Refused(
            f"can't load {name}: it comes with code of its own, which is not run from here; read that code, load the "
            "model by transformers with trust_remote_code=True, and boot it by boot_transformers(name, hf_model=model)"
        ) from error
    if config.model_type in T5_ENCODERS:
        config.is_encoder_decoder, config.architectures = False, [ARCHITECTURE]  # its encoder alone is loaded
    reason = config_refusal(config)
    if reason is not None:
        raise Refused(f"can't find neurons in {name} ({_class_name(config)}): {reason}")
    if is_encoder(config):
        return config
    try:
        determine_architecture_from_hf_config(config)
    except ValueError as error:
        raise Refused(
            f"can't load {name}: TransformerLens has no adapter for {_class_name(config)} "
            f"(model type {config.model_type!r}); use a causal language model or a BERT-like encoder, or register "
            "an adapter with ArchitectureAdapterFactory.register_adapter and boot it yourself"
        ) from error
    tied = getattr(config, "tie_word_embeddings", True)
    if not tied and not _class_name(config).endswith(_LANGUAGE_MODELS) and config.architectures:
        raise Refused(
            f"can't load {name}: {_class_name(config)} comes without the output embedding of a language "
            "model, which would be random; use the checkpoint with its language-model head"
        )
    return config


def _class_name(config: Any) -> str:
    return (config.architectures or [type(config).__name__])[0]


def _boot(source: str, placement: dict[str, Any], dtype: torch.dtype) -> TransformerBridge:
    return TransformerBridge.boot_transformers(source, dtype=dtype, **placement)


def _require_in_memory(name: str, model: TransformerBridge) -> None:
    if any(parameter.is_meta for parameter in model.original_model.parameters()):
        raise Refused(
            f"{name} does not fit: device_map puts part of it on disk, where its weights can't be read; use "
            "more devices, a smaller dtype such as 'bfloat16', or device='cpu'"
        )


@contextlib.contextmanager
def _load_errors(name: str, source: str, local: bool) -> Iterator[None]:
    """Turn the many errors of loading into one that says which of the causes it was."""
    try:
        yield
    except Refused as error:
        raise ValueError(str(error)) from error.__cause__
    except (RuntimeError, AttributeError, AssertionError, TypeError, IndexError) as error:
        first = str(error).strip().partition("\n")[0] or type(error).__name__
        raise ValueError(
            f"TransformerLens can't boot {name}: {first}; use another model of its family"
        ) from error
    except (OSError, SafetensorError, ValueError, KeyError) as error:
        raise _explain(error, name, source, local) from error


def _explain(error: Exception, name: str, source: str, local: bool) -> Exception:
    first = str(error).strip().partition("\n")[0] or type(error).__name__
    if "device_map" in first:
        return ValueError(f"can't spread {name} over several devices: {first}")
    if local:
        return ValueError(f"can't load the model in {source}, a file is corrupt or of another kind: {first}")
    causes = {kind.__name__ for link in _chain(error) for kind in type(link).__mro__}
    hint = near(name, PACKAGED)
    meant = f"; {hint}" if hint.startswith("did you mean") else ""
    if causes & {"GatedRepoError"}:
        return PermissionError(f"{name} is gated: accept its terms on the hub and log in (hf auth login)")
    if causes & _UNREACHABLE:
        return ConnectionError(
            f"{name!r} is no local folder, and the Hugging Face hub can't be reached or is switched off; "
            f"{_LOCAL_FORMS}{meant}"
        )
    if causes & {"RepositoryNotFoundError", "HFValidationError", "RevisionNotFoundError"}:
        return ValueError(
            f"{name!r} is neither a local folder nor a model on the hub{meant or f'; {_LOCAL_FORMS}'}"
        )
    return ValueError(f"can't load {name} from the hub: {first}{meant}")


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _describe(name: str, model: TransformerBridge, dtype: torch.dtype) -> str:
    widths = neuron_widths(model)
    some = sorted({width for width in widths if width})
    width = str(some[0]) if len(some) == 1 else f"{some[0]} to {some[-1]}"
    n_devices = getattr(model.cfg, "n_devices", 1)
    where = model.cfg.device if n_devices == 1 else f"{n_devices} devices"
    without = layers_left_out(model)
    n_with = len(widths) - len(without)
    layers = f"{n_with} of {len(widths)} layers" if without else f"{len(widths)} layers"
    shape = f"{layers} x {width} neurons, {str(dtype).removeprefix('torch.')} on {where}"
    if has_language_model_head(model):
        return f"{name}: {type(model.original_model).__name__}, {shape}, language-model head"
    bare = hf_config(model).architectures[0]
    head = "bare encoder; the masked-LM head it is booted with is random and never read"
    if bare == ARCHITECTURE:
        head = "T5's encoder alone, which has no language-model head"
    return f"{name}: {bare}, {shape} ({head})"
