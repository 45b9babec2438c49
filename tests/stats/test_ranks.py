"""Ranks, their correlation and the median, against scipy and numpy."""

import itertools
import math

import numpy as np
import pytest
import torch
from scipy import stats

from tl_skillneurons.stats.ranks import average_ranks, correlation, mantel, median, spearman


def test_ranks_and_spearman_are_those_of_scipy_with_ties():
    generator = torch.Generator().manual_seed(0)
    one, other = torch.randint(0, 9, (2, 60), generator=generator)
    assert torch.equal(average_ranks(one), torch.from_numpy(stats.rankdata(one.numpy())))
    table = torch.randint(0, 5, (30, 2, 3), generator=generator)
    torch.testing.assert_close(average_ranks(table), torch.from_numpy(stats.rankdata(table.numpy(), axis=0)))
    theirs = stats.spearmanr(one.numpy(), other.numpy()).statistic
    assert spearman(one, other) == pytest.approx(theirs, abs=1e-12)
    with pytest.raises(ValueError, match="same items, got 60 and 59"):
        spearman(one, other[1:])


def test_correlations_along_the_first_axis_are_pearsons_and_a_constant_has_none():
    generator = torch.Generator().manual_seed(1)
    one, other = torch.randn(2, 20, 3, generator=generator)
    theirs = [stats.pearsonr(one[:, k].numpy(), other[:, k].numpy()).statistic for k in range(3)]
    torch.testing.assert_close(correlation(one, other), torch.tensor(theirs, dtype=torch.float64))
    assert math.isnan(spearman(torch.ones(5), torch.arange(5)))


@pytest.mark.parametrize("values", [[3.0, 1.0, 2.0], [4, 1, 3, 2], [0.7], [0.1, 0.4]])
def test_the_median_is_the_middle_or_the_mean_of_the_middle_two(values):
    assert median(values) == median(torch.tensor(values, dtype=torch.float64)) == np.median(values)


def test_of_an_even_number_the_median_is_not_the_lower_of_the_middle_two():
    values = torch.tensor([0.0, 1.0, 2.0, 10.0])
    assert median(values) == 1.5 != float(values.median())
    with pytest.raises(ValueError, match="median of no values"):
        median([])


def away(matrix):
    return matrix[~torch.eye(len(matrix), dtype=torch.bool)].numpy()


def test_mantel_equals_trying_all_orders():
    generator = torch.Generator().manual_seed(0)
    one, other = torch.randn(2, 5, 5, generator=generator, dtype=torch.float64)
    found, p = mantel(one, other)
    assert found == pytest.approx(stats.spearmanr(away(one), away(other)).statistic)
    values = [
        stats.spearmanr(away(one), away(other[list(order)][:, list(order)])).statistic
        for order in itertools.permutations(range(5))
    ]
    assert p == pytest.approx(sum(value >= found - 1e-9 for value in values) / 120)
    assert mantel(one, one)[1] == pytest.approx(1 / 120)
    sampled = mantel(one, other, n_permutations=60)[1]
    assert abs(sampled - p) < 0.25
    assert mantel(torch.ones(4, 4), one[:4, :4])[1] == 1.0
