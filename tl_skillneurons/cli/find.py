"""``tl-skillneurons find``: from labelled text to skill neurons, in a folder."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from tl_skillneurons.cli._app import app
from tl_skillneurons.cli._errors import errors_in_one_line
from tl_skillneurons.cli._options import (
    BUILT_IN,
    Data,
    Model,
    Search,
    Tuning,
    amount_of,
    label_words_of,
    options_of,
    slug,
)

if TYPE_CHECKING:
    from rich.text import Text
    from transformer_lens.model_bridge import TransformerBridge

    from tl_skillneurons.scores.neuron_scores import NeuronScores
    from tl_skillneurons.tasks.task import Task

PICTURE = "predictivity.html"
# what five minutes of two processor cores allow with all controls; its sentences are told apart by then
_BUILT_IN_PAIRS, _BUILT_IN_TOKENS, _BUILT_IN_STEPS = 300, 4, 30
_TOKENS, _STEPS = 8, 100


@app.command("find")
@options_of
def find(model: Model, data: Data, tuning: Tuning, search: Search) -> None:
    """Find skill neurons: tune soft prompts, score every neuron, ablate the best beside random and matched ones.

    Without options: SmolLM2-135M-Instruct and built-in movie reviews.

    Repeated with the same settings and --out, it goes on where it stopped.
    """
    with errors_in_one_line():
        words, amount = label_words_of(data.label_words), amount_of(search.top)
        if data.data == BUILT_IN and set(words) != {0, 1}:
            raise ValueError(
                f"{BUILT_IN} has the labels 0 and 1, got {sorted(map(str, words))} in --label-words"
            )

        from rich.console import Console

        from tl_skillneurons._terminal import shown
        from tl_skillneurons.find.evidence import Evidence
        from tl_skillneurons.find.folder import RUN, record
        from tl_skillneurons.find.phases import find_skill_neurons
        from tl_skillneurons.models.loading import load_model
        from tl_skillneurons.prompts.tuning.schedule import TrainingOptions
        from tl_skillneurons.report.terminal import numbers, show

        console = Console()
        folder = search.out or Path(f"skill-neurons-{slug(model.model)}-{slug(data.data)}")
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
            n_virtual_tokens=tuning.virtual_tokens
            or (_BUILT_IN_TOKENS if data.data == BUILT_IN else _TOKENS),
            n_prompts=tuning.prompts,
            n_steps=tuning.steps or (_BUILT_IN_STEPS if data.data == BUILT_IN else _STEPS),
            training=TrainingOptions(batch_size=tuning.batch_size),
            top=amount,
            evidence=Evidence(n_random=search.controls),
            seed=search.seed,
        )
        record(folder, numbers=numbers(findings))
        show(findings, console, layers=search.layers)
        console.print(
            shown("Everything is in ") + shown(folder, "bold") + shown(f"; all numbers above are in {RUN}.")
        )
        if not findings.stopped:
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
