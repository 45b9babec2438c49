"""Who writes into a neuron: its pre-activation as a sum over the embedding, heads by source position, and MLPs.

With every norm's scale as it was in the run, a neuron's pre-activation ``u`` at one position is affine in what
was written to the residual stream there::

    u = e . r_e + sum over layers l, heads h, sources s of pattern_lh[s] * (v_l[s] . g_lh)
          + sum over layers l of mlp_l . r_l + bias

``r`` and ``g`` are the gradients of ``u`` in a run whose attention outputs, MLP outputs and scales are cut out of
the graph: the path straight through the residual stream and the norms. That holds for pre-norm and post-norm
models, norms with and without bias, norms after a block's parts (Gemma), parallel attention, and grouped keys
and values. The bias is the same run with nothing written at all, so the parts need not sum to ``u``: whether
they do is a check, and ``remainder`` is what is missing (rounding).

A gated MLP's activation ``a = act(g) u`` is no such sum, its gate ``g`` and ``u`` ("up") each are. Half of it is shared
out by what makes the one, half by what makes the other (``projection="post"``)::

    part of a = a / 2 * (part of g / g + part of u / u)

which sums to ``a`` (the rules for activations and for products in Achtibat et al., 2024). Parts of ``g`` that cancel
each other are larger than ``g``, and so their shares may be larger than ``a``.

The embedding is all that enters layer 0: token, learned position, type, and the norm after them. What a part
contributes is exact for these scales. It does not show what would happen without it: then the scales, and later
layers, would change. The control is the same for random neurons of the same layers (``neurons.random_like(seed)``).

Direct logit attribution with a neuron in the place of a logit (Elhage et al., 2021; sources as in Wang et al., 2023).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import pandas as pd
import torch
from einops import einsum, rearrange, reduce, repeat
from jaxtyping import Float, Int
from torch import Tensor
from transformer_lens.hook_points import HookPoint
from transformer_lens.model_bridge import TransformerBridge
from transformers import DynamicCache

from tl_skillneurons._results import html_of, one_line
from tl_skillneurons.attention._heads import by_head
from tl_skillneurons.attention._recorded_run import Names, RecordedRun, run_until
from tl_skillneurons.attention.projections import PROJECTIONS, projection_of
from tl_skillneurons.models.hooks import Hook
from tl_skillneurons.models.norms import frozen_norms
from tl_skillneurons.models.records import model_label
from tl_skillneurons.models.remainders import tell_remainder
from tl_skillneurons.models.sites import neuron_shape
from tl_skillneurons.neurons.neuron_set import Neurons, NeuronSet, as_neurons
from tl_skillneurons.prompts.attached import VirtualTokens
from tl_skillneurons.prompts.positions import PromptedTokens
from tl_skillneurons.prompts.prompted_model import PromptedModel
from tl_skillneurons.prompts.soft_prompt import SoftPrompt

_PARTS = ("embed", "heads", "sources", "mlps", "bias", "total")


@dataclass(frozen=True, eq=False)
class PreActivationParts:
    """The parts of chosen neurons' pre-activations at the prompt positions of one batch.

    Attributes:
        neurons: Which neurons, in the order of the axis ``neuron``.
        projection: "pre", "up" or "post".
        tokens: The batch; ``source`` counts its columns, virtual tokens and padding included. Padding
            contributes exactly 0.
        embed: From the embedding.
        heads: From each head, layers after a neuron's own being 0.
        sources: The same by source position, or ``None`` where it was not asked for.
        mlps: From each layer's MLP, its output bias included.
        bias: From the norms' and projections' biases.
        total: The pre-activation itself.

    Example:
        >>> parts = skn.attention.decompose(model, prompt, texts, scores.top(10, per="model"))
        >>> parts.heads.sum((-2, -1)) / parts.total  # how much of each pre-activation the heads make
    """

    neurons: NeuronSet
    projection: str
    tokens: PromptedTokens
    embed: Float[Tensor, "batch prompt_pos neuron"]
    heads: Float[Tensor, "batch prompt_pos neuron layer head"]
    sources: Float[Tensor, "batch prompt_pos neuron layer head source"] | None
    mlps: Float[Tensor, "batch prompt_pos neuron layer"]
    bias: Float[Tensor, "batch prompt_pos neuron"]
    total: Float[Tensor, "batch prompt_pos neuron"]

    @property
    def remainder(self) -> Float[Tensor, "batch prompt_pos neuron"]:
        """What the parts leave unexplained: rounding."""
        heads = self.heads.sum((-2, -1)) if self.sources is None else self.sources.sum((-3, -2, -1))
        return self.total - (self.embed + heads + self.mlps.sum(-1) + self.bias)

    @property
    def unexplained(self) -> float:
        """The largest remainder as a share of the largest pre-activation; above 1e-3 a warning tells it."""
        return float(self.remainder.abs().max() / self.total.abs().max())

    def to_dataframe(self) -> pd.DataFrame:
        """One row per text, neuron and part, averaged over prompt positions, in the pre-activation's own units.

        Columns ``text`` (its number), ``neuron_layer``, ``neuron_index``; ``part``: "embed", "head", "mlp", "bias",
        "remainder" or "total"; ``layer`` and ``head`` where the part has one (else -1); ``contribution``.
        """
        n_layers, n_heads = self.heads.shape[3:]
        parts: dict[tuple[str, int, int], Tensor] = {("embed", -1, -1): self.embed}
        for layer in range(n_layers):
            for head in range(n_heads):
                parts["head", layer, head] = self.heads[..., layer, head]
        parts |= {("mlp", layer, -1): self.mlps[..., layer] for layer in range(n_layers)}
        parts |= {("bias", -1, -1): self.bias, ("remainder", -1, -1): self.remainder}
        parts["total", -1, -1] = self.total
        means = {
            name: reduce(value, "text pos neuron -> text neuron", "mean") for name, value in parts.items()
        }
        rows = [
            {"text": text, "neuron_layer": at, "neuron_index": index, "part": part, "layer": layer}
            | {"head": head, "contribution": float(mean[text, number])}
            for text in range(len(self.tokens))
            for number, (at, index) in enumerate(self.neurons)
            for (part, layer, head), mean in means.items()
        ]
        return pd.DataFrame(rows)

    def __repr__(self) -> str:
        n_texts, n_positions, n_neurons = self.total.shape
        numbers = {"n_texts": n_texts, "n_prompt_positions": n_positions, "n_neurons": n_neurons}
        share = f"{self.unexplained:.1e} of the largest pre-activation"
        return one_line(self, projection=self.projection, **numbers, remainder=share)

    def _repr_html_(self) -> str:
        return html_of(self)


def decompose(
    model: TransformerBridge,
    prompt: SoftPrompt,
    texts: Sequence[str],
    neurons: Neurons,
    *,
    projection: str | None = None,
    by_source: bool = True,
    max_length: int | None = None,
) -> PreActivationParts:
    """Run one batch of texts and say what every part writes into every neuron at every prompt position.

    Memory: ``batch * prompt positions * neurons * layers * heads`` numbers, times the sequence length where
    ``by_source``.

    Args:
        projection: "pre", or of a gated MLP "up": what its gate is multiplied with, or "post": its activation; by
            default "post" of gated MLPs, "pre" of others.
        by_source: Whether to tell a head's source positions apart.
        max_length: Longest sequence in tokens; by default what the prompt was tuned with.

    Raises:
        ValueError: For neurons outside the model, "up" or "post" of an MLP without a gate, attention whose pattern
            and values do not show, or under ``torch.inference_mode()``.

    Example:
        >>> parts = skn.attention.decompose(model, prompt, ["a fine film"], skill)
        >>> parts.heads.mean((0, 1, 2))  # [layer, head]
    """
    neurons = as_neurons(neurons)
    prompted = PromptedModel(model, prompt, max_length=max_length)
    with prompted.attached() as virtual:
        tokens = prompted.tokens(texts)
        return decompose_batch(prompted, tokens, virtual, neurons, projection=projection, by_source=by_source)


def decompose_batch(
    prompted: PromptedModel,
    tokens: PromptedTokens,
    virtual: VirtualTokens,
    neurons: Neurons,
    *,
    projection: str | None = None,
    by_source: bool = True,
) -> PreActivationParts:
    """The same for a batch that stands ready, inside ``prompted.attached()``."""
    neurons = as_neurons(neurons)
    model = prompted.model
    neurons.require_fits(*neuron_shape(model))
    if not len(neurons):
        raise ValueError("neurons must hold at least one neuron, got none")
    projection = projection_of(model, neurons, projection)
    if torch.is_inference_mode_enabled():
        raise ValueError("a decomposition needs gradients; call it outside torch.inference_mode()")
    names = Names(model, int(neurons.layer.max()), PROJECTIONS[projection], sorted(neurons.by_layer()))
    if by_source and len(names.values) < len(names.layers):
        raise ValueError(
            f"{model_label(model)} has no values of each head to read (its queries, keys and values are one matrix "
            "that the bridge doesn't split), so sources can't be told apart; give by_source=False, or use a "
            "model with a projection for each"
        )
    past = prompted.past(tokens) if prompted.runs_apart(virtual) else None
    try:
        joined = _joined(prompted, tokens, virtual, names, neurons, past, by_source)
    except ValueError:
        if past is None:
            raise
        # values may be kept in another form than they are used in (latent attention)
        joined = _joined(prompted, tokens, virtual, names, neurons, None, by_source)
    sources = joined.pop("sources", None)
    found = PreActivationParts(neurons, projection, tokens, sources=sources, **joined)
    tell_remainder(
        found.unexplained,
        f"the {'activations' if projection == 'post' else 'pre-activations'} of {model_label(model)}",
        model.W_E.dtype,
        "its residual stream is written to or read in another way than by embedding, heads, MLPs and norms",
        stacklevel=3,
    )
    return found


def _joined(
    prompted: PromptedModel,
    tokens: PromptedTokens,
    virtual: VirtualTokens,
    names: Names,
    neurons: NeuronSet,
    past: DynamicCache | None,
    by_source: bool,
) -> dict[str, Tensor]:
    """Each part by its name, with the neurons in their order; with ``past`` only the prompt runs."""
    model = prompted.model
    with frozen_norms(model) as norms:
        with torch.enable_grad():
            run = RecordedRun(prompted, tokens, virtual, names, past)
        with norms.replayed():
            bias = _written_nothing(prompted, tokens, virtual, run)
    n_layers = len(model.blocks)
    parts: dict[str, list[Tensor]] = {name: [] for name in _PARTS}
    order: list[int] = []
    for layer, index in neurons.by_layer().items():
        weights = _weights(run, layer, index)
        with torch.enable_grad():
            read = torch.stack([w * run.kept[name][..., index] for name, w in weights.items()]).sum(0)
        made = _parts_of(run, layer, read, n_layers, by_source)
        made["bias"] = torch.stack([w * bias[name][..., index] for name, w in weights.items()]).sum(0)
        for name, value in made.items():
            parts[name].append(value)
        order += (neurons.layer == layer).nonzero().flatten().tolist()
    place = torch.tensor(order).argsort()
    return {name: torch.cat(values, dim=2)[:, :, place] for name, values in parts.items() if values}


def _weights(
    run: RecordedRun, layer: int, index: Int[Tensor, " neuron"]
) -> dict[str, Float[Tensor, "batch prompt_pos neuron"] | int]:
    """How much of what neurons read at each hook point counts: all of a pre-activation; of a gated MLP's activation
    ``a`` equally much to each factor ``f``, ``a / f`` divided by their number."""
    names = run.names.pre[layer]
    if len(names) == 1:
        return {names[0]: 1}
    product = run.kept[run.names.post[layer]][..., index].detach()
    factors = {name: run.kept[name][..., index].detach() for name in names}
    return {
        name: torch.where(f == 0, 0, product / torch.where(f == 0, 1, f)) / len(names)
        for name, f in factors.items()
    }


def _written_nothing(
    prompted: PromptedModel, tokens: PromptedTokens, virtual: VirtualTokens, run: RecordedRun
) -> dict[str, Float[Tensor, "batch prompt_pos d_mlp"]]:
    """What neurons read where nothing is written to the stream and all scales are as in the run, by hook point."""
    found: dict[str, Tensor] = {}

    def nothing(act: Tensor, hook: HookPoint) -> Tensor:
        return torch.zeros_like(act)

    def keep(name: str) -> Callable[..., None]:
        def note(act: Tensor, hook: HookPoint) -> None:
            found[name] = act[run.at]

        return note

    hooks: list[Hook] = [(name, nothing) for name in run.names.written]
    hooks += [(name, keep(name)) for name in run.names.read]
    with torch.no_grad():
        run_until(prompted, tokens, virtual, hooks, run.names.stop, run.past)
    return found


def _parts_of(
    run: RecordedRun,
    layer: int,
    pre: Float[Tensor, "batch prompt_pos neuron"],
    n_layers: int,
    by_source: bool,
) -> dict[str, Tensor]:
    """The parts of what one layer's neurons read; gradients of all neurons at once."""
    names = run.names
    read = _gradients(run, pre)
    empty = pre.new_zeros(pre.shape)

    def written(name: str) -> Tensor:
        gradient = read[name]
        if gradient is None:
            return empty
        leaf = run.leaves[name].detach()
        return einsum(leaf, gradient, "batch pos d, neuron batch pos d -> batch pos neuron")

    mlps = [written(name) for name in names.mlps] + [empty] * (n_layers - len(names.mlps))
    heads, sources = [], []
    n_heads, n_sources = run.kept[names.patterns[0]].shape[1::2]
    for at in range(n_layers):
        gradient = read[names.heads[at]] if at in names.layers else None
        if gradient is None:
            heads.append(pre.new_zeros(*pre.shape, n_heads))
            if by_source:
                sources.append(pre.new_zeros(*pre.shape, n_heads, n_sources))
            continue
        z = by_head(run.leaves[names.heads[at]].detach(), n_heads)
        gradient = gradient.reshape(len(gradient), *z.shape)
        heads.append(
            einsum(
                z, gradient, "batch pos head d_head, neuron batch pos head d_head -> batch pos neuron head"
            )
        )
        if by_source:
            pattern, value = _attention(run, at, z)
            moved = einsum(
                value,
                gradient,
                "batch source head d_head, neuron batch pos head d_head -> batch pos neuron head source",
            )
            sources.append(moved * rearrange(pattern, "batch head pos source -> batch pos 1 head source"))
    found = {
        "embed": written(names.embed),
        "heads": torch.stack(heads, dim=3),
        "mlps": torch.stack(mlps, dim=3),
        "total": pre.detach(),
    }
    return found | ({"sources": torch.stack(sources, dim=3)} if by_source else {})


def _gradients(
    run: RecordedRun, pre: Float[Tensor, "batch pos neuron"]
) -> dict[str, Float[Tensor, "neuron batch pos *d"] | None]:
    """Of each neuron's pre-activations with respect to all that was written; ``None`` where it reads nothing."""
    one_hot = torch.eye(pre.shape[-1], dtype=pre.dtype, device=pre.device)
    each = repeat(one_hot, "one neuron -> one batch pos neuron", batch=pre.shape[0], pos=pre.shape[1])
    gradients = torch.autograd.grad(
        pre,
        [run.leaves[name] for name in run.names.written],
        each,
        retain_graph=True,
        allow_unused=True,
        is_grads_batched=True,
    )
    return dict(zip(run.names.written, gradients, strict=True))


def _attention(
    run: RecordedRun, layer: int, z: Float[Tensor, "batch prompt_pos head d_head"]
) -> tuple[Float[Tensor, "batch head prompt_pos source"], Float[Tensor, "batch source head d_head"]]:
    """A layer's pattern and values, once they are seen to give what the heads wrote.

    Raises:
        ValueError: Otherwise.
    """
    pattern = run.kept[run.names.patterns[layer]]
    n_heads, d_head = z.shape[-2:]
    kept = run.kept[run.names.values[layer]]
    orders = [kept, kept.transpose(1, 2)] if kept.ndim == 4 else [kept]  # latent attention shows heads first
    before = run.before(layer)
    for value in orders:
        n_groups = value[0, 0].numel() // d_head  # grouped: several heads share one
        if not n_groups or n_heads % n_groups:
            continue
        value = by_head(value, n_groups)
        if before is not None and before.shape[2:] == value.shape[2:]:
            value = torch.cat([before, value], dim=1)
        value = value.repeat_interleave(n_heads // n_groups, dim=2)
        if value.shape[1] != pattern.shape[-1] or value.shape[2:] != z.shape[2:]:
            continue
        again = einsum(
            pattern.to(z.dtype),
            value,
            "batch head prompt_pos source, batch source head d_head -> batch prompt_pos head d_head",
        )
        if torch.allclose(again, z, rtol=1e-2, atol=1e-2 * float(z.abs().max())):
            return pattern.to(z.dtype), value
    raise ValueError(
        f"pattern and values of layer {layer} do not give what its heads wrote, so sources can't be told apart; "
        "use by_source=False"
    )
