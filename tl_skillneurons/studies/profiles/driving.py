"""Which texts drive neurons highest and lowest at the prompt, and from which of their tokens attention carries it.

With ``x`` over the examples of a role and ``p*`` the position that ``select`` chose for a neuron, its highest texts are
those of largest ``a(x, p*)``. Of each, the decomposition of :mod:`~tl_skillneurons.attention.decomposition` is summed
over layers and heads for every source position ``s``::

    moved_s = sum over layers l, heads h of pattern_lh[s] * (v_l[s] . g_lh)

What it does not show: see :mod:`~tl_skillneurons.studies.profiles.one_neuron`. Extremes are few, and among thousands
of neurons many have texts that look like a pattern; the rule on ``report``, and the same for random neurons, are the
control.
"""

from collections.abc import Callable, Sequence
from typing import Any

import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformer_lens.model_bridge.exceptions import StopAtLayerException

from tl_skillneurons._progress import progress_bar
from tl_skillneurons.attention._over_task import small_batches
from tl_skillneurons.attention.decomposition import PreActivationParts, decompose_batch
from tl_skillneurons.attention.patterns import token_names
from tl_skillneurons.attention.projections import projection_of
from tl_skillneurons.models.batches import run_batches
from tl_skillneurons.models.sites import neuron_hooks
from tl_skillneurons.models.token_spans import token_spans
from tl_skillneurons.neurons.neuron_set import NeuronSet
from tl_skillneurons.prompts.attached import VirtualTokens
from tl_skillneurons.prompts.positions import ActsAt, PromptedTokens, current_tokens
from tl_skillneurons.prompts.prompted_model import PromptedModel

SIDES = ("highest", "lowest")
MEASURES = {
    "pre": "the pre-activation",
    "post": "the activation, half of it shared out by what makes the gate and half by what the gate is multiplied with",
}
"""What words are said to have moved, by the projection that is taken apart."""
_AT = ("layer", "index", "side", "example")


def answers_and_activations(
    prompted: PromptedModel,
    texts: Sequence[str],
    neurons: NeuronSet,
    position: Int[Tensor, " neuron"],
) -> tuple[Float[Tensor, "example n_classes"], Float[Tensor, "example neuron"]]:
    """Class logits and each neuron's activation at its own position of the prompt, of one run over the texts."""
    kept = torch.empty(len(texts), len(neurons), dtype=prompted.model.W_E.dtype)
    names = neuron_hooks(prompted.model)

    def reading(columns: Int[Tensor, " own"], index: Int[Tensor, " own"]) -> ActsAt:
        def read(act: Tensor, hook: Any) -> None:
            tokens = current_tokens(hook)
            assert tokens is not None  # for type checkers: a prompted model tells
            at = tokens.prompt_columns()[:, position[columns].to(tokens.ids.device)].to(act.device)
            rows = torch.arange(len(act), device=act.device)[:, None]
            kept[tokens.example.cpu()[:, None], columns] = act[rows, at, index.to(act.device)].cpu()

        return ActsAt("prompt", read)

    hooks = []
    for layer in neurons.by_layer():
        columns = (neurons.layer == layer).nonzero()[:, 0]
        hooks.append((names[layer], reading(columns, neurons.index[columns])))
    with torch.no_grad():
        return prompted.class_logits(texts, hooks).cpu(), kept


def extreme_examples(
    activations: Float[Tensor, "example neuron"], n_texts: int
) -> dict[str, Int[Tensor, "text neuron"]]:
    """The examples of highest and of lowest activation, the most extreme first, the first example among equals.

    At most half of the examples are called high.
    """
    n = max(1, min(n_texts, len(activations) // 2))
    return {side: activations.argsort(dim=0, descending=side == "highest", stable=True)[:n] for side in SIDES}


def text_table(
    neurons: NeuronSet,
    extremes: dict[str, Int[Tensor, "text neuron"]],
    texts: Sequence[str],
    labels: Int[Tensor, " example"],
    answers: Int[Tensor, " example"] | None,
    activations: Float[Tensor, "example neuron"],
) -> pd.DataFrame:
    """A row per neuron and text that drives it; see ``NeuronProfiles.texts``."""
    return pd.DataFrame(
        [
            {
                "layer": layer,
                "index": index,
                "side": side,
                "example": example,
                "text": texts[example],
                "label": int(labels[example]),
                "answer": -1 if answers is None else int(answers[example]),
                "activation": float(activations[example, number]),
            }
            for number, (layer, index) in enumerate(neurons)
            for side in SIDES
            for example in extremes[side][:, number].tolist()
        ]
    )


def taken_apart(
    prompted: PromptedModel,
    texts: Sequence[str],
    neurons: NeuronSet,
    position: Int[Tensor, " neuron"],
    driving: pd.DataFrame,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The texts with what each activation is made of, and their tokens with what each moved and with what the neuron
    does there.

    Raises:
        ValueError: For a model whose attention or norms don't show what they write.
    """
    number = {pair: k for k, pair in enumerate(neurons)}
    wanted: dict[int, list[dict[str, Any]]] = {}
    for row in driving[list(_AT)].to_dict("records"):
        wanted.setdefault(int(row["example"]), []).append({str(k): v for k, v in row.items()})
    examples = sorted(wanted)
    ids = prompted.encode([texts[example] for example in examples])
    projection = projection_of(prompted.model, neurons)
    sums: list[dict[str, Any]] = []
    words: list[dict[str, Any]] = []
    run = small_batches(prompted.run)
    with (
        progress_bar("from which words", len(examples), show=run.progress) as advance,
        prompted.attached() as virtual,
    ):

        def take_apart(batch: list[int]) -> None:
            tokens = prompted.assemble([ids[i] for i in batch], batch)
            driven = sorted(
                {number[row["layer"], row["index"]] for i in batch for row in wanted[examples[i]]}
            )
            own = NeuronSet(neurons.layer[driven], neurons.index[driven])
            parts = decompose_batch(prompted, tokens, virtual, own, projection=projection)
            acts = _everywhere(prompted, tokens, virtual, own)
            for place, i in enumerate(batch):
                named = _named(prompted, tokens, place, texts[examples[i]])
                for row in wanted[examples[i]]:
                    k = number[row["layer"], row["index"]]
                    at = (place, int(position[k]), driven.index(k))
                    total, moved = _moved(parts, at, named)
                    sums.append(row | total)
                    words.extend(
                        row
                        | token
                        | {"moved": value, "activation": float(acts[place, token["column"], driven.index(k)])}
                        for token, value in zip(named, moved, strict=True)
                    )
            advance(len(batch))

        run_batches(prompted.layout.batches(ids, run), take_apart)
    whole = driving.merge(pd.DataFrame(sums), on=list(_AT), how="left")
    return whole, pd.DataFrame(words).drop(columns="column")


def _everywhere(
    prompted: PromptedModel, tokens: PromptedTokens, virtual: VirtualTokens, neurons: NeuronSet
) -> Float[Tensor, "batch pos neuron"]:
    """What the neurons do at every token of the batch, the text's own too."""
    names, by_layer = neuron_hooks(prompted.model), neurons.by_layer()
    found = torch.empty(*tokens.ids.shape, len(neurons), dtype=torch.float64)

    def reading(layer: int) -> Callable[..., None]:
        columns = (neurons.layer == layer).nonzero()[:, 0]

        def read(act: Tensor, hook: Any) -> None:
            found[..., columns] = act[..., neurons.index[columns].to(act.device)].cpu().double()
            if layer == max(by_layer):
                raise StopAtLayerException(act)

        return read

    with torch.no_grad():
        prompted.forward(tokens, virtual, [(names[layer], reading(layer)) for layer in sorted(by_layer)])
    return found


def _named(prompted: PromptedModel, tokens: PromptedTokens, row: int, text: str) -> list[dict[str, Any]]:
    """The tokens of a row that are no padding, each with its name, kind, column, and span in the text."""
    is_text, is_prompt = (one[row].cpu() for one in (tokens.is_text, tokens.is_prompt))
    beside = (tokens.is_special | tokens.is_template)[row].cpu()  # what the tokenizer adds
    beside = beside if tokens.is_generated is None else beside | tokens.is_generated[row].cpu()
    own = is_text.nonzero()[:, 0].tolist()
    spans = dict(
        zip(
            own, token_spans(prompted.model.tokenizer, text, tokens.ids[row].cpu()[own].tolist()), strict=True
        )
    )
    columns = (is_text | is_prompt | beside).nonzero()[:, 0].tolist()
    names = token_names(prompted.model, tokens.ids[row].cpu()[columns].tolist())
    found = []
    for column, name in zip(columns, names, strict=True):
        kind = "prompt" if is_prompt[column] else "special" if beside[column] else "text"
        start, end = spans.get(column) or (-1, -1)
        found.append({"token": name, "kind": kind, "start": start, "end": end, "column": column})
    return found


def _moved(
    parts: PreActivationParts, at: tuple[int, int, int], named: list[dict[str, Any]]
) -> tuple[dict[str, float], list[float]]:
    """What the activation at (text, position, neuron) is the sum of, and what each token moved."""
    assert parts.sources is not None  # for type checkers: they were asked for
    by_source = parts.sources[at].double().sum((0, 1)).cpu()
    moved = [float(by_source[token["column"]]) for token in named]
    by_kind = dict.fromkeys(("text", "special", "prompt"), 0.0)
    for token, value in zip(named, moved, strict=True):
        by_kind[token["kind"]] += value
    return {
        "from_words": by_kind["text"],
        "from_special": by_kind["special"],
        "from_prompt": by_kind["prompt"],
        "from_embedding": float(parts.embed[at]),
        "from_mlps": float(parts.mlps[at].double().sum()),
        "from_biases": float(parts.bias[at]),
        "total": float(parts.total[at]),
    }, moved
