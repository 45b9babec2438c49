"""Hooks put on a model and taken off it again, and those that somebody else has put there."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from torch import nn

Hook = tuple[str, Callable[..., Any]]
"""A hook point's name and the function to run there, as ``model.run_with_hooks(fwd_hooks=[...])`` takes them."""

Hooks = Sequence[Hook]
"""Several of them."""


@contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """No parameter of ``model`` asks for a gradient in here; each asks again as before afterwards, also after
    an error."""
    flags = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    for parameter, _ in flags:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter, flag in flags:
            parameter.requires_grad_(flag)


def remove_hook(point: Any, handle: Any) -> None:
    """Take one hook that ``point.add_hook`` gave ``handle`` for away again, and no other."""
    handle.hook.remove()
    point.fwd_hooks[:] = [other for other in point.fwd_hooks if other is not handle]


def has_foreign_hooks(points: Mapping[str, Any]) -> bool:
    """Whether anybody but TransformerLens itself has put a hook on these points (``model.hook_dict``)."""
    handles = [
        h for point in points.values() if point.has_hooks() for h in (*point.fwd_hooks, *point.bwd_hooks)
    ]
    hooks = [handle.user_hook for handle in handles]
    return any(not _module_of(hook).startswith("transformer_lens.") for hook in hooks)


def _module_of(hook: Any) -> str:
    hook = getattr(hook, "func", hook)  # of a partial
    return str(getattr(hook, "__module__", ""))
