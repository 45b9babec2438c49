"""What the prompt positions attend to, and who attends to them, per layer and head, over a task.

With ``A`` a head's pattern (``attn.hook_pattern``, after the softmax: the shares of one query sum to 1), ``p`` a
prompt position and ``K`` a kind of token::

    given_p[K]   = mean over texts of  sum over keys k of kind K of  A[p, k]
    received_p   = mean over texts of  mean over the text's own tokens q of  A[q, p]

It does not show what a head moved (:mod:`~tl_skillneurons.attention.writers`) nor whether that matters
(:mod:`~tl_skillneurons.attention.effects`): a head that has nothing to move often looks at the first token. The
control is the other class: attention that does not differ between labels tells nothing of the label. Attention is no
explanation by itself (Jain and Wallace, 2019).
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from einops import einsum, rearrange
from jaxtyping import Float
from torch import Tensor
from transformer_lens.hook_points import HookPoint
from transformer_lens.model_bridge import TransformerBridge

from tl_skillneurons._files import load_tensors, save_tensors, sound
from tl_skillneurons._progress import progress_bar
from tl_skillneurons._results import html_of, one_line
from tl_skillneurons.attention._over_task import settings_of
from tl_skillneurons.models.batches import run_batches
from tl_skillneurons.models.hooks import Hook
from tl_skillneurons.models.sites import asking_for_patterns, head_hooks
from tl_skillneurons.prompts.attached import VirtualTokens
from tl_skillneurons.prompts.positions import PromptedTokens
from tl_skillneurons.prompts.prompted_model import PromptedModel
from tl_skillneurons.prompts.run import RunOptions, require_tuned_for
from tl_skillneurons.prompts.soft_prompt import SoftPrompt
from tl_skillneurons.tasks.task import Task

KEYS = ("text", "special", "prompt")
"""What is attended to: the text's own tokens, what the tokenizer adds (BOS, [CLS], [SEP], a chat template), the prompt
positions."""

KIND = "PromptAttention"


@dataclass(frozen=True, eq=False)
class PromptAttention:
    """Mean attention from and to the prompt positions, by class.

    Attributes:
        given: From each prompt position (the mask first, where there is one) to all text, special and prompt
            tokens together, in the order of ``KEYS``; sums to 1.
        received: By each prompt position from an average token of the text; 0 after the text in a causal model.
        role: Where the examples come from; ``n_examples`` of each class.
        settings: Model, task, prompt, ``max_length``.

    Example:
        >>> seen = skn.attention.attention_over_task(model, prompt, task)
        >>> seen.to_dataframe().groupby(["layer", "head"]).to_text.mean().nlargest(5)
    """

    given: Float[Tensor, "class layer head prompt_pos key"]
    received: Float[Tensor, "class layer head prompt_pos"]
    role: str
    n_examples: tuple[int, ...]
    settings: dict[str, Any]

    def to_dataframe(self) -> pd.DataFrame:
        """One row per class, layer, head and prompt position: ``to_text``, ``to_special``, ``to_prompt``,
        ``from_text``."""
        names = ["label", "layer", "head", "prompt_pos"]
        grid = torch.cartesian_prod(*(torch.arange(n) for n in self.received.shape))
        frame = pd.DataFrame(grid.numpy(), columns=names)
        for number, key in enumerate(KEYS):
            frame[f"to_{key}"] = self.given[..., number].flatten().numpy()
        return frame.assign(from_text=self.received.flatten().numpy())

    def __repr__(self) -> str:
        _, n_layers, n_heads, n_positions = self.received.shape
        shape = {"n_layers": n_layers, "n_heads": n_heads, "n_prompt_positions": n_positions}
        return one_line(self, **shape, role=self.role, n_examples=self.n_examples)

    def _repr_html_(self) -> str:
        return html_of(self)

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the result to one safetensors file, whole or not at all."""
        header = {"role": self.role, "n_examples": list(self.n_examples), "settings": self.settings}
        return save_tensors(path, KIND, {"given": self.given, "received": self.received}, header)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "PromptAttention":
        """The result that :meth:`save` wrote.

        Raises:
            FileNotFoundError: When there is no such file.
            ValueError: When the file is corrupt or holds something else.
        """
        tensors, header = load_tensors(path, KIND)
        with sound(path, KIND):
            counts = tuple(header["n_examples"])
            return cls(tensors["given"], tensors["received"], header["role"], counts, header["settings"])


def attention_over_task(
    model: TransformerBridge,
    prompt: SoftPrompt,
    task: Task,
    *,
    role: str = "report",
    max_length: int | None = None,
    run: RunOptions = RunOptions(),
) -> PromptAttention:
    """Average the prompt's attention over all examples of ``role``.

    Args:
        max_length: Longest sequence in tokens; by default what the prompt was tuned with.

    Raises:
        ValueError: When the patterns don't show (attention other than eager).

    Example:
        >>> seen = skn.attention.attention_over_task(model, prompt, task)
    """
    require_tuned_for(prompt, task)
    prompted = PromptedModel(model, prompt, max_length=max_length, run=run)
    split = task.split(role)
    texts, labels = list(split["text"]), torch.tensor(split["label"])
    ids = prompted.encode(texts)
    sums: dict[str, Tensor] = {}
    with (
        progress_bar(f"attention, on {role}", len(texts), show=run.progress) as advance,
        prompted.attached() as virtual,
        torch.no_grad(),
    ):

        def add(batch: list[int]) -> None:
            tokens = prompted.assemble([ids[i] for i in batch], batch)
            one_hot = torch.nn.functional.one_hot(labels[batch], task.n_classes).double()
            patterns = _patterns(prompted, tokens, virtual)
            for name, values in zip(("given", "received"), _shares(patterns, tokens), strict=True):
                total = einsum(one_hot, values.double().cpu(), "batch label, batch ... -> label ...")
                sums[name] = sums[name] + total if name in sums else total
            advance(len(batch))

        run_batches(prompted.batches(ids), add)
    counts = torch.bincount(labels, minlength=task.n_classes)
    means = {
        name: rearrange(rearrange(total, "label ... -> ... label") / counts, "... label -> label ...")
        for name, total in sums.items()
    }
    settings = settings_of(prompted, task, n_cut=prompted.n_truncated(texts))
    return PromptAttention(**means, role=role, n_examples=tuple(counts.tolist()), settings=settings)


def example_pattern(
    model: TransformerBridge, prompt: SoftPrompt, text: str, *, max_length: int | None = None
) -> tuple[list[str], Float[Tensor, "layer head query_pos key_pos"]]:
    """One text's tokens (virtual ones as ``<v0>``, ...) and patterns, the prompt in place.

    Args:
        max_length: Longest sequence in tokens; by default what the prompt was tuned with.

    Raises:
        ValueError: When the patterns don't show (attention other than eager).

    Example:
        >>> tokens, pattern = skn.attention.example_pattern(model, prompt, "a fine film")
        >>> circuitsvis.attention.attention_patterns(tokens=tokens, attention=pattern[0])  # layer 0
    """
    prompted = PromptedModel(model, prompt, max_length=max_length)
    with prompted.attached() as virtual, torch.no_grad():
        tokens = prompted.tokens([text])
        pattern = torch.stack(_patterns(prompted, tokens, virtual))[:, 0]
    return token_names(model, tokens.ids[0].tolist()), pattern


def token_names(model: TransformerBridge, ids: Sequence[int]) -> list[str]:
    """The tokenizer's name of each token, ``<v0>``, ``<v1>``, ... for virtual ones."""
    base = model.W_E.shape[0]
    known = iter(model.tokenizer.convert_ids_to_tokens([i for i in ids if i < base]))
    return [f"<v{i - base}>" if i >= base else next(known) for i in ids]


def _patterns(
    prompted: PromptedModel, tokens: PromptedTokens, virtual: VirtualTokens
) -> list[Float[Tensor, "batch head query_pos key_pos"]]:
    kept: list[Tensor] = []

    def keep(act: Tensor, hook: HookPoint) -> None:
        kept.append(act.detach())

    head_hooks(prompted.model)  # refuses layers without attention
    names = [f"blocks.{layer}.attn.hook_pattern" for layer in range(len(prompted.model.blocks))]
    hooks: list[Hook] = [(name, keep) for name in names]
    prompted.forward(tokens, virtual, hooks, **asking_for_patterns(prompted.model))
    if len(kept) != len(names):
        raise ValueError(
            f"attn.hook_pattern fired in {len(kept)} of {len(names)} layers: attention patterns show only with eager "
            "attention; call model.original_model.set_attn_implementation('eager')"
        )
    return kept


def _shares(
    patterns: list[Tensor], tokens: PromptedTokens
) -> tuple[Float[Tensor, "batch layer head prompt_pos key"], Float[Tensor, "batch layer head prompt_pos"]]:
    columns = tokens.prompt_columns()
    rows = torch.arange(len(tokens), device=columns.device)[:, None]
    own = tokens.is_text & ~tokens.is_special
    beside = (
        tokens.is_special | tokens.is_template
    )  # what the tokenizer adds, by itself or by its chat template
    beside = beside if tokens.is_generated is None else beside | tokens.is_generated
    kinds = torch.stack([own, beside, tokens.is_prompt], dim=-1).double()
    given, received = [], []
    for pattern in patterns:
        wide = pattern.double()
        asked = rearrange(wide[rows, :, columns], "batch prompt_pos head key -> batch head prompt_pos key")
        given.append(
            einsum(asked, kinds, "batch head prompt_pos key, batch key kind -> batch head prompt_pos kind")
        )
        looked = einsum(wide, own.double(), "batch head query key, batch query -> batch head key")
        looked = rearrange(looked / own.sum(1)[:, None, None], "batch head key -> batch key head")
        received.append(rearrange(looked[rows, columns], "batch prompt_pos head -> batch head prompt_pos"))
    return torch.stack(given, dim=1), torch.stack(received, dim=1)
