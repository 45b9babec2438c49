"""The Hugging Face model that a bridge wraps, as it was before: the reference that a bridge is compared with.

Booting puts a bridge's parts in place of the model's own. Here the modules are put together once more without them,
as new objects that share every weight and buffer with the bridge; nothing is copied but the modules' dictionaries,
and nobody's hooks are on them.
"""

from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformer_lens.model_bridge import TransformerBridge
from transformer_lens.model_bridge.generalized_components.base import GeneralizedComponent

_OF_EACH_MODULE = (
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
    "_backward_hooks",
    "_backward_pre_hooks",
)


@dataclass(frozen=True, eq=False)
class Untouched:
    """A model without a bridge's parts.

    Attributes:
        model: It runs as Hugging Face wrote it.
        parts: Its modules by the ``id`` of the module that the bridge runs in their place.
    """

    model: nn.Module
    parts: dict[int, nn.Module]

    def part(self, module: nn.Module) -> nn.Module | None:
        """What stands in the untouched model where ``module``, a part of the bridge, stands there."""
        return self.parts.get(id(inner(module)))


def untouched(model: TransformerBridge) -> Untouched:
    """The Hugging Face model inside ``model``, sharing its weights.

    Raises:
        ValueError: For a model whose parts are moved between devices while it runs, or in whose bridge weights were
            changed that it holds in a form of its own (queries, keys and values that are one matrix in the model).
    """
    if _differs_in_split_parts(model):
        raise ValueError("parts that the bridge holds split were changed since it was booted")
    parts: dict[int, nn.Module] = {}
    return Untouched(_without_bridge(model.original_model, parts), parts)


def _differs_in_split_parts(model: TransformerBridge) -> bool:
    """Whether queries, keys and values, or gates, are no longer what the model's one matrix of them holds."""
    for part in model.modules():
        for split, names in (("split_qkv_matrix", "qkv"), ("split_gate_up_matrix", ("gate", "in"))):
            held = [part._modules.get(name) for name in names]
            if callable(getattr(part, split, None)) and all(p is not None for p in held):
                with torch.no_grad(), torch.random.fork_rng(devices=[]):
                    fresh = getattr(part, split)(inner(part))
                if not all(_alike(inner(p), f) for p, f in zip(held, fresh, strict=True) if p is not None):
                    return True
    return False


def _alike(part: nn.Module, fresh: nn.Module) -> bool:
    return all(
        torch.equal(a.detach(), b.detach())
        for name in ("weight", "bias")
        if (a := getattr(part, name, None)) is not None and (b := getattr(fresh, name, None)) is not None
    )


def inner(module: nn.Module) -> nn.Module:
    """The module of Hugging Face's that a part of a bridge wraps; any other module is itself."""
    while isinstance(module, GeneralizedComponent):
        wrapped = module._modules.get("_original_component")
        if wrapped is None:
            return module
        module = wrapped
    return module


def _without_bridge(module: nn.Module, parts: dict[int, nn.Module]) -> nn.Module:
    module = inner(module)
    if id(module) in parts:
        return parts[id(module)]
    if "_hf_hook" in vars(module):
        raise ValueError("its parts are moved between devices while it runs")
    new = module.__class__.__new__(module.__class__)
    parts[id(module)] = new
    own: dict[str, Any] = dict(vars(module))
    own.pop("forward", None)  # one that was put on the object: the class's own runs
    for name in ("_parameters", "_buffers"):
        own[name] = own[name].copy()
    for name in _OF_EACH_MODULE:
        own[name] = OrderedDict()
    children = own["_modules"]
    own["_modules"] = type(children)()
    vars(new).update(own)
    for name, child in children.items():
        new._modules[name] = None if child is None else _without_bridge(child, parts)
    return new
