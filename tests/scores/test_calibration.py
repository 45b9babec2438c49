"""Calibration on a model's own activations: shuffled labels are rarely called significant, a planted neuron often."""

import pytest
import tiny
from drawn import random_outcomes
from toy import QUIET, prompt_for, task_of

import tl_skillneurons as skn


def test_shuffled_labels_on_a_models_activations_alarm_no_more_often_than_promised(tmp_path):
    rows = tiny.sentences(260, seed=3)
    task = task_of(rows, train=rows[:60], validation=rows[60:200], test=rows[200:])
    model = tiny.bridge("bert")
    prompts = [prompt_for("bert"), prompt_for("bert", seed=1)]
    scores = skn.score_neurons(model, prompts, task, keep_outcomes=True, run=QUIET)
    found = skn.scores.check_calibration(scores.outcomes, n_repetitions=40, planted=0.8, run=QUIET)
    low, high = found.false_interval
    assert low <= 0.05 <= high and found.n_examples == 140
    assert found.n_found / found.n_repetitions > 0.9 and found.power_interval[0] > 0.8
    frame = found.to_dataframe()
    assert (
        frame.n.tolist() == [found.n_false, found.n_found] and tuple(frame.low)[1] == found.power_interval[0]
    )
    assert "of 40 shufflings of 140 labels" in repr(found) and "<table" in found._repr_html_()
    assert skn.scores.Calibration.load(found.save(tmp_path / "calibration.json")) == found


def test_calibrations_that_make_no_sense_are_refused():
    _, outcomes = random_outcomes()
    with pytest.raises(ValueError, match=r"planted must be an accuracy in \[0.5, 1\], got 0.3"):
        skn.scores.check_calibration(outcomes, planted=0.3)
    with pytest.raises(ValueError, match="n_permutations must be at least 19"):
        skn.scores.check_calibration(outcomes, n_permutations=9)
