"""Data for a task by name: a local file, a local folder of splits, or a dataset of the Hugging Face hub.

What comes out is what :meth:`~tl_skillneurons.Task.from_datasets` takes: a ``DatasetDict`` where the source
has splits, a ``Dataset`` (of JSON a list of dicts) where it is one file. Local files are read as they are, without the
cache of ``datasets``.
"""

import csv
import json
import logging
import re
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet
from datasets import Dataset, DatasetDict
from datasets.table import InMemoryTable
from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

from tl_skillneurons._checks import listed
from tl_skillneurons.tasks.columns import Rows
from tl_skillneurons.tasks.roles import SPLIT_NAMES


def load_splits(source: str | Path) -> DatasetDict | dict[str, Rows] | Rows:
    """The data that ``source`` names, as it is spelled there.

    Every column of a CSV file is text: ``0042``, ``1.50`` and ``true`` stay what they are. What a JSON file holds comes
    as plain values, each of its own type; of numbers that are not whole, ``str`` gives the spelling.

    Args:
        source: A .jsonl, .json, .csv or .parquet file; a folder with such files called train, validation (or
            dev, valid) and test; or the name of a dataset on the Hugging Face hub, with ``:`` before its
            configuration (``"nyu-mll/glue:sst2"``).

    Returns:
        A ``Dataset`` (of JSON a list of dicts), or several by the name of their split.

    Raises:
        TypeError: When ``source`` is neither a string nor a path.
        FileNotFoundError: When a local path isn't there, or the hub has no such dataset.
        ValueError: When a file is corrupt or of another kind, has a column twice, or a folder has no splits; when
            ``source`` can be no name of a dataset.
        ConnectionError: When the hub can't be reached.

    Example:
        >>> data = load_splits("nyu-mll/glue:sst2")  # doctest: +SKIP
        >>> task = Task.from_datasets(data, template="{sentence}", ...)  # doctest: +SKIP
    """
    if not isinstance(source, (str, Path)):
        raise TypeError(f"source must be a string or a path, got {type(source).__name__} {source!r}")
    try:
        path = Path(source).expanduser()
    except RuntimeError as error:  # no such user
        raise FileNotFoundError(f"there is no file or folder {source}: {error}") from error
    if path.is_dir() and str(source):
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


def _read_folder(folder: Path) -> DatasetDict | dict[str, Rows]:
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
    splits = {name: _read_file(path) for name, path in files.items()}
    return DatasetDict(splits) if all(isinstance(rows, Dataset) for rows in splits.values()) else splits


def _read_file(path: Path) -> Rows:
    reader = READERS.get(path.suffix.lower())
    if reader is None:
        raise ValueError(f"{path} must end in {', '.join(READERS)}, got {path.suffix or 'no ending'!r}")
    try:
        return reader(path)
    except RecursionError as error:
        raise ValueError(
            f"{path} can't be read as {path.suffix}: its values are nested too deeply; text and labels must stand in "
            "columns of their own"
        ) from error
    except PermissionError:
        raise
    except (pa.ArrowException, OSError, ValueError, TypeError, KeyError) as error:
        raise ValueError(
            f"{path} can't be read as {path.suffix}: {error}; it is corrupt or another kind of file"
        ) from error


class SpelledFloat(float):
    """A number that is printed as a file spells it: ``1.50`` stays ``1.50``."""

    spelling: str

    def __new__(cls, spelling: str) -> "SpelledFloat":
        number = super().__new__(cls, spelling)
        number.spelling = spelling
        return number

    def __str__(self) -> str:
        return self.spelling


def _each_key_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    _require_each_once([name for name, _ in pairs])
    return dict(pairs)


def _require_each_once(names: list[str]) -> None:
    twice = [name for name, n in Counter(names).items() if n > 1]
    if twice:
        raise ValueError(f"the column {twice[0]!r} stands there twice; each column needs a name of its own")


_json = json.JSONDecoder(object_pairs_hook=_each_key_once, parse_float=SpelledFloat).decode


def _read_jsonl(path: Path) -> list[dict[str, Any]]:
    rows = []
    for number, line in enumerate(path.read_text(encoding="utf-8-sig").split("\n"), start=1):
        if not line.strip():
            continue
        try:
            rows.append(_json(line))
        except ValueError as error:
            raise ValueError(f"line {number}: {error}") from error
        except RecursionError as error:
            raise ValueError(f"line {number}: its values are nested too deeply") from error
    return _require_objects(rows)


def _read_json(path: Path) -> list[dict[str, Any]]:
    try:
        content = _json(path.read_text(encoding="utf-8-sig"))
    except json.JSONDecodeError:
        return _read_jsonl(path)  # many .json files have one object a line
    return _require_objects(content if isinstance(content, list) else [content])


def _require_objects(rows: list[Any]) -> list[dict[str, Any]]:
    for number, row in enumerate(rows):
        if not isinstance(row, dict):
            raise ValueError(f"example {number} must be a JSON object, got {type(row).__name__}")
    return rows


def _read_csv(path: Path) -> Dataset:
    """Every cell as text; a quote that opens a cell must close it, so that no line is read into another's cell."""
    rows, places = [], []
    with path.open(encoding="utf-8-sig", newline="") as file, _cells_of_any_size():
        reader = csv.reader(file, strict=True)
        try:
            for row in reader:
                if row:  # a line with nothing on it
                    rows.append(row)
                    places.append(reader.line_num)
        except csv.Error as error:
            raise ValueError(
                f"line {reader.line_num}: a quote that opens a cell must close it, one inside stands twice ({error})"
            ) from error
    if not rows:
        raise ValueError("it is empty")
    names = rows.pop(0)
    _require_each_once(names)
    for row, place in zip(rows, places[1:], strict=True):
        if len(row) != len(names):
            raise ValueError(
                f"line {place} has {len(row)} cells, and the header {len(names)} ({listed(names)})"
            )
    if len(names) == 1 and (found := [mark for mark in ";\t|" if mark in names[0]]):
        raise ValueError(f"its columns are separated by {found[0]!r}; separate them by commas")
    columns = zip(*rows, strict=True) if rows else [()] * len(names)
    return Dataset(
        InMemoryTable.from_arrays([pa.array(cells, pa.string()) for cells in columns], names=names)
    )


@contextmanager
def _cells_of_any_size() -> Iterator[None]:
    """Python's reader stops at cells of 128 kB elsewhere."""
    before = csv.field_size_limit(2**31 - 1)
    try:
        yield
    finally:
        csv.field_size_limit(before)


def _read_parquet(path: Path) -> Dataset:
    _require_each_once(pyarrow.parquet.read_schema(path).names)
    table = pyarrow.parquet.read_table(path, page_checksum_verification=True)
    table.validate(full=True)
    return Dataset(InMemoryTable(table))


READERS: dict[str, Callable[[Path], Rows]] = {
    ".jsonl": _read_jsonl,
    ".json": _read_json,
    ".csv": _read_csv,
    ".parquet": _read_parquet,
}
"""What reads a local file, by its ending."""

LOCAL_FORMS = f"a {', '.join(READERS)} file or a folder with such files called train, validation and test"
"""The local forms of data, for messages."""


def _load_from_hub(source: str) -> DatasetDict | Dataset:
    name, colon, config = source.partition(":")
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name, re.ASCII) or (colon and not config):
        raise ValueError(
            f"data can't come from {source!r}: give {LOCAL_FORMS}, or a dataset of the hub, 'name' or 'owner/name', "
            "with ':configuration' behind it where it has several"
        )
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
