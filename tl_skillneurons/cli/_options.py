"""Options that several commands share, grouped as the help shows them, and how they are spelled."""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from tl_skillneurons._checks import listed, require_option

BUILT_IN = "movie_reviews"
DTYPES = ("float32", "bfloat16", "float16", "float64")


@dataclass(frozen=True)
class Model:
    """Model"""

    model: Annotated[
        str, typer.Option(help="Hub name, local folder, or a packaged model: smollm2, minilm.")
    ] = "smollm2"
    revision: Annotated[
        str | None,
        typer.Option(help="Of a hub model: a branch, tag or commit, such as a training checkpoint."),
    ] = None
    device: Annotated[
        str | None, typer.Option(help="cpu, cuda or mps (default: cuda where there is one, else cpu).")
    ] = None
    dtype: Annotated[str, typer.Option(help="float32, bfloat16 or float16.")] = "float32"


@dataclass(frozen=True)
class Data:
    """Data"""

    data: Annotated[
        str,
        typer.Option(
            help="Hub name, or a local JSONL, CSV or Parquet file, or a folder with train, validation and test files; "
            "movie_reviews is built in."
        ),
    ] = BUILT_IN
    template: Annotated[
        str | None,
        typer.Option(
            help="The text of an example, with columns in braces: '{Tweet text}'; {year!s} takes numbers too "
            "(default: {text}, or the only column that holds text)."
        ),
    ] = None
    label: Annotated[str, typer.Option(help="The column that holds the label.")] = "label"
    label_words: Annotated[
        str | None,
        typer.Option(
            help="The word that stands for each label, as 'bad= bad,good= good'; a blank before a word is part of its "
            "token in most models. Not needed for encoders that answer without words (minilm)."
        ),
    ] = None
    classes: Annotated[
        str | None,
        typer.Option(
            help="Only these labels, with commas, or all of them: two stand against each other; of more, each stands "
            "against the others in a run of its own."
        ),
    ] = None
    rest_word: Annotated[
        str, typer.Option(help="With more than two classes: the word that stands for the others.")
    ] = " other"
    drop_empty: Annotated[
        bool, typer.Option("--drop-empty", help="Leave out examples without a text or a label.")
    ] = False
    train_examples: Annotated[
        int,
        typer.Option(
            min=0, help="At most so many examples of role train (0: all); they are the baseline as well."
        ),
    ] = 1500
    select_examples: Annotated[int, typer.Option(min=0, help="At most so many of role select (0: all).")] = (
        1000
    )
    report_examples: Annotated[int, typer.Option(min=0, help="At most so many of role report (0: all).")] = (
        1000
    )


@dataclass(frozen=True)
class Asking:
    """Chat models"""

    chat: Annotated[
        bool,
        typer.Option(
            "--chat",
            help="Ask a chat model: each text is what the user writes, in the tokenizer's own chat template, and soft "
            "prompts stand where the answer would begin.",
        ),
    ] = False
    question: Annotated[
        str | None,
        typer.Option(
            help="What the user writes, with columns in braces, in place of --template: 'Is it positive? {text}'. This "
            "and the following turn --chat on."
        ),
    ] = None
    system: Annotated[
        str | None,
        typer.Option(help="The system message (default: what the chat template puts in by itself)."),
    ] = None
    answer_start: Annotated[
        str | None,
        typer.Option(help="How the assistant's answer begins, before the soft prompt: 'The review is'."),
    ] = None
    chat_options: Annotated[
        str | None,
        typer.Option(help="What the chat template itself reads, with commas: 'enable_thinking=false'."),
    ] = None


@dataclass(frozen=True)
class Tuning:
    """Soft prompts"""

    virtual_tokens: Annotated[
        int | None,
        typer.Option(min=1, help="Length of each soft prompt (default: 8, and 4 for movie_reviews)."),
    ] = None
    prompts: Annotated[int, typer.Option(min=1, help="How many soft prompts, each of its own seed.")] = 2
    steps: Annotated[
        int | None,
        typer.Option(
            min=1, help="Training steps of each prompt, at most (default: 100, and 30 for movie_reviews)."
        ),
    ] = None
    batch_size: Annotated[int, typer.Option(min=1, help="Examples per training step.")] = 16


@dataclass(frozen=True)
class Search:
    """Skill neurons and their controls"""

    top: Annotated[
        str, typer.Option(help="Skill neurons per layer: a share such as 0.02, or a count such as 30.")
    ] = "0.02"
    controls: Annotated[
        int, typer.Option(min=19, help="Sets of random neurons, and as many matched ones, beside the effect.")
    ] = 20
    layers: Annotated[bool, typer.Option("--layers", help="Print the best neurons of each layer too.")] = (
        False
    )
    seed: Annotated[int, typer.Option(min=0, help="Everything random follows from it.")] = 0
    out: Annotated[
        Path | None, typer.Option(help="The run's folder (default: skill-neurons-MODEL-DATA, here).")
    ] = None


IN_A_CHAT = {
    "the message of 'system'": "--system",
    "the message of 'assistant'": "--answer-start",
    "the user's message (template=, or chat['user'])": "--question",
    "make the task without chat=": "leave --chat and what goes with it out",
    "chat={'options': {'enable_thinking': False}}": "--chat-options enable_thinking=false",
    "chat={'assistant': '\\n</think>\\n\\n'}": "--answer-start $'\\n</think>\\n\\n'",
    "options are what": "--chat-options are what",
}
"""What messages on chats say, here."""

_INTEGER = re.compile(r"0|-?[1-9][0-9]*")
"""An integer as it is spelled: 0042 is a name."""


def label_words_of(given: str) -> dict[Any, Any]:
    words: dict[str, str | int] = {}
    for part in given.split(","):
        key, equals, word = part.partition("=")
        if not equals or not key.strip() or not word.strip():
            raise ValueError(f"--label-words must be 'label=word,label=word', got {part!r} in {given!r}")
        if key.strip() in words:
            raise ValueError(
                f"--label-words must name each label once, got {key.strip()!r} twice in {given!r}"
            )
        words[key.strip()] = int(word) if _INTEGER.fullmatch(word) and not word.startswith("-") else word
    if all(map(_INTEGER.fullmatch, words)):
        return {int(key): word for key, word in words.items()}
    return dict(words)


def chat_options_of(given: str) -> dict[str, Any]:
    """What a chat template reads: true, false, null and numbers as JSON has them, all else as text.

    Example:
        >>> chat_options_of("enable_thinking=false,date=May 1")
        {'enable_thinking': False, 'date': 'May 1'}
    """
    found: dict[str, Any] = {}
    for part in given.split(","):
        name, equals, value = (piece.strip() for piece in part.partition("="))
        if not equals or not name or name in found:
            raise ValueError(
                f"--chat-options must be 'name=value,name=value', each name once, got {part!r} in {given!r}"
            )
        try:
            found[name] = json.loads(value)
        except ValueError:
            found[name] = value
    return found


def amount_of(given: str, option: str = "--top") -> float | int:
    """A share such as 0.02 or 2%, or a count such as 30.

    Raises:
        ValueError: For what is neither, a share that is not in (0, 1], or a count below 1.
    """
    try:
        if re.fullmatch(r"\d+", given):
            amount: float | int = int(given)
        else:
            amount = float(given[:-1]) / 100 if given.endswith("%") else float(given)
    except ValueError:
        amount = 0
    if amount <= 0 or (isinstance(amount, float) and not amount <= 1):
        raise ValueError(
            f"{option} must be a share such as 0.02, in (0, 1], or a count such as 30, got {given!r}"
        )
    return amount


def slug(name: str) -> str:
    """A name, or what a file or folder is called, as part of a folder's name.

    Example:
        >>> slug("org/model [x]")
        'org-model-x'
    """
    path = Path(name).expanduser()
    called = path.stem if path.is_file() else path.name if path.exists() else name
    return re.sub(r"[^\w.-]+", "-", called).strip("-.")


@dataclass(frozen=True)
class ARun:
    """The run"""

    run: Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a finished run of find.")]


@dataclass(frozen=True)
class Where:
    """The run"""

    run: Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a finished run of find.")]
    model: Annotated[
        str | None,
        typer.Option(help="Where the run's model is, if it isn't where it was: a hub name or a folder."),
    ] = None
    revision: Annotated[
        str | None,
        typer.Option(help="Of a hub model: a branch, tag or commit, if it isn't the run's."),
    ] = None
    device: Annotated[
        str | None, typer.Option(help="cpu, cuda or mps (default: cuda where there is one, else cpu).")
    ] = None


@dataclass(frozen=True)
class Shown:
    """What is printed"""

    json: Annotated[bool, typer.Option("--json", help="Print JSON on stdout, and nothing else there.")] = (
        False
    )


def several(given: str, option: str, known: Sequence[str]) -> list[str]:
    """The names in a list with commas, each once.

    Raises:
        ValueError: For a name that is not known, or none at all.
    """
    names = list(dict.fromkeys(name.strip() for name in given.split(",") if name.strip()))
    for name in names:
        require_option(name, option, known)
    if not names:
        raise ValueError(f"{option} must name at least one of {listed(known)}, got {given!r}")
    return names


def amounts_of(given: str, option: str) -> dict[str, float | int]:
    """Several shares or counts by how they are spelled: ``0.005,0.02`` or ``10,30``; a percent sign is read.

    Raises:
        ValueError: For what is neither, or nothing at all.
    """
    spelled = list(dict.fromkeys(part.strip() for part in given.split(",") if part.strip()))
    if not spelled:
        raise ValueError(f"{option} must name at least one share or count, got {given!r}")
    return {one: amount_of(one, option) for one in spelled}
