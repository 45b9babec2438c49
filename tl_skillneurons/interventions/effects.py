"""What ablating neurons does to a task, beside the same done to random neurons.

A drop in accuracy means something only beside the drop that equally many random neurons of the same layers
cause. The same examples of one role are answered by the intact model, with the neurons ablated, and with each
random control ablated.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from tl_skillneurons._checks import require_int
from tl_skillneurons._files import FORMAT, fingerprint, read_json, write_json
from tl_skillneurons._progress import progress_bar
from tl_skillneurons.interventions.ablation import ablate
from tl_skillneurons.models.input_cache import InputCache, runs_text_apart
from tl_skillneurons.models.records import model_record
from tl_skillneurons.models.sites import neuron_shape
from tl_skillneurons.neurons import NeuronSet
from tl_skillneurons.prompts.prompted_model import Hooks, PromptedModel
from tl_skillneurons.prompts.soft_prompt import SoftPrompt
from tl_skillneurons.stats.chance import rank_p_value
from tl_skillneurons.tasks.task import Task

KIND = "AblationEffect"


@dataclass(frozen=True, eq=False)
class AblationEffect:
    """Accuracy on one role of the intact model, with neurons ablated, and with random controls ablated.

    Attributes:
        intact: Accuracy of each prompt with nothing ablated.
        ablated: Accuracy with the neurons ablated.
        random: Accuracy with each random control ablated.
        how, positions: The ablation, as in :func:`~tl_skillneurons.ablate`.
        role: Which examples.
        n_examples, n_neurons: How many of each.
    """

    intact: Float[Tensor, " prompt"]
    ablated: Float[Tensor, " prompt"]
    random: Float[Tensor, "prompt draw"]
    how: str
    positions: str
    role: str
    n_examples: int
    n_neurons: int

    def mean_over_prompts(self) -> tuple[float, float, Float[Tensor, " draw"]]:
        """Mean accuracy intact, with the neurons ablated, and with each control ablated.

        Taken from whole numbers of right answers, so that equal means are equal and no rounding breaks a tie.
        """
        accuracies = torch.cat([self.intact[:, None], self.ablated[:, None], self.random], dim=1)
        correct = (accuracies.double() * self.n_examples).round().sum(0)
        mean = correct / (self.n_examples * len(self.intact))
        return float(mean[0]), float(mean[1]), mean[2:]

    @property
    def p_value(self) -> float:
        """Rank p-value of the prompts' mean accuracy among the controls': (1 + controls as low) / (1 + controls)."""
        _, ablated, random = self.mean_over_prompts()
        return rank_p_value(ablated, random)

    def to_dataframe(self) -> pd.DataFrame:
        """One row per prompt and condition: prompt, condition, draw, role, accuracy, n_examples."""
        rows = []
        for prompt in range(len(self.intact)):
            rows.append((prompt, "intact", None, float(self.intact[prompt])))
            rows.append((prompt, "ablated", None, float(self.ablated[prompt])))
            rows += [(prompt, "random", draw, float(a)) for draw, a in enumerate(self.random[prompt])]
        frame = pd.DataFrame(rows, columns=["prompt", "condition", "draw", "accuracy"])
        return frame.assign(
            role=self.role, n_examples=self.n_examples, how=self.how, positions=self.positions
        )


def ablation_effect(
    model: Any,
    prompts: SoftPrompt | Sequence[SoftPrompt],
    task: Task,
    neurons: NeuronSet,
    *,
    values: Sequence[Float[Tensor, "layer neuron"]] | None = None,
    how: str = "mean",
    positions: str = "all",
    sigma: float = 0.1,
    n_random: int = 5,
    match: Float[Tensor, "layer neuron"] | None = None,
    role: str = "report",
    seed: int = 0,
    batch_size: int | None = None,
    batch_tokens: int | None = None,
    max_length: int | None = None,
    cache: InputCache | None = None,
    path: str | os.PathLike[str] | None = None,
    progress: bool = True,
) -> AblationEffect:
    """Accuracy with ``neurons`` ablated, and with ``n_random`` random controls of the same layers without them.

    Args:
        values: What each prompt's run is ablated with, one per prompt (see :func:`~tl_skillneurons.ablate`).
        n_random: Controls; 5 show a range, at least 20 a p-value below 0.05.
        match: Draw controls matched on this, for example ``scores.mean_absolute()``.
        role: Which examples answer; ``"report"`` has selected nothing.
        batch_size, batch_tokens: Most texts and most tokens of a batch (see :meth:`PromptedModel.batches`).
        cache: Keys and values of the texts, used by the intact runs and, where ``positions`` is "prompt", by
            the ablated ones; by default one of its own where that saves work.
        path: A JSON file that keeps what is measured; the same call goes on where it stopped.

    Raises:
        ValueError: For neurons outside the model, values that don't go with the prompts, or a ``path`` of
            other settings; nothing is written then.
    """
    chosen = [prompts] if isinstance(prompts, SoftPrompt) else list(prompts)
    if not chosen:
        raise ValueError("prompts must hold at least one soft prompt, got none")
    require_int(n_random, "n_random")
    neurons.require_fits(*neuron_shape(model))
    if values is not None and len(values) != len(chosen):
        raise ValueError(f"values must hold one tensor for each of {len(chosen)} prompts, got {len(values)}")
    n_layers, d_mlp = neuron_shape(model)
    controls = [
        neurons.random_like(seed + draw, n_layers=n_layers, d_mlp=d_mlp, match=match)
        for draw in range(n_random)
    ]
    conditions: dict[str, NeuronSet | None] = {"intact": None, "ablated": neurons}
    conditions |= {f"random {draw}": control for draw, control in enumerate(controls)}
    settings = {
        "model": model_record(model),
        "prompts": [[p.placement, p.prepend_bos, fingerprint(*p.parameters())] for p in chosen],
        "max_length": max_length,
        "task": task.fingerprint,
        "role": role,
        "neurons": [list(pair) for pair in neurons],
        "how": how,
        "positions": str(positions),
        "sigma": sigma,
        "seed": seed,
        "values": None if values is None else [fingerprint(v) for v in values],
        "match": None if match is None else fingerprint(match),
    }
    split = task.split(role)
    texts, labels = list(split["text"]), torch.tensor(split["label"])
    # all of them before the first is run, so that what is wrong is refused before anything is measured
    if cache is None and positions == "prompt" and runs_text_apart(model):
        cache = InputCache(model)
    runs: dict[str, tuple[PromptedModel, Hooks]] = {}
    for number, prompt in enumerate(chosen):
        prompted = PromptedModel(model, prompt, task.label_words, max_length=max_length, cache=cache)
        value = None if values is None else values[number]
        ablation = {"how": how, "values": value, "positions": positions, "sigma": sigma, "seed": seed}
        for condition, held in conditions.items():
            hooks = () if held is None else ablate(held, **ablation)
            runs[f"prompt {number}, {condition}"] = (prompted, hooks)
    done = {} if path is None else _measured(Path(path), settings)
    with progress_bar(f"ablating on {role}", len(runs), show=progress) as advance:
        for key, (prompted, hooks) in runs.items():
            if key not in done:
                batches = {"batch_size": batch_size, "batch_tokens": batch_tokens}
                done[key] = accuracy(prompted, texts, labels, fwd_hooks=hooks, **batches)
                if path is not None:
                    write_json(path, {"kind": KIND, "format": FORMAT, "settings": settings, "accuracy": done})
            advance(note=f"{key}: {done[key]:.3f}")
    rows = [[done[f"prompt {k}, {condition}"] for condition in conditions] for k in range(len(chosen))]
    table = torch.tensor(rows, dtype=torch.float64)
    return AblationEffect(
        intact=table[:, 0],
        ablated=table[:, 1],
        random=table[:, 2:],
        how=how,
        positions=str(positions),
        role=role,
        n_examples=len(texts),
        n_neurons=len(neurons),
    )


def accuracy(
    prompted: PromptedModel,
    texts: Sequence[str],
    labels: Tensor | Sequence[int],
    *,
    fwd_hooks: Hooks = (),
    batch_size: int | None = None,
    batch_tokens: int | None = None,
) -> float:
    """Share of ``texts`` whose highest class logit is that of their label."""
    with torch.no_grad():
        logits = prompted.class_logits(texts, fwd_hooks, batch_size=batch_size, batch_tokens=batch_tokens)
    return float((logits.argmax(1).cpu() == torch.as_tensor(labels)).double().mean())


def _measured(path: Path, settings: Mapping[str, Any]) -> dict[str, float]:
    if not path.exists():
        return {}
    content = read_json(path, KIND)
    differs = [k for k, v in settings.items() if content["settings"].get(k) != v]
    if differs:
        raise ValueError(
            f"{path} is from another run ({', '.join(differs)} differ); choose another path, or delete it"
        )
    return content["accuracy"]
