"""The task that a command's options name, and the tasks of two classes that it is made of."""

import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tl_skillneurons._checks import listed
from tl_skillneurons.cli._options import BUILT_IN, Asking, Data, chat_options_of, label_words_of, slug

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

    from tl_skillneurons.tasks.chat import Chat
    from tl_skillneurons.tasks.columns import Rows
    from tl_skillneurons.tasks.task import Task

ALL = "all"
_BUILT_IN_WORDS = {0: " negative", 1: " positive"}


@dataclass(frozen=True)
class Wanted:
    """What the options of the data say.

    Attributes:
        words: The label words by label; ``None`` where none are given.
        classes: The labels that are wanted; ``None`` where no choice was made, an empty tuple for all.
        template: The text of an example, or in a chat what the user writes.
        chat: What stands around it in a chat; ``None`` for texts that stand alone.
    """

    words: dict[Any, Any] | None
    classes: tuple[str, ...] | None
    template: str | None
    chat: "Chat | None"


def wanted(data: Data, asking: Asking) -> Wanted:
    """What the options say, once they can be read.

    Raises:
        ValueError: For label words, classes or a chat that can't be read, or that don't go with each other or the data.
    """
    chat = _chat(asking)
    if asking.question is not None and data.template is not None:
        raise ValueError(
            f"what the user writes is given twice, as --question {asking.question!r} and as --template "
            f"{data.template!r}; give one"
        )
    if data.data == BUILT_IN and data.template is not None:
        raise ValueError(
            f"--template is for your own data, and {BUILT_IN} has texts of its own; leave it out, or ask a chat model "
            "about them by --question"
        )
    words = None if data.label_words is None else label_words_of(data.label_words)
    classes = None if data.classes is None else _classes(data.classes)
    if data.data == BUILT_IN:
        if classes is not None:
            raise ValueError(f"--classes chooses labels of your own data; {BUILT_IN} has two, leave it out")
        words = _BUILT_IN_WORDS if words is None else words
        if set(words) != {0, 1}:
            raise ValueError(
                f"{BUILT_IN} has the labels 0 and 1, got {sorted(map(str, words))} in --label-words"
            )
    if words is not None and classes is None and len(words) > 2:
        raise ValueError(
            f"neurons are found for two classes at a time, --label-words has {len(words)}; give --classes {ALL} for a "
            f"run of each against the others, or two of them: --classes {_quoted(list(map(str, words))[:2])}"
        )
    if words is not None and classes:
        lacking = [one for one in classes if one not in {str(word) for word in words}]
        if lacking:
            raise ValueError(f"--label-words has no word for {listed(lacking)} of --classes")
        words = {label: word for label, word in words.items() if str(label) in classes}
    return Wanted(words, classes, data.template if asking.question is None else asking.question, chat)


def _chat(asking: Asking) -> "Chat | None":
    """What stands around each text for a chat model; any option that says something of it asks for one."""
    if asking == Asking():
        return None

    from tl_skillneurons.tasks.chat import Chat

    options = {} if asking.chat_options is None else chat_options_of(asking.chat_options)
    return Chat(system=asking.system, assistant=asking.answer_start, options=options)


def _classes(given: str) -> tuple[str, ...]:
    if given.strip() == ALL:
        return ()
    names = tuple(dict.fromkeys(part.strip() for part in given.split(",") if part.strip()))
    if len(names) < 2:
        raise ValueError(f"--classes must be two or more labels with commas, or {ALL!r}, got {given!r}")
    return names


def read_task(data: Data, want: Wanted, seed: int) -> "Task":
    """The task that the data holds, of the classes that are wanted.

    Raises:
        ValueError: For a class that no example has, or more than two classes without a choice.
    """
    from tl_skillneurons.tasks.sources import load_splits
    from tl_skillneurons.tasks.task import Task

    splits = load_splits(data.data)
    if want.classes:
        splits = _only(splits, data.label, want.classes)
    task = Task.from_datasets(
        splits,
        template=want.template,
        chat=want.chat,
        label=data.label,
        label_words=want.words,
        name=Path(data.data).stem if Path(data.data).exists() else data.data,
        seed=seed,
        drop=("overlap", "empty") if data.drop_empty else "overlap",
    )
    if task.n_classes > 2 and want.classes is None:
        raise ValueError(too_many_classes(task.label_names))
    return task


def too_many_classes(labels: Iterable[Any]) -> str:
    """What to do about data of more than two classes."""
    names = list(map(str, labels))
    return (
        f"neurons are found for two classes at a time, the data has {len(names)} ({', '.join(names[:10])}); give "
        f"--classes {ALL} for a run of each against the others, or two of them: --classes {_quoted(names[:2])}"
    )


def _quoted(names: Sequence[str]) -> str:
    """Labels with commas, as a shell takes them."""
    return shlex.quote(",".join(names))


def built_in(model: "TransformerBridge", want: Wanted, n_pairs: int, seed: int) -> "Task":
    """The movie reviews that come along, as this model reads them."""
    from tl_skillneurons import minimal_pairs

    chat = None if want.chat is None else {**want.chat.record, "user": want.template}
    return minimal_pairs(
        BUILT_IN, n_pairs=n_pairs, tokenizer=model.tokenizer, seed=seed, label_words=want.words, chat=chat
    )


def require_words(model: "TransformerBridge", task: "Task") -> None:
    """Refuse a task without label words for a model that answers with words.

    Raises:
        ValueError: With label words to try.
    """
    from tl_skillneurons.models.sites import has_language_model_head

    if has_language_model_head(model) and not task.label_words:
        names = [str(name) for name in task.label_names]
        spelled = ",".join(f"{name}= {'good' if k else 'bad'}" for k, name in enumerate(names[:2]))
        if all(name.isalpha() for name in names):
            spelled = ",".join(f"{name}= {name}" for name in names)
        raise ValueError(
            f"{model.cfg.model_name} answers with words, so each label needs one: give --label-words, such as "
            f"--label-words {shlex.quote(spelled)}; a blank before a word is part of its token in most models, so "
            '" bad" and "bad" are two words; masked language models take words of one token'
        )


def parts_of(task: "Task", rest_word: str) -> dict[str, "Task"]:
    """The task itself where it has two classes, else each label against the others, by the name of its folder."""
    if task.n_classes == 2:
        return {"": task}
    word: Any = rest_word if task.label_words else " other"
    parts = task.binary_subtasks("one_vs_rest", rest_word=word)
    folders: dict[str, Task] = {}
    for number, (label, part) in enumerate(zip(task.label_names, parts, strict=True)):
        name = slug(str(label)) or f"class-{number}"
        folders[name if name not in folders else f"{name}-{number}"] = part
    return folders


def _only(splits: Any, label: str, classes: tuple[str, ...]) -> Any:
    """The data with the examples of these labels alone.

    Raises:
        ValueError: For a label that no example has.
    """
    from datasets import Dataset

    from tl_skillneurons.tasks.columns import column, column_names
    from tl_skillneurons.tasks.reading import as_splits, class_label

    chosen: dict[str, Rows] = {}
    found: dict[str, None] = {}
    for name, rows in as_splits(splits).items():
        if label not in column_names(rows):
            return splits  # refused by name where it is read
        feature = class_label(rows, label)
        spelled = [
            feature.int2str(value) if feature is not None and value is not None and value >= 0 else str(value)
            for value in column(rows, label)
        ]
        found |= dict.fromkeys(spelled)
        keep = [row for row, value in enumerate(spelled) if value in classes]
        chosen[name] = rows.select(keep) if isinstance(rows, Dataset) else [rows[row] for row in keep]
    if lacking := [one for one in classes if one not in found]:
        raise ValueError(
            f"--classes must be labels of the data, which has {listed(list(found)[:20])}, got {listed(lacking)}"
        )
    return chosen if isinstance(splits, Mapping) else next(iter(chosen.values()))
