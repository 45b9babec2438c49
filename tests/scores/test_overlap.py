"""Overlap of sets and agreement of rankings against scipy and closed forms."""

import numpy as np
import pytest
import torch
from scipy import stats

import tl_skillneurons as skn
from tl_skillneurons.scores.overlap import compare_sets, hypergeometric, overlap_distribution
from tl_skillneurons.stats.ranks import average_ranks, spearman


@pytest.mark.parametrize("total, marked, drawn", [(50, 7, 12), (10, 8, 9), (5, 5, 5), (20, 1, 0)])
def test_the_hypergeometric_law_is_that_of_scipy(total, marked, drawn):
    law = stats.hypergeom(total, marked, drawn).pmf(np.arange(min(marked, drawn) + 1))
    torch.testing.assert_close(hypergeometric(total, marked, drawn), torch.from_numpy(law))


def test_the_overlap_of_sets_with_layers_of_their_own_is_a_convolution():
    one, other, d_mlp = {0: 3, 1: 5, 3: 2}, {0: 4, 1: 5, 2: 6}, 20
    laws = [
        stats.hypergeom(d_mlp, one[k], other[k]).pmf(np.arange(min(one[k], other[k]) + 1)) for k in (0, 1)
    ]
    torch.testing.assert_close(overlap_distribution(one, other, d_mlp), torch.from_numpy(np.convolve(*laws)))


def test_random_sets_share_what_chance_says_and_a_set_shares_all_with_itself():
    whole = skn.NeuronSet.from_pairs([(k, i) for k in range(3) for i in range(6)], n_layers=3, d_mlp=40)
    drawn = [compare_sets(whole, whole.random_like(seed, exclude=False)) for seed in range(300)]
    mean = sum(one.n_shared for one in drawn) / 300
    assert mean == pytest.approx(drawn[0].chance_shared, abs=0.3) and drawn[0].chance_shared == pytest.approx(
        2.7
    )
    jaccard = sum(one.jaccard for one in drawn) / 300
    assert jaccard == pytest.approx(drawn[0].chance_jaccard, abs=0.01)
    assert 0.02 < sum(one.p_value <= 0.1 for one in drawn) / 300 < 0.15
    same = compare_sets(whole, whole)
    assert same.n_shared == 18 and same.jaccard == 1 and same.p_value < 1e-12


def test_layers_that_only_one_set_has_share_nothing_and_are_no_evidence():
    one = skn.NeuronSet.from_pairs([(0, 1)], n_layers=2, d_mlp=10)
    other = skn.NeuronSet.from_pairs([(1, 1)], n_layers=2, d_mlp=10)
    found = compare_sets(one, other)
    assert (found.n_shared, found.jaccard, found.chance_shared, found.p_value) == (0, 0.0, 0.0, 1.0)


def test_sets_that_cannot_be_compared_are_refused():
    one = skn.NeuronSet.from_pairs([(0, 1)])
    with pytest.raises(ValueError, match=r"give compare_sets\(..., d_mlp=...\)"):
        compare_sets(one, one)
    with pytest.raises(ValueError, match="both sets must hold neurons, got 1 and 0"):
        compare_sets(one, skn.NeuronSet([], []), d_mlp=5)


def test_ranks_and_spearman_are_those_of_scipy_with_ties():
    generator = torch.Generator().manual_seed(0)
    one, other = torch.randint(0, 9, (2, 60), generator=generator)
    assert torch.equal(average_ranks(one), torch.from_numpy(stats.rankdata(one.numpy())))
    table = torch.randint(0, 5, (30, 2, 3), generator=generator)
    torch.testing.assert_close(average_ranks(table), torch.from_numpy(stats.rankdata(table.numpy(), axis=0)))
    assert spearman(one, other) == pytest.approx(
        stats.spearmanr(one.numpy(), other.numpy()).statistic, abs=1e-12
    )
    with pytest.raises(ValueError, match="same items, got 60 and 59"):
        spearman(one, other[1:])
