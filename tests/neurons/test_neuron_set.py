"""Sets of neurons: their order and algebra, their files, and the random controls drawn for them."""

import doctest
import importlib
import inspect
import json
from itertools import product
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import tiny
import torch

from tl_skillneurons import neurons
from tl_skillneurons._files import write_json
from tl_skillneurons.neurons.choice import Choice
from tl_skillneurons.neurons.indices import integers
from tl_skillneurons.neurons.neuron_set import Neurons, NeuronSet, as_neurons

PAIRS = [(2, 7), (0, 3), (2, 1), (1, 5)]


@pytest.fixture
def skill():
    return NeuronSet.from_pairs(PAIRS, n_layers=4, d_mlp=10, model="toy")


def test_the_order_given_is_kept(skill):
    assert list(skill) == PAIRS
    assert len(skill) == 4
    assert skill.layer.tolist() == [2, 0, 2, 1]
    assert skill.index.tolist() == [7, 3, 1, 5]


@pytest.mark.parametrize(
    "form",
    [
        list,
        tuple,
        torch.tensor,
        lambda v: torch.tensor(v, dtype=torch.int32),
        pd.Series,
        lambda v: pd.Series(v).values,
    ],
)
def test_integers_in_any_form_become_int64_tensors(form, skill):
    made = NeuronSet(form([2, 0, 2, 1]), form([7, 3, 1, 5]), n_layers=4, d_mlp=10)
    assert made == skill
    assert made.layer.dtype == made.index.dtype == torch.int64


def test_the_set_is_a_copy_of_the_tensors_it_was_made_from():
    index = torch.tensor([1, 2])
    made = NeuronSet(torch.tensor([0, 0]), index)
    index[0] = 9
    assert list(made) == [(0, 1), (0, 2)]


def test_membership_is_of_layer_and_index_together(skill):
    assert (2, 7) in skill
    assert (7, 2) not in skill
    assert (0, 7) not in skill


def test_sets_are_equal_whatever_their_order_and_name_but_not_their_shape(skill):
    turned = NeuronSet.from_pairs(PAIRS[::-1], n_layers=4, d_mlp=10, model="another name")
    assert skill == turned
    assert hash(skill) == hash(turned)
    assert skill != NeuronSet.from_pairs(PAIRS, n_layers=4, d_mlp=11)
    assert skill != NeuronSet.from_pairs(PAIRS)
    assert skill != NeuronSet.from_pairs(PAIRS[1:], n_layers=4, d_mlp=10)
    assert skill != PAIRS
    assert len({skill, turned}) == 1


def test_a_set_shows_its_size_and_its_first_neurons(skill):
    shown = "NeuronSet(4 neurons: [(2, 7), (0, 3), (2, 1), ...], n_layers=4, d_mlp=10, model='toy')"
    assert repr(skill) == shown
    assert repr(NeuronSet([], [])) == "NeuronSet(0 neurons: [], n_layers=None, d_mlp=None, model=None)"


def test_a_mask_holds_exactly_the_sets_neurons(skill):
    mask = skill.mask()
    assert mask.shape == (4, 10)
    assert sorted(map(tuple, mask.nonzero().tolist())) == sorted(PAIRS)
    assert NeuronSet.from_mask(mask) == skill
    assert list(NeuronSet.from_mask(mask)) == sorted(PAIRS)
    assert torch.equal(NeuronSet.from_pairs(PAIRS).mask(4, 10), mask)
    assert torch.equal(NeuronSet.from_pairs(PAIRS, d_mlp=10).mask(n_layers=4), mask)


def test_by_layer_keeps_the_order_within_a_layer_and_leaves_out_empty_layers(skill):
    assert {layer: index.tolist() for layer, index in skill.by_layer().items()} == {0: [3], 1: [5], 2: [7, 1]}
    assert list(skill.by_layer()) == [0, 1, 2]
    assert skill.counts_per_layer() == {0: 1, 1: 1, 2: 2}


def test_a_set_without_neurons_is_a_set():
    empty = NeuronSet([], [], n_layers=2, d_mlp=3)
    assert len(empty) == 0
    assert empty.by_layer() == {}
    assert not empty.mask().any()
    assert empty.random_like(0) == empty == NeuronSet.from_mask(torch.zeros(2, 3, dtype=torch.bool))
    assert empty.to_dataframe().dtypes.tolist() == ["int64", "int64"]


def test_the_algebra_keeps_the_laws_of_sets():
    space = [(0, 0), (0, 1), (1, 0)]
    subsets = [[p for p, keep in zip(space, bits, strict=True) if keep] for bits in product([0, 1], repeat=3)]
    for a, b in product(subsets, repeat=2):
        left, right = NeuronSet.from_pairs(a, n_layers=2), NeuronSet.from_pairs(b, d_mlp=2)
        for result, truth in [
            (left | right, set(a) | set(b)),
            (left & right, set(a) & set(b)),
            (left - right, set(a) - set(b)),
        ]:
            assert set(result) == truth
            assert len(result) == len(truth)
            assert (result.n_layers, result.d_mlp) == (2, 2)  # what either set knows


def test_a_union_keeps_the_left_order_then_adds_what_is_new():
    left, right = NeuronSet.from_pairs([(1, 1), (0, 4)]), NeuronSet.from_pairs([(0, 9), (1, 1), (0, 0)])
    assert list(left | right) == [(1, 1), (0, 4), (0, 9), (0, 0)]


def test_the_models_name_is_kept_only_where_both_sets_have_it(skill):
    assert (skill | skill).model == "toy"
    assert (skill | NeuronSet([], [])).model is None


def test_a_table_has_one_row_per_neuron_in_order(skill):
    table = skill.to_dataframe()
    assert table.to_dict("list") == {"layer": [2, 0, 2, 1], "index": [7, 3, 1, 5]}
    assert NeuronSet(table["layer"], table["index"], n_layers=4, d_mlp=10) == skill


# Random controls


def big_set():
    generator = torch.Generator().manual_seed(3)
    mask = torch.rand(5, 200, generator=generator) < 0.1
    mask[3] = False
    shuffled = list(NeuronSet.from_mask(mask))
    order = torch.randperm(len(shuffled), generator=generator).tolist()
    return NeuronSet.from_pairs([shuffled[i] for i in order], n_layers=5, d_mlp=200, model="toy")


@pytest.mark.parametrize("exclude", [True, False])
@pytest.mark.parametrize("matched", [True, False])
def test_a_control_has_equally_many_neurons_per_layer(exclude, matched):
    skill = big_set()
    match = torch.rand(5, 200, generator=torch.Generator().manual_seed(0)) if matched else None
    for seed in range(5):
        control = skill.random_like(seed, exclude=exclude, match=match)
        assert control.counts_per_layer() == skill.counts_per_layer()
        assert torch.equal(control.layer, skill.layer)  # neuron i stands for neuron i
        assert (control.n_layers, control.d_mlp, control.model) == (5, 200, "toy")
        if exclude:
            assert not len(control & skill)


def test_a_control_may_hold_the_sets_own_neurons_when_they_are_not_excluded():
    skill = big_set()
    assert any(len(skill.random_like(seed, exclude=False) & skill) for seed in range(5))


def test_every_free_neuron_is_drawn_equally_often():
    skill = NeuronSet([0, 0], [1, 4], n_layers=1, d_mlp=6)
    counts = sum(skill.random_like(seed).mask().int() for seed in range(600))[0]
    assert counts[[1, 4]].tolist() == [0, 0]
    # each of the four others is in half of the draws: 300, standard deviation 12
    assert ((counts[[0, 2, 3, 5]] - 300).abs() < 60).all()


@pytest.mark.parametrize("matched", [True, False])
def test_the_same_seed_draws_the_same_control_and_another_seed_another(matched):
    skill = big_set()
    match = torch.rand(5, 200, generator=torch.Generator().manual_seed(0)) if matched else None
    assert list(skill.random_like(1, match=match)) == list(skill.random_like(1, match=match))
    assert skill.random_like(1, match=match) != skill.random_like(2, match=match)
    in_another_order = NeuronSet.from_pairs(sorted(skill), n_layers=5, d_mlp=200)
    assert in_another_order.random_like(1, match=match) == skill.random_like(1, match=match)


def test_a_seed_draws_the_same_control_in_every_process():
    drawn = NeuronSet([0, 0, 1], [1, 2, 3]).random_like(5, d_mlp=50)
    assert list(drawn) == [(0, 37), (0, 22), (1, 41)]


def test_the_callers_random_state_and_match_are_left_alone():
    skill, match = big_set(), torch.rand(5, 200)
    state, before = torch.get_rng_state(), match.clone()
    skill.random_like(0)
    skill.random_like(0, match=match)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(match, before)


def test_a_matched_control_has_the_sets_activation_scale_and_an_unmatched_one_does_not():
    generator = torch.Generator().manual_seed(0)
    match = torch.rand(3, 1000, generator=generator)
    loud = (match > 0.9) & (
        torch.rand(3, 1000, generator=generator) < 0.3
    )  # skill neurons are loud ones here
    skill = NeuronSet.from_mask(loud)
    for seed in range(3):
        matched, unmatched = skill.random_like(seed, match=match), skill.random_like(seed)
        here = match[skill.layer, skill.index]
        near = (match[matched.layer, matched.index] - here).abs()
        far = (match[unmatched.layer, unmatched.index] - here).abs()
        assert near.max() < 0.1 < far.mean()
        assert abs(match[matched.mask()].mean() - here.mean()) < 0.01


def test_matched_draws_come_from_exactly_the_nearest_neurons():
    match = torch.tensor([[0.0, 1.0, 2.0, 3.1, 4.2, 5.3, 6.4, 7.5]])
    skill = NeuronSet([0], [3], n_layers=1, d_mlp=8)
    drawn = [skill.random_like(seed, match=match, n_nearest=3).index.item() for seed in range(90)]
    assert set(drawn) == {1, 2, 4}  # 2.1, 1.1 and 1.1 away
    assert min(drawn.count(index) for index in (1, 2, 4)) > 15  # 30 each, standard deviation 4.5
    assert skill.random_like(0, match=match, n_nearest=1, exclude=False) == skill
    everyone = {skill.random_like(seed, match=match, n_nearest=100).index.item() for seed in range(90)}
    assert everyone == {0, 1, 2, 4, 5, 6, 7}


def test_a_slow_search_finds_the_same_nearest_neurons():
    skill = big_set()
    match = torch.randn(5, 200, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    control = skill.random_like(0, match=match, n_nearest=1)
    for layer, own in skill.by_layer().items():
        free = [i for i in range(200) if (layer, i) not in skill]
        stand_in = {}
        for index in sorted(own.tolist()):
            stand_in[index] = min(free, key=lambda i: abs(match[layer, i] - match[layer, index]).item())
            free.remove(stand_in[index])
        assert control.by_layer()[layer].tolist() == [stand_in[index] for index in own.tolist()]


def test_a_match_tells_the_shape_of_a_set_that_does_not_know_it():
    control = NeuronSet([1], [2]).random_like(0, match=torch.rand(3, 40, dtype=torch.bfloat16))
    assert (control.n_layers, control.d_mlp) == (3, 40)


def test_all_but_the_sets_own_neurons_can_be_drawn():
    skill = NeuronSet([1, 1], [0, 2], n_layers=2, d_mlp=4)
    assert set(skill.random_like(0)) == set(skill.random_like(0, match=torch.rand(2, 4))) == {(1, 1), (1, 3)}


# Files


def test_a_file_brings_back_the_set_its_order_and_its_model(skill, tmp_path):
    for made in [skill, NeuronSet([], []), NeuronSet.from_pairs(PAIRS), big_set()]:
        path = made.to_json(tmp_path / "new folder" / "neurons.json")
        read = NeuronSet.from_json(path)
        assert read == made
        assert list(read) == list(made)
        assert read.model == made.model


def test_a_person_can_read_the_file(skill, tmp_path):
    text = skill.to_json(tmp_path / "neurons.json").read_text()
    assert '    "2": [1, 7]\n' in text
    assert '  "ranked": [[2, 7], [0, 3], [2, 1], [1, 5]]\n' in text
    content = json.loads(text)
    assert content["layers"] == {"0": [3], "1": [5], "2": [1, 7]}
    header = {k: content[k] for k in ("kind", "format", "site", "n_layers", "d_mlp", "model", "n_neurons")}
    assert header == {
        "kind": "NeuronSet", "format": 1, "site": "mlp.hook_post", "n_layers": 4, "d_mlp": 10, "model": "toy",
        "n_neurons": 4,
    }  # fmt: skip


def test_a_file_that_cannot_be_written_leaves_nothing_behind(skill, tmp_path):
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(OSError, match="can't write"):
        skill.to_json(tmp_path / "file" / "neurons.json")
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_a_missing_file_is_reported_as_missing(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.json"):
        NeuronSet.from_json(tmp_path / "none.json")


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda c: "{ half a fi", "is not JSON"),
        (lambda c: "[]", "was not written by tl_skillneurons"),
        (lambda c: {"layers": {}}, "was not written by tl_skillneurons"),
        (lambda c: c | {"kind": "NeuronScores"}, "holds a NeuronScores, expected a NeuronSet"),
        (lambda c: c | {"format": 99}, "has format 99"),
        (lambda c: c | {"site": "mlp.hook_pre"}, "'mlp.hook_pre'; only those at 'mlp.hook_post' can be read"),
        (
            lambda c: {k: v for k, v in c.items() if k != "ranked"},
            "not a sound NeuronSet file: 'ranked' is missing",
        ),
        (lambda c: c | {"ranked": [5]}, "not a sound NeuronSet file"),
        (lambda c: c | {"ranked": [[2, 7], [2, 7]]}, r"not a sound .* got \(2, 7\) twice"),
        (lambda c: c | {"d_mlp": 5}, r"not a sound .* \(layer 2, index 7\) is outside the model"),
        (lambda c: c | {"d_mlp": 0}, "not a sound .* d_mlp must be an integer of at least 1, got 0"),
        (lambda c: c | {"layers": [1, 2]}, "not a sound NeuronSet file"),
        (
            lambda c: c | {"layers": {"0": [3], "1": [5], "2": [1]}},
            r"contradicts itself: .* \(2, 7\) is in only one",
        ),
    ],
)
def test_a_corrupt_or_foreign_file_is_refused(skill, tmp_path, change, message):
    path = skill.to_json(tmp_path / "neurons.json")
    written = {key: value for key, value in json.loads(path.read_text()).items() if key != "checksum"}
    changed = change(written)
    if isinstance(changed, str):
        path.write_text(changed)
    else:
        write_json(path, changed)
    with pytest.raises(ValueError, match=message):
        NeuronSet.from_json(path)


# Refusals

SMALL = NeuronSet([0, 0], [0, 1], n_layers=2, d_mlp=3)
UNKNOWN = NeuronSet([0, 4], [0, 1])
NAN = torch.tensor([[1.0, 2.0, 3.0], [1.0, torch.nan, 2.0]])


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: NeuronSet([0], [1, 2]), "one neuron each, got 1 layers and 2 indices"),
        (lambda: NeuronSet([0, 1, 0], [3, 3, 3]), r"distinct, got \(0, 3\) twice; name each"),
        (lambda: NeuronSet([-1], [3]), r"\(layer -1, index 3\) is outside the model: layer must be 0 or"),
        (lambda: NeuronSet([0, 2], [1, 1], 2), r"\(layer 2, index 1\).*layer must be in \[0, 2\)"),
        (lambda: NeuronSet([0], [9], d_mlp=9), r"\(layer 0, index 9\).* index in \[0, 9\)"),
        (lambda: NeuronSet([0], [9], d_mlp=0), "d_mlp must be an integer of at least 1, got 0"),
        (lambda: UNKNOWN.mask(), "doesn't know its model's n_layers and d_mlp; give mask"),
        (lambda: UNKNOWN.mask(4, 10), r"\(layer 4, index 1\) is outside the model"),
        (lambda: SMALL.mask(3, 3), "one model, got n_layers=2, d_mlp=3 and n_layers=3, d_mlp=3"),
        (lambda: SMALL | NeuronSet([], [], d_mlp=4), "d_mlp=3 and n_layers=None, d_mlp=4"),
        (lambda: SMALL & NeuronSet([], [], 1), "n_layers=2, d_mlp=3 and n_layers=1, d_mlp=None"),
        (lambda: SMALL - NeuronSet([], [], 1), "the neurons must belong to one model"),
        (lambda: SMALL | UNKNOWN, r"\(layer 4, index 1\) is outside the model"),
        (lambda: SMALL.random_like(0), r"layer 0 has 1 neurons to draw 2 random ones from \(3 without"),
        (lambda: SMALL.random_like(-1), "seed must be an integer of at least 0, got -1"),
        (lambda: SMALL.random_like(0, n_nearest=0), "n_nearest must be an integer of at least 1, got 0"),
        (lambda: SMALL.random_like(0, d_mlp=4), "the neurons must belong to one model"),
        (lambda: UNKNOWN.random_like(0), r"know its model's d_mlp; give random_like\(seed, d_mlp"),
        (
            lambda: SMALL.random_like(0, match=torch.rand(3, 2)),
            r"match must be \[layer, neuron\] of n_layers=2, d_mlp=3, got shape \(3, 2\)",
        ),
        (lambda: SMALL.random_like(0, match=NAN), "match must be finite, got nan at layer 1, index 1"),
        (lambda: UNKNOWN.random_like(0, match=torch.rand(3, 9)), r"\(layer 4, index 1\) is outside"),
    ],
)
def test_bad_input_is_refused_with_what_is_allowed(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize(
    "values, message",
    [
        ([True], "layer must hold integers, got True"),
        ([0, 1.0], "layer must hold integers, got 1.0"),
        ("01", "layer must hold integers, got '0'"),
        (3, "layer must be a list or a one-axis tensor of integers, got 3"),
        (torch.tensor([1.0]), r"layer must be a one-axis tensor .* got torch.float32 of shape \(1,\)"),
        (torch.tensor([True]), "layer must be a one-axis tensor of integers, got torch.bool"),
        (torch.zeros(1, 1).long(), r"got torch.int64 of shape \(1, 1\)"),
    ],
)
def test_what_is_no_list_of_integers_is_refused(values, message):
    with pytest.raises(TypeError, match=message):
        integers(values, "layer")
    with pytest.raises(TypeError):  # the shape checker may speak first under pytest
        NeuronSet(values, [0])


@pytest.mark.parametrize("pairs", [[(0, 1, 2)], [(0,)]])
def test_what_is_no_pair_is_refused(pairs):
    with pytest.raises(TypeError, match=r"each neuron must be a pair \(layer, index\), got \(0,"):
        NeuronSet.from_pairs(pairs)


@pytest.mark.parametrize("mask", [torch.zeros(3, dtype=torch.bool), torch.zeros(2, 3), [[True]]])
def test_a_mask_of_wrong_shape_or_type_is_refused(mask):
    with pytest.raises(TypeError, match="mask"):  # the shape checker's own TypeError under pytest
        NeuronSet.from_mask(mask)


def test_the_complement_is_every_other_neuron():
    some = NeuronSet([0, 1], [2, 0], n_layers=2, d_mlp=3)
    assert set(some.complement()) == {(0, 0), (0, 1), (1, 1), (1, 2)}
    assert NeuronSet([0], [2]).complement(1, 3) == NeuronSet([0, 0], [0, 1], n_layers=1, d_mlp=3)
    with pytest.raises(ValueError, match="doesn't know its model's n_layers"):
        NeuronSet([0], [2]).complement()


def test_the_first_of_each_layer_are_taken_in_the_sets_order():
    some = NeuronSet([1, 0, 1, 0, 1], [5, 9, 2, 1, 7], n_layers=2, d_mlp=10)
    assert list(some.first_per_layer(2)) == [(1, 5), (0, 9), (1, 2), (0, 1)]
    with pytest.raises(ValueError, match="2 neurons in layer 0, can't take the first 3"):
        some.first_per_layer(3)


def test_a_control_matched_on_two_quantities_is_near_in_both():
    generator = torch.Generator().manual_seed(3)
    match = torch.stack(
        [torch.rand(2, 500, generator=generator), 1000 * torch.rand(2, 500, generator=generator)]
    )
    skill = NeuronSet.from_mask((match[0] > 0.9) & (match[1] < 300))
    control = skill.random_like(0, match=match)
    assert len(control & skill) == 0 and control.counts_per_layer() == skill.counts_per_layer()
    assert list(control) == list(skill.random_like(0, match=match)) != list(skill.random_like(1, match=match))
    unmatched = skill.random_like(0)
    for quantity in match / match.amax((1, 2), keepdim=True):
        far = (quantity[unmatched.layer, unmatched.index] - quantity[skill.layer, skill.index]).abs().mean()
        near = (quantity[control.layer, control.index] - quantity[skill.layer, skill.index]).abs().mean()
        assert near < 0.4 * far


def test_with_one_nearest_of_two_quantities_the_draw_is_the_nearest_in_ranks():
    match = torch.tensor([[[0.0, 1.0, 2.0, 3.0, 40.0]], [[0.0, 9.0, 1.0, 2.0, 3.0]]])
    control = NeuronSet([0], [2], n_layers=1, d_mlp=5).random_like(0, match=match, n_nearest=1)
    assert list(control) == [
        (0, 3)
    ]  # ranks (2, 1): neuron 3 at (3, 2) is nearer than 0 at (0, 0) or 4 at (4, 3)


# Sizes, models, notebooks


def test_nested_sets_are_the_first_of_each_layer_by_the_name_of_their_size():
    best_first = NeuronSet([0, 1, 0, 1, 0, 1], [5, 4, 2, 0, 9, 7], n_layers=2, d_mlp=10)
    sizes = best_first.nested([1, 0.2, 0.39])
    assert {name: set(some) for name, some in sizes.items()} == {
        "1": {(0, 5), (1, 4)},
        "0.2": {(0, 5), (0, 2), (1, 4), (1, 0)},
        "0.39": set(best_first),  # 3.9 is 3
    }
    assert all((some.n_layers, some.d_mlp) == (2, 10) for some in sizes.values())
    assert NeuronSet([0, 0], [3, 1]).nested([0.1], 10) == {"0.1": NeuronSet([0], [3])}


def model_of(*widths, name="toy"):
    blocks = [SimpleNamespace(mlp=SimpleNamespace(W_out=torch.zeros(width, 3))) for width in widths]
    return SimpleNamespace(blocks=blocks, cfg=SimpleNamespace(model_name=name))


def test_a_set_of_a_model_knows_its_shape_and_name():
    some = NeuronSet([1, 0], [6, 2]).of_model(model_of(7, 7, 7))
    assert (some.n_layers, some.d_mlp, some.model, list(some)) == (3, 7, "toy", [(1, 6), (0, 2)])
    assert some.of_model(model_of(7, 7, 7)) == some
    assert NeuronSet([0], [1], model="mine").of_model(model_of(7, name=None)).model == "mine"


def test_a_set_of_a_real_bridge_is_that_of_its_layers():
    model = tiny.bridge("gpt2")
    some = NeuronSet([1], [0]).of_model(model)
    assert (some.n_layers, some.d_mlp) == (len(model.blocks), model.blocks[0].mlp.W_out.shape[0])


def test_a_set_shows_its_first_neurons_in_a_notebook():
    html = big_set()._repr_html_()
    assert "NeuronSet(" in html and html.count("<tr>") == 10 and "more rows in to_dataframe()" in html


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: SMALL.of_model(model_of(3, 3, 3)), "must belong to one model, got n_layers=2, d_mlp=3 and"),
        (lambda: UNKNOWN.of_model(model_of(3, 3)), r"\(layer 4, index 1\) is outside the model"),
        (lambda: UNKNOWN.of_model(model_of(3, 5)), r"\(layer 4, index 1\) is outside the model"),
        (
            lambda: NeuronSet([0], [3]).of_model(model_of(3, 5)),
            r"index in \[0, 5\) \(neurons: 3 in layer 0, 5 in layer 1\)",
        ),
        (
            lambda: NeuronSet([1], [3]).of_model(model_of(3, 0)),
            r"\(layer 1, index 3\) does not exist: that layer has no neurons to name; there are 3 in layer 0",
        ),
        (
            lambda: UNKNOWN.of_model(SimpleNamespace(blocks=[None], cfg=None)),
            "no layer of the model has an output projection",
        ),
        (lambda: SMALL.nested([]), "amounts must hold at least one size, got none"),
        (lambda: UNKNOWN.nested([0.5]), r"know its model's d_mlp; give nested\(amounts, d_mlp\)"),
        (lambda: SMALL.nested([3]), "2 neurons in layer 0, can't take the first 3 of each layer"),
        (lambda: SMALL.nested([4]), r"amount must give 1 to 3 neurons per layer, got 4 \(4 neurons\)"),
        (lambda: SMALL.nested([0.2]), r"amount must give 1 to 3 neurons per layer, got 0.2 \(0 neurons\)"),
        (lambda: SMALL.nested([1.5]), r"amount as a share must be in \(0, 1\], got 1.5"),
    ],
)
def test_sizes_and_models_that_do_not_fit_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_the_examples_in_docstrings_give_what_they_say():
    assert doctest.testmod(neurons).failed == 0


def test_a_slice_keeps_the_order_the_model_and_what_chose_the_set(skill):
    chosen = NeuronSet(skill.layer, skill.index, 4, 10, "tiny", Choice("select", frozenset({"a"})))
    some = chosen[:2]
    assert list(some) == list(chosen)[:2] and list(chosen[::-1]) == list(chosen)[::-1]
    assert (some.n_layers, some.d_mlp, some.model, some.choice) == (4, 10, "tiny", chosen.choice)
    assert chosen[0] == next(iter(chosen)) and chosen[-1] == list(chosen)[-1] and len(chosen[5:]) == 0


TWO = [(2, 7), (0, 3)]


@pytest.mark.parametrize(
    ("given", "order"),
    [
        (TWO, TWO),
        (tuple(TWO), TWO),
        (iter(TWO), TWO),
        ([[2, 7], [0, 3]], TWO),
        (torch.tensor(TWO), TWO),
        (np.array(TWO), TWO),
        (set(TWO), sorted(TWO)),
        (frozenset(TWO), sorted(TWO)),
        ([], []),
    ],
)
def test_plain_pairs_in_any_form_are_neurons(given, order):
    assert list(as_neurons(given)) == order


def test_a_set_is_taken_as_it_is_and_works_with_plain_pairs(skill):
    assert as_neurons(skill) is skill
    first, new = next(iter(skill)), (3, 9)
    assert list(skill | [new]) == [*skill, new] and list(skill & [first, new]) == [first]
    assert list(skill - {first}) == list(skill)[1:] and (skill | [new]).d_mlp == skill.d_mlp
    assert skill.overlap([first]) == skill.overlap(NeuronSet.from_pairs([first]))


@pytest.mark.parametrize("given", ["14.371", {"a": 1}, 5, [(1, 2, 3)], [5], torch.tensor([1, 2])])
def test_what_is_no_neurons_is_refused(given):
    with pytest.raises(TypeError, match=r"pairs? \(layer, index\), got"):
        as_neurons(given)


def test_every_function_that_takes_neurons_takes_plain_pairs():
    """None is typed by the class, which mypy and the shape checker would hold it to."""
    strict = []
    for room in "attention interop interventions models plots prompts scores studies".split():
        offered = importlib.import_module(f"tl_skillneurons.{room}")
        for name in getattr(offered, "__all__", ["neuron_index", "patching_index"]):
            value = getattr(offered, name)
            if inspect.isclass(value):  # what a class is made of is what a function found
                continue
            if callable(value):
                for parameter in inspect.signature(value).parameters.values():
                    if "NeuronSet" in str(parameter.annotation).replace(str(Neurons), "Neurons"):
                        strict.append(f"{room}.{name}({parameter.name})")
    assert strict == []
