"""A model made ready to write after a batch, with virtual tokens and interventions in place.

Hugging Face's own ``generate`` writes. It runs on the Hugging Face model inside the bridge
(:mod:`~tl_skillneurons.models.untouched`), whose embedding gets the virtual tokens and whose down projections get the
edited neurons, because a bridge takes a fifth more time for a token; TransformerLens' own ``generate`` also draws by
batch, from the global random state. Where something else acts on the model (hooks at other points than the neurons,
other tools' hooks, a bridge whose neurons are not those of the model inside), the same ``generate`` runs with the
bridge's parts in place.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, cast

import torch
from jaxtyping import Int
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from tl_skillneurons.models.hooks import Hooks, hooked, is_of_the_host, remove_hook
from tl_skillneurons.models.sites import neuron_hooks, output_projection
from tl_skillneurons.models.untouched import untouched
from tl_skillneurons.models.verification import agrees, embedding_scale, is_switched_off
from tl_skillneurons.prompts.attached import VirtualTokens
from tl_skillneurons.prompts.positions import PromptedTokens

if TYPE_CHECKING:
    from tl_skillneurons.prompts.prompted_model import PromptedModel


class WrittenBatch:
    """The batch that is written to: which of its columns run, and what stands in them."""

    def __init__(self, virtual: VirtualTokens) -> None:
        self.virtual, self.n_runs = virtual, 0
        self.tokens: PromptedTokens | None = None
        self._base = int(virtual.ids[0]) if len(virtual.ids) else None

    def begin(self, tokens: PromptedTokens) -> Int[Tensor, "batch pos"]:
        """The ids that ``generate`` is given: where virtual tokens go, the row's nearest token, which it has anyway."""
        self.tokens, self.n_runs = tokens, 0
        if self._base is None:
            return tokens.ids
        columns_of_text = tokens.is_text.long() * torch.arange(
            1, tokens.ids.shape[1] + 1, device=tokens.ids.device
        )
        some = columns_of_text.argmax(1, keepdim=True)
        return torch.where(tokens.ids >= self._base, tokens.ids.gather(1, some), tokens.ids)

    def on_ids(self, ids: Int[Tensor, "batch run"], hook: Any) -> Int[Tensor, "batch run"]:
        """Hook for the embedding's input: virtual tokens in their places, and positions made known to other hooks."""
        assert self.tokens is not None  # for type checkers: nothing runs before a batch has begun
        running = self.tokens.grown(ids, self.n_runs)
        self.n_runs += 1
        self.virtual.batch = running
        return running.ids


@contextmanager
def ready_to_write(
    prompted: "PromptedModel", virtual: VirtualTokens, hooks: Hooks
) -> Iterator[tuple[Any, WrittenBatch]]:
    """The model, ready to write: without the bridge's parts where these add nothing, else with them."""
    model, points, batch = prompted.model, virtual.points, WrittenBatch(virtual)
    if unknown := [name for name, _ in hooks if name not in points]:
        raise ValueError(
            f"{model.cfg.model_name} has no hook point {unknown[0]!r}; model.hook_dict lists them"
        )
    inside = _inside(prompted, virtual, hooks, batch)
    if inside is not None:
        yield inside, batch
        return
    place, before = points["embed.hook_in"], cast(Any, batch.on_ids)
    handle = place.add_hook(before, prepend=True)  # before the virtual tokens' own
    try:
        with hooked(model, hooks, points):
            yield model.original_model, batch
    finally:
        remove_hook(place, handle)


def _inside(prompted: "PromptedModel", virtual: VirtualTokens, hooks: Hooks, batch: WrittenBatch) -> Any:
    """The model inside the bridge, with virtual tokens and edited neurons; ``None`` where it would not be the same."""
    model, points = prompted.model, virtual.points
    layers = {id(points[name]): layer for layer, name in neuron_hooks(model).items()}
    if (
        not (virtual.alone and virtual.head_is_plain and all(id(points[name]) in layers for name, _ in hooks))
        or is_switched_off()
        or model.compatibility_mode
        or not all(agrees(model, name) for name in ("logits", "neurons", "prompt"))
        or _has_foreign_forwards(model)
    ):
        return None
    try:
        bare, scale = untouched(model), embedding_scale(model)
    except ValueError:  # parts that are moved between devices, or changed in the bridge alone
        return None
    embed = bare.part(model.embed)
    projections = [bare.part(output_projection(model, layers[id(points[name])])) for name, _ in hooks]
    if embed is None or None in projections:
        return None
    virtual.embedding = virtual.embedding.detach() / scale
    # on objects that nobody else has: `untouched` makes them anew
    embed.register_forward_pre_hook(lambda _, given: (virtual.on_ids(batch.on_ids(given[0], None), None),))
    embed.register_forward_hook(lambda _, given, rows: virtual.on_embed(rows, None))
    for projection, (name, function) in zip(projections, hooks, strict=True):
        assert projection is not None  # for type checkers: refused above
        projection.register_forward_pre_hook(_edit(function, points[name], virtual))
    return bare.model


def _edit(function: Callable[..., Any], point: Any, virtual: VirtualTokens) -> Callable[..., Any]:
    """A hook of TransformerLens' form for a module of torch: on what goes in."""

    def before(module: Any, given: tuple[Any, ...]) -> tuple[Any, ...] | None:
        act, tokens = given[0], virtual.current()
        assert tokens is not None  # for type checkers: the embedding ran before
        new = function(act.view(*tokens.ids.shape, act.shape[-1]), hook=point)  # OPT runs all rows as one
        return None if new is None else (new.view(act.shape), *given[1:])

    return before


def _has_foreign_forwards(model: TransformerBridge) -> bool:
    """Whether somebody has put a forward of their own on a module, which the model inside would not run."""
    own = [vars(part).get("forward") for part in model.original_model.modules()]
    return not all(one is None or is_of_the_host(getattr(one, "__func__", one)) for one in own)
