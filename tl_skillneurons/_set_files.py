"""A set of neurons as a JSON file that a person can read: each layer's neurons in order, and all as they are ranked."""

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from tl_skillneurons._choice import Choice
from tl_skillneurons._files import FORMAT, package_version, read_json, sound, write_json_lines

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
    return write_json_lines(path, {**header, "layers": layers, "ranked": ranked})


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
        known = {name: content[name] for name in ("n_layers", "d_mlp", "model")}
        known["choice"] = Choice.recorded(content.get("choice"))
        pairs = [(layer, index) for layer, index in content["ranked"]]
        listed = {(int(layer), index) for layer, indices in content["layers"].items() for index in indices}
    if len(set(pairs)) == len(pairs) and listed != set(pairs):  # one named twice is refused by the set
        raise ValueError(
            f"{path} contradicts itself: 'layers' and 'ranked' must name the same neurons, and "
            f"{min(listed ^ set(pairs), key=str)} is in only one of them"
        )
    return pairs, known
