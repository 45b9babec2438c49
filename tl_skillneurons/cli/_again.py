"""A finished run again: its findings, its model, and an answer that is kept in its folder and not computed twice."""

import hashlib
import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tl_skillneurons.cli._early import require_can_write, require_model_there, require_run
from tl_skillneurons.cli._options import Shown, Where

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

    from tl_skillneurons.find.findings import Findings
    from tl_skillneurons.neurons.neuron_set import NeuronSet
    from tl_skillneurons.report.further import Answer

SOURCE = "model_source"
"""Where ``run.json`` says how the model was loaded."""
ASKED = "asked"


def source_of(model: str, revision: str | None, dtype: str, bridge: "TransformerBridge") -> dict[str, Any]:
    """How to load a run's model again, as plain JSON values, and what tells that it is the same."""
    from tl_skillneurons.models.records import weights_fingerprint

    folder = Path(model).expanduser()
    return {
        "name": str(folder.resolve()) if folder.is_dir() else model,
        "revision": revision,
        "dtype": dtype,
        "weights": weights_fingerprint(bridge),
    }


def answered(
    folder: Path,
    shown: Shown,
    command: str,
    settings: dict[str, Any],
    ask: Callable[[Path], "Answer"],
    *,
    must_keep: bool = True,
) -> None:
    """Print the answer to a question of a run: that in its folder, or a new one, which is kept there.

    Args:
        command: The question.
        settings: What was asked for; the same settings are the same answer.
        ask: From a path without an ending, for what is kept beside the answer, to the answer.
        must_keep: Refuse, before any work, a folder that can't be written.
    """
    run = run_key(folder)
    told = json.dumps([run, settings], sort_keys=True)
    path = folder / ASKED / f"{command}-{hashlib.sha256(told.encode()).hexdigest()[:8]}"
    file: Path | None = path.with_name(f"{path.name}.json")
    assert file is not None  # for type checkers
    if file.exists():
        from tl_skillneurons.report.further import Answer

        answer = Answer.load(file)
        if answer.settings.get("run") != run:
            raise ValueError(f"{file} is of another run; delete it, and ask again")
        say(answer, shown, file)
        return
    try:
        require_can_write(path.parent, "RUN")
    except PermissionError:
        if must_keep:
            raise
        file = None
    answer = replace(ask(path), settings={**settings, "run": run})
    if file is not None:
        answer.save(file)
        from tl_skillneurons.cli._page import page_of_run
        from tl_skillneurons.find.folder import load_run

        page_of_run(load_run(folder))
    say(answer, shown, file)


def say(answer: "Answer", shown: Shown, file: Path | None = None) -> None:
    """Print an answer: its tables, or with ``--json`` everything as JSON."""
    if shown.json:
        print_json(
            {
                "command": answer.command,
                "settings": dict(answer.settings),
                "numbers": {name: list(rows) for name, rows in answer.numbers.items()},
                "notes": list(answer.notes),
                "file": None if file is None else str(file),
            }
        )
        return

    from rich.console import Console

    from tl_skillneurons.report.further import show_answer

    console = Console()
    show_answer(answer, console)
    if file is not None:
        from tl_skillneurons._terminal import shown as as_it_is

        console.print(as_it_is("Kept in ") + as_it_is(file, "bold") + as_it_is("."), soft_wrap=True)


def print_json(content: Any) -> None:
    """JSON for other programs: no NaN, other scripts as they are."""
    json.dump(content, sys.stdout, indent=2, ensure_ascii=False, allow_nan=False)
    sys.stdout.write("\n")


def run_key(folder: Path) -> str:
    """What tells one run from another."""
    settings = require_run(folder)["settings"]
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()


def model_again(findings: "Findings", where: Where) -> "TransformerBridge":
    """The run's model, loaded again and found to be the same.

    Raises:
        ValueError: When the run doesn't say where its model is, or that is another one now.
    """
    from tl_skillneurons._progress import waiting
    from tl_skillneurons.models.loading import load_model
    from tl_skillneurons.models.records import model_differences, weights_fingerprint

    source = require_run(where.run).get(SOURCE, {})
    name = where.model or source.get("name")
    if name is None:
        raise ValueError(
            f"the run in {where.run} was made in Python and doesn't say where its model "
            f"({findings.model['name']}) is; give --model"
        )
    dtype = source.get("dtype", findings.model["dtype"])
    moved = where.model is not None and where.model != source.get("name")
    revision = where.revision or (None if moved else source.get("revision"))  # another place has its own
    require_model_there(name, revision)
    with waiting(f"loading {name}"):
        bridge = load_model(name, revision=revision, device=where.device, dtype=dtype)
    known = source.get("weights")
    if known is not None and weights_fingerprint(bridge) != known:
        raise ValueError(
            f"{name} has other weights than the model of the run in {where.run}; give the same one by --model"
        )
    if known is not None:  # it may have another name now
        bridge.cfg.model_name = findings.model["name"]
    if differs := model_differences(findings.model, bridge):
        raise ValueError(
            f"{name} is another model than that of the run in {where.run} ({differs}); give the same one by --model"
        )
    return bridge


def first_of(neurons: "NeuronSet", n: int) -> "NeuronSet":
    """The best ``n`` of a set that is sorted from the best on; they remember what chose them."""
    from tl_skillneurons.neurons.neuron_set import NeuronSet

    kept = neurons.layer[:n], neurons.index[:n]
    return NeuronSet(*kept, neurons.n_layers, neurons.d_mlp, neurons.model, neurons.choice)
