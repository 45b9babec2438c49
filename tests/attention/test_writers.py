"""Which heads bring the label, on planted truth: the two planted ones, from the label's word, and no other."""

import math

import planted
import pytest
import tiny
import torch
from toy import QUIET, task_of

from tl_skillneurons import NeuronSet, RunOptions, SoftPrompt, Task
from tl_skillneurons.attention import HeadWriters, decompose, head_effects, head_writers
from tl_skillneurons.neurons.choice import Choice, text_fingerprints
from tl_skillneurons.stats.intervals import bootstrap_mean
from tl_skillneurons.stats.units import Units

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
    assert (found.role, found.settings["projection"]) == ("select", "up")


def test_unasked_a_gated_neuron_is_taken_apart_whole_for_its_gate_may_not_know_the_label(model, found):
    """The planted neurons read the label by what their gate is multiplied with; the gate is the same for both."""
    args = (model, planted.prompt(), planted.task(), planted.NEURONS)
    unasked, gate = (
        head_writers(*args, n_permutations=19, **QUICK, **asked) for asked in ({}, {"projection": "pre"})
    )
    assert unasked.settings["projection"] == "post"
    assert set(unasked.top_heads(2)) == set(planted.HEADS)
    rows, columns = torch.tensor(planted.HEADS).T
    label = found.separation.difference.abs()[:, rows, columns].sum()
    assert gate.separation.difference.abs()[:, rows, columns].sum() < 0.05 * label


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
    texts = list(planted.task().split("select")["text"])
    for number in (0, 5, 11):
        parts = decompose(model, planted.prompt(), [texts[number]], planted.NEURONS, projection="up")
        torch.testing.assert_close(found.heads[number], parts.heads[0].mean(0), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(found.mlps[number], parts.mlps[0].mean(0), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", ["bert", "gpt2"])
def test_other_families_give_the_same_in_any_batch(family):
    rows = 0.1 * torch.randn(3, 32, generator=torch.Generator().manual_seed(0))
    prompt = SoftPrompt(rows, placement="prefix" if family == "bert" else "suffix")
    args = (tiny.kept(family), prompt, tiny.task(), NeuronSet([0, 1], [3, 7]))
    one, many = (head_writers(*args, n_permutations=19, run=sized) for sized in SIZES)
    torch.testing.assert_close(one.heads, many.heads, rtol=1e-4, atol=1e-5)
    assert one.heads.shape == (len(tiny.task().split("select")), 2, 2, 4)


def test_it_comes_back_from_its_file_and_shows_itself_in_a_line(found, tmp_path):
    again = HeadWriters.load(found.save(tmp_path / "writers.safetensors"))
    assert list(again.neurons) == list(found.neurons) and again.settings == found.settings
    assert again.to_dataframe().equals(found.to_dataframe()) and again.top_heads(3) == found.top_heads(3)
    assert repr(found).startswith(
        "HeadWriters(n_neurons=3, n_layers=3, n_heads=4, n_examples=16, role='select', units='16 (text)'"
    )
    assert "p_family" in found._repr_html_()


def test_heads_are_chosen_on_select_and_know_it(found):
    heads = found.top_heads(3)
    assert (heads.role, len(heads.texts)) == ("select", 16)
    assert (heads[:2].role, heads[:2].texts) == (heads.role, heads.texts) and set(heads[:2]) == set(
        planted.HEADS
    )
    assert repr(heads[:1]) == f"[{heads[0]}] (chosen on select)"


def grouped_task(n_groups, size=4):
    """Texts in groups of one label each, of which 6 serve each role."""
    rows = planted.sentences(2 * n_groups * size, seed=3)
    ordered = sorted(rows, key=lambda row: row["label"])
    by_group = [{**row, "author": f"a{k // size}"} for k, row in enumerate(ordered)]
    parts = [[row for k, row in enumerate(by_group) if (k // size) % 3 == part] for part in range(3)]
    return Task.from_datasets(
        dict(zip(("train", "validation", "test"), parts, strict=True)),
        template="{text}",
        label_words=planted.LABEL_WORDS,
        name="by authors",
        group="author",
    )


def test_labels_are_dealt_out_to_units_and_all_ways_counted_where_they_are_few(model):
    """Six authors with three of each label can be labelled in 20 ways, however many texts they wrote."""
    task = grouped_task(9)
    args = (model, planted.prompt(), task, planted.NEURONS)
    found = head_writers(*args, projection="up", n_permutations=199, **QUICK)
    assert repr(found.units) == "Units(6 of 24 examples: group)"
    assert (found.settings["unit"], found.settings["n_units"]) == ("group", 6)
    assert "units='6 (group)'" in repr(found)
    assert found.separation.n_draws == 19 and found.settings["smallest_p"] == pytest.approx(2 / 20)
    assert found.separation.p_family.min() >= 2 / 20
    frame = found.to_dataframe()
    assert (frame.low <= frame.at_most).all() and (frame.at_most <= frame.high).all()


def test_an_interval_is_that_of_units_drawn_together():
    """Where all texts of an author say the same, an author is one observation and the interval as wide as of six."""
    values = torch.tensor([0.0, 1.0, 2.0, 5.0, 6.0, 7.0])
    few = writers_of(values, torch.tensor([0, 0, 0, 1, 1, 1]), torch.arange(6))
    many = writers_of(
        values.repeat_interleave(5), torch.tensor([0] * 15 + [1] * 15), torch.arange(6).repeat_interleave(5)
    )
    wide = [float((one.high - one.low).max()) for one in (few.to_dataframe(), many.to_dataframe())]
    assert wide[1] == pytest.approx(wide[0], rel=0.05)


def test_twins_share_a_unit_and_the_interval_of_their_difference_is_that_of_the_pairs():
    """Whatever a pair has in common says nothing on the difference within it."""
    common = torch.randn(30, generator=torch.Generator().manual_seed(0)) * 10
    apart = 1 + torch.rand(30, generator=torch.Generator().manual_seed(1))
    values, labels = torch.stack([common, common + apart], dim=1).flatten(), torch.arange(60) % 2
    pairs = torch.arange(60) // 2
    [row] = writers_of(values, labels, pairs, pairs).to_dataframe().itertuples()
    assert row.low == pytest.approx(float(bootstrap_mean(apart)[0]), abs=0.02)
    assert row.high == pytest.approx(float(bootstrap_mean(apart)[1]), abs=0.02)


def writers_of(values, labels, member, pair=None):
    """One head's contributions to one neuron."""
    n = len(values)
    return HeadWriters(
        NeuronSet([0], [0], n_layers=1, d_mlp=1),
        values.view(n, 1, 1, 1),
        torch.zeros(n, 1, 1),
        torch.zeros(n, 1),
        labels,
        "select",
        Units(member, "author", pair),
        tuple(map(str, range(n))),
        {"n_permutations": 19, "seed": 0, "projection": "pre"},
    )


def test_where_no_head_separates_none_has_a_share():
    values, labels = torch.ones(8), torch.arange(8) % 2
    [row] = writers_of(values, labels, torch.arange(8)).to_dataframe().itertuples()
    assert row.difference == 0 and math.isnan(row.share) and row.p_family == 1


@pytest.mark.parametrize(("role", "told"), [("select", "on these examples"), ("report", "on other examples")])
def test_the_table_tells_where_the_neurons_were_chosen(model, tmp_path, role, told):
    texts = frozenset(text_fingerprints(planted.task().split("select")["text"]))
    known = NeuronSet(*planted.NEURONS.to_dataframe().values.T, choice=Choice("select", texts))
    args = (model, planted.prompt(), planted.task())
    found = head_writers(*args, known, projection="up", role=role, n_permutations=19, **QUICK)
    for one in (found, HeadWriters.load(found.save(tmp_path / "writers.safetensors"))):
        assert set(one.to_dataframe().neurons_chosen) == {told}
        assert ("neurons_chosen='on these examples'" in repr(one)) == (role == "select")
    bare = head_writers(*args, planted.NEURONS, projection="up", n_permutations=19, **QUICK)
    assert set(bare.to_dataframe().neurons_chosen) == {"unknown"}


def test_of_more_classes_one_is_told_from_the_others(model):
    rows = [{"text": row["text"], "label": n % 3} for n, row in enumerate(tiny.sentences(54, seed=2))]
    three = task_of(rows, {0: "negative", 1: "positive", 2: "other"})
    with pytest.raises(ValueError, match=r"'toy' has 3 classes \(0, 1, 2\); give class_id=0 to 2"):
        head_writers(model, planted.prompt(), three, planted.NEURONS, **QUICK)
    with pytest.raises(ValueError, match="class_id must be 0 to 2 for 'toy', got 3"):
        head_writers(model, planted.prompt(), three, planted.NEURONS, class_id=3, **QUICK)
    args = (planted.NEURONS[:1],)
    found = head_writers(model, planted.prompt(), three, *args, class_id=2, n_permutations=19, **QUICK)
    labels = torch.tensor(three.split("select")["label"])
    assert found.labels.tolist() == (labels == 2).long().tolist() and found.settings["class_id"] == 2
    own, rest = found.heads[labels == 2].double().mean(0), found.heads[labels != 2].double().mean(0)
    torch.testing.assert_close(found.separation.difference.double(), own - rest, rtol=1e-6, atol=1e-9)
    effects = head_effects(
        model, planted.prompt(), three, planted.HEADS[:1], *args, class_id=2, n_random=19, **QUICK
    )
    acts, labels = effects.activations.double(), torch.tensor(three.split("report")["label"])
    apart = acts[:, labels == 2].mean(1) - acts[:, labels != 2].mean(1)
    torch.testing.assert_close(
        effects.separation, apart / acts[0].std(0, correction=0), rtol=1e-9, atol=1e-12
    )
    each = effects.each_class().set_index(["class", "measure"])
    assert each.ablated[2, "separation"] == pytest.approx(float(effects.separation[1].abs().mean()))
    right = effects.logits[1].argmax(1) == labels
    for label in range(3):
        told, own = each.loc[label, "accuracy"], labels == label
        assert told.ablated == pytest.approx(float(right[own].double().mean()))
        assert told.rest_ablated == pytest.approx(float(right[~own].double().mean()))
        other = acts[:, own].mean(1) - acts[:, ~own].mean(1)
        apart = (other / acts[0].std(0, correction=0)).abs().mean(1)
        assert each.loc[label, "separation"].intact == pytest.approx(float(apart[0]))
