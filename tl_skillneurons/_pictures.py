"""How a result draws itself without its room importing the pictures, which stand above it."""

import importlib
from typing import Any


def drawn(picture: str, *results: Any, **choices: Any) -> Any:
    """The plotly ``Figure`` that ``tl_skillneurons.plots`` makes of results.

    Raises:
        ImportError: Without plotly.
    """
    return getattr(importlib.import_module("tl_skillneurons.plots"), picture)(*results, **choices)
