"""What is compared of a bridge and of the Hugging Face model inside it: one small function per comparison.

Each takes a :class:`Subject` and gives the largest relative difference; where there is nothing to compare it raises,
with the reason. The texts are made up, the reference runs each of them alone and unpadded.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformer_lens.model_bridge import TransformerBridge
from transformers import DynamicCache

from tl_skillneurons.models._comparisons import constant_ratio, difference, rounding
from tl_skillneurons.models._quiet_run import made_up_text, plain_run, quietly
from tl_skillneurons.models.causality import measured_sight, sight
from tl_skillneurons.models.hooks import Hooks
from tl_skillneurons.models.norms import frozen_norms
from tl_skillneurons.models.prefill import fork, prefill
from tl_skillneurons.models.sites import head_hooks, heads_shown, neuron_hooks, output_projection
from tl_skillneurons.models.tokenizing import pad_id
from tl_skillneurons.models.untouched import Untouched

_LONG, _SHORT, _VIRTUAL = 9, 5, 3


@dataclass(frozen=True, eq=False)
class Subject:
    """A bridge, its reference, and made-up texts; what several comparisons need is run once."""

    model: TransformerBridge
    reference: Untouched

    @cached_property
    def points(self) -> Mapping[str, Any]:
        return self.model.hook_dict

    @cached_property
    def causal(self) -> bool:
        return not measured_sight(self.model).later

    @cached_property
    def texts(self) -> list[Int[Tensor, " pos"]]:
        """A long text and a short one."""
        long = made_up_text(self.model, _LONG, seed=3)
        return [long, made_up_text(self.model, _SHORT, seed=4)]

    @cached_property
    def rounding(self) -> float:
        return rounding(self.model.embed.W_E.dtype)

    @cached_property
    def pad_id(self) -> int:
        """What stands where nothing stands; some models take their position ids from where it is."""
        return pad_id(self.model)

    @cached_property
    def sites(self) -> dict[int, str]:
        """The neurons' hook point of each layer that has neurons to name."""
        return neuron_hooks(self.model)

    @cached_property
    def plain(self) -> tuple[Tensor, dict[str, Tensor]]:
        """The long text through the bridge: logits, and what passes its hook points."""
        names = [*self.sites.values(), *heads_shown(self.model).values(), "embed.hook_out", "unembed.hook_in"]
        return self.run(self.texts[0][None], keep=names)

    @cached_property
    def prompted_left(self) -> tuple[list[Tensor], list[slice], dict[str, Tensor]]:
        """Both texts with the prompt in one batch padded on the left, with every layer's neurons."""
        return self.prompted("left", list(self.sites.values()))

    @cached_property
    def plain_reference(self) -> tuple[Tensor, dict[int, Tensor]]:
        """The long text through the reference: logits, and what enters its projections out of MLP and heads."""
        entered: dict[int, Tensor] = {}
        with self.entering(lambda key, act: entered.update({key: act})):
            logits = self.refer(input_ids=self.texts[0][None])
        return logits, entered

    @cached_property
    def embedded(self) -> Float[Tensor, "pos d_embed"]:
        """The long text's rows of ``inputs_embeds``."""
        return self.embeds(self.texts[0])

    @cached_property
    def scale(self) -> float | None:
        """How many times ``inputs_embeds`` the activation at ``embed.hook_out`` is."""
        return constant_ratio(self.plain[1]["embed.hook_out"][0], self.embedded, self.rounding)

    @cached_property
    def soft(self) -> Float[Tensor, "virtual d_embed"]:
        """A made-up prompt, in the units of ``embed.hook_out``: mixtures of two tokens' embeddings."""
        rows = self.plain[1]["embed.hook_out"][0]
        return (rows[:_VIRTUAL] + rows[_VIRTUAL : 2 * _VIRTUAL]) / 2

    @cached_property
    def prompted_references(self) -> list[Float[Tensor, "pos d_vocab"]]:
        """Each text with the prompt, alone: the prompt comes last in a causal model, else first."""
        if self.scale is None:
            raise ValueError("the model's embeddings are not a multiple of what it takes as inputs_embeds")
        rows = []
        for ids in self.texts:
            parts = [self.embeds(ids), self.soft / self.scale]
            rows.append(self.refer(inputs_embeds=torch.cat(parts if self.causal else parts[::-1])[None])[0])
        return rows

    def embeds(self, ids: Int[Tensor, " pos"]) -> Float[Tensor, "pos d_embed"]:
        """What Hugging Face calls a text's ``inputs_embeds``."""
        embedding: Any = self.reference.model.get_input_embeddings()  # type: ignore[operator]
        with torch.no_grad():
            return embedding(ids[None])[0]

    def refer(self, **inputs: Any) -> Tensor:
        """The reference's logits."""
        with torch.no_grad():
            return self.reference.model(**inputs, use_cache=False).logits

    def run(
        self,
        ids: Tensor,
        mask: Tensor | None = None,
        hooks: Hooks = (),
        keep: list[str] | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The bridge's logits, and what passes the hook points of ``keep``."""
        kept: dict[str, Tensor] = {}

        def look(act: Any, hook: Any, name: str) -> None:
            kept[name] = act.detach().clone()

        looks = [(name, partial(look, name=name)) for name in keep or () if name in self.points]
        return plain_run(self.model, ids, mask, [*hooks, *looks], self.points, **kwargs), kept

    def prompted(
        self, side: str, keep: list[str] | None = None
    ) -> tuple[list[Tensor], list[slice], dict[str, Tensor]]:
        """Both texts with the prompt in one batch through the bridge: each one's logits, and where it stands."""
        n = _VIRTUAL
        width = n + max(map(len, self.texts))
        ids = torch.full((2, width), self.pad_id, device=self.texts[0].device)
        mask, virtual = torch.zeros_like(ids), torch.zeros_like(ids, dtype=torch.bool)
        where = []
        for row, text in enumerate(self.texts):
            start = width - n - len(text) if side == "left" else 0
            where.append(slice(start, start + n + len(text)))
            mask[row, where[-1]] = 1
            first = start if self.causal else start + n
            ids[row, first : first + len(text)] = text
            first = start + len(text) if self.causal else start
            virtual[row, first : first + n] = True
            ids[row, first : first + n] = text[0]
        hook = ("embed.hook_out", partial(put_rows, rows=self.soft, where=virtual))
        logits, kept = self.run(ids, mask, [hook], keep)
        return [logits[row, at] for row, at in enumerate(where)], where, kept

    @contextmanager
    def entering(self, look: Callable[[int, Tensor], Tensor | None]) -> Iterator[None]:
        """Let ``look`` see (and exchange) what enters each layer's projection out of its MLP; keys are layers, and
        ``-1 - layer`` for that out of its heads."""
        handles = []

        def hook(module: nn.Module, inputs: tuple[Tensor, ...], key: int) -> tuple[Tensor, ...] | None:
            new = look(key, inputs[0])
            return None if new is None else (new, *inputs[1:])

        try:
            parts = {layer: output_projection(self.model, layer) for layer in self.sites}
            parts |= {-1 - k: _part(block, "attn", "o") for k, block in enumerate(self.model.blocks)}
            for key, part in parts.items():
                own = None if part is None else self.reference.part(part)
                if own is not None:
                    handles.append(own.register_forward_pre_hook(partial(hook, key=key)))
            yield
        finally:
            for handle in handles:
                handle.remove()


def put_rows(act: Tensor, hook: Any, *, rows: Tensor, where: Tensor) -> Tensor:
    """Hook for ``embed.hook_out``: ``rows`` in their places, in every row of the batch."""
    new = act.clone()
    new[where] = rows.to(act).repeat(len(act), 1)
    return new


def logits(s: Subject) -> float:
    """The bridge's logits of a text."""
    off = difference(s.plain[0], s.plain_reference[0])
    if off > s.rounding:
        other = s.texts[0].clone()
        other[4] = s.texts[0][0]
        rows = (s.plain_reference[0][0], s.refer(input_ids=other[None])[0])
        own, here = sight(*rows, 4), measured_sight(s.model)
        if own != here:
            raise ValueError(
                f"differs by {off:.2g} of the largest value, for positions see {here} in the bridge and {own} in the "
                "model's own attention"
            )
    return off


def norms(s: Subject) -> float:
    """Each norm of the residual stream as the affine map that it is at a fixed scale."""
    with quietly(s.model), frozen_norms(s.model):  # refuses while it runs
        s.run(s.texts[0][None, :3])
    return 0.0


def neurons(s: Subject) -> float:
    """``mlp.hook_post`` of every layer against the input of the down projection, and an edit made at both."""
    _, entered = s.plain_reference
    worst = 0.0
    for layer, name in s.sites.items():
        if name not in s.plain[1]:
            raise ValueError(f"{name} did not run")
        if layer in entered:
            own = entered[layer].reshape(1, -1, entered[layer].shape[-1])
            worst = max(worst, difference(s.plain[1][name], own))
        elif s.model.compatibility_mode:  # where a bridge multiplies by weights of its own
            worst = max(worst, _projected(s, layer, s.plain[1][name]))
        else:
            raise ValueError(f"layer {layer} has no projection out of its MLP that runs")
    return max(worst, _edited(s))


def _projected(s: Subject, layer: int, neurons: Tensor) -> float:
    """The neurons through ``W_out`` and ``b_out`` against what leaves the projection."""
    mlp, name = s.model.blocks[layer].mlp, output_projection(s.model, layer).hook_out.name or ""
    found = neurons @ mlp.W_out + (0 if mlp.b_out is None else mlp.b_out)
    return difference(found, s.run(s.texts[0][None], keep=[name])[1][name])


def _edited(s: Subject) -> float:
    """Every other neuron at zero: in the bridge by hooks, in the reference before the down projection."""

    def edit(act: Tensor, hook: Any = None) -> Tensor:
        new = act.clone()
        new[..., ::2] = 0
        return new

    found, _ = s.run(s.texts[0][None], hooks=[(name, edit) for name in s.sites.values()])
    if torch.equal(found, s.plain[0]):
        raise ValueError("an edit of its neurons does not reach the logits")
    if not s.plain_reference[1].keys() >= s.sites.keys():
        return 0.0  # nothing to edit at in the reference
    with s.entering(lambda key, act: edit(act) if key in s.sites else None):
        expected = s.refer(input_ids=s.texts[0][None])
    return difference(found, expected)


def prompt_left(s: Subject) -> float:
    """A prompt beside two texts in a batch padded on the left, against each alone."""
    return _prompt_in_batch(s, "left")


def prompt_right(s: Subject) -> float:
    """The same, padded on the right."""
    return _prompt_in_batch(s, "right")


def prompt(s: Subject) -> float:
    """A prompt in place at ``embed.hook_out`` against ``inputs_embeds``: the row of a batch that has no padding, or
    that row alone where padding beside it spoils it."""
    expected = s.prompted_references[0]
    in_batch = difference(s.prompted_left[0][0], expected)
    if in_batch <= s.rounding:
        return in_batch
    n, text = _VIRTUAL, s.texts[0]
    filler = text[:1].repeat(n)
    ids = torch.cat([text, filler] if s.causal else [filler, text])[None]
    virtual = torch.zeros_like(ids, dtype=torch.bool)
    virtual[:, slice(-n, None) if s.causal else slice(n)] = True
    mask = torch.ones_like(ids)  # every run of a prompt gives one, and GPT-1's bridge is off with any
    swap = ("embed.hook_out", partial(put_rows, rows=s.soft, where=virtual))
    off = difference(s.run(ids, mask, [swap])[0][0], expected)
    if off > s.rounding and difference(s.run(ids, None, [swap])[0][0], expected) <= s.rounding:
        raise ValueError(
            f"differs by {off:.2g} of the largest value where the bridge is given an attention mask, as every prompt's "
            "batch is, and not without one: what the mask makes of its attention is not the model's"
        )
    return off


def _prompt_in_batch(s: Subject, side: str) -> float:
    rows = s.prompted_left[0] if side == "left" else s.prompted(side)[0]
    return max(difference(*pair) for pair in zip(rows, s.prompted_references, strict=True))


def cached(s: Subject) -> float:
    """The prompt on top of the texts' keys and values, against the whole run: logits and neurons there."""
    if not s.causal:
        raise ValueError("positions see later ones, so a text sees the prompt after it")
    n = _VIRTUAL
    whole, where, neurons = s.prompted_left
    width = max(at.stop for at in where)
    ids = torch.full((2, width - n), s.pad_id, device=s.texts[0].device)
    mask = torch.zeros(2, width, dtype=torch.long, device=ids.device)
    for row, (text, at) in enumerate(zip(s.texts, where, strict=True)):
        ids[row, at.start : width - n] = text
        mask[row, at] = 1
    with quietly(s.model):
        past = prefill(s.model, ids, mask[:, :-n])
    _require_keys_and_values(past, len(s.model.blocks), (2, width - n))
    filler = s.texts[0][:1].expand(2, n)
    virtual = torch.ones_like(filler, dtype=torch.bool)
    hook = ("embed.hook_out", partial(put_rows, rows=s.soft, where=virtual))
    found, apart = s.run(filler, mask, [hook], list(s.sites.values()), past_key_values=fork(past))
    worst = max(difference(found[row], whole[row][-n:]) for row in range(2))
    return max([worst, *(difference(apart[name], neurons[name][:, -n:]) for name in s.sites.values())])


def _require_keys_and_values(past: DynamicCache, n_layers: int, batch_and_width: tuple[int, int]) -> None:
    """Refuse a model that keeps anything else of a text than keys and values of each position."""
    for number, layer in enumerate(past.layers):
        for name in ("keys", "values"):
            shape = tuple(getattr(getattr(layer, name, None), "shape", ()))
            if len(shape) != 4 or (shape[0], shape[2]) != batch_and_width:
                raise ValueError(f"layer {number} keeps no {name} of each position")
    if len(past.layers) != n_layers:
        raise ValueError(f"{len(past.layers)} of {n_layers} layers keep keys and values")


def heads(s: Subject) -> float:
    """What enters each layer's projection out of its heads, and their number and width against the config."""
    _, entered = s.plain_reference
    worst = 0.0
    for layer, name in enumerate(head_hooks(s.model)):
        if -1 - layer not in entered or name not in s.plain[1]:
            raise ValueError(f"layer {layer} has no projection out of its heads that runs")
        own = entered[-1 - layer]
        worst = max(worst, difference(s.plain[1][name].reshape(1, _LONG, -1), own.reshape(1, _LONG, -1)))
        shown, n_heads = list(s.plain[1][name].shape[2:]), s.model.cfg.n_heads
        if len(shown) != 2 or shown[0] != n_heads:
            raise ValueError(
                f"layer {layer} shows {own.shape[-1]} values of its heads as {shown}, its config says {n_heads} heads"
            )
    return worst


def output_head(s: Subject) -> float:
    """The vocabulary's matrix and bias as they can be read, against the module that runs."""
    model = s.model
    hidden = s.plain[1].get("unembed.hook_in")
    if hidden is None:
        raise ValueError("unembed.hook_in did not run")
    with torch.no_grad():
        found = hidden @ model.W_U.to(hidden) + model.b_U.to(hidden)
        transform = getattr(model.adapter, "apply_output_logits_transform", None)
        found = found if transform is None else transform(found)
    return difference(found, s.plain[0])


def _part(block: Any, of: str, name: str) -> nn.Module | None:
    whole = block._modules.get(of)
    return None if whole is None else getattr(whole, name, None)
