"""Intervals and tests against closed forms and slow loops."""

import itertools

import pytest
import torch

from tl_skillneurons.stats.intervals import (
    bootstrap_mean,
    calibration_error,
    equivalence,
    mcnemar,
    permutation_difference,
    require_draws,
)


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


def test_the_bootstrap_covers_the_true_mean_about_as_often_as_it_says():
    generator = torch.Generator().manual_seed(0)
    samples = torch.randn(400, 50, generator=generator) + 3
    covered = 0
    for number, sample in enumerate(samples):
        low, high = bootstrap_mean(sample, n_draws=400, seed=number)
        covered += bool(low <= 3 <= high)
    assert 0.88 <= covered / 400 <= 0.98  # nominal 0.95; the percentile method is a little short at 50


def test_the_bootstrap_is_that_of_a_slow_loop_whatever_the_chunks(monkeypatch):
    from tl_skillneurons.stats import intervals

    values = torch.randn(2, 3, 7, generator=torch.Generator().manual_seed(1))
    low, high = bootstrap_mean(values, n_draws=50, seed=4)
    generator = torch.Generator().manual_seed(4)
    means = torch.stack(
        [values.double()[..., rows].mean(-1) for rows in torch.randint(7, (50, 7), generator=generator)]
    )
    expected = means.quantile(torch.tensor([0.025, 0.975], dtype=torch.float64), dim=0)
    torch.testing.assert_close(torch.stack([low, high]), expected)
    monkeypatch.setattr(intervals, "_MOST_NUMBERS", 21)
    torch.testing.assert_close(torch.stack(bootstrap_mean(values, n_draws=50, seed=4)), expected)


def test_a_constant_has_an_interval_of_no_width():
    low, high = bootstrap_mean(torch.full((4,), 0.25))
    assert low == high == 0.25


def test_calibration_is_perfect_where_each_bin_is_as_often_right_as_it_says():
    sure = torch.tensor([0.75] * 4 + [1.0] * 3)
    assert calibration_error(sure, torch.tensor([True, True, True, False, True, True, True])) == 0
    assert calibration_error(torch.tensor([0.9, 0.9]), torch.tensor([False, False])) == pytest.approx(0.9)
    mixed = calibration_error(torch.tensor([0.55, 0.95]), torch.tensor([True, False]))
    assert mixed == pytest.approx((0.45 + 0.95) / 2)


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


ONES = torch.ones(3)
REFUSALS = {
    "draws": (lambda: require_draws(18, 0.05), "n_random must be at least 19 for a p-value of 0.05, got 18"),
    "alpha": (lambda: require_draws(98, 0.01), "at least 99"),
    "pairs": (lambda: mcnemar(torch.ones(2) > 0, torch.ones(3) > 0), "got 2 and 3"),
    "nothing": (lambda: bootstrap_mean(torch.ones(2, 0)), "at least one example"),
    "confidence": (lambda: bootstrap_mean(ONES, confidence=1.0), "confidence must be between"),
    "range": (lambda: calibration_error(2 * ONES, ONES > 0), r"must be in \[0, 1\]"),
    "examples": (lambda: calibration_error(ONES, torch.ones(2) > 0), "got 3 and 2"),
    "one label": (lambda: permutation_difference(ONES, torch.ones(3, dtype=torch.long)), r"got \[1\]"),
    "length": (lambda: permutation_difference(ONES, torch.tensor([0, 1])), "got 2 for 3"),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_what_makes_no_sense_is_refused(name):
    call, message = REFUSALS[name]
    with pytest.raises(ValueError, match=message):
        call()


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
