"""The run that a decomposition reads: hook points by name, and everything that is written cut out of the graph."""

from collections.abc import Callable

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor
from transformer_lens.hook_points import HookPoint
from transformer_lens.model_bridge import TransformerBridge
from transformer_lens.model_bridge.exceptions import StopAtLayerException

from tl_skillneurons.models.hooks import Hook
from tl_skillneurons.models.records import model_label
from tl_skillneurons.models.sites import head_hooks, neuron_hooks
from tl_skillneurons.models.verification import require
from tl_skillneurons.prompts.positions import PromptedTokens
from tl_skillneurons.prompts.prompted_model import PromptedModel
from tl_skillneurons.prompts.soft_prompt import VirtualTokens


class Names:
    """The hook points that a decomposition up to one layer reads and cuts."""

    def __init__(self, model: TransformerBridge, last: int, projection: str, layers: list[int]) -> None:
        require(model, "neurons", "heads")
        points = model.hook_dict
        self.layers = range(last + 1)
        self.embed = "blocks.0.hook_in"
        self.heads = head_hooks(model)[: last + 1]
        self.mlps = [f"blocks.{layer}.mlp.out.hook_out" for layer in range(last)]
        self.patterns = [f"blocks.{layer}.attn.hook_pattern" for layer in self.layers]
        self.values = [f"blocks.{layer}.attn.hook_v" for layer in self.layers]
        self.pre = {layer: f"blocks.{layer}.mlp.{projection}" for layer in layers}
        self.stop = neuron_hooks(model)[last]
        for layer, name in self.pre.items():
            if name not in points:
                raise ValueError(
                    f"layer {layer} of {model_label(model)} has no {name}: its MLP has no gate; use projection='pre'"
                )

    @property
    def written(self) -> tuple[str, ...]:
        """Where something is written to the residual stream."""
        return (self.embed, *self.heads, *self.mlps)


class RecordedRun:
    """One run with everything that is written cut out of the graph at the prompt positions."""

    def __init__(
        self, prompted: PromptedModel, tokens: PromptedTokens, virtual: VirtualTokens, names: Names
    ) -> None:
        columns = tokens.prompt_columns()
        self.at = (torch.arange(len(tokens), device=columns.device)[:, None], columns)
        self.names = names
        self.leaves: dict[str, Tensor] = {}
        self.kept: dict[str, Tensor] = {}
        hooks: list[Hook] = [(name, self._begin(name)) for name in names.written]
        hooks += [(name, self._keep(name, self._asked)) for name in names.patterns]
        hooks += [(name, self._keep(name, Tensor.detach)) for name in names.values]
        hooks += [(name, self._keep(name, self._at_prompt)) for name in names.pre.values()]
        run_until(prompted, tokens, virtual, hooks, names.stop)

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
    prompted: PromptedModel, tokens: PromptedTokens, virtual: VirtualTokens, hooks: list[Hook], last: str
) -> None:
    def stop(act: Tensor, hook: HookPoint) -> None:
        raise StopAtLayerException(act)

    prompted.forward(tokens, virtual, [*hooks, (last, stop)])
