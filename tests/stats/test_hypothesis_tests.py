"""Tests of differences against closed forms, scipy and enumeration."""

import itertools
import math

import pytest
import torch
from scipy import stats

from tl_skillneurons.stats.hypothesis_tests import (
    equivalence,
    mcnemar,
    permutation_difference,
    rank_p_value,
    require_draws,
)


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


def test_the_permutation_p_approaches_that_of_all_permutations():
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
    torch.testing.assert_close(found.p_value, exact, atol=0.03, rtol=0)
    spread = rows.std(1, correction=0)
    largest = (every / spread).amax(1)
    family = (largest[:, None] >= observed.abs() / spread - 1e-12).double().mean(0)
    torch.testing.assert_close(found.p_family, family, atol=0.03, rtol=0)
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


def test_equivalence_is_that_of_two_one_sided_z_tests_and_needs_examples():
    generator = torch.Generator().manual_seed(0)
    before = torch.rand(400, generator=generator) < 0.8
    after = torch.where(torch.rand(400, generator=generator) < 0.02, ~before, before)
    d = after.double() - before.double()
    z = [(d.mean() + side * 0.05) / (d.std() / 20) for side in (1, -1)]
    expected = max(1 - torch.special.ndtr(z[0]), torch.special.ndtr(z[1]))
    found = equivalence(before, after, margin=0.05)
    assert found.p_value == pytest.approx(float(expected)) and found.difference == pytest.approx(
        float(d.mean())
    )
    few = equivalence(before[:20], after[:20], margin=0.05)
    assert found.p_value < 0.05 < few.p_value  # the same shares of few examples say little
    worse = equivalence(before, before & (torch.rand(400, generator=generator) < 0.8), margin=0.05)
    assert worse.p_value > 0.9
    assert 0 < equivalence(before, before, margin=0.05).p_value < 1e-6
    with pytest.raises(ValueError, match="same examples, got 400 and 20"):
        equivalence(before, after[:20], margin=0.05)
    with pytest.raises(ValueError, match=r"margin must be a difference of accuracies in \(0, 1\), got 0"):
        equivalence(before, after, margin=0)


def test_mcnemars_p_is_that_of_scipys_binomial_test():
    for lost, gained in [(1, 7), (12, 30), (300, 251)]:
        theirs = stats.binomtest(min(lost, gained), lost + gained).pvalue
        assert mcnemar(*runs(5, lost, gained, 5)).p_value == pytest.approx(theirs, rel=1e-9)


ONES = torch.ones(3)
REFUSALS = {
    "draws": (lambda: require_draws(18, 0.05), "n_random must be at least 19 for a p-value of 0.05, got 18"),
    "alpha": (lambda: require_draws(98, 0.01), "at least 99"),
    "pairs": (lambda: mcnemar(torch.ones(2) > 0, torch.ones(3) > 0), "got 2 and 3"),
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
