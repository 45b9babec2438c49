"""Intervals of shares of right answers by units, beside scipy's exact one."""

import pytest
import torch
from scipy import stats

from tl_skillneurons.stats.intervals import bootstrap_mean
from tl_skillneurons.stats.rates import rate_interval
from tl_skillneurons.stats.units import Units


def test_answers_that_stand_alone_have_the_exact_interval_and_those_of_units_the_bootstraps():
    right = torch.tensor([True] * 15 + [False] * 5)
    exact = stats.binomtest(15, 20).proportion_ci(method="exact")
    assert rate_interval(right, Units.single(20)) == pytest.approx((exact.low, exact.high))
    units = Units(torch.arange(20) // 2, "group")
    low, high = bootstrap_mean(right.double(), units=units, seed=3)
    assert rate_interval(right, units, seed=3) == (low, high)


def test_answers_that_are_all_right_are_no_certainty_be_they_by_units():
    words = Units(torch.arange(12).repeat_interleave(5), "word pair")
    right = torch.ones(60, dtype=torch.float64)
    exact = stats.binomtest(12, 12).proportion_ci(method="exact")
    assert rate_interval(right, words) == pytest.approx((exact.low, 1))
    assert rate_interval(1 - right, words) == pytest.approx((0, 1 - exact.low))


def test_answers_of_other_examples_than_the_units_are_refused():
    with pytest.raises(ValueError, match="units must be of the 3 examples"):
        rate_interval(torch.ones(3).bool(), Units.single(4))
    with pytest.raises(ValueError, match="n must be an integer of at least 1, got 0"):
        rate_interval(torch.ones(0).bool(), Units.single(0))
