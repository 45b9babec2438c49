"""The direct effect of changing neurons on the class logits: through the residual stream alone.

Everything later answers as in the intact run: attention and MLP outputs stay what they were, and so do the
norms' scales. What is left is linear in the change of the activations ``a`` at the read-out position::

    logits' = logits + sum over layers l of (a'_l - a_l) @ W_out_l @ N_l @ W_U[:, label words]

with ``N_l`` the linear part, at the intact run's scales, of the norms between layer ``l``'s MLP and the
read-out. A linear read-out's rows take the place of ``W_U``'s columns; a softcap counts with its slope, and so
does the transform of a masked-LM head. The total effect also has what later layers make of the change; where
it is smaller than the direct effect, they repair the damage (McGrath et al., 2023; Rushing and Nanda, 2024,
who find the last norm's scale alone to undo about a third).

One intact run gives the direct effects of any number of interventions: with attention outputs, activations and
scales cut out of the graph, the gradient of a class logit is the bracket above, for all neurons at once.
Positions other than the read-out have no direct effect on it.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from jaxtyping import Float
from torch import Tensor
from transformer_lens.hook_points import HookPoint
from transformers import DynamicCache

from tl_skillneurons.models.batches import run_batches
from tl_skillneurons.models.hooks import Hook, Hooks
from tl_skillneurons.models.norms import frozen_norms
from tl_skillneurons.models.records import model_label
from tl_skillneurons.models.remainders import is_rounding, tell_remainder
from tl_skillneurons.models.sites import beside_neurons, neuron_hooks
from tl_skillneurons.models.verification import require
from tl_skillneurons.prompts._forward import stopping_at
from tl_skillneurons.prompts.attached import VirtualTokens
from tl_skillneurons.prompts.positions import PromptedTokens, published
from tl_skillneurons.prompts.prompted_model import PromptedModel

_CHECKED = 4  # texts on which the straight path is compared with a run


def direct_logits(
    prompted: PromptedModel,
    texts: Sequence[str],
    intact: Float[Tensor, "example n_classes"],
    interventions: Sequence[Hooks],
) -> list[Float[Tensor, "example n_classes"]]:
    """For each intervention the class logits with its direct effect alone.

    Args:
        intact: Class logits without any, one row per text.
        interventions: Each the hooks that :func:`~tl_skillneurons.ablate` makes for "prompt" positions.

    Raises:
        ValueError: Under ``torch.inference_mode()``, where there can be no gradient; for a model in which what an MLP
            writes reaches the logits in other ways than through the residual stream and norms.

    Example:
        >>> intact = prompted.class_logits(texts).detach()
        >>> [direct] = direct_logits(prompted, texts, intact, [skn.ablate(skill, positions="prompt")])
    """
    if prompted.words is not None and prompted.words.need_scores:
        raise ValueError(
            "a direct effect is on what is read at one position, and these label words have several tokens, or are "
            "compared with what they are without the text; give label words of one token with word_score='sum', or "
            "measure total effects"
        )
    if torch.is_inference_mode_enabled():
        raise ValueError("direct effects need gradients; call this outside torch.inference_mode()")
    changed = [intact.clone().double() for _ in interventions]
    ids = prompted.encode(texts)
    require(prompted.model, "neurons", "output head", "norms")
    names = neuron_hooks(prompted.model)
    place_of = {f"blocks.{layer}.mlp.hook_post": at for at, layer in enumerate(names)}
    seen = False
    with prompted.attached() as virtual, torch.enable_grad():

        def run(batch: list[int]) -> None:
            nonlocal seen
            tokens = prompted.assemble([ids[i] for i in batch], batch)
            if not seen:
                few = batch[:_CHECKED]
                require_straight(prompted, prompted.assemble([ids[i] for i in few], few), virtual)
                seen = True
            past = prompted.past(tokens) if prompted.runs_apart(virtual) else None
            acts, gain = readout_gain(prompted, tokens, virtual, past)
            alone = _readout_alone(tokens.example)
            with _point(alone) as point, torch.no_grad():
                for logits, hooks in zip(changed, interventions, strict=True):
                    for name, function in hooks:
                        old = acts[place_of[name]]
                        delta = function(old[:, None], hook=point)[:, 0] - old
                        moved = torch.einsum("bn,bcn->bc", delta.double(), gain[place_of[name]].double())
                        logits[batch] += moved.to(logits.device)

        run_batches(prompted.batches(ids), run)
    return [logits.to(intact.dtype) for logits in changed]


def readout_gain(
    prompted: PromptedModel,
    tokens: PromptedTokens,
    virtual: VirtualTokens,
    past: DynamicCache | None = None,
) -> tuple[list[Float[Tensor, "batch neuron"]], list[Float[Tensor, "batch n_classes neuron"]]]:
    """The activations of each layer that has neurons at the read-out position, and what one more unit of each adds to
    each logit.

    Call it inside ``prompted.attached()``, with gradients enabled; with ``past`` only the prompt runs.
    """
    leaves: list[Tensor] = []

    def begin(act: Tensor, hook: HookPoint) -> Tensor:
        leaves.append(act.detach().requires_grad_(True))
        return leaves[-1]

    def cut(act: Tensor, hook: HookPoint) -> Tensor:
        return act.detach()

    model = prompted.model
    hooks = [("embed.hook_out", cut), *((name, cut) for name in beside_neurons(model))]
    hooks += [(name, begin) for name in neuron_hooks(model).values()]
    with frozen_norms(model):
        logits = prompted.read_out(tokens, virtual, hooks, past)
    tokens = tokens if past is None else tokens.last(prompted.layout.n_virtual_tokens)
    rows = torch.arange(len(tokens), device=tokens.readout.device)
    gains: list[list[Tensor]] = [[] for _ in leaves]
    for number in range(logits.shape[1]):
        gradients = torch.autograd.grad(logits[:, number].sum(), leaves, retain_graph=True)
        for gain, gradient in zip(gains, gradients, strict=True):
            gain.append(gradient[rows, tokens.readout])
    at_readout = [leaf.detach()[rows, tokens.readout] for leaf in leaves]
    return at_readout, [torch.stack(gain, dim=1) for gain in gains]


def require_straight(prompted: PromptedModel, tokens: PromptedTokens, virtual: VirtualTokens) -> None:
    """Refuse a model whose read-out is not linear in what its MLPs write, all else held as it was; what is missing is
    told where it is more than 1e-3.

    Neurons are halved at the read-out; where it is linear, the gradient tells where that moves the last residual.
    """
    model = prompted.model
    neurons, others = list(neuron_hooks(model).values()), beside_neurons(model)
    rows = torch.arange(len(tokens), device=tokens.readout.device)
    kept: dict[str, Tensor] = {}

    def keep(act: Tensor, hook: HookPoint) -> Tensor:
        kept[hook.name or ""] = act.detach().requires_grad_(hook.name in neurons)
        return kept[hook.name or ""]

    def halve(act: Tensor, hook: HookPoint) -> Tensor:
        changed = kept[hook.name or ""].detach().clone()
        changed[rows, tokens.readout] /= 2
        return changed

    def again(act: Tensor, hook: HookPoint) -> Tensor:
        return kept[hook.name or ""]

    def last_residual(hooks: list[Hook]) -> Tensor:
        ends, _ = stopping_at(tokens.readout, head=prompted.head, runs_head=False)
        return prompted.forward(tokens, virtual, [*hooks, *ends])

    with frozen_norms(model) as norms:
        whole = last_residual([*((name, keep) for name in others), *((name, keep) for name in neurons)])
        direction = torch.linspace(-1, 1, whole.shape[-1], dtype=whole.dtype, device=whole.device)
        leaves = [kept[name] for name in neurons]
        gradients = torch.autograd.grad((whole @ direction).sum(), leaves)
        with norms.replayed(), torch.no_grad():
            halved = last_residual(
                [*((name, again) for name in others), *((name, halve) for name in neurons)]
            )
    at = (rows, tokens.readout)
    parts = torch.stack(
        [
            -(g[at] * leaf.detach()[at]).sum(-1).double().cpu() / 2
            for g, leaf in zip(gradients, leaves, strict=True)
        ]
    )
    moved = ((halved - whole.detach()) @ direction).double().cpu()
    off = float((moved - parts.sum(0)).abs().max() / parts.abs().sum(0).max().clamp(min=1e-30))
    if not is_rounding(off, whole.dtype):
        raise ValueError(
            f"there are no direct effects in {model_label(model)}: what its MLPs write reaches the read-out in other "
            f"ways than through the residual stream and norms (which miss {off:.2g} of it); measure "
            "total effects"
        )
    moves = f"what the MLPs of {model_label(model)} write at the read-out"
    tell_remainder(off, moves, whole.dtype, "", stacklevel=4)


@contextmanager
def _point(tokens: PromptedTokens) -> Iterator[HookPoint]:
    """A hook point of no model, through which these tokens run."""
    point = HookPoint()
    point.name = "the read-out position"
    with published([point], lambda: tokens):
        yield point


def _readout_alone(example: Tensor) -> PromptedTokens:
    """A batch in which every row is its read-out position alone, which belongs to the prompt."""
    one = torch.ones(len(example), 1, dtype=torch.long, device=example.device)
    yes, no = one.bool(), ~one.bool()
    return PromptedTokens(
        ids=one,
        attention_mask=one,
        is_prompt=yes,
        is_text=no,
        is_special=no,
        is_template=no,
        readout=torch.zeros_like(example),
        example=example,
    )
