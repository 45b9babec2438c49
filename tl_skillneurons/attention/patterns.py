"""What the prompt positions attend to, and who attends to them, per layer and head, over a task.

Read off ``attn.hook_pattern`` (after the softmax), so each query's shares sum to 1. Attention says where a head
looked, not what it moved (:mod:`~tl_skillneurons.attention.head_writers`) nor whether that matters
(:mod:`~tl_skillneurons.attention.heads`): a head that has nothing to move often looks at the first token.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from tl_skillneurons._progress import progress_bar
from tl_skillneurons.models.batches import run_batches
from tl_skillneurons.prompts.positions import PromptedTokens
from tl_skillneurons.prompts.prompted_model import PromptedModel
from tl_skillneurons.prompts.soft_prompt import SoftPrompt
from tl_skillneurons.tasks.task import Task

KEYS = ("text", "special", "prompt")
"""What is attended to: the text's own tokens, its special tokens (BOS, [CLS], [SEP]), the prompt positions."""


@dataclass(frozen=True, eq=False)
class PromptAttention:
    """Mean attention from and to the prompt positions, by class.

    Attributes:
        given: From each prompt position (the mask first, where there is one) to all text, special and prompt
            tokens together, in the order of ``KEYS``; sums to 1.
        received: By each prompt position from an average token of the text; 0 after the text in a causal model.
        role: Where the examples come from; ``n_examples`` of each class.
    """

    given: Float[Tensor, "class layer head prompt_pos key"]
    received: Float[Tensor, "class layer head prompt_pos"]
    role: str
    n_examples: tuple[int, ...]

    def to_dataframe(self) -> pd.DataFrame:
        """One row per class, layer, head and prompt position: ``to_text``, ``to_special``, ``to_prompt``,
        ``from_text``."""
        names = ["label", "layer", "head", "prompt_pos"]
        shape = self.received.shape
        grid = torch.cartesian_prod(*(torch.arange(n) for n in shape)).reshape(-1, len(names))
        frame = pd.DataFrame(grid.numpy(), columns=names)
        for number, key in enumerate(KEYS):
            frame[f"to_{key}"] = self.given[..., number].flatten().numpy()
        return frame.assign(from_text=self.received.flatten().numpy())


def attention_over_task(
    model: Any,
    prompt: SoftPrompt,
    task: Task,
    *,
    role: str = "report",
    batch_size: int | None = None,
    batch_tokens: int | None = None,
    max_length: int | None = None,
    progress: bool = True,
) -> PromptAttention:
    """Average the prompt's attention over all examples of ``role``.

    Raises:
        ValueError: When the patterns don't show (attention other than eager).
    """
    prompted = PromptedModel(model, prompt, max_length=max_length)
    split = task.split(role)
    texts, labels = list(split["text"]), torch.tensor(split["label"])
    ids = prompted.encode(texts)
    sums: dict[str, Tensor] = {}
    with (
        progress_bar(f"attention, on {role}", len(texts), show=progress) as advance,
        prompted.attached() as virtual,
        torch.no_grad(),
    ):

        def run(batch: list[int]) -> None:
            tokens = prompted.assemble([ids[i] for i in batch], batch)
            one_hot = torch.nn.functional.one_hot(labels[batch], task.n_classes).double()
            patterns = _patterns(prompted, tokens, virtual)
            for name, values in zip(("given", "received"), _shares(patterns, tokens), strict=True):
                total = torch.einsum("bc,b...->c...", one_hot, values.double().cpu())
                sums[name] = sums.get(name, 0) + total
            advance(len(batch))

        run_batches(prompted.batches(ids, batch_tokens, batch_size), run)
    counts = torch.bincount(labels, minlength=task.n_classes)
    means = {name: total / counts.view(-1, *[1] * (total.ndim - 1)) for name, total in sums.items()}
    return PromptAttention(**means, role=role, n_examples=tuple(counts.tolist()))


def example_pattern(
    model: Any, prompt: SoftPrompt, text: str
) -> tuple[list[str], Float[Tensor, "layer head query_pos key_pos"]]:
    """One text's tokens (virtual ones as ``<v0>``, ...) and patterns, the prompt in place.

    ``circuitsvis.attention.attention_patterns(tokens=tokens, attention=pattern[layer])`` shows a layer.
    """
    prompted = PromptedModel(model, prompt)
    with prompted.attached() as virtual, torch.no_grad():
        tokens = prompted.tokens([text])
        pattern = torch.stack(_patterns(prompted, tokens, virtual))[:, 0]
    return token_names(model, tokens.ids[0].tolist()), pattern


def token_names(model: Any, ids: Sequence[int]) -> list[str]:
    """The tokenizer's name of each token, ``<v0>``, ``<v1>``, ... for virtual ones."""
    base = model.W_E.shape[0]
    known = iter(model.tokenizer.convert_ids_to_tokens([i for i in ids if i < base]))
    return [f"<v{i - base}>" if i >= base else next(known) for i in ids]


def _patterns(prompted: PromptedModel, tokens: PromptedTokens, virtual: Any) -> list[Tensor]:
    kept: list[Tensor] = []

    def keep(act: Tensor, hook: Any) -> None:
        kept.append(act.detach())

    names = [f"blocks.{layer}.attn.hook_pattern" for layer in range(len(prompted.model.blocks))]
    prompted.forward(tokens, virtual, [(name, keep) for name in names])
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
    keys = torch.stack([own, tokens.is_special, tokens.is_prompt], dim=-1)
    given, received = [], []
    for pattern in patterns:
        wide = pattern.double()
        asked = wide[rows, :, columns].transpose(1, 2)  # [batch, head, prompt_pos, key column]
        given.append(torch.einsum("bhpk,bkg->bhpg", asked, keys.double()))
        looked = torch.einsum("bhqk,bq->bhk", wide, own.double()) / own.sum(1)[:, None, None]
        received.append(looked.transpose(1, 2)[rows, columns].transpose(1, 2))
    return torch.stack(given, dim=1), torch.stack(received, dim=1)
