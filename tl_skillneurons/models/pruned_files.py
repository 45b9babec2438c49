"""Pruned models to and from files of our own, for any widths; a Hugging Face folder is written by :func:`export_model`
(:mod:`~tl_skillneurons.models.exporting`)."""

import contextlib
import io
import os
from pathlib import Path

import torch
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from tl_skillneurons._files import load_tensors, save_tensors, sound
from tl_skillneurons.models.encoder_loading import random_model
from tl_skillneurons.models.layers import neuron_widths
from tl_skillneurons.models.packaged import PACKAGED, packaged_model
from tl_skillneurons.models.pruning import prune, widths
from tl_skillneurons.models.sites import SITE
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
