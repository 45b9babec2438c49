"""Which heads bring the label, on planted truth: the two planted ones, from the label's word, and no other."""

import planted
import pytest
import tiny
import torch
from toy import QUIET, task_of

from tl_skillneurons import NeuronSet, RunOptions, SoftPrompt
from tl_skillneurons.attention import HeadWriters, decompose, head_writers

QUICK = {"run": QUIET}
SIZES = [RunOptions(batch_size=n, progress=False) for n in (1, 5)]


@pytest.fixture(scope="module")
def model():
    return planted.model()


@pytest.fixture(scope="module")
def found(model):
    return head_writers(
        model, planted.prompt(), planted.task(), planted.NEURONS, projection="up", n_permutations=199, **QUICK
    )


def test_the_planted_heads_separate_the_labels_and_no_other_head_does(found):
    assert set(found.top_heads(2)) == set(planted.HEADS)
    frame = found.to_dataframe()
    assert (frame.p_family[:2] <= 0.02).all() and (frame.p_family[2:] > 0.05).all()
    assert frame.n_significant.tolist()[2:] == [0] * (len(frame) - 2)
    assert frame.share[:2].sum() > 0.9 and frame.share.sum() == pytest.approx(1)
    assert (frame.low <= frame.at_most).all() and (frame.at_most <= frame.high).all()
    assert (found.role, found.settings["projection"]) == ("report", "up")


def test_neurons_that_never_see_the_label_have_no_separating_head(model):
    control = planted.NEURONS.random_like(3)
    assert len(control & planted.DECOY) == 0
    found = head_writers(
        model, planted.prompt(), planted.task(), control, projection="up", n_permutations=199, **QUICK
    )
    others = [h for h in found.top_heads(12) if h not in planted.HEADS]
    layer, head = torch.tensor(others).T
    assert found.separation.p_family[:, layer, head].min() > 0.05


def test_values_are_those_of_each_text_alone_averaged_over_prompt_positions(model, found):
    texts = list(planted.task().split("report")["text"])
    for number in (0, 5, 11):
        parts = decompose(model, planted.prompt(), [texts[number]], planted.NEURONS, projection="up")
        torch.testing.assert_close(found.heads[number], parts.heads[0].mean(0), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(found.mlps[number], parts.mlps[0].mean(0), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", ["bert", "gpt2"])
def test_other_families_give_the_same_in_any_batch(family):
    rows = 0.1 * torch.randn(3, 32, generator=torch.Generator().manual_seed(0))
    prompt = SoftPrompt(rows, placement="prefix" if family == "bert" else "suffix")
    args = (tiny.bridge(family), prompt, tiny.task(), NeuronSet([0, 1], [3, 7]))
    one, many = (head_writers(*args, n_permutations=19, run=sized) for sized in SIZES)
    torch.testing.assert_close(one.heads, many.heads, rtol=1e-4, atol=1e-5)
    assert one.heads.shape == (16, 2, 2, 4)


def test_it_comes_back_from_its_file_and_shows_itself_in_a_line(found, tmp_path):
    again = HeadWriters.load(found.save(tmp_path / "writers.safetensors"))
    assert list(again.neurons) == list(found.neurons) and again.settings == found.settings
    assert again.to_dataframe().equals(found.to_dataframe())
    assert repr(found).startswith(
        "HeadWriters(n_neurons=3, n_layers=3, n_heads=4, n_examples=16, role='report'"
    )
    assert "p_family" in found._repr_html_()


def test_more_than_two_classes_are_refused(model):
    rows = [{"text": row["text"], "label": n % 3} for n, row in enumerate(tiny.sentences(54, seed=2))]
    three = task_of(rows, {0: "negative", 1: "positive", 2: "other"})
    with pytest.raises(ValueError, match="two classes"):
        head_writers(model, planted.prompt(), three, planted.NEURONS, **QUICK)
