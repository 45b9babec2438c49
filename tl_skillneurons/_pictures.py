"""How a result draws itself without its room importing the pictures, which stand above it."""

import importlib
from collections.abc import Callable
from typing import Any


def plotted(picture: str) -> Callable[..., Any]:
    """A method ``plot`` that gives what ``tl_skillneurons.plots`` draws of the result under the name ``picture``.

    Example:
        >>> class Result:
        ...     plot = plotted("plot_scores")
    """

    def plot(self: Any, *others: Any, **choices: Any) -> Any:
        return getattr(importlib.import_module("tl_skillneurons.plots"), picture)(self, *others, **choices)

    plot.__doc__ = f"""A plotly ``Figure`` of this result: ``skn.plots.{picture}``, which says what it may be given.

        Raises:
            ImportError: Without plotly.
        """
    return plot
