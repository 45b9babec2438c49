"""One batch through the model: hooks put on and taken off, the text's keys and values reused, the run cut short.

Only what is read is computed: the run stops at the last hook point before the vocabulary, and where nothing
forbids it the last MLP runs at the read-out position alone.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge
from transformer_lens.model_bridge.exceptions import StopAtLayerException

from tl_skillneurons.models.hooks import Hook, Hooks, hooked
from tl_skillneurons.models.sites import last_mlp_input

_KNOWN_ARGUMENTS = {"attention_mask", "past_key_values"}


def run_hooked(
    model: TransformerBridge,
    ids: Tensor,
    fwd_hooks: Hooks,
    kwargs: Mapping[str, Any],
    points: Mapping[str, Any],
) -> Any:
    """``model.run_with_hooks``, which looks all names up anew each time, only where that is needed."""

    def is_plain(name: Any) -> bool:
        known = isinstance(name, str) and name in points
        return known and (not model.compatibility_mode or points[name].name == name)

    if kwargs.keys() - _KNOWN_ARGUMENTS or not all(is_plain(name) for name, _ in fwd_hooks):
        return model.run_with_hooks(ids, fwd_hooks=list(fwd_hooks), **kwargs)
    try:
        with hooked(model, fwd_hooks, points):
            return model(ids, **kwargs)
    except StopAtLayerException as stopped:
        return stopped.layer_output


def last_mlp_that_can_be_cut(model: TransformerBridge, head: str) -> str | None:
    """The hook point at which the last MLP's input can be cut to one position, with the same result there.

    ``None`` where the model's layer does not allow it (OPT's reshapes what comes out).

    Args:
        head: The hook point before the vocabulary, where results are compared.
    """
    name = last_mlp_input(model)
    ids = torch.full((2, 3), 3, device=model.cfg.device)
    last: list[Hook] = [(head, _stop_at_last)]
    points = model.hook_dict
    with torch.no_grad():
        whole = run_hooked(model, ids, last, {}, points)
        try:
            cut = run_hooked(model, ids, [(name, _keep_last), *last], {}, points)
        except (RuntimeError, IndexError, ValueError):  # ValueError: the hook point is switched off
            return None
    same = torch.allclose(cut.float(), whole.float(), rtol=1e-2, atol=1e-2 * float(whole.abs().max()))
    return name if same else None


def stopping_at(readout: Int[Tensor, " batch"], *, head: str, runs_head: bool) -> tuple[list[Hook], Hook]:
    """Hooks that end the run at each row's read-out, and one that cuts a layer's input to it.

    Args:
        readout: The column of each row.
        head: The last hook point that every position passes.
        runs_head: Whether what stands between there and the vocabulary (a masked language model's own transform)
            runs as well, at the read-out alone.
    """
    where = (torch.arange(len(readout), device=readout.device), readout)

    def keep(act: Float[Tensor, "batch pos d"], hook: Any) -> Float[Tensor, "batch 1 d"]:
        return act[where][:, None]

    def stop(act: Float[Tensor, "batch pos d"], hook: Any) -> Tensor:
        raise StopAtLayerException(act[where])

    def stop_at_first(act: Float[Tensor, "batch 1 d"], hook: Any) -> Tensor:
        raise StopAtLayerException(act[:, 0])

    ends: list[Hook] = [(head, keep), ("unembed.hook_in", stop_at_first)] if runs_head else [(head, stop)]
    return ends, (head, keep)


def _stop_at_last(act: Tensor, hook: Any) -> Tensor:
    raise StopAtLayerException(act[:, -1])


def _keep_last(act: Tensor, hook: Any) -> Tensor:
    return act[:, -1:]


def logits_at(
    logits: Float[Tensor, "batch pos d_vocab"], columns: Int[Tensor, " batch"], ids: Int[Tensor, " label"]
) -> Float[Tensor, "batch label"]:
    """The label words' logits out of all that the model gives, whatever it does at its head."""
    rows = torch.arange(len(logits), device=logits.device)
    read = logits[rows, columns.to(logits.device)][:, ids.to(logits.device)]
    return read.to(torch.promote_types(read.dtype, torch.float32))


def label_logits(
    model: TransformerBridge, hidden: Float[Tensor, "batch d_model"], ids: Int[Tensor, " label"]
) -> Float[Tensor, "batch label"]:
    """The language-model head's logits of the label words."""
    ids = ids.to(hidden.device)
    logits = hidden @ model.W_U[:, ids].to(hidden) + model.b_U[ids].to(hidden)
    transform = getattr(model.adapter, "apply_output_logits_transform", None)  # Gemma-2's softcap, say
    logits = logits if transform is None else transform(logits)
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def finite_logits(
    logits: Float[Tensor, "batch n_classes"], texts: Sequence[str]
) -> Float[Tensor, "batch n_classes"]:
    if not logits.isfinite().all():
        row = int((~logits.isfinite()).any(1).nonzero()[0])
        raise ValueError(
            f"class logits are not finite for text {row} ({texts[row]!r}); load the model in float32 "
            "(in float64, Hugging Face's attention masks overflow beside padding: use RunOptions(batch_size=1))"
        )
    return logits


def refuse_late(fwd_hooks: Hooks, *, reads_head: bool) -> None:
    """Refuse hooks beyond the read-out, which would never fire.

    Args:
        reads_head: Whether the language-model head is read, rather than a linear read-out before it.
    """
    never = ("mlm_head.hook_out", "unembed.hook_in", "unembed.hook_out")
    late = [name for name, _ in fwd_hooks if name in (never[-1:] if reads_head else never)]
    if late:
        raise ValueError(
            f"a hook at {late[0]!r} would never fire: class logits are read before it; use run_with_hooks"
        )
