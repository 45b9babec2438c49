"""``tl-skillneurons find``: from labelled text to skill neurons, in a folder."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from tl_skillneurons.cli._again import SOURCE, print_json, source_of
from tl_skillneurons.cli._app import command
from tl_skillneurons.cli._early import is_finished, require_can_write, require_columns, require_model_there
from tl_skillneurons.cli._options import (
    BUILT_IN,
    Data,
    Model,
    Search,
    Shown,
    Tuning,
    amount_of,
    label_words_of,
    slug,
)
from tl_skillneurons.cli._page import note_if_no_page, page_of_run

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

    from tl_skillneurons.tasks.task import Task

# what five minutes of two processor cores allow with all controls; its sentences are told apart by then
_BUILT_IN_PAIRS, _BUILT_IN_TOKENS, _BUILT_IN_STEPS = 300, 4, 30
_TOKENS, _STEPS = 8, 100


@command(
    "find",
    {
        "n_virtual_tokens": "--virtual-tokens",
        "n_prompts": "--prompts",
        "n_steps": "--steps",
        "n_random": "--controls",
        "amount": "--top",
        "the limit of train": "--train-examples",
        "the limit of select": "--select-examples",
        "the limit of report": "--report-examples",
        "name_or_path": "--model",
    },
)
def find(model: Model, data: Data, tuning: Tuning, search: Search, output: Shown) -> None:
    """Find skill neurons: tune soft prompts, score every neuron, ablate the best beside random and matched ones.

    Without options: SmolLM2-135M-Instruct and built-in movie reviews.

    Repeated with the same settings and --out, it goes on where it stopped.
    """
    words, amount = label_words_of(data.label_words), amount_of(search.top)
    if data.data == BUILT_IN and set(words) != {0, 1}:
        raise ValueError(f"{BUILT_IN} has the labels 0 and 1, got {sorted(map(str, words))} in --label-words")
    folder = search.out or Path(f"skill-neurons-{slug(model.model)}-{slug(data.data)}")
    _look_before(model, data, words, folder)

    from rich.console import Console

    from tl_skillneurons._terminal import shown
    from tl_skillneurons.find.evidence import Evidence
    from tl_skillneurons.find.folder import RUN, record
    from tl_skillneurons.find.phases import find_skill_neurons
    from tl_skillneurons.models.loading import load_model
    from tl_skillneurons.prompts.tuning.schedule import TrainingOptions
    from tl_skillneurons.report.terminal import numbers, show

    console = Console(quiet=output.json)
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
        n_virtual_tokens=tuning.virtual_tokens or (_BUILT_IN_TOKENS if data.data == BUILT_IN else _TOKENS),
        n_prompts=tuning.prompts,
        n_steps=tuning.steps or (_BUILT_IN_STEPS if data.data == BUILT_IN else _STEPS),
        training=TrainingOptions(batch_size=tuning.batch_size),
        top=amount,
        evidence=Evidence(n_random=search.controls),
        seed=search.seed,
    )
    said = numbers(findings)
    record(folder, numbers=said, **{SOURCE: source_of(model.model, None, model.dtype, bridge)})
    show(findings, console, layers=search.layers)
    console.print(
        shown("Everything is in ") + shown(folder, "bold") + shown(f"; all numbers above are in {RUN}.")
    )
    if (said_of_page := page_of_run(findings)) is not None:
        console.print(said_of_page, soft_wrap=True)
    if output.json:
        print_json({"run": str(folder), **said})


def _look_before(model: Model, data: Data, words: dict[Any, Any], folder: Path) -> None:
    """What can be seen to be wrong before anything is loaded."""
    require_model_there(model.model)
    if data.data != BUILT_IN:
        require_columns(data.data, data.template, data.label, words)
    if not is_finished(folder):
        require_can_write(folder)
        note_if_no_page()


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
