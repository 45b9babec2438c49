"""Hooks put on a model and taken off it again, and those that somebody else has put there.

A model is borrowed: what is put on here is taken off here, also after an exception, and nothing else is touched.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from torch import nn
from transformer_lens.hook_points import HookPoint
from transformer_lens.model_bridge import TransformerBridge

from tl_skillneurons.models.locks import held

Hook = tuple[str, Callable[..., Any]]
"""A hook point's name and the function to run there, as ``model.run_with_hooks(fwd_hooks=[...])`` takes them."""

Hooks = Sequence[Hook]
"""Several of them."""

_HOSTS = ("transformer_lens.", "transformers.")
"""Whose hooks belong to the model: what they do is part of what it is."""
_TORCH_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


@contextmanager
def hooked(
    model: TransformerBridge, fwd_hooks: Hooks, points: Mapping[str, HookPoint] | None = None
) -> Iterator[None]:
    """The hooks stand on the model in here, in the order given, and are gone afterwards.

    Args:
        points: ``model.hook_dict``, where the caller has it already (it is made anew at each look).
    """
    points = model.hook_dict if points is None else points
    placed = []
    with held(model):
        try:
            for name, function in fwd_hooks:
                model.check_hooks_to_add(points[name], name, function)
                placed.append((points[name], points[name].add_hook(function)))
            yield
        finally:
            for point, handle in placed:
                remove_hook(point, handle)


@contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """No parameter of ``model`` asks for a gradient in here; each asks again as before afterwards, also after
    an error."""
    with held(model):
        flags = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
        for parameter, _ in flags:
            parameter.requires_grad_(False)
        try:
            yield
        finally:
            for parameter, flag in flags:
                parameter.requires_grad_(flag)


@contextmanager
def without_foreign_hooks(model: TransformerBridge) -> Iterator[None]:
    """In here only TransformerLens' and Hugging Face's own hooks run; the others are back afterwards."""
    handles = [h for point in _hook_points(model) for h in (*point.fwd_hooks, *point.bwd_hooks)]
    foreign = {h.hook.id for h in handles if not is_of_the_host(h.user_hook)}
    set_aside: list[tuple[Any, dict[int, Any]]] = []
    try:
        for part in _parts(model):
            for kind in _TORCH_HOOKS:
                hooks = getattr(part, kind)
                own = {k: f for k, f in hooks.items() if k not in foreign and is_of_the_host(f)}
                if len(own) < len(hooks):
                    set_aside.append((hooks, dict(hooks)))
                    hooks.clear()
                    hooks.update(own)
        yield
    finally:
        for hooks, before in set_aside:
            hooks.clear()
            hooks.update(before)


def _hook_points(model: TransformerBridge) -> list[HookPoint]:
    return [part for part in _parts(model) if isinstance(part, HookPoint)]


def _parts(model: TransformerBridge) -> list[nn.Module]:
    return list(
        {id(part): part for root in (model, model.original_model) for part in root.modules()}.values()
    )


def remove_hook(point: HookPoint, handle: Any) -> None:
    """Take one hook that ``point.add_hook`` gave ``handle`` for away again, and no other."""
    handle.hook.remove()
    point.fwd_hooks[:] = [other for other in point.fwd_hooks if other is not handle]


def has_foreign_hooks(model: TransformerBridge, points: Mapping[str, HookPoint] | None = None) -> bool:
    """Whether anybody but TransformerLens and Hugging Face themselves has put a hook on the model, of whatever kind.

    Seen are TransformerLens' hooks on hook points and plain torch hooks on any module (other tools' included).

    Args:
        points: ``model.hook_dict``, where the caller has it already.
    """
    points = model.hook_dict if points is None else points
    handles = [h for point in points.values() for h in (*point.fwd_hooks, *point.bwd_hooks)]
    if not all(is_of_the_host(handle.user_hook) for handle in handles):
        return True
    # a hook point's own hooks are wrapped by TransformerLens, and were looked at above
    return not all(is_of_the_host(hook) for part in _parts(model) for hook in torch_hooks(part))


def torch_hooks(part: nn.Module) -> list[Any]:
    """The functions of all hooks on a module; TransformerLens' own on its hook points wrap what was given."""
    handles = [*part.fwd_hooks, *part.bwd_hooks] if isinstance(part, HookPoint) else []
    own = [hook for kind in _TORCH_HOOKS for hook in getattr(part, kind).values()]
    return [*(handle.user_hook for handle in handles), *own]


def is_of_the_host(hook: Any) -> bool:
    """Whether a hook is TransformerLens' or Hugging Face's own."""
    hook = getattr(hook, "func", hook)  # of a partial
    return str(getattr(hook, "__module__", "")).startswith(_HOSTS)
