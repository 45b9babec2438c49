"""Snapshots kept while a prompt is tuned, and how predictivity came about along them."""

import dataclasses

import planted
import pytest
import tiny
import torch
from scipy import stats
from tuned import SMALL, TASK, assert_same_bits, fit, stop_at

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


# Snapshots


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


# The trajectory


def alone(prompt, at):
    """The prompt as it was at one entry of its history, without the others."""
    readout = None if prompt.readout is None else prompt.readout_snapshots[at]
    fields = {"placement": prompt.placement, "prepend_bos": prompt.prepend_bos}
    return skn.SoftPrompt(prompt.snapshots[at], readout=readout, **fields)


@pytest.mark.parametrize("family", ["gpt2", "encoder"])
def test_every_row_is_what_scoring_that_snapshot_alone_gives(models, family):
    model = models[family]
    settings = {"learning_rate": 2.0, "patience": 9, "n_steps": 6, "snapshots": True, "seeds": (0, 1)}
    prompts = fit(model, TASK, **settings, **READOUT)
    found = skn.studies.prompt_trajectory(
        model, prompts, TASK, amount=5, n_permutations=99, seed=3, progress=False
    )
    frame = found.to_dataframe()
    assert frame.step.tolist() == [0, 3, 6] * 2 and frame.prompt.tolist() == [0] * 3 + [1] * 3
    assert frame[frame.kept].step.tolist() == [prompt.provenance["best_step"] for prompt in prompts]
    settings = {"n_permutations": 99, "seed": 3, "progress": False}
    prompt, rows = prompts[1], frame[frame.prompt == 1]
    final = skn.score_neurons(model, prompt, TASK, **settings)
    top = final.top(5)
    split = TASK.split("report")
    for at, row in enumerate(rows.itertuples()):
        one = alone(prompt, at)
        scores = skn.score_neurons(model, one, TASK, **settings)
        prompted = skn.PromptedModel(model, one, TASK.label_words)
        assert row.accuracy == skn.interventions.accuracy(prompted, split["text"], split["label"])
        assert row.accuracy_low <= row.accuracy <= row.accuracy_high
        assert row.best == scores.predictivity.max() and row.level == scores.null.level()
        assert row.median == scores.predictivity.median() and row.n_significant == len(scores.significant())
        assert row.top_on_select == pytest.approx(float(scores.rule_accuracy(top).mean()))
        for neurons, value in (
            (top, row.top_on_report),
            (top.random_like(3), row.random_on_report),
        ):
            assert value == pytest.approx(
                skn.scores.selected_accuracy(model, one, TASK, scores, neurons).mean
            )
        assert row.jaccard == skn.scores.compare_sets(scores.top(5), top).jaccard > 0
        ranks = stats.spearmanr(scores.predictivity.flatten(), final.predictivity.flatten()).statistic
        assert row.spearman == pytest.approx(ranks)
        moved = (prompt.snapshots[at] - prompt.initial).norm() / prompt.initial.norm()
        assert row.distance == pytest.approx(float(moved))
    kept = rows[rows.kept].iloc[0]
    assert kept.jaccard == 1 and kept.spearman == pytest.approx(1) and rows.distance.iloc[0] == 0


def planted_prompt():
    """First it looks away from the word that tells the label, then nowhere in particular, then at it."""
    prompt = planted.prompt()
    turn = planted.rotation()[planted._VIRTUAL].float()
    snapshots = torch.stack([prompt.embedding.detach() + far * turn for far in (-40.0, -39.0, 0.0)])
    history = [{"step": step} for step in (0, 1, 2)]
    return skn.SoftPrompt(snapshots[2], placement="suffix", snapshots=snapshots, history=history)


def test_a_skill_that_comes_with_the_last_step_is_seen_to():
    task = planted.task(n_train=40, n_select=24, n_report=24)
    model = planted.model()
    frame = skn.studies.prompt_trajectory(
        model, planted_prompt(), task, amount=2, n_permutations=199, progress=False
    ).steps
    first, last = frame.iloc[0], frame.iloc[2]
    assert frame.kept.tolist() == [False, False, True]
    assert last.best == 1.0 > last.level and last.n_significant >= 4  # three that answer, and the decoy
    assert first.best <= first.level and first.n_significant == 0
    assert last.accuracy == 1.0 and first.accuracy < 0.8
    assert last.top_on_report > 0.8 and abs(first.top_on_report - 0.5) < 0.2
    assert abs(last.random_on_report - 0.5) < 0.2
    assert first.jaccard < 0.5 < last.jaccard == 1 and first.spearman < 0.7
    assert first.distance == 0 < frame.distance[1] < last.distance
    both = planted.NEURONS | planted.DECOY
    exact = skn.score_neurons(model, planted.prompt(), task, progress=False)
    of_others = dataclasses.replace(exact, correct=exact.correct.clone().fill_(12))
    of_others.correct[:, :, 0][:, both.layer, both.index] = 24
    given = skn.studies.prompt_trajectory(
        model, planted_prompt(), task, scores=of_others, amount=2, n_permutations=19, progress=False
    ).steps
    assert given.top_on_select[2] > given.top_on_select[0] and given.spearman[2] < 1


def test_a_trajectory_needs_prompts_with_snapshots_of_a_task_of_two_classes(models):
    model = models["gpt2"]
    (prompt,) = fit(model, n_steps=1, snapshots=True)
    (without,) = fit(model, n_steps=1)
    with pytest.raises(ValueError, match=r"prompt 1 has no snapshots .* snapshots=True"):
        skn.studies.prompt_trajectory(model, [prompt, without], SMALL)
    moved = skn.SoftPrompt(
        prompt.embedding + 1, placement="suffix", snapshots=prompt.snapshots, history=prompt.history
    )
    with pytest.raises(ValueError, match="prompt 0 is none of its own snapshots"):
        skn.studies.prompt_trajectory(model, moved, SMALL)
    with pytest.raises(ValueError, match="n_permutations must be at least 19"):
        skn.studies.prompt_trajectory(model, prompt, SMALL, n_permutations=5)
    scores = skn.score_neurons(planted.model(), planted.prompt(), planted.task(), progress=False)
    with pytest.raises(ValueError, match="scores must be of one model"):
        skn.studies.prompt_trajectory(model, prompt, TASK, scores=scores, progress=False)
