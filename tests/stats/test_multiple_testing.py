"""Corrections for many tests against scipy and enumeration."""

import pytest
import torch
from scipy import stats

from tl_skillneurons.stats.multiple_testing import benjamini_hochberg, critical_level, family_wise_p


def test_q_values_are_those_of_scipy_whatever_the_shape():
    p = torch.rand(4, 25, generator=torch.Generator().manual_seed(0), dtype=torch.float64) ** 3
    p[2] = p[1]  # ties
    theirs = torch.from_numpy(stats.false_discovery_control(p.flatten().numpy()))
    torch.testing.assert_close(benjamini_hochberg(p), theirs.view_as(p))
    assert benjamini_hochberg(torch.empty(0, 3)).shape == (0, 3)


def test_the_family_wise_p_counts_the_draws_whose_largest_score_reaches_it():
    largest = torch.tensor([0.6, 0.7, 0.7, 0.9])
    observed = torch.tensor([[0.5, 0.7], [0.9, 0.95]])
    assert family_wise_p(observed, largest).tolist() == [[1.0, 4 / 5], [2 / 5, 1 / 5]]


def test_what_exceeds_the_critical_level_has_a_p_of_at_most_alpha_and_what_equals_it_has_not():
    largest = torch.arange(39.0)
    level = critical_level(largest, 0.05)
    p = family_wise_p(torch.tensor([level, level + 0.5]), largest)
    assert p[1] <= 0.05 < p[0]


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: benjamini_hochberg(torch.tensor([0.1, float("nan")])), r"p-values must be in \[0, 1\]"),
        (lambda: benjamini_hochberg(torch.tensor([1.1])), r"p-values must be in \[0, 1\]"),
        (lambda: critical_level(torch.rand(19), 0.01), "19 permutations can't give .* take at least 99"),
        (lambda: critical_level(torch.rand(19), 1.0), "alpha must be between 0 and 1"),
    ],
)
def test_what_cannot_be_corrected_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
