"""How far a phase is, on stderr, so that what a program prints stays clean.

In a terminal a bar; in a notebook the bar of ``tqdm.auto``; in a pipe or a log file a line every ten seconds and one at
the end, without control characters. Nothing is silent for longer, however long one step takes. Each phase that ends is
told to the logger ``tl_skillneurons`` as well, shown or not.
"""

import logging
import sys
import threading
import time
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

EVERY = 10.0
"""Seconds between two lines where there is no bar."""

logger = logging.getLogger("tl_skillneurons")


@contextmanager
def progress_bar(phase: str, total: int, *, show: bool = True) -> Iterator[Advance]:
    """A bar (or lines) for ``total`` steps of ``phase``; ``show=False`` gives one that is silent."""
    console, start = Console(stderr=True), time.monotonic()
    if not show:
        yield lambda steps=1, note="": None
    elif console.is_jupyter:
        with _in_notebook(phase, total) as advance:
            yield advance
    elif console.is_terminal:
        with _in_terminal(phase, total, console) as advance:
            yield advance
    else:
        with _in_lines(phase, total) as advance:
            yield advance
    logger.info("%s: %d steps in %.1f s", phase, total, time.monotonic() - start)


@contextmanager
def waiting(what: str) -> Iterator[None]:
    """Say on stderr what is waited for, at once and again every ten seconds: plain lines everywhere, so that whatever
    draws bars meanwhile is left alone."""
    start, over = time.monotonic(), threading.Event()

    def watch() -> None:
        while not over.wait(EVERY):
            print(f"{what}: {_clock(time.monotonic() - start)}", file=sys.stderr, flush=True)

    print(f"{what} ...", file=sys.stderr, flush=True)
    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        over.set()
        watcher.join()  # or its line may come after what follows


@contextmanager
def _in_terminal(phase: str, total: int, console: Console) -> Iterator[Advance]:
    columns = [
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=16),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    ]
    columns += [TimeRemainingColumn(), TextColumn("{task.fields[note]}", style="dim", markup=False)]
    with Progress(*columns, console=console) as progress:
        bar = progress.add_task(phase, total=total, note="")

        def advance(steps: int = 1, note: str = "") -> None:
            progress.update(bar, advance=steps)
            if note:
                progress.update(bar, note=note)

        yield advance


@contextmanager
def _in_notebook(phase: str, total: int) -> Iterator[Advance]:
    from tqdm.auto import tqdm

    with tqdm(total=total, desc=phase) as bar:

        def advance(steps: int = 1, note: str = "") -> None:
            bar.update(steps)
            if note:
                bar.set_postfix_str(note)

        yield advance


@contextmanager
def _in_lines(phase: str, total: int) -> Iterator[Advance]:
    start, told = time.monotonic(), time.monotonic()
    done, beside = 0, ""
    over, one_at_a_time = threading.Event(), threading.Lock()

    def tell(*, last: bool = False) -> None:
        nonlocal told
        told = time.monotonic()
        took = told - start
        left = "" if last or not 0 < done < total else f", about {_clock(took * (total - done) / done)} left"
        ended = "" if not last or done >= total else ", stopped"
        note = f" ({beside})" if beside else ""
        print(f"{phase}: {done}/{total} in {_clock(took)}{left}{ended}{note}", file=sys.stderr, flush=True)

    def advance(steps: int = 1, note: str = "") -> None:
        nonlocal done, beside
        with one_at_a_time:
            done, beside = done + steps, note or beside
            if done < total and time.monotonic() - told >= EVERY:
                tell()

    def watch() -> None:
        while not over.wait(max(EVERY - (time.monotonic() - told), 0.1)):
            with one_at_a_time:
                if not over.is_set() and time.monotonic() - told >= EVERY:
                    tell()

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield advance
    finally:
        over.set()
        watcher.join()
        tell(last=True)


def _clock(seconds: float) -> str:
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"
