"""The command line: ``tl-skillneurons find``.

Until a command runs, nothing but typer is imported, so help and mistakes take no time.
"""

import inspect
import re
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import typer

if TYPE_CHECKING:
    from rich.text import Text
    from transformer_lens.model_bridge import TransformerBridge

    from tl_skillneurons.scores.neuron_scores import NeuronScores
    from tl_skillneurons.tasks.task import Task

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)

BUILT_IN = "movie_reviews"
PICTURE = "predictivity.html"
_BUILT_IN_PAIRS = 400
_BUILT_IN_STEPS = 40  # its sentences are told apart perfectly by then
_STEPS = 100


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

    virtual_tokens: Annotated[int, typer.Option(min=1, help="Length of each soft prompt.")] = 8
    prompts: Annotated[int, typer.Option(min=1, help="How many soft prompts, each of its own seed.")] = 2
    steps: Annotated[
        int | None,
        typer.Option(
            min=1, help="Training steps of each prompt, at most (default: 100, and 40 for movie_reviews)."
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


def _version(asked: bool) -> bool:
    if asked:
        from importlib.metadata import version

        print(version("tl_skillneurons"))
        raise typer.Exit
    return asked


@app.callback()
def main(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_version, is_eager=True, help="Print the version, and leave."),
    ] = False,
) -> None:
    """Find skill neurons of language models with TransformerLens, beside their chance level and controls."""


@app.command("find")
@options_of
def find(model: Model, data: Data, tuning: Tuning, search: Search) -> None:
    """Find skill neurons: tune soft prompts, score every neuron, ablate the best beside random and matched ones.

    Without options: SmolLM2-135M-Instruct and built-in movie reviews.

    Repeated with the same settings and --out, it goes on where it stopped.
    """
    with _errors_in_one_line():
        words, amount = _label_words(data.label_words), _amount(search.top)
        if data.data == BUILT_IN and set(words) != {0, 1}:
            raise ValueError(
                f"{BUILT_IN} has the labels 0 and 1, got {sorted(map(str, words))} in --label-words"
            )

        from rich.console import Console

        from tl_skillneurons._terminal import shown
        from tl_skillneurons.find import RUN, find_skill_neurons, record
        from tl_skillneurons.models.loading import load_model
        from tl_skillneurons.prompts.tuning.schedule import TrainingOptions
        from tl_skillneurons.report import numbers, show

        console = Console()
        folder = search.out or Path(f"skill-neurons-{_slug(model.model)}-{_slug(data.data)}")
        given = None if data.data == BUILT_IN else _read_task(data, words, search.seed)
        bridge = load_model(model.model, device=model.device, dtype=model.dtype)
        task = given or _built_in(bridge, words, search.seed)
        task = task.limit(
            train=data.train_examples or None,
            select=data.select_examples or None,
            report=data.report_examples or None,
            seed=search.seed,
        )
        console.print(shown(_about(task)))
        findings = find_skill_neurons(
            bridge,
            task,
            out=folder,
            n_virtual_tokens=tuning.virtual_tokens,
            n_prompts=tuning.prompts,
            n_steps=tuning.steps or (_BUILT_IN_STEPS if data.data == BUILT_IN else _STEPS),
            training=TrainingOptions(batch_size=tuning.batch_size),
            top=amount,
            n_random=search.controls,
            seed=search.seed,
        )
        said = numbers(findings)
        record(folder, said)
        show(said, console)
        console.print(
            shown("Everything is in ") + shown(folder, "bold") + shown(f"; all numbers above are in {RUN}.")
        )
        console.print(_draw(findings.scores, folder))


def _draw(scores: "NeuronScores", folder: Path) -> "Text":
    """Leave a picture of the scores in ``folder``, and say where, or what it needs."""
    from tl_skillneurons._files import write_whole
    from tl_skillneurons._terminal import shown
    from tl_skillneurons.plots import plot_scores

    try:
        picture = plot_scores(scores).to_html(include_plotlyjs=True)
    except ImportError as error:
        return shown(f"No picture: {error}.")
    return shown("A picture of them is ") + shown(write_whole(folder / PICTURE, picture), "bold") + shown(".")


def _read_task(data: Data, label_words: dict[Any, Any], seed: int) -> "Task":
    from tl_skillneurons.tasks.sources import load_splits
    from tl_skillneurons.tasks.task import Task

    name = Path(data.data).stem if Path(data.data).exists() else data.data
    return Task.from_datasets(
        load_splits(data.data),
        template=data.template,
        label=data.label,
        label_words=label_words,
        name=name,
        seed=seed,
    )


def _built_in(model: "TransformerBridge", label_words: dict[Any, Any], seed: int) -> "Task":
    from tl_skillneurons import minimal_pairs

    return minimal_pairs(
        BUILT_IN, n_pairs=_BUILT_IN_PAIRS, tokenizer=model.tokenizer, seed=seed, label_words=label_words
    )


def _about(task: "Task") -> str:
    counts = ", ".join(f"{role} {n:,}" for role, n in task.n_examples.items())
    dropped = sum(n for role, n in task.dropped.items() if role != "baseline")
    notes = list(task.notes)
    if dropped:
        notes.append(f"{dropped} texts that stand in two roles were dropped from the earlier one.")
    return "\n".join([f"Task {task.name}: {counts} examples.", *(f"  {note}" for note in notes)])


_INTEGER = re.compile(r"0|-?[1-9][0-9]*")
"""An integer as it is spelled: 0042 is a name."""


def _label_words(given: str) -> dict[Any, Any]:
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


def _amount(given: str) -> float | int:
    try:
        return int(given) if re.fullmatch(r"\d+", given) else float(given)
    except ValueError:
        raise ValueError(f"--top must be a share such as 0.02 or a count such as 30, got {given!r}") from None


def _slug(name: str) -> str:
    return re.sub(r"[^\w.-]+", "-", Path(name).name if Path(name).exists() else name).strip("-.")


_OPTION_OF = {
    "label_words": "--label-words",
    "n_virtual_tokens": "--virtual-tokens",
    "n_prompts": "--prompts",
    "n_steps": "--steps",
    "batch_size": "--batch-size",
    "n_random": "--controls",
    "amount": "--top",
}
"""What a parameter of the Python functions is called here."""


def in_own_words(message: str) -> str:
    """The message with the command's options in the place of Python's parameters."""
    names = "|".join(_OPTION_OF)
    return re.sub(rf"(?<![\w.-])({names})\b(?!\()", lambda found: _OPTION_OF[found[1]], message)


@contextmanager
def _errors_in_one_line() -> Iterator[None]:
    """What a user can get wrong ends in one clear sentence and exit code 2; an interrupt says how to go on."""
    try:
        with warnings.catch_warnings():
            warnings.showwarning = lambda message, *_, **__: _tell("Note:", "yellow", message)
            yield
    except KeyboardInterrupt:
        print("Interrupted. The same command goes on where it stopped.", file=sys.stderr)
        sys.exit(130)
    except (ValueError, TypeError, OSError, ImportError, RuntimeError) as error:
        _tell("Error:", "red", error)
        sys.exit(2)


def _tell(what: str, colour: str, message: object) -> None:
    from rich.console import Console

    from tl_skillneurons._terminal import shown

    said = shown(what, colour) + shown(f" {in_own_words(str(message))}")
    Console(stderr=True).print(said, soft_wrap=True)


if __name__ == "__main__":
    app()
