"""What of a model can learn a task while the weights of its MLPs stay as they are, and how it is trained.

======== ==========================================================================================================
lora     low-rank updates of the attention's query and value projections, ``W + 2 B A`` (by PEFT; Hu et al., 2022),
         merged into plain weights at the end
bitfit   every bias of the model, MLPs' included, and no other weight (Ben Zaken et al., 2022)
adapter  behind each attention and each MLP a bottleneck, ``x + gelu(x W_down) W_up`` (Houlsby et al., 2019), a
         permanent hook at its output
======== ==========================================================================================================

Trained by the loop that tunes prompts (:mod:`~tl_skillneurons.prompts.tuning.training`), to the end of the steps. The
study is :mod:`~tl_skillneurons.studies.adaptation`; what it does not show, and its control, stand there.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional
from transformer_lens.hook_points import HookPoint
from transformer_lens.model_bridge import TransformerBridge

from tl_skillneurons._checks import require_int, require_option
from tl_skillneurons._progress import progress_bar
from tl_skillneurons.models.sites import mlp_outputs
from tl_skillneurons.prompts.prompted_model import PromptedModel
from tl_skillneurons.prompts.tuning.schedule import require_between, require_warmup
from tl_skillneurons.prompts.tuning.training import Examples, Steps, training_steps

METHODS = ("lora", "bitfit", "adapter")


@dataclass(frozen=True)
class AdapterTraining:
    """How adapters are trained.

    Attributes:
        batch_size: Examples of a training step.
        learning_rate: Adam's highest rate.
        warmup: Share of the steps over which the rate rises from zero; then it falls to zero.
        clip: Largest norm of the gradient of all that is trained; larger ones are scaled.
        held_back: Share of ``train`` that is not trained on (256 examples at most).

    Raises:
        ValueError: For a value outside its range.

    Example:
        >>> skn.studies.adapt(model, task, "lora", training=skn.prompts.AdapterTraining(learning_rate=0.01))
    """

    batch_size: int = 16
    learning_rate: float = 0.001
    warmup: float = 0.06
    clip: float = 1.0
    held_back: float = 0.1

    def __post_init__(self) -> None:
        require_int(self.batch_size, "batch_size")
        require_between(self.learning_rate, "learning_rate", 0.0, math.inf)
        require_between(self.clip, "clip", 0.0, math.inf)
        require_between(self.held_back, "held_back", 0.0, 1.0)
        require_warmup(self.warmup)


def adapter_parameters(
    model: TransformerBridge, how: str, width: int, seed: int = 0
) -> AbstractContextManager[dict[str, nn.Parameter]]:
    """A context that yields, by name, what the method trains of ``model``; at its end it is part of the model.

    Args:
        how: "lora" (needs PEFT), "bitfit" or "adapter".
        width: Rank of LoRA's updates, or width of the adapters' bottlenecks.
        seed: Draws the first weights.

    Raises:
        ValueError: For an unknown method, or a model without biases (bitfit).
        ImportError: When LoRA is asked for and PEFT is missing.
    """
    return _PARTS[require_option(how, "how", METHODS)](model, require_int(width, "width"), seed)


def restore_adapters(model: TransformerBridge, how: str, width: int, values: Mapping[str, Tensor]) -> None:
    """Make what was trained, as it was yielded by :func:`adapter_parameters`, part of ``model`` again.

    Raises:
        ValueError: When ``values`` are not this method's for this model.
    """
    with adapter_parameters(model, how, width) as parts:
        here, there = ({name: tuple(one.shape) for name, one in given.items()} for given in (parts, values))
        if here != there:
            odd = sorted(name for name in {*here, *there} if here.get(name) != there.get(name))
            raise ValueError(
                f"what was trained by {how} is not of this model: {odd[0]} is {there.get(odd[0])} there, "
                f"{here.get(odd[0])} here"
            )
        with torch.no_grad():
            for name, part in parts.items():
                part.copy_(values[name])
                part.requires_grad_(False)


def train_adapters(
    prompted: PromptedModel,
    examples: Examples,
    trained: list[nn.Parameter],
    n_steps: int,
    training: AdapterTraining,
    seed: int,
) -> list[float]:
    """Move ``trained`` down the loss of the label words; the loss of each step.

    Args:
        prompted: The model whose parts they are, without a cache of texts, which training would make wrong.

    Raises:
        ValueError: When a loss or a gradient is not finite.
    """
    optimizer = torch.optim.Adam(trained, lr=training.learning_rate, foreach=False)
    steps = Steps(n_steps, training.batch_size, training.warmup, training.clip, seed)
    losses = []
    with (
        prompted.attached() as virtual,
        torch.enable_grad(),
        progress_bar("adapting", n_steps, show=prompted.run.progress) as advance,
    ):
        for step in training_steps(prompted, virtual, examples, optimizer, [trained], steps):
            if not step.is_finite:
                raise ValueError(
                    f"adapting diverged at step {step.n_done}; give a lower learning_rate than "
                    f"{training.learning_rate}"
                )
            losses.append(step.loss)
            advance()
    return losses


@contextmanager
def _lora(model: TransformerBridge, width: int, seed: int) -> Iterator[dict[str, nn.Parameter]]:
    """PEFT's layers in the place of the query and value projections; merged into plain ones at the end."""
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise ImportError('lora needs the package peft; pip install "tl_skillneurons[peft]"') from error
    places = {
        f"{part}{layer}": getattr(block.attn, part)
        for layer, block in enumerate(model.blocks)
        for part in ("q", "v")
    }
    holder = nn.ModuleDict({name: place.original_component for name, place in places.items()})
    config = LoraConfig(r=width, lora_alpha=2 * width, target_modules=list(places))
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        inject_adapter_in_model(config, holder)
    holder.eval()
    for name, place in places.items():
        place.set_original_component(holder[name])
    yield {name: p for name, p in holder.named_parameters() if "lora_" in name}
    for name, place in places.items():
        layer: Any = holder[name]  # PEFT's
        layer.merge()
        place.set_original_component(layer.get_base_layer())


@contextmanager
def _bitfit(model: TransformerBridge, width: int, seed: int) -> Iterator[dict[str, nn.Parameter]]:
    biases = {name: p for name, p in model.named_parameters() if name.endswith("bias")}
    if not biases:
        raise ValueError(f"{model.cfg.model_name} has no biases for bitfit to train; use 'lora' or 'adapter'")
    for bias in biases.values():
        bias.requires_grad_(True)
    yield biases


@contextmanager
def _adapter(model: TransformerBridge, width: int, seed: int) -> Iterator[dict[str, nn.Parameter]]:
    """A bottleneck behind each output projection; it belongs to this model from now on, as a permanent hook."""
    generator = torch.Generator().manual_seed(seed)
    trained: dict[str, nn.Parameter] = {}
    mlps = mlp_outputs(model)
    for layer, block in enumerate(model.blocks):
        for name in (f"blocks.{layer}.attn.o.hook_out", mlps[layer]):
            weight = next(block.parameters())
            d_model = model.cfg.d_model
            down = torch.randn(d_model, width, generator=generator).to(weight.device) / math.sqrt(d_model)
            own = [nn.Parameter(down), nn.Parameter(torch.zeros(width, d_model, device=weight.device))]
            model.hook_dict[name].add_hook(_bottleneck(*own), is_permanent=True)
            trained |= {f"{name}.down": own[0], f"{name}.up": own[1]}
    yield trained


def _bottleneck(down: nn.Parameter, up: nn.Parameter) -> Callable[..., Tensor]:
    def hook_function(
        act: Float[Tensor, "batch pos d_model"], hook: HookPoint
    ) -> Float[Tensor, "batch pos d_model"]:
        return act + (functional.gelu(act.to(down) @ down) @ up).to(act)

    return hook_function


_PARTS = {"lora": _lora, "bitfit": _bitfit, "adapter": _adapter}
