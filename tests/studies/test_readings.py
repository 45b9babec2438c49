"""The same scores with tuned prompts and with everything less: what each control is, and one table."""

import pytest
import tiny
import torch
from toy import TASK, prompt_for, task_of

import tl_skillneurons as skn
from tl_skillneurons.scores.rules import rule_answers


@pytest.fixture(scope="module")
def models():
    return {family: tiny.bridge(family, dtype=torch.float64) for family in ("gpt2", "bert")}


@pytest.mark.parametrize("family", ["gpt2", "bert"])
def test_every_reading_is_what_scoring_it_alone_gives(models, family):
    model = models[family]
    prompts = [prompt_for(family), prompt_for(family, seed=1)]
    found = skn.studies.compare_readings(
        model, prompts, TASK, natural=["the film was"], n_top=3, n_permutations=99, progress=False
    )
    assert list(found.scores) == ["tuned", "random", "natural", "last", "mean", "max"]
    for name, given, positions in (("tuned", prompts, "prompt"), ("last", None, "last")):
        alone = skn.score_neurons(model, given, TASK, positions=positions, progress=False)
        assert torch.equal(found.scores[name].correct, alone.correct)
        rules = skn.scores.rule_accuracy(model, given, TASK, alone, progress=False)
        expected = alone.rule_accuracy(found.tops[name], rules).mean()
        assert float(found.accuracy[name].mean()) == pytest.approx(float(expected))
    words = [tiny.VOCABULARY[word] for word in "the film was".split()]
    row = model.W_E[words]
    by_hand = skn.SoftPrompt(row, placement=prompts[0].placement)
    alone = skn.score_neurons(model, by_hand, TASK, progress=False)
    assert torch.equal(found.scores["natural"].correct, alone.correct)
    frame = found.to_dataframe()
    assert list(frame.n_prompts) == [2, 2, 1, 1, 1, 1] and set(frame.role) == {"report"}
    assert frame.minus_tuned[0] == frame.minus_low[0] == frame.minus_high[0] == 0
    assert frame.minus_tuned[1] == pytest.approx(frame.accuracy[1] - frame.accuracy[0])
    assert (frame.minus_low <= frame.minus_tuned).all() and (frame.minus_tuned <= frame.minus_high).all()
    again = skn.studies.compare_readings(
        model, prompts, TASK, natural=["the film was"], n_top=3, n_permutations=99, progress=False
    )
    assert again.to_dataframe().equals(frame)


def test_shuffled_and_reinitialised_controls_are_tuned_and_run_as_they_say(models):
    prompts = [prompt_for("gpt2")]
    other = tiny.bridge("gpt2", seed=1, dtype=torch.float64)
    found = skn.studies.compare_readings(
        models["gpt2"],
        prompts,
        TASK,
        random=False,
        pooled=(),
        shuffled={"n_steps": 2, "batch_size": 4},
        reinitialised=other,
        n_top=2,
        n_permutations=19,
        progress=False,
    )
    assert list(found.scores) == ["tuned", "shuffled", "reinitialised"]
    alone = skn.score_neurons(other, prompts, TASK, progress=False)
    assert torch.equal(found.scores["reinitialised"].correct, alone.correct)
    noise = TASK.with_shuffled_labels(0)
    settings = {"n_virtual_tokens": 3, "n_steps": 2, "batch_size": 4}
    with pytest.warns(UserWarning, match="not below chance"):
        tuned = skn.fit_soft_prompts(models["gpt2"], noise, seeds=[0], progress=False, **settings)
    alone = skn.score_neurons(models["gpt2"], tuned, TASK, progress=False)
    assert torch.equal(found.scores["shuffled"].correct, alone.correct)


def test_shuffled_labels_keep_texts_and_counts_and_leave_other_roles():
    noise = TASK.with_shuffled_labels(3)
    assert noise.split("train")["text"][:] == TASK.split("train")["text"][:]
    assert noise.class_counts("train") == TASK.class_counts("train")
    assert noise.split("train")["label"][:] != TASK.split("train")["label"][:]
    assert noise.split("baseline")["label"][:] == noise.split("train")["label"][:]
    assert noise.split("report")["label"][:] == TASK.split("report")["label"][:]
    assert TASK.with_shuffled_labels(3).fingerprint == noise.fingerprint != TASK.fingerprint
    assert "the labels of train and baseline are shuffled (seed 3)." in noise.notes


def test_right_answers_are_those_of_each_rule(models):
    prompt = prompt_for("gpt2")
    scores = skn.score_neurons(models["gpt2"], prompt, TASK, progress=False)
    top = scores.top(5, per="model")
    on_select = rule_answers(models["gpt2"], prompt, TASK, scores, top, role="select")
    torch.testing.assert_close(on_select.mean((0, 1)), scores.rule_accuracy(top))


def test_a_selected_set_is_reported_on_examples_that_did_not_choose_it_with_intervals(models):
    prompts = [prompt_for("bert"), prompt_for("bert", seed=1)]
    scores = skn.score_neurons(models["bert"], prompts, TASK, progress=False)
    top = scores.top(4, per="model")
    found = skn.scores.selected_accuracy(models["bert"], prompts, TASK, scores, top)
    rules = skn.scores.rule_accuracy(models["bert"], prompts, TASK, scores, progress=False)
    expected = scores.rule_accuracy(top, rules)
    torch.testing.assert_close(torch.tensor(found.neurons.accuracy.to_numpy()), expected)
    assert found.mean == pytest.approx(float(expected.mean())) and found.low <= found.mean <= found.high
    assert (found.neurons.low <= found.neurons.accuracy).all() and found.role == "report"
    assert "on 15 examples of report" in str(found) and "on select, which chose them" in str(found)
    with pytest.raises(ValueError, match="prompts that are not the 1 given"):
        skn.scores.selected_accuracy(models["bert"], prompts[0], TASK, scores, top)
    with pytest.raises(ValueError, match="at least one neuron"):
        skn.scores.selected_accuracy(models["bert"], prompts, TASK, scores, skn.NeuronSet([], []))


def test_readings_that_cannot_be_compared_are_refused(models):
    prompt = prompt_for("gpt2")
    with pytest.raises(ValueError, match="readings without a prompt come by pooled="):
        skn.studies.compare_readings(models["gpt2"], None, TASK)
    with pytest.raises(ValueError, match="a natural-language prompt must have at least one token, got ''"):
        skn.studies.compare_readings(models["gpt2"], prompt, TASK, natural=[""])
    words = {0: "negative", 1: "positive", 2: "other"}
    rows = [{"text": row["text"], "label": n % 3} for n, row in enumerate(tiny.sentences(54, seed=2))]
    with pytest.raises(ValueError, match="predictivity is defined for two classes"):
        skn.studies.compare_readings(models["gpt2"], prompt, task_of(rows, words))
