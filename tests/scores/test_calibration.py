"""Calibration on a model's own activations: shuffled labels are rarely called significant, a planted neuron often."""

import pytest
import tiny
import torch
from drawn import random_outcomes
from toy import prompt_for, task_of

import tl_skillneurons as skn
from tl_skillneurons.scores.calibration import _plant


def test_shuffled_labels_on_a_models_activations_alarm_no_more_often_than_promised():
    rows = tiny.sentences(260, seed=3)
    task = task_of(rows, train=rows[:60], validation=rows[60:200], test=rows[200:])
    model = tiny.bridge("bert")
    prompts = [prompt_for("bert"), prompt_for("bert", seed=1)]
    scores = skn.score_neurons(model, prompts, task, keep_outcomes=True, progress=False)
    found = skn.scores.check_calibration(scores.outcomes, n_repetitions=40, planted=0.8, progress=False)
    low, high = found.false_interval
    assert low <= 0.05 <= high and found.n_examples == 140
    assert found.n_found / found.n_repetitions > 0.9 and found.power_interval[0] > 0.8


def test_a_planted_bit_replaces_one_neuron_and_no_other():
    above, outcomes = random_outcomes()
    bit = torch.rand(24, generator=torch.Generator().manual_seed(5)) < 0.5
    planted = _plant(outcomes, bit)
    for prompt in range(2):
        for layer, neurons in planted.chunks(1):
            got = planted.unpack(prompt, layer, neurons).bool()
            expected = above[prompt, :, layer, :, neurons].clone()
            if layer == 0 and neurons.start == 0:
                expected[:, 0, 0] = bit
            assert torch.equal(got, expected)


def test_calibrations_that_make_no_sense_are_refused():
    _, outcomes = random_outcomes()
    with pytest.raises(ValueError, match=r"planted must be an accuracy in \[0.5, 1\], got 0.3"):
        skn.scores.check_calibration(outcomes, planted=0.3)
    with pytest.raises(ValueError, match="n_permutations must be at least 19"):
        skn.scores.check_calibration(outcomes, n_permutations=9)
