"""Options that several commands share, grouped as the help shows them, and how they are spelled."""

import inspect
import re
from collections.abc import Callable
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer

BUILT_IN = "movie_reviews"


@dataclass(frozen=True)
class Model:
    """Model"""

    model: Annotated[
        str, typer.Option(help="Hub name, local folder, or a packaged model: smollm2, minilm.")
    ] = "smollm2"
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
        str, typer.Option(help="The text of an example, with columns in braces; {year!s} takes numbers too.")
    ] = "{text}"
    label: Annotated[str, typer.Option(help="The column that holds the label.")] = "label"
    label_words: Annotated[
        str,
        typer.Option(
            help="The word that stands for each label, as 'label=word,label=word'; spaces before words count."
        ),
    ] = "0= negative,1= positive"
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


def options_of(command: Callable[..., None]) -> Callable[..., None]:
    """The command as typer reads it: every field of the dataclasses it takes is an option.

    The dataclass's docstring heads its options in the help.
    """
    groups = get_type_hints(command)
    groups.pop("return", None)
    owner, parameters = {}, []
    for group, kind in groups.items():
        types = get_type_hints(kind, include_extras=True)
        for field in fields(kind):
            annotated = types[field.name]
            annotated.__metadata__[0].rich_help_panel = kind.__doc__
            default = inspect.Parameter.empty if field.default is MISSING else field.default
            parameters.append(
                inspect.Parameter(
                    field.name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotated
                )
            )
            owner[field.name] = group

    def with_groups(**given: Any) -> None:
        values: dict[str, dict[str, Any]] = {group: {} for group in groups}
        for name, value in given.items():
            values[owner[name]][name] = value
        command(**{group: kind(**values[group]) for group, kind in groups.items()})

    with_groups.__doc__ = command.__doc__
    with_groups.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]  # read by inspect
    with_groups.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return with_groups


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


def amount_of(given: str) -> float | int:
    try:
        return int(given) if re.fullmatch(r"\d+", given) else float(given)
    except ValueError:
        raise ValueError(f"--top must be a share such as 0.02 or a count such as 30, got {given!r}") from None


def slug(name: str) -> str:
    return re.sub(r"[^\w.-]+", "-", Path(name).name if Path(name).exists() else name).strip("-.")
