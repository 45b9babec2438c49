"""One bit per example, position and neuron: packed, counted, replaced."""

import torch
from drawn import random_outcomes

from tl_skillneurons.scores.outcomes import count_right


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
    assert (
        repr(outcomes) == "RuleOutcomes(2 prompts, 2 layers x 21 neurons, 3 positions, 24 examples of select)"
    )
