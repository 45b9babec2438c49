"""Equivalence of paired answers: its exact p against enumeration, its size at the margin, its power."""

import math

import pytest
import torch

from tl_skillneurons.stats.paired_equivalence import equivalence
from tl_skillneurons.stats.units import Units


def answers(n, n_lost, n_gained):
    """So many answers of which some are lost and some gained; the others stay right."""
    before, after = torch.ones(2, n, dtype=torch.bool)
    after[:n_lost] = False
    before[n_lost : n_lost + n_gained] = False
    return before, after


def z(lost, gained, n, margin):
    linear = lost * (1 + margin) + gained * (1 - margin) - 2 * n * margin
    q = (linear + math.sqrt(linear**2 + 8 * n * gained * margin * (1 - margin))) / (4 * n)
    return (gained - lost + n * margin) / math.sqrt(n * (2 * q + margin - margin**2))


def slow_p(lost, gained, n, margin):
    """The largest probability of so extreme an outcome, all outcomes and many nuisance values counted out."""

    def side(lost, gained):
        extreme = [
            (a, b)
            for a in range(n + 1)
            for b in range(n + 1 - a)
            if z(a, b, n, margin) >= z(lost, gained, n, margin) - 1e-9
        ]
        most = 0.0
        for q in ((1 - margin) / 2 * k / 1000 for k in range(1001)):
            rest = max(0.0, 1 - 2 * q - margin)
            chances = [
                math.comb(n, a) * math.comb(n - a, b) * (q + margin) ** a * q**b * rest ** (n - a - b)
                for a, b in extreme
            ]
            most = max(most, sum(chances))
        return most

    return max(side(lost, gained), side(gained, lost))


@pytest.mark.parametrize("n", [10, 40, 59])
def test_no_change_gives_the_chance_that_none_of_the_answers_shows_a_difference_at_the_margin(n):
    found = equivalence(*answers(n, 0, 0), margin=0.05)
    assert found.difference == 0 and found.p_value == pytest.approx(0.95**n, rel=1e-9)


def test_forty_answers_without_a_change_do_not_prove_equivalence_at_five_percent():
    assert equivalence(*answers(40, 0, 0), margin=0.05).p_value == pytest.approx(0.129, abs=5e-4)


@pytest.mark.parametrize(
    ("n", "lost", "gained", "margin"), [(12, 1, 3, 0.2), (12, 0, 0, 0.3), (10, 0, 1, 0.3), (9, 4, 0, 0.25)]
)
def test_the_p_value_is_the_largest_over_what_is_not_known(n, lost, gained, margin):
    found = equivalence(*answers(n, lost, gained), margin=margin)
    assert found.p_value == pytest.approx(slow_p(lost, gained, n, margin), abs=1e-5)
    assert found.difference == pytest.approx((gained - lost) / n)
    mirrored = equivalence(*answers(n, gained, lost), margin=margin)
    assert mirrored.p_value == pytest.approx(found.p_value)


@pytest.mark.parametrize("p_gained", [0.0, 0.01, 0.05, 0.2])
def test_at_the_margin_it_is_called_no_more_often_than_the_level_says(p_gained):
    n, margin = 60, 0.1
    generator = torch.Generator().manual_seed(0)
    drawn = torch.rand(1500, n, generator=generator)
    lost, gained = (drawn < p_gained + margin).sum(1), (drawn > 1 - p_gained).sum(1)
    p_of = {}
    for counts in set(zip(lost.tolist(), gained.tolist(), strict=True)):
        p_of[counts] = equivalence(*answers(n, *counts), margin=margin).p_value
    called = sum(p_of[counts] <= 0.05 for counts in zip(lost.tolist(), gained.tolist(), strict=True))
    assert called / 1500 <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / 1500)


def test_runs_that_are_alike_are_found_alike_with_enough_answers_and_others_are_not():
    assert equivalence(*answers(400, 8, 8), margin=0.05).p_value < 0.001
    assert equivalence(*answers(400, 40, 0), margin=0.05).p_value > 0.99
    assert equivalence(*answers(400, 12, 0), margin=0.05).p_value > 0.02


def test_units_count_once_and_against_equivalence():
    before, after = answers(200, 0, 0)
    units = Units(torch.arange(40).repeat_interleave(5))
    assert equivalence(before, after, margin=0.05, units=units).p_value == pytest.approx(0.95**40)
    after[[0, 1]] = False  # two answers of one unit
    once = equivalence(before, after, margin=0.05, units=units)
    assert once.p_value == pytest.approx(equivalence(*answers(40, 1, 0), margin=0.05).p_value)
    assert once.difference == -0.01
    single = equivalence(before, after, margin=0.05, units=Units.single(200))
    assert single == equivalence(before, after, margin=0.05)


def test_the_size_by_units_holds_where_whole_units_are_lost():
    generator = torch.Generator().manual_seed(0)
    units = Units(torch.arange(30).repeat_interleave(8))
    called = [0, 0]
    for _ in range(300):
        after = (torch.rand(30, generator=generator) > 0.1).repeat_interleave(8)
        for way, given in enumerate((units, None)):
            called[way] += equivalence(torch.ones(240) > 0, after, margin=0.1, units=given).p_value <= 0.05
    assert called[0] <= 26 and called[1] > 60  # the mean is the margin: at most 15 of 300 are expected


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: equivalence(torch.ones(4) > 0, torch.ones(2) > 0, margin=0.1), "same examples, got 4 and 2"),
        (lambda: equivalence(torch.ones(0) > 0, torch.ones(0) > 0, margin=0.1), "at least one example"),
        (
            lambda: equivalence(*answers(4, 0, 0), margin=0),
            r"margin must be a difference of accuracies in \(0, 1\), got 0",
        ),
        (
            lambda: equivalence(*answers(4, 0, 0), margin=0.1, units=Units.single(3)),
            "units must be of the 4 examples, got those of 3",
        ),
    ],
)
def test_what_makes_no_sense_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(("margin", "fewest"), [(0.1, 29), (0.05, 59), (0.01, 299)])
def test_the_result_says_what_so_few_units_could_have_shown_at_best(margin, fewest):
    """0.9 to the 28th is above 0.05, and to the 29th below."""
    few, enough = (equivalence(*answers(n, 0, 0), margin=margin) for n in (fewest - 1, fewest))
    assert (few.n_units, enough.n_units) == (fewest - 1, fewest)
    assert few.smallest_p == pytest.approx((1 - margin) ** few.n_units) and few.smallest_p > 0.05
    assert enough.smallest_p == enough.p_value <= 0.05
    changed = equivalence(*answers(fewest, 3, 0), margin=margin)
    assert changed.smallest_p == enough.smallest_p < changed.p_value
