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

The embedding is all that enters layer 0: token, learned position, type, and the norm after them. What a part
contributes is exact for these scales, and says nothing of what would happen without it: then the scales, and
later layers, would change.
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from transformer_lens.model_bridge.exceptions import StopAtLayerException

from tl_skillneurons._checks import require_option
from tl_skillneurons.models.records import model_label
from tl_skillneurons.models.sites import neuron_hooks, neuron_shape
from tl_skillneurons.neurons import NeuronSet
from tl_skillneurons.prompts.positions import PromptedTokens
from tl_skillneurons.prompts.prompted_model import PromptedModel
from tl_skillneurons.prompts.soft_prompt import SoftPrompt, VirtualTokens

PROJECTIONS = {"pre": "hook_pre", "up": "hook_pre_linear"}
"""The pre-activation proper (of a gated MLP: the gate's), and what a gated MLP multiplies it with."""


@dataclass(frozen=True, eq=False)
class PreActivationParts:
    """The parts of chosen neurons' pre-activations at the prompt positions of one batch.

    Attributes:
        neurons: Which neurons, in the order of the axis ``neuron``.
        projection: "pre" or "up".
        tokens: The batch; ``source`` counts its columns, virtual tokens and padding included. Padding
            contributes exactly 0.
        embed: From the embedding.
        heads: From each head, layers after a neuron's own being 0.
        sources: The same by source position, or ``None`` where it was not asked for.
        mlps: From each layer's MLP, its output bias included.
        bias: From the norms' and projections' biases.
        total: The pre-activation itself.
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


def decompose(
    model: Any,
    prompt: SoftPrompt,
    texts: Sequence[str],
    neurons: NeuronSet,
    *,
    projection: str = "pre",
    by_source: bool = True,
    max_length: int | None = None,
) -> PreActivationParts:
    """Run one batch of texts and say what every part writes into every neuron at every prompt position.

    Memory: ``batch * prompt positions * neurons * layers * heads`` numbers, times the sequence length where
    ``by_source``.

    Raises:
        ValueError: For neurons outside the model, "up" of an MLP without a gate, attention whose pattern and
            values do not show, or under ``torch.inference_mode()``.
    """
    prompted = PromptedModel(model, prompt, max_length=max_length)
    with prompted.attached() as virtual:
        tokens = prompted.tokens(texts)
        return decompose_batch(prompted, tokens, virtual, neurons, projection=projection, by_source=by_source)


def decompose_batch(
    prompted: PromptedModel,
    tokens: PromptedTokens,
    virtual: VirtualTokens,
    neurons: NeuronSet,
    *,
    projection: str = "pre",
    by_source: bool = True,
) -> PreActivationParts:
    """The same for a batch that stands ready, inside ``prompted.attached()``."""
    model = prompted.model
    require_option(projection, "projection", PROJECTIONS)
    neurons.require_fits(*neuron_shape(model))
    if not len(neurons):
        raise ValueError("neurons must hold at least one neuron, got none")
    if torch.is_inference_mode_enabled():
        raise ValueError("a decomposition needs gradients; call it outside torch.inference_mode()")
    names = _Names(model, int(neurons.layer.max()), PROJECTIONS[projection], sorted(neurons.by_layer()))
    with torch.enable_grad():
        run = _Run(prompted, tokens, virtual, names)
    bias = _written_nothing(prompted, tokens, virtual, names, run)
    n_layers = len(model.blocks)
    parts = {name: [] for name in ("embed", "heads", "sources", "mlps", "bias", "total")}
    order = []
    for layer, index in neurons.by_layer().items():
        for name, value in _parts_of(run, layer, index, n_layers, by_source).items():
            parts[name].append(value)
        parts["bias"].append(bias[layer][..., index])
        order += (neurons.layer == layer).nonzero().flatten().tolist()
    place = torch.tensor(order).argsort()
    joined = {
        name: torch.cat(values, dim=2)[:, :, place] if values else None for name, values in parts.items()
    }
    return PreActivationParts(neurons, projection, tokens, **joined)


class _Names:
    """The hook points that a decomposition up to one layer reads and cuts."""

    def __init__(self, model: Any, last: int, projection: str, layers: list[int]) -> None:
        points = model.hook_dict
        self.layers = range(last + 1)
        self.embed = "blocks.0.hook_in"
        self.heads = [f"blocks.{layer}.attn.o.hook_in" for layer in self.layers]
        self.mlps = [f"blocks.{layer}.mlp.out.hook_out" for layer in range(last)]
        self.patterns = [f"blocks.{layer}.attn.hook_pattern" for layer in self.layers]
        self.values = [f"blocks.{layer}.attn.hook_v" for layer in self.layers]
        self.pre = {layer: f"blocks.{layer}.mlp.{projection}" for layer in layers}
        self.scales = [name for name in points if name.endswith(".hook_scale")]
        self.stop = neuron_hooks(model)[last]
        for layer, name in self.pre.items():
            if name not in points:
                raise ValueError(
                    f"layer {layer} of {model_label(model)} has no {name}: its MLP has no gate; use projection='pre'"
                )


class _Run:
    """One run with everything that is written cut out of the graph at the prompt positions."""

    def __init__(
        self, prompted: PromptedModel, tokens: PromptedTokens, virtual: VirtualTokens, names: _Names
    ) -> None:
        columns = tokens.prompt_columns()
        self.at = (torch.arange(len(tokens), device=columns.device)[:, None], columns)
        self.names = names
        self.leaves: dict[str, Tensor] = {}
        self.kept: dict[str, Tensor] = {}
        self.scales: dict[str, Tensor] = {}
        hooks = [(name, self._begin(name)) for name in (names.embed, *names.heads, *names.mlps)]
        hooks += [(name, self._scale(name)) for name in names.scales]
        hooks += [(name, self._keep(name, -2)) for name in names.patterns]
        hooks += [(name, self._keep(name, None)) for name in names.values]
        hooks += [(name, self._keep(name, 1)) for name in names.pre.values()]
        _run(prompted, tokens, virtual, hooks, names.stop)

    def _begin(self, name: str) -> Any:
        def begin(act: Tensor, hook: Any) -> Tensor:
            self.leaves[name] = act[self.at].detach().requires_grad_(True)
            return act.detach().index_put(self.at, self.leaves[name])

        return begin

    def _scale(self, name: str) -> Any:
        def cut(act: Tensor, hook: Any) -> Tensor:
            self.scales[name] = act.detach()
            return act.detach()

        return cut

    def _keep(self, name: str, axis: int | None) -> Any:
        rows, columns = self.at

        def keep(act: Tensor, hook: Any) -> None:
            if axis == 1:  # [batch, pos, neuron]
                self.kept[name] = act[rows, columns]
            elif axis == -2:  # [batch, head, query, key]
                self.kept[name] = act.detach()[rows, :, columns].transpose(1, 2)
            else:
                self.kept[name] = act.detach()

        return keep


def _run(
    prompted: PromptedModel, tokens: PromptedTokens, virtual: VirtualTokens, hooks: list[Any], last: str
) -> None:
    def stop(act: Tensor, hook: Any) -> None:
        raise StopAtLayerException(act)

    with (
        warnings.catch_warnings()
    ):  # a scale that is handed back is computed by TransformerLens, not natively
        warnings.filterwarnings("ignore", message="A forward hook edited hook_scale")
        prompted.forward(tokens, virtual, [*hooks, (last, stop)])


def _written_nothing(
    prompted: PromptedModel, tokens: PromptedTokens, virtual: VirtualTokens, names: _Names, run: _Run
) -> dict[int, Float[Tensor, "batch prompt_pos d_mlp"]]:
    """Each layer's pre-activations where nothing is written to the stream and all scales are as in the run."""
    found: dict[int, Tensor] = {}

    def nothing(act: Tensor, hook: Any) -> Tensor:
        return torch.zeros_like(act)

    def scale(name: str) -> Any:
        return lambda act, hook: run.scales[name]

    def keep(layer: int) -> Any:
        def note(act: Tensor, hook: Any) -> None:
            found[layer] = act[run.at]

        return note

    hooks = [(name, nothing) for name in (names.embed, *names.heads, *names.mlps)]
    hooks += [(name, scale(name)) for name in run.scales]
    hooks += [(name, keep(layer)) for layer, name in names.pre.items()]
    with torch.no_grad():
        _run(prompted, tokens, virtual, hooks, names.stop)
    return found


def _parts_of(run: _Run, layer: int, index: Tensor, n_layers: int, by_source: bool) -> dict[str, Tensor]:
    """The parts of one layer's neurons; gradients of all neurons at once."""
    names = run.names
    with torch.enable_grad():
        pre = run.kept[names.pre[layer]][..., index]  # [batch, prompt_pos, neuron]
    sites = [names.embed, *names.heads, *names.mlps]
    one_hot = torch.eye(len(index), dtype=pre.dtype, device=pre.device)[:, None, None, :]
    gradients = torch.autograd.grad(
        pre,
        [run.leaves[name] for name in sites],
        one_hot.expand(-1, *pre.shape),
        retain_graph=True,
        allow_unused=True,
        is_grads_batched=True,
    )
    read = dict(zip(sites, gradients, strict=True))  # [neuron, batch, prompt_pos, d], None where unread

    def written(name: str) -> Tensor:
        if read[name] is None:
            return pre.new_zeros(pre.shape)
        return torch.einsum("bpd,nbpd->bpn", run.leaves[name].detach(), read[name])

    empty = pre.new_zeros(pre.shape)
    mlps = [written(name) for name in names.mlps] + [empty] * (n_layers - len(names.mlps))
    heads, sources = [], []
    for at in range(n_layers):
        pattern, value = run.kept[names.patterns[0]], None
        n_heads = pattern.shape[1]
        gradient = read[names.heads[at]] if at in names.layers else None
        if gradient is None:
            heads.append(pre.new_zeros(*pre.shape, n_heads))
            sources.append(pre.new_zeros(*pre.shape, n_heads, pattern.shape[-1]) if by_source else None)
            continue
        z = run.leaves[names.heads[at]].detach()
        if z.ndim == 3:  # some families show all heads as one axis
            z, gradient = (t.unflatten(-1, (n_heads, -1)) for t in (z, gradient))
        heads.append(torch.einsum("bphd,nbphd->bpnh", z, gradient))
        if by_source:
            pattern, value = _attention(run, at, z)
            moved = torch.einsum("bshd,nbphd->bpnhs", value, gradient)
            sources.append(moved * pattern.permute(0, 2, 1, 3)[:, :, None])
    found = {
        "embed": written(names.embed),
        "heads": torch.stack(heads, dim=3),
        "mlps": torch.stack(mlps, dim=3),
        "total": pre.detach(),
    }
    return found | ({"sources": torch.stack(sources, dim=3)} if by_source else {})


def _attention(run: _Run, layer: int, z: Tensor) -> tuple[Tensor, Tensor]:
    """A layer's pattern ``[batch, head, prompt_pos, source]`` and values ``[batch, source, head, d_head]``, once
    they are seen to give what the heads wrote.

    Raises:
        ValueError: Otherwise.
    """
    pattern = run.kept[run.names.patterns[layer]]
    n_heads, d_head = z.shape[-2:]
    value = run.kept[run.names.values[layer]]
    value = value.reshape(*value.shape[:2], -1, d_head)
    value = value.repeat_interleave(n_heads // value.shape[2], dim=2)  # grouped: several heads share one
    pattern = pattern.to(z.dtype)
    again = torch.einsum("bhps,bshd->bphd", pattern, value)
    if not torch.allclose(again, z, rtol=1e-2, atol=1e-2 * float(z.abs().max())):
        raise ValueError(
            f"pattern and values of layer {layer} do not give what its heads wrote, so sources can't be told apart; "
            "use by_source=False"
        )
    return pattern, value
