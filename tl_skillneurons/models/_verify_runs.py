"""What is compared of a bridge and of the Hugging Face model inside it: one small function per comparison.

Each takes a :class:`Subject` and gives the largest relative difference; where there is nothing to compare it raises,
with the reason.
"""

from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from tl_skillneurons.models._comparisons import difference
from tl_skillneurons.models._quiet_run import quietly
from tl_skillneurons.models._verify_subject import CHANGED, VIRTUAL, Row, Subject, put_rows
from tl_skillneurons.models.causality import measured_sight, sight
from tl_skillneurons.models.prefill import fork, prefill
from tl_skillneurons.models.sites import head_hooks, heads_shown, output_projection


def logits(s: Subject) -> float:
    """The bridge's logits of a text."""
    expected = s.referred[0][0]
    off = difference(s.plain[0][0], expected)
    if off > s.rounding:
        own = sight(expected, s.refer(input_ids=s.exchanged[None])[0], CHANGED, s.rounding)
        here = measured_sight(s.model)
        if own != here:
            raise ValueError(
                f"differs by {off:.2g} of the largest value, for positions see {here} in the bridge and {own} in the "
                "model's own attention"
            )
    return off


def norms(s: Subject) -> float:
    """Each norm of the residual stream as the affine map that it is at a fixed scale."""
    misfits = s.ran[2]
    if misfits:
        raise ValueError(misfits[0])
    return 0.0


def neurons(s: Subject) -> float:
    """``mlp.hook_post`` of every layer against the input of the down projection, and an edit made at both."""
    _, entered = s.referred
    worst = 0.0
    for layer, name in s.sites.items():
        if name not in s.plain[1]:
            raise ValueError(f"{name} did not run")
        if layer in entered:
            worst = max(worst, difference(s.plain[1][name], entered[layer]))
        elif s.model.compatibility_mode:  # where a bridge multiplies by weights of its own
            worst = max(worst, _projected(s, layer, s.plain[1][name]))
        else:
            raise ValueError(f"layer {layer} has no projection out of its MLP that runs on a whole text")
    return max(worst, _edited(s))


def _projected(s: Subject, layer: int, neurons: Tensor) -> float:
    """The neurons through ``W_out`` and ``b_out`` against what leaves the projection."""
    mlp, name = s.model.blocks[layer].mlp, output_projection(s.model, layer).hook_out.name or ""
    found = neurons @ mlp.W_out + (0 if mlp.b_out is None else mlp.b_out)
    return difference(found, s.run(s.text[None], keep=[name])[1][name])


def _edited(s: Subject) -> float:
    """Every other neuron at zero: in the bridge by hooks, in the reference before the down projection."""
    intact, edited = s.ran[0][:2]
    expected, entered = s.referred
    comparable = entered.keys() >= s.sites.keys()  # else there is nothing to edit at in the reference
    moves = not comparable or difference(expected[1], expected[0]) > s.rounding
    if moves and difference(edited, intact) <= 1e-6:
        raise ValueError("an edit of its neurons does not reach the logits")
    return difference(edited, expected[1]) if comparable else 0.0


def prompt_left(s: Subject) -> float:
    """Texts and a prompt in a batch padded on the left, against each alone."""
    return _in_batch(s, "left")


def prompt_right(s: Subject) -> float:
    """The same, padded on the right."""
    return _in_batch(s, "right")


def _in_batch(s: Subject, side: str) -> float:
    expected = s.prompted_reference
    off = s.off_in_batch(1 if side == "left" else 2)
    if off <= s.rounding:
        return off
    texts = [s.text[:-VIRTUAL], s.short]  # both paddings in one batch may be what it can't do
    rows = s.batch([Row(text, True, side) for text in texts]).logits
    return max(difference(rows[0], s.refer_with_prompt(texts[0])), difference(rows[1], expected))


def prompt(s: Subject) -> float:
    """A prompt in place at ``embed.hook_out`` against ``inputs_embeds``: in a padded batch, or alone where padding
    beside it spoils it."""
    expected = s.prompted_reference
    in_batch = min(difference(s.side_by_side.logits[row], expected) for row in (1, 2))
    if in_batch <= s.rounding:
        return in_batch
    n, text = VIRTUAL, s.short
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


def cached(s: Subject) -> float:
    """The prompt on top of the texts' keys and values, against the whole run: logits and neurons there."""
    if not s.causal:
        raise ValueError("positions see later ones, so a text sees the prompt after it")
    without = [layer for layer in range(len(s.model.blocks)) if layer not in heads_shown(s.model)]
    if without:
        raise ValueError(f"layer {without[0]} has no attention, so it keeps no keys and values of a text")
    n = VIRTUAL
    whole, where, neurons = s.whole
    texts = [s.text[:-n], s.short]
    width = max(at.stop for at in where)
    ids = torch.full((2, width - n), s.pad_id, device=s.text.device)
    mask = torch.zeros(2, width, dtype=torch.long, device=ids.device)
    for row, (text, at) in enumerate(zip(texts, where, strict=True)):
        ids[row, at.start : width - n] = text
        mask[row, at] = 1
    try:
        with quietly(s.model):
            past = prefill(s.model, ids, mask[:, :-n])
    except Exception as error:  # whatever a model of somebody else's may raise
        raise ValueError(
            f"its texts' keys and values can't be kept as other models' are ({error})"
        ) from error
    _require_keys_and_values(past, len(s.model.blocks), (2, width - n))
    filler = s.text[:1].expand(2, n)
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
    _, entered = s.referred
    worst = 0.0
    for layer, name in enumerate(head_hooks(s.model)):
        if -1 - layer not in entered or name not in s.plain[1]:
            raise ValueError(f"layer {layer} has no projection out of its heads that runs")
        own: Any = entered[-1 - layer]
        shape = own.shape[:2]
        worst = max(worst, difference(s.plain[1][name].reshape(*shape, -1), own))
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
