"""A copy of a model that has nothing in common with it.

``copy.deepcopy`` alone is not enough: functions are not copied, so a forward that was put on a module, or a hook that
holds one (TransformerLens does both), goes on using the original's; and a module that keeps an activation of its last
run can't be copied at all. Here functions are bound to the copy's parts, activations are copied without their graph,
and the result is looked at: no common part, no number of the original read while the copy runs, equal logits.
"""

import copy
import functools
import types
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformer_lens.hook_points import HookPoint
from transformer_lens.model_bridge import TransformerBridge

from tl_skillneurons.models.hooks import Hooks, hooked
from tl_skillneurons.models.records import model_label

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def copy_model(model: TransformerBridge) -> TransformerBridge:
    """A copy of ``model`` with its hooks; what is done to one is not done to the other.

    Raises:
        ValueError: When the copy would share something with the model, or answers otherwise.

    Example:
        >>> other = copy_model(model)
        >>> other.blocks[0].mlp.out.original_component.weight.data.zero_()  # model is as it was
    """
    memo: dict[Any, Any] = {}
    for part in _parts(model):
        for tensor in _tensors(vars(part)):
            if not tensor.is_leaf:
                memo[id(tensor)] = tensor.detach().clone()
    try:
        copied = copy.deepcopy(model, memo)
    except RuntimeError as error:
        raise ValueError(
            f"{model_label(model)} can't be copied ({error}); boot it anew and copy that"
        ) from error
    for part in _parts(copied):
        own = (part, *part.parameters(recurse=False), *part.buffers(recurse=False))
        memo.update((id(one), one) for one in own)  # what is a copy already stays
    for part in _parts(copied):
        _bind_functions(part, memo)
    _require_apart(model, copied)
    return copied


@torch.no_grad()
def require_does_the_same(
    changed: TransformerBridge, model: TransformerBridge, fwd_hooks: Hooks, told: str
) -> None:
    """Return if a copy whose weights were changed gives the logits of the model that runs with these hooks.

    Args:
        told: What to say of it: "gpt2 can't be pruned, the smaller one".

    Raises:
        ValueError: Where it doesn't run, or gives others.
    """
    ids = torch.arange(1, 7, device=model.cfg.device)[None] % model.W_E.shape[0]
    with hooked(model, fwd_hooks):
        expected = model(ids).double()
    try:
        found = changed(ids).double()
    except RuntimeError as error:
        raise ValueError(f"{told} doesn't run ({error}); hold neurons by ablate") from error
    exact = 1e-3 if model.W_E.dtype in (torch.float32, torch.float64) else 5e-2
    off = float((found - expected).abs().max() / expected.abs().max())
    if not off <= exact:
        raise ValueError(f"{told}'s logits are off by {off:.2g} of the largest; hold neurons by ablate")


def _parts(model: TransformerBridge) -> list[nn.Module]:
    return list({id(m): m for root in (model, model.original_model) for m in root.modules()}.values())


def _tensors(value: Any) -> Iterator[Tensor]:
    """The tensors in nested containers."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        for inner in value.values():
            yield from _tensors(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _tensors(inner)


def _bind_functions(part: nn.Module, memo: dict[Any, Any]) -> None:
    """Let the functions that stand on a module of the copy use the copy's parts."""
    own = vars(part)
    for name, value in own.items():
        if isinstance(value, types.FunctionType | types.MethodType | functools.partial):
            own[name] = _bound(value, memo)
    for kind in _HOOKS:
        hooks = own[kind]
        for key, hook in hooks.items():
            hooks[key] = _bound(hook, memo)
    if isinstance(part, HookPoint):
        for handle in (*part.fwd_hooks, *part.bwd_hooks):
            handle.user_hook = _bound(handle.user_hook, memo)


def _bound(value: Any, memo: dict[Any, Any]) -> Any:
    """The same function for the copy: with the copies of the modules and tensors that it holds."""
    if id(value) in memo and not isinstance(value, types.FunctionType):
        return memo[id(value)]
    if isinstance(value, Tensor) and not value.is_leaf:
        return value.detach().clone()
    if isinstance(value, nn.Module | Tensor):
        return copy.deepcopy(value, memo)
    if isinstance(value, functools.partial):
        arguments = [_bound(one, memo) for one in value.args]
        named = {name: _bound(one, memo) for name, one in value.keywords.items()}
        return functools.partial(_bound(value.func, memo), *arguments, **named)
    if isinstance(value, types.MethodType):
        return types.MethodType(_bound(value.__func__, memo), _bound(value.__self__, memo))
    if not isinstance(value, types.FunctionType) or not (value.__closure__ or value.__defaults__):
        return value
    known = ("function", id(value))
    if known in memo:
        return memo[known]
    cells = tuple(types.CellType() for _ in value.__closure__ or ())
    new = types.FunctionType(value.__code__, value.__globals__, value.__name__, None, cells or None)
    memo[known] = new  # first, since it may hold itself
    for cell, old in zip(cells, value.__closure__ or (), strict=True):
        try:
            cell.cell_contents = _bound(old.cell_contents, memo)
        except ValueError:  # still empty
            continue
    new.__defaults__ = value.__defaults__ and tuple(_bound(one, memo) for one in value.__defaults__)
    new.__kwdefaults__ = value.__kwdefaults__
    new.__dict__.update(value.__dict__)
    new.__module__, new.__qualname__ = value.__module__, value.__qualname__
    return new


class _Reads(TorchDispatchMode):
    """Notes the memory of every tensor that an operation reads."""

    def __init__(self) -> None:
        super().__init__()
        self.places: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.places |= {_place(one) for one in tree_leaves((args, kwargs)) if isinstance(one, Tensor)}
        return func(*args, **(kwargs or {}))


def _place(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def _require_apart(model: TransformerBridge, copied: TransformerBridge) -> None:
    """Refuse a copy that has a part of the model, reads its numbers, runs its modules, or answers otherwise."""
    own = {id(part) for part in _parts(model)}
    names = {_place(t): name for name, t in model.original_model.state_dict().items() if t.numel()}
    ran: list[nn.Module] = []
    ids = torch.arange(1, 5, device=model.cfg.device)[None] % model.W_E.shape[0]
    watch = nn.modules.module.register_module_forward_hook(lambda part, args, out: ran.append(part))
    with torch.no_grad():
        try:
            with _Reads() as reads:
                found = copied(ids)
        finally:
            watch.remove()
        expected = model(ids)
    shared = sorted(names[place] for place in reads.places & names.keys())
    shared += [type(part).__name__ for part in (*_parts(copied), *ran) if id(part) in own]
    if shared:
        more = f" and {len(shared) - 1} more" if len(shared) > 1 else ""
        raise ValueError(
            f"a copy of {model_label(model)} would share {shared[0]}{more} with it, so that changing one changed the "
            "other; boot the model a second time and change that one"
        )
    if not torch.allclose(
        found, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()), equal_nan=True
    ):
        raise ValueError(
            f"a copy of {model_label(model)} gives other logits, by up to {float((found - expected).abs().max()):.2g}; "
            "boot the model a second time and change that one"
        )
