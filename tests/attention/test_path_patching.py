"""Path patching from heads to neurons: the planted heads carry the label straight into the planted neurons."""

import planted
import pytest
import tiny
import torch

from tl_skillneurons import NeuronSet, SoftPrompt
from tl_skillneurons.attention.path_patching import patch_heads_to_neurons

TWINS = planted.twins(6)
LABELS = [planted.label_of(clean) for clean, _ in TWINS]
QUICK = {"n_random": 19, "progress": False}
WORDS = {
    "twins": [("the film was good", "the film was bad"), ("good plot", "bad plot")],
    "clean_labels": [1, 0],
}


def run(heads, neurons=planted.NEURONS, **changes):
    options = {"twins": TWINS, "clean_labels": LABELS, **QUICK, **changes}
    return patch_heads_to_neurons(
        planted.model(), planted.prompt(), planted.task(), heads, neurons, **options
    )


def test_the_planted_heads_carry_the_whole_answer_straight_into_the_neurons_and_random_heads_none():
    frame = run(planted.HEADS).to_dataframe().set_index("measure")
    assert (frame.recovered > 0.9).all() and (frame.recovered < 1.1).all()
    assert (frame.random_max.abs() < 0.05).all() and (frame.p_random == 1 / 20).all()


def test_one_head_alone_carries_a_part_and_the_two_parts_add_up():
    shares = [float(run([head]).recovered_activation[0]) for head in planted.HEADS]
    both = float(run(planted.HEADS).recovered_activation[0])
    assert all(share > 0.1 for share in shares) and sum(shares) == pytest.approx(both, abs=0.1)


def tiny_run(family, heads, neurons, **changes):
    rows = 0.1 * torch.randn(3, 32, generator=torch.Generator().manual_seed(0))
    prompt = SoftPrompt(rows, placement="prefix" if family == "bert" else "suffix")
    options = {**WORDS, **QUICK, **changes}
    return patch_heads_to_neurons(tiny.bridge(family), prompt, tiny.task(), heads, neurons, **options)


@pytest.mark.parametrize("family", ["llama", "gpt2", "bert", "gemma3", "opt"])
def test_a_later_head_reaches_no_earlier_neuron_and_batches_change_nothing(family):
    neurons = NeuronSet([0, 0], [3, 7])
    found = tiny_run(family, [(1, 0), (1, 2)], neurons)
    torch.testing.assert_close(found.activations[2], found.activations[0], rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(found.logit_diff[2], found.logit_diff[0], rtol=1e-4, atol=1e-5)
    one, many = (tiny_run(family, [(0, 1)], NeuronSet([1], [5]), batch_size=n) for n in (1, 2))
    torch.testing.assert_close(one.activations, many.activations, rtol=1e-4, atol=1e-5)
    assert (one.activations[2] != one.activations[0]).any()  # the path is there


@pytest.mark.parametrize("family", ["llama", "gpt2", "bert", "opt"])
def test_all_heads_of_the_first_layer_bring_its_neurons_all_that_the_text_tells_them(family):
    """In layer 0 nothing else differs at the prompt positions between twins of one length."""
    found = tiny_run(family, [(0, h) for h in range(4)], NeuronSet([0, 0], [3, 30]), n_random=19, seed=1)
    torch.testing.assert_close(found.activations[2], found.activations[1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"heads": [(0, 9)]}, r"got \(0, 9\)"),
        ({"heads": []}, "got none"),
        ({"n_random": 2}, "n_random must be at least 19"),
        ({"neurons": NeuronSet([0], [0], n_layers=9, d_mlp=48)}, "must belong to one model"),
        ({"neurons": NeuronSet([], [])}, "at least one neuron"),
        ({"twins": [("the good film", "bad film")], "clean_labels": [1]}, "pair 0 has 4 and 3"),
    ],
)
def test_what_makes_no_sense_is_refused(changes, message):
    options = {"heads": planted.HEADS, **changes}
    with pytest.raises(ValueError, match=message):
        run(**options)
