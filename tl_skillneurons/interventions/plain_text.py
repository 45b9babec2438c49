"""How well a model predicts plain text, without a prompt, while hooks run: damage beside the task.

Causal models: the mean over a text's tokens of ``-log p(token | tokens before it)``, the first token left
out. Masked language models: of every text's own tokens a seeded 15 % (one at least) are replaced by the mask,
all at once, and ``-log p(token | the rest)`` is averaged over them. In nats; the two kinds of model can't be
compared with each other. Zero is perfect, larger is worse.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from tl_skillneurons._checks import require_seed
from tl_skillneurons.models.batches import run_batches
from tl_skillneurons.models.hooks import Hooks
from tl_skillneurons.models.records import model_label
from tl_skillneurons.models.sites import has_language_model_head
from tl_skillneurons.models.tokenizing import mask_id
from tl_skillneurons.prompts.positions import PromptedTokens
from tl_skillneurons.prompts.prompted_model import PromptedModel

MASKED_SHARE = 0.15


def cross_entropy(
    prompted: PromptedModel,
    texts: Sequence[str],
    fwd_hooks: Hooks = (),
    *,
    seed: int = 0,
) -> Float[Tensor, " text"]:
    """Mean cross-entropy of each text, in nats per token, float64.

    Args:
        prompted: A :class:`PromptedModel` without a prompt.
        seed: Draws what is masked, for masked language models; the same whatever the hooks.

    Raises:
        ValueError: With a prompt, for a model without a language-model head, or a text of which no token can be asked
            for: a single one, or for masked language models none but special ones.

    Example:
        >>> plain = skn.PromptedModel(model, None)
        >>> cross_entropy(plain, texts, skn.ablate(skill, positions="text")) - cross_entropy(plain, texts)
    """
    require_seed(seed)
    with reading(prompted, texts, seed=seed) as losses:
        return losses(fwd_hooks)


@contextmanager
def reading(
    prompted: PromptedModel, texts: Sequence[str], *, seed: int = 0
) -> Iterator[Callable[[Hooks], Float[Tensor, " text"]]]:
    """A function from hooks to what :func:`cross_entropy` gives, for as many runs of the same texts as are wanted."""
    require_seed(seed)
    if prompted.prompt is not None:
        raise ValueError("plain text runs without a prompt; give PromptedModel(model, None)")
    require_head(prompted)
    ids = prompted.encode(texts)
    short = [number for number, one in enumerate(prompted.cut(ids)) if prompted.causal and len(one) < 2]
    if short:
        raise ValueError(
            f"text {short[0]} ({texts[short[0]]!r}) is a single token, which nothing predicts; leave it out"
        )
    batches = prompted.batches(ids)
    with prompted.attached() as virtual:

        def losses(fwd_hooks: Hooks = ()) -> Float[Tensor, " text"]:
            found = torch.empty(len(ids), dtype=torch.float64)

            def run(batch: list[int]) -> None:
                tokens = prompted.assemble([ids[i] for i in batch], batch)
                shown, asked = (tokens, _next(tokens)) if prompted.causal else _masked(tokens, prompted, seed)
                logits = prompted.forward(shown, virtual, fwd_hooks)
                if prompted.causal:
                    logits, targets = logits[:, :-1], tokens.ids[:, 1:]
                else:
                    targets = tokens.ids
                # only where a token is asked for: a log-softmax over the vocabulary is the dearest part
                rows, columns = asked.nonzero(as_tuple=True)
                each = torch.nn.functional.cross_entropy(
                    logits[rows, columns].float(), targets[rows, columns], reduction="none"
                )
                total = torch.zeros(len(batch), dtype=torch.float64).index_add_(
                    0, rows.cpu(), each.double().cpu()
                )
                found[batch] = total / asked.sum(1).cpu()

            with torch.no_grad():
                run_batches(batches, run)
            return found

        yield losses


def require_head(prompted: PromptedModel) -> None:
    """Refuse a model that predicts no tokens.

    Raises:
        ValueError: Then.
    """
    if not has_language_model_head(prompted.model):
        raise ValueError(
            f"{model_label(prompted.model)} has no language-model head to predict plain text with; "
            "leave plain_texts out"
        )


def _next(tokens: PromptedTokens) -> Tensor:
    """Which tokens, from the second column on, have a real token before them."""
    real = tokens.attention_mask.bool()
    return real[:, 1:] & real[:, :-1]


def _masked(tokens: PromptedTokens, prompted: PromptedModel, seed: int) -> tuple[PromptedTokens, Tensor]:
    """The batch with some of every text's own tokens masked, and where; the same for a text in any batch."""
    own = (tokens.is_text & ~tokens.is_special).cpu()
    asked = torch.zeros_like(own)
    for row, example in enumerate(tokens.example.tolist()):
        columns = own[row].nonzero().flatten()
        n = max(1, round(MASKED_SHARE * len(columns)))
        generator = torch.Generator().manual_seed((seed * 1_000_003 + example + 1) % 2**63)
        asked[row, columns[torch.randperm(len(columns), generator=generator)[:n]]] = True
    asked = asked.to(tokens.ids.device)
    return replace(tokens, ids=tokens.ids.masked_fill(asked, mask_id(prompted.model))), asked
