"""Which heads bring the label to chosen neurons, and from which words: decompositions averaged over a task.

For each example, what a head writes into a neuron's pre-activation (:mod:`~tl_skillneurons.attention.decomposition`)
is averaged over the prompt positions. A head *separates* the labels at a neuron by the difference of its class
means, label 1 minus label 0. The null permutes the labels among the examples, the same for all heads and
neurons; the family-wise p-value compares with the largest difference, in standard deviations, of all of them.

What it does not show: that the model needs the head (ablate it), nor where the head got it from beyond the
position it read: at later layers a position holds more than its own word. Control: the same for random neurons
of the same layers, ``neurons.random_like(seed)``.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import pandas as pd
import torch
from jaxtyping import Float, Int
from rich.text import Text
from torch import Tensor

from tl_skillneurons._checks import require_int
from tl_skillneurons._progress import progress_bar
from tl_skillneurons.attention.decomposition import decompose_batch
from tl_skillneurons.attention.patterns import token_names
from tl_skillneurons.models.batches import length_batches
from tl_skillneurons.neurons import SITE, NeuronSet
from tl_skillneurons.prompts.positions import PromptedTokens
from tl_skillneurons.prompts.prompted_model import PromptedModel
from tl_skillneurons.prompts.soft_prompt import SoftPrompt
from tl_skillneurons.stats.intervals import LabelDifference, bootstrap_mean, permutation_difference
from tl_skillneurons.tasks.task import Task, require_two_classes

_BATCH_TOKENS = 512  # a decomposition holds gradients for every neuron, so its batches are small
Head = tuple[int, int]
"""A head's layer and its number there."""


@dataclass(frozen=True, eq=False)
class HeadWriters:
    """What every head and MLP writes into chosen neurons, example by example, averaged over prompt positions.

    Attributes:
        neurons: In the order of the axis ``neuron``.
        heads, mlps, embed: Contributions to the pre-activation, in its own units.
        labels: Class of each example.
        role: Where the examples come from.
        settings: Model, task, projection, neuron site and frame of positions.
    """

    neurons: NeuronSet
    heads: Float[Tensor, "example neuron layer head"]
    mlps: Float[Tensor, "example neuron layer"]
    embed: Float[Tensor, "example neuron"]
    labels: Int[Tensor, " example"]
    role: str
    settings: dict[str, Any]

    @cached_property
    def separation(self) -> LabelDifference:
        """Each head's difference of class means at each neuron, ``[neuron, layer, head]``, with its null."""
        seed, n_draws = self.settings["seed"], self.settings["n_permutations"]
        return permutation_difference(self.heads.movedim(0, -1), self.labels, n_draws=n_draws, seed=seed)

    def top_heads(self, n: int = 10) -> list[Head]:
        """The heads that separate the labels most: by the absolute difference, averaged over the neurons."""
        strength = self.separation.difference.abs().mean(0)
        order = strength.flatten().argsort(descending=True, stable=True)[: require_int(n, "n")]
        n_heads = strength.shape[1]
        return [(int(i) // n_heads, int(i) % n_heads) for i in order]

    def to_dataframe(self, *, confidence: float = 0.95, seed: int = 0) -> pd.DataFrame:
        """One row per head, strongest first.

        Columns: ``layer``, ``head``; ``difference``, the absolute difference of class means averaged over the
        neurons; ``share``, of the sum over all heads; ``n_significant``, the neurons at which it is beyond the
        family-wise 5 % level; and of the neuron where it separates most ``neuron_layer``, ``neuron_index``,
        ``at_most`` with its bootstrap interval over examples, each class resampled, and its ``p_family``.
        """
        found = self.separation
        strength = found.difference.abs().mean(0)
        best = found.difference.abs().argmax(0)
        low, high = self._interval(confidence, seed)
        rows = []
        for layer, head in self.top_heads(strength.numel()):
            at = int(best[layer, head])
            rows.append(
                {
                    "layer": layer,
                    "head": head,
                    "difference": float(strength[layer, head]),
                    "share": float(strength[layer, head] / strength.sum()),
                    "n_significant": int((found.p_family[:, layer, head] <= 0.05).sum()),
                    "neuron_layer": int(self.neurons.layer[at]),
                    "neuron_index": int(self.neurons.index[at]),
                    "at_most": float(found.difference[at, layer, head]),
                    "low": float(low[at, layer, head]),
                    "high": float(high[at, layer, head]),
                    "p_family": float(found.p_family[at, layer, head]),
                }
            )
        return pd.DataFrame(rows)

    def _interval(self, confidence: float, seed: int) -> tuple[Tensor, Tensor]:
        """Of the difference: each class's mean has its bootstrap interval, and half-widths add in quadrature."""
        values = self.heads.movedim(0, -1)
        ends = [
            bootstrap_mean(values[..., self.labels == c], confidence=confidence, seed=seed + c)
            for c in (0, 1)
        ]
        means = [values[..., self.labels == c].double().mean(-1) for c in (0, 1)]
        down = ((means[1] - ends[1][0]).square() + (ends[0][1] - means[0]).square()).sqrt()
        up = ((ends[1][1] - means[1]).square() + (means[0] - ends[0][0]).square()).sqrt()
        difference = means[1] - means[0]
        return difference - down, difference + up


def head_writers(
    model: Any,
    prompt: SoftPrompt,
    task: Task,
    neurons: NeuronSet,
    *,
    projection: str = "pre",
    role: str = "report",
    n_permutations: int = 1000,
    seed: int = 0,
    batch_size: int | None = None,
    batch_tokens: int | None = None,
    max_length: int | None = None,
    progress: bool = True,
) -> HeadWriters:
    """Decompose ``neurons`` over all examples of ``role``.

    Keeps ``examples * neurons * layers * heads`` numbers.

    Args:
        projection: "pre", or "up" of a gated MLP (:func:`~tl_skillneurons.attention.decomposition.decompose`).
        batch_size, batch_tokens: Most texts and most tokens of a batch; without either 512 tokens.

    Raises:
        ValueError: For a task of more than two classes, or what a decomposition refuses.
    """
    require_two_classes(task)
    require_int(n_permutations, "n_permutations")
    prompted = PromptedModel(model, prompt, max_length=max_length)
    split = task.split(role)
    texts, labels = list(split["text"]), torch.tensor(split["label"])
    rows: dict[str, list[Tensor]] = {"heads": [], "mlps": [], "embed": []}
    order: list[int] = []
    with progress_bar(f"who writes, on {role}", len(texts), show=progress) as advance:
        for batch, parts in _decomposed(
            prompted, texts, neurons, projection, False, batch_size, batch_tokens
        ):
            order += batch
            for name, kept in rows.items():
                kept.append(getattr(parts, name).mean(1).cpu())
            advance(len(batch))
    back = torch.tensor(order).argsort()
    joined = {name: torch.cat(kept)[back] for name, kept in rows.items()}
    settings = {
        "model": model.cfg.model_name,
        "task": task.name,
        "projection": projection,
        "site": SITE,
        "positions": "mean over prompt positions, with virtual tokens",
        "n_permutations": n_permutations,
        "seed": seed,
    }
    return HeadWriters(neurons, **joined, labels=labels, role=role, settings=settings)


def source_words(
    model: Any,
    prompt: SoftPrompt,
    task: Task,
    neurons: NeuronSet,
    heads: Sequence[Head],
    *,
    projection: str = "pre",
    role: str = "report",
    batch_size: int | None = None,
    batch_tokens: int | None = None,
    max_length: int | None = None,
    progress: bool = True,
) -> pd.DataFrame:
    """Which source tokens the heads move something from into the neurons, over all examples of ``role``.

    Returns:
        One row per token as the tokenizer has it (virtual tokens are ``<v0>``, ``<v1>``, ...), the strongest
        first: ``token``, ``contribution`` (summed over the heads, averaged over neurons, prompt positions and
        the token's occurrences, signed), ``n`` occurrences, ``share_label_1`` of the occurrences, and
        ``share`` of the absolute contributions of all occurrences.
    """
    prompted = PromptedModel(model, prompt, max_length=max_length)
    split = task.split(role)
    texts, labels = list(split["text"]), list(split["label"])
    tally: dict[str, list[float]] = {}
    with progress_bar(f"from which words, on {role}", len(texts), show=progress) as advance:
        for batch, parts in _decomposed(prompted, texts, neurons, projection, True, batch_size, batch_tokens):
            moved = _moved(parts.sources, heads)
            for row, example in enumerate(batch):
                for token, value in _named(model, parts.tokens, row, moved[row]):
                    entry = tally.setdefault(token, [0.0, 0.0, 0, 0])
                    entry[0] += value
                    entry[1] += abs(value)
                    entry[2] += 1
                    entry[3] += labels[example]
            advance(len(batch))
    everything = sum(entry[1] for entry in tally.values())
    frame = pd.DataFrame(
        [
            {
                "token": token,
                "contribution": total / n,
                "n": n,
                "share_label_1": ones / n,
                "share": absolute / everything if everything else 0.0,
            }
            for token, (total, absolute, n, ones) in tally.items()
        ]
    )
    order = frame.contribution.abs().sort_values(ascending=False, kind="stable").index
    return frame.loc[order].reset_index(drop=True)


def coloured_sources(
    model: Any,
    prompt: SoftPrompt,
    text: str,
    neurons: NeuronSet,
    heads: Sequence[Head],
    *,
    projection: str = "pre",
) -> Text:
    """One text, each token shaded by what the heads move from it into the neurons: red up, blue down."""
    prompted = PromptedModel(model, prompt)
    [(_, parts)] = _decomposed(prompted, [text], neurons, projection, True, 1, None)
    named = _named(model, parts.tokens, 0, _moved(parts.sources, heads)[0])
    most = max((abs(value) for _, value in named), default=0.0) or 1.0
    shown = Text()
    for token, value in named:
        fade = 255 - round(200 * abs(value) / most)
        colour = f"rgb(255,{fade},{fade})" if value > 0 else f"rgb({fade},{fade},255)"
        shown.append(token.replace("Ġ", " ").replace("▁", " "), style=f"black on {colour}")
        shown.append(" ")
    return shown


def _moved(sources: Tensor, heads: Sequence[Head]) -> Float[Tensor, "batch source"]:
    """Summed over the heads, averaged over prompt positions and neurons."""
    n_layers, n_heads = sources.shape[3:5]
    outside = [h for h in heads if not (0 <= h[0] < n_layers and 0 <= h[1] < n_heads)]
    if outside or not len(heads):
        raise ValueError(
            f"heads must be pairs (layer, head) with layer in [0, {n_layers}) and head in [0, {n_heads}), "
            f"got {outside[0] if outside else 'none'}"
        )
    layer, head = torch.tensor([list(h) for h in heads]).T
    return sources[:, :, :, layer, head].sum(3).mean((1, 2)).double().cpu()


def _named(model: Any, tokens: PromptedTokens, row: int, moved: Tensor) -> list[tuple[str, float]]:
    """Each real token of a row by name, with what was moved from it."""
    real = tokens.attention_mask[row].bool().nonzero().flatten().tolist()
    ids = tokens.ids[row].tolist()
    names = token_names(model, [ids[k] for k in real])
    return [(name, float(moved[k])) for name, k in zip(names, real, strict=True)]


def _decomposed(
    prompted: PromptedModel,
    texts: list[str],
    neurons: NeuronSet,
    projection: str,
    by_source: bool,
    batch_size: int | None,
    batch_tokens: int | None,
) -> Any:
    if batch_size is None and batch_tokens is None:
        batch_tokens = _BATCH_TOKENS
    ids = prompted.encode(texts)
    with prompted.attached() as virtual:
        for batch in length_batches(prompted.lengths(ids), batch_tokens, batch_size):
            tokens = prompted.assemble([ids[i] for i in batch], batch)
            yield (
                batch,
                decompose_batch(
                    prompted, tokens, virtual, neurons, projection=projection, by_source=by_source
                ),
            )
