"""What an effect panel has measured so far, kept in a file, so that an interrupted call goes on where it stopped."""

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from tl_skillneurons._files import load_tensors, save_tensors
from tl_skillneurons._progress import Advance
from tl_skillneurons.interventions.ablation import Hook
from tl_skillneurons.interventions.effect_panel import Condition

KIND = "EffectPanel"
_SECONDS_BETWEEN_WRITES = 5.0


class KeptOutputs:
    """The outputs measured so far, in a file where there is a path; on leaving the context all are in it."""

    def __init__(self, path: Path | None, settings: dict[str, Any]) -> None:
        self.path, self.settings, self.written = path, settings, time.monotonic()
        self.outputs: dict[str, Tensor] = {}
        if path is not None and path.exists():
            self.outputs, header = load_tensors(path, KIND)
            differs = [k for k, v in settings.items() if header["settings"].get(k) != v]
            if differs:
                raise ValueError(
                    f"{path} is from another run ({', '.join(differs)} differ); choose another path, or delete it"
                )

    def __enter__(self) -> "KeptOutputs":
        return self

    def __exit__(self, *_: Any) -> None:
        self._write()

    def each(
        self,
        name: str,
        run: Callable[[Sequence[Hook]], Tensor],
        hooks: Callable[[Condition], list[Hook]],
        conditions: Sequence[Condition],
        advance: Advance,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The intact output and that of each condition, run where it isn't there yet."""
        found = {}
        for condition in (None, *conditions):
            key = f"{name}, intact" if condition is None else f"{name}, {condition.key}"
            if key not in self.outputs:
                self.outputs[key] = run([] if condition is None else hooks(condition))
                if time.monotonic() - self.written > _SECONDS_BETWEEN_WRITES:
                    self._write()
            found[None if condition is None else condition.key] = self.outputs[key]
            advance(1, note=key)
        return found.pop(None), found

    def at_once(
        self,
        name: str,
        run: Callable[[Sequence[Condition]], list[Tensor]],
        conditions: Sequence[Condition],
        advance: Advance,
    ) -> dict[str, Tensor]:
        """The output of each condition, where one run gives them all."""
        keys = [f"{name}, {condition.key}" for condition in conditions]
        if not all(key in self.outputs for key in keys):
            self.outputs |= dict(zip(keys, run(conditions), strict=True))
        advance(1, note=name)
        return {c.key: self.outputs[key] for c, key in zip(conditions, keys, strict=True)}

    def _write(self) -> None:
        if self.path is not None and self.outputs:
            save_tensors(self.path, KIND, self.outputs, {"settings": self.settings})
        self.written = time.monotonic()
