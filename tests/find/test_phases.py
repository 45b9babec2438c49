"""Where the story stops, which prompts it goes on with, and which label it is about."""

from dataclasses import replace

import planted
import pytest
import tiny
import torch
from runs import quick_run
from tuned import learnable


@pytest.fixture(scope="module")
def skewed(skn):
    """Texts that say nothing of their label, which is 1 in 87 of 100."""
    rows = [{**row, "label": int(k % 8 > 0)} for k, row in enumerate(tiny.sentences(160))]
    data = {"train": rows[:80], "validation": rows[80:120], "test": rows[120:]}
    words = {0: "negative", 1: "positive"}
    return skn.Task.from_datasets(data, template="{text}", label_words=words, name="skewed")


@pytest.fixture(scope="module")
def stopped(skn, skewed, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "run"
    with pytest.warns(UserWarning, match="not below chance"):
        return quick_run(tiny.bridge("llama"), skewed, folder, n_steps=2)


def test_without_a_prompt_that_beats_the_majority_no_later_phase_runs(skn, stopped):
    assert stopped.stopped and [verdict.answer for verdict in stopped.verdicts] == ["NO"]
    assert stopped.verdicts[0].sentence.startswith("No prompt, no skill neurons: ")
    assert sorted(path.name for path in stopped.folder.iterdir()) == [
        "answers.safetensors",
        "prompts",
        "run.json",
        "task.json",
    ]
    again = skn.load_run(stopped.folder)
    assert again.stopped and again.verdicts == stopped.verdicts and again.prompts == []


@pytest.mark.parametrize("name", ["scores", "skill", "effects", "curve", "stability", "price", "on_report"])
def test_what_a_stopped_run_does_not_have_is_refused_with_its_verdict(stopped, name):
    with pytest.raises(ValueError, match=r"this run has no neurons\. No prompt, no skill neurons: "):
        getattr(stopped, name)


def test_a_stopped_run_shows_its_one_verdict_and_no_table(stopped, capsys):
    from rich.console import Console

    from tl_skillneurons.report import numbers, show

    show(stopped, Console(width=80))
    printed = capsys.readouterr().out
    assert "Can the task be done?  NO" in printed and "Skill neurons" not in printed
    assert set(numbers(stopped)) == {"verdicts", "prompts", "seconds"}
    assert not len(stopped.to_dataframe()) and "verdicts=['NO']" in repr(stopped)


def test_only_the_prompts_that_beat_the_majority_are_used(skn, tmp_path, monkeypatch):
    from tl_skillneurons.find import phases

    real = phases.measure_answers

    def one_fails(*given):
        answers = real(*given)
        logits = answers.logits.clone()
        logits[0] = torch.tensor([0.0, 1.0])
        return replace(answers, logits=logits)

    monkeypatch.setattr(phases, "measure_answers", one_fails)
    found = quick_run(planted.model(), planted.task(40, 24, 24), tmp_path / "run")
    assert found.used == (1,) and len(found.fitted) == 2 and found.scores.n_prompts == 1
    assert found.scores.provenance["prompts"][0]["seed"] == found.prompts[0].seed == 1
    assert found.effects.to_dataframe().prompt.unique().tolist() == [0]
    assert "The prompt of seed 0 does not beat that, and is not used." in found.verdicts[0].sentence
    assert found.verdicts[3].answer == "NOT ESTABLISHED"  # of a single prompt nobody knows


def test_of_three_classes_one_is_told_from_the_others():
    from tl_skillneurons.find.phases import against_others

    task = learnable(n_classes=3)
    told = against_others(task, 2)
    assert told.n_classes == 2 and told.label_words == {0: " other", 1: "other"}
    assert sum(told.split("report")["label"]) == task.class_counts("report")[2]
    two = against_others(learnable(), 0)
    assert two.label_words == {0: "positive", 1: "negative"}
    with pytest.raises(
        ValueError, match=r"positive must be one of the labels \[0, 1, 2\] of learnable, got 3"
    ):
        against_others(task, 3)


def test_of_an_encoder_no_price_is_measured_and_the_verdict_says_so():
    from tl_skillneurons.find.price import can_be_priced
    from tl_skillneurons.find.verdicts import judge_price

    assert not can_be_priced(tiny.bridge("bert")) and can_be_priced(tiny.bridge("llama"))
    verdict = judge_price(None, "run")
    assert verdict.answer == "NOT ESTABLISHED" and verdict.sentence.startswith("not measured: ")


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"n_random": 18}, "n_random"),
        ({"n_permutations": 10}, "n_permutations"),
        ({"n_examples": 1}, "n_examples"),
        ({"n_curve_random": 0}, "n_curve_random"),
    ],
)
def test_evidence_that_is_too_little_is_refused_before_anything_runs(skn, wrong, message):
    with pytest.raises(ValueError, match=message):
        skn.find.Evidence(**wrong)
