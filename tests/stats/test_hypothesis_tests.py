"""Tests of differences against closed forms, scipy and enumeration."""

import itertools
import math

import pytest
import torch
from scipy import stats

from tl_skillneurons.stats.hypothesis_tests import (
    mcnemar,
    permutation_difference,
    rank_p_value,
    require_draws,
    sign_flip_test,
)
from tl_skillneurons.stats.units import Units


def test_a_rank_p_value_counts_the_observed_value_and_ties():
    draws = [0.8, 0.7, 0.9, 0.7]
    assert rank_p_value(0.6, draws) == 1 / 5
    assert rank_p_value(0.7, draws) == 3 / 5
    assert rank_p_value(0.7, draws, "greater") == 5 / 5
    assert rank_p_value(1, torch.tensor(draws), "greater") == 1 / 5


def test_float32_draws_tie_with_the_float32_value_observed():
    draws = torch.tensor([0.7, 0.8])
    assert rank_p_value(draws[0].item(), draws) == 2 / 3


def test_rank_p_values_are_uniform_when_the_observed_value_is_one_of_the_draws():
    values = torch.rand(20, generator=torch.Generator().manual_seed(0))
    ps = sorted(rank_p_value(values[i].item(), torch.cat([values[:i], values[i + 1 :]])) for i in range(20))
    assert ps == [(i + 1) / 20 for i in range(20)]


def test_a_two_sided_rank_p_is_the_same_both_ways_and_never_smaller_more_often_than_it_says():
    values = torch.randn(20, generator=torch.Generator().manual_seed(0), dtype=torch.float64).tolist()
    found = []
    for number, observed in enumerate(values):
        drawn = values[:number] + values[number + 1 :]
        found.append(rank_p_value(observed, drawn, "two-sided"))
        assert found[-1] == rank_p_value(-observed, [-v for v in drawn], "two-sided")
    for rank in range(1, 21):
        assert sum(p <= rank / 20 for p in found) <= rank
    middle = torch.tensor(values, dtype=torch.float64).quantile(0.5)
    assert min(found) == 1 / 20 == found[max(range(20), key=lambda k: abs(values[k] - middle))]


@pytest.mark.parametrize(
    ("observed", "drawn", "expected"),
    [
        (0.5, [1.0] * 19, 1 / 20),  # 19 controls reach 0.05 on either side
        (1.5, [1.0] * 19, 1 / 20),
        (1.0, [1.0] * 19, 1),
        (0.8, [0.9, 0.7, 0.8, 0.8], 1),
        (0.7, [0.9, 0.8, 0.8, 0.8], 2 / 5),  # 0.9 is as far from 0.8, whatever rounding says
        (0.75, [0.8, 0.7, 0.9, 0.7], 1),  # in the middle
    ],
)
def test_what_is_as_far_from_the_median_of_all_counts_as_extreme(observed, drawn, expected):
    assert rank_p_value(observed, drawn, "two-sided") == expected


def test_two_sided_rank_p_values_have_their_size_for_a_lopsided_law_and_for_few_distinct_values():
    generator = torch.Generator().manual_seed(0)
    lopsided = torch.rand(2000, 20, generator=generator, dtype=torch.float64).log()
    ps = [rank_p_value(row[0].item(), row[1:], "two-sided") for row in lopsided]
    assert sum(p <= 0.05 for p in ps) / 2000 == pytest.approx(0.05, abs=0.015)  # three standard errors
    counts = (lopsided * 2).round()
    ps = [rank_p_value(row[0].item(), row[1:], "two-sided") for row in counts]
    assert sum(p <= 0.05 for p in ps) / 2000 <= 0.065


def runs(n_both, n_lost, n_gained, n_neither):
    before = [True] * (n_both + n_lost) + [False] * (n_gained + n_neither)
    after = [True] * n_both + [False] * n_lost + [True] * n_gained + [False] * n_neither
    return torch.tensor(before), torch.tensor(after)


@pytest.mark.parametrize(
    ("lost", "gained", "p"),
    [(0, 0, 1.0), (5, 0, 2 / 32), (0, 5, 2 / 32), (3, 3, 1.0), (9, 1, 2 * 11 / 1024), (6, 2, 2 * 37 / 256)],
)
def test_mcnemars_p_is_the_binomial_tail_of_the_changed_answers(lost, gained, p):
    found = mcnemar(*runs(4, lost, gained, 7))
    assert (found.n_lost, found.n_gained) == (lost, gained)
    assert found.p_value == pytest.approx(p)


def test_the_permutation_p_is_that_of_all_permutations_where_these_are_few():
    values = torch.tensor([[0.1, 0.9, 1.3, 2.0, 2.2, 3.5], [1.0, -1.0, 0.5, -0.5, 0.2, -0.2]])
    labels = torch.tensor([0, 0, 0, 1, 1, 1])
    found = permutation_difference(values, labels, n_draws=4000, seed=0)
    rows = values.double()
    observed = rows[:, 3:].mean(1) - rows[:, :3].mean(1)
    torch.testing.assert_close(found.difference, observed)
    every = []
    for ones in itertools.combinations(range(6), 3):
        zeros = [k for k in range(6) if k not in ones]
        every.append(rows[:, list(ones)].mean(1) - rows[:, zeros].mean(1))
    every = torch.stack(every).abs()
    exact = (every >= observed.abs() - 1e-12).double().mean(0)
    assert found.n_draws == 19
    torch.testing.assert_close(found.p_value, exact, atol=1e-12, rtol=0)
    spread = rows.std(1, correction=0)
    largest = (every / spread).amax(1)
    family = (largest[:, None] >= observed.abs() / spread - 1e-12).double().mean(0)
    torch.testing.assert_close(found.p_family, family, atol=1e-12, rtol=0)
    assert (found.p_family >= found.p_value - 1e-12).all()


def test_with_labels_that_mean_nothing_few_families_hold_a_finding():
    generator = torch.Generator().manual_seed(2)
    labels = torch.arange(40) % 2
    hits = 0
    for number in range(100):
        values = torch.randn(30, 40, generator=generator)
        hits += bool((permutation_difference(values, labels, n_draws=99, seed=number).p_family <= 0.05).any())
    assert hits <= 12  # Binomial(100, 0.05) exceeds it with probability 0.0015


def test_a_planted_difference_is_found_and_a_constant_row_is_not():
    labels = torch.arange(20) % 2
    values = torch.stack([labels.float() + 0.01 * torch.arange(20), torch.ones(20)])
    found = permutation_difference(values, labels, n_draws=999)
    assert found.p_family.tolist() == [1 / 1000, 1.0]


@pytest.mark.parametrize("n", [19, 20, 100])
def test_enough_draws_pass(n):
    assert require_draws(n, 0.05) == n


def test_mcnemars_p_is_that_of_scipys_binomial_test():
    for lost, gained in [(1, 7), (12, 30), (300, 251)]:
        theirs = stats.binomtest(min(lost, gained), lost + gained).pvalue
        assert mcnemar(*runs(5, lost, gained, 5)).p_value == pytest.approx(theirs, rel=1e-9)


def test_by_units_answers_change_sides_together():
    before = torch.tensor([1, 1, 1, 0, 0, 1, 1, 0, 1, 1]) > 0
    after = torch.tensor([0, 0, 1, 1, 0, 0, 1, 0, 0, 0]) > 0
    units = Units(torch.tensor([0, 0, 1, 2, 2, 2, 3, 3, 4, 4]))
    sums = units.sums(after.long() - before.long()).tolist()
    assert sums == [-2, 0, 0, 0, -2]
    signs = list(itertools.product((-1, 1), repeat=5))
    exact = sum(
        abs(sum(a * b for a, b in zip(sums, one, strict=True))) >= abs(sum(sums)) for one in signs
    ) / len(signs)
    found = mcnemar(before, after, units=units)
    assert (found.n_lost, found.n_gained, found.p_value) == (5, 1, exact)
    assert sign_flip_test(after.double() - before.double(), units=units).item() == exact
    assert mcnemar(before, after, units=Units.single(10)) == mcnemar(before, after)


def test_copies_of_changed_answers_prove_nothing_more():
    generator = torch.Generator().manual_seed(0)
    units = Units(torch.arange(30).repeat_interleave(5))
    hits = [0, 0]
    for _ in range(300):
        before, after = (torch.rand(2, 30, generator=generator) < 0.7).repeat_interleave(5, dim=1)
        hits[0] += mcnemar(before, after, units=units).p_value <= 0.05
        hits[1] += mcnemar(before, after).p_value <= 0.05
    assert hits[0] <= 26 and hits[1] > 60  # Binomial(300, 0.05) exceeds 26 with probability 0.003


def test_sign_flips_are_counted_out_where_few_and_drawn_where_many():
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(3, 10, generator=generator, dtype=torch.float64) + torch.tensor(
        [[0.0], [0.5], [2.0]]
    )
    signs = torch.tensor(list(itertools.product((-1.0, 1.0), repeat=10)), dtype=torch.float64)
    exact = ((values @ signs.T).abs() >= values.sum(1).abs()[:, None] - 1e-9).double().mean(1)
    torch.testing.assert_close(sign_flip_test(values), exact)
    torch.testing.assert_close(sign_flip_test(values, n_draws=900), exact, atol=0.05, rtol=0)
    assert sign_flip_test(values, n_draws=900)[2] >= 1 / 901
    assert sign_flip_test(torch.full((6,), 0.1)).item() == 2 / 64  # all signs alike, whatever rounding says


def test_a_difference_of_groups_is_compared_with_labels_dealt_to_groups():
    generator = torch.Generator().manual_seed(1)
    units = Units(torch.arange(24).repeat_interleave(6))
    labels = (torch.arange(24) % 2).repeat_interleave(6)
    hits = [0, 0]
    for number in range(100):
        values = torch.randn(5, 24, generator=generator).repeat_interleave(6, dim=1)
        values = values + 0.3 * torch.randn(5, 144, generator=generator)
        by_unit = permutation_difference(values, labels, n_draws=99, seed=number, units=units)
        one_by_one = permutation_difference(values, labels, n_draws=99, seed=number)
        torch.testing.assert_close(by_unit.difference, one_by_one.difference)
        hits[0] += bool((by_unit.p_family <= 0.05).any())
        hits[1] += bool((one_by_one.p_family <= 0.05).any())
    assert hits[0] <= 12 and hits[1] > 50  # Binomial(100, 0.05) exceeds 12 with probability 0.0015


ONES = torch.ones(3)
HALVES = Units(torch.tensor([0, 0, 1, 1]))
REFUSALS = {
    "draws": (lambda: require_draws(18, 0.05), "n_random must be at least 19 for a p-value of 0.05, got 18"),
    "alpha": (lambda: require_draws(98, 0.01), "at least 99"),
    "pairs": (lambda: mcnemar(torch.ones(2) > 0, torch.ones(3) > 0), "got 2 and 3"),
    "units": (
        lambda: mcnemar(ONES > 0, ONES > 0, units=Units.single(2)),
        "of the 3 examples, got those of 2",
    ),
    "no differences": (lambda: sign_flip_test(torch.ones(0)), "at least one example, got none"),
    "few units": (
        lambda: permutation_difference(ONES[[0, 0, 1, 1]], torch.tensor([0, 1, 0, 1]), units=HALVES),
        r"2 units \(text\) of 4 examples can be labelled in no other way",
    ),
    "one label": (lambda: permutation_difference(ONES, torch.ones(3, dtype=torch.long)), r"got \[1\]"),
    "length": (lambda: permutation_difference(ONES, torch.tensor([0, 1])), "got 2 for 3"),
    "no draws": (lambda: rank_p_value(0.5, []), "drawn must hold at least one number, got none"),
    "nan": (lambda: rank_p_value(math.nan, [0.5]), "got value = nan and 0 NaN among 1 draws"),
    "nan drawn": (lambda: rank_p_value(0.5, [0.5, math.nan]), "got value = 0.5 and 1 NaN among 2 draws"),
    "side": (lambda: rank_p_value(0.5, [0.5], "smaller"), "alternative must be one of 'less'"),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_what_makes_no_sense_is_refused(name):
    call, message = REFUSALS[name]
    with pytest.raises(ValueError, match=message):
        call()
