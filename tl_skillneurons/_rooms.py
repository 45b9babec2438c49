"""A room loads nothing until a name of its is asked for (PEP 562); what it offers stands once, in its stub.

The stub (``__init__.pyi``) is what type checkers and editors read, so they and the running program can't differ.
"""

import sys
from collections.abc import Callable
from typing import Any

import lazy_loader


def open_room(package: str, file: str) -> tuple[Callable[[str], Any], Callable[[], list[str]], list[str]]:
    """``__getattr__``, ``__dir__`` and ``__all__`` of a package, from the stub beside its ``__init__.py``."""
    load, listing, offered = lazy_loader.attach_stub(package, file)
    offered = sorted(offered)
    vars(sys.modules[package])["__docformat__"] = "google"  # how pdoc reads Args, Returns and Raises

    def getattr_(name: str) -> Any:
        if name not in offered:
            from tl_skillneurons._checks import near

            raise AttributeError(f"module {package!r} has no attribute {name!r}; {near(name, offered)}")
        value = load(name)
        setattr(sys.modules[package], name, value)  # found at once the next time
        return value

    return getattr_, listing, offered
