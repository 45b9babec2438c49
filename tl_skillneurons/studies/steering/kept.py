"""What was written so far, kept in a file, so that an interrupted study goes on where it stopped."""

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tl_skillneurons._checks import differing
from tl_skillneurons._files import FORMAT, package_version, read_json, sound, write_json

KIND = "SteeringAnswers"
_SECONDS_BETWEEN_WRITES = 5.0
_LONGEST = 200

Written = dict[str, list[Any]]
"""Of each text its ``answers``, ``token_ids`` and ``cross_entropy``."""


class KeptAnswers:
    """The answers written so far, in a file where there is a path; on leaving the context all are in it.

    Raises:
        ValueError: When the file is of other settings.
    """

    def __init__(self, path: str | os.PathLike[str] | None, settings: dict[str, Any]) -> None:
        self.path = None if path is None else Path(path)
        self.settings: dict[str, Any] = json.loads(json.dumps(settings))
        self.written: dict[str, Written] = {}
        self.last = time.monotonic()
        if self.path is not None and self.path.exists():
            content = read_json(self.path, KIND)
            with sound(self.path, KIND):
                was, self.written = content["settings"], content["written"]
            if differs := differing(was, self.settings):
                clauses = [one if len(one) <= _LONGEST else f"{one[:_LONGEST]}..." for one in differs]
                raise ValueError(
                    f"{path} is from another run ({'; '.join(clauses)}); choose another path, or delete it"
                )

    def __enter__(self) -> "KeptAnswers":
        return self

    def __exit__(self, *_: Any) -> None:
        self._write()

    def each(self, key: str, write: Callable[[], Written]) -> Written:
        """What was written under a condition, now where it isn't there yet."""
        if key not in self.written:
            self.written[key] = write()
            if time.monotonic() - self.last > _SECONDS_BETWEEN_WRITES:
                self._write()
        return self.written[key]

    def _write(self) -> None:
        if self.path is not None and self.written:
            content = {"kind": KIND, "format": FORMAT, "package_version": package_version()}
            write_json(self.path, {**content, "settings": self.settings, "written": self.written})
        self.last = time.monotonic()
