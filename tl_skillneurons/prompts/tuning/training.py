"""Steps of gradient descent on what stands beside a frozen model: a prompt's rows, a read-out, an adapter's weights.

The loss of a step is the cross-entropy over the label words at the read-out position of one batch; Adam's rate
rises linearly during the warm-up and then falls linearly to zero; gradients above ``clip`` in norm are scaled.
A step whose loss or gradient is not finite is not taken, and is the last.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from tl_skillneurons.prompts.attached import VirtualTokens
from tl_skillneurons.prompts.prompted_model import PromptedModel
from tl_skillneurons.prompts.tuning.schedule import batch_at, rate


@dataclass(frozen=True, eq=False)
class Examples:
    """Role ``train`` as token ids, split into what is trained on and what is held back."""

    ids: list[list[int]]
    labels: Int[Tensor, " example"]
    trained: list[int]
    held: list[int]


@dataclass(frozen=True)
class Steps:
    """How many steps, of how many examples, in which order, and how far each may go."""

    n_steps: int
    batch_size: int
    warmup: float
    clip: float
    seed: int


@dataclass(frozen=True)
class Step:
    """One step: how many are done with it, its loss, and whether it was taken."""

    n_done: int
    loss: float
    is_finite: bool


def batch_logits(
    prompted: PromptedModel, virtual: VirtualTokens, ids: list[list[int]]
) -> Float[Tensor, "batch n_classes"]:
    """Class logits of one batch, on top of the texts' keys and values where they are kept."""
    tokens = prompted.assemble(ids)
    apart = prompted.run.cache is not None and prompted.runs_apart(virtual)
    return prompted.read_out(tokens, virtual, past=prompted.past(tokens) if apart else None)


def training_steps(
    prompted: PromptedModel,
    virtual: VirtualTokens,
    examples: Examples,
    optimizer: torch.optim.Optimizer,
    clipped: Sequence[Sequence[nn.Parameter]],
    steps: Steps,
    *,
    start: int = 0,
) -> Iterator[Step]:
    """Train inside :meth:`PromptedModel.attached`, one step each time the iterator is asked.

    Args:
        optimizer: Its groups' rates are the highest; each step sets its own.
        clipped: Parameters whose gradient norm is limited together, group by group.
        start: How many steps are done already.
    """
    highest = [group["lr"] for group in optimizer.param_groups]
    for step in range(start, steps.n_steps):
        for group, most in zip(optimizer.param_groups, highest, strict=True):
            group["lr"] = most * rate(step, steps.n_steps, steps.warmup)
        batch = batch_at(step, examples.trained, steps.batch_size, steps.seed)
        logits = batch_logits(prompted, virtual, [examples.ids[i] for i in batch])
        loss = functional.cross_entropy(logits, examples.labels[batch].to(logits.device))
        optimizer.zero_grad()
        loss.backward()
        finite = loss.isfinite()
        for parameters in clipped:
            norm = torch.nn.utils.clip_grad_norm_(list(parameters), steps.clip, foreach=False)
            finite = finite & norm.isfinite()
        if not finite:
            yield Step(step, float(loss.detach()), False)
            return
        optimizer.step()
        yield Step(step + 1, float(loss.detach()), True)
