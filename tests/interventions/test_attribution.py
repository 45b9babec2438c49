"""First-order attribution: the gradient a loop of small changes gives, and the planted neurons on top."""

from dataclasses import replace

import planted
import pytest
import tiny
import torch
from toy import QUIET

from tl_skillneurons import PromptedModel, RunOptions, SoftPrompt
from tl_skillneurons._files import save_tensors
from tl_skillneurons.interventions import (
    NeuronAttribution,
    Twins,
    attribute_neurons,
    compare_with_exact,
    patch_neurons,
)

PAIRS = planted.twins(6)
PLANTED = {"twins": Twins(PAIRS, [planted.label_of(clean) for clean, _ in PAIRS]), "run": QUIET}
OTHERS = Twins([("the film was good", "the film was bad"), ("good plot", "bad plot")], [1, 0])


@pytest.fixture(scope="module")
def model():
    return planted.model()


def prompt(family="llama"):
    rows = 0.1 * torch.randn(3, 32, generator=torch.Generator().manual_seed(0))
    return SoftPrompt(rows, placement="prefix" if family == "bert" else "suffix")


@pytest.mark.parametrize("direction", ["denoise", "noise"])
def test_the_planted_neurons_come_first_and_the_decoy_gets_next_to_nothing(model, direction):
    found = attribute_neurons(model, planted.prompt(), planted.task(), direction=direction, **PLANTED)
    assert list(found.top(3)) == list(planted.NEURONS)
    [(layer, index)] = planted.DECOY
    weakest = found.recovered[planted.NEURONS.layer, planted.NEURONS.index].min()
    assert found.recovered[layer, index].abs() < 0.25 * weakest
    assert (found.gap > 0) == (direction == "denoise")


def test_ranks_agree_with_exact_patching_where_there_is_something_to_rank(model):
    found = attribute_neurons(model, planted.prompt(), planted.task(), steps=3, **PLANTED)
    frame = compare_with_exact(model, planted.prompt(), planted.task(), found, n_top=3, n_sample=5, run=QUIET)
    top = frame[frame.group == "top"]
    assert (top.rank_agreement == 1).all() and len(frame) == 8
    assert ((top.estimate - top.exact).abs() < 0.25 * top.exact).all()


@pytest.mark.parametrize("family", ["llama", "gpt2", "bert", "opt"])
@pytest.mark.parametrize("positions", ["prompt", "all"])
def test_an_estimate_is_the_slope_of_a_small_patch(family, positions):
    model, task = tiny.kept(family, dtype=torch.float64), tiny.task()
    twins = Twins([("the film was good", "the film was bad")], [1])
    found = attribute_neurons(model, prompt(family), task, twins=twins, positions=positions, run=QUIET)
    prompted = PromptedModel(model, prompt(family), task.label_words)
    [(clean, corrupted)] = twins.pairs
    kept = {}
    look = [("blocks.1.mlp.hook_post", lambda act, hook: kept.update(clean=act))]
    with torch.no_grad():
        prompted.run_with_hooks([clean], look)
        before = prompted.class_logits([corrupted])[0].diff()
        where = prompted.tokens([corrupted]).is_prompt if positions == "prompt" else slice(None)
        for neuron in (0, 7, 30):

            def nudge(act, hook, neuron=neuron):
                new = act.clone()
                move = torch.zeros_like(act)
                move[where] = (kept["clean"] - act)[where]
                new[..., neuron] += 1e-2 * move[..., neuron]
                return new

            after = prompted.class_logits([corrupted], [("blocks.1.mlp.hook_post", nudge)])[0].diff()
            slope = float((after - before) / 1e-2)  # RMS norms round in float32
            assert float(found.effect[1, neuron]) == pytest.approx(slope, rel=0.05, abs=1e-5)


def test_batches_change_nothing_and_the_model_is_left_as_it_was():
    model, task = tiny.kept("llama"), tiny.task()
    flags = [p.requires_grad for p in model.parameters()]
    one, many = (
        attribute_neurons(
            model, prompt(), task, twins=OTHERS, steps=2, run=RunOptions(batch_size=n, progress=False)
        )
        for n in (1, 2)
    )
    torch.testing.assert_close(one.effect, many.effect, rtol=1e-3, atol=1e-7)
    assert flags == [p.requires_grad for p in model.parameters()]
    assert not any(h for point in model.hook_dict.values() for h in point.fwd_hooks if not h.is_permanent)
    assert all(p.grad is None for p in model.parameters())


def test_the_twins_of_one_class_are_told_apart_from_all_others(tmp_path):
    model, task = tiny.kept("gpt2", dtype=torch.float64), tiny.task()
    pairs = [*OTHERS.pairs, ("a very good cast", "a very bad cast")]
    made = attribute_neurons(model, prompt("gpt2"), task, twins=Twins(pairs, [1, 0, 1]), run=QUIET)
    found = NeuronAttribution.load(made.save(tmp_path / "attribution.safetensors"))
    each = found.each_class([(0, 3), (1, 7)])
    assert each.columns.tolist() == ["layer", "index", "class", "effect", "rest_effect", "n_pairs"]
    assert each[["layer", "class", "n_pairs"]].to_numpy().tolist() == [
        [0, 0, 1],
        [0, 1, 2],
        [1, 0, 1],
        [1, 1, 2],
    ]
    for label, own in ((0, pairs[1:2]), (1, pairs[::2])):
        twins = Twins(own, [label] * len(own))
        alone = attribute_neurons(model, prompt("gpt2"), task, twins=twins, run=QUIET).effect
        rows = each[each["class"] == label]
        assert rows.effect.tolist() == pytest.approx([float(alone[0, 3]), float(alone[1, 7])])
        assert each[each["class"] != label].rest_effect.tolist() == pytest.approx(rows.effect.tolist())


def test_what_makes_no_sense_is_refused(model):
    run = {"model": model, "prompt": planted.prompt(), "task": planted.task()}
    with torch.no_grad(), pytest.raises(ValueError, match=r"outside torch.no_grad"):
        attribute_neurons(**run, **PLANTED)
    with pytest.raises(ValueError, match="direction must be one of"):
        attribute_neurons(**run, **PLANTED, direction="both")
    with pytest.raises(ValueError, match="pair 0 has 4 and 3"):
        attribute_neurons(**run, twins=Twins([("the good film", "bad film")], [1]))


@pytest.mark.parametrize("positions", [[-1], slice(-2, None)], ids=str)
def test_exact_patching_takes_twins_positions_and_direction_from_the_attribution(model, tmp_path, positions):
    settings = {"positions": positions, "direction": "noise"}
    made = attribute_neurons(model, planted.prompt(), planted.task(), **settings, **PLANTED)
    found = NeuronAttribution.load(made.save(tmp_path / "new" / "attribution.safetensors"))
    frame = compare_with_exact(model, planted.prompt(), planted.task(), found, n_top=3, n_sample=2, run=QUIET)
    exact = patch_neurons(
        model, planted.prompt(), planted.task(), found.top(3), curves=("neuron",), directions=("noise",),
        positions=positions, n_random=19, **{**PLANTED, "twins": replace(PLANTED["twins"], on_chosen_examples=True)},
    )  # fmt: skip
    rows = exact.to_dataframe()
    expected = rows[rows.curve == "neuron"].recovered.tolist()
    assert frame[frame.group == "top"].exact.tolist() == pytest.approx(expected, abs=1e-9)
    chosen = frame.groupby("group").neurons_chosen.unique()
    assert chosen["top"] == ["on these examples"] and chosen["sample"] == ["unknown"]
    with pytest.raises(ValueError, match="that chose these neurons"):
        patch_neurons(model, planted.prompt(), planted.task(), found.top(3), n_random=19, **PLANTED)


def test_exact_patching_refuses_what_the_attribution_was_not_made_with(model):
    found = attribute_neurons(model, planted.prompt(), planted.task(), **PLANTED)
    others = {
        "prompt": (model, planted.prompt(1), planted.task()),
        "task": (model, planted.prompt(), planted.task(seed=1)),
        "model": (tiny.kept("llama"), planted.prompt(), planted.task()),
    }
    for named, (other, own, task) in others.items():
        with pytest.raises(ValueError, match=rf"the attribution is of another run \({named}\."):
            compare_with_exact(other, own, task, found, run=QUIET)


def test_its_file_gives_it_back_and_it_shows_itself_on_one_line(model, tmp_path):
    found = attribute_neurons(model, planted.prompt(), planted.task(), **PLANTED)
    again = NeuronAttribution.load(found.save(tmp_path / "attribution.safetensors"))
    assert torch.equal(again.effect, found.effect)
    assert (again.gap, again.settings, list(again.top(5))) == (found.gap, found.settings, list(found.top(5)))
    frame = found.to_dataframe()
    assert len(frame) == found.effect.numel()
    row = frame[(frame.layer == 1) & (frame["index"] == 7)].iloc[0]
    assert row.effect == found.effect[1, 7] and row.recovered == found.recovered[1, 7]
    assert repr(found).startswith("NeuronAttribution(shape=[3, 48], gap=") and "best=[(1, 7), " in repr(found)
    assert "<table" in found._repr_html_()
    assert torch.equal(again.gaps, found.gaps) and len(found.gaps) == len(PAIRS)
    for broken in ({"effect": found.effect.flatten(), "gaps": found.gaps}, {"effect": found.effect}):
        path = save_tensors(tmp_path / "odd", "NeuronAttribution", broken, {"settings": found.settings})
        with pytest.raises(ValueError, match="not a sound NeuronAttribution file"):
            NeuronAttribution.load(path)


NOISE = torch.tensor([1.0, -1.0] * 10)


@pytest.mark.parametrize("gaps", [torch.zeros(20), NOISE, NOISE + 0.1, NOISE * torch.nan], ids=str)
def test_of_a_gap_that_may_be_zero_there_is_no_fraction_and_no_best_neuron(gaps):
    effect = torch.arange(6, dtype=torch.float64).reshape(2, 3)
    found = NeuronAttribution(effect, gaps, {"model": {"name": "none"}})
    for refused in (lambda: found.recovered, lambda: found.top(4)):
        with pytest.raises(ValueError, match=r"the gap is .*read effect, in logits"):
            refused()
    with pytest.warns(UserWarning, match=r"the gap is .*recovered is NaN"):
        frame = found.to_dataframe()
    assert frame.recovered.isna().all() and frame.effect.tolist() == list(range(6))
    assert "best=None" in repr(found)


@pytest.mark.parametrize("sign", [1, -1])
def test_a_sound_gap_gives_the_fractions_and_their_order(sign):
    effect = torch.tensor([[0.5, -1.0], [2.0, 0.5]], dtype=torch.float64)
    found = NeuronAttribution(effect, sign * torch.tensor([1.0, 2.0, 3.0] * 3), {"model": {"name": "none"}})
    assert found.gap == sign * 2 and torch.equal(found.recovered, effect / (sign * 2))
    best = [(1, 0), (0, 0), (1, 1), (0, 1)] if sign > 0 else [(0, 1), (0, 0), (1, 1), (1, 0)]
    assert list(found.top(4)) == best
    effect[0, 0] = torch.nan
    with pytest.raises(ValueError, match="1 effects are not finite"):
        found.top(1)
