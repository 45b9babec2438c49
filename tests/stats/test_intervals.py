"""Exact and bootstrap intervals against closed forms, scipy and slow loops."""

import math

import numpy as np
import pytest
import torch
from scipy import stats
from scipy.optimize import brentq

from tl_skillneurons.stats.intervals import bootstrap_mean, clopper_pearson, doubtful_gap, ratio_interval
from tl_skillneurons.stats.units import Units


def tails(n):
    """Where the quantiles of drawn means of ``n`` units lie at 0.95, by scipy."""
    tail = stats.norm.cdf(-math.sqrt(n / (n - 1)) * stats.t.ppf(0.975, n - 1))
    return torch.tensor([tail, 1 - tail], dtype=torch.float64)


def corrected(middle, pulls, n):
    """Where Hall's (1992) corrected t lies between Student's quantiles at 0.95, by scipy, of one row."""
    error = math.sqrt(len(pulls) / (len(pulls) - 1) * sum(pull**2 for pull in pulls))
    g = math.sqrt(n) * sum(pull**3 for pull in pulls) / sum(pull**2 for pull in pulls) ** 1.5

    def of(t):
        y = t / math.sqrt(n)
        return math.sqrt(n) * (y + g * y**2 / 3 + g**2 * y**3 / 27 + g / (6 * n))

    most = stats.t.ppf(0.975, n - 1)
    upper, lower = (brentq(lambda t, at=at: of(t) - at, -500, 500) for at in (most, -most))
    return middle - error * upper, middle - error * lower


def wider(quantiles, corrections):
    """The hull of the intervals of each row, and of their corrections."""
    low, high = quantiles
    lows, highs = torch.tensor(corrections, dtype=torch.float64).T
    return torch.stack([low.minimum(lows.reshape(low.shape)), high.maximum(highs.reshape(high.shape))])


def binomial(n, p):
    return [math.comb(n, k) * p**k * (1 - p) ** (n - k) for k in range(n + 1)]


@pytest.mark.parametrize("n, confidence", [(1, 0.95), (10, 0.95), (200, 0.9)])
def test_the_interval_of_no_hits_and_of_all_hits_has_its_closed_form(n, confidence):
    tail = (1 - confidence) / 2
    assert clopper_pearson(0, n, confidence=confidence) == (0.0, pytest.approx(1 - tail ** (1 / n)))
    assert clopper_pearson(n, n, confidence=confidence) == (pytest.approx(tail ** (1 / n)), 1.0)


@pytest.mark.parametrize("hits, n", [(1, 10), (5, 10), (37, 40), (412, 500)])
def test_the_ends_of_the_interval_leave_the_tail_they_should(hits, n):
    low, high = clopper_pearson(hits, n)
    assert sum(binomial(n, low)[hits:]) == pytest.approx(0.025, rel=1e-9)
    assert sum(binomial(n, high)[: hits + 1]) == pytest.approx(0.025, rel=1e-9)
    assert low < hits / n < high


def test_the_interval_agrees_with_a_printed_table():
    assert clopper_pearson(5, 10) == (pytest.approx(0.1871, abs=5e-5), pytest.approx(0.8129, abs=5e-5))
    assert clopper_pearson(1, 10) == (pytest.approx(0.0025, abs=5e-5), pytest.approx(0.4450, abs=5e-5))


def test_the_interval_covers_every_rate_at_least_as_often_as_promised():
    n = 15
    intervals = [clopper_pearson(hits, n, confidence=0.8) for hits in range(n + 1)]
    for rate in [i / 50 for i in range(51)]:
        inside = [low <= rate <= high for low, high in intervals]
        assert sum(p for p, covers in zip(binomial(n, rate), inside, strict=True) if covers) >= 0.8


@pytest.mark.parametrize("hits, n", [(0, 7), (1, 10), (37, 40), (412, 500), (6000, 13470)])
def test_the_exact_interval_is_that_of_scipy(hits, n):
    theirs = stats.binomtest(hits, n).proportion_ci(0.9, method="exact")
    assert clopper_pearson(hits, n, confidence=0.9) == pytest.approx((theirs.low, theirs.high), abs=1e-12)


def test_the_bootstrap_covers_the_true_mean_about_as_often_as_it_says():
    generator = torch.Generator().manual_seed(0)
    samples = torch.randn(400, 50, generator=generator) + 3
    covered = 0
    for number, sample in enumerate(samples):
        low, high = bootstrap_mean(sample, n_draws=400, seed=number)
        covered += bool(low <= 3 <= high)
    assert 0.92 <= covered / 400 <= 0.98  # nominal 0.95


@pytest.mark.parametrize("n", [10, 26])
def test_the_interval_of_few_units_leaves_out_the_true_mean_no_more_often_than_it_says(n):
    samples = torch.randn(4000, n, generator=torch.Generator().manual_seed(n))
    low, high = bootstrap_mean(samples)
    wrong = int(((low > 0) | (high < 0)).sum())
    assert (
        stats.binomtest(wrong, 4000, 0.05, alternative="greater").pvalue > 0.01
    )  # plain quantiles: 0.09, 0.07


@pytest.mark.parametrize("n, at_most", [(12, 0.075), (26, 0.07), (60, 0.065)])
def test_a_long_tail_is_left_out_less_often_than_the_quantiles_leave_it_out(n, at_most):
    """Exponential values: quantiles alone leave the mean out in 0.086, 0.069 and 0.068, nearly always below it."""
    samples = torch.empty(4000, n).exponential_(generator=torch.Generator().manual_seed(n))
    low, high = bootstrap_mean(samples)
    assert float(((low > 1) | (high < 1)).double().mean()) < at_most


def test_the_interval_of_a_mean_stays_within_the_values():
    answers = torch.tensor([[1.0] * 7 + [0.0], [1.0] + [0.0] * 7])
    low, high = bootstrap_mean(answers)
    assert low.min() >= 0 and high.max() <= 1 and (low < 0.5).all() and (high > 0.5).all()


@pytest.mark.parametrize("n", [12, 26])
@pytest.mark.parametrize("wrong", [1, 2])
def test_of_answers_of_units_that_agree_the_interval_reaches_no_further_than_the_exact_one(n, wrong):
    """By the correction for skewness alone, 10 of 12 right would be an accuracy of 0.00 to 1.00."""
    units = Units(torch.arange(n).repeat_interleave(4), "group")
    right = (torch.arange(n) >= wrong).double().repeat_interleave(4)
    low, high = bootstrap_mean(right, units=units)
    exact = stats.binomtest(n - wrong, n).proportion_ci(method="exact")
    assert exact.low - 1e-9 <= low < right.mean() < high <= 1
    twice = bootstrap_mean(torch.stack([right, 3 - 2 * right]), units=units)
    torch.testing.assert_close(twice[0], torch.stack([low, 3 - 2 * high]))
    torch.testing.assert_close(twice[1], torch.stack([high, 3 - 2 * low]))


def test_of_answers_the_interval_leaves_out_the_true_rate_no_more_often_than_it_says():
    samples = (torch.rand(4000, 26, generator=torch.Generator().manual_seed(1)) < 0.75).double()
    low, high = bootstrap_mean(samples)
    wrong = int(((low > 0.75) | (high < 0.75)).sum())
    assert stats.binomtest(wrong, 4000, 0.05, alternative="greater").pvalue > 0.01
    assert float((high - low).median()) < 0.36  # 0.38 before it stopped at the exact interval


def test_of_many_units_the_interval_is_the_plain_percentile_one():
    samples = torch.randn(5, 2000, generator=torch.Generator().manual_seed(3))
    low, high = bootstrap_mean(samples)
    theirs = stats.bootstrap(
        (samples.double().numpy(),), np.mean, axis=1, method="percentile", n_resamples=2000, rng=0
    )
    interval = theirs.confidence_interval
    width = interval.high - interval.low
    assert np.abs(low.numpy() - interval.low).max() < 0.06 * width.mean()
    assert np.abs(high.numpy() - interval.high).max() < 0.06 * width.mean()


def test_the_bootstrap_is_that_of_a_slow_loop_whatever_the_chunks(monkeypatch):
    from tl_skillneurons.stats import intervals

    values = torch.randn(2, 3, 7, generator=torch.Generator().manual_seed(1))
    low, high = bootstrap_mean(values, n_draws=50, seed=4)
    generator = torch.Generator().manual_seed(4)
    means = torch.stack(
        [values.double()[..., rows].mean(-1) for rows in torch.randint(7, (50, 7), generator=generator)]
    )
    rows = values.double().reshape(6, 7)
    corrections = [corrected(row.mean().item(), ((row - row.mean()) / 7).tolist(), 7) for row in rows]
    expected = wider(means.quantile(tails(7), dim=0), corrections)
    least, most = values.double().aminmax(dim=-1)
    expected = torch.stack([expected[0].maximum(least), expected[1].minimum(most)])
    torch.testing.assert_close(torch.stack([low, high]), expected)
    monkeypatch.setattr(intervals, "_MOST_NUMBERS", 21)
    torch.testing.assert_close(torch.stack(bootstrap_mean(values, n_draws=50, seed=4)), expected)


def test_a_constant_has_an_interval_of_no_width():
    low, high = bootstrap_mean(torch.full((4,), 0.25))
    assert low == high == 0.25


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: clopper_pearson(0, 0), "n must be an integer of at least 1, got 0"),
        (lambda: clopper_pearson(-1, 4), "hits must be an integer of at least 0, got -1"),
        (lambda: clopper_pearson(5, 4), "hits must be at most n, got 5 hits of 4"),
        (lambda: clopper_pearson(2, 4, confidence=1.0), "confidence must be between 0 and 1"),
        (lambda: clopper_pearson(2, 4, confidence=math.nan), "confidence must be between 0 and 1"),
        (lambda: bootstrap_mean(torch.ones(2, 0)), "at least one example"),
        (lambda: bootstrap_mean(torch.ones(3), confidence=1.0), "confidence must be between"),
    ],
)
def test_what_makes_no_sense_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_copies_of_one_example_count_as_one_where_they_are_a_unit():
    values = torch.randn(2, 30, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    copied, units = values.repeat_interleave(4, dim=1), Units(torch.arange(30).repeat_interleave(4))
    for ends, again in zip(bootstrap_mean(values), bootstrap_mean(copied, units=units), strict=True):
        torch.testing.assert_close(ends, again)
    single = Units.single(30)
    assert all(
        a.equal(b) for a, b in zip(bootstrap_mean(values), bootstrap_mean(values, units=single), strict=True)
    )


def test_the_bootstrap_by_units_covers_a_mean_that_single_examples_miss():
    generator = torch.Generator().manual_seed(0)
    units = Units(torch.arange(40).repeat_interleave(6))
    covered = [0, 0]
    for number in range(200):
        sample = torch.randn(40, generator=generator).repeat_interleave(6) + 0.2 * torch.randn(
            240, generator=generator
        )
        for way, given in enumerate((units, None)):
            low, high = bootstrap_mean(sample, n_draws=300, seed=number, units=given)
            covered[way] += bool(low <= 0 <= high)
    assert covered[0] >= 178 and covered[1] < 140  # nominal 190


def test_the_interval_of_a_ratio_holds_the_uncertainty_of_the_gap():
    generator = torch.Generator().manual_seed(0)
    covered = {"both": 0, "part alone": 0}
    for number in range(200):
        gap = 2 + 3 * torch.randn(60, generator=generator, dtype=torch.float64)
        part = 0.5 + 0.2 * torch.randn(
            60, generator=generator, dtype=torch.float64
        )  # a quarter of the true gap
        low, high = ratio_interval(part, gap, n_draws=400, seed=number)
        covered["both"] += bool(low <= 0.25 <= high)
        low, high = bootstrap_mean(part / gap.mean(), n_draws=400, seed=number)
        covered["part alone"] += bool(low <= 0.25 <= high)
    assert covered["both"] >= 180 and covered["part alone"] < 140  # nominal 190


def test_the_interval_of_a_ratio_is_that_of_a_slow_loop_over_units():
    generator = torch.Generator().manual_seed(2)
    part, gap = torch.randn(3, 12, generator=generator), 4 + torch.randn(12, generator=generator)
    units = Units.of([[0, 0, 1, 2, 3, 3, 4, 5, 6, 7, 8, 8]])
    low, high = ratio_interval(part, gap, n_draws=40, seed=5, units=units)
    again = torch.Generator().manual_seed(5)
    ratios = []
    for drawn in torch.randint(9, (40, 9), generator=again):
        rows = torch.cat([(units.member == unit).nonzero().flatten() for unit in drawn.tolist()])
        ratios.append(part[:, rows].double().sum(1) / gap[rows].double().sum())
    alike = 12**2 / (3 * 2**2 + 6)  # so many units of equal size vary as much as these nine
    corrections = []
    for row in part.double():
        ratio = row.sum() / gap.double().sum()
        pulls = units.sums(row - ratio * gap) / gap.double().sum()
        corrections.append(corrected(ratio.item(), pulls.tolist(), alike))
    expected = wider(torch.stack(ratios).quantile(tails(alike), dim=0), corrections)
    torch.testing.assert_close(torch.stack([low, high]), expected)


def test_fractions_of_a_gap_that_may_be_zero_are_refused():
    noise = torch.randn(40, generator=torch.Generator().manual_seed(0))
    assert "holds zero (40 units: text)" in doubtful_gap(noise)
    assert "the gap is 0, its 95 % interval 0 to 0 holds zero" in doubtful_gap(torch.zeros(5))
    three = doubtful_gap(torch.tensor([1.0, 2.0, 3.0]), confidence=0.75)
    assert three is None  # 2 of 8 signs
    assert doubtful_gap(noise + 2) is None
    few = Units.of([[0] * 20 + [1] * 20], what="word pair")
    assert doubtful_gap(torch.cat([noise[:20] * 0 + 3, noise[20:] * 0 - 1])) is None
    halves = doubtful_gap(torch.cat([noise[:20] * 0 + 3, noise[20:] * 0 - 1]), units=few)
    assert halves.endswith("interval -1 to 3 holds zero (2 units: word pair)")
    with pytest.raises(ValueError, match=r"holds zero .* may be anything; give the change itself"):
        ratio_interval(noise, noise)
    with pytest.raises(ValueError, match="of the same examples, got 3 and 40"):
        ratio_interval(noise[:3], noise)


def test_a_gap_of_a_single_unit_is_doubtful_however_large():
    one = Units.of([[0] * 5], what="word pair")
    for gap, units in ((torch.tensor([7.0]), None), (torch.full((5,), 7.0), one)):
        what = "text" if units is None else "word pair"
        assert doubtful_gap(gap, units=units) == (
            f"the gap is 7, of a single unit ({what}), which can't tell it from zero"
        )
        with pytest.raises(ValueError, match=r"of a single unit .* a fraction of it may be anything"):
            ratio_interval(gap / 2, gap, units=units)


@pytest.mark.parametrize("n, p", [(2, "0.5"), (3, "0.25"), (5, "0.0625")])
def test_a_gap_of_so_few_units_that_no_p_is_small_is_doubtful_though_all_agree(n, p):
    gap, units = torch.linspace(1, 2, 4 * n), Units(torch.arange(n).repeat_interleave(4), "word pair")
    expected = f"of {n} units (word pair) the exact sign-flip p is {p}: 0.05 takes 6 or more that agree"
    assert expected in doubtful_gap(gap, units=units)
    with pytest.raises(ValueError, match="a fraction of it may be anything"):
        ratio_interval(gap / 2, gap, units=units)


def test_of_six_units_that_agree_the_gap_is_none_to_doubt_and_of_seven_one_may_disagree_a_little():
    assert doubtful_gap(torch.tensor([1.0, 2, 1, 2, 3, 1])) is None
    assert doubtful_gap(torch.tensor([1.0, 2, 1, 2, 3, 1, -0.5])) is None
    assert "exact sign-flip p is 0.0625" in doubtful_gap(torch.tensor([5.0, 6, 5, 6, 5, -0.1]))
    assert "holds zero (6 units: text)" in doubtful_gap(torch.tensor([5.0, 6, 5, 6, -3, -0.1]))


@pytest.mark.parametrize("odd", [math.nan, math.inf])
def test_a_gap_or_a_part_that_is_not_finite_has_no_fraction(odd):
    sound, broken = torch.linspace(1, 2, 40), torch.linspace(1, 2, 40)
    broken[3] = odd
    assert doubtful_gap(broken) == "the gap is not finite for 1 of 40 examples"
    with pytest.raises(ValueError, match="not finite for 1 of 40 examples: a fraction of it may be anything"):
        ratio_interval(sound, broken)
    with pytest.raises(ValueError, match="part must be finite, got 1 numbers of 40 that are not"):
        ratio_interval(broken, sound)
