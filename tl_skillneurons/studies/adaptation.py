"""The same task learned in other ways, the MLP weights frozen: are prompt-found skill neurons needed there too?

If skill neurons stem from pre-training, they should matter however the task is learned on top (Wang et al., 2022,
section 6). :func:`adapt` learns it without touching a weight of an MLP, by LoRA, biases or bottlenecks
(:mod:`~tl_skillneurons.prompts.tuning.adapters`); :func:`measure_adapted` takes the neurons away.

The text stands where it stands in prompt tuning, beside virtual tokens that are never trained (random words), so
read-out and positions are the same and every tool here takes the adapted model as it is.

What it does not show: what happens when the MLPs themselves are trained, or that the neurons came from pre-training
rather than from what these methods share (the same texts, the same read-out). The control is random neurons.
"""

import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from tl_skillneurons._checks import require_int, require_option, require_seed
from tl_skillneurons._files import load_tensors, save_tensors, sound
from tl_skillneurons._results import html_of, one_line
from tl_skillneurons.interventions.asked import Examples as EffectExamples
from tl_skillneurons.interventions.effects import measure_effects
from tl_skillneurons.interventions.kinds import How
from tl_skillneurons.models.copies import copy_model
from tl_skillneurons.models.records import model_differences, model_record
from tl_skillneurons.models.sites import has_language_model_head, is_causal, require_eval, require_supported
from tl_skillneurons.neurons.neuron_set import Neurons, as_neurons
from tl_skillneurons.prompts.prompted_model import PromptedModel
from tl_skillneurons.prompts.run import RunOptions
from tl_skillneurons.prompts.soft_prompt import SoftPrompt
from tl_skillneurons.prompts.tuning.adapters import (
    METHODS,
    AdapterTraining,
    adapter_parameters,
    restore_adapters,
    train_adapters,
)
from tl_skillneurons.prompts.tuning.schedule import embedding_rows, hold_back
from tl_skillneurons.prompts.tuning.training import Examples
from tl_skillneurons.tasks.chat import Chat
from tl_skillneurons.tasks.columns import columns_of
from tl_skillneurons.tasks.groups import groups_of
from tl_skillneurons.tasks.task import Task

KIND = "AdaptedModel"
_OF_PROMPT = ("placement", "prepend_bos", "max_length", "seed")


@dataclass(frozen=True, eq=False)
class AdaptedModel:
    """A copy of a model that has learned a task without its MLP weights.

    Attributes:
        model: The adapted ``TransformerBridge``, frozen and in eval mode; adapters are permanent hooks of it, which
            ``reset_hooks()`` leaves and ``reset_hooks(including_permanent=True)`` takes away.
        prompt: The untrained virtual tokens that the text stands beside, with the linear read-out that was trained
            where the model has no language-model head.
        how: "lora", "bitfit" or "adapter".
        n_trained: Numbers that were trained.
        provenance: Model, task, settings, losses, and ``held_back_accuracy`` on the part of ``train`` kept for it.
        trained: By name, what was trained of the model.

    Example:
        >>> adapted = skn.studies.adapt(model, task, "lora")
        >>> adapted.model.run_with_cache(tokens)  # a bridge like any other
        >>> skn.studies.AdaptedModel.load(adapted.save("lora.safetensors"), model)
    """

    model: TransformerBridge
    prompt: SoftPrompt
    how: str
    n_trained: int
    provenance: dict[str, Any] = field(default_factory=dict)
    trained: dict[str, Tensor] = field(default_factory=dict)

    def __repr__(self) -> str:
        known = {name: self.provenance[name] for name in ("held_back_accuracy",) if name in self.provenance}
        name = str(self.model.cfg.model_name)
        return one_line(self, model=name, how=self.how, n_trained=self.n_trained, **known)

    def _repr_html_(self) -> str:
        return html_of(self)

    def to_dataframe(self) -> pd.DataFrame:
        """A row per training step: ``step`` and its ``loss``, the mean cross-entropy of its batch in nats."""
        losses = self.provenance.get("losses", [])
        return pd.DataFrame({"step": range(len(losses)), "loss": losses})

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write what was trained, and the prompt, to one safetensors file, whole or not at all.

        Raises:
            ValueError: When nothing was, as of a model with a tuned prompt; save the prompt.
        """
        if not self.trained:
            raise ValueError(
                f"nothing of the model itself was trained (how={self.how!r}); save its prompt: prompt.save(path)"
            )
        tensors = {**self.trained, **{f"prompt {k}": v for k, v in self.prompt.named_parameters()}}
        header = {name: getattr(self, name) for name in ("how", "n_trained", "provenance")}
        of_prompt = {name: getattr(self.prompt, name) for name in _OF_PROMPT}
        of_prompt |= {} if self.prompt.chat is None else {"chat": self.prompt.chat.record}
        return save_tensors(path, KIND, tensors, {**header, "prompt": of_prompt})

    @classmethod
    def load(cls, path: str | os.PathLike[str], model: TransformerBridge) -> "AdaptedModel":
        """What :meth:`save` wrote, put into a copy of the model that was adapted.

        Raises:
            FileNotFoundError: When there is no such file.
            ValueError: When the file is corrupt or holds something else, or is of another model.
        """
        require_supported(model)
        tensors, header = load_tensors(path, KIND)
        with sound(path, KIND):
            differs = model_differences(header["provenance"]["model"], model)
            if differs:
                raise ValueError(f"it was trained in another model ({differs}); give that one")
            rows, readout = tensors.pop("prompt embedding"), tensors.pop("prompt readout", None)
            said = {name: header["prompt"][name] for name in _OF_PROMPT}
            chat = Chat(**header["prompt"]["chat"]) if "chat" in header["prompt"] else None
            prompt = SoftPrompt(rows, readout=readout, chat=chat, **said)
            adapted = _frozen_copy(model)
            restore_adapters(adapted, header["how"], header["provenance"]["settings"]["width"], tensors)
            adapted.requires_grad_(False)
            prompt = prompt.to(model.cfg.device).requires_grad_(False)
            return cls(
                adapted, prompt, header["how"], header["n_trained"], header["provenance"], dict(tensors)
            )


def adapt(
    model: TransformerBridge,
    task: Task,
    how: str = "lora",
    *,
    n_virtual_tokens: int = 1,
    n_steps: int = 300,
    width: int = 8,
    seed: int = 0,
    max_length: int | None = None,
    training: AdapterTraining = AdapterTraining(),
    run: RunOptions = RunOptions(),
) -> AdaptedModel:
    """A copy of ``model`` that has learned ``task`` with the MLPs' weights frozen; ``model`` stays as it is.

    Args:
        how: "lora" (needs PEFT), "bitfit" or "adapter".
        n_virtual_tokens: Untrained tokens beside the text, random words drawn by ``seed``.
        width: Rank of LoRA's updates, or width of the adapters' bottlenecks.
        seed: Draws the virtual tokens, the first weights and the order of the examples.
        max_length: Longest sequence in tokens, virtual tokens included; the prompt keeps it.
        training: Batches and rates.
        run: Its cache is not used: what is trained changes the texts' keys and values.

    Raises:
        ValueError: For an unknown method, a model without biases (bitfit), in train mode or of an unsupported kind, a
            loss that is not finite, or settings out of range.
        ImportError: When LoRA is asked for and PEFT is missing.

    Example:
        >>> adapted = {how: skn.studies.adapt(model, task, how) for how in ("lora", "bitfit", "adapter")}
        >>> skn.studies.measure_adapted(adapted, task, skill)
    """
    require_supported(model)
    require_eval(model, "adapting")
    require_option(how, "how", METHODS)
    counts = {"n_virtual_tokens": n_virtual_tokens, "n_steps": n_steps, "width": width}
    counts = {name: require_int(value, name) for name, value in counts.items()}
    require_seed(seed)
    split = task.split("train")
    labels = torch.tensor(split["label"])
    adapted = _frozen_copy(model)
    prompt = _untrained_prompt(model, task, n_virtual_tokens, seed, max_length)
    prompted = PromptedModel.for_task(adapted, prompt, task, run=replace(run, cache=None))
    parts_of_train = hold_back(labels, training.held_back, groups_of(columns_of(split)))
    examples = Examples(prompted.encode(list(split["text"])), labels, *parts_of_train)
    with adapter_parameters(adapted, how, width, seed) as parts:
        trained = [*parts.values(), *([] if prompt.readout is None else [prompt.readout])]
        losses = train_adapters(prompted, examples, trained, n_steps, training, seed)
        held = [split["text"][i] for i in examples.held]
        known = _held_back_accuracy(prompted, held, labels[examples.held], how)
        kept = {name: one.detach().clone() for name, one in parts.items()}
        for one in trained:
            one.requires_grad_(False)
    adapted.requires_grad_(False)
    settings = {
        **counts,
        "how": how,
        **{name: getattr(training, name) for name in ("batch_size", "learning_rate", "warmup", "clip")},
        "held_back": training.held_back,
        "max_length": max_length,
    }
    provenance = {
        "model": model_record(model),
        "task": {"name": task.name, "fingerprint": task.fingerprint, "role": "train"},
        "settings": settings,
        "seed": seed,
        "losses": losses,
        "held_back_accuracy": known,
        "n_held_back": len(examples.held),
    }
    return AdaptedModel(adapted, prompt, how, sum(p.numel() for p in trained), provenance, kept)


def measure_adapted(
    adapted: Mapping[str, AdaptedModel],
    task: Task,
    neurons: Neurons,
    *,
    interventions: How | Sequence[How] = "mean",
    positions: str | Sequence[str] = "all",
    metrics: Sequence[str] = ("accuracy", "logit_diff"),
    n_random: int = 20,
    seed: int = 0,
    examples: EffectExamples = EffectExamples(),
    run: RunOptions = RunOptions(),
) -> pd.DataFrame:
    """What ``neurons`` do in each adapted model, beside random neurons of the same layers.

    Args:
        adapted: By name, what :func:`adapt` gave (and, for comparison, the model with its tuned prompt as
            ``AdaptedModel(model, prompt, "prompt", n)``).
        neurons: Such as the skill neurons that a tuned prompt found in the model before.
        interventions, positions, n_random, seed, examples: As for :func:`~tl_skillneurons.measure_effects`. The values
            that neurons are held at come from each adapted model's own runs.
        metrics: Which rows of the panels.
        run: How to run; a cache is of one model, so none is shared here.

    Returns:
        Of each model the panel's rows with these metrics, and ``adapted`` (the name), ``how`` and ``n_trained``.

    Raises:
        ValueError: For no adapted model, neurons of another model, or an intervention that is unknown.

    Example:
        >>> frame = skn.studies.measure_adapted({"lora": skn.studies.adapt(model, task, "lora")}, task, skill)
        >>> frame[["adapted", "metric", "intact", "value", "random_median", "p_random"]]
    """
    neurons = as_neurons(neurons)
    require_seed(seed)
    if not adapted:
        raise ValueError("give at least one adapted model by name, got none")
    frames = []
    for name, one in adapted.items():
        panel = measure_effects(
            one.model,
            one.prompt,
            task,
            neurons,
            interventions=interventions,
            positions=positions,
            n_random=n_random,
            seed=seed,
            examples=examples,
            run=replace(run, cache=None),
        )
        frame = panel.to_dataframe()
        frame = frame[frame.metric.isin(metrics)]
        frames.append(frame.assign(adapted=name, how=one.how, n_trained=one.n_trained))
    joined = pd.concat(frames, ignore_index=True)
    first = ["adapted", "how", "n_trained"]
    return joined[[*first, *(column for column in joined if column not in first)]]


def _frozen_copy(model: TransformerBridge) -> TransformerBridge:
    copied = copy_model(model)
    copied.requires_grad_(False)
    return copied


def _untrained_prompt(
    model: TransformerBridge, task: Task, n_virtual_tokens: int, seed: int, max_length: int | None
) -> SoftPrompt:
    """Random words as virtual tokens that no gradient reaches, and a read-out of zeros where one is needed."""
    generator = torch.Generator().manual_seed(seed)
    n_words = min(model.W_E.shape[0], model.cfg.d_vocab)
    rows = embedding_rows(model, torch.randint(n_words, (n_virtual_tokens,), generator=generator))
    rows = rows.to(torch.promote_types(rows.dtype, torch.float32))
    readout = None
    if not has_language_model_head(model):
        readout = torch.zeros(task.n_classes, model.cfg.d_model, dtype=rows.dtype, device=rows.device)
    placement = "suffix" if is_causal(model) else "prefix"
    prompt = SoftPrompt(
        rows, placement=placement, readout=readout, chat=task.chat, max_length=max_length, seed=seed
    )
    prompt.embedding.requires_grad_(False)
    return prompt


def _held_back_accuracy(prompted: PromptedModel, texts: list[str], labels: Tensor, how: str) -> float:
    """Accuracy on what was held back; warns where guessing does as well."""
    with torch.no_grad():
        answers = prompted.class_logits(texts).argmax(1).cpu()
    known = float((answers == labels).double().mean())
    guess = float(torch.bincount(labels).max()) / len(labels)
    if known <= guess:
        warnings.warn(
            f"adapting by {how}: accuracy {known:.3f} on the part held back is not above guessing, "
            f"{guess:.3f}; train for more steps, or at another learning_rate",
            stacklevel=3,
        )
    return known
