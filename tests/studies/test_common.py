"""What studies share: prompts as a list, what a study records, and tables that come back from files to the last bit."""

import dataclasses
import math

import drawn
import pandas as pd
import pytest
import tiny
import torch
from toy import TASK, prompt_for

from tl_skillneurons.prompts.tuning.schedule import TrainingOptions
from tl_skillneurons.studies._common import (
    TABLES,
    load_tables,
    load_with_scores,
    null_of,
    plain,
    save_tables,
    save_with_scores,
    settings_of,
    soft_prompts,
)

FRAME = pd.DataFrame(
    {
        "name": ["one", None, "\u00e9"],
        "share": [0.1 + 0.2, math.nan, -math.inf],
        "n": [1, 2, 3],
        "strong": [True, False, True],
    }
)


def test_tables_come_back_from_their_file_to_the_last_bit(tmp_path):
    empty = pd.DataFrame([], columns=["one", "other"])
    path = save_tables(tmp_path / "found.json", "Found", {"seed": 3}, {"rows": FRAME, "none": empty})
    tables, settings = load_tables(path, "Found", ("rows", "none"))
    pd.testing.assert_frame_equal(tables["rows"], FRAME, check_exact=True)
    pd.testing.assert_frame_equal(tables["none"], empty)
    assert settings == {"seed": 3}


def test_a_file_of_something_else_or_half_of_one_is_refused(tmp_path):
    path = save_tables(tmp_path / "found.json", "Found", {}, {"rows": FRAME})
    with pytest.raises(ValueError, match="holds a Found, expected a Lost"):
        load_tables(path, "Lost", ("rows",))
    with pytest.raises(ValueError, match="is not a sound Found file: 'others' is missing"):
        load_tables(path, "Found", ("others",))
    path.write_text(path.read_text()[:40])
    with pytest.raises(ValueError, match="is not JSON"):
        load_tables(path, "Found", ("rows",))


def test_scores_stand_beside_the_tables_of_a_result_and_half_a_folder_is_none(tmp_path):
    scores = [drawn.scores(seed=seed) for seed in range(2)]
    folder = save_with_scores(tmp_path / "found", "Found", {}, {"runs": FRAME[:2]}, scores)
    _, _, read = load_with_scores(folder, "Found", ("runs",), "runs")
    assert all(torch.equal(a.correct, b.correct) for a, b in zip(scores, read, strict=True))
    (folder / "scores-1.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="scores-1"):
        load_with_scores(folder, "Found", ("runs",), "runs")
    unwritable = drawn.scores(provenance={"model": object()})
    with pytest.raises(TypeError):  # what stood there goes before anything new is written
        save_with_scores(folder, "Found", {}, {"runs": FRAME[:2]}, [unwritable])
    assert not (folder / TABLES).exists()


def test_what_a_study_records_is_plain_json():
    prompt = prompt_for("gpt2", seed=4)
    made = settings_of(
        tiny.bridge("gpt2"), TASK, [prompt, None], seeds=range(2), training=TrainingOptions(batch_size=3)
    )
    assert made["task"] == {"name": "toy", "fingerprint": TASK.fingerprint} and made["seeds"] == [0, 1]
    assert made["prompts"][0]["n_virtual_tokens"] == 3 and made["prompts"][1] is None
    assert made["training"] == dataclasses.asdict(TrainingOptions(batch_size=3))
    assert plain({"b": torch.float32, "a": (1, None)}) == {"a": [1, None], "b": "torch.float32"}


def test_no_prompt_and_scores_without_a_null_are_refused():
    prompt = prompt_for("gpt2")
    assert soft_prompts(prompt) == soft_prompts([prompt]) == [prompt]
    with pytest.raises(ValueError, match="at least one soft prompt, got none"):
        soft_prompts([])
    with pytest.raises(ValueError, match="have no permutation null; score with n_permutations=1000"):
        null_of(drawn.scores())
