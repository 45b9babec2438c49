"""From which words heads move the label, on planted truth: the label's own words."""

import planted
import pytest
from toy import QUIET

from tl_skillneurons import NeuronSet
from tl_skillneurons.attention import ChosenHeads, SourceWords, coloured_sources, source_words
from tl_skillneurons.neurons.choice import Choice, text_fingerprints

QUICK = {"run": QUIET}


@pytest.fixture(scope="module")
def model():
    return planted.model()


def test_the_words_they_move_it_from_are_the_labels_words(model):
    words = source_words(
        model, planted.prompt(), planted.task(), planted.NEURONS, planted.HEADS, projection="up", **QUICK
    )
    frame = words.to_dataframe()
    assert set(frame.token[:2]) == {"good", "bad"}
    by = frame.set_index("token")
    assert by.share[["good", "bad"]].sum() > 0.5 and by.share.sum() == pytest.approx(1)
    assert by.contribution["good"] * by.contribution["bad"] < 0
    assert (by.share_label_1["good"], by.share_label_1["bad"]) == (1, 0)
    assert {"<v0>", "<v1>", "<v2>"} <= set(frame.token)


def test_a_coloured_text_shades_the_labels_word_most(model):
    shown = coloured_sources(
        model, planted.prompt(), "the film was good", planted.NEURONS, planted.HEADS, projection="up"
    )
    styles = {shown.plain[s.start : s.end]: str(s.style) for s in shown.spans}
    assert "rgb(255,55,55)" in styles["good"] or "rgb(55,55,255)" in styles["good"]
    assert "<v2>" in shown.plain


@pytest.mark.parametrize("heads", [[], [(0, 9)], [(7, 0)]])
def test_heads_outside_the_model_are_refused(model, heads):
    with pytest.raises(ValueError, match="heads must h"):
        source_words(model, planted.prompt(), planted.task(), planted.NEURONS, heads, **QUICK)


def test_it_comes_back_from_its_file_and_shows_itself_in_a_line(model, tmp_path):
    found = source_words(
        model, planted.prompt(), planted.task(), planted.NEURONS, planted.HEADS, projection="up", **QUICK
    )
    again = SourceWords.load(found.save(tmp_path / "words.safetensors"))
    assert again.to_dataframe().equals(found.to_dataframe())
    assert (again.heads, again.role, again.settings) == (found.heads, "report", found.settings)
    assert repr(found).startswith(f"SourceWords(n_tokens={len(found.words)}, strongest=['")
    assert "share_label_1" in found._repr_html_()


def test_heads_and_neurons_are_not_read_on_the_examples_that_chose_them_unless_by_insistence(model):
    task = planted.task()
    texts = frozenset(text_fingerprints(task.split("report")["text"]))
    heads = ChosenHeads(tuple(planted.HEADS), "report", texts)
    skill = NeuronSet(planted.NEURONS.layer, planted.NEURONS.index, choice=Choice("report", texts))
    settings = {"projection": "up", **QUICK}
    args = (model, planted.prompt(), task)
    with pytest.raises(ValueError, match=r"16 of the 16 examples .* chose these heads"):
        source_words(*args, planted.NEURONS, heads, **settings)
    with pytest.raises(ValueError, match=r"16 of the 16 examples .* chose these neurons"):
        source_words(*args, skill, planted.HEADS, **settings)
    frame = source_words(*args, skill, heads, on_chosen_examples=True, **settings).to_dataframe()
    assert set(frame.heads_chosen) == set(frame.neurons_chosen) == {"on these examples"}
    apart = source_words(*args, skill, heads, role="select", **settings).to_dataframe()
    assert set(apart.heads_chosen) == {"on other examples"}
