"""A first-order estimate of what patching each neuron alone would do, for all neurons at once.

Attribution patching (Nanda, 2023; Syed et al., 2023) at every ``mlp.hook_post``: with ``d`` the logit diff of the
base run, what a neuron's value from the source run would change is estimated as::

    sum over positions of (a_source - a_base) * gradient of d with respect to a

Two forward runs and one backward per batch give every neuron. ``steps > 1`` averages the gradient over runs
whose embeddings lie between base and source (integrated gradients on the input: Hanna et al., 2024).

It is a tangent: wrong where the model bends, which is where much is at stake. :func:`compare_with_exact` patches
neurons for real, the highest and a random sample, and tells how far the ranks agree. A neuron that nothing
reads can still get a small score through the scale of a norm.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from tl_skillneurons._checks import require_int, require_option
from tl_skillneurons._progress import progress_bar
from tl_skillneurons.interventions.patching import DIRECTIONS, Twins, patch_neurons, twins_of
from tl_skillneurons.models.sites import neuron_hooks, neuron_shape
from tl_skillneurons.neurons import SITE, NeuronSet
from tl_skillneurons.prompts.positions import PromptedTokens, columns
from tl_skillneurons.prompts.prompted_model import PromptedModel
from tl_skillneurons.prompts.soft_prompt import SoftPrompt, VirtualTokens
from tl_skillneurons.tasks.task import Task


@dataclass(frozen=True, eq=False)
class NeuronAttribution:
    """Estimated change of the logit diff by patching each neuron alone, averaged over pairs.

    Attributes:
        effect: In logits; for "denoise" positive values recover the clean answer, for "noise" negative values
            take it away.
        gap: Mean logit diff of the source runs minus that of the base runs: what there is to move.
        settings: Model, site, direction, positions and their frame, role, steps.
    """

    effect: Float[Tensor, "layer neuron"]
    gap: float
    settings: dict[str, Any]

    @property
    def recovered(self) -> Float[Tensor, "layer neuron"]:
        """The same as a fraction of the gap, as :meth:`NeuronPatching.recovered` has it."""
        return self.effect / self.gap

    def top(self, n: int) -> NeuronSet:
        """The neurons that recover most by this estimate, highest first."""
        order = self.recovered.flatten().argsort(descending=True, stable=True)[: require_int(n, "n")]
        n_layers, d_mlp = self.effect.shape
        return NeuronSet(order // d_mlp, order % d_mlp, n_layers, d_mlp, self.settings["model"])


def attribute_neurons(
    model: Any,
    prompt: SoftPrompt,
    task: Task,
    *,
    twins: Twins | None = None,
    clean_labels: Sequence[int] | None = None,
    direction: str = "denoise",
    positions: Any = "prompt",
    steps: int = 1,
    role: str = "report",
    batch_size: int | None = None,
    batch_tokens: int | None = None,
    max_length: int | None = None,
    progress: bool = True,
) -> NeuronAttribution:
    """Estimate for every neuron what :func:`~tl_skillneurons.patch_neurons` would find for it alone.

    Args:
        task, twins, clean_labels, positions: As in :func:`~tl_skillneurons.patch_neurons`.
        steps: Runs between base and source whose gradients are averaged; 1 takes that of the base run.

    Raises:
        ValueError: Inside ``torch.no_grad()`` or ``torch.inference_mode()``, where a run has no graph; for pairs of
            unequal length.
    """
    if torch.is_inference_mode_enabled() or not torch.is_grad_enabled():
        raise ValueError(
            "attribution needs gradients; call it outside torch.no_grad() and torch.inference_mode()"
        )
    require_option(direction, "direction", DIRECTIONS)
    require_int(steps, "steps")
    prompted = PromptedModel(model, prompt, task.label_words, max_length=max_length)
    pairs, labels = twins_of(prompted, task, role, twins, clean_labels)
    sides = [prompted.encode([pair[side] for pair in pairs]) for side in (0, 1)]
    source, base = sides if direction == "denoise" else sides[::-1]
    effect = torch.zeros(neuron_shape(model), dtype=torch.float64)
    gap = 0.0
    with prompted.attached() as virtual, progress_bar("attribution", len(pairs), show=progress) as advance:
        for rows in prompted.batches(base, batch_tokens, batch_size):
            tokens = [prompted.assemble([ids[i] for i in rows], rows) for ids in (base, source)]
            change, moved = _attribute(prompted, *tokens, virtual, labels[rows], positions, steps)
            effect += change
            gap += moved
            advance(len(rows))
    settings = {
        "model": model.cfg.model_name,
        "task": task.name,
        "site": SITE,
        "direction": direction,
        "positions": str(positions),
        "positions_frame": "with virtual tokens",
        "role": role if twins is None else "given twins",
        "steps": steps,
    }
    return NeuronAttribution(effect / len(pairs), gap / len(pairs), settings)


def _attribute(
    prompted: PromptedModel,
    base: PromptedTokens,
    source: PromptedTokens,
    virtual: VirtualTokens,
    sign: Tensor,
    positions: Any,
    steps: int,
) -> tuple[Float[Tensor, "layer neuron"], float]:
    """Summed over the batch: the estimated changes, and the gap."""
    names = neuron_hooks(prompted.model)
    embeds: dict[str, Tensor] = {}
    acts: dict[str, list[Tensor]] = {"base": [], "source": []}
    where: dict[str, Tensor] = {}

    def keep_embed(side: str) -> Callable[..., None]:
        def note(act: Tensor, hook: Any) -> None:
            embeds[side] = act.detach()

        return note

    def keep(side: str) -> Callable[..., None]:
        def note(act: Tensor, hook: Any) -> None:
            acts[side].append(act.detach())
            where["columns"] = columns(positions, act, hook)

        return note

    diffs = {}
    with torch.no_grad():
        for side, tokens in (("base", base), ("source", source)):
            hooks = [("embed.hook_out", keep_embed(side)), *((name, keep(side)) for name in names)]
            diffs[side] = _diff(prompted, tokens, virtual, hooks, sign)
    gradients = [torch.zeros_like(act) for act in acts["base"]]
    for step in range(steps):
        share = 0.0 if steps == 1 else (step + 0.5) / steps
        between = torch.lerp(embeds["base"], embeds["source"], share)
        live: list[Tensor] = []

        def start(act: Tensor, hook: Any, between: Tensor = between) -> Tensor:
            return between.clone().requires_grad_(True)

        def hold(act: Tensor, hook: Any, live: list[Tensor] = live) -> None:
            live.append(act)

        hooks = [("embed.hook_out", start), *((name, hold) for name in names)]
        total = _diff(prompted, base, virtual, hooks, sign).sum()
        for gradient, new in zip(gradients, torch.autograd.grad(total, live), strict=True):
            gradient += new / steps
    chosen = where["columns"][..., None]
    change = [
        ((s - b).double() * g.double() * chosen).sum((0, 1)).cpu()
        for b, s, g in zip(acts["base"], acts["source"], gradients, strict=True)
    ]
    return torch.stack(change), float((diffs["source"] - diffs["base"]).sum())


def _diff(
    prompted: PromptedModel, tokens: PromptedTokens, virtual: VirtualTokens, hooks: list[Any], sign: Tensor
) -> Float[Tensor, " batch"]:
    logits = prompted.read_out(tokens, virtual, hooks)
    return sign.to(logits) * (logits[:, 1] - logits[:, 0])


def compare_with_exact(
    model: Any,
    prompt: SoftPrompt,
    task: Task,
    attribution: NeuronAttribution,
    *,
    twins: Twins | None = None,
    clean_labels: Sequence[int] | None = None,
    positions: Any = "prompt",
    n_top: int = 20,
    n_sample: int = 20,
    role: str = "report",
    seed: int = 0,
    progress: bool = True,
    **batching: Any,
) -> pd.DataFrame:
    """Patch neurons one at a time, the highest by attribution and a random sample, and compare.

    Give the positions, twins and role that the attribution was made with.

    Returns:
        One row per neuron: ``group`` ("top" or "sample"), ``layer``, ``index``, ``estimate`` and ``exact``, both
        fractions of the gap, and the group's Spearman correlation of the two, ``rank_agreement``.
    """
    n_layers, d_mlp = attribution.effect.shape
    top = attribution.top(n_top)
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randperm(n_layers * d_mlp, generator=generator)[: require_int(n_sample, "n_sample")]
    groups = {"top": top, "sample": NeuronSet(drawn // d_mlp, drawn % d_mlp, n_layers, d_mlp)}
    direction = attribution.settings["direction"]
    frames = []
    for group, neurons in groups.items():
        found = patch_neurons(
            model,
            prompt,
            task,
            neurons,
            twins=twins,
            clean_labels=clean_labels,
            directions=(direction,),
            positions=positions,
            curves=("neuron",),
            n_random=19,
            role=role,
            seed=seed,
            progress=progress,
            **batching,
        )
        index = found.results[direction].index_df
        single = index[(index.curve == "neuron") & (index.kind == "chosen")].index.tolist()
        frame = neurons.to_dataframe().assign(group=group)
        frame["estimate"] = attribution.recovered[neurons.layer, neurons.index].tolist()
        frame["exact"] = found.recovered(direction)[single].tolist()
        frames.append(frame.assign(rank_agreement=frame.estimate.rank().corr(frame.exact.rank())))
    return pd.concat(frames, ignore_index=True)
