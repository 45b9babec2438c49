"""The same task learned in other ways, the MLP weights frozen: are prompt-found skill neurons needed there too?

If skill neurons stem from pre-training, they should matter however the task is learned on top (Wang et al., 2022,
section 6). :func:`adapt` learns it without touching a weight of an MLP, :func:`measure_adapted` takes the neurons away:

======== ==========================================================================================================
lora     low-rank updates of the attention's query and value projections, by PEFT (Hu et al., 2022), merged afterwards
bitfit   every bias of the model, MLPs' included, and no other weight (Ben Zaken et al., 2022)
adapter  behind each attention and each MLP a bottleneck, ``x + W_up gelu(W_down x)`` (Houlsby et al., 2019)
======== ==========================================================================================================

The text stands where it stands in prompt tuning, beside virtual tokens that are never trained (random words), so
read-out and positions are the same and every tool here takes the adapted model as it is.

What it does not show: what happens when the MLPs themselves are trained, or that the neurons came from pre-training
rather than from what these methods share (the same texts, the same read-out). The control is random neurons.
"""

import copy
import math
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn import functional

from tl_skillneurons._checks import require_int, require_option
from tl_skillneurons._progress import progress_bar
from tl_skillneurons.interventions.effects import accuracy
from tl_skillneurons.interventions.measure_effects import measure_effects
from tl_skillneurons.models.records import model_record
from tl_skillneurons.models.sites import has_language_model_head, is_causal, require_eval, require_supported
from tl_skillneurons.neurons import NeuronSet
from tl_skillneurons.prompts.prompted_model import PromptedModel
from tl_skillneurons.prompts.soft_prompt import SoftPrompt
from tl_skillneurons.prompts.tuning.schedule import batch_at, embedding_rows, hold_back, rate
from tl_skillneurons.tasks.task import Task

METHODS = ("lora", "bitfit", "adapter")


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
    """

    model: Any
    prompt: SoftPrompt
    how: str
    n_trained: int
    provenance: dict[str, Any] = field(default_factory=dict)


def adapt(
    model: Any,
    task: Task,
    how: str = "lora",
    *,
    n_virtual_tokens: int = 1,
    n_steps: int = 300,
    batch_size: int = 16,
    learning_rate: float = 0.001,
    width: int = 8,
    warmup: float = 0.06,
    held_back: float = 0.1,
    seed: int = 0,
    progress: bool = True,
) -> AdaptedModel:
    """Learn ``task`` on a copy of ``model`` with the MLPs' weights frozen; ``model`` stays as it is.

    Args:
        how: "lora" (needs PEFT), "bitfit" or "adapter".
        n_virtual_tokens: Untrained tokens beside the text, random words drawn by ``seed``.
        learning_rate: Adam's highest rate.
        width: Rank of LoRA's updates, or width of the adapters' bottlenecks.
        warmup: Share of the steps over which the rate rises; then it falls to zero.
        held_back: Share of ``train`` that is not trained on.
        seed: Draws the virtual tokens, the first weights and the order of the examples.

    Raises:
        ValueError: For an unknown method, a model without biases (bitfit), in train mode or of an unsupported kind, a
            loss that is not finite, or settings out of range.
        ImportError: When LoRA is asked for and PEFT is missing.
    """
    require_supported(model)
    require_eval(model, "adapting")
    require_option(how, "how", METHODS)
    counts = {
        "n_virtual_tokens": n_virtual_tokens,
        "n_steps": n_steps,
        "batch_size": batch_size,
        "width": width,
    }
    counts = {name: require_int(value, name) for name, value in counts.items()}
    require_int(seed, "seed", minimum=0)
    if not 0 < learning_rate < math.inf:
        raise ValueError(f"learning_rate must be above 0 and finite, got {learning_rate}")
    for name, value in (("warmup", warmup), ("held_back", held_back)):
        if not 0 <= value < 1 or (name == "held_back" and not value):
            raise ValueError(f"{name} is a share and must be below 1 and not negative, got {value}")
    settings = {
        **counts,
        "how": how,
        "learning_rate": learning_rate,
        "warmup": warmup,
        "held_back": held_back,
    }
    adapted = copy.deepcopy(model)
    adapted.requires_grad_(False)
    prompt = _untrained_prompt(model, task, counts["n_virtual_tokens"], seed)
    with _PARTS[how](adapted, counts["width"], seed) as parts:
        trained = [*parts, *([] if prompt.readout is None else [prompt.readout])]
        history = _train(adapted, prompt, task, trained, settings, seed, progress)
    adapted.requires_grad_(False)
    prompt.requires_grad_(False)
    provenance = {
        "model": model_record(model),
        "task": {"name": task.name, "fingerprint": task.fingerprint, "role": "train"},
        "settings": settings,
        "seed": seed,
        **history,
    }
    return AdaptedModel(adapted, prompt, how, sum(p.numel() for p in trained), provenance)


def measure_adapted(
    adapted: Mapping[str, AdaptedModel],
    task: Task,
    neurons: NeuronSet,
    *,
    interventions: tuple[str, ...] = ("mean",),
    positions: tuple[str, ...] = ("all",),
    metrics: tuple[str, ...] = ("accuracy", "logit_diff"),
    **options: Any,
) -> pd.DataFrame:
    """What ``neurons`` do in each adapted model, beside random neurons of the same layers.

    Args:
        adapted: By name, what :func:`adapt` gave (and, for comparison, the model with its tuned prompt as
            ``AdaptedModel(model, prompt, "prompt", n)``).
        neurons: Such as the skill neurons that a tuned prompt found in the model before.
        interventions, positions, options: Of :func:`~tl_skillneurons.measure_effects`. The values that neurons are
            held at come from each adapted model's own runs.

    Returns:
        Of each model the panel's rows with these metrics, and ``adapted`` (the name), ``how`` and ``n_trained``.

    Raises:
        ValueError: For no adapted model, neurons of another model, or an intervention that is unknown.
    """
    if not adapted:
        raise ValueError("give at least one adapted model by name, got none")
    frames = []
    for name, one in adapted.items():
        panel = measure_effects(
            one.model, one.prompt, task, neurons, interventions=interventions, positions=positions, **options
        )
        frame = panel.to_dataframe()
        frame = frame[frame.metric.isin(metrics)]
        frames.append(frame.assign(adapted=name, how=one.how, n_trained=one.n_trained))
    joined = pd.concat(frames, ignore_index=True)
    first = ["adapted", "how", "n_trained"]
    return joined[[*first, *(column for column in joined if column not in first)]]


def _untrained_prompt(model: Any, task: Task, n_virtual_tokens: int, seed: int) -> SoftPrompt:
    """Random words as virtual tokens that no gradient reaches, and a read-out of zeros where one is needed."""
    generator = torch.Generator().manual_seed(seed)
    n_words = min(model.W_E.shape[0], model.cfg.d_vocab)
    rows = embedding_rows(model, torch.randint(n_words, (n_virtual_tokens,), generator=generator))
    rows = rows.to(torch.promote_types(rows.dtype, torch.float32))
    readout = None
    if not has_language_model_head(model):
        readout = torch.zeros(task.n_classes, model.cfg.d_model, dtype=rows.dtype, device=rows.device)
    prompt = SoftPrompt(
        rows, placement="suffix" if is_causal(model) else "prefix", readout=readout, seed=seed
    )
    prompt.embedding.requires_grad_(False)
    return prompt


@contextmanager
def _lora(model: Any, width: int, seed: int) -> Iterator[list[nn.Parameter]]:
    """PEFT's layers in the place of the query and value projections; merged into plain ones at the end."""
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise ImportError('lora needs the package peft; pip install "tl_skillneurons[peft]"') from error
    places = {
        f"{part}{layer}": getattr(block.attn, part)
        for layer, block in enumerate(model.blocks)
        for part in ("q", "v")
    }
    holder = nn.ModuleDict({name: place.original_component for name, place in places.items()})
    config = LoraConfig(r=width, lora_alpha=2 * width, target_modules=list(places))
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        inject_adapter_in_model(config, holder)
    holder.eval()
    for name, place in places.items():
        place.set_original_component(holder[name])
    yield [p for name, p in holder.named_parameters() if "lora_" in name]
    for name, place in places.items():
        holder[name].merge()
        place.set_original_component(holder[name].get_base_layer())


@contextmanager
def _bitfit(model: Any, width: int, seed: int) -> Iterator[list[nn.Parameter]]:
    biases = [p.requires_grad_(True) for name, p in model.named_parameters() if name.endswith("bias")]
    if not biases:
        raise ValueError(f"{model.cfg.model_name} has no biases for bitfit to train; use 'lora' or 'adapter'")
    yield biases


@contextmanager
def _adapter(model: Any, width: int, seed: int) -> Iterator[list[nn.Parameter]]:
    """A bottleneck behind each output projection; it belongs to this model from now on, as a permanent hook."""
    generator = torch.Generator().manual_seed(seed)
    trained = []
    for layer, block in enumerate(model.blocks):
        for part, out in (("attn.o", block.attn.o), ("mlp.out", block.mlp.out)):
            weight = out.original_component.weight
            d_model = model.cfg.d_model
            down = torch.randn(d_model, width, generator=generator).to(weight.device) / math.sqrt(d_model)
            own = [nn.Parameter(down), nn.Parameter(torch.zeros(width, d_model, device=weight.device))]
            model.hook_dict[f"blocks.{layer}.{part}.hook_out"].add_hook(_bottleneck(*own), is_permanent=True)
            trained += own
    yield trained


def _bottleneck(down: nn.Parameter, up: nn.Parameter) -> Callable[..., Tensor]:
    def hook_function(act: Tensor, hook: Any) -> Tensor:
        return act + (functional.gelu(act.to(down) @ down) @ up).to(act)

    return hook_function


_PARTS = {"lora": _lora, "bitfit": _bitfit, "adapter": _adapter}


def _train(
    model: Any,
    prompt: SoftPrompt,
    task: Task,
    trained: list[nn.Parameter],
    settings: dict[str, Any],
    seed: int,
    progress: bool,
) -> dict[str, Any]:
    """Adam on the label words' cross-entropy; what came of it on the part that was held back."""
    split = task.split("train")
    texts, labels = list(split["text"]), torch.tensor(split["label"])
    mine, held = hold_back(labels, settings["held_back"])
    prompted = PromptedModel(model, prompt, task.label_words)
    ids = prompted.encode(texts)
    optimizer = torch.optim.Adam(trained, lr=settings["learning_rate"], foreach=False)
    n_steps = settings["n_steps"]
    losses = []
    with (
        prompted.attached() as virtual,
        torch.enable_grad(),
        progress_bar(f"adapting, {settings['how']}", n_steps, show=progress) as advance,
    ):
        for step in range(n_steps):
            for group in optimizer.param_groups:
                group["lr"] = settings["learning_rate"] * rate(step, n_steps, settings["warmup"])
            batch = batch_at(step, mine, settings["batch_size"], seed)
            logits = prompted.read_out(prompted.assemble([ids[i] for i in batch]), virtual)
            loss = functional.cross_entropy(logits, labels[batch].to(logits.device))
            if not loss.isfinite():
                raise ValueError(
                    f"adapting by {settings['how']} diverged at step {step}; give a lower learning_rate than "
                    f"{settings['learning_rate']}"
                )
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(trained, 1.0, foreach=False)
            optimizer.step()
            losses.append(float(loss.detach()))
            advance()
    known = accuracy(prompted, [texts[i] for i in held], labels[held])
    guess = float(torch.bincount(labels[held]).max()) / len(held)
    if known <= guess:
        warnings.warn(
            f"adapting by {settings['how']}: accuracy {known:.3f} on the part held back is not above guessing, "
            f"{guess:.3f}; train for more steps, or at another learning_rate",
            stacklevel=3,
        )
    return {"losses": losses, "held_back_accuracy": known, "n_held_back": len(held)}
