"""Calibration on a model's own activations: shuffled labels are rarely called significant, a planted neuron often."""

from dataclasses import replace

import pytest
import tiny
from drawn import grouped_outcomes, random_outcomes
from toy import QUIET, prompt_for, task_of

import tl_skillneurons as skn
from tl_skillneurons.stats.units import Units


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
    assert (
        "of 40 shufflings of 140 labels by 140 units (text)" in repr(found)
        and "<table" in found._repr_html_()
    )
    assert skn.scores.Calibration.load(found.save(tmp_path / "calibration.json")) == found


def test_calibrations_that_make_no_sense_are_refused():
    _, outcomes = random_outcomes()
    with pytest.raises(ValueError, match=r"planted must be an accuracy in \[0.5, 1\], got 0.3"):
        skn.scores.check_calibration(outcomes, planted=0.3)
    with pytest.raises(ValueError, match="n_permutations must be at least 19"):
        skn.scores.check_calibration(outcomes, n_permutations=9)


def test_labels_are_shuffled_by_units_and_texts_taken_for_independent_are_found_out():
    """What a user fears: one label per author. Shuffled text by text the same null looks honest."""
    outcomes = grouped_outcomes(40, 4, 0)
    texts = replace(outcomes, units=Units.single(160))
    honest = skn.scores.check_calibration(outcomes, n_repetitions=40, n_permutations=39, run=QUIET)
    assert honest.false_interval[0] <= 0.05
    assert (honest.unit, honest.n_units) == ("group", 40)
    assert "by 40 units (group) " in str(honest)
    assert honest.to_dataframe().attrs == {"unit": "group", "n_units": 40, "null_unit": "group"}
    settings = {"n_repetitions": 40, "n_permutations": 39, "run": QUIET}
    itself = skn.scores.check_calibration(texts, **settings)
    feared = skn.scores.check_calibration(texts, units=outcomes.units, **settings)
    assert itself.false_interval[0] <= 0.05 < 0.3 < feared.false_interval[0]
    assert "under permutations by text" in str(feared)
    with pytest.raises(ValueError, match="takes about 9 units"):
        skn.scores.check_calibration(grouped_outcomes(4, 4, 0), n_repetitions=30, run=QUIET)
