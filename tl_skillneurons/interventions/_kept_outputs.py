"""What an effect panel has measured so far, kept in a file, so that an interrupted call goes on where it stopped.

The file is the panel's own: finished, :meth:`~tl_skillneurons.EffectPanel.load` reads it.
"""

import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from tl_skillneurons._checks import differing
from tl_skillneurons._files import load_tensors, save_tensors
from tl_skillneurons._progress import Advance
from tl_skillneurons.interventions._measured import Condition
from tl_skillneurons.interventions.effect_panel import KIND, EffectPanel, tensor_name
from tl_skillneurons.models.hooks import Hooks

_SECONDS_BETWEEN_WRITES = 5.0
_IN_NAMES = ("interventions", "positions", "n_random", "controls", "notes")
"""Settings that each output's name tells, or that follow from these: more of them go into the same file."""
_LONGEST = 200


class KeptOutputs:
    """The outputs measured so far, in a file where there is a path; on leaving the context all are in it.

    Raises:
        ValueError: When the file is of other settings.
    """

    def __init__(self, path: Path | None, settings: dict[str, Any]) -> None:
        self.path, self.settings, self.written = path, settings, time.monotonic()
        self.outputs: dict[str, Tensor] = {}
        self.finished = False
        if path is not None and path.exists():
            self.outputs, header = load_tensors(path, KIND)
            fixed = {k: v for k, v in json.loads(json.dumps(settings)).items() if k not in _IN_NAMES}
            differs = differing(header["settings"], fixed)
            if differs:
                clauses = [c if len(c) <= _LONGEST else f"{c[:_LONGEST]}..." for c in differs]
                raise ValueError(
                    f"{path} is from another run ({'; '.join(clauses)}); choose another path, or delete it"
                )

    def __enter__(self) -> "KeptOutputs":
        return self

    def __exit__(self, *_: Any) -> None:
        if not self.finished:
            self._write({"settings": self.settings, "finished": False})

    def each(
        self,
        measured: int,
        prompt: int,
        run: Callable[[Hooks], Tensor],
        hooks: Callable[[Condition], Hooks],
        conditions: Sequence[Condition],
        advance: Advance,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The intact output and that of each condition, run where it isn't there yet."""
        found = {}
        for condition in (None, *conditions):
            what = "intact" if condition is None else condition.key
            name = tensor_name(measured, prompt, what)
            if name not in self.outputs:
                self.outputs[name] = run([] if condition is None else hooks(condition)).cpu()
                if time.monotonic() - self.written > _SECONDS_BETWEEN_WRITES:
                    self._write({"settings": self.settings, "finished": False})
            found[what] = self.outputs[name]
            advance(1, note=f"prompt {prompt}, {what}")
        return found.pop("intact"), found

    def at_once(
        self,
        measured: int,
        prompt: int,
        run: Callable[[Sequence[Condition]], list[Tensor]],
        conditions: Sequence[Condition],
        advance: Advance,
    ) -> dict[str, Tensor]:
        """The output of each condition, where one run gives them all."""
        names = [tensor_name(measured, prompt, condition.key) for condition in conditions]
        if not all(name in self.outputs for name in names):
            self.outputs |= dict(zip(names, run(conditions), strict=True))
        advance(1, note=f"prompt {prompt}, direct effects")
        return {c.key: self.outputs[name] for c, name in zip(conditions, names, strict=True)}

    def finish(self, panel: EffectPanel) -> None:
        """Make the file the panel's, with whatever else was measured before."""
        self.outputs |= panel.tensors()
        self._write(panel.header())
        self.finished = True

    def _write(self, header: dict[str, Any]) -> None:
        if self.path is not None and self.outputs:
            save_tensors(self.path, KIND, self.outputs, header)
        self.written = time.monotonic()
