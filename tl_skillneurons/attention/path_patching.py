"""Path patching, head to neurons: what heads carry from one twin into chosen neurons, by the direct path alone.

Three runs (Wang et al., 2023; Goldowsky-Dill et al., 2023), base and source being twins of different label:

1. base and source, to know their heads' outputs;
2. base again, every head's and every MLP's output as in base, but for the chosen heads at the prompt positions,
   which write what they wrote in source: what reaches the chosen neurons now came straight through the residual
   stream and the norms;
3. base with the neurons at the values of run 2, everything else following: what the answer makes of it.

Two fractions are told: how far the neurons went from base to source, and how far the logit diff did. The
control is as many random heads of the same layers. What it does not show: paths through other heads, MLPs or
positions, which may carry as much.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from tl_skillneurons._checks import require_int
from tl_skillneurons._progress import progress_bar
from tl_skillneurons.attention.heads import Head, random_heads_like
from tl_skillneurons.interventions.patching import Twins, twins_of
from tl_skillneurons.models.sites import head_hooks, neuron_hooks, neuron_shape
from tl_skillneurons.neurons import SITE, NeuronSet
from tl_skillneurons.prompts.positions import PromptedTokens, columns
from tl_skillneurons.prompts.prompted_model import PromptedModel
from tl_skillneurons.prompts.soft_prompt import SoftPrompt, VirtualTokens
from tl_skillneurons.stats.chance import rank_p_value
from tl_skillneurons.stats.intervals import require_draws
from tl_skillneurons.tasks.task import Task


@dataclass(frozen=True, eq=False)
class PathPatching:
    """What heads carry into neurons by the direct path, beside random heads.

    Attributes:
        heads: The heads of each condition: the chosen ones, then each draw's.
        logit_diff: Base, source, then each condition; logit of the clean twin's label minus the other's. Base is
            the corrupted twin, source the clean one.
        activations: The neurons', averaged over prompt positions, likewise.
        settings: Model, task, neurons, site, role, seed.
    """

    heads: tuple[tuple[Head, ...], ...]
    logit_diff: Float[Tensor, "run pair"]
    activations: Float[Tensor, "run pair neuron"]
    settings: dict[str, Any]

    @property
    def recovered_answer(self) -> Float[Tensor, " condition"]:
        """How far the mean logit diff went from base to source."""
        base, source, *patched = self.logit_diff.mean(1)
        return (torch.stack(patched) - base) / (source - base)

    @property
    def recovered_activation(self) -> Float[Tensor, " condition"]:
        """How far the neurons went: their change projected on that from base to source, over pairs and neurons."""
        base, source = self.activations[:2]
        way = source - base
        return ((self.activations[2:] - base) * way).sum((1, 2)) / way.square().sum()

    def to_dataframe(self) -> pd.DataFrame:
        """Two rows, ``measure`` "activation" and "answer": ``recovered``, and of the random heads median, range and
        the rank p of recovering as much."""
        rows = []
        for name in ("activation", "answer"):
            share = getattr(self, f"recovered_{name}")
            drawn = share[1:]
            row = {"measure": name, "recovered": float(share[0])}
            row |= {f"random_{end}": float(getattr(drawn, end)()) for end in ("median", "min", "max")}
            rows.append({**row, "p_random": rank_p_value(float(share[0]), drawn, smaller=False)})
        return pd.DataFrame(rows).assign(n_pairs=self.logit_diff.shape[1])


def patch_heads_to_neurons(
    model: Any,
    prompt: SoftPrompt,
    task: Task,
    heads: Sequence[Head],
    neurons: NeuronSet,
    *,
    twins: Twins | None = None,
    clean_labels: Sequence[int] | None = None,
    n_random: int = 20,
    role: str = "report",
    seed: int = 0,
    batch_size: int | None = None,
    batch_tokens: int | None = None,
    max_length: int | None = None,
    progress: bool = True,
) -> PathPatching:
    """Patch the paths from ``heads`` at the prompt positions to ``neurons``, clean into corrupted.

    Args:
        task, twins, clean_labels: As in :func:`~tl_skillneurons.patch_neurons`.

    Raises:
        ValueError: For pairs of unequal length, heads or neurons of another model, or fewer draws than a p-value of
            0.05 needs.
    """
    neurons.require_fits(*neuron_shape(model))
    if not len(neurons):
        raise ValueError("neurons must hold at least one neuron, got none")
    require_draws(n_random)
    require_int(seed, "seed", minimum=0)
    n_layers, n_heads = len(model.blocks), int(model.cfg.n_heads)
    outside = [h for h in heads if not (0 <= h[0] < n_layers and 0 <= h[1] < n_heads)]
    if outside or not len(heads):
        raise ValueError(
            f"heads must be pairs (layer, head) with layer in [0, {n_layers}) and head in [0, {n_heads}), "
            f"got {outside[0] if outside else 'none'}"
        )
    draws = [
        random_heads_like(heads, seed + draw, n_heads=n_heads, n_layers=n_layers) for draw in range(n_random)
    ]
    conditions = [list(heads), *draws]
    prompted = PromptedModel(model, prompt, task.label_words, max_length=max_length)
    pairs, signs = twins_of(prompted, task, role, twins, clean_labels)
    clean, corrupted = (prompted.encode([pair[side] for pair in pairs]) for side in (0, 1))
    diffs = torch.empty(len(conditions) + 2, len(pairs), dtype=torch.float64)
    acts = torch.empty(len(conditions) + 2, len(pairs), len(neurons), dtype=torch.float64)
    with (
        progress_bar("path patching", len(pairs), show=progress) as advance,
        prompted.attached() as virtual,
        torch.no_grad(),
    ):
        for rows in prompted.batches(clean, batch_tokens, batch_size):
            base, source = (prompted.assemble([ids[i] for i in rows], rows) for ids in (corrupted, clean))
            run = _Runs(prompted, virtual, base, source, neurons)
            found = [run.base, run.source, *(run.path(chosen) for chosen in conditions)]
            for number, (logits, values) in enumerate(found):
                diffs[number, rows] = signs[rows] * (logits[:, 1] - logits[:, 0]).double().cpu()
                acts[number, rows] = values.double().cpu()
            advance(len(rows))
    settings = {
        "model": model.cfg.model_name,
        "task": task.name,
        "neurons": [list(pair) for pair in neurons],
        "site": SITE,
        "positions": "prompt, with virtual tokens",
        "role": role if twins is None else "given twins",
        "seed": seed,
    }
    return PathPatching(tuple(tuple(c) for c in conditions), diffs, acts, settings)


class _Runs:
    """The runs of one batch of twins."""

    def __init__(
        self,
        prompted: PromptedModel,
        virtual: VirtualTokens,
        base: PromptedTokens,
        source: PromptedTokens,
        neurons: NeuronSet,
    ) -> None:
        self.prompted, self.virtual, self.tokens, self.neurons = prompted, virtual, base, neurons
        model = prompted.model
        self.heads = head_hooks(model)
        self.mlps = [f"blocks.{layer}.mlp.out.hook_out" for layer in range(len(model.blocks))]
        self.posts = {layer: neuron_hooks(model)[layer] for layer in neurons.by_layer()}
        at = base.prompt_columns()
        self.at = (torch.arange(len(base), device=at.device)[:, None], at)
        self.of_base: dict[str, Tensor] = {}
        self.of_source: dict[str, Tensor] = {}
        self.base = self._plain(base, self.of_base)
        self.source = self._plain(source, self.of_source)

    def path(self, heads: Sequence[Head]) -> tuple[Tensor, Tensor]:
        """Class logits and the neurons' activations with the paths from these heads patched."""
        moved: dict[str, Tensor] = {}
        frozen = [(name, self._give(self.of_base[name])) for name in self.mlps]
        for layer, name in enumerate(self.heads):
            z = self.of_base[name]
            own = [head for at, head in heads if at == layer]
            if own:
                z = z.clone()
                where = columns("prompt", z, self.prompted.model.hook_dict[name])[..., None, None]
                z[:, :, own] = torch.where(where, self.of_source[name][:, :, own], z[:, :, own])
            frozen.append((name, self._give(z)))
        look = [(name, self._note(name, moved)) for name in self.posts.values()]
        self._read_out(self.tokens, [*frozen, *look])
        put = [
            (self.posts[layer], self._put(index, moved[self.posts[layer]]))
            for layer, index in self.neurons.by_layer().items()
        ]
        return self._read_out(self.tokens, put), self._activations(moved)

    def _plain(self, tokens: PromptedTokens, kept: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        names = [*self.heads, *self.mlps, *self.posts.values()]
        logits = self._read_out(tokens, [(name, self._note(name, kept)) for name in names])
        return logits, self._activations(kept)

    def _read_out(self, tokens: PromptedTokens, hooks: list[Any]) -> Tensor:
        return self.prompted.read_out(tokens, self.virtual, hooks)

    def _activations(self, kept: dict[str, Tensor]) -> Float[Tensor, "pair neuron"]:
        found = torch.empty(len(self.tokens), len(self.neurons), dtype=torch.float64)
        for layer, index in self.neurons.by_layer().items():
            feature = (self.neurons.layer == layer).nonzero().flatten()
            values = kept[self.posts[layer]][self.at][..., index.to(self.at[1].device)]
            found[:, feature] = values.double().mean(1).cpu()
        return found

    @staticmethod
    def _note(name: str, kept: dict[str, Tensor]) -> Callable[..., None]:
        def note(act: Tensor, hook: Any) -> None:
            kept[name] = act

        return note

    @staticmethod
    def _give(value: Tensor) -> Callable[..., Tensor]:
        return lambda act, hook: value

    def _put(self, index: Tensor, moved: Tensor) -> Callable[..., Tensor]:
        def put(act: Tensor, hook: Any) -> Tensor:
            where = columns("prompt", act, hook)[..., None]
            here = index.to(act.device)
            return act.index_copy(-1, here, torch.where(where, moved[..., here], act[..., here]))

        return put
