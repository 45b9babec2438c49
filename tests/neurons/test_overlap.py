"""What two sets share, and what they share by luck, against scipy and closed forms."""

import numpy as np
import pytest
import torch
from scipy import stats

import tl_skillneurons as skn
from tl_skillneurons.neurons.overlap import hypergeometric, overlap_distribution


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
    drawn = [whole.overlap(whole.random_like(seed, exclude=False)) for seed in range(300)]
    mean = sum(one.n_shared for one in drawn) / 300
    assert mean == pytest.approx(drawn[0].chance_shared, abs=0.3) and drawn[0].chance_shared == pytest.approx(
        2.7
    )
    jaccard = sum(one.jaccard for one in drawn) / 300
    assert jaccard == pytest.approx(drawn[0].chance_jaccard, abs=0.01)
    assert 0.02 < sum(one.p_value <= 0.1 for one in drawn) / 300 < 0.15
    same = whole.overlap(whole)
    assert same.n_shared == 18 and same.jaccard == 1 and same.p_value < 1e-12


def test_layers_that_only_one_set_has_share_nothing_and_are_no_evidence():
    one = skn.NeuronSet.from_pairs([(0, 1)], n_layers=2, d_mlp=10)
    other = skn.NeuronSet.from_pairs([(1, 1)], n_layers=2, d_mlp=10)
    found = one.overlap(other)
    assert (found.n_shared, found.jaccard, found.chance_shared, found.p_value) == (0, 0.0, 0.0, 1.0)


def test_sets_that_cannot_be_compared_are_refused():
    one = skn.NeuronSet.from_pairs([(0, 1)])
    with pytest.raises(ValueError, match=r"give overlap\(other, d_mlp=...\)"):
        one.overlap(one)
    with pytest.raises(ValueError, match="both sets must hold neurons, got 1 and 0"):
        one.overlap(skn.NeuronSet([], []), d_mlp=5)
    with pytest.raises(ValueError, match="the neurons must belong to one model"):
        skn.NeuronSet([0], [1], d_mlp=5).overlap(skn.NeuronSet([0], [1], d_mlp=6))
    with pytest.raises(ValueError, match="the neurons must belong to one model"):
        skn.NeuronSet([0], [1], d_mlp=5).overlap(one, d_mlp=6)


def test_either_set_or_the_caller_may_say_how_many_neurons_a_layer_has():
    known, unknown = skn.NeuronSet([0, 0], [1, 2], d_mlp=9), skn.NeuronSet([0, 0], [2, 3])
    found = known.overlap(unknown)
    assert found == unknown.overlap(known) == unknown.overlap(skn.NeuronSet([0, 0], [1, 2]), d_mlp=9)
    assert (found.n_shared, found.jaccard) == (1, 1 / 3)


def test_an_overlap_is_a_row_of_its_numbers_and_shows_itself_in_a_notebook():
    found = skn.NeuronSet([0, 0], [1, 2], d_mlp=9).overlap(skn.NeuronSet([0], [2]))
    (row,) = found.to_dataframe().to_dict("records")
    assert row["n_shared"] == 1 and row["p_value"] == found.p_value == pytest.approx(2 / 9)
    assert "n_shared=1" in repr(found) and "<td>0.222</td>" in found._repr_html_()
