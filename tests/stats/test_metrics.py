"""What is read from class logits, against numbers worked out by hand."""

import math

import pytest
import torch

from tl_skillneurons.stats.metrics import answer_confidence, calibration_error, per_example, value_of

LOGITS = torch.tensor([[2.0, 0.5, 1.0], [0.0, 3.0, -1.0], [1.0, 0.0, 4.0]])
LABELS = torch.tensor([0, 2, 2])


def test_the_metrics_of_single_examples_are_those_of_their_definitions():
    assert per_example("accuracy", LOGITS, LABELS).tolist() == [1.0, 0.0, 1.0]
    assert per_example("logit_diff", LOGITS, LABELS).tolist() == [1.0, -4.0, 3.0]
    by_hand = [math.exp(2) / (math.exp(2) + math.exp(0.5) + math.exp(1))]
    assert per_example("probability", LOGITS, LABELS)[0].item() == pytest.approx(by_hand[0])
    assert per_example("cross_entropy", torch.tensor([[1.5], [2.5]]), None).tolist() == [1.5, 2.5]
    assert all(per_example(m, LOGITS, LABELS).dtype == torch.float64 for m in ("accuracy", "probability"))


def test_a_metric_of_all_examples_is_the_mean_of_theirs_and_calibration_is_that_of_the_predicted_class():
    for metric in ("accuracy", "logit_diff", "probability"):
        assert value_of(metric, LOGITS, LABELS) == float(per_example(metric, LOGITS, LABELS).mean())
    probability, right = answer_confidence(LOGITS, LABELS)
    assert right.tolist() == [True, False, True]
    torch.testing.assert_close(probability, LOGITS.double().softmax(1).amax(1))
    assert value_of("calibration_error", LOGITS, LABELS) == calibration_error(probability, right) > 0


def test_calibration_is_perfect_where_each_bin_is_as_often_right_as_it_says():
    sure = torch.tensor([0.75] * 4 + [1.0] * 3)
    assert calibration_error(sure, torch.tensor([True, True, True, False, True, True, True])) == 0
    assert calibration_error(torch.tensor([0.9, 0.9]), torch.tensor([False, False])) == pytest.approx(0.9)
    mixed = calibration_error(torch.tensor([0.55, 0.95]), torch.tensor([True, False]))
    assert mixed == pytest.approx((0.45 + 0.95) / 2)


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: calibration_error(2 * torch.ones(3), torch.ones(3) > 0), r"must be in \[0, 1\]"),
        (lambda: calibration_error(torch.ones(3), torch.ones(2) > 0), "got 3 and 2"),
        (lambda: per_example("logit_dif", LOGITS, LABELS), "did you mean 'logit_diff'"),
        (lambda: per_example("calibration_error", LOGITS, LABELS), "metric must be one of"),
        (lambda: value_of("accuracy", LOGITS, None), "accuracy needs the class of each example"),
        (lambda: value_of("calibration_error", LOGITS, None), "calibration_error needs the class of each"),
    ],
)
def test_what_cannot_be_read_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
