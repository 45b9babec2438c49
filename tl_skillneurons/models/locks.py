"""One thread at a time on one model.

What runs a model puts hooks on it, which every thread that runs the model would meet. So whoever puts hooks on holds
the model's lock while they stand; a second thread waits until they are off again. The lock may be taken again by the
thread that holds it.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock, RLock
from typing import Any
from weakref import WeakKeyDictionary

_LOCKS: WeakKeyDictionary[Any, Any] = WeakKeyDictionary()
_MAKING = Lock()


@contextmanager
def held(model: Any) -> Iterator[None]:
    """No other thread that asks for ``model`` in this way runs it in here.

    Two bridges around one Hugging Face model have one lock, since the hooks on both fire in either.
    """
    wrapped = getattr(model, "original_model", model)
    with _MAKING:
        lock = _LOCKS.setdefault(wrapped, RLock())
    with lock:
        yield
