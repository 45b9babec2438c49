"""Which examples run together: batches of similar length, as many tokens each as a budget allows.

Padding is computed and thrown away, so texts of similar length stand together; a batch is limited by its
tokens, padding included, since they (and not the examples) are what takes time and memory. A batch that runs
out of memory is cut in two and run again, and so is every later one that is as large.
"""

from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import torch

from tl_skillneurons._checks import require_int

_TOKENS = {"cpu": 1024}
_TOKENS_ELSEWHERE = 16384
_KEPT_TOKENS = 4  # beside each token that runs, so many of texts that don't
_NO_MEMORY = ("out of memory", "can't allocate memory", "not enough memory")


def batch_tokens_on(device: Any) -> int:
    """How many tokens a batch holds by default: on a CPU more gain nothing, an accelerator needs more to be
    busy."""
    return _TOKENS.get(torch.device(device).type, _TOKENS_ELSEWHERE)


def suffix_limits(device: Any, n_running: int) -> dict[str, int]:
    """Limits of a batch of which ``n_running`` tokens a text run, on top of keys and values that are there already.

    On a CPU as many texts as keep it as busy as whole texts do; their keys and values take memory, so that long texts
    limit it too. Elsewhere memory is dearer than a batch more: the limits are those of whole texts.

    Example:
        >>> suffix_limits("cpu", 4)
        {'batch_tokens': 4096, 'batch_size': 256}
    """
    most = batch_tokens_on(device)
    if torch.device(device).type != "cpu":
        return {"batch_tokens": most}
    return {"batch_tokens": _KEPT_TOKENS * most, "batch_size": max(1, most // n_running)}


def length_batches(
    lengths: Sequence[int],
    batch_tokens: int | None = None,
    batch_size: int | None = None,
    *,
    padded: bool = True,
    limit: int | None = None,
) -> list[list[int]]:
    """Indices in batches of similar length, the longest first (so that memory that won't do shows at once).

    Args:
        lengths: Tokens of each example, virtual tokens included.
        batch_tokens: Most tokens of a batch, padding included; a single longer example still runs.
        batch_size: Most examples of a batch.
        padded: Whether texts of different lengths may stand together.
        limit: Examples of up to so many tokens and longer ones don't stand together.
    """
    order = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    batches: list[list[int]] = []
    start = 0
    while start < len(order):
        n = len(order)
        if batch_tokens is not None:
            n = max(1, require_int(batch_tokens, "batch_tokens") // max(1, lengths[order[start]]))
        if batch_size is not None:
            n = min(n, require_int(batch_size, "batch_size"))
        batch = order[start : start + n]
        if not padded:
            batch = [i for i in batch if lengths[i] == lengths[batch[0]]]  # in order of length, so they lead
        if limit is not None:
            batch = [i for i in batch if (lengths[i] > limit) == (lengths[batch[0]] > limit)]
        batches.append(batch)
        start += len(batch)
    return batches


def padding(lengths: Sequence[int], batches: Sequence[Sequence[int]]) -> dict[str, int]:
    """What the batches cost: how many there are, their tokens, and how many of these are padding."""
    n_tokens = sum(len(batch) * max(lengths[i] for i in batch) for batch in batches)
    n_real = sum(lengths[i] for batch in batches for i in batch)
    return {"n_batches": len(batches), "n_tokens": n_tokens, "n_padding": n_tokens - n_real}


def run_batches(batches: Sequence[list[int]], run: Callable[[list[int]], None]) -> None:
    """Call ``run`` with each batch; one that runs out of memory is halved, and later ones are cut to the size
    that worked.

    ``run`` must leave nothing behind when it fails.

    Raises:
        RuntimeError: When one example alone runs out of memory.
    """
    waiting = deque(batches)
    most: int | None = None
    while waiting:
        batch = waiting.popleft()
        if most is not None and len(batch) > most:
            waiting.extendleft([batch[most:], batch[:most]])
            continue
        try:
            run(batch)
            continue
        except RuntimeError as error:
            if len(batch) == 1 or not _is_out_of_memory(error):
                raise
        most = len(batch) // 2  # out of the handler, so that the failed run's tensors are free
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        waiting.appendleft(batch)


def _is_out_of_memory(error: RuntimeError) -> bool:
    return isinstance(error, torch.OutOfMemoryError) or any(said in str(error) for said in _NO_MEMORY)
