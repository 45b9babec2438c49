"""Keys and values of texts, computed once and shared by every prompt, step and pass (causal models).

Under a causal mask a text that stands before a suffix prompt does not see it: the text's keys and values are
the same for every prompt, every training step and every pass over the data. With them only the virtual tokens
have to run. This is exact, not an approximation; what differs is the rounding of matrix products of another
shape.

What is kept is limited by a budget. Texts are kept in the order in which they come until it is spent; what
does not fit is computed again each time it is needed, and freed with its batch. (Dropping old texts for new
ones would keep nothing useful: epochs come back to each text equally often.) Rounding differs in the last
bits between a text that is kept and one that is computed again.

It holds only while the model is what it was. So each time a cache is used, at the beginning, every weight and buffer
is read (one number per row is compared, whoever wrote to it and by which way), and one kept text is run again and
compared: an adapter that was switched on or off shows there. What differs empties the cache. A use is one call of this
package (``score_neurons``, ``measure_effects`` with all its conditions, ...) or one ``attached()`` of the caller's own
(:meth:`InputCache.one_use`); between the calls anybody may change the model. Within a use a changed weight empties it
as far as torch counts changes; a ``.data`` edit by the call's own intervention is not looked for.

Hooks that are not this package's, TransformerLens' or torch's, on any module, and hooks that act on text positions, run
without it (:class:`~tl_skillneurons.PromptedModel` decides).
"""

import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import torch
from jaxtyping import Int
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge
from transformers import DynamicCache

from tl_skillneurons.models._comparisons import difference, rounding
from tl_skillneurons.models.batches import batch_tokens_on, length_batches
from tl_skillneurons.models.prefill import fork, prefill
from tl_skillneurons.models.records import model_label
from tl_skillneurons.models.sites import is_causal, require_supported
from tl_skillneurons.models.verification import agrees, verified

Key = tuple[int, ...]
"""A text's token ids."""


class InputCache:
    """Keys and values of the texts that a causal model has read.

    Give one to :func:`~tl_skillneurons.fit_soft_prompts`, :func:`~tl_skillneurons.score_neurons` and the
    others to share the texts between them.

    Args:
        model: A causal TransformerBridge.
        cache_budget: Most memory to take on the model's device: bytes as an integer, or a share of what is
            free now; 0 keeps nothing.

    Attributes:
        budget: Memory that may be taken, in bytes; :attr:`n_bytes` is what is taken.
        n_runs: How many texts were run through the model.

    Raises:
        ValueError: For a model whose text can't be run apart from its prompt (a bidirectional one, say), or a
            budget that is none.

    Example:
        >>> run = skn.RunOptions(cache=skn.InputCache(model))
        >>> prompts = skn.fit_soft_prompts(model, task, run=run)
        >>> scores = skn.score_neurons(model, prompts, task, run=run)  # no text is read twice
    """

    def __init__(self, model: TransformerBridge, cache_budget: float | int = 0.25) -> None:
        if not runs_text_apart(model):
            raise ValueError(
                f"the text can't be run apart from the prompt in {model_label(model)} ({_why_not(model)}); run it "
                "without an input cache"
            )
        self.model = model
        self.budget = budget_in_bytes(cache_budget, model.cfg.device)
        self.n_runs = 0
        self._weights = _versions(model)
        self._contents: list[Tensor] | None = None
        self._use = threading.local()
        self._keeps_batches = False
        self.clear()

    def __len__(self) -> int:
        """How many texts are kept."""
        return len(self._kept)

    @property
    def n_bytes(self) -> int:
        """Memory that is taken, in bytes."""
        return self._text_bytes + self._batch_bytes

    def clear(self) -> None:
        """Forget every text."""
        self._kept: dict[Key, list[Tensor]] = {}
        self._planned: dict[Key, list[Key]] = {}
        self._groups: list[list[tuple[int, str]]] = []
        self._empty: DynamicCache | None = None
        self._is_full = self.budget == 0
        self._text_bytes = 0
        self._forget_batches()

    def _forget_batches(self) -> None:
        self._batches: dict[tuple[int, tuple[Key, ...]], DynamicCache] = {}
        self._batch_bytes = 0

    @contextmanager
    def keeping_batches(self) -> Iterator[None]:
        """For many runs of the same batches: in here each is put together once, as far as the texts leave it room."""
        if self._keeps_batches:
            yield
            return
        self._keeps_batches = True
        try:
            yield
        finally:
            self._keeps_batches = False
            self._forget_batches()

    @contextmanager
    def one_use(self) -> Iterator[None]:
        """All that this thread does in here is one use of the cache: it is checked once, when it is first needed."""
        if getattr(self._use, "checked", None) is not None:
            yield  # of a use that goes on
            return
        self._use.checked = False
        try:
            yield
        finally:
            self._use.checked = None

    def check(self) -> None:
        """Forget every text where the model is no longer what it was: see above. Costs the reading of every weight
        and the run of one text; nothing within a use that was checked before."""
        checked = getattr(self._use, "checked", None)  # None where no use goes on
        if checked:
            return
        if checked is False:
            self._use.checked = True
        now = _contents(self.model)
        if self._contents is not None and self._kept:
            same = len(now) == len(self._contents) and all(map(_equal, now, self._contents))
            if not same or not self._runs_as_kept():
                self.clear()
        self._contents = now

    def _runs_as_kept(self) -> bool:
        key = max(self._kept, key=len)
        like = torch.zeros(0, dtype=torch.long, device=self.model.cfg.device)
        past = prefill(self.model, *_padded([key], like))
        (parts,) = self._cut([key], past)
        pairs = list(zip(parts, self._kept[key], strict=True))
        return all(a.shape == b.shape and difference(a, b) <= rounding(a.dtype) for a, b in pairs)

    def plan(self, texts: Iterable[Sequence[int]]) -> None:
        """Decide in which batches these texts (token ids) are run, once the first of a batch is needed.

        Their keys and values are then the same bits whichever is needed first, so that an interrupted run
        that goes on computes what an uninterrupted one does.
        """
        if self._is_full:
            return
        new = sorted({tuple(ids) for ids in texts} - self._planned.keys() - self._kept.keys())
        for batch in length_batches([len(key) for key in new], batch_tokens_on(self.model.cfg.device)):
            keys = [new[i] for i in batch]
            self._planned |= dict.fromkeys(keys, keys)

    def past(self, ids: Int[Tensor, "batch text_pos"], mask: Int[Tensor, "batch text_pos"]) -> DynamicCache:
        """Keys and values of a batch of texts that are padded on the left; :func:`fork` it for each use."""
        if self._weights != (now := _versions(self.model)):
            self.clear()
            self._weights = now
        keys = [tuple(row[m > 0].tolist()) for row, m in zip(ids.cpu(), mask.cpu(), strict=True)]
        together = (ids.shape[1], tuple(keys))
        if (found := self._batches.get(together)) is None:
            found = self._past(keys, ids, mask)
            self._keep_batch(together, found)
        return found

    def _past(self, keys: list[Key], ids: Tensor, mask: Tensor) -> DynamicCache:
        for key in keys:
            if not self._is_full and key in self._planned:
                batch = self._planned[key]
                self._planned = {k: b for k, b in self._planned.items() if b is not batch}
                self._keep(batch, self._run(*_padded(batch, ids)))
        missing = sorted(set(keys) - self._kept.keys())
        if len(missing) == len(set(keys)):
            past = self._run(ids, mask)
            self._keep(keys, past)
            return past
        now_run = {}
        if missing:
            past = self._run(*_padded(missing, ids))
            now_run = dict(zip(missing, self._cut(missing, past), strict=True))
            self._keep(missing, past)
        rows = [now_run[key] if key in now_run else self._kept[key] for key in keys]
        return self._join(rows, ids.shape[1])

    def _run(self, ids: Tensor, mask: Tensor) -> DynamicCache:
        self.n_runs += len(ids)
        return prefill(self.model, ids, mask)

    def _keep(self, keys: list[Key], past: DynamicCache) -> None:
        if self._is_full:
            return
        for key, parts in zip(keys, self._cut(keys, past), strict=True):
            n_bytes = sum(part.numel() * part.element_size() for part in parts)
            if key not in self._kept and self._text_bytes + n_bytes <= self.budget:
                self._kept[key] = parts
                self._text_bytes += n_bytes
                if self.n_bytes > self.budget:  # texts come first
                    self._forget_batches()
            elif key not in self._kept:
                self._is_full = True
                return

    def _keep_batch(self, together: tuple[int, tuple[Key, ...]], past: DynamicCache) -> None:
        if not self._keeps_batches:
            return
        tensors: list[Tensor] = [getattr(layer, name) for layer in past.layers for name in ("keys", "values")]
        n_bytes = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
        if self.n_bytes + n_bytes <= self.budget:
            self._batches[together] = past
            self._batch_bytes += n_bytes

    def _cut(self, keys: list[Key], past: DynamicCache) -> Iterator[list[Tensor]]:
        """Each text's keys and values, those of equal shape (all of them, in most models) in one tensor."""
        if self._empty is None:
            groups: dict[Any, list[tuple[int, str]]] = {}
            for number, layer in enumerate(past.layers):
                for name in ("keys", "values"):
                    tensor = getattr(layer, name)
                    kind = (tensor.device, tensor.dtype, tensor.shape[1], tensor.shape[3])
                    groups.setdefault(kind, []).append((number, name))
            self._groups = list(groups.values())
            self._empty = fork(past)
            for layer in self._empty.layers:
                vars(layer).update(keys=None, values=None)
        for row, key in enumerate(keys):
            yield [
                torch.stack([getattr(past.layers[n], name)[row, :, -len(key) :] for n, name in group])
                for group in self._groups
            ]

    def _join(self, rows: list[list[Tensor]], width: int) -> DynamicCache:
        """A batch of kept texts, padded on the left with zeros, which the mask hides."""
        assert self._empty is not None  # rows of kept texts come from a cache that was cut
        past = fork(self._empty)
        for number, group in enumerate(self._groups):
            n, n_heads, _, d_head = rows[0][number].shape
            joined = rows[0][number].new_zeros(n, len(rows), n_heads, width, d_head)
            for row, parts in enumerate(rows):
                joined[:, row, :, width - parts[number].shape[2] :] = parts[number]
            for tensor, (layer, name) in zip(joined, group, strict=True):
                setattr(past.layers[layer], name, tensor)
        return past


def runs_text_apart(model: TransformerBridge) -> bool:
    """Whether a text's keys and values can be computed before its suffix prompt is known, and used with it: whether
    that was seen to be right (:func:`~tl_skillneurons.models.verify`)."""
    require_supported(model)
    return is_causal(model) and agrees(model, "kept texts")


def _why_not(model: TransformerBridge) -> str:
    return (
        "it is bidirectional: a text sees the prompt"
        if not is_causal(model)
        else verified(model)["kept texts"].told
    )


def budget_in_bytes(cache_budget: float | int, device: Any) -> int:
    """Bytes of a budget that is given as such or as a share of the memory that is free on ``device``.

    Raises:
        ValueError: For a share above 1, or anything negative or not a number.
    """
    if isinstance(cache_budget, bool) or not isinstance(cache_budget, float | int) or not cache_budget >= 0:
        raise ValueError(
            f"cache_budget must be bytes as an integer, or a share of the free memory in [0, 1], got {cache_budget!r}"
        )
    if isinstance(cache_budget, int):
        return cache_budget
    if cache_budget > 1:
        raise ValueError(
            f"cache_budget as a share of the free memory must be in [0, 1], got {cache_budget}; "
            "give an integer for a number of bytes"
        )
    return int(cache_budget * _free_memory(torch.device(device)))


def _free_memory(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    free = psutil.virtual_memory().available
    limit, used = Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")
    if limit.exists() and used.exists() and (most := limit.read_text().strip()).isdigit():
        free = min(free, int(most) - int(used.read_text()))  # a container's own limit
    return max(free, 0)


def _padded(keys: list[Key], like: Tensor) -> tuple[Tensor, Tensor]:
    width = max(map(len, keys))
    ids = torch.zeros(len(keys), width, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, key in enumerate(keys):
        ids[row, width - len(key) :] = torch.tensor(key)
        mask[row, width - len(key) :] = 1
    return ids.to(like.device), mask.to(like.device)


def _contents(model: TransformerBridge) -> list[Tensor]:
    """One number per row of every weight and buffer, which changes with any of the row's values."""
    rows = []
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            flat = tensor.detach().reshape(-1, tensor.shape[-1] if tensor.ndim > 1 else 1)
            wide = flat if flat.dtype in (torch.float32, torch.float64) else flat.float()
            weights = torch.arange(1, flat.shape[1] + 1, device=flat.device, dtype=torch.float64).cos()
            rows.append(wide @ weights.to(wide.dtype))
    return rows


def _equal(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and bool(((one == other) | (one.isnan() & other.isnan())).all())


def _versions(model: TransformerBridge) -> list[tuple[int, int]]:
    """Changes with every weight that is replaced or written to (tensors made in inference mode can't tell)."""
    return [(p.data_ptr(), 0 if p.is_inference() else p._version) for p in model.parameters()]
