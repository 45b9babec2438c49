"""The chance level of the best of many scores against closed forms, exact sums and simulation."""

import math
from fractions import Fraction

import pytest
import torch

from tl_skillneurons.stats.chance import best_of_chance

ROBERTA_BASE = 12 * 3072 * 127  # layers, neurons, prompt positions


def binomial(n, p):
    return [math.comb(n, k) * p**k * (1 - p) ** (n - k) for k in range(n + 1)]


def convolve(a, b):
    out = [0] * (len(a) + len(b) - 1)
    for i, x in enumerate(a):
        for j, y in enumerate(b):
            out[i + j] += x * y
    return out


def score_tail(hits_pmf):
    """P(max(hits, n - hits) >= k) for k = 0..n."""
    n = len(hits_pmf) - 1
    return [sum(p for h, p in enumerate(hits_pmf) if max(h, n - h) >= k) for k in range(n + 1)]


@pytest.mark.parametrize(
    "n, expected, threshold",
    [(100, 0.758, 0.790), (200, 0.685, 0.705), (1000, 0.583, 0.591), (13470, 0.523, 0.525)],
)
def test_the_levels_of_roberta_base_are_the_published_ones(n, expected, threshold):
    level = best_of_chance(n, ROBERTA_BASE)
    assert round(level.expected, 3) == expected
    assert round(level.threshold, 3) == threshold
    assert (level.n_examples, level.n_scores, level.alpha, level.largest_class_share) == (
        n,
        ROBERTA_BASE,
        0.05,
        0.5,
    )


@pytest.mark.parametrize("n, expected", [(100, 0.640), (200, 0.600), (1000, 0.545), (13470, 0.512)])
def test_the_best_of_127_positions_of_one_neuron_is_the_published_one(n, expected):
    assert round(best_of_chance(n, 127).expected, 3) == expected


@pytest.mark.parametrize("share", [Fraction(1, 2), Fraction(3, 5), Fraction(19, 20), Fraction(1)])
@pytest.mark.parametrize("n, n_scores", [(1, 1), (2, 1), (5, 3), (12, 1), (12, 40), (13, 1000)])
def test_the_level_equals_the_exact_sum_in_fractions(n, n_scores, share):
    best = [1 - (1 - tail) ** n_scores for tail in score_tail(binomial(n, share))]
    level = best_of_chance(n, n_scores, largest_class_share=float(share), alpha=0.1)
    assert level.expected == pytest.approx(float(sum(best[1:]) / n), abs=1e-12)  # rounding of lgamma
    rare = [k for k, p in enumerate(best) if p <= Fraction(1, 10)] or [n + 1]
    assert level.threshold == rare[0] / n


def test_the_level_is_what_simulated_labels_give():
    n, n_scores, repeats = 25, 30, 20_000
    labels = torch.rand(repeats, n_scores, n, generator=torch.Generator().manual_seed(0)) < 0.5
    accuracy = labels.float().mean(
        -1
    )  # of a rule that always answers 1; any other rule is the same by symmetry
    best = torch.maximum(accuracy, 1 - accuracy).amax(1)
    level = best_of_chance(n, n_scores)
    # the best score's standard deviation is 0.03, so the mean's standard error is 0.0002
    assert level.expected == pytest.approx(best.mean().item(), abs=0.001)
    assert (best >= level.threshold - 1e-6).float().mean() <= 0.05 + 0.005
    assert (best >= level.threshold - 1 / n - 1e-6).float().mean() > 0.05


@pytest.mark.parametrize("share", [0.5, 0.55, 0.7, 0.95])
@pytest.mark.parametrize("n", [9, 10])
def test_no_rule_independent_of_the_labels_beats_the_level_of_the_rule_that_always_answers_the_same(n, share):
    bound = score_tail(binomial(n, share))
    for m in range(n + 1):  # a rule that answers the frequent class m times
        tail = score_tail(convolve(binomial(m, share), binomial(n - m, 1 - share)))
        assert all(t <= b + 1e-12 for t, b in zip(tail, bound, strict=True))
    expected = best_of_chance(n, 1, largest_class_share=share).expected
    assert expected == pytest.approx(sum(bound[1:]) / n, abs=1e-12)


def test_correlated_scores_stay_below_the_level():
    n, n_scores, repeats = 50, 100, 2_000
    generator = torch.Generator().manual_seed(0)
    acts = torch.randn(n, 5, generator=generator) @ torch.randn(5, n_scores, generator=generator)
    labels = torch.rand(repeats, n, generator=generator) < 0.5
    accuracy = (labels[:, :, None] == (acts > 0)).double().mean(1)
    best = torch.maximum(accuracy, 1 - accuracy).amax(1)
    assert 0.5 < best.mean() < best_of_chance(n, n_scores).expected - 0.01


def test_the_level_is_stable_for_a_million_examples_and_a_hundred_million_scores():
    level = best_of_chance(1_000_000, 100_000_000)
    # Gaussian limit: 1/2 + z / (2 sqrt(n)) with z the quantile of 2 * 1e8 tails
    z = 5.8  # between the median of the best, 5.79, and its mean, 5.82
    assert level.expected == pytest.approx(0.5 + z / 2000, abs=1e-4)
    assert level.expected < level.threshold < 0.5 + 6.5 / 2000


def test_the_level_rises_with_scores_and_class_share_and_falls_with_examples():
    base = best_of_chance(500, 1000)
    assert best_of_chance(500, 2000).expected > base.expected
    assert best_of_chance(1000, 1000).expected < base.expected
    assert best_of_chance(500, 1000, largest_class_share=0.6).expected > base.expected
    assert best_of_chance(500, 1000, alpha=0.001).threshold > base.threshold


def test_a_threshold_that_no_score_can_reach_is_above_one():
    level = best_of_chance(5, ROBERTA_BASE)
    assert level.expected == pytest.approx(1)
    assert level.threshold == 6 / 5
    assert best_of_chance(100, 10, largest_class_share=1.0).threshold > 1


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: best_of_chance(0, 10), "n_examples must be an integer of at least 1, got 0"),
        (lambda: best_of_chance(10, -1), "n_scores must be an integer of at least 1, got -1"),
        (lambda: best_of_chance(10, True), "n_scores must be an integer of at least 1, got True"),
        (lambda: best_of_chance(10, 10, alpha=0.0), "alpha must be between 0 and 1, both excluded, got 0.0"),
        (lambda: best_of_chance(10, 10, alpha=1.0), "alpha must be between 0 and 1"),
        (lambda: best_of_chance(10, 10, alpha=math.nan), "alpha must be between 0 and 1"),
        (
            lambda: best_of_chance(10, 10, largest_class_share=0.4),
            r"must be in \[0.5, 1\], got 0.4; give the share",
        ),
        (lambda: best_of_chance(10, 10, largest_class_share=1.1), r"must be in \[0.5, 1\], got 1.1"),
        (lambda: best_of_chance(10, 10, largest_class_share=math.nan), r"must be in \[0.5, 1\], got nan"),
    ],
)
def test_bad_input_is_refused_with_what_is_allowed(call, message):
    with pytest.raises(ValueError, match=message):
        call()
