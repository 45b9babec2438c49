"""Which words neurons write at the read-out, straight through the residual stream, beside random neurons' words.

With ``w`` a neuron's row of ``W_out`` and ``N_l`` the straight path from its layer's MLP to the vocabulary (every norm
on it, and a masked language model's own transform), at the scales of a few texts of the task::

    logits = mean over texts of  (w N_l) @ W_U          score of a word = (logit - mean over words) / std over words

The score is in standard deviations over the vocabulary: what one more unit of activation does to a word's logit, beside
what it does to other words'. It is the logit lens of a neuron (nostalgebraist, 2020; Geva et al., 2022) with the norms
that really stand there.

What it does not show: how much that is (``logit`` does, per unit of activation), and what later layers make of it,
which is often more. The best of a whole vocabulary is high by luck; the control is the highest score, up or down, of
random neurons of the same layer.
"""

from collections.abc import Callable, Sequence

import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformer_lens.hook_points import HookPoint

from tl_skillneurons.interventions.direct_effects import require_straight
from tl_skillneurons.models.hooks import Hook
from tl_skillneurons.models.norms import frozen_norms
from tl_skillneurons.models.records import model_label
from tl_skillneurons.models.sites import has_language_model_head, mixer_outputs, mlp_outputs
from tl_skillneurons.neurons.neuron_set import NeuronSet
from tl_skillneurons.prompts._forward import stopping_at
from tl_skillneurons.prompts.prompted_model import PromptedModel
from tl_skillneurons.stats.hypothesis_tests import rank_p_value
from tl_skillneurons.stats.ranks import median

N_WORDS, N_TEXTS = 8, 4
_CHUNK = 64  # directions of the last residual at a time


def output_words(
    prompted: PromptedModel, texts: Sequence[str], neurons: NeuronSet, *, n_random: int, seed: int
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The words that each neuron raises and lowers most, and how high random neurons of its layer reach.

    Raises:
        ValueError: For a model without a language-model head, one with something on its head, or one whose norms can't
            be told apart.
    """
    model = prompted.model
    if not has_language_model_head(model) or prompted.linear is not None:
        raise ValueError(f"{model_label(model)} has no language-model head, so its neurons write no words")
    others = _others(prompted, neurons, n_random, seed)
    own = {layer: (neurons.layer == layer).nonzero()[:, 0] for layer in others}
    rows = {layer: torch.cat([neurons.index[own[layer]], others[layer]]) for layer in others}
    pushed = _pushed(prompted, texts[:N_TEXTS], rows)
    n_words = min(model.W_U.shape[1], len(model.tokenizer))
    words: dict[int, list[dict[str, object]]] = {}
    beside: dict[int, dict[str, object]] = {}
    for layer, directions in pushed.items():
        logits = directions @ model.W_U[:, :n_words].to(directions)
        z, away = vocabulary_scores(logits), logits - logits.mean(1, keepdim=True)
        largest = z.abs().amax(1).double().cpu()
        n_own = len(own[layer])
        random = largest[n_own:]
        for row, number in enumerate(own[layer].tolist()):
            at = {"layer": layer, "index": int(neurons.index[number])}
            words[number] = [
                at
                | {"writes": writes, "word": model.tokenizer.decode([i]), "score": float(z[row, i])}
                | {"logit": float(away[row, i])}
                for writes, sign in (("raises", 1), ("lowers", -1))
                for i in (sign * z[row]).topk(min(N_WORDS, n_words)).indices.tolist()
            ]
            beside[number] = at | {
                "largest": float(largest[row]),
                "random_median": median(random),
                "random_high": float(random.quantile(0.95)),
                "n_random": len(random),
                "p": rank_p_value(float(largest[row]), random, "greater"),
            }
    order = range(len(neurons))
    return pd.DataFrame([row for k in order for row in words[k]]), pd.DataFrame([beside[k] for k in order])


def vocabulary_scores(logits: Float[Tensor, "direction word"]) -> Float[Tensor, "direction word"]:
    """Standard deviations above the mean of all words; 0 where a direction moves all alike."""
    centred = logits - logits.mean(1, keepdim=True)
    spread = centred.std(1, correction=0, keepdim=True)
    alike = spread <= 1e-6 * logits.abs().amax(1, keepdim=True)
    return torch.where(alike, 0, centred / torch.where(alike, 1, spread))


def _others(
    prompted: PromptedModel, neurons: NeuronSet, n: int, seed: int
) -> dict[int, Int[Tensor, " other"]]:
    """For each layer with neurons of the set, random ones that are not of it.

    Raises:
        ValueError: Where a layer has no other neuron.
    """
    generator = torch.Generator().manual_seed(seed)
    found = {}
    for layer, index in neurons.by_layer().items():
        d_mlp = prompted.model.blocks[layer].mlp.W_out.shape[0]
        free = torch.ones(d_mlp, dtype=torch.bool)
        free[index] = False
        rest = free.nonzero()[:, 0]
        if not len(rest):
            raise ValueError(
                f"layer {layer} has no neuron beside the profiled ones to compare their words with"
            )
        found[layer] = rest[torch.randperm(len(rest), generator=generator)[:n]]
    return found


def _pushed(
    prompted: PromptedModel, texts: Sequence[str], rows: dict[int, Int[Tensor, " row"]]
) -> dict[int, Float[Tensor, "row d_out"]]:
    """Rows of each layer's ``W_out``, as they arrive at the vocabulary: mean over texts, at the read-out.

    Raises:
        ValueError: When something is on the model's head, or what its MLPs write reaches the read-out in other ways
            than straight through norms.
    """
    model = prompted.model
    written = dict(enumerate(mlp_outputs(model)))
    leaves: dict[int, Tensor] = {}

    def begin(layer: int) -> Callable[..., Tensor]:
        def leaf(act: Tensor, hook: HookPoint) -> Tensor:
            leaves[layer] = act.detach().requires_grad_(True)
            return leaves[layer]

        return leaf

    def cut(act: Tensor, hook: HookPoint) -> Tensor:
        return act.detach()

    hooks: list[Hook] = [("embed.hook_out", cut), *((name, cut) for name in mixer_outputs(model))]
    hooks += [(name, begin(layer) if layer in rows else cut) for layer, name in written.items()]
    with prompted.attached() as virtual, torch.enable_grad():
        if not virtual.head_is_plain:
            raise ValueError(
                f"something stands on the head of {model_label(model)} (an adapter, a hook), so its matrix doesn't "
                "tell which words are written"
            )
        tokens = prompted.tokens(texts if prompted.layout.pads else texts[:1])
        require_straight(prompted, tokens, virtual)
        past = prompted.past(tokens) if prompted.runs_apart(virtual) else None
        here = tokens if past is None else tokens.last(prompted.layout.n_virtual_tokens)
        ends, _ = stopping_at(here.readout, head=prompted.head, runs_head=not prompted.causal)
        with frozen_norms(model):
            last = prompted.forward(tokens, virtual, [*hooks, *ends], past).mean(0)
    place = (torch.arange(len(here), device=here.readout.device), here.readout)
    weights = {layer: model.blocks[layer].mlp.W_out[index.to(last.device)] for layer, index in rows.items()}
    arrived: dict[int, list[Tensor]] = {layer: [] for layer in rows}
    for basis in torch.eye(len(last), dtype=last.dtype, device=last.device).split(_CHUNK):
        gradients = torch.autograd.grad(
            last, list(leaves.values()), basis, retain_graph=True, is_grads_batched=True
        )
        for layer, gradient in zip(leaves, gradients, strict=True):
            at_readout = gradient[:, place[0], place[1]].sum(1)  # last is a mean over the texts
            arrived[layer].append(weights[layer] @ at_readout.T)
    return {layer: torch.cat(parts, dim=1).detach() for layer, parts in arrived.items()}
