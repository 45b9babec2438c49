"""Controls are distinct, as many as there are, and say how like the set they are."""

import doctest
import itertools

import pytest
import torch

from tl_skillneurons.neurons import controls
from tl_skillneurons.neurons.controls import (
    distinct_draws,
    draw_controls,
    few_alternatives,
    less_predictive,
    standardised_differences,
)
from tl_skillneurons.neurons.neuron_set import NeuronSet
from tl_skillneurons.stats.hypothesis_tests import rank_p_value

SKILL = NeuronSet([0, 0, 2, 2], [3, 5, 1, 0], n_layers=3, d_mlp=50)


@pytest.mark.parametrize("matched", [False, True])
def test_where_alternatives_are_many_draws_are_those_of_the_seeds(matched):
    match = torch.rand(3, 50, generator=torch.Generator().manual_seed(0)) if matched else None
    found = draw_controls(SKILL, 20, seed=7, match=match)
    assert [list(one) for one in found.sets] == [
        list(SKILL.random_like(7 + k, match=match)) for k in range(20)
    ]
    assert found.smallest_p == 1 / 21
    assert found.n_alternatives == (None if matched else (48 * 47 // 2) ** 2)


def test_one_of_nine_has_eight_alternatives_each_drawn_once():
    found = draw_controls(NeuronSet([1], [4], n_layers=2, d_mlp=9), 20)
    assert sorted(one.index.item() for one in found.sets) == [0, 1, 2, 3, 5, 6, 7, 8]
    assert found.n_alternatives == 8 and found.smallest_p == 1 / 9
    assert found.warnings == (
        "only 8 distinct controls (20 were asked for): p > 0.11; 0.05 takes 19, so a larger set or pool of neurons",
    )


def test_few_alternatives_over_layers_are_all_their_combinations():
    few = NeuronSet([0, 0, 1], [0, 1, 2], n_layers=2, d_mlp=4)
    found = draw_controls(few, 20)
    expected = {NeuronSet([0, 0, 1], [2, 3, last], n_layers=2, d_mlp=4) for last in (0, 1, 3)}
    assert set(found.sets) == expected and len(found.sets) == 3


def test_a_matched_neuron_has_its_nearest_each_once():
    match = torch.arange(60.0)[None]
    found = draw_controls(NeuronSet([0], [30], n_layers=1, d_mlp=60), 40, match=match, n_nearest=20)
    assert sorted(one.index.item() for one in found.sets) == [*range(20, 30), *range(31, 41)]
    assert found.n_alternatives == 20 and found.warnings[0].startswith("only 20 distinct controls (40 were")
    assert "0.05 takes" not in found.warnings[0]  # 20 do reach it
    two = NeuronSet([0, 0], [10, 40], n_layers=1, d_mlp=60)
    pairs = draw_controls(two, 40, match=match, n_nearest=2)
    assert {frozenset(one.index.tolist()) for one in pairs.sets} == {
        frozenset(pair) for pair in itertools.product((9, 11), (39, 41))
    }
    assert pairs.n_alternatives == 4


def test_an_ordinary_one_of_nine_is_no_longer_called_extraordinary():
    generator = torch.Generator().manual_seed(0)
    called = [0, 0]
    for _ in range(150):
        effects = torch.rand(9, generator=generator, dtype=torch.float64)
        own = NeuronSet([0], [int(torch.randint(9, (), generator=generator))], n_layers=1, d_mlp=9)
        seeds = range(int(torch.randint(10**6, (), generator=generator)), 10**7)
        value = effects[own.index].item()
        repeated = [effects[own.random_like(seed).index].item() for seed in seeds[:20]]
        distinct = [effects[one.index].item() for one in draw_controls(own, 20, seed=seeds[0]).sets]
        called[0] += rank_p_value(value, repeated) <= 0.05
        called[1] += rank_p_value(value, distinct) <= 0.05
    assert called[0] > 12 and called[1] == 0  # nominal 7


def test_the_most_active_have_no_like_and_the_controls_say_so():
    generator = torch.Generator().manual_seed(0)
    activation = torch.randn(2, 400, generator=generator).exp()
    most = NeuronSet.from_mask(activation >= activation.topk(4, dim=1).values[:, -1:])
    found = draw_controls(most, 20, match=activation)
    assert found.differences.shape == (1,) and found.differences[0] < -1
    assert "standard deviations of their layers" in found.warnings[0]
    middle = NeuronSet.from_mask((activation - activation.median(1, keepdim=True).values).abs() < 0.005)
    assert draw_controls(middle, 20, match=activation).warnings == ()
    both = draw_controls(most, 20, match=torch.stack([activation, activation.flip(1)]))
    assert both.differences.shape == (2,)
    assert draw_controls(most, 20).differences.shape == (0,)


def test_the_difference_is_in_standard_deviations_of_each_ones_layer():
    match = torch.stack([torch.arange(5.0), 10 * torch.arange(5.0)])
    one = NeuronSet([0, 1], [0, 0], n_layers=2, d_mlp=5)
    other = NeuronSet([0, 1], [1, 2], n_layers=2, d_mlp=5)
    expected = (1 + 2) / 2 / torch.arange(5.0).std()
    assert standardised_differences(one, [other], match).item() == pytest.approx(expected.item())
    assert standardised_differences(one, [other, one], match).item() == pytest.approx(expected.item() / 2)
    assert standardised_differences(one, [other], torch.ones(2, 5)).item() == 0


def test_the_least_predictive_are_the_lower_half_of_each_layer_and_draws_come_from_it():
    generator = torch.Generator().manual_seed(1)
    predictivity, activation = torch.rand(2, 3, 200, generator=generator)
    skill = NeuronSet.from_mask(predictivity >= predictivity.topk(5, dim=1).values[:, -1:])
    among = less_predictive(predictivity)
    assert among.equal(predictivity < predictivity.quantile(0.5, dim=1, keepdim=True))
    assert less_predictive(torch.full((1, 4), 0.5)).tolist() == [[True, True, False, False]]
    found = draw_controls(skill, 20, match=activation, among=among)
    assert len(set(found.sets)) == 20 and found.differences.abs() < 0.1
    for one in found.sets:
        assert (one.layer == skill.layer).all() and among[one.layer, one.index].all()
    alone = NeuronSet([1], skill.by_layer()[1][:1], n_layers=3, d_mlp=200)
    apart = (activation[1] - activation[1, alone.index]).abs().masked_fill(~among[1], torch.inf)
    drawn = draw_controls(alone, 40, match=activation, among=among).sets
    assert sorted(one.index.item() for one in drawn) == sorted(apart.argsort()[:20].tolist())
    few = draw_controls(
        NeuronSet([0], [3], n_layers=1, d_mlp=8), 20, among=less_predictive(torch.arange(8.0)[None])
    )
    assert sorted(one.index.item() for one in few.sets) == [0, 1, 2] and few.n_alternatives == 3


def test_more_draws_begin_with_the_same_and_end_with_all_there_are():
    few = NeuronSet(
        [1, 0, 1], [2, 3, 0], n_layers=2, d_mlp=6
    )  # 3 * 5 * ... alternatives, in no order of layers
    every = draw_controls(few, 500, seed=3)
    assert every.n_alternatives == len(every.sets) == len(set(every.sets)) == 5 * 6
    for n in (1, 7, 29, 30):
        assert [list(one) for one in draw_controls(few, n, seed=3).sets] == [
            list(one) for one in every.sets[:n]
        ]
    for one in every.sets:  # neuron i stands for neuron i, also where all alternatives are listed
        assert one.layer.tolist() == [1, 0, 1]


def test_what_is_listed_stands_neuron_by_neuron_for_the_set(monkeypatch):
    monkeypatch.setattr(controls, "_PATIENCE", 1)  # so that most are listed, not drawn
    few = NeuronSet([1, 0, 1], [2, 3, 0], n_layers=2, d_mlp=6)
    found = draw_controls(few, 500)
    assert len(set(found.sets)) == 30 and all(one.layer.tolist() == [1, 0, 1] for one in found.sets)


@pytest.mark.parametrize("quantities", [1, 2])
def test_the_half_per_cent_most_active_have_no_like_and_such_controls_can_be_refused(quantities):
    """The 4 most active of 768: their nearest are half as active, and with a second quantity a third as active."""
    generator = torch.Generator().manual_seed(0)
    activation, norm = (0.8 * torch.randn(2, 1, 768, generator=generator)).exp() / 2
    most = NeuronSet.from_mask(activation >= activation.topk(4, dim=1).values[:, -1:])
    match = activation if quantities == 1 else torch.stack([activation, norm])
    found = draw_controls(most, 20, match=match)
    own = activation[0, most.index].mean()
    controls = torch.stack([activation[0, one.index].mean() for one in found.sets]).mean()
    assert controls < 0.6 * own and found.differences[0] < -1
    assert "standard deviations of their layers" in found.warnings[0]
    with pytest.raises(ValueError, match=r"may differ by 0.1 standard deviations, and .* match on less"):
        draw_controls(most, 20, match=match, most_difference=0.1)
    middle = NeuronSet([0], [activation[0].argsort()[384].item()], n_layers=1, d_mlp=768)
    assert draw_controls(middle, 19, match=activation, most_difference=0.1).warnings == ()


def test_draws_end_where_there_is_nothing_new():
    assert distinct_draws(lambda seed: [seed % 4], 9, seed=2, key=tuple) == [[2], [3], [0], [1]]
    assert few_alternatives(20, 20) is None


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: draw_controls(SKILL, 0), "n must be an integer of at least 1"),
        (lambda: draw_controls(NeuronSet([0, 0], [0, 1], n_layers=1, d_mlp=3), 9), "has 1 neurons to draw 2"),
        (lambda: draw_controls(NeuronSet([0], [0]), 9), "know its model's d_mlp"),
        (
            lambda: draw_controls(
                NeuronSet([0], [0], n_layers=1, d_mlp=3), 9, among=torch.zeros(1, 3).bool()
            ),
            "layer 0 has 0 neurons to draw 1 random ones from",
        ),
    ],
)
def test_what_can_not_be_drawn_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_the_examples_in_docstrings_give_what_they_say():
    assert doctest.testmod(controls, extraglobs={"torch": torch}).failed == 0
