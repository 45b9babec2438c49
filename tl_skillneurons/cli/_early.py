"""What can be seen to be wrong before anything heavy is imported: a run's folder, an output folder, columns of data."""

import csv
import json
import os
import shlex
import string
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from tl_skillneurons._checks import listed, near

RUN, CLASSES = "run.json", "classes.json"
"""What tells a run's folder, and one that holds a run for each class."""
_TASK, _PRICE = "task.json", "price.safetensors"
_ENCODERS = ("ForMaskedLM", "EncoderModel")
"""How the architectures end that a run may have and that, by themselves, write nothing."""

PACKAGED = ("smollm2", "minilm")
"""The models that are no hub's, named here again since their own module takes a second to import."""

_MOST_BYTES = 50_000_000  # of a file that is looked through before work
_MOST_CLASSES = 20
_NO_TEXT = (
    "",
    "true",
    "false",
    "na",
    "n/a",
    "#n/a",
    "null",
    "none",
    "<na>",
    "-nan",
    "#na",
    "1.#qnan",
    "1.#ind",
)
"""What readers of CSV files take for a missing cell or a truth value."""
_ENDINGS = (".csv", ".jsonl", ".json", ".parquet")
_SPLITS = ("train", "validation", "valid", "dev", "test")


def require_run(folder: Path) -> dict[str, Any]:
    """What ``run.json`` of a finished run says.

    Raises:
        FileNotFoundError: When there is no run.
        ValueError: When it is not finished, not readable, or one of several.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no folder {folder}; give the folder of a run of find")
    if (folder / CLASSES).is_file() and not (folder / RUN).is_file():
        own = [str(folder / one["folder"]) for one in _json(folder / CLASSES)["runs"]]
        raise ValueError(f"{folder} holds a run for each class; give one of {', '.join(own)}")
    if not (folder / RUN).is_file():
        raise FileNotFoundError(f"there is no run in {folder} (no {RUN}); give the folder of a run of find")
    said = _json(folder / RUN)
    if not said.get("finished"):
        raise ValueError(
            f"the run in {folder} is not finished; the command that began it, repeated, goes on where it stopped"
        )
    return said


def run_task(folder: Path) -> dict[str, Any]:
    """What a run's folder says of its task: ``label_names``, ``label_words`` and ``template`` among it.

    Raises:
        FileNotFoundError: When it says nothing.
        ValueError: When that can't be read.
    """
    path = folder / _TASK
    if not path.is_file():
        raise FileNotFoundError(f"there is no {_TASK} in {folder}; take it from a backup")
    said = _json(path)
    if not all(isinstance(said.get(name), list) for name in ("label_names", "label_words")):
        raise ValueError(f"{path} is not the task of a run; it is corrupt or another kind of file")
    return said


def require_writes(folder: Path) -> None:
    """Refuse a run whose model can't write, or whose task can't read what is written, where its records tell.

    Raises:
        ValueError: Then.
    """
    settings = require_run(folder)["settings"]
    named, kind = settings["model"]["name"], settings["model"]["architecture"]
    priced = (folder / _PRICE).exists()  # of every model that predicts the next token
    if kind.endswith(_ENCODERS) and not priced:
        raise ValueError(
            f"the model of the run in {folder}, {named} ({kind}), is an encoder and can't write one token after "
            "another; steer a run of a causal language model, or see by effects what its answers lose"
        )
    template = settings["task"]["template"]
    if "{" in template and len(set(template_columns(template))) > 1:
        raise ValueError(
            f"what is written can't stand in the template {template!r} of the run in {folder}, which has several "
            "columns; steer a run of single texts"
        )


def is_finished(folder: Path) -> bool:
    """Whether a finished run is in ``folder``, so that nothing has to be written there."""
    return (folder / RUN).is_file() and bool(_json(folder / RUN).get("finished"))


def _json(path: Path) -> dict[str, Any]:
    try:
        said = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not JSON ({error}); it is corrupt or another kind of file") from error
    if not isinstance(said, dict):
        raise ValueError(f"{path} is not the record of a run; it is corrupt or another kind of file")
    return said


def require_can_write(folder: Path, what: str = "--out") -> None:
    """See that ``folder`` can be made or written; nothing is.

    Raises:
        OSError: When it can't be.
    """
    there = folder.absolute()
    while not there.exists():
        there = there.parent
    if not there.is_dir():
        raise NotADirectoryError(f"{what} must be a folder, and {there} is a file; choose another folder")
    if not os.access(there, os.W_OK | os.X_OK):
        raise PermissionError(
            f"can't write {folder}: no permission in {there}; choose a folder that can be written"
        )


def require_model_there(model: str | None, revision: str | None = None) -> None:
    """Refuse a local folder that isn't there, by its looks, and a revision of one that is.

    Raises:
        FileNotFoundError: For the one.
        ValueError: For the other.
    """
    if model is None:
        return
    if revision is not None and (model in PACKAGED or Path(model).expanduser().exists()):
        raise ValueError(
            f"--revision chooses among those of a hub model, and {model} is here already; leave it out"
        )
    looks_local = model.startswith((".", "~", os.sep)) or model.count("/") > 1
    if looks_local and not Path(model).expanduser().exists():
        raise FileNotFoundError(
            f"there is no folder {model} for --model; give a folder with config.json, weights and tokenizer, a "
            "name on the hub, or smollm2 or minilm"
        )


def require_columns(
    data: str, template: str | None, label: str, *, option: str = "--template"
) -> list[str] | None:
    """Refuse data that lacks a column, as far as a quick look at local files tells.

    Args:
        option: What gives the template.

    Returns:
        The labels that were seen, as they are spelled; ``None`` where they weren't looked at.

    Raises:
        FileNotFoundError: When a local file isn't there.
        ValueError: For a column that isn't there, with what there is; for a template that can't be read.
    """
    fields = None if template is None else template_columns(template, option)
    path = Path(data).expanduser()
    if not path.exists():
        if path.suffix.lower() in _ENDINGS or data.startswith((".", "~", os.sep)):
            raise FileNotFoundError(
                f"there is no file or folder {data} for --data; give a {', '.join(_ENDINGS)} file, a folder with such "
                "files called train, validation and test, or a dataset of the hub"
            )
        return None
    seen: dict[str, None] = {}
    for file in _files(path):
        columns = look_at(file)
        if columns is None:
            continue
        for name in fields or ():
            if name not in columns:
                raise ValueError(
                    f"{option} names the column {name!r}, which is not in {file}; it has {listed(columns)}"
                    f"{_texts(columns, label, option)}"
                )
        if label not in columns:
            raise ValueError(
                f"--label {label!r} is no column of {file}, which has {listed(columns)}{_labels(columns, label)}"
            )
        if fields is None and path.is_file():  # of several files the columns that all have count
            _require_one_text(columns, label, file, option)
        seen |= dict.fromkeys(str(value) for value in columns[label] if value != "")
    return list(seen) or None


def _require_one_text(columns: dict[str, list[Any]], label: str, file: Path, option: str) -> None:
    """Refuse a file with several columns of which each may be the text, where none is called so.

    Raises:
        ValueError: Then, with each as a template.
    """
    texts = [name for name, values in columns.items() if name != label and _is_text(values)]
    if "text" not in columns and len(texts) > 1:
        ways = " or ".join(f"{option} {shlex.quote('{' + name + '}')}" for name in texts[:4])
        raise ValueError(
            f"the text of an example must be said, for several columns of {file} hold text: {listed(texts)}; give "
            f"{ways}, or join columns, as in {option} '{{title}}. {{body}}'"
        )


def _is_text(values: list[Any]) -> bool:
    """Whether a column holds strings that are no numbers, whoever reads the file."""
    return (
        bool(values) and all(isinstance(value, str) for value in values) and not all(map(_is_number, values))
    )


def _is_number(value: str) -> bool:
    try:
        float(value)
    except ValueError:
        return value.strip().lower() in _NO_TEXT
    return True


def require_labels(
    seen: list[str] | None, words: Iterable[Any] | None, classes: Sequence[str] | None
) -> None:
    """Refuse labels without a word, and classes that are not there, where the labels were seen.

    Raises:
        ValueError: Then.
    """
    if seen is None:
        return
    if classes is not None:
        if lacking := [one for one in classes if one not in seen]:
            raise ValueError(
                f"--classes must be labels of the data, which has {listed(seen[:20])}, got {listed(lacking)}"
            )
        return
    known = None if words is None else {str(one) for one in words}
    if known is not None and (other := [one for one in seen if one not in known and one != "-1"]):
        raise ValueError(
            f"the data has the label {other[0]!r}, and --label-words only {listed(sorted(known))}; give it a word, or "
            "choose classes by --classes"
        )


def template_columns(template: str, option: str = "--template") -> list[str]:
    """The columns that a template names.

    Raises:
        ValueError: For one that can't be read, or names none.
    """
    try:
        names = [name for _, name, _, _ in string.Formatter().parse(template) if name is not None]
    except ValueError as error:
        raise ValueError(
            f"{option} {template!r} can't be read: {error}; write columns in braces, as in '{{text}}'"
        ) from error
    if not names:
        raise ValueError(f"{option} {template!r} names no column; write one in braces, as in '{{text}}'")
    return names


def look_at(file: Path) -> dict[str, list[Any]] | None:
    """The columns of a small CSV or JSONL file, missing cells left out; ``None`` where reading it in full tells."""
    if file.stat().st_size > _MOST_BYTES:
        return None
    try:
        if file.suffix.lower() == ".csv":
            with file.open(encoding="utf-8-sig", newline="") as lines:
                rows: list[dict[str, Any]] = list(csv.DictReader(lines))
        elif file.suffix.lower() == ".jsonl":
            written = file.read_text(encoding="utf-8-sig").split("\n")
            rows = [json.loads(line) for line in written if line.strip()]
        else:
            return None
    except (ValueError, csv.Error, RecursionError, OSError):
        return None
    if not rows or not all(isinstance(row, dict) for row in rows):
        return None
    names = [name for name in dict.fromkeys(key for row in rows for key in row) if isinstance(name, str)]
    return {name: [row[name] for row in rows if row.get(name) is not None] for name in names}


def _files(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    found = [path / f"{split}{ending}" for split in _SPLITS for ending in (".csv", ".jsonl")]
    return [one for one in found if one.is_file()]


def _labels(columns: dict[str, list[Any]], label: str) -> str:
    """Which columns may hold labels: few values, each several times."""
    told = []
    for name, values in columns.items():
        if not all(isinstance(value, (str, int)) for value in values):
            continue
        counts = Counter(map(str, values))
        if 2 <= len(counts) <= _MOST_CLASSES and min(counts.values()) > 1:
            told.append(f"--label {name!r} ({len(counts)} values: {', '.join(sorted(counts)[:5])})")
    return f"; try {' or '.join(told)}" if told else f"; {near(label, columns)}"


def _texts(columns: dict[str, list[Any]], label: str, option: str) -> str:
    """Which columns may hold texts: strings of several words."""
    told = []
    for name, values in columns.items():
        strings = [value for value in values if isinstance(value, str)]
        if name != label and strings and sum(map(len, map(str.split, strings))) > 2 * len(strings):
            told.append(f"{option} '{{{name}}}'")
    return f"; try {' or '.join(told)}" if told else ""
