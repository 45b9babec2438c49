"""Pruned models to and from files: our own for any widths, a Hugging Face folder where its format can hold them."""

import contextlib
import io
import os
import tempfile
from pathlib import Path

import torch
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from tl_skillneurons._files import load_tensors, save_tensors, sound
from tl_skillneurons.models.encoder_loading import random_model
from tl_skillneurons.models.layers import neuron_widths
from tl_skillneurons.models.packaged import PACKAGED, packaged_model
from tl_skillneurons.models.pruning import prune, widths
from tl_skillneurons.models.sites import SITE, hf_config
from tl_skillneurons.models.weights import unlisted_weights
from tl_skillneurons.neurons.neuron_set import NeuronSet

KIND = "PrunedModel"
_REST = "original_model."
"""How the names of weights begin that a bridge's state dict leaves out."""


def save_pruned(model: TransformerBridge, path: str | os.PathLike[str]) -> Path:
    """Write a pruned model's weights to one safetensors file whose header has each layer's width.

    The tokenizer and the configuration stay with the base model, which :func:`load_pruned` asks for.

    Example:
        >>> path = skn.models.save_pruned(small, "pruned.safetensors")
    """
    rest = {f"{_REST}{name}": tensor.detach() for name, tensor in unlisted_weights(model).items()}
    tensors, aliases = _each_once({**model.state_dict(), **rest})
    header = {
        "model": model.cfg.model_name,
        "site": SITE,
        "widths": widths(model),
        "d_mlp": model.cfg.d_mlp,  # of the base model
        "dtype": str(model.W_E.dtype).removeprefix("torch."),
        "aliases": aliases,
    }
    return save_tensors(path, KIND, tensors, header)


def load_pruned(
    path: str | os.PathLike[str], base: str | os.PathLike[str], *, device: torch.device | str = "cpu"
) -> TransformerBridge:
    """The pruned ``TransformerBridge`` that :func:`save_pruned` wrote, frozen and in eval mode.

    Args:
        base: The model it was pruned from: a packaged name, a folder or a hub name. Its configuration and tokenizer
            are read, its weights aren't.

    Raises:
        FileNotFoundError: When there is no such file.
        ValueError: When the file holds something else, or ``base`` is a model of another shape.

    Example:
        >>> small = skn.models.load_pruned("pruned.safetensors", "smollm2")
    """
    tensors, header = load_tensors(path, KIND)
    source = str(packaged_model(os.fspath(base))) if os.fspath(base) in PACKAGED else os.fspath(base)
    with sound(path, KIND):
        dtype = getattr(torch, header["dtype"])
        sizes, d_mlp, aliases = header["widths"], header["d_mlp"], header["aliases"]
    with contextlib.redirect_stdout(io.StringIO()):  # TransformerLens says which device it moves to
        skeleton = random_model(source, dtype, device)
    whole_sizes = neuron_widths(skeleton)
    shape = (len(whole_sizes), max(whole_sizes))
    if shape != (len(sizes), d_mlp):
        raise ValueError(
            f"{path} was pruned from a model with [layer, neuron] = {[len(sizes), d_mlp]}, {base} has {list(shape)}; "
            f"give the model it was pruned from ({header['model']})"
        )
    cut = [layer for layer, size in enumerate(sizes) if size < whole_sizes[layer]]
    layers = [layer for layer in cut for _ in range(sizes[layer])]
    keep = NeuronSet(layers, [index for layer in cut for index in range(sizes[layer])])
    model = prune(skeleton, keep, torch.zeros(shape), layers=cut) if cut else skeleton
    whole = {**tensors, **{alias: tensors[name] for alias, name in aliases.items()}}
    rest = {name.removeprefix(_REST): whole.pop(name) for name in list(whole) if name.startswith(_REST)}
    with sound(path, KIND):
        try:
            model.load_state_dict(whole, strict=True)
            _put(unlisted_weights(model), rest)
        except RuntimeError as error:
            raise ValueError(f"its weights don't fit {base}: {error}") from error
    model.requires_grad_(False)
    model.cfg.model_name = header["model"]
    return model.eval()


def _put(places: dict[str, Tensor], given: dict[str, Tensor]) -> None:
    """Copy what stands beside a state dict into a model."""
    if places.keys() != given.keys():
        raise RuntimeError(f"one of them has no {sorted(places.keys() ^ given.keys())[0]}")
    with torch.no_grad():
        for name, place in places.items():
            if place.shape != given[name].shape:
                raise RuntimeError(f"{name} is {list(given[name].shape)}, it must be {list(place.shape)}")
            place.copy_(given[name])


def export_pruned(model: TransformerBridge, folder: str | os.PathLike[str]) -> Path:
    """Write a pruned model as a Hugging Face folder that ``from_pretrained`` reads, whole or not at all.

    Possible where every layer has the same width and the architecture has biases in its MLP (its configuration then
    holds both): gpt2, bert, roberta and their kin, opt, gpt_neox, phi, gpt_neo, and llama through ``mlp_bias``.

    Raises:
        ValueError: Where the format can't hold it; the message says why.
        FileExistsError: When there is something in ``folder`` already.

    Example:
        >>> folder = skn.models.export_pruned(small, "pruned-gpt2")
        >>> transformers.AutoModelForCausalLM.from_pretrained(folder)
    """
    if Path(folder).exists() and (not Path(folder).is_dir() or any(Path(folder).iterdir())):
        raise FileExistsError(f"{folder} is there already and not empty; choose another folder")
    sizes = sorted(set(widths(model)))
    if len(sizes) > 1:
        raise ValueError(
            f"a Hugging Face config has one width for all layers, this model has {sizes}; prune every layer to "
            "the same number of neurons, or use save_pruned"
        )
    config = hf_config(model)
    named = next(
        (name for name in ("intermediate_size", "ffn_dim", "n_inner", "hidden_dim") if hasattr(config, name)),
        None,
    )
    kind = config.model_type
    if kind not in _EXPORTABLE or named is None:
        raise ValueError(
            f"the Hugging Face format of {kind} has no place for an output bias in the MLP, or none for its width; "
            f"it can hold {', '.join(_EXPORTABLE)}; use save_pruned"
        )
    copied = type(config).from_dict({**config.to_dict(), named: sizes[0]})
    state = model.original_model.state_dict()
    state = {name.replace("._original_component", ""): value for name, value in state.items()}
    if kind == "llama":
        copied.mlp_bias = True
        state |= _zero_biases(state)
    with torch.random.fork_rng(devices=[]):  # weights that are drawn, only to be replaced
        kind_of: Any = type(model.original_model)
        written = kind_of(copied).to(model.W_E.dtype)
    # The bridge knows its parts by further names as well, so only what is missing counts.
    missing, _ = written.load_state_dict(state, strict=False)
    if missing:
        raise ValueError(f"{kind} can't be exported: no weights for {sorted(missing)[:3]}; use save_pruned")
    folder = Path(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as temporary:
        whole = Path(temporary) / "model"
        written.save_pretrained(whole)
        if model.tokenizer is not None:
            model.tokenizer.save_pretrained(whole)
        whole.rename(folder)
    return folder


_EXPORTABLE = (
    "gpt2",
    "bert",
    "roberta",
    "xlm-roberta",
    "camembert",
    "distilbert",
    "electra",
    "mpnet",
    "deberta",
    "deberta-v2",
    "opt",
    "gpt_neox",
    "phi",
    "gpt_neo",
    "llama",
)


def _zero_biases(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Biases of 0 for llama's gate and up projections, which its config can only have together with the output's."""
    found = {}
    for name, weight in state.items():
        for part in ("gate_proj", "up_proj"):
            if name.endswith(f"{part}.weight"):
                found[name.removesuffix("weight") + "bias"] = weight.new_zeros(len(weight))
    return found


def _each_once(state: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors, tied ones once, and for each further name the one it is tied to."""
    first: dict[tuple[int, torch.Size], str] = {}
    kept, aliases = {}, {}
    for name, tensor in state.items():
        place = (tensor.data_ptr(), tensor.shape)
        if tensor.numel() and place in first:
            aliases[name] = first[place]
        else:
            first[place] = name
            kept[name] = tensor
    return kept, aliases
