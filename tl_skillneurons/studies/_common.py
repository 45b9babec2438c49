"""What studies share: the prompts they are given, what their results record, and how their tables are kept in files.

A result made of tables is one JSON file; one that also holds scores is a folder with that file and a file for each
score, the JSON written last. Numbers come back to the last bit, NaN included.
"""

import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from jaxtyping import Bool
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from tl_skillneurons._files import FORMAT, package_version, read_json, sound, write_json
from tl_skillneurons.models.records import model_record
from tl_skillneurons.prompts.prompted_model import PromptedModel
from tl_skillneurons.prompts.run import prompt_record
from tl_skillneurons.prompts.soft_prompt import SoftPrompt
from tl_skillneurons.scores.neuron_scores import NeuronScores
from tl_skillneurons.scores.null import PermutationNull
from tl_skillneurons.tasks.task import Task

TABLES = "tables.json"
_KINDS = {"b": "bool", "i": "int64", "u": "int64", "f": "float64"}


def soft_prompts(prompts: SoftPrompt | Sequence[SoftPrompt]) -> list[SoftPrompt]:
    """One prompt, or several, as a list.

    Raises:
        ValueError: For none.
    """
    chosen = [prompts] if isinstance(prompts, SoftPrompt) else list(prompts)
    if not chosen:
        raise ValueError("prompts must hold at least one soft prompt, got none")
    return chosen


def right_answers(
    prompted: PromptedModel, task: Task, role: str = "report", *, class_id: int | None = None
) -> Bool[Tensor, " example"]:
    """Which examples of ``role`` a model answers rightly; with ``class_id``, at which it tells that class from all
    others."""
    split = task.split(role)
    with torch.no_grad():
        answers = prompted.class_logits(list(split["text"])).argmax(1).cpu()
    labels = torch.tensor(split["label"])
    if class_id is None:
        return answers == labels
    return (answers == class_id) == (labels == class_id)


def null_of(scores: NeuronScores) -> PermutationNull:
    """What permuted labels give, of scores that were asked for it.

    Raises:
        ValueError: When they were not.
    """
    if scores.null is None:
        raise ValueError("these scores have no permutation null; score with n_permutations=1000")
    return scores.null


def settings_of(
    model: TransformerBridge, task: Task, prompts: Sequence[SoftPrompt | None] = (), **settings: Any
) -> dict[str, Any]:
    """Model, task, prompts and the settings of one study, as plain JSON values."""
    return {
        "model": model_record(model),
        "task": {"name": task.name, "fingerprint": task.fingerprint},
        "prompts": [None if prompt is None else prompt_record(prompt) for prompt in prompts],
        **{name: plain(value) for name, value in settings.items()},
    }


def plain(value: Any) -> Any:
    """As JSON gives it back: dataclasses and mappings as sorted dicts, sequences as lists, the rest as strings."""
    if is_dataclass(value) and not isinstance(value, type):
        value = asdict(value)
    if isinstance(value, Mapping):
        return {str(key): plain(one) for key, one in sorted(value.items(), key=lambda item: str(item[0]))}
    if isinstance(value, (list, tuple, range, set)):
        return [plain(one) for one in value]
    return value if isinstance(value, (bool, int, float, str, type(None))) else str(value)


def records(table: pd.DataFrame) -> list[dict[str, Any]]:
    """A table's rows by the names of its columns."""
    return [{str(name): value for name, value in row.items()} for row in table.to_dict("records")]


def file_name(name: str) -> str:
    """A name as part of a path: what a file's name can't hold becomes a dash."""
    return re.sub(r"[^\w.=+-]+", "-", name).strip(".")


def save_tables(
    path: str | os.PathLike[str], kind: str, settings: dict[str, Any], tables: Mapping[str, pd.DataFrame]
) -> Path:
    """Write a result's tables and settings to one JSON file, whole or not at all."""
    content = {"kind": kind, "format": FORMAT, "package_version": package_version(), "settings": settings}
    return write_json(
        path, {**content, "tables": {name: columns_of(table) for name, table in tables.items()}}
    )


def load_tables(
    path: str | os.PathLike[str], kind: str, names: Sequence[str]
) -> tuple[dict[str, pd.DataFrame], dict[str, Any]]:
    """The tables of these names, and the settings, that :func:`save_tables` wrote as this ``kind``.

    Raises:
        FileNotFoundError: When there is no such file.
        ValueError: When it is corrupt, or holds another kind of artifact.
    """
    content = read_json(path, kind)
    with sound(path, kind):
        return {name: table_of(content["tables"][name]) for name in names}, dict(content["settings"])


def save_with_scores(
    folder: str | os.PathLike[str],
    kind: str,
    settings: dict[str, Any],
    tables: Mapping[str, pd.DataFrame],
    scores: Sequence[NeuronScores],
) -> Path:
    """Write tables and scores to a folder; what it held of an earlier result goes first."""
    folder = Path(folder)
    (folder / TABLES).unlink(missing_ok=True)
    for number, score in enumerate(scores):
        score.save(folder / f"scores-{number}.safetensors")
    save_tables(folder / TABLES, kind, settings, tables)
    return folder


def load_with_scores(
    folder: str | os.PathLike[str], kind: str, names: Sequence[str], n_scores: str
) -> tuple[dict[str, pd.DataFrame], dict[str, Any], list[NeuronScores]]:
    """What :func:`save_with_scores` wrote.

    Args:
        n_scores: The table that has a row for each score.

    Raises:
        FileNotFoundError: When a file is missing.
        ValueError: When one is corrupt, or holds another kind of artifact.
    """
    tables, settings = load_tables(Path(folder) / TABLES, kind, names)
    paths = [Path(folder) / f"scores-{number}.safetensors" for number in range(len(tables[n_scores]))]
    return tables, settings, [NeuronScores.load(path) for path in paths]


def columns_of(table: pd.DataFrame) -> dict[str, Any]:
    """A table as JSON has it; :func:`table_of` reads it."""
    return {
        str(name): {
            "dtype": _KINDS.get(column.dtype.kind, "object"),
            "values": [_value(one) for one in column.tolist()],
        }
        for name, column in table.items()
    }


def _value(value: Any) -> Any:
    """A cell as JSON has it: no NaN, and infinities as their names."""
    if value is None or value is pd.NA or (isinstance(value, float) and math.isnan(value)):
        return None
    return str(value) if isinstance(value, float) and math.isinf(value) else value


def table_of(columns: Mapping[str, Any]) -> pd.DataFrame:
    """The table that :func:`columns_of` told."""
    made = {}
    for name, column in columns.items():
        values = column["values"]
        if column["dtype"] == "float64":
            values = [math.nan if value is None else float(value) for value in values]
        made[name] = pd.Series(
            values, dtype=None if column["dtype"] == "object" and values else column["dtype"]
        )
    return pd.DataFrame(made)
