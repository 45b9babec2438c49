"""Data for a task by name: a local file, a local folder of splits, or a dataset of the Hugging Face hub.

What comes out is what :meth:`~tl_skillneurons.Task.from_datasets` takes: a ``DatasetDict`` where the source
has splits, a ``Dataset`` where it is one file. Local files are read as they are, without the cache of
``datasets``.
"""

import json
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
from datasets import Dataset, DatasetDict
from datasets.table import InMemoryTable
from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

from tl_skillneurons.tasks.roles import SPLIT_NAMES


def load_splits(source: str | Path) -> DatasetDict | Dataset:
    """The data that ``source`` names.

    Args:
        source: A .jsonl, .json, .csv or .parquet file; a folder with such files called train, validation (or
            dev, valid) and test; or the name of a dataset on the Hugging Face hub, with ``:`` before its
            configuration (``"nyu-mll/glue:sst2"``).

    Raises:
        FileNotFoundError: When a local path isn't there, or the hub has no such dataset.
        ValueError: When a file is corrupt or of another kind, or a folder has no splits.
        ConnectionError: When the hub can't be reached.

    Example:
        >>> data = load_splits("nyu-mll/glue:sst2")  # doctest: +SKIP
        >>> task = Task.from_datasets(data, template="{sentence}", ...)  # doctest: +SKIP
    """
    path = Path(source).expanduser()
    if path.is_dir():
        return _read_folder(path)
    if path.is_file():
        return _read_file(path)
    if isinstance(source, Path) or source.startswith((".", "~")) or _looks_local(path):
        raise FileNotFoundError(
            f"there is no file or folder {path}; give {LOCAL_FORMS}, or a dataset of the hub"
        )
    return _load_from_hub(source)


def _looks_local(path: Path) -> bool:
    inside_a_folder = len(path.parts) > 1 and path.parent.exists()
    return path.is_absolute() or path.suffix.lower() in READERS or inside_a_folder


def _read_folder(folder: Path) -> DatasetDict:
    files: dict[str, Path] = {}
    for name in (name for names in SPLIT_NAMES.values() for name in names):
        found = sorted(path for path in folder.glob(f"{name}.*") if path.suffix.lower() in READERS)
        if len(found) > 1:
            raise ValueError(
                f"{folder} has more than one file for the split {name!r}: {', '.join(map(str, found))}"
            )
        if found:
            files[name] = found[0]
    if not files:
        inside = ", ".join(sorted(path.name for path in folder.iterdir())[:10]) or "nothing"
        raise ValueError(f"{folder} has no split; expected {LOCAL_FORMS}, found {inside}")
    return DatasetDict({name: _read_file(path) for name, path in files.items()})


def _read_file(path: Path) -> Dataset:
    reader = READERS.get(path.suffix.lower())
    if reader is None:
        raise ValueError(f"{path} must end in {', '.join(READERS)}, got {path.suffix or 'no ending'!r}")
    try:
        return reader(path)
    except (pa.ArrowException, ValueError, TypeError) as error:
        raise ValueError(
            f"{path} can't be read as {path.suffix}: {error}; it is corrupt or another kind of file"
        ) from error


def _read_jsonl(path: Path) -> Dataset:
    rows = []
    for number, line in enumerate(path.read_text(encoding="utf-8-sig").split("\n"), start=1):
        if not line.strip():
            continue
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError as error:
            raise ValueError(f"line {number}: {error}") from error
    return _from_rows(rows)


def _read_json(path: Path) -> Dataset:
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except json.JSONDecodeError:
        return _read_jsonl(path)  # many .json files have one object a line
    return _from_rows(content if isinstance(content, list) else [content])


def _from_rows(rows: list[Any]) -> Dataset:
    for number, row in enumerate(rows):
        if not isinstance(row, dict):
            raise ValueError(f"example {number} must be a JSON object, got {type(row).__name__}")
    names = dict.fromkeys(name for row in rows for name in row)
    return Dataset.from_dict({name: [row.get(name) for row in rows] for name in names})


def _read_csv(path: Path) -> Dataset:
    quoted_lines = pyarrow.csv.ParseOptions(newlines_in_values=True)
    table = pyarrow.csv.read_csv(path, parse_options=quoted_lines)
    for column in table.schema:
        if pa.types.is_binary(column.type):  # what pyarrow makes of a column that is not UTF-8
            raise ValueError(f"column {column.name!r} is not UTF-8 text")
    return Dataset(InMemoryTable(table))


def _read_parquet(path: Path) -> Dataset:
    return Dataset(InMemoryTable(pyarrow.parquet.read_table(path)))


READERS: dict[str, Callable[[Path], Dataset]] = {
    ".jsonl": _read_jsonl,
    ".json": _read_json,
    ".csv": _read_csv,
    ".parquet": _read_parquet,
}
"""What reads a local file, by its ending."""

LOCAL_FORMS = f"a {', '.join(READERS)} file or a folder with such files called train, validation and test"
"""The local forms of data, for messages."""


def _load_from_hub(source: str) -> DatasetDict | Dataset:
    name, _, config = source.partition(":")
    try:
        with _quiet():
            return datasets.load_dataset(name, config or None)
    except datasets.exceptions.DatasetNotFoundError as error:
        raise FileNotFoundError(
            f"there is no dataset {name!r} on the hub ({error}), nor such a file or folder"
        ) from error
    except OSError as error:
        raise ConnectionError(
            f"can't get the dataset {source!r} from the Hugging Face hub ({error}); "
            f"without it, give {LOCAL_FORMS}"
        ) from error


@contextmanager
def _quiet() -> Iterator[None]:
    """No progress bars and no log of each retry in here; afterwards the caller's settings again."""
    bars, hub_bars = not datasets.are_progress_bars_disabled(), not are_progress_bars_disabled()
    logger = logging.getLogger("huggingface_hub")
    level = logger.level
    datasets.disable_progress_bars()
    disable_progress_bars()
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
        if bars:
            datasets.enable_progress_bars()
        if hub_bars:
            enable_progress_bars()
