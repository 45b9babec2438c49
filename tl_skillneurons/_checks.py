"""What bad input gets: one sentence that names what was wrong, what is allowed and what came."""

import difflib
from collections.abc import Iterable, Mapping
from numbers import Integral
from typing import Any


def listed(names: Iterable[Any]) -> str:
    """The names as a message lists them, or "none"."""
    return ", ".join(map(repr, names)) or "none"


def near(name: object, known: Iterable[object]) -> str:
    """A clause that lists the known names nearest to ``name``, or all of them when none is near."""
    names = [str(k) for k in known]
    close = difflib.get_close_matches(str(name), names, n=3)
    return f"did you mean {' or '.join(map(repr, close))}?" if close else f"choose from {listed(names)}"


def require_option(value: Any, name: str, options: Iterable[str]) -> str:
    """Return ``value`` if it is one of ``options``.

    Raises:
        ValueError: Otherwise, with the near options.
    """
    options = list(options)
    if value not in options:
        raise ValueError(f"{name} must be one of {listed(options)}, got {value!r}; {near(value, options)}")
    return value


def require_int(value: Any, name: str, *, minimum: int = 1) -> int:
    """Return ``value`` as an int that is at least ``minimum``; a bool is not an integer here.

    Raises:
        ValueError: For anything else.
    """
    if isinstance(value, bool) or not isinstance(value, Integral) or value < minimum:
        raise ValueError(f"{name} must be an integer of at least {minimum}, got {value!r}")
    return int(value)


def require_seed(value: Any, name: str = "seed") -> int:
    """Return ``value`` as an int if it can seed what is random: an integer of 0 to 2**63 - 1, and no bool.

    Raises:
        ValueError: For anything else.
    """
    if isinstance(value, bool) or not isinstance(value, Integral) or not 0 <= int(value) < 2**63:
        raise ValueError(
            f"{name} must be an integer of at least 0, got {value!r}; a generator takes those below 2**63"
        )
    return int(value)


def require_text(value: Any, name: str) -> str:
    """Return ``value`` if it is a string that can be written down.

    Raises:
        TypeError: For anything but a string.
        ValueError: For half of a surrogate pair, which is no character and has no bytes in UTF-8.
    """
    if not isinstance(value, str):
        raise TypeError(f"{name} must be a string, got {type(value).__name__} {value!r}")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"{name} must be text that UTF-8 can write, got {value[error.start]!r} at place {error.start}, half of a "
            "surrogate pair; decode the data anew, or drop such examples"
        ) from error
    return value


def require_open_unit(value: float | int, name: str) -> float | int:
    """Return ``value`` if it is between 0 and 1, both excluded, as an error rate or a confidence must be.

    Raises:
        ValueError: Otherwise, NaN included.
    """
    if not 0 < value < 1:
        raise ValueError(f"{name} must be between 0 and 1, both excluded, got {value}")
    return value


def differing(was: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """In which of the settings ``now`` an earlier record differs: one clause each, in their order; settings within one
    of them by both names, ``task.name``.

    Example:
        >>> differing({"seed": 0, "task": {"name": "films"}}, {"seed": 0, "task": {"name": "cities"}})
        ["task.name: 'films' there, 'cities' now"]
    """
    found = []
    for key, value in now.items():
        before = was.get(key)
        if isinstance(before, Mapping) and isinstance(value, Mapping) and before != value:
            within = differing(before, {**dict.fromkeys(before), **value})
            found += [f"{key}.{one}" for one in within]
        elif before != value:
            found.append(f"{key}: {before!r} there, {value!r} now")
    return found


def selection_size(amount: float | int, available: int, *, per: str) -> int:
    """How many of ``available`` neurons ``amount`` is: int(share * available) of a float, an integer as it
    is.

    Raises:
        ValueError: When that is no neuron, or more than there are.
    """
    if isinstance(amount, float):
        if not 0 < amount <= 1:
            raise ValueError(
                f"amount as a share must be in (0, 1], got {amount}; give an integer for a count"
            )
        count = int(amount * available)
    else:
        count = require_int(amount, "amount")
    if not 1 <= count <= available:
        raise ValueError(
            f"amount must give 1 to {available} neurons per {per}, got {amount} ({count} neurons)"
        )
    return count


def require_others(amount: float | int, available: int, *, per: str = "layer") -> int:
    """How many of ``available`` neurons ``amount`` is, if as many others are left to be its control.

    Raises:
        ValueError: Otherwise, with how many may be chosen.
    """
    count = selection_size(amount, available, per=per)
    if 2 * count > available:
        raise ValueError(
            f"amount must leave as many other neurons for the controls, at most {available // 2} of the {available} "
            f"per {per}, got {amount} ({count} neurons)"
        )
    return count
