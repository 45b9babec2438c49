"""Label words of several tokens: how likely each is as a whole after the text and the prompt.

Of the tokens ``w_1 ... w_m`` of a class's word after ``x``, the text with its prompt::

    sum            log p(w_1 | x) + log p(w_2 | x, w_1) + ... + log p(w_m | x, w_1 ... w_m-1)
    mean           that / m
    without_text   the sum, minus the same after the prompt (and chat template, and BOS) without a text: what the word
                   gains by the text (Holtzman et al., 2021, "Surface form competition", domain conditional PMI)

``x`` runs once. What its words begin with runs on top of its keys and values, all classes in one batch; where the
model's keys and values can't be kept, each class runs as a whole sequence. What acts on the run, acts on ``x``; what
declares that it acts at every position on its own (:class:`~tl_skillneurons.prompts.positions.ActsAt`, "all") acts on
the words as well. What is subtracted is the intact model's, so that no intervention moves it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge
from transformers import DynamicCache

from tl_skillneurons.models.hooks import Hook, Hooks
from tl_skillneurons.models.input_cache import runs_text_apart
from tl_skillneurons.models.prefill import fork
from tl_skillneurons.models.records import model_label
from tl_skillneurons.models.tokenizing import label_tokens, told_ids
from tl_skillneurons.prompts._forward import refuse_late, run_hooked
from tl_skillneurons.prompts.attached import VirtualTokens
from tl_skillneurons.prompts.positions import NAMED, ActsAt, PromptedTokens, all_act_at
from tl_skillneurons.tasks.task import Task

if TYPE_CHECKING:
    from tl_skillneurons.prompts.prompted_model import PromptedModel


@dataclass(frozen=True)
class LabelTokens:
    """The tokens of each class's word, in the order of the class ids, and how a word is scored."""

    ids: tuple[tuple[int, ...], ...]
    how: str

    @property
    def longest(self) -> int:
        """How many tokens the longest word has."""
        return max(map(len, self.ids))

    @property
    def need_scores(self) -> bool:
        """Whether they are more than one logit each."""
        return self.longest > 1 or self.how == "without_text"


def require_one_masked(words: LabelTokens, causal: bool, model: TransformerBridge) -> None:
    """Refuse to take the text away from a model that reads a mask.

    Raises:
        ValueError: Then.
    """
    if not causal and words.how == "without_text":
        raise ValueError(
            f"{model_label(model)} is a masked language model, whose text can't be left out for a comparison; give "
            "word_score='sum'"
        )


def require_read_out(prompted: "PromptedModel", fwd_hooks: Hooks) -> None:
    """Refuse to read classes out of a model that nobody gave any, or with hooks that would never fire.

    Raises:
        ValueError: Then.
    """
    if prompted.n_classes is None:
        raise ValueError("class logits need label words; give PromptedModel label_words={0: ..., 1: ...}")
    if not prompted.causal and prompted.prompt is None:
        name = prompted.model.cfg.model_name
        raise ValueError(f"{name} is read out at the mask of its prompt; give PromptedModel a prompt")
    refuse_late(fwd_hooks, reads_head=prompted.linear is None)


def require_words_of(model: TransformerBridge, words: LabelTokens, task: Task) -> None:
    """Refuse label words that are not those of a task, in its order.

    Raises:
        ValueError: With both.
    """
    own, wanted = list(map(list, words.ids)), label_tokens(model, task.label_words)
    if own != wanted:
        raise ValueError(
            f"the class logits are of the tokens {told_ids(own)}, {task.name!r} asks for {told_ids(wanted)}, the label "
            f"words {list(task.label_words.values())}; give PromptedModel the task's label_words"
        )


def word_scores(
    prompted: "PromptedModel",
    words: LabelTokens,
    tokens: PromptedTokens,
    virtual: VirtualTokens,
    fwd_hooks: Hooks = (),
    past: DynamicCache | None = None,
) -> Float[Tensor, "batch n_classes"]:
    """Scores of one batch inside ``attached``, float32 or wider; gradients reach the prompt.

    Args:
        past: Keys and values of the texts, where they are kept.

    Raises:
        ValueError: Where nothing is left without the text, or for hooks that don't say where they act, on a model that
            can't keep keys and values.
    """
    keeps = prompted.layout.padding_side == "left" and runs_text_apart(prompted.model)
    sums = _on_top if keeps else _whole
    found = sums(prompted, words.ids, tokens, virtual, fwd_hooks, past)
    if words.how == "mean":
        return found / torch.tensor([len(ids) for ids in words.ids], device=found.device)
    if words.how == "without_text":
        bare = prompted.layout.without_text()
        return found - sums(prompted, words.ids, bare, virtual, (), None)
    return found


def _on_top(
    prompted: "PromptedModel",
    ids: Sequence[Sequence[int]],
    tokens: PromptedTokens,
    virtual: VirtualTokens,
    fwd_hooks: Hooks,
    past: DynamicCache | None,
) -> Float[Tensor, "batch n_classes"]:
    """The sums, with the keys and values of text and prompt shared by all classes."""
    cache = DynamicCache() if past is None else fork(past)
    here = tokens if past is None else tokens.last(prompted.layout.n_virtual_tokens)
    mask = tokens.attention_mask
    ends = _kept_at(prompted, here.readout[:, None])
    first = _log_probabilities(_run(prompted, here, virtual, [*fwd_hooks, ends], mask, cache))[:, 0]
    found = first[:, [own[0] for own in ids]]
    longer = [number for number, own in enumerate(ids) if len(own) > 1]
    if not longer:
        return found
    n, n_words, width = len(tokens), len(longer), max(len(ids[number]) for number in longer) - 1
    begun = torch.tensor([[*ids[k][:-1], *[ids[k][0]] * (width + 1 - len(ids[k]))] for k in longer])
    cache.batch_repeat_interleave(n_words)
    batch = _of_words(begun.repeat(n, 1).to(tokens.ids.device), tokens.example.repeat_interleave(n_words))
    wide = torch.cat([mask.repeat_interleave(n_words, 0), batch.attention_mask], dim=1)
    everywhere = [hook for hook in fwd_hooks if all_act_at("all", [hook])]
    later = _log_probabilities(_run(prompted, batch, virtual, everywhere, wide, cache))
    later = later.view(n, n_words, width, -1)
    columns = list(found.unbind(1))
    for place, number in enumerate(longer):
        rest = torch.tensor(ids[number][1:], device=later.device)
        each = later[:, place, torch.arange(len(rest), device=later.device), rest]
        columns[number] = columns[number] + each.sum(1).to(found.device)
    return torch.stack(columns, dim=1)


def _whole(
    prompted: "PromptedModel",
    ids: Sequence[Sequence[int]],
    tokens: PromptedTokens,
    virtual: VirtualTokens,
    fwd_hooks: Hooks,
    past: DynamicCache | None,
) -> Float[Tensor, "batch n_classes"]:
    """The sums, class by class, with the word in its place after text and prompt."""
    known = all(isinstance(f, ActsAt) and f.positions in NAMED for _, f in fwd_hooks)
    if not known:
        raise ValueError(
            f"label words of several tokens run as whole sequences in {model_label(prompted.model)}, whose keys and "
            "values can't be kept, so a hook must say where it acts; give ablate(positions='prompt') or another name, "
            "or label words of one token"
        )
    columns = []
    for own in ids:
        longer = _extended(tokens, own[:-1])
        at = tokens.readout[:, None] + torch.arange(len(own), device=tokens.readout.device)
        hooks = [*fwd_hooks, _kept_at(prompted, at)]
        log_p = _log_probabilities(prompted.forward(longer, virtual, hooks))
        places = torch.arange(len(own), device=log_p.device)
        columns.append(log_p[:, places, torch.tensor(own, device=log_p.device)].sum(1))
    return torch.stack(columns, dim=1)


def _run(
    prompted: "PromptedModel",
    batch: PromptedTokens,
    virtual: VirtualTokens,
    hooks: Sequence[Hook],
    mask: Tensor,
    cache: DynamicCache,
) -> Any:
    virtual.batch = batch
    try:
        kept = {"attention_mask": mask, "past_key_values": cache}
        return run_hooked(prompted.model, batch.ids, hooks, kept, virtual.points)
    finally:
        virtual.batch = None


def _kept_at(prompted: "PromptedModel", columns: Int[Tensor, "batch read"]) -> Hook:
    """A hook before the vocabulary that keeps these columns of each row alone."""
    rows = torch.arange(len(columns), device=columns.device)[:, None]

    def keep(act: Float[Tensor, "batch pos d_model"], hook: Any) -> Float[Tensor, "batch read d_model"]:
        return act[rows.to(act.device), columns.to(act.device)]

    return (prompted.head, keep)


def _log_probabilities(logits: Float[Tensor, "*batch d_vocab"]) -> Float[Tensor, "*batch d_vocab"]:
    return logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(-1)


def _of_words(ids: Int[Tensor, "batch pos"], example: Int[Tensor, " batch"]) -> PromptedTokens:
    """Label words' tokens alone, which are neither text nor prompt."""
    no = torch.zeros_like(ids, dtype=torch.bool)
    return PromptedTokens(
        ids=ids,
        attention_mask=torch.ones_like(ids),
        is_prompt=no,
        is_text=no,
        is_special=no,
        is_template=no,
        readout=torch.full((len(ids),), ids.shape[1] - 1, device=ids.device),
        example=example,
    )


def _extended(tokens: PromptedTokens, ids: Sequence[int]) -> PromptedTokens:
    """The batch with these tokens after each row's last, before the padding where that stands on the right."""
    if not ids:
        return tokens
    n, device = len(ids), tokens.ids.device
    word = _of_words(torch.tensor([list(ids)] * len(tokens), device=device), tokens.example)
    names = ("ids", "attention_mask", "is_prompt", "is_text", "is_special", "is_template")
    joined: dict[str, Any] = {
        name: torch.cat([getattr(tokens, name), getattr(word, name)], dim=1) for name in names
    }
    n_right = tokens.attention_mask.flip(1).argmax(1)  # what pads on the right moves behind the word
    width = tokens.ids.shape[1] + n
    order = torch.arange(width, device=device).expand(len(tokens), -1).clone()
    for row, pads in enumerate(n_right.tolist()):
        end = tokens.ids.shape[1] - pads
        order[row, end:] = torch.cat([order[row, end + pads :], order[row, end : end + pads]])
    moved: dict[str, Any] = {name: tensor.gather(1, order) for name, tensor in joined.items()}
    return replace(tokens, **moved)
