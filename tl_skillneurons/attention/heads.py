"""Do the heads matter that write into skill neurons? Ablate them, and look at the neurons and the answers again.

A head's output ``z`` (``blocks.{layer}.attn.hook_z``, before the output projection) is held at 0 or at its mean.
The neurons are then scored anew by how far apart they hold the labels, in standard deviations of the intact
run: ``(mean of label 1 - mean of label 0) / std``, averaged over prompt positions within each example. The
answers are the class logits of the same runs.

The control is as many random heads of the same layers (of other layers where one has too few others). What it
does not show: by which path a head matters, for an ablated head is missing everywhere; and a head whose
ablation changes nothing may have others that stand in.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from tl_skillneurons._checks import require_int, require_option
from tl_skillneurons._progress import progress_bar
from tl_skillneurons.interventions.ablation import Hook
from tl_skillneurons.interventions.effect_panel import per_example
from tl_skillneurons.models.batches import run_batches
from tl_skillneurons.models.input_cache import InputCache, runs_text_apart
from tl_skillneurons.models.sites import head_hooks, neuron_hooks, neuron_shape
from tl_skillneurons.neurons import SITE, NeuronSet
from tl_skillneurons.prompts.positions import columns, current_tokens
from tl_skillneurons.prompts.prompted_model import PromptedModel
from tl_skillneurons.prompts.soft_prompt import SoftPrompt
from tl_skillneurons.stats.chance import rank_p_value
from tl_skillneurons.stats.intervals import require_draws
from tl_skillneurons.tasks.task import Task, require_two_classes

Head = tuple[int, int]
"""A head's layer and its number there."""
METHODS = ("zero", "mean")


def ablate_heads(
    heads: Sequence[Head],
    *,
    how: str = "zero",
    values: Float[Tensor, "layer head d_head"] | None = None,
    positions: Any = "all",
) -> list[Hook]:
    """Hooks that hold the outputs of ``heads``, one per layer that has any.

    Args:
        values: For "mean" what each head's output is held at (:func:`mean_head_outputs`).
        positions: As in :func:`~tl_skillneurons.ablate`.

    Raises:
        ValueError: For an unknown option, no head, a head twice, missing values; and, when the model runs, for
            heads outside the model.
    """
    require_option(how, "how", METHODS)
    pairs = _pairs(heads)
    if (values is None) == (how == "mean"):
        needs = "needs values to hold the heads at" if how == "mean" else "takes no values"
        raise ValueError(
            f"how={how!r} {needs}; how='mean' takes values=mean_head_outputs(model, prompt, texts)"
        )
    if isinstance(positions, str):
        require_option(positions, "positions", ("all", "prompt", "text"))
    of_layer: dict[int, list[int]] = {}
    for layer, head in pairs:
        of_layer.setdefault(layer, []).append(head)
    return [
        (f"blocks.{layer}.attn.o.hook_in", _hold(layer, own, values, positions))
        for layer, own in sorted(of_layer.items())
    ]


def _hold(layer: int, own: list[int], values: Tensor | None, positions: Any) -> Any:
    def hook_function(act: Float[Tensor, "batch pos head d_head"], hook: Any) -> Tensor:
        if max(own) >= act.shape[2]:
            raise ValueError(f"layer {layer} has {act.shape[2]} heads, got head {max(own)}")
        by_head = act.clone()  # other hooks may keep the original
        held = torch.zeros_like(by_head[0, 0, own]) if values is None else values[layer, own].to(by_head)
        if isinstance(positions, str) and positions == "all":
            by_head[:, :, own] = held
        else:
            where = columns(positions, act, hook)[..., None, None]
            by_head[:, :, own] = torch.where(where, held, by_head[:, :, own])
        return by_head

    hook_function.acts_at = positions if isinstance(positions, str) else "chosen"
    return hook_function


def random_heads_like(
    heads: Sequence[Head], seed: int, *, n_heads: int, exclude: bool = True, n_layers: int | None = None
) -> list[Head]:
    """As many random heads of each layer; ``exclude`` leaves these heads themselves out.

    Args:
        n_layers: Where a layer has too few others, lets the rest be drawn from the other heads of this many
            layers.

    Raises:
        ValueError: When there are too few heads to draw from.
    """
    generator = torch.Generator().manual_seed(require_int(seed, "seed", minimum=0))
    drawn: list[Head] = []
    pairs = _pairs(heads)
    for layer in sorted({layer for layer, _ in pairs}):
        own = {head for at, head in pairs if at == layer}
        pool = [head for head in range(n_heads) if not (exclude and head in own)]
        if len(pool) < len(own) and n_layers is None:
            raise ValueError(
                f"layer {layer} has {len(pool)} heads to draw {len(own)} random ones from ({n_heads} without these); "
                "give fewer heads, or draw with exclude=False"
            )
        order = torch.randperm(len(pool), generator=generator)[: len(own)]
        drawn += [(layer, pool[i]) for i in order.tolist()]
    if len(drawn) == len(pairs):
        return drawn
    taken = {*pairs, *drawn}
    others = [(layer, h) for layer in range(n_layers) for h in range(n_heads) if (layer, h) not in taken]
    if len(others) < len(pairs) - len(drawn):
        raise ValueError(
            f"the model has {n_layers * n_heads} heads, too few to draw {len(pairs)} others at random; "
            "give fewer heads"
        )
    order = torch.randperm(len(others), generator=generator)[: len(pairs) - len(drawn)]
    return drawn + [others[i] for i in order.tolist()]


def mean_head_outputs(
    model: Any,
    prompt: SoftPrompt,
    texts: Sequence[str],
    *,
    positions: str = "prompt",
    batch_size: int | None = None,
    batch_tokens: int | None = None,
    max_length: int | None = None,
) -> Float[Tensor, "layer head d_head"]:
    """Each head's output averaged over texts and over their "prompt", "text" or "all" positions, padding left out."""
    require_option(positions, "positions", ("prompt", "text", "all"))
    prompted = PromptedModel(model, prompt, max_length=max_length)
    ids = prompted.encode(texts)
    names = head_hooks(model)
    sums: dict[int, Tensor] = {}
    count = 0
    with prompted.attached() as virtual, torch.no_grad():

        def run(batch: list[int]) -> None:
            nonlocal count
            tokens = prompted.assemble([ids[i] for i in batch], batch)
            kinds = {"prompt": tokens.is_prompt, "text": tokens.is_text, "all": ~tokens.is_padding}
            where, found = kinds[positions], {}

            def keep(layer: int) -> Any:
                def note(act: Tensor, hook: Any) -> None:
                    found[layer] = act[where.to(act.device)].sum(0, dtype=torch.float64)

                return note

            prompted.forward(tokens, virtual, [(name, keep(layer)) for layer, name in enumerate(names)])
            for layer, total in found.items():
                sums[layer] = sums.get(layer, 0) + total.cpu()
            count += int(where.sum())

        run_batches(prompted.batches(ids, batch_tokens, batch_size), run)
    return (torch.stack([sums[layer] for layer in range(len(names))]) / count).float()


@dataclass(frozen=True, eq=False)
class HeadEffects:
    """What ablating heads does to neurons and answers, beside random heads of the same layers.

    Attributes:
        heads: Which heads; ``controls`` are the random ones of each draw.
        logits: Class logits: intact, ablated, and of each draw.
        activations: The neurons' activations, averaged over prompt positions, likewise.
        labels: Class of each example.
        role: Where the examples come from.
        settings: Model, task, neurons, site, ablation, seed.
    """

    heads: tuple[Head, ...]
    controls: tuple[tuple[Head, ...], ...]
    logits: Float[Tensor, "condition example n_classes"]
    activations: Float[Tensor, "condition example neuron"]
    labels: Int[Tensor, " example"]
    role: str
    settings: dict[str, Any]

    @property
    def separation(self) -> Float[Tensor, "condition neuron"]:
        """How far apart each neuron holds the labels, in its intact standard deviations; with its sign."""
        acts = self.activations.double()
        apart = acts[:, self.labels == 1].mean(1) - acts[:, self.labels == 0].mean(1)
        return apart / acts[0].std(0, correction=0).clamp(min=1e-12)

    def to_dataframe(self) -> pd.DataFrame:
        """One row per measure: ``accuracy``, ``logit_diff`` and ``separation`` (absolute, mean over the neurons).

        Columns ``intact``, ``ablated``, ``random_median``, ``random_min``, ``random_max`` and ``p_random``, the
        rank p-value of as much harm: (1 + draws at least as low) / (1 + draws).
        """
        values = {
            metric: torch.stack([per_example(metric, z, self.labels).mean() for z in self.logits])
            for metric in ("accuracy", "logit_diff")
        }
        values["separation"] = self.separation.abs().mean(1)
        rows = []
        for name, value in values.items():
            drawn = value[2:]
            row = {"measure": name, "intact": float(value[0]), "ablated": float(value[1])}
            row |= {f"random_{end}": float(getattr(drawn, end)()) for end in ("median", "min", "max")}
            rows.append({**row, "p_random": rank_p_value(float(value[1]), drawn)})
        return pd.DataFrame(rows).assign(n_examples=len(self.labels), role=self.role)


def head_effects(
    model: Any,
    prompt: SoftPrompt,
    task: Task,
    heads: Sequence[Head],
    neurons: NeuronSet,
    *,
    how: str = "mean",
    positions: str = "prompt",
    n_random: int = 20,
    role: str = "report",
    reference: str = "baseline",
    n_reference: int = 256,
    seed: int = 0,
    batch_size: int | None = None,
    batch_tokens: int | None = None,
    max_length: int | None = None,
    progress: bool = True,
) -> HeadEffects:
    """Ablate ``heads``, and ``n_random`` times as many random ones, and look at neurons and answers each time.

    Args:
        positions: Where the heads' outputs are held: "prompt" (what the prompt positions get), "text" or "all".
        reference: The role whose first ``n_reference`` examples give the means.

    Raises:
        ValueError: For heads or neurons of another model, or fewer draws than a p-value of 0.05 needs.
    """
    require_two_classes(task)
    require_draws(n_random)
    neurons.require_fits(*neuron_shape(model))
    pairs, n_heads = _pairs(heads), int(model.cfg.n_heads)
    outside = [h for h in pairs if not (h[0] < len(model.blocks) and h[1] < n_heads)]
    if outside:
        raise ValueError(
            f"heads must have layer in [0, {len(model.blocks)}) and head in [0, {n_heads}), got {outside[0]}"
        )
    n_layers = len(model.blocks)
    controls = [
        random_heads_like(pairs, seed + draw, n_heads=n_heads, n_layers=n_layers) for draw in range(n_random)
    ]
    values = None
    options = {"batch_size": batch_size, "batch_tokens": batch_tokens}
    if how == "mean":
        texts = list(task.split(reference)["text"])[:n_reference]
        values = mean_head_outputs(
            model, prompt, texts, positions=positions, max_length=max_length, **options
        )
    cache = InputCache(model) if positions == "prompt" and runs_text_apart(model) else None
    prompted = PromptedModel(model, prompt, task.label_words, max_length=max_length, cache=cache)
    split = task.split(role)
    texts = list(split["text"])
    conditions = [
        [],
        *(ablate_heads(h, how=how, values=values, positions=positions) for h in [pairs, *controls]),
    ]
    logits, acts = [], []
    with progress_bar("ablating heads", len(conditions), show=progress) as advance:
        for hooks in conditions:
            kept = torch.empty(len(texts), len(neurons), dtype=model.W_E.dtype)
            with torch.no_grad():
                reading = _readers(model, neurons, kept)
                logits.append(prompted.class_logits(texts, [*hooks, *reading], **options).cpu())
            acts.append(kept)
            advance()
    settings = {
        "model": model.cfg.model_name,
        "task": task.name,
        "neurons": [list(pair) for pair in neurons],
        "site": SITE,
        "how": how,
        "positions": positions,
        "positions_frame": "with virtual tokens",
        "reference": [reference, n_reference] if how == "mean" else None,
        "seed": seed,
    }
    return HeadEffects(
        tuple(pairs),
        tuple(tuple(drawn) for drawn in controls),
        torch.stack(logits),
        torch.stack(acts),
        torch.tensor(split["label"]),
        role,
        settings,
    )


def _readers(model: Any, neurons: NeuronSet, kept: Tensor) -> list[Hook]:
    """Hooks that write the neurons' activations, averaged over prompt positions, into ``kept``."""
    names = neuron_hooks(model)

    def reader(layer: int, index: Tensor) -> Any:
        feature = (neurons.layer == layer).nonzero().flatten()

        def note(act: Tensor, hook: Any) -> None:
            tokens = current_tokens(hook)
            rows = torch.arange(len(act), device=act.device)[:, None]
            at = act[rows, tokens.prompt_columns().to(act.device)]
            kept[tokens.example.cpu()[:, None], feature] = at[..., index.to(act.device)].mean(1).cpu()

        note.acts_at = "prompt"  # looks there alone
        return note

    return [(names[layer], reader(layer, index)) for layer, index in neurons.by_layer().items()]


def _pairs(heads: Sequence[Head]) -> list[Head]:
    pairs = []
    for head in heads:
        if len(head) != 2 or any(isinstance(n, bool) or int(n) != n or n < 0 for n in head):
            raise ValueError(f"heads must be pairs (layer, head) of integers from 0, got {head!r}")
        pairs.append((int(head[0]), int(head[1])))
    if not pairs:
        raise ValueError("heads must hold at least one (layer, head), got none")
    twice = [pair for pair in pairs if pairs.count(pair) > 1]
    if twice:
        raise ValueError(f"heads must be distinct, got {twice[0]} twice")
    return pairs
