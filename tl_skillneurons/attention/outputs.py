"""What heads write out on reference texts: the values that ablations hold them at.

A head's output ``z_lh[x, p]`` stands at ``blocks.{l}.attn.o.hook_in``, before the output projection::

    mean_lh = sum over texts x and their positions p of z_lh[x, p]  /  number of (x, p)

with ``p`` of one kind: "prompt", "text" or "all", padding left out. A mean shows what a head writes on average, not
what it moves: heads with a large mean may write the same whatever the text.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor
from transformer_lens.hook_points import HookPoint
from transformer_lens.model_bridge import TransformerBridge

from tl_skillneurons._checks import require_option
from tl_skillneurons._results import html_of_fields, short_repr
from tl_skillneurons.interventions.references import GivenValues, absent_classes, class_means
from tl_skillneurons.models.batches import run_batches
from tl_skillneurons.models.hooks import Hook
from tl_skillneurons.models.records import model_label
from tl_skillneurons.models.sites import head_hooks
from tl_skillneurons.models.verification import require
from tl_skillneurons.prompts.positions import NAMED
from tl_skillneurons.prompts.prompted_model import PromptedModel
from tl_skillneurons.prompts.run import RunOptions
from tl_skillneurons.prompts.soft_prompt import SoftPrompt


def mean_head_outputs(
    model: TransformerBridge,
    prompt: SoftPrompt | None,
    texts: Sequence[str],
    *,
    positions: str = "prompt",
    max_length: int | None = None,
    run: RunOptions = RunOptions(),
) -> Float[Tensor, "layer head d_head"]:
    """Each head's output averaged over texts and over positions of one kind, padding left out.

    Args:
        positions: "prompt", "text", "special", "template" or "all".
        max_length: Longest sequence in tokens; by default what the prompt was tuned with.

    Raises:
        ValueError: For unknown positions, or "prompt" without a prompt.

    Example:
        >>> values = skn.attention.mean_head_outputs(model, prompt, texts)
    """
    prompted = PromptedModel(model, prompt, max_length=max_length, run=run)
    total, count = torch.zeros((), dtype=torch.float64), 0

    def add(batch: list[int], sums: Tensor, n_positions: Tensor) -> None:
        nonlocal total, count
        total = total + sums.sum(0)
        count += int(n_positions.sum())

    _sum_over_positions(prompted, texts, positions, add)
    return (total / count).float()


@dataclass(frozen=True, eq=False)
class HeadOutputs:
    """What every head writes out on reference examples: values for :func:`ablate_heads`.

    ``feature`` is ``head`` and ``d_head`` as one axis.

    Attributes:
        activations: Averaged over the positions of each example.
        n_positions: How many positions each example has.
        labels: Class of each example; ``None`` where nobody said.
        n_heads: Heads of a layer.

    Example:
        >>> outputs = skn.attention.head_outputs(prompted, task.split("baseline")["text"])
        >>> hooks = skn.attention.ablate_heads([(3, 5)], how="resample", values=outputs, positions="prompt")
        >>> prompted.class_logits(texts, fwd_hooks=hooks)
    """

    __repr__ = short_repr
    _repr_html_ = html_of_fields

    activations: Float[Tensor, "example layer feature"]
    n_positions: Int[Tensor, " example"]
    labels: Int[Tensor, " example"] | None
    n_heads: int

    @cached_property
    def mean(self) -> Float[Tensor, "layer feature"]:
        """Mean over all positions of all examples, as of :func:`mean_head_outputs`."""
        weight = self.n_positions.double()[:, None, None]
        return ((self.activations.double() * weight).sum(0) / self.n_positions.sum()).float()

    @cached_property
    def std(self) -> Float[Tensor, "layer feature"]:
        """Standard deviation over examples."""
        return self.activations.double().std(0, correction=0).float()

    @cached_property
    def class_mean(self) -> Float[Tensor, "class layer feature"] | None:
        """Mean over the examples of each class; ``None`` without labels.

        Raises:
            ValueError: When there is no example of a class below the highest one.
        """
        return None if self.labels is None else class_means(self.activations, self.labels)

    @cached_property
    def values(self) -> GivenValues:
        """All of them, as interventions read them; class means where every class has examples."""
        whole = self.labels is not None and not absent_classes(self.labels)
        return GivenValues(self.mean, self.std, self.class_mean if whole else None, self.activations)

    @cached_property
    def size(self) -> Float[Tensor, "layer head"]:
        """How long each head's output is on average: the mean over examples of its norm."""
        by_head = rearrange(
            self.activations, "example layer (head d_head) -> example layer head d_head", head=self.n_heads
        )
        return by_head.double().norm(dim=-1).mean(0)


def head_outputs(
    prompted: PromptedModel,
    texts: Sequence[str],
    *,
    labels: Sequence[int] | Int[Tensor, " example"] | None = None,
    positions: str = "prompt",
) -> HeadOutputs:
    """Every head's output on each text, averaged over its positions: ``texts * layers * d_model`` numbers.

    Args:
        labels: Class of each text, for what goes by class.
        positions: "prompt", "text", "special", "template" or "all", padding left out.

    Raises:
        ValueError: For unknown positions, or "prompt" without a prompt.

    Example:
        >>> values = skn.attention.head_outputs(prompted, texts, labels=labels)
        >>> hooks = skn.attention.ablate_heads([(5, 1)], how=Noise(0.5), values=values, positions="prompt")
    """
    means: dict[int, Tensor] = {}
    counts: dict[int, Tensor] = {}

    def add(batch: list[int], sums: Tensor, n_positions: Tensor) -> None:
        means.update(zip(batch, sums / n_positions[:, None, None, None], strict=True))
        counts.update(zip(batch, n_positions, strict=True))

    _sum_over_positions(prompted, texts, positions, add)
    by_head = torch.stack([means[i] for i in range(len(means))])
    return HeadOutputs(
        rearrange(by_head, "example layer head d_head -> example layer (head d_head)"),
        torch.stack([counts[i] for i in range(len(counts))]),
        None if labels is None else torch.as_tensor(labels).cpu(),
        n_heads=by_head.shape[2],
    )


def _sum_over_positions(
    prompted: PromptedModel,
    texts: Sequence[str],
    positions: str,
    add: Callable[[list[int], Float[Tensor, "example layer head d_head"], Int[Tensor, " example"]], None],
) -> None:
    """Call ``add`` with each batch of texts, their heads' outputs summed over positions, and how many these are."""
    require_option(positions, "positions", NAMED)
    if positions == "prompt" and prompted.prompt is None:
        raise ValueError("without a prompt there are no prompt positions; use positions='text'")
    ids = prompted.encode(texts)
    require(prompted.model, "heads")
    names = head_hooks(prompted.model)
    with prompted.attached() as virtual, torch.no_grad():

        def run(batch: list[int]) -> None:
            tokens = prompted.assemble([ids[i] for i in batch], batch)
            where = tokens.of_kind(positions)
            found: dict[int, Tensor] = {}

            def keep(layer: int) -> Callable[..., None]:
                def note(act: Tensor, hook: HookPoint) -> None:
                    counted = where.to(act.device)[..., None, None]
                    found[layer] = torch.where(counted, act, 0).sum(1, dtype=torch.float64).cpu()

                return note

            hooks: list[Hook] = [(name, keep(layer)) for layer, name in enumerate(names)]
            prompted.forward(tokens, virtual, hooks)
            shapes = {tuple(one.shape[1:]) for one in found.values()}
            if len(shapes) > 1:
                raise ValueError(
                    f"heads of {model_label(prompted.model)} differ from layer to layer, [head, d_head] is "
                    f"{sorted(map(list, shapes))}, so they don't go into one table; study one kind of layer by hooks "
                    "at blocks.{layer}.attn.o.hook_in"
                )
            add(batch, torch.stack([found[layer] for layer in range(len(names))], dim=1), where.sum(1).cpu())

        run_batches(prompted.batches(ids), run)
