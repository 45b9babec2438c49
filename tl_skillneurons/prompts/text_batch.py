"""Texts as batches of tokens beside a prompt: encoded, cut to what the model takes, and put in batches.

A text gets the special tokens that its tokenizer gives it (and a BOS where the prompt was trained with one), or stands
in the tokenizer's chat template where a chat is asked for; what is too long is cut out of the text, never out of the
prompt.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from transformer_lens.model_bridge import TransformerBridge

from tl_skillneurons._checks import require_int, require_option
from tl_skillneurons.models.batches import batch_tokens_on, length_batches, suffix_limits
from tl_skillneurons.models.chat_templates import ChatFrame
from tl_skillneurons.models.input_cache import runs_text_apart
from tl_skillneurons.models.lengths import length_limit
from tl_skillneurons.models.sites import is_causal, max_length
from tl_skillneurons.models.tokenizing import (
    mask_id,
    pad_id,
    piece_ids,
    resolve_prepend_bos,
    special_token_ids,
    text_token_ids,
)
from tl_skillneurons.models.verification import agrees, require
from tl_skillneurons.prompts._cut import ANSWER, NO_FRAME, Frame, split_answer, truncate
from tl_skillneurons.prompts.positions import PADDING_SIDES, PromptedTokens, arrange
from tl_skillneurons.prompts.run import RunOptions
from tl_skillneurons.prompts.soft_prompt import SoftPrompt
from tl_skillneurons.tasks.chat import ANSWERED, Chat


@dataclass(frozen=True, eq=False)
class TextLayout:
    """How texts stand beside one prompt (or none) in one model.

    Attributes:
        prepend_bos: Whether texts get a BOS; ``None`` where the question does not arise (bidirectional models, chats).
        padding_side: "left" or "right".
        max_length: Longest sequence, virtual tokens included; ``None`` where the model states no limit.
        pads: Whether texts of different lengths may stand in one batch: padding was seen to change nothing.
        limit: Texts of up to so many tokens, virtual ones included, stand in no batch with longer ones, beside which
            the model's positions mean something else (:mod:`~tl_skillneurons.models.lengths`); ``None`` where
            all may.
        chat: What the tokenizer's chat template puts around every text; ``None`` for texts that stand alone.
        tokenizer: What the model had for one when this was made.
    """

    model: TransformerBridge
    prompt: SoftPrompt | None
    prepend_bos: bool | None
    padding_side: str
    max_length: int | None
    pads: bool
    limit: int | None
    chat: ChatFrame | None = None
    tokenizer: Any = None

    @classmethod
    def of(
        cls,
        model: TransformerBridge,
        prompt: SoftPrompt | None,
        *,
        prepend_bos: bool | None = None,
        max_length: int | None = None,
        padding_side: str | None = None,
        chat: Chat | None = None,
    ) -> "TextLayout":
        """What was asked for, else what the prompt was tuned with, else what the model takes.

        Raises:
            ValueError: For a model without a tokenizer, or options that it can't take.
        """
        if model.tokenizer is None:
            raise ValueError(
                f"{model.cfg.model_name} has no tokenizer; boot it with tokenizer=..., texts need one"
            )
        chat = prompt.chat if chat is None and prompt is not None else chat
        if not isinstance(chat, Chat | None):
            raise TypeError(
                f"chat must be a tasks.Chat, such as Chat(system='Answer in one word.'), got {type(chat).__name__} "
                f"{chat!r}; Task.from_datasets takes True or a dict as well"
            )
        frame = None if chat is None else _frame(model, prompt, chat, prepend_bos)
        if prompt is not None and prepend_bos is None:
            prepend_bos = prompt.prepend_bos
        side = padding_side or ("left" if is_causal(model) else "right")
        require_option(side, "padding_side", PADDING_SIDES)
        longest = _max_length(model, prompt, max_length)
        limit = length_limit(model)
        return cls(
            model,
            prompt,
            resolve_prepend_bos(model, prepend_bos) if frame is None else None,
            side,
            longest,
            agrees(model, f"padding {side}"),
            limit if limit is not None and (longest is None or limit < longest) else None,
            frame,
            model.tokenizer,
        )

    @property
    def n_virtual_tokens(self) -> int:
        """How many virtual tokens there are."""
        return 0 if self.prompt is None else self.prompt.n_virtual_tokens

    @property
    def has_mask(self) -> bool:
        """Whether a mask stands before the prompt: in a bidirectional model."""
        return self.prompt is not None and not is_causal(self.model)

    @property
    def n_prompt_positions(self) -> int:
        """How many positions the prompt takes, the mask before a bidirectional model's included."""
        return self.n_virtual_tokens + self.has_mask

    @cached_property
    def text_runs_apart(self) -> bool:
        """Whether the text can be run before the prompt: a suffix prompt, and a causal model that allows it."""
        is_suffix = self.prompt is not None and self.prompt.placement == "suffix"
        is_exact = self.limit is None  # else a text may be on one side of it, and with the prompt beyond it
        return is_suffix and is_exact and self.padding_side == "left" and runs_text_apart(self.model)

    @property
    def frame(self) -> Frame:
        """The ids that a chat template puts before and after every text; none without a chat."""
        return NO_FRAME if self.chat is None else self.chat.ids

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each text alone: with the special tokens its tokenizer (and ``prepend_bos``) gives it, or in the
        tokenizer's chat template, and of an answer behind it (:data:`~tl_skillneurons.tasks.chat.ANSWERED`)."""
        if isinstance(texts, str):
            raise TypeError(f"texts must be a list of strings, got one string {texts!r}; put it in a list")
        if self.model.tokenizer is not self.tokenizer:
            require(self.model, "special tokens")  # one that was put in its place since
        asked = [text.partition(ANSWERED) if isinstance(text, str) else (text, "", "") for text in texts]
        questions = [question for question, *_ in asked]
        if self.chat is not None:
            rows = self.chat.encode(questions)
        else:
            rows = text_token_ids(self.model, questions, self.prepend_bos)
        return [
            row + [ANSWER + i for i in piece_ids(self.model, answer)] if answer else row
            for row, (*_, answer) in zip(rows, asked, strict=True)
        ]

    def assemble(self, text_ids: list[list[int]], example: Sequence[int] | None = None) -> PromptedTokens:
        """One batch: the virtual tokens beside texts that :meth:`encode` made ids of, padded."""
        base = self.model.W_E.shape[0]
        if not self.pads and len(set(self.lengths(text_ids))) > 1:
            require(self.model, f"padding {self.padding_side}")
        if self.limit is not None and len({n > self.limit for n in self.lengths(text_ids)}) > 1:
            raise ValueError(
                f"texts of up to {self.limit} tokens (virtual ones included) and longer ones can't stand in one batch "
                f"of {self.model.cfg.model_name}, whose positions change with the longest; run them apart, or give "
                f"max_length={self.limit}"
            )
        tokens = arrange(
            text_ids,
            virtual_ids=range(base, base + self.n_virtual_tokens),
            placement="suffix" if self.prompt is None else self.prompt.placement,
            mask_id=mask_id(self.model) if self.has_mask else None,
            special_ids=special_token_ids(self.model.tokenizer),
            pad_id=pad_id(self.model),
            padding_side=self.padding_side,
            max_length=self.max_length,
            frame=self.frame,
            example=example,
        )
        return tokens.to(self.model.cfg.device)

    def without_text(self) -> PromptedTokens:
        """One row of what stands around a text alone: BOS or chat template, and the virtual tokens.

        Raises:
            ValueError: When nothing is left.
        """
        if self.chat is not None:
            ids = self.chat.encode([""])[0]
        else:
            ids = text_token_ids(self.model, [""], self.prepend_bos)[0]
        if not ids and not self.n_virtual_tokens:
            raise ValueError(
                "without the text nothing is left to compare with: no BOS, no chat template, no prompt; give "
                "prepend_bos=True, or word_score='sum'"
            )
        base = self.model.W_E.shape[0]
        return arrange(
            [ids],
            virtual_ids=range(base, base + self.n_virtual_tokens),
            placement="suffix" if self.prompt is None else self.prompt.placement,
            mask_id=None,
            special_ids=special_token_ids(self.model.tokenizer),
            pad_id=pad_id(self.model),
            padding_side=self.padding_side,
            max_length=None,
            frame=self.frame,
            needs_text=False,
        ).to(self.model.cfg.device)

    def with_room(self, n: int, wanted: int | None) -> "TextLayout":
        """The same, with room for ``n`` more tokens after text and prompt, those of label words.

        Args:
            wanted: The longest sequence that was asked for, if any was.

        Raises:
            ValueError: Where there is none, or where it would change what the model's positions mean.
        """
        if n == 0:
            return self
        name, most = self.model.cfg.model_name, max_length(self.model)
        if self.limit is not None:
            raise ValueError(
                f"positions of {name} change their meaning where a sequence grows beyond {self.limit} tokens, so label "
                f"words of several tokens are not asked for beside texts of any length; give max_length="
                f"{self.limit - n}, or label words of one token"
            )
        if most is None or (self.max_length is not None and self.max_length <= most - n):
            return self
        if wanted is not None:
            raise ValueError(
                f"max_length must be at most {most - n} for {name}, which takes {most} tokens, {n} of them of the "
                f"label words, got {wanted}"
            )
        return replace(self, max_length=most - n)

    def batches(
        self, text_ids: list[list[int]], run: RunOptions, *, suffix_alone: bool = False
    ) -> list[list[int]]:
        """Which texts (as :meth:`encode` gives them) run together: those of similar length, the longest first.

        Where padding was seen to change the model's numbers, those of equal length alone run together.

        Args:
            suffix_alone: Whether the virtual tokens alone run, on top of the texts' keys and values: then more texts
                make a batch, unless ``run`` says how many.
        """
        limits: dict[str, int | None]
        if run.batch_tokens is not None or run.batch_size is not None:
            limits = {"batch_tokens": run.batch_tokens, "batch_size": run.batch_size}
        elif suffix_alone:
            limits = {**suffix_limits(self.model.cfg.device, self.n_virtual_tokens)}
        else:
            limits = {"batch_tokens": batch_tokens_on(self.model.cfg.device)}
        return length_batches(self.lengths(text_ids), **limits, padded=self.pads, limit=self.limit)

    def cut(self, text_ids: list[list[int]]) -> list[list[int]]:
        """The texts as they stand beside the prompt: without what is more than the model takes."""
        special = special_token_ids(self.model.tokenizer)
        n = self.n_prompt_positions
        cut = [truncate(ids, n, special, self.max_length, self.frame) for ids in text_ids]
        return [text + answer for text, answer in map(split_answer, cut)]

    def lengths(self, text_ids: list[list[int]]) -> list[int]:
        """How many tokens each text has with the prompt in place, and cut to what the model takes."""
        whole = [len(ids) + self.n_prompt_positions for ids in text_ids]
        return whole if self.max_length is None else [min(n, self.max_length) for n in whole]

    def n_cut(self, text_ids: list[list[int]]) -> int:
        """How many of the texts lose something."""
        if self.max_length is None:
            return 0
        return sum(len(ids) + self.n_prompt_positions > self.max_length for ids in text_ids)


def _frame(
    model: TransformerBridge, prompt: SoftPrompt | None, chat: Chat, prepend_bos: bool | None
) -> ChatFrame:
    """The chat's frame, which is that of the tuning where the prompt was tuned in this chat.

    Raises:
        ValueError: For a BOS that is asked for beside the template's, or a template that is another now.
    """
    if prepend_bos is not None:
        raise ValueError(
            f"a chat template says which special tokens stand around a text, got prepend_bos={prepend_bos}; leave it "
            "out"
        )
    frame = ChatFrame(model, chat)
    was = prompt.provenance.get("chat") if prompt is not None and prompt.chat == chat else None
    if was not in (None, frame.told):
        raise ValueError(
            f"the prompt was tuned in the chat template {was!r}, and the tokenizer of {model.cfg.model_name} now gives "
            f"{frame.told!r}; give that tokenizer (a date that a template writes is set by chat={{'options': ...}}), "
            "or tune a prompt in this one"
        )
    return frame


def _max_length(model: TransformerBridge, prompt: SoftPrompt | None, wanted: int | None) -> int | None:
    limit = max_length(model)
    if wanted is None:
        tuned = None if prompt is None else prompt.max_length
        known = [n for n in (tuned, limit) if n is not None]
        return min(known, default=None)
    require_int(wanted, "max_length")
    if limit is not None and wanted > limit:
        raise ValueError(f"max_length must be at most {limit} for {model.cfg.model_name}, got {wanted}")
    return wanted
