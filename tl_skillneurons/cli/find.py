"""``tl-skillneurons find``: from labelled text to skill neurons, in a folder."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tl_skillneurons._checks import require_option, require_others
from tl_skillneurons.cli._again import SOURCE, print_json, source_of
from tl_skillneurons.cli._app import command
from tl_skillneurons.cli._classes import keep_classes, keep_union, summary, summary_table
from tl_skillneurons.cli._data import (
    Wanted,
    built_in,
    parts_of,
    read_task,
    require_words,
    too_many_classes,
    wanted,
)
from tl_skillneurons.cli._early import (
    is_finished,
    require_can_write,
    require_columns,
    require_labels,
    require_model_there,
)
from tl_skillneurons.cli._options import (
    BUILT_IN,
    DTYPES,
    IN_A_CHAT,
    Asking,
    Data,
    Model,
    Search,
    Shown,
    Tuning,
    amount_of,
    slug,
)
from tl_skillneurons.cli._page import note_if_no_page, page_of_run

if TYPE_CHECKING:
    from rich.console import Console
    from transformer_lens.model_bridge import TransformerBridge

    from tl_skillneurons.find.findings import Findings
    from tl_skillneurons.tasks.task import Task

# what five minutes of two processor cores allow with all controls; its sentences are told apart by then
_BUILT_IN_PAIRS, _BUILT_IN_TOKENS, _BUILT_IN_STEPS = 240, 4, 30
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
        "drop such examples": "leave such examples out by --drop-empty",
        **IN_A_CHAT,
    },
)
def find(model: Model, data: Data, asking: Asking, tuning: Tuning, search: Search, output: Shown) -> None:
    """Find skill neurons: tune soft prompts, score every neuron, ablate the best beside random and matched ones.

    Without options: SmolLM2-135M-Instruct and built-in movie reviews.

    Repeated with the same settings and --out, it goes on where it stopped.
    """
    want, amount = wanted(data, asking), amount_of(search.top)
    named = slug(model.model) if model.revision is None else f"{slug(model.model)}-{slug(model.revision)}"
    named = f"{named}-{slug(data.data)}" + ("" if want.chat is None else "-chat")
    folder = search.out or Path(f"skill-neurons-{named}")
    _look_before(model, data, want, folder)

    from rich.console import Console

    from tl_skillneurons._progress import waiting

    console = Console(quiet=output.json)
    with waiting(f"loading {model.model}"):  # to import what runs it takes seconds as well
        from tl_skillneurons._terminal import shown
        from tl_skillneurons._widths import even
        from tl_skillneurons.models.chat_templates import ChatFrame
        from tl_skillneurons.models.loading import load_model
        from tl_skillneurons.models.sites import neuron_shape

        given = None if data.data == BUILT_IN else read_task(data, want, search.seed)
        bridge = load_model(model.model, revision=model.revision, device=model.device, dtype=model.dtype)
        task = given or built_in(bridge, want, _BUILT_IN_PAIRS, search.seed)
    require_words(bridge, task)
    frame = None if want.chat is None else ChatFrame(bridge, want.chat).told
    require_others(amount, even(neuron_shape(bridge)[1], "find"))
    task = task.limit(
        train=data.train_examples or None,
        select=data.select_examples or None,
        report=data.report_examples or None,
        seed=search.seed,
    )
    console.print(shown(_about(task, frame)))
    parts = parts_of(task, data.rest_word)
    source = source_of(model.model, model.revision, model.dtype, bridge)
    if len(parts) > 1:
        keep_classes(folder, parts)
    found = {}
    for name, part in parts.items():
        if name:
            console.print(shown(f"\n{part.name}", "bold"))
        found[name] = _run(bridge, part, folder / name, tuning, search, source, console)
    if len(parts) > 1:
        rows = summary(found)
        console.print(summary_table(task.name, rows))
        told: dict[str, Any] = {"run": str(folder), "classes": rows}
        told["runs"] = {name: said for name, (_, said) in found.items()}
        if (union := keep_union(folder, (findings for findings, _ in found.values()))) is not None:
            file, n = union
            told["neurons"] = {"file": str(file), "n": n}
            console.print(shown(f"The skill neurons of all classes together, {n:,}, are in ") + shown(file))
    else:
        told = {"run": str(folder), **found[""][1]}
    if output.json:
        print_json(told)


def _run(
    bridge: "TransformerBridge",
    task: "Task",
    folder: Path,
    tuning: Tuning,
    search: Search,
    source: dict[str, Any],
    console: "Console",
) -> tuple["Findings", dict[str, Any]]:
    """One run in its folder, printed."""
    from tl_skillneurons._terminal import shown
    from tl_skillneurons.find.evidence import Evidence
    from tl_skillneurons.find.folder import RUN, record
    from tl_skillneurons.find.phases import find_skill_neurons
    from tl_skillneurons.prompts.tuning.schedule import TrainingOptions
    from tl_skillneurons.report.terminal import numbers, show

    is_built_in = task.name == BUILT_IN
    findings = find_skill_neurons(
        bridge,
        task,
        out=folder,
        n_virtual_tokens=tuning.virtual_tokens or (_BUILT_IN_TOKENS if is_built_in else _TOKENS),
        n_prompts=tuning.prompts,
        n_steps=tuning.steps or (_BUILT_IN_STEPS if is_built_in else _STEPS),
        training=TrainingOptions(batch_size=tuning.batch_size),
        top=amount_of(search.top),
        evidence=Evidence(n_random=search.controls),
        seed=search.seed,
    )
    said = numbers(findings)
    if os.access(folder, os.W_OK):  # a finished run may lie where nothing can be written
        record(folder, numbers=said, **{SOURCE: source})
    show(findings, console, layers=search.layers)
    console.print(
        shown("Everything is in ") + shown(folder, "bold") + shown(f"; all numbers above are in {RUN}.")
    )
    if (page := page_of_run(findings)) is not None:
        console.print(page, soft_wrap=True)
    return findings, said


def _look_before(model: Model, data: Data, want: Wanted, folder: Path) -> None:
    """What can be seen to be wrong before anything is loaded."""
    require_model_there(model.model, model.revision)
    require_option(model.dtype, "--dtype", DTYPES)
    if data.data != BUILT_IN:
        option = "--template" if want.chat is None else "--question"
        seen = require_columns(data.data, want.template, data.label, option=option)
        require_labels(seen, want.words, want.classes)
        if seen is not None and want.words is None and want.classes is None and len(seen) > 2:
            raise ValueError(too_many_classes(seen))
    if not is_finished(folder):
        require_can_write(folder)
        note_if_no_page()


def _about(task: "Task", frame: str | None) -> str:
    counts = ", ".join(f"{role} {n:,}" for role, n in task.n_examples.items())
    dropped = sum(n for role, n in task.dropped.items() if role != "baseline")
    notes = list(task.notes)
    if dropped:
        notes.append(f"{dropped} texts that stand in two roles were dropped from the earlier one.")
    if frame is not None:
        notes.append(f"in a chat, {task.template!r} as {frame!r}; the soft prompt stands behind it.")
    return "\n".join([f"Task {task.name}: {counts} examples.", *(f"  {note}" for note in notes)])
