"""How predictivity came about along the snapshots of tuning: each row by hand, and a skill that comes late."""

import dataclasses

import pandas as pd
import planted
import pytest
import tiny
import torch
from scipy import stats
from toy import QUIET
from tuned import SMALL, TASK, fit

import tl_skillneurons as skn
from tl_skillneurons.neurons.choice import text_fingerprints

pytestmark = pytest.mark.filterwarnings("ignore:.*not below chance")  # a few steps seldom suffice
READOUT = {"readout_learning_rate": 0.05}


@pytest.fixture(scope="module")
def models():
    bert = tiny.bridge("bert", dtype=torch.float64)
    bert.original_model.config.architectures = ["BertModel"]  # so that a read-out is trained with the prompt
    return {"gpt2": tiny.bridge("gpt2", dtype=torch.float64), "encoder": bert}


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
        model, prompts, TASK, amount=5, n_permutations=99, seed=3, run=QUIET
    )
    frame = found.to_dataframe()
    assert frame.step.tolist() == [0, 3, 6] * 2 and frame.prompt.tolist() == [0] * 3 + [1] * 3
    assert frame[frame.kept].step.tolist() == [prompt.provenance["best_step"] for prompt in prompts]
    settings = {"n_permutations": 99, "seed": 3, "run": QUIET}
    prompt, rows = prompts[1], frame[frame.prompt == 1]
    final = skn.score_neurons(model, prompt, TASK, **settings)
    top = final.top(5)
    for at, row in enumerate(rows.itertuples()):
        one = alone(prompt, at)
        scores = skn.score_neurons(model, one, TASK, **settings)
        prompted = skn.PromptedModel(model, one, TASK.label_words)
        assert row.accuracy == prompted.accuracy(TASK)
        assert row.accuracy_low <= row.accuracy <= row.accuracy_high
        assert row.best == scores.predictivity.max() and row.level == scores.null.level()
        assert row.median == float(scores.predictivity.flatten().quantile(0.5)) and row.n_significant == len(
            scores.significant()
        )
        assert row.top_on_select == pytest.approx(float(scores.accuracy_of(top).mean()))
        for neurons, value in (
            (top, row.top_on_report),
            (top.random_like(3), row.random_on_report),
        ):
            assert value == pytest.approx(skn.scores.evaluate_rules(model, one, TASK, scores, neurons).mean)
        assert row.jaccard == scores.top(5).overlap(top).jaccard > 0
        ranks = stats.spearmanr(scores.predictivity.flatten(), final.predictivity.flatten()).statistic
        assert row.spearman == pytest.approx(ranks)
        agree = skn.scores.score_agreement(
            skn.score_neurons(model, one, TASK, keep_outcomes=True, run=QUIET),
            skn.score_neurons(model, prompt, TASK, keep_outcomes=True, run=QUIET),
            5,
            n_permutations=99,
            seed=3,
        )
        by_luck, told = agree.row(-1), ["null_low", "null_high", "p_value", "p_shared"]
        assert [getattr(row, name) for name in told] == [by_luck[name] for name in told]
        assert agree.labels_of == "both sides together"
        moved = (prompt.snapshots[at] - prompt.initial).norm() / prompt.initial.norm()
        assert row.distance == pytest.approx(float(moved))
    kept = rows[rows.kept].iloc[0]
    assert kept.jaccard == 1 and kept.spearman == pytest.approx(1) and rows.distance.iloc[0] == 0


def test_a_final_top_that_texts_of_report_chose_is_followed_there_by_insistence_alone(models):
    model = models["gpt2"]
    [prompt] = fit(model, TASK, n_steps=3, snapshots=True, seeds=(0,))
    scores = skn.score_neurons(model, prompt, TASK, run=QUIET)
    on_report = text_fingerprints(TASK.split("report")["text"])
    chose = {**scores.provenance["chose"], "texts": on_report}
    other = dataclasses.replace(scores, provenance={**scores.provenance, "chose": chose})
    settings = {"amount": 5, "n_permutations": 19, "run": QUIET}
    with pytest.raises(ValueError, match="on_chosen_examples=True"):
        skn.studies.prompt_trajectory(model, prompt, TASK, scores=other, **settings)
    for given, told in ((other, "on these examples"), (scores, "on other examples")):
        found = skn.studies.prompt_trajectory(
            model, prompt, TASK, scores=given, on_chosen_examples=True, **settings
        )
        assert set(found.to_dataframe().neurons_chosen) == {told}


def planted_prompt():
    """First it looks away from the word that tells the label, then nowhere in particular, then at it."""
    prompt = planted.prompt()
    turn = planted.rotation()[planted.VIRTUAL].float()
    snapshots = torch.stack([prompt.embedding.detach() + far * turn for far in (-40.0, -39.0, 0.0)])
    history = [{"step": step} for step in (0, 1, 2)]
    return skn.SoftPrompt(snapshots[2], placement="suffix", snapshots=snapshots, history=history)


def test_a_skill_that_comes_with_the_last_step_is_seen_to():
    task = planted.task(n_train=40, n_select=24, n_report=24)
    model = planted.model()
    frame = skn.studies.prompt_trajectory(
        model, planted_prompt(), task, amount=2, n_permutations=199, run=QUIET
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
    exact = skn.score_neurons(model, planted.prompt(), task, run=QUIET)
    of_others = dataclasses.replace(exact, correct=exact.correct.clone().fill_(12))
    of_others.correct[:, :, 0][:, both.layer, both.index] = 24
    given = skn.studies.prompt_trajectory(
        model, planted_prompt(), task, scores=of_others, amount=2, n_permutations=19, run=QUIET
    ).steps
    assert given.top_on_select[2] > given.top_on_select[0] and given.spearman[2] < 1


def test_a_trajectory_needs_prompts_with_snapshots_of_a_task_of_two_classes(models):
    model = models["gpt2"]
    (prompt,) = fit(model, n_steps=1, snapshots=True)
    (without,) = fit(model, n_steps=1)
    with pytest.raises(ValueError, match=r"prompt 1 has no snapshots .*TrainingOptions\(snapshots=True\)"):
        skn.studies.prompt_trajectory(model, [prompt, without], SMALL)
    moved = skn.SoftPrompt(
        prompt.embedding + 1, placement="suffix", snapshots=prompt.snapshots, history=prompt.history
    )
    with pytest.raises(ValueError, match="prompt 0 is none of its own snapshots"):
        skn.studies.prompt_trajectory(model, moved, SMALL)
    with pytest.raises(ValueError, match="n_permutations must be at least 19"):
        skn.studies.prompt_trajectory(model, prompt, SMALL, n_permutations=5)
    scores = skn.score_neurons(planted.model(), planted.prompt(), planted.task(), run=QUIET)
    with pytest.raises(ValueError, match="scores must be of one model"):
        skn.studies.prompt_trajectory(model, prompt, TASK, scores=scores, run=QUIET)
    with pytest.raises(ValueError, match="at least one soft prompt, got none"):
        skn.studies.prompt_trajectory(model, [], SMALL)


def test_a_trajectory_is_measured_at_the_length_that_the_prompt_was_tuned_with(models):
    model = models["gpt2"]
    (prompt,) = fit(model, TASK, n_steps=3, snapshots=True, max_length=7)
    settings = {"amount": 5, "n_permutations": 19, "run": QUIET}
    found = skn.studies.prompt_trajectory(model, prompt, TASK, **settings)
    scores = skn.score_neurons(model, prompt, TASK, n_permutations=19, run=QUIET)
    kept = found.steps[found.steps.kept].iloc[0]
    assert scores.provenance["max_length"] == 7 and kept.best == scores.predictivity.max()
    assert kept.accuracy == skn.PromptedModel(model, prompt, TASK.label_words).accuracy(TASK)
    longer = skn.score_neurons(model, prompt, TASK, max_length=40, run=QUIET)
    with pytest.raises(
        ValueError, match=r"measured with max_length=40, this trajectory would be with max_length=7"
    ):
        skn.studies.prompt_trajectory(model, prompt, TASK, scores=longer, **settings)
    given = skn.studies.prompt_trajectory(model, prompt, TASK, scores=longer, max_length=40, **settings)
    assert given.to_dataframe().attrs == {"unit": "text", "n_units": len(TASK.split("select"))}
    assert given.settings["max_length"] == 40 and given.settings["scores"]["max_length"] == 40


def test_a_trajectory_shows_itself_and_survives_a_file(models, tmp_path):
    (prompt,) = fit(models["gpt2"], TASK, n_steps=3, snapshots=True)
    found = skn.studies.prompt_trajectory(
        models["gpt2"], prompt, TASK, amount=5, n_permutations=19, run=QUIET
    )
    assert repr(found).startswith("PromptTrajectory(n_prompts=1, n_steps=2, best=") and "\n" not in repr(
        found
    )
    assert "top_on_report" in found._repr_html_()
    read = skn.studies.PromptTrajectory.load(found.save(tmp_path / "found.json"))
    pd.testing.assert_frame_equal(read.steps, found.steps)
    assert read.settings == found.settings and read.settings["prompts"][0]["seed"] == 0
