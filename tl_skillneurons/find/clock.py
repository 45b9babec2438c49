"""Where a run's time goes: each phase's, kept in the run's folder, over all the calls that it took."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tl_skillneurons._files import read_json
from tl_skillneurons.find.folder import KIND, RUN, record


@contextmanager
def timed(folder: Path, phase: str) -> Iterator[None]:
    """Add what this takes to the seconds of ``phase``, on a clock (``wall``) and of processors (``cpu``)."""
    wall, cpu = time.monotonic(), time.process_time()
    try:
        yield
    finally:
        known = read_json(folder / RUN, KIND).get("seconds", {})
        was = known.get(phase, {"wall": 0.0, "cpu": 0.0})
        took = {"wall": time.monotonic() - wall, "cpu": time.process_time() - cpu}
        record(folder, seconds={**known, phase: {name: round(was[name] + took[name], 1) for name in took}})
