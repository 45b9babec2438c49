"""Which heads bring the label, on planted truth: the two planted ones, from the label's word, and no other."""

import planted
import pytest
import tiny
import torch

from tl_skillneurons import NeuronSet, SoftPrompt
from tl_skillneurons.attention.decomposition import decompose
from tl_skillneurons.attention.writers import coloured_sources, head_writers, source_words

QUICK = {"progress": False}


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


def test_the_words_they_move_it_from_are_the_labels_words(model):
    words = source_words(
        model, planted.prompt(), planted.task(), planted.NEURONS, planted.HEADS, projection="up", **QUICK
    )
    assert set(words.token[:2]) == {"good", "bad"}
    by = words.set_index("token")
    assert by.share[["good", "bad"]].sum() > 0.5 and by.share.sum() == pytest.approx(1)
    assert by.contribution["good"] * by.contribution["bad"] < 0
    assert (by.share_label_1["good"], by.share_label_1["bad"]) == (1, 0)
    assert {"<v0>", "<v1>", "<v2>"} <= set(words.token)


def test_a_coloured_text_shades_the_labels_word_most(model):
    shown = coloured_sources(
        model, planted.prompt(), "the film was good", planted.NEURONS, planted.HEADS, projection="up"
    )
    styles = {shown.plain[s.start : s.end]: str(s.style) for s in shown.spans}
    assert "rgb(255,55,55)" in styles["good"] or "rgb(55,55,255)" in styles["good"]
    assert "<v2>" in shown.plain


@pytest.mark.parametrize("family", ["bert", "gpt2"])
def test_other_families_give_the_same_in_any_batch(family):
    rows = 0.1 * torch.randn(3, 32, generator=torch.Generator().manual_seed(0))
    prompt = SoftPrompt(rows, placement="prefix" if family == "bert" else "suffix")
    options = {"n_permutations": 19, **QUICK}
    args = (tiny.bridge(family), prompt, tiny.task(), NeuronSet([0, 1], [3, 7]))
    one, many = (head_writers(*args, batch_size=n, **options) for n in (1, 5))
    torch.testing.assert_close(one.heads, many.heads, rtol=1e-4, atol=1e-5)
    assert one.heads.shape == (16, 2, 2, 4)


@pytest.mark.parametrize("heads", [[], [(0, 9)], [(7, 0)]])
def test_heads_outside_the_model_are_refused(model, heads):
    with pytest.raises(ValueError, match="heads must be pairs"):
        source_words(model, planted.prompt(), planted.task(), planted.NEURONS, heads, **QUICK)
