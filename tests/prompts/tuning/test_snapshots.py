"""Snapshots kept while a prompt is tuned: what they are, in files, and after an interruption."""

import pytest
import tiny
import torch
from tuned import assert_same_bits, fit, stop_at

import tl_skillneurons as skn

pytestmark = pytest.mark.filterwarnings("ignore:.*not below chance")  # a few steps seldom suffice
READOUT = {"readout_learning_rate": 0.05}


@pytest.fixture(scope="module")
def models():
    bert = tiny.bridge("bert", dtype=torch.float64)
    bert.original_model.config.architectures = ["BertModel"]  # so that a read-out is trained with the prompt
    return {"gpt2": tiny.bridge("gpt2", dtype=torch.float64), "encoder": bert}


def assert_same_snapshots(one, other):
    assert torch.equal(one.snapshots, other.snapshots)
    assert (one.readout_snapshots is None) == (other.readout_snapshots is None)
    assert one.readout_snapshots is None or torch.equal(one.readout_snapshots, other.readout_snapshots)


@pytest.mark.parametrize("family", ["gpt2", "encoder"])
def test_snapshots_run_from_the_initial_prompt_over_the_one_that_is_kept_to_the_last(models, family):
    (prompt,) = fit(models[family], learning_rate=2.0, patience=9, snapshots=True, **READOUT)
    steps = [entry["step"] for entry in prompt.history]
    assert steps == [0, 3, 6, 8] and len(prompt.snapshots) == 4
    assert torch.equal(prompt.snapshots[0], prompt.initial)
    best = steps.index(prompt.provenance["best_step"])
    assert torch.equal(prompt.snapshots[best], prompt.embedding)
    assert all(not torch.equal(a, b) for a, b in zip(prompt.snapshots[1:], prompt.snapshots, strict=False))
    if family == "gpt2":
        assert prompt.readout_snapshots is None
    else:
        assert torch.equal(prompt.readout_snapshots[best], prompt.readout)
        assert not prompt.readout_snapshots[0].any() and prompt.readout_snapshots[3].any()
    assert {name for name, _ in prompt.named_parameters()} <= {"embedding", "readout"}


@pytest.mark.parametrize("family", ["gpt2", "encoder"])
def test_keeping_snapshots_changes_no_bit_of_the_prompt_and_they_survive_a_file(models, family, tmp_path):
    (without,) = fit(models[family], **READOUT)
    (prompt,) = fit(models[family], snapshots=True, folder=tmp_path, **READOUT)
    assert without.snapshots is None and "snapshots" not in without.provenance["settings"]
    settings = {**without.provenance["settings"], "snapshots": True}
    without.provenance["settings"] = settings
    assert_same_bits([without], [prompt])
    read = skn.SoftPrompt.load(tmp_path / "prompt-seed0.safetensors")
    assert_same_bits([read], [prompt])
    assert_same_snapshots(read, prompt)
    (again,) = fit(models[family], folder=tmp_path, **READOUT)  # asked for without, found with
    assert_same_snapshots(again, prompt)


@pytest.mark.parametrize("family", ["gpt2", "encoder"])
def test_going_on_after_an_interruption_gives_the_same_snapshots(models, family, tmp_path, monkeypatch):
    (whole,) = fit(models[family], snapshots=True, **READOUT)
    stop_at(monkeypatch, 7)
    with pytest.raises(KeyboardInterrupt):
        fit(models[family], snapshots=True, folder=tmp_path, **READOUT)
    monkeypatch.undo()
    assert [path.name for path in tmp_path.iterdir()] == ["prompt-seed0.checkpoint"]
    (resumed,) = fit(models[family], snapshots=True, folder=tmp_path, **READOUT)
    assert_same_bits([resumed], [whole])
    assert_same_snapshots(resumed, whole)


@pytest.mark.parametrize("finished", [True, False])
def test_what_was_tuned_without_snapshots_is_refused_where_they_are_asked_for(
    models, finished, tmp_path, monkeypatch
):
    if not finished:
        stop_at(monkeypatch, 7)
    try:
        fit(models["gpt2"], folder=tmp_path)
    except KeyboardInterrupt:
        monkeypatch.undo()
    with pytest.raises(ValueError, match=r"settings\.snapshots: None there, True now"):
        fit(models["gpt2"], snapshots=True, folder=tmp_path)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"snapshots": torch.ones(2, 3, 8)}, r"snapshots must be \(1, 3, 8\), one for each of 1 entries of"),
        ({"readout_snapshots": torch.ones(1, 2, 8)}, "readout_snapshots must be none"),
        (
            {"snapshots": torch.ones(1, 3, 8), "readout": torch.ones(2, 8)},
            r"readout_snapshots must be \(1, 2, 8\), .* got none",
        ),
    ],
)
def test_snapshots_that_are_not_the_prompts_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        skn.SoftPrompt(torch.ones(3, 8), placement="suffix", history=[{"step": 0}], **fields)
