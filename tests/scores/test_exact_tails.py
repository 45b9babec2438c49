"""Exact p-values of single neurons and bounds of the best, against many permutations."""

from dataclasses import replace

import pytest
import torch
from drawn import random_outcomes

from tl_skillneurons.scores.null import permutation_null
from tl_skillneurons.scores.outcomes import RuleOutcomes, pack
from tl_skillneurons.stats.units import Units


@pytest.mark.parametrize("paired", [False, True])
def test_the_exact_law_of_one_position_is_what_permutations_find(paired):
    _, outcomes = random_outcomes(n_prompts=1, n=40, n_layers=1, n_positions=1, d_mlp=8, seed=1)
    if paired:
        pair = torch.arange(40).roll(1) // 2
        twins = Units.of([pair.tolist()], what="pair of twins", pair=pair)
        outcomes = replace(outcomes, units=twins, labels=torch.tensor([1, 0] * 20))
    null = permutation_null(outcomes, n_permutations=20_000)
    torch.testing.assert_close(null.p_bound[0], null.p_value[0], rtol=0, atol=0.015)
    assert torch.equal(null.p_bound[0], null.p_bound[1])


@pytest.mark.parametrize("aggregate", ["mean", "min"])
def test_the_bound_of_several_positions_and_prompts_is_never_too_small(aggregate):
    _, outcomes = random_outcomes(n=40, d_mlp=64, seed=3)
    null = permutation_null(outcomes, n_permutations=2000, aggregate=aggregate)
    assert (null.p_bound > null.p_value - 0.03).all()
    assert (
        null.p_bound[:2] < 6 * null.p_value[:2] + 0.05
    ).all()  # and not far above: there are three positions


def test_a_strong_neuron_among_thousands_has_a_small_q_although_permutations_are_few():
    generator = torch.Generator().manual_seed(0)
    labels = torch.tensor([0, 1] * 100)
    above = torch.rand(1, 200, 1, 2, 4000, generator=generator) < 0.5
    above[0, :, 0, 0, 5] = torch.where(torch.rand(200, generator=generator) < 0.8, labels, 1 - labels).bool()
    null = permutation_null(RuleOutcomes(pack(above), labels, 4000), n_permutations=19)
    q = null.q_value()
    assert q[0, 5] < 1e-6 and (q <= 0.05).sum() == 1


def test_of_groups_and_of_twins_with_the_same_words_no_law_is_known_and_p_values_alone_count():
    _, outcomes = random_outcomes(n_prompts=1, n=24, n_layers=1, d_mlp=8, seed=1)
    pair = torch.arange(24) // 2
    words = Units.of([(pair // 2).tolist()], what="word pair", pair=pair)
    groups = Units.of([(torch.arange(24) % 8).tolist()], what="group")  # 8 groups of one label each
    for units in (words, groups):
        null = permutation_null(replace(outcomes, units=units), n_permutations=19)
        assert null.p_bound is None and (null.unit, null.n_units) == (units.what, len(units))
        assert torch.equal(null.q_value() >= null.p_value[-1], torch.ones(1, 8, dtype=torch.bool))
