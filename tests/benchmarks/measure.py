"""Time and peak memory of two sides that take turns in one process.

The ratio of a row is taken pair by pair and its median is told, because a machine that others use is slower in
some minutes than in others; which side goes first changes from pair to pair. Before a side whose memory is
measured, what the other side freed is given back to the system, so that neither lives off the other's heap.
"""

import ctypes
import gc
import statistics
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

_STATUS = Path("/proc/self/status")
_CLEAR_REFS = Path("/proc/self/clear_refs")


@dataclass
class Side:
    """Every measurement of one side: ``values`` in seconds (bytes in the rows about memory)."""

    values: list[float] = field(default_factory=list)
    peak_bytes: list[int | None] = field(default_factory=list)


@dataclass
class Measured:
    """What a row measured: both sides, value ``i`` of one beside value ``i`` of the other."""

    ours: Side = field(default_factory=Side)
    peer: Side = field(default_factory=Side)
    unit: str = "s"
    extrapolated: str | None = None
    details: dict[str, Any] = field(default_factory=dict)


def say(message: str) -> None:
    """Tell progress."""
    print(message, file=sys.stderr, flush=True)


def resident_bytes(name: str = "VmRSS") -> int | None:
    """Resident memory of this process as the kernel counts it, ``None`` where there is no /proc."""
    if not _STATUS.exists():
        return None
    for line in _STATUS.read_text().splitlines():
        if line.startswith(f"{name}:"):
            return 1024 * int(line.split()[1])
    return None


def reset_peak() -> int | None:
    """Give freed memory back, set the kernel's high-water mark to what is left, and return that."""
    gc.collect()
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc only
        if trim is not None:
            trim(0)
    try:
        _CLEAR_REFS.write_text("5")
    except OSError:
        return None
    return resident_bytes()


def timed(run: Callable[[], object], *, memory: bool = True) -> tuple[float, int | None]:
    """Seconds that ``run`` takes and its peak of resident memory above what there was before."""
    before = reset_peak() if memory else None
    start = time.perf_counter()
    run()
    seconds = time.perf_counter() - start
    return seconds, None if before is None else resident_bytes("VmHWM") - before


def paired(
    ours: Callable[[], object], peer: Callable[[], object], n_pairs: int, *, memory: bool = True
) -> Measured:
    """Both sides ``n_pairs`` times, in turns.

    Args:
        memory: Without it no memory is given back in between, which would disturb sides of milliseconds.
    """
    measured = Measured()
    sides = ((measured.ours, ours), (measured.peer, peer))
    for number in range(n_pairs):
        for side, run in sides if number % 2 == 0 else sides[::-1]:
            seconds, peak = timed(run, memory=memory)
            side.values.append(seconds)
            side.peak_bytes.append(peak)
        say_pair(measured, n_pairs)
    return measured


def say_pair(measured: Measured, n_pairs: int) -> None:
    """Tell the latest pair, of many every tenth."""
    number = len(measured.ours.values)
    if n_pairs <= 10 or number % 10 == 0:
        ours, peer = measured.ours.values[-1], measured.peer.values[-1]
        say(f"  pair {number} of {n_pairs}: ours {ours:.3g} {measured.unit}, peer {peer:.3g} {measured.unit}")


def ratios(measured: Measured, *, faster: bool) -> list[float]:
    """The ratio of each pair: peer / ours where more is better (``faster``), else ours / peer."""
    pairs = zip(measured.ours.values, measured.peer.values, strict=True)
    return [peer / ours if faster else ours / peer for ours, peer in pairs]


def fastest(candidates: dict[str, Callable[[], object]], n_rounds: int = 2) -> tuple[str, dict[str, float]]:
    """Which candidate is fastest, and the least seconds of each over rounds in turns, after one to warm up."""
    for run in candidates.values():
        run()
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    for _ in range(n_rounds):
        for name, run in candidates.items():
            seconds[name].append(timed(run, memory=False)[0])
    least = {name: min(values) for name, values in seconds.items()}
    return min(least, key=least.get), least


def middle(values: Iterable[float | None]) -> float | None:
    """The median, ``None`` where something was not measured."""
    values = list(values)
    return None if not values or None in values else statistics.median(values)
