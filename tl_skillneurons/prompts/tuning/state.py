"""Everything that changes while one prompt is tuned, and the checkpoint that holds it."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tl_skillneurons._checks import differing
from tl_skillneurons._files import load_tensors, save_tensors
from tl_skillneurons.prompts.soft_prompt import SoftPrompt

KIND = "SoftPrompt checkpoint"


@dataclass
class TuningState:
    """One prompt on its way, the best one so far, and the optimizer's memory.

    ``snapshots`` holds what was trained as it was at each entry of ``history``, where that is kept.
    """

    prompt: SoftPrompt
    optimizer: torch.optim.Adam
    initial: Tensor
    best: dict[str, Tensor]
    step: int = 0
    history: list[dict[str, Any]] = field(default_factory=list)
    diverged: int | None = None
    snapshots: list[dict[str, Tensor]] | None = None

    def best_entry(self) -> dict[str, Any]:
        """The evaluation of the highest accuracy; of the lowest loss, and the earliest, among equals."""
        return max(self.history, key=lambda e: (e["accuracy"], -e["loss"], -e["step"]))

    def waited(self) -> int:
        """Evaluations since the best one."""
        if not self.history:
            return 0
        best = self.best_entry()
        return sum(entry["step"] > best["step"] for entry in self.history)


def parameters_of(prompt: SoftPrompt) -> dict[str, Tensor]:
    """A copy of what is being trained."""
    return {name: parameter.detach().clone() for name, parameter in prompt.named_parameters()}


def stack_snapshots(state: TuningState) -> dict[str, Tensor]:
    """The snapshots by name of what is trained, one after another along the first axis; nothing if none are kept."""
    kept = state.snapshots or []
    return {name: torch.stack([one[name] for one in kept]) for name in (kept[0] if kept else ())}


def save_state(state: TuningState, path: Path, provenance: dict[str, Any]) -> None:
    """Write a checkpoint, whole or not at all."""
    tensors: dict[str, Tensor] = {f"now.{k}": tensor for k, tensor in state.prompt.named_parameters()}
    tensors |= {f"best.{name}": tensor for name, tensor in state.best.items()}
    tensors |= {f"snapshots.{name}": tensor for name, tensor in stack_snapshots(state).items()}
    for number, moments in state.optimizer.state_dict()["state"].items():
        tensors |= {f"adam.{number}.{name}": tensor for name, tensor in moments.items()}
    header = {"step": state.step, "history": state.history, "provenance": provenance}
    save_tensors(path, KIND, tensors, header)


def resume_state(state: TuningState, path: Path, provenance: dict[str, Any]) -> None:
    """Put ``state`` where the checkpoint in ``path`` was, to the same bits.

    Raises:
        ValueError: When the checkpoint is corrupt or of another run.
    """
    tensors, header = load_tensors(path, KIND)
    require_same(path, header["provenance"], provenance)
    with torch.no_grad():
        for name, parameter in state.prompt.named_parameters():
            parameter.copy_(tensors[f"now.{name}"])
    state.best = {name: tensors[f"best.{name}"].to(tensor) for name, tensor in state.best.items()}
    optimizer = state.optimizer.state_dict()
    for name, tensor in tensors.items():
        kind, _, rest = name.partition(".")
        if kind == "adam":
            number, _, moment = rest.partition(".")
            optimizer["state"].setdefault(int(number), {})[moment] = tensor
    state.optimizer.load_state_dict(optimizer)
    state.step, state.history = header["step"], header["history"]
    if state.snapshots is not None:
        state.snapshots = [
            {name: tensors[f"snapshots.{name}"][k].to(tensor) for name, tensor in state.best.items()}
            for k in range(len(state.history))
        ]


def require_same(path: Path, was: dict[str, Any], now: dict[str, Any]) -> None:
    """Refuse a file of another run, naming every setting that differs."""
    differs = differing(_flat(was), _flat(now))
    if differs:
        raise ValueError(
            f"{path} is from another run ({'; '.join(differs)}); choose another folder, or delete that file"
        )


def _flat(nested: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in nested.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat
