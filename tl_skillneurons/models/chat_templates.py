"""A text as a chat model gets it: rendered by the tokenizer's own chat template, where the answer would begin.

The ids of a text are those of ``tokenizer.apply_chat_template(messages, tokenize=True)``, with the generation prompt;
or with ``continue_final_message=True``, where the task says how the answer begins. Special tokens are the template's,
once; ``prepend_bos`` has no say. Two kinds of templates need more:

* One that has no generation prompt, but writes a header before an assistant's message: the header stands there.
* One that cuts a beginning of the answer out (thinking sections): the beginning stands after the generation prompt.

What the template puts before and after a text is the same for every text. It is known by its ids, so that what the
user wrote can be told from it and a text that is too long is cut at its own end.
"""

import re
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import jinja2
from transformer_lens.model_bridge import TransformerBridge

from tl_skillneurons._checks import require_text
from tl_skillneurons.models.locks import held
from tl_skillneurons.models.records import model_label
from tl_skillneurons.models.sites import is_causal
from tl_skillneurons.models.tokenizing import require_rows
from tl_skillneurons.tasks.chat import Chat

_PROBES = ("The film", "1, 2", "xyz")
"""Texts that begin and end with different characters: what they have in common once rendered is the template's."""
_ANSWER = "ANSWER"
_THINKING = ("<think>", "</think>")


def n_alike(one: Sequence[Any], other: Sequence[Any]) -> int:
    """How many items two sequences have in common, from the first on.

    Example:
        >>> n_alike("negative", "neutral"), n_alike([1, 2], [1, 2, 3])
        (2, 2)
    """
    pairs = enumerate(zip(one, other, strict=False))
    return next((place for place, (a, b) in pairs if a != b), min(len(one), len(other)))


class ChatFrame:
    """What one chat template puts around every text of one chat.

    Args:
        model: A causal model, whose tokenizer has a chat template.
        chat: The messages around the text.

    Raises:
        ValueError: For a model without a chat template or one that isn't asked questions, a template that refuses the
            messages, doesn't read an option, drops a message or the text, or leaves a thinking section open where the
            answer should begin.
    """

    def __init__(self, model: TransformerBridge, chat: Chat) -> None:
        self.model, self.chat = model, chat
        if not is_causal(model):
            raise ValueError(
                f"{model_label(model)} is a masked language model, which nobody chats with; make the task without "
                "chat="
            )
        if not getattr(model.tokenizer, "chat_template", None):
            raise ValueError(
                f"the tokenizer of {model_label(model)} has no chat template; give a model that was tuned for chat, "
                "set model.tokenizer.chat_template, or make the task without chat="
            )
        written = str(model.tokenizer.chat_template)
        unread = [name for name in chat.options if not re.search(rf"\b{re.escape(name)}\b", written)]
        if unread:
            raise ValueError(
                f"the chat template of {model_label(model)} does not read the option {unread[0]!r}; leave it out"
            )
        self._header = self._missing_header()
        rendered = self._rendered(_PROBES)
        first, *others = rendered
        self.before = first[: min(n_alike(first, other) for other in others)]
        self.after = first[len(first) - min(n_alike(first[::-1], other[::-1]) for other in others) :]
        self._require_sound(rendered)

    @property
    def told(self) -> str:
        """The frame with ``{text}`` in the text's place: what files record."""
        return f"{self.before}{{text}}{self.after}"

    @cached_property
    def ids(self) -> tuple[list[int], list[int]]:
        """The token ids before and after every text."""
        rendered = [f"{self.before}{probe}{self.after}" for probe in _PROBES]
        first, *others = self._encoded(rendered)
        n_before = min(n_alike(first, other) for other in others)
        n_after = min(n_alike(first[::-1], other[::-1]) for other in others)
        if getattr(
            self.model.tokenizer, "is_fast", False
        ):  # several texts may be one token, an unknown word's
            with held(self.model):
                told = self.model.tokenizer(
                    rendered[0], add_special_tokens=False, return_offsets_mapping=True, verbose=False
                )["offset_mapping"]
            ends = len(rendered[0]) - len(self.after)
            n_before = min(n_before, sum(end <= len(self.before) for _, end in told))
            n_after = min(n_after, sum(start >= ends for start, _ in told))
        return first[:n_before], first[len(first) - n_after :]

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each text with the template around it.

        Raises:
            TypeError: For a text that is no string.
            ValueError: For a text that the template drops or changes, or a token that the model has no row for.
        """
        for number, text in enumerate(texts):
            require_text(text, f"text {number}")
        if not texts:
            return []
        rendered = self._rendered(texts)
        for number, (text, whole) in enumerate(zip(texts, rendered, strict=True)):
            framed = whole.startswith(self.before) and whole.endswith(self.after)
            own = whole[len(self.before) : len(whole) - len(self.after)]
            if not framed or own.strip() != text.strip():
                raise ValueError(
                    f"the chat template of {model_label(self.model)} changes text {number}, {text[:80]!r}, or what "
                    f"stands around it, to {whole[-200:]!r}; leave that text out, or make the task without chat="
                )
        rows = self._encoded(rendered)
        require_rows(self.model, rows)
        return rows

    def _encoded(self, rendered: Sequence[str]) -> list[list[int]]:
        with held(self.model):
            return self.model.tokenizer(list(rendered), add_special_tokens=False, verbose=False)["input_ids"]

    def _rendered(self, texts: Sequence[str]) -> list[str]:
        """What ``apply_chat_template`` writes for each text, up to where the answer goes on."""
        start = self.chat.assistant
        if start is not None:
            try:
                return self._applied([self._messages(text, start) for text in texts], go_on=True)
            except (ValueError, jinja2.TemplateError):  # it cuts such a beginning out, or has no assistant
                return [f"{one}{start}" for one in self._asked(texts)]
        return [f"{one}{self._header}" for one in self._asked(texts)]

    def _asked(self, texts: Sequence[str], header: bool = True) -> list[str]:
        try:
            return self._applied([self._messages(text) for text in texts], header=header)
        except jinja2.TemplateError as error:
            raise ValueError(
                f"the chat template of {model_label(self.model)} refuses these messages: {error}; "
                + (
                    "leave the system message out, or write it into the user's"
                    if self.chat.system
                    else _ADVICE
                )
            ) from error

    def _applied(self, talks: list[Any], *, header: bool = False, go_on: bool = False) -> list[str]:
        how = {"continue_final_message": True} if go_on else {"add_generation_prompt": header}
        return self.model.tokenizer.apply_chat_template(talks, tokenize=False, **how, **self.chat.options)

    def _messages(self, text: str, answer: str | None = None) -> list[dict[str, str]]:
        said = [("system", self.chat.system), ("user", text), ("assistant", answer)]
        return [{"role": role, "content": content} for role, content in said if content is not None]

    def _missing_header(self) -> str:
        """The header that the template writes before an assistant's message, where it has no generation prompt."""
        (with_header,), (without,) = self._asked(_PROBES[:1]), self._asked(_PROBES[:1], header=False)
        if with_header != without:
            return ""
        try:
            (answered,) = self._applied([self._messages(_PROBES[0], _ANSWER)])
        except (ValueError, jinja2.TemplateError):
            return ""
        found = answered[len(without) :].partition(_ANSWER)[0]
        return found if answered.startswith(without) and found.strip() else ""

    def _require_sound(self, rendered: Sequence[str]) -> None:
        """Refuse a template that drops a message, or in whose thinking section the answer would stand."""
        who = f"the chat template of {model_label(self.model)}"
        if any(
            whole != f"{self.before}{probe}{self.after}"
            for probe, whole in zip(_PROBES, rendered, strict=True)
        ):
            raise ValueError(
                f"{who} drops or changes the text: of {_PROBES[0]!r} it makes {rendered[0]!r}; {_ADVICE}"
            )
        if self.chat.system is not None and self.chat.system.strip() not in self.before + self.after:
            raise ValueError(
                f"{who} drops the system message {self.chat.system!r}; write it into the user's message"
            )
        opened, closed = (self.after.rfind(tag) for tag in _THINKING)
        if self.chat.assistant is None and opened > closed:
            raise ValueError(
                f"{who} leaves a thinking section open ({self.after[-60:]!r}), in which no answer begins; give "
                "chat={'options': {'enable_thinking': False}} where the template knows that, or close it by "
                "chat={'assistant': '\\n</think>\\n\\n'}"
            )


_ADVICE = "give another template (model.tokenizer.chat_template), or make the task without chat="
