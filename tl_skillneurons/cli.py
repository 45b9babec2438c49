"""The command line: ``tl-skillneurons find``."""

import re
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape

from tl_skillneurons._files import package_version, write_whole
from tl_skillneurons.find import RUN, find_skill_neurons, record
from tl_skillneurons.models.loading import load_model
from tl_skillneurons.plots import plot_scores
from tl_skillneurons.report import numbers, show
from tl_skillneurons.scores.neuron_scores import NeuronScores
from tl_skillneurons.tasks.pairs import minimal_pairs
from tl_skillneurons.tasks.sources import load_splits
from tl_skillneurons.tasks.task import Task

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)

BUILT_IN = "movie_reviews"
PICTURE = "predictivity.html"
_BUILT_IN_PAIRS = 400
_BUILT_IN_STEPS = 40  # its sentences are told apart perfectly by then
_STEPS = 100


@app.callback()
def main() -> None:
    """Find skill neurons of language models with TransformerLens, beside their chance level and controls."""


@app.command()
def version() -> None:
    """Print the installed version."""
    print(package_version())


@app.command()
def find(
    model: Annotated[
        str, typer.Option(help="Hub name, local folder, or a packaged model: smollm2, minilm.")
    ] = "smollm2",
    data: Annotated[
        str,
        typer.Option(
            help="Hub name, or a local JSONL, CSV or Parquet file, or a folder with train, validation and test files; "
            "movie_reviews is built in."
        ),
    ] = BUILT_IN,
    template: Annotated[str, typer.Option(help="The text of an example, with columns in braces.")] = "{text}",
    label: Annotated[str, typer.Option(help="The column that holds the label.")] = "label",
    label_words: Annotated[
        str,
        typer.Option(
            help="The word that stands for each label, as 'label=word,label=word'; spaces before words count."
        ),
    ] = "0= negative,1= positive",
    virtual_tokens: Annotated[int, typer.Option(min=1, help="Length of each soft prompt.")] = 8,
    prompts: Annotated[int, typer.Option(min=1, help="How many soft prompts, each of its own seed.")] = 2,
    steps: Annotated[
        int | None,
        typer.Option(
            min=1, help="Training steps of each prompt, at most (default: 100, and 40 for movie_reviews)."
        ),
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Examples per training step.")] = 16,
    top: Annotated[
        str, typer.Option(help="Skill neurons per layer: a share such as 0.02, or a count such as 30.")
    ] = "0.02",
    controls: Annotated[int, typer.Option(min=5, help="Random controls of the ablation.")] = 5,
    train_examples: Annotated[
        int,
        typer.Option(
            min=0, help="At most so many examples of role train (0: all); they are the baseline as well."
        ),
    ] = 1500,
    select_examples: Annotated[
        int, typer.Option(min=0, help="At most so many of role select (0: all).")
    ] = 1000,
    report_examples: Annotated[
        int, typer.Option(min=0, help="At most so many of role report (0: all).")
    ] = 1000,
    seed: Annotated[int, typer.Option(min=0, help="Everything random follows from it.")] = 0,
    device: Annotated[
        str | None, typer.Option(help="cpu, cuda or mps (default: cuda where there is one, else cpu).")
    ] = None,
    dtype: Annotated[str, typer.Option(help="float32, bfloat16 or float16.")] = "float32",
    out: Annotated[
        Path | None, typer.Option(help="The run's folder (default: skill-neurons-MODEL-DATA, here).")
    ] = None,
) -> None:
    """Find skill neurons: tune soft prompts, score every neuron, ablate the best beside random controls.

    Without options: SmolLM2-135M-Instruct and built-in movie reviews. Repeated with the same settings and
    --out, it goes on where it stopped.
    """
    console = Console()
    with _errors_in_one_line():
        folder = out or Path(f"skill-neurons-{_slug(model)}-{_slug(data)}")
        words = _label_words(label_words)
        amount = _amount(top)
        given = None if data == BUILT_IN else _read_task(data, template, label, words, seed)
        bridge = load_model(model, device=device, dtype=dtype)
        task = given or _built_in(bridge, words, seed)
        task = task.limit(
            train=train_examples or None,
            select=select_examples or None,
            report=report_examples or None,
            seed=seed,
        )
        console.print(_about(task), highlight=False)
        findings = find_skill_neurons(
            bridge,
            task,
            out=folder,
            n_virtual_tokens=virtual_tokens,
            n_prompts=prompts,
            n_steps=steps or (_BUILT_IN_STEPS if data == BUILT_IN else _STEPS),
            batch_size=batch_size,
            top=amount,
            n_random=controls,
            seed=seed,
        )
        said = numbers(findings)
        record(folder, said)
        show(said, console)
        console.print(f"Everything is in [bold]{folder}[/bold]; all numbers above are in {RUN}.")
        console.print(_draw(findings.scores, folder))


def _draw(scores: NeuronScores, folder: Path) -> str:
    """Leave a picture of the scores in ``folder``, and say where, or what it needs."""
    try:
        picture = plot_scores(scores).to_html(include_plotlyjs=True)
    except ImportError as error:
        return f"No picture: {error}."
    return f"A picture of them is [bold]{write_whole(folder / PICTURE, picture)}[/bold]."


def _read_task(data: str, template: str, label: str, label_words: dict[Any, Any], seed: int) -> Task:
    splits = load_splits(data)
    name = Path(data).stem if Path(data).exists() else data
    return Task.from_datasets(
        splits, template=template, label=label, label_words=label_words, name=name, seed=seed
    )


def _built_in(model: Any, label_words: dict[Any, Any], seed: int) -> Task:
    if set(label_words) != {0, 1}:
        raise ValueError(
            f"{BUILT_IN} has the labels 0 and 1, got {sorted(map(str, label_words))} in --label-words"
        )
    return minimal_pairs(
        BUILT_IN, n_pairs=_BUILT_IN_PAIRS, tokenizer=model.tokenizer, seed=seed, label_words=label_words
    )


def _about(task: Task) -> str:
    counts = ", ".join(f"{role} {n:,}" for role, n in task.n_examples.items())
    dropped = sum(n for role, n in task.dropped.items() if role != "baseline")
    notes = list(task.notes)
    if dropped:
        notes.append(f"{dropped} texts that stand in two roles were dropped from the earlier one.")
    return "\n".join([f"Task {task.name}: {counts} examples.", *(f"  {note}" for note in notes)])


def _label_words(given: str) -> dict[Any, Any]:
    words: dict[Any, Any] = {}
    for part in given.split(","):
        key, equals, word = part.partition("=")
        if not equals or not key.strip() or not word.strip():
            raise ValueError(f"--label-words must be 'label=word,label=word', got {part!r} in {given!r}")
        key = key.strip()
        words[int(key) if re.fullmatch(r"-?\d+", key) else key] = (
            int(word) if re.fullmatch(r"\d+", word) else word
        )
    return words


def _amount(given: str) -> float | int:
    try:
        return int(given) if re.fullmatch(r"\d+", given) else float(given)
    except ValueError:
        raise ValueError(f"--top must be a share such as 0.02 or a count such as 30, got {given!r}") from None


def _slug(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "-", Path(name).name if Path(name).exists() else name).strip("-.")


@contextmanager
def _errors_in_one_line() -> Iterator[None]:
    """What a user can get wrong ends in one clear sentence and exit code 2; an interrupt says how to go on."""
    stderr = Console(stderr=True)
    try:
        with warnings.catch_warnings():
            warnings.showwarning = lambda message, *_, **__: stderr.print(
                f"[yellow]Note:[/yellow] {escape(str(message))}"
            )
            yield
    except KeyboardInterrupt:
        stderr.print("Interrupted. The same command goes on where it stopped.")
        sys.exit(130)
    except (ValueError, TypeError, OSError, ImportError, RuntimeError) as error:
        stderr.print(f"[red]Error:[/red] {escape(str(error))}", highlight=False, soft_wrap=True)
        sys.exit(2)


if __name__ == "__main__":
    app()
