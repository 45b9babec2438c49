"""From which words heads move something into chosen neurons: decompositions by source position.

With a head's pattern ``A``, its values ``v`` and the gradients ``g`` of
:mod:`~tl_skillneurons.attention.decomposition`, a token ``t`` that stands at sources ``s`` of texts ``x`` contributes::

    c_t = mean over (x, s) of  sum over heads h of  mean over positions p and neurons n of  A_h[p, s] v_h[s] . g_hn[p]

What it does not show: where the position got it from; at later layers a position holds more than its own word. The
control is the same for random heads (:func:`~tl_skillneurons.attention.random_heads_like`), or for random neurons of
the same layers.
"""

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from jaxtyping import Float
from rich.text import Text
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from tl_skillneurons._files import load_tensors, save_tensors, sound
from tl_skillneurons._progress import progress_bar
from tl_skillneurons._results import html_of, one_line
from tl_skillneurons.attention._heads import Head, require_heads
from tl_skillneurons.attention._over_task import POSITIONS, decomposed, settings_of, small_batches
from tl_skillneurons.attention.chosen import require_heads_apart
from tl_skillneurons.attention.decomposition import PreActivationParts
from tl_skillneurons.attention.patterns import token_names
from tl_skillneurons.attention.projections import projection_of
from tl_skillneurons.neurons.choice import require_apart
from tl_skillneurons.neurons.neuron_set import SITE, Neurons, as_neurons
from tl_skillneurons.prompts.positions import PromptedTokens
from tl_skillneurons.prompts.prompted_model import PromptedModel
from tl_skillneurons.prompts.run import RunOptions, require_tuned_for
from tl_skillneurons.prompts.soft_prompt import SoftPrompt
from tl_skillneurons.tasks.task import Task


@dataclass(frozen=True, eq=False)
class SourceWords:
    """The tokens that heads move something from into neurons, over a task.

    Attributes:
        words: One row per token, see :meth:`to_dataframe`.
        heads: The heads that move it.
        role: Where the examples come from.
        settings: Model, task, prompt, ``max_length``, projection, neurons.

    Example:
        >>> words = skn.attention.source_words(model, prompt, task, skill, writers.top_heads(3))
        >>> words.to_dataframe().head(10)
    """

    words: pd.DataFrame
    heads: tuple[Head, ...]
    role: str
    settings: dict[str, Any]

    def to_dataframe(self) -> pd.DataFrame:
        """One row per token as the tokenizer has it (virtual tokens are ``<v0>``, ``<v1>``, ...), strongest first.

        Columns: ``token``, ``contribution`` (summed over the heads, averaged over neurons, prompt positions and
        the token's occurrences, signed), ``n`` occurrences, ``share_label_1``, the share of them in texts of label 1
        (of more than two classes a column for each, ``share_label_0`` and so on), and ``share`` of the absolute
        contributions of all occurrences; ``heads_chosen`` and ``neurons_chosen`` "on other examples", "on
        these examples" (by insistence) or "unknown".
        """
        chosen = {name: self.settings[name] for name in ("heads_chosen", "neurons_chosen")}
        return self.words.assign(**chosen)

    def __repr__(self) -> str:
        strongest = list(self.words.token[:5])
        return one_line(self, n_tokens=len(self.words), strongest=strongest, heads=self.heads, role=self.role)

    def _repr_html_(self) -> str:
        return html_of(self)

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the result to one safetensors file, whole or not at all."""
        numbers = [str(name) for name in self.words.columns if name != "token"]
        columns = {name: torch.tensor(self.words[name].to_numpy()) for name in numbers}
        header = {
            "numbers": numbers,
            "tokens": list(self.words.token),
            "heads": [list(head) for head in self.heads],
            "role": self.role,
            "settings": self.settings,
        }
        return save_tensors(path, "SourceWords", columns, header)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "SourceWords":
        """The result that :meth:`save` wrote.

        Raises:
            FileNotFoundError: When there is no such file.
            ValueError: When the file is corrupt or holds something else.
        """
        tensors, header = load_tensors(path, "SourceWords")
        with sound(path, "SourceWords"):
            columns = {name: tensors[name].numpy() for name in header["numbers"]}
            words = pd.DataFrame({"token": header["tokens"], **columns})
            heads = tuple(require_heads(header["heads"]))
            return cls(words, heads, header["role"], header["settings"])


class _Tally:
    """What heads moved from one token's occurrences, and the labels of their texts."""

    def __init__(self) -> None:
        self.total = self.absolute = 0.0
        self.labels: Counter[int] = Counter()

    @property
    def n(self) -> int:
        return self.labels.total()

    def add(self, value: float, label: int) -> None:
        self.total += value
        self.absolute += abs(value)
        self.labels[label] += 1


def source_words(
    model: TransformerBridge,
    prompt: SoftPrompt,
    task: Task,
    neurons: Neurons,
    heads: Sequence[Head],
    *,
    projection: str | None = None,
    role: str = "report",
    max_length: int | None = None,
    on_chosen_examples: bool = False,
    run: RunOptions = RunOptions(),
) -> SourceWords:
    """Which source tokens the heads move something from into the neurons, over all examples of ``role``.

    Args:
        projection: "pre", or of a gated MLP "up" or "post"; by default "post" of gated MLPs, "pre" of others
            (:func:`~tl_skillneurons.attention.decompose`).
        max_length: Longest sequence in tokens; by default what the prompt was tuned with.
        on_chosen_examples: Read heads and neurons on the examples that chose them all the same; every row says so.
        run: Without a limit of its own, batches hold 512 tokens.

    Raises:
        ValueError: For heads outside the model, heads or neurons that these examples chose, or what a decomposition
            refuses.

    Example:
        >>> words = skn.attention.source_words(model, prompt, task, skill, [(5, 1), (7, 3)])
    """
    neurons = as_neurons(neurons)
    pairs = _require_heads(heads, model)
    projection = projection_of(model, neurons, projection)
    require_tuned_for(prompt, task)
    prompted = PromptedModel(model, prompt, max_length=max_length, run=small_batches(run))
    split = task.split(role)
    texts, labels = list(split["text"]), list(split["label"])
    insist, by = on_chosen_examples, "on_chosen_examples=True"
    heads_chosen = require_heads_apart(heads, texts, insist=insist, by=by)
    neurons_chosen = require_apart(neurons.choice, texts, insist=insist, by=by)
    tally: dict[str, _Tally] = {}
    with progress_bar(f"from which words, on {role}", len(texts), show=run.progress) as advance:
        for batch, parts in decomposed(prompted, texts, neurons, projection, by_source=True):
            moved = _moved(parts, pairs)
            for row, example in enumerate(batch):
                for token, value in _named(model, parts.tokens, row, moved[row]):
                    tally.setdefault(token, _Tally()).add(value, labels[example])
            advance(len(batch))
    everything = sum(one.absolute for one in tally.values())
    shown = [1] if task.n_classes == 2 else range(task.n_classes)
    frame = pd.DataFrame(
        [
            {
                "token": token,
                "contribution": one.total / one.n,
                "n": one.n,
                **{f"share_label_{label}": one.labels[label] / one.n for label in shown},
                "share": one.absolute / everything if everything else 0.0,
            }
            for token, one in tally.items()
        ]
    )
    order = frame.contribution.abs().sort_values(ascending=False, kind="stable").index
    settings = settings_of(
        prompted,
        task,
        site=SITE,
        positions=POSITIONS,
        projection=projection,
        neurons=[list(pair) for pair in neurons],
        heads_chosen=heads_chosen,
        neurons_chosen=neurons_chosen,
        n_cut=prompted.n_truncated(texts),
    )
    return SourceWords(frame.loc[order].reset_index(drop=True), tuple(pairs), role, settings)


def coloured_sources(
    model: TransformerBridge,
    prompt: SoftPrompt,
    text: str,
    neurons: Neurons,
    heads: Sequence[Head],
    *,
    projection: str | None = None,
    max_length: int | None = None,
) -> Text:
    """One text, each token shaded by what the heads move from it into the neurons: red up, blue down.

    A picture of one text, no measurement: whether it chose the heads isn't asked.

    Args:
        projection: "pre", or of a gated MLP "up" or "post"; by default "post" of gated MLPs, "pre" of others
            (:func:`~tl_skillneurons.attention.decompose`).
        max_length: Longest sequence in tokens; by default what the prompt was tuned with.

    Raises:
        ValueError: For heads outside the model, or what a decomposition refuses.

    Example:
        >>> rich.print(skn.attention.coloured_sources(model, prompt, "a fine film", skill, heads))
    """
    neurons = as_neurons(neurons)
    pairs = _require_heads(heads, model)
    chosen = projection_of(model, neurons, projection)
    prompted = PromptedModel(model, prompt, max_length=max_length, run=RunOptions(batch_size=1))
    [(_, parts)] = decomposed(prompted, [text], neurons, chosen, by_source=True)
    named = _named(model, parts.tokens, 0, _moved(parts, pairs)[0])
    most = max((abs(value) for _, value in named), default=0.0) or 1.0
    shown = Text()
    for token, value in named:
        fade = 255 - round(200 * abs(value) / most)
        colour = f"rgb(255,{fade},{fade})" if value > 0 else f"rgb({fade},{fade},255)"
        shown.append(token.replace("Ġ", " ").replace("▁", " "), style=f"black on {colour}")
        shown.append(" ")
    return shown


def _require_heads(heads: Sequence[Head], model: TransformerBridge) -> list[Head]:
    return require_heads(heads, len(model.blocks), int(model.cfg.n_heads))


def _moved(parts: PreActivationParts, heads: Sequence[Head]) -> Float[Tensor, "batch source"]:
    """Summed over the heads, averaged over prompt positions and neurons."""
    assert parts.sources is not None  # for type checkers: they were asked for
    layer, head = torch.tensor([list(h) for h in heads]).T
    return parts.sources[:, :, :, layer, head].sum(3).mean((1, 2)).double().cpu()


def _named(
    model: TransformerBridge, tokens: PromptedTokens, row: int, moved: Float[Tensor, " source"]
) -> list[tuple[str, float]]:
    """Each real token of a row by name, with what was moved from it."""
    real = tokens.attention_mask[row].bool().nonzero().flatten().tolist()
    ids = tokens.ids[row].tolist()
    names = token_names(model, [ids[k] for k in real])
    return [(name, float(moved[k])) for name, k in zip(names, real, strict=True)]
