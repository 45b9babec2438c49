"""A set of neurons as a JSON file that a person can read: each layer's neurons in order, and all as they are ranked.

The score that chose them stands last, every neuron's, deflated and in base64: by it the third control is drawn.
"""

import base64
import binascii
import math
import os
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from tl_skillneurons._files import FORMAT, package_version, read_json, sound, write_json_lines
from tl_skillneurons.neurons.choice import Choice

KIND = "NeuronSet"


def write_set(
    path: str | os.PathLike[str],
    pairs: Iterable[tuple[int, int]],
    *,
    site: str,
    shape: Mapping[str, Any],
    choice: Choice | None,
) -> Path:
    """Write it, whole or not at all; returns its path.

    Args:
        shape: ``n_layers``, ``d_mlp`` and ``model``, where they are known.
    """
    ranked = list(pairs)
    layers: dict[str, list[int]] = {}
    for layer, index in sorted(ranked):
        layers.setdefault(str(layer), []).append(index)
    header = {"kind": KIND, "format": FORMAT, "package_version": package_version(), "model": shape["model"]}
    header |= {"site": site, "n_layers": shape["n_layers"], "d_mlp": shape["d_mlp"]}
    header |= {"n_neurons": len(ranked), "choice": None if choice is None else choice.record}
    score = {} if choice is None or choice.score is None else {"score": score_record(choice.score)}
    return write_json_lines(path, {**header, "layers": layers, "ranked": ranked, **score})


def read_set(path: str | os.PathLike[str], site: str) -> tuple[list[tuple[int, int]], dict[str, Any]]:
    """The pairs that :func:`write_set` wrote, as ranked, and whatever else a set knows.

    Raises:
        FileNotFoundError: When there is no such file.
        ValueError: When the file is corrupt, holds something else, or contradicts itself.
    """
    content = read_json(path, KIND)
    if content.get("site") != site:
        raise ValueError(
            f"{path} names neurons at {content.get('site')!r}; only those at {site!r} can be read"
        )
    with sound(path, KIND):
        known = {name: content[name] for name in ("n_layers", "d_mlp", "model")}  # d_mlp may be a list
        known["choice"] = Choice.recorded(content.get("choice"))
        if (score := content.get("score")) is not None:
            known["choice"] = replace(known["choice"], score=score_recorded(score))
            of_score, of_set = list(known["choice"].score.shape), [known["n_layers"], known["d_mlp"]]
            of_set[1] = (
                max(of_set[1]) if isinstance(of_set[1], list) else of_set[1]
            )  # each layer's own number
            if any(size not in (None, own) for size, own in zip(of_set, of_score, strict=True)):
                raise ValueError(f"its score is of {of_score}, its neurons of {of_set} [layer, neuron]")
        pairs = [(layer, index) for layer, index in content["ranked"]]
        listed = {(int(layer), index) for layer, indices in content["layers"].items() for index in indices}
    if len(set(pairs)) == len(pairs) and listed != set(pairs):  # one named twice is refused by the set
        raise ValueError(
            f"{path} contradicts itself: 'layers' and 'ranked' must name the same neurons, and "
            f"{min(listed ^ set(pairs), key=str)} is in only one of them"
        )
    return pairs, known


def score_record(score: Float[Tensor, "layer neuron"]) -> dict[str, Any]:
    """A score of every neuron as plain JSON values, to the bit."""
    plain = score.detach().double().cpu().contiguous()
    content = base64.b64encode(zlib.compress(plain.numpy().astype("<f8").tobytes())).decode()
    return {"shape": list(plain.shape), "encoding": "float64, deflated, base64", "content": content}


def score_recorded(record: Mapping[str, Any]) -> Float[Tensor, "layer neuron"]:
    """What :func:`score_record` told, in float64.

    Raises:
        ValueError: For content of another size, or that can't be read.
    """
    shape = [int(size) for size in record["shape"]]
    n_bytes = 8 * math.prod(shape)
    try:
        unpack = zlib.decompressobj()
        content = unpack.decompress(base64.b64decode(record["content"], validate=True), n_bytes + 1)
    except (binascii.Error, zlib.error) as error:
        raise ValueError(f"its score can't be read ({error})") from error
    if len(shape) != 2 or len(content) != n_bytes:
        raise ValueError(f"its score must be [layer, neuron] numbers, got {shape} in {len(content)} bytes")
    numbers = torch.frombuffer(bytearray(content), dtype=torch.uint8).numpy().view("<f8").astype("f8")
    return torch.from_numpy(numbers).reshape(shape)
