"""How to run, and what every run of prompts asks for first.

:class:`RunOptions` never decides what is measured: no result depends on it but in the last bits, where a batch
of another shape rounds differently.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tl_skillneurons._checks import differing, require_int
from tl_skillneurons._files import fingerprint
from tl_skillneurons.models.input_cache import InputCache
from tl_skillneurons.prompts.soft_prompt import SoftPrompt
from tl_skillneurons.tasks.chat import Chat
from tl_skillneurons.tasks.task import Task

if TYPE_CHECKING:
    from tl_skillneurons.prompts.prompted_model import PromptedModel


@dataclass(frozen=True)
class RunOptions:
    """How to run: batches, what is kept of the texts, progress; the same value everywhere, as ``run=``.

    Attributes:
        batch_tokens: Most tokens of a batch, padding and virtual tokens included; without either limit 1,024 on a
            CPU and 16,384 elsewhere.
        batch_size: Most texts of a batch.
        cache: Keys and values of texts (causal models, suffix prompts), kept from earlier runs or for later ones.
        progress: Whether to show a bar, on stderr.

    Raises:
        ValueError: For a limit that is not a positive integer.

    Example:
        >>> run = RunOptions(batch_tokens=4096, progress=False)
    """

    batch_tokens: int | None = None
    batch_size: int | None = None
    cache: InputCache | None = None
    progress: bool = True

    def __post_init__(self) -> None:
        for name in ("batch_tokens", "batch_size"):
            if getattr(self, name) is not None:
                require_int(getattr(self, name), name)

    def one_use(self) -> AbstractContextManager[None]:
        """What runs in here is one use of the cache, if there is one: :meth:`InputCache.one_use`."""
        return nullcontext() if self.cache is None else self.cache.one_use()


def as_list(prompts: SoftPrompt | Sequence[SoftPrompt] | None) -> list[SoftPrompt | None]:
    """The prompts as a list; ``None``, the bare text, is a list of one.

    Raises:
        ValueError: For an empty list.
    """
    if prompts is None or isinstance(prompts, SoftPrompt):
        return [prompts]
    chosen: list[SoftPrompt | None] = list(prompts)
    if not chosen:
        raise ValueError("prompts must hold at least one soft prompt; give None to score the bare text")
    return chosen


def prompt_record(prompt: SoftPrompt) -> dict[str, Any]:
    """What results record of a prompt that they were measured with, as plain JSON values."""
    return {
        "seed": prompt.seed,
        "n_virtual_tokens": prompt.n_virtual_tokens,
        "placement": prompt.placement,
        "prepend_bos": prompt.prepend_bos,
        "sha256": fingerprint(*prompt.parameters()),
    }


def task_terms(task: Task) -> dict[str, Any]:
    """What a task asks, apart from its examples: how texts are rendered, which words stand for which label, in which
    order, and, where they are not the ordinary, the chat and how words are scored."""
    terms: dict[str, Any] = {
        "label_names": list(task.label_names),
        "template": task.template,
        "label_words": [task.label_words[k] for k in sorted(task.label_words)],
    }
    if task.chat is not None:
        terms["chat"] = task.chat.record
    return terms if task.word_score == "sum" else {**terms, "word_score": task.word_score}


def require_tuned_for(prompt: SoftPrompt | None, task: Task) -> None:
    """Refuse a prompt that was tuned on a task with another template, other label words, or labels in another order, or
    that stands in another chat than the task's texts.

    What a prompt doesn't record (those made by hand, or by PEFT) is not compared; nor are the examples.

    Raises:
        ValueError: In one sentence, what differs and what to give.
    """
    if prompt is not None and prompt.chat != task.chat:
        raise ValueError(
            f"the prompt stands {_place(prompt.chat)}, the texts of {task.name!r} {_place(task.chat)}; give a prompt "
            "tuned on this task, or SoftPrompt(..., chat=task.chat) (studies.transfer_prompts runs prompts on other "
            "tasks)"
        )
    was = {} if prompt is None else prompt.provenance.get("task", {})
    now = task_terms(task)
    idle = (
        "label_words" if prompt is not None and prompt.readout is not None else None
    )  # a linear read-out reads none
    if was and idle is None:
        was, now = ({"word_score": "sum", **terms} for terms in (was, now))
    kept = {name: was[name] for name in now if name in was and name != idle}
    if apart := differing(kept, {name: now[name] for name in kept}):
        raise ValueError(
            f"the prompt was tuned on {was.get('name')!r}, another task than {task.name!r} ({'; '.join(apart)}); "
            "give a prompt tuned on this task (studies.transfer_prompts runs prompts on other tasks)"
        )


def _place(chat: Chat | None) -> str:
    return "beside the text alone" if chat is None else f"in a {chat}"


def require_sees_text(prompted: "PromptedModel", positions: str) -> None:
    """Refuse positions at which nothing of the text is seen.

    Raises:
        ValueError: For prompt positions without a prompt, or of a causal model's prefix.
    """
    if positions != "prompt":
        return
    if prompted.prompt is None:
        raise ValueError(
            "without a prompt there are no prompt positions; use positions='last', 'mean', 'max' or 'readout'"
        )
    if prompted.causal and prompted.prompt.placement == "prefix":
        raise ValueError(
            "this prompt is a prefix and the model is causal: its positions come before the text and never see it, "
            "so their activations are the same for every input and predict nothing; use positions='last', 'mean' or "
            "'max', or tune a suffix prompt with fit_soft_prompts"
        )
