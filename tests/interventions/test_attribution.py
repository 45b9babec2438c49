"""First-order attribution: the gradient a loop of small changes gives, and the planted neurons on top."""

import planted
import pytest
import tiny
import torch

from tl_skillneurons import PromptedModel, SoftPrompt
from tl_skillneurons.interventions.attribution import attribute_neurons, compare_with_exact

TWINS = planted.twins(4)
LABELS = [planted.label_of(clean) for clean, _ in TWINS]
PLANTED = {"twins": TWINS, "clean_labels": LABELS, "progress": False}
PAIRS = {"twins": [("the film was good", "the film was bad"), ("good plot", "bad plot")]}
OPTIONS = {**PAIRS, "clean_labels": [1, 0], "progress": False}


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
    frame = compare_with_exact(model, planted.prompt(), planted.task(), found, n_top=3, n_sample=5, **PLANTED)
    top = frame[frame.group == "top"]
    assert (top.rank_agreement == 1).all() and len(frame) == 8
    assert ((top.estimate - top.exact).abs() < 0.25 * top.exact).all()


@pytest.mark.parametrize("family", ["llama", "gpt2", "bert"])
@pytest.mark.parametrize("positions", ["prompt", "all"])
def test_an_estimate_is_the_slope_of_a_small_patch(family, positions):
    model, task = tiny.bridge(family, dtype=torch.float64), tiny.task()
    options = {"twins": [("the film was good", "the film was bad")], "clean_labels": [1]}
    found = attribute_neurons(model, prompt(family), task, positions=positions, progress=False, **options)
    prompted = PromptedModel(model, prompt(family), task.label_words)
    [(clean, corrupted)] = options["twins"]
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
    model, task = tiny.bridge("llama"), tiny.task()
    flags = [p.requires_grad for p in model.parameters()]
    one, many = (attribute_neurons(model, prompt(), task, steps=2, batch_size=n, **OPTIONS) for n in (1, 2))
    torch.testing.assert_close(one.effect, many.effect, rtol=1e-3, atol=1e-7)
    assert flags == [p.requires_grad for p in model.parameters()]
    assert not any(h for point in model.hook_dict.values() for h in point.fwd_hooks if not h.is_permanent)
    assert all(p.grad is None for p in model.parameters())


def test_what_makes_no_sense_is_refused(model):
    run = {"model": model, "prompt": planted.prompt(), "task": planted.task()}
    with torch.no_grad(), pytest.raises(ValueError, match=r"outside torch.no_grad"):
        attribute_neurons(**run, **PLANTED)
    with pytest.raises(ValueError, match="direction must be one of"):
        attribute_neurons(**run, **PLANTED, direction="both")
    with pytest.raises(ValueError, match="pair 0 has 4 and 3"):
        attribute_neurons(**run, twins=[("the good film", "bad film")], clean_labels=[1])
