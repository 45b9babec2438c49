"""What a panel says of class logits: closed forms, and the control's rank in the right direction."""

import math

import pytest
import torch

from tl_skillneurons.interventions.effect_panel import Condition, EffectPanel, Measured, per_example, value_of

LABELS = torch.tensor([0, 1, 1, 0])
INTACT = torch.tensor([[2.0, 0.0], [0.0, 1.0], [0.0, 3.0], [1.0, 0.0]])  # all right
HARMED = torch.tensor([[0.0, 2.0], [1.0, 0.0], [0.0, 3.0], [1.0, 0.0]])  # two wrong


def panel(chosen, controls, what="mean", labels=LABELS, intact=INTACT, n=20):
    conditions, outputs = [], {}
    for kind, output in [("chosen", chosen), *(("random", controls),) * n, *(("matched", controls),) * n]:
        draw = sum(c.neurons == kind for c in conditions)
        conditions.append(Condition(what, "prompt", "whole", kind, draw, 3))
        outputs[conditions[-1].key] = output
    measured = Measured("toy", "total", labels, intact, outputs)
    return EffectPanel(tuple(conditions), (measured,), "report", {})


def row(frame, metric):
    return frame[frame.metric == metric].iloc[0]


def test_each_metric_is_what_its_formula_says():
    assert value_of("accuracy", HARMED, LABELS) == 0.5
    assert value_of("logit_diff", HARMED, LABELS) == pytest.approx((-2 - 1 + 3 + 1) / 4)
    p = [1 / (1 + math.exp(-d)) for d in (-2.0, -1.0, 3.0, 1.0)]
    assert value_of("probability", HARMED, LABELS) == pytest.approx(sum(p) / 4)
    assert value_of("cross_entropy", torch.tensor([[1.0], [3.0]]), None) == 2.0


def test_of_several_classes_the_logit_diff_is_to_the_highest_other():
    logits = torch.tensor([[1.0, 5.0, 2.0], [4.0, 0.0, 1.0]])
    assert per_example("logit_diff", logits, torch.tensor([2, 0])).tolist() == [-3.0, 3.0]


def test_harm_beyond_every_control_has_the_smallest_p_value_and_harmless_controls_show_no_change():
    frame = panel(HARMED, INTACT).to_dataframe()
    for metric in ("accuracy", "logit_diff", "probability"):
        found = row(frame, metric)
        assert found.p_random == found.p_matched == 1 / 21
        assert found.change < 0 and found.random_median == found.intact
    found = row(frame, "accuracy")
    assert (found.intact, found.value, found.change, found.n_examples, found.role) == (
        1,
        0.5,
        -0.5,
        4,
        "report",
    )
    assert found.p_mcnemar == 0.5  # two lost of two
    assert found.value_low < 0.5 < found.value_high
    assert found.change_low <= -0.5 <= found.change_high


def test_harm_that_every_control_does_too_is_no_finding():
    frame = panel(HARMED, HARMED).to_dataframe()
    assert (frame.p_random == 1).all() and (frame.p_matched == 1).all()


def test_more_calibration_error_and_cross_entropy_is_harm():
    sure_and_wrong = torch.tensor([[0.0, 9.0], [9.0, 0.0], [0.0, 9.0], [9.0, 0.0]])
    assert row(panel(sure_and_wrong, INTACT).to_dataframe(), "calibration_error").p_random == 1 / 21
    worse = panel(torch.full((4, 1), 2.0), torch.ones(4, 1), labels=None, intact=torch.ones(4, 1))
    assert row(worse.to_dataframe(), "cross_entropy").p_random == 1 / 21


def test_what_keeps_more_than_every_control_is_sufficient_beyond_them():
    assert row(panel(INTACT, HARMED, "keep").to_dataframe(), "accuracy").p_random == 1 / 21
    assert row(panel(HARMED, INTACT, "keep").to_dataframe(), "accuracy").p_random == 1


def test_the_draws_frame_has_every_control_and_the_intervals_come_with_a_seed():
    one = panel(HARMED, INTACT)
    draws = one.draws()
    assert len(draws) == 4 * 41 and set(draws.neurons) == {"chosen", "random", "matched"}
    assert one.to_dataframe(seed=1).equals(one.to_dataframe(seed=1))


def test_specificity_compares_the_drop_with_that_on_other_tasks():
    one = panel(HARMED, INTACT)
    [first] = one.measured
    half = HARMED.clone()
    half[0] = INTACT[0]  # one wrong
    key = one.conditions[0].key
    other = Measured("other", "total", LABELS, INTACT, {**first.outputs, key: half})
    plain = Measured("plain text", "total", None, torch.ones(2, 1), {key: torch.full((2, 1), 1.5)})
    found = EffectPanel(one.conditions, (first, other, plain), "report", {}).specificity().iloc[0]
    assert (found["drop"], found["other_drop"], found["ratio"]) == (0.5, 0.25, 2.0)
    assert (found["random_drop"], found["random_other_drop"], found["cross_entropy_increase"]) == (0, 0, 0.5)
    with pytest.raises(ValueError, match="needs another task"):
        one.specificity()
    with pytest.raises(ValueError, match="did you mean 'accuracy'"):
        EffectPanel(one.conditions, (first, other), "report", {}).specificity("acuracy")
