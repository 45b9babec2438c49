"""What stands around a text in a conversation with a chat model: a system message, and how the answer begins.

A task keeps what the user wrote and this; the ids come from the chat template of the tokenizer at hand
(:mod:`~tl_skillneurons.models.chat_templates`), so that one task serves several chat models.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from tl_skillneurons._checks import listed, near, require_text

ANSWERED = "\x1eanswer\x1e"
"""Stands between a text and an answer that was given to it, in the texts of a task that has both."""
_KEYS = ("system", "user", "assistant", "options")
_TAKEN = (
    "conversation",
    "messages",
    "chat_template",
    "tokenize",
    "add_generation_prompt",
    "continue_final_message",
    "padding",
    "truncation",
    "max_length",
    "return_tensors",
    "return_dict",
)
"""Arguments of ``apply_chat_template`` that are decided here."""


@dataclass(frozen=True)
class Chat:
    """The messages around a text, which is the user's.

    Args:
        system: The system message, as it is written; ``None`` for what the template puts in by itself.
        assistant: The beginning of the assistant's answer, which the soft prompt or the label word goes on with.
        options: What the template reads besides, as plain JSON values: ``{"enable_thinking": False}``.

    Raises:
        TypeError: For a message that is no string.
        ValueError: For a message of nothing, or options that no file can hold or that aren't the template's own.

    Example:
        >>> Chat(system="Answer in one word.", assistant="The review is")
        Chat(system='Answer in one word.', assistant='The review is', options={})
    """

    system: str | None = None
    assistant: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("system", "assistant"):
            said = getattr(self, name)
            if said is not None and not require_text(said, f"the message of {name!r}").strip():
                raise ValueError(f"the message of {name!r} must hold text, got {said!r}; leave it out")
        taken = [name for name in self.options if name in _TAKEN]
        if taken:
            raise ValueError(
                f"options are what the chat template itself reads, such as 'enable_thinking', got {taken[0]!r}; leave "
                "it out, for how texts are rendered is decided by the task and the model"
            )
        try:
            plain = json.loads(json.dumps(dict(self.options)))
        except (TypeError, ValueError) as error:
            raise ValueError(f"options must be plain JSON values, got {self.options!r} ({error})") from error
        object.__setattr__(self, "options", plain)

    @property
    def record(self) -> dict[str, Any]:
        """What files record of it, as plain JSON values; ``Chat(**record)`` reads it."""
        return {"system": self.system, "assistant": self.assistant, "options": dict(self.options)}


ChatGiven: TypeAlias = Chat | Mapping[str, Any] | bool | None
"""A chat as users give it: ``True`` for a message of the user alone, or a mapping that may name the user's message."""


def as_chat(
    given: ChatGiven, template: str | None, default: str | None = None
) -> tuple[Chat | None, str | None]:
    """The chat that was asked for, and the template of the user's message.

    Args:
        template: The template, where it was given beside.
        default: What ``template`` is where nobody gave it.

    Raises:
        TypeError: For anything but a chat.
        ValueError: For keys that are none, or a user's message that is given twice.
    """
    if given is None or given is False:
        return None, template
    if given is True:
        return Chat(), template
    if isinstance(given, Chat):
        return given, template
    if not isinstance(given, Mapping):
        raise TypeError(
            "chat must be True, a Chat, or a dict with 'system', 'user', 'assistant' and 'options', any of them, got "
            f"{type(given).__name__} {given!r}"
        )
    unknown = [key for key in given if key not in _KEYS]
    if unknown:
        raise ValueError(f"chat has the keys {listed(_KEYS)}, got {unknown[0]!r}; {near(unknown[0], _KEYS)}")
    user = given.get("user")
    if user is not None and template not in (None, default):
        raise ValueError(
            f"the user's message is given twice, as chat['user'] {user!r} and as template {template!r}; give one"
        )
    messages = {key: given[key] for key in ("system", "assistant") if key in given}
    return Chat(**messages, options=given.get("options") or {}), template if user is None else user


def require_plain(chat: Chat | None, columns: Mapping[str, Any]) -> None:
    """Refuse a system message or a beginning of the answer that names a column, for these are the same for every text.

    Args:
        columns: The columns of the data, by name.

    Raises:
        ValueError: Then.
    """
    for name in ("system", "assistant"):
        said = getattr(chat, name, None) or ""
        named = [column for column in columns if f"{{{column}}}" in said or f"{{{column}!s}}" in said]
        if named:
            raise ValueError(
                f"the message of {name!r} is the same for every text, so {{{named[0]}}} stands there as it is written; "
                "put the column into the user's message (template=, or chat['user'])"
            )
