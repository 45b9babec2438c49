"""One bit per example, position and neuron: packed, counted, replaced."""

from dataclasses import replace

import pytest
import torch
from drawn import random_outcomes

from tl_skillneurons.scores.outcomes import RuleOutcomes, count_right
from tl_skillneurons.stats.units import Units


def test_bits_come_back_as_they_were_packed_and_count_as_they_should():
    above, outcomes = random_outcomes(d_mlp=21)
    for layer, neurons in outcomes.chunks(5):
        got = outcomes.unpack(1, layer, neurons)
        assert torch.equal(got.bool(), above[1, :, layer, :, neurons])
    weights = torch.randint(0, 4, (2, 24), generator=torch.Generator().manual_seed(0))
    rows = outcomes.labels.expand(2, -1)
    for layer, neurons, counted in count_right(outcomes, weights, rows):
        right = above[0, :, layer, :, neurons] == outcomes.labels[:, None, None].bool()
        expected = torch.einsum("re,epn->rpn", weights.double(), right.double())
        assert torch.equal(counted[0].double(), 2 * expected - weights.sum(1)[:, None, None])


def test_a_replaced_bit_is_that_of_one_neuron_and_no_other():
    above, outcomes = random_outcomes(d_mlp=21)
    bits = torch.rand(24, generator=torch.Generator().manual_seed(5)) < 0.5
    for layer, position, neuron in ((0, 0, 0), (1, 2, 20), (1, 0, 11)):
        replaced = outcomes.replaced(bits, layer=layer, position=position, neuron=neuron)
        expected = above.clone()
        expected[:, :, layer, position, neuron] = bits
        for prompt in range(2):
            for at, neurons in replaced.chunks(1):
                got = replaced.unpack(prompt, at, neurons).bool()
                assert torch.equal(got, expected[prompt, :, at, :, neurons])
    assert repr(outcomes) == (
        "RuleOutcomes(2 prompts, 2 layers x 21 neurons, 3 positions, 24 examples of select, 24 units (text))"
    )


def test_outcomes_come_back_from_what_a_file_keeps_with_their_units():
    _, outcomes = random_outcomes()
    pair = torch.arange(24) // 2
    twins = Units.of([(pair // 3).tolist()], what="word pair", pair=pair)
    for units in (outcomes.units, twins, Units.of([pair.tolist()], what="author")):
        kept = replace(outcomes, units=units)
        back = RuleOutcomes.of_tensors(kept.tensors(), 13, unit=units.what)
        assert repr(back.units) == repr(units) and torch.equal(back.units.member, units.member)
        assert (back.units.pair is None) == (units.pair is None)
    with pytest.raises(ValueError, match="units must be of the outcomes' 24 examples, got those of 23"):
        replace(outcomes, units=Units.single(23))
    with pytest.raises(ValueError, match="outcomes of one set must be of the same units"):
        RuleOutcomes.of_prompts([outcomes, kept])
