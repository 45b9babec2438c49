"""The run that a decomposition reads: hook points by name, and everything that is written cut out of the graph."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor
from transformer_lens.hook_points import HookPoint
from transformer_lens.model_bridge import TransformerBridge
from transformer_lens.model_bridge.exceptions import StopAtLayerException
from transformers import DynamicCache

from tl_skillneurons.models.hooks import Hook
from tl_skillneurons.models.records import model_label
from tl_skillneurons.models.sites import asking_for_patterns, head_hooks, mlp_outputs, neuron_hooks
from tl_skillneurons.models.verification import require
from tl_skillneurons.prompts.attached import VirtualTokens
from tl_skillneurons.prompts.positions import PromptedTokens
from tl_skillneurons.prompts.prompted_model import PromptedModel


class Names:
    """The hook points that a decomposition up to one layer reads and cuts."""

    def __init__(
        self, model: TransformerBridge, last: int, projections: Sequence[str], layers: list[int]
    ) -> None:
        require(model, "neurons", "heads", "norms")
        points = model.hook_dict
        self.layers = range(last + 1)
        self.embed = "blocks.0.hook_in"
        self.heads = head_hooks(model)[: last + 1]
        self.mlps = mlp_outputs(model)[:last]
        self.patterns = [f"blocks.{layer}.attn.hook_pattern" for layer in self.layers]
        values = [f"blocks.{layer}.attn.hook_v" for layer in self.layers]
        self.values = [name for name in values if name in points]
        self.pre = {layer: [f"blocks.{layer}.mlp.{one}" for one in projections] for layer in layers}
        self.post = {layer: neuron_hooks(model)[layer] for layer in layers}
        self.stop = neuron_hooks(model)[last]
        for layer, names in self.pre.items():
            for name in names:
                if name not in points:
                    raise ValueError(
                        f"layer {layer} of {model_label(model)} has no {name}: its MLP has no gate; use "
                        "projection='pre'"
                    )

    @property
    def read(self) -> list[str]:
        """What neurons read, at the layers asked for."""
        return [name for names in self.pre.values() for name in names]

    @property
    def written(self) -> tuple[str, ...]:
        """Where something is written to the residual stream."""
        return (self.embed, *self.heads, *self.mlps)


class RecordedRun:
    """One run with everything that is written cut out of the graph at the prompt positions.

    With ``past``, the keys and values of the batch's texts, only the prompt runs.
    """

    def __init__(
        self,
        prompted: PromptedModel,
        tokens: PromptedTokens,
        virtual: VirtualTokens,
        names: Names,
        past: DynamicCache | None,
    ) -> None:
        here = tokens if past is None else tokens.last(prompted.layout.n_virtual_tokens)
        columns = here.prompt_columns()
        self.at = (torch.arange(len(tokens), device=columns.device)[:, None], columns)
        self.names, self.past = names, past
        self.leaves: dict[str, Tensor] = {}
        self.kept: dict[str, Tensor] = {}
        hooks: list[Hook] = [(name, self._begin(name)) for name in names.written]
        hooks += [(name, self._keep(name, self._asked)) for name in names.patterns]
        hooks += [(name, self._keep(name, Tensor.detach)) for name in names.values]
        hooks += [(name, self._keep(name, self._at_prompt)) for name in names.read]
        hooks += [(name, self._keep(name, self._at_prompt)) for name in names.post.values()]
        run_until(prompted, tokens, virtual, hooks, names.stop, past)

    def before(self, layer: int) -> Float[Tensor, "batch source group d_head"] | None:
        """The values of the text, where it was not run here: it stands before what was."""
        if self.past is None:
            return None
        values: Any = getattr(self.past.layers[layer], "values", None)
        if values is None:
            return None
        return rearrange(values, "batch group source d_head -> batch source group d_head")

    def _begin(self, name: str) -> Callable[..., Tensor]:
        def begin(act: Tensor, hook: HookPoint) -> Tensor:
            self.leaves[name] = act[self.at].detach().requires_grad_(True)
            return act.detach().index_put(self.at, self.leaves[name])

        return begin

    def _keep(self, name: str, part: Callable[[Tensor], Tensor]) -> Callable[..., None]:
        def keep(act: Tensor, hook: HookPoint) -> None:
            self.kept[name] = part(act)

        return keep

    def _at_prompt(self, act: Float[Tensor, "batch pos neuron"]) -> Float[Tensor, "batch prompt_pos neuron"]:
        return act[self.at]

    def _asked(
        self, pattern: Float[Tensor, "batch head query source"]
    ) -> Float[Tensor, "batch head prompt_pos source"]:
        rows, columns = self.at
        return rearrange(
            pattern.detach()[rows, :, columns], "batch prompt_pos head source -> batch head prompt_pos source"
        )


def run_until(
    prompted: PromptedModel,
    tokens: PromptedTokens,
    virtual: VirtualTokens,
    hooks: list[Hook],
    last: str,
    past: DynamicCache | None,
) -> None:
    """Run one batch as far as ``last``, with ``past`` the prompt alone on top of it."""

    def stop(act: Tensor, hook: HookPoint) -> None:
        raise StopAtLayerException(act)

    prompted.forward(tokens, virtual, [*hooks, (last, stop)], past, **asking_for_patterns(prompted.model))
