"""One progress bar per phase, on stderr, so that what a program prints stays clean."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

Advance = Callable[..., None]
"""Call it with the steps done (default 1) and, if you like, ``note=`` a few words to show beside the bar."""


@contextmanager
def progress_bar(phase: str, total: int, *, show: bool = True) -> Iterator[Advance]:
    """A bar for ``total`` steps of ``phase``; ``show=False`` gives one that is silent."""
    if not show:
        yield lambda steps=1, note="": None
        return
    columns = [
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=16),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    ]
    columns += [TimeRemainingColumn(), TextColumn("{task.fields[note]}", style="dim", markup=False)]
    with Progress(*columns, console=Console(stderr=True)) as progress:
        bar = progress.add_task(phase, total=total, note="")

        def advance(steps: int = 1, note: str = "") -> None:
            progress.update(bar, advance=steps)
            if note:
                progress.update(bar, note=note)

        yield advance
