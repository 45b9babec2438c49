"""Several processes that share one job, as ``torchrun`` or ``accelerate launch`` start them.

Each runs the same script. Work is dealt out by rank, what came of it is put together again in every process,
so that each returns the same result, which is that of one process alone.
"""

import atexit
import os
from datetime import timedelta
from typing import Any

from torch import distributed

_PATIENCE = timedelta(days=7)  # others may have a whole prompt more to tune


def rank_and_count() -> tuple[int, int]:
    """Which process this is, and of how many; ``(0, 1)`` alone.

    Joins the other processes if a launcher says that there are some and nobody has joined them yet.
    """
    if not distributed.is_available():
        return 0, 1
    if not distributed.is_initialized():
        if int(os.environ.get("WORLD_SIZE", "1")) < 2 or "RANK" not in os.environ:
            return 0, 1
        distributed.init_process_group(timeout=_PATIENCE)
        atexit.register(_leave)
    return distributed.get_rank(), distributed.get_world_size()


def gather(mine: Any) -> list[Any]:
    """What each process gave, in the order of their ranks; tensors must be on the CPU."""
    _, count = rank_and_count()
    if count == 1:
        return [mine]
    everyone: list[Any] = [None] * count
    distributed.all_gather_object(everyone, mine)
    return everyone


def _leave() -> None:
    if distributed.is_initialized():
        distributed.destroy_process_group()
