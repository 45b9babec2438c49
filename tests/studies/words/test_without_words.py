"""Word detectors fall to guessing where their word is missing, neurons of the label don't; every number by hand."""

import pandas as pd
import pytest
import tiny
import torch
from scipy import stats
from toy import LABEL_WORDS, QUIET, prompt_for, task_of
from worded import plant, worded_task

import tl_skillneurons as skn
from tl_skillneurons.stats.intervals import two_level_bootstrap
from tl_skillneurons.stats.units import Units
from tl_skillneurons.studies.words.presence import distinct_words
from tl_skillneurons.studies.words.without_words import _of_group, strongest_words

WORD, LABEL = skn.NeuronSet([1], [3]), skn.NeuronSet([1], [5])


@pytest.fixture(scope="module")
def task():
    return worded_task()


def test_a_word_detector_falls_to_guessing_without_its_word_and_a_label_neuron_does_not(task):
    model, prompt = plant(tiny.bridge("gpt2"), task), prompt_for("gpt2")
    scores = skn.score_neurons(model, prompt, task, run=QUIET)
    found = {
        name: skn.studies.accuracy_without_words(model, prompt, task, scores, neurons, n_words=2)
        for name, neurons in (("word", WORD), ("label", LABEL))
    }
    split = task.split("report")
    labels = torch.tensor(split["label"])
    without = torch.tensor([not {"good", "bad"} & set(text.split()) for text in split["text"]])
    zeros = float((labels[without] == 0).double().mean())
    every, there, left = found["word"].to_dataframe().itertuples()
    assert (every.texts, there.texts, left.texts) == ("all", "with words", "without words")
    assert there.accuracy == 1 and left.accuracy == zeros  # it says 0 to all that lack the word
    assert left.majority == pytest.approx(max(zeros, 1 - zeros)) and left.accuracy <= left.majority < 0.65
    assert left.n_examples == int(without.sum()) == 100 - there.n_examples
    assert every.accuracy == pytest.approx(1 - float(without.double().mean()) * (1 - zeros))
    assert left.low < left.accuracy < left.high and left.p_random > 0.05
    frame = found["label"].to_dataframe()
    assert (frame.accuracy == 1).all() and (frame.low == 1).all()
    assert frame.p_random.tolist() == pytest.approx([1 / 21] * 3)
    assert (frame.random_max < 1).all() and set(frame.role) == {"report"}


def test_the_strongest_words_come_from_the_texts_and_labels_of_train(task):
    model, prompt = tiny.kept("gpt2"), prompt_for("gpt2")
    scores = skn.score_neurons(model, prompt, task, run=QUIET)
    words = skn.studies.accuracy_without_words(
        model, prompt, task, scores, LABEL, n_words=3, min_texts=4
    ).words
    split = task.split("train")
    sets = [set(text.split()) for text in split["text"]]
    known = sorted(set().union(*sets))
    counts = {word: sum(word in own for own in sets) for word in known}
    known = [word for word in known if 4 <= counts[word] <= len(sets) - 4]
    r = {
        word: stats.pointbiserialr([word in own for own in sets], split["label"]).statistic for word in known
    }
    expected = sorted(known, key=lambda word: -abs(r[word]))[:3]
    assert words.word.tolist() == expected and {"good", "bad"} < set(expected)
    assert words.r.tolist() == pytest.approx([r[word] for word in expected])
    assert words.n_texts.tolist() == [counts[word] for word in expected]


def test_of_twins_only_the_words_that_tell_them_apart_are_strong():
    twins = skn.minimal_pairs(n_pairs=200)
    words = strongest_words(twins, 500, 1)
    same = {
        word for pair in twins.pairs("train") for word in distinct_words(pair[0]) & distinct_words(pair[1])
    }
    apart = {
        word for pair in twins.pairs("train") for word in distinct_words(pair[0]) ^ distinct_words(pair[1])
    }
    assert set(words.word) == apart and not apart & same and (words.r.abs() > 0.01).all()


def read_by_hand(model, prompt, task, role):
    """Every neuron's activations at the prompt positions, a text at a time: [example, layer, position, neuron]."""
    prompted, rows = skn.PromptedModel(model, prompt), []
    for text in task.split(role)["text"]:
        _, cache = prompted.run_with_cache([text], names_filter=lambda name: name.endswith("mlp.hook_post"))
        where = prompted.tokens([text]).is_prompt[0]
        rows.append(torch.stack([cache[f"blocks.{layer}.mlp.hook_post"][0, where] for layer in (0, 1)]))
    return torch.stack(rows), torch.tensor(task.split(role)["label"])


def right_by_hand(read, neurons):
    """[example of report] The share of rules over prompts that are right there, each fitted by a slow loop."""
    shares = []
    for acts in read:
        for layer, index in neurons:
            threshold = acts["baseline"][0][:, layer, :, index].mean(0)
            (select, labels), (report, truth) = acts["select"], acts["report"]
            says = (select[:, layer, :, index] > threshold).long()
            right = (says == labels[:, None]).sum(0)
            either = torch.maximum(right, len(labels) - right)
            at = int((either == either.max()).nonzero()[0, 0])
            says = (report[:, layer, at, index] > threshold[at]).long()
            shares.append(((says if 2 * right[at] >= len(labels) else 1 - says) == truth).double())
    return torch.stack(shares).mean(0)


@pytest.mark.parametrize("family", ["gpt2", "bert"])
def test_every_number_is_what_a_slow_loop_gives(family, task, monkeypatch):
    task = task.limit(train=20, select=14, report=26)
    model = tiny.kept(family, dtype=torch.float64)
    prompts = [prompt_for(family), prompt_for(family, seed=1)]
    scores = skn.score_neurons(model, prompts, task, run=QUIET)
    top = scores.top(2, per="model")
    found = skn.studies.accuracy_without_words(model, prompts, task, scores, top, n_words=3, min_texts=2)
    strong = set(found.words.word)
    texts, labels = task.split("report")["text"][:], torch.tensor(task.split("report")["label"])
    have = torch.tensor([bool(strong & set(text.split())) for text in texts])
    roles = ("baseline", "select", "report")
    read = [{role: read_by_hand(model, prompt, task, role) for role in roles} for prompt in prompts]
    own = right_by_hand(read, top)
    random = torch.stack([right_by_hand(read, top.random_like(draw)) for draw in range(20)])
    alone = skn.RunOptions(batch_size=1)
    answers = torch.stack(
        [skn.PromptedModel(model, p, LABEL_WORDS, run=alone).class_logits(texts).argmax(1) for p in prompts]
    )
    for row, group in zip(found.groups.itertuples(), (have | ~have, have, ~have), strict=True):
        mean, draws = float(own[group].mean()), random[:, group].mean(1)
        assert row.accuracy == pytest.approx(mean) and row.low <= mean <= row.high
        assert row.random_median == pytest.approx(float(draws.quantile(0.5)))
        assert row.random_max == pytest.approx(float(draws.max()))
        assert row.p_random == pytest.approx((1 + int((draws >= mean - 1e-9).sum())) / 21)
        right = (answers == labels)[:, group].double().mean()
        assert row.n_examples == int(group.sum()) and row.prompt_accuracy == pytest.approx(float(right))
    monkeypatch.setattr("tl_skillneurons.studies.words.without_words._MOST_NUMBERS", 1)  # one draw a run
    again = skn.studies.accuracy_without_words(model, prompts, task, scores, top, n_words=3, min_texts=2)
    pd.testing.assert_frame_equal(again.groups, found.groups)


def test_random_neurons_are_drawn_from_the_same_layers_and_ranked(task):
    model, prompt = tiny.kept("gpt2"), prompt_for("gpt2")
    scores = skn.score_neurons(model, prompt, task, run=QUIET)
    top = scores.top(3, per="model")
    row = skn.studies.accuracy_without_words(model, prompt, task, scores, top, n_words=2).groups.iloc[0]
    rules = skn.scores.evaluate_rules(model, prompt, task, scores, run=QUIET)
    means = [float(rules.accuracy_of(top.random_like(draw)).mean()) for draw in range(20)]
    assert row.random_max == pytest.approx(max(means))
    assert row.random_median == pytest.approx(float(torch.tensor(means, dtype=torch.float64).quantile(0.5)))
    assert row.p_random == pytest.approx((1 + sum(m >= row.accuracy - 1e-12 for m in means)) / 21)


def test_texts_of_one_group_are_drawn_together_so_that_the_interval_is_of_groups(task):
    splits = {}
    for number, role in enumerate(("train", "select", "report")):
        rows = [dict(row) for row in task.split(role)]
        kinds = [bool({"good"} & set(row["text"].split())) == row["label"] for row in rows]
        same = [sum(kinds[:k]) if kinds[k] else k - sum(kinds[:k]) for k in range(len(rows))]
        group = [f"{number} {kind} {k // 10}" for kind, k in zip(kinds, same, strict=True)]
        splits[role] = [
            {"text": row["text"], "label": row["label"], "group": own}
            for row, own in zip(rows, group, strict=True)
        ]
    data = {"train": splits["train"], "validation": splits["select"], "test": splits["report"]}
    model, prompt = plant(tiny.bridge("gpt2"), task), prompt_for("gpt2")
    frames, found = {}, None
    for group in (None, "group"):
        named = {"template": "{text}", "label": "label", "label_words": LABEL_WORDS, "name": "toy"}
        grouped = skn.Task.from_datasets(data, **named, group=group)
        scores = skn.score_neurons(model, prompt, grouped, run=QUIET)
        found = skn.studies.accuracy_without_words(model, prompt, grouped, scores, WORD, n_words=2)
        frames[group] = found.to_dataframe()
    by_text, by_group = (frames[group].iloc[0] for group in (None, "group"))
    assert by_text.accuracy == by_group.accuracy and by_text.n_units == 100 and by_group.n_units < 13
    assert by_group.high - by_group.low > 2 * (by_text.high - by_text.low)
    assert "units='" in repr(found) and "(group)" in repr(found)
    assert frames["group"].attrs["unit"] == "group" and frames["group"].attrs["n_units"] == by_group.n_units


def test_no_random_neuron_is_drawn_twice_and_too_few_are_told(task):
    model, prompt = tiny.kept("gpt2"), prompt_for("gpt2")
    scores = skn.score_neurons(model, prompt, task, run=QUIET)
    found = skn.studies.accuracy_without_words(model, prompt, task, scores, LABEL, n_words=2, n_random=60)
    rules = skn.scores.evaluate_rules(model, prompt, task, scores, run=QUIET)
    others = [float(rules.accuracy_of(skn.NeuronSet([1], [i])).mean()) for i in range(48) if i != 5]
    row = found.groups.iloc[0]
    assert row.n_random == 47 and row.random_max == pytest.approx(max(others))
    assert row.p_random == pytest.approx((1 + sum(one >= row.accuracy - 1e-12 for one in others)) / 48)
    assert found.settings["smallest_p"] == 1 / 48
    assert "only 47 distinct controls (60 were asked for)" in found.settings["warnings"][0]
    assert "only 47 distinct controls" in repr(found) and found.to_dataframe().attrs["smallest_p"] == 1 / 48


def test_without_a_prompt_there_is_no_accuracy_of_prompts(task):
    model = tiny.kept("gpt2")
    scores = skn.score_neurons(model, None, task, positions="last", run=QUIET)
    frame = skn.studies.accuracy_without_words(
        model, None, task, scores, scores.top(2, per="model"), n_words=2
    ).groups
    assert frame.prompt_accuracy.isna().all() and frame.accuracy.notna().all()


def test_a_group_without_a_text_has_no_numbers(task):
    rows = [*task.split("train")]
    plain = [row for row in task.split("report") if not {"good", "bad"} & set(row["text"].split())]
    other = task_of(rows, train=rows, validation=[*task.split("select")], test=plain)
    model, prompt = tiny.kept("gpt2"), prompt_for("gpt2")
    scores = skn.score_neurons(model, prompt, other, run=QUIET)
    frame = skn.studies.accuracy_without_words(model, prompt, other, scores, LABEL, n_words=2).groups
    assert frame.n_examples.tolist() == [len(plain), 0, len(plain)]
    assert frame.iloc[1][["accuracy", "majority", "p_random"]].isna().all()
    assert frame.accuracy[0] == frame.accuracy[2]


def test_texts_that_cannot_be_told_apart_are_refused(task):
    model, prompt = tiny.kept("gpt2"), prompt_for("gpt2")
    scores = skn.score_neurons(model, prompt, task, run=QUIET)

    def ask(neurons=LABEL, task=task, **changes):
        return skn.studies.accuracy_without_words(model, prompt, task, scores, neurons, **changes)

    with pytest.raises(
        ValueError,
        match=r"0 of 100 texts of role 'report' have none of the 17 strongest words.*lower n_words",
    ):
        ask(n_words=50)
    report = [*task.split("report")]
    plain = [row for row in report if not {"good", "bad"} & set(row["text"].split())]
    rows = [row for row in report if row not in plain] + plain[:3]
    few = task_of(rows, train=[*task.split("train")], validation=[*task.split("select")], test=rows)
    with pytest.raises(ValueError, match=r"3 of \d+ texts .* the 2 strongest words, and at least 5 must"):
        ask(task=few, n_words=2)
    with pytest.raises(ValueError, match="no word stands in at least 40 of 60 texts"):
        ask(min_texts=40)
    with pytest.raises(ValueError, match=r"none of the \d+ words .* of role 'train' goes with the label"):
        strongest_words(skn.minimal_pairs(n_pairs=40), 20, 10)
    with pytest.raises(ValueError, match="at least one neuron"):
        ask(skn.NeuronSet([], []))
    with pytest.raises(ValueError, match="n_random must be at least 19"):
        ask(n_random=5)
    with pytest.raises(ValueError, match="n_words must be an integer of at least 1"):
        ask(n_words=0)
    words = {0: "negative", 1: "positive", 2: "other"}
    rows = [{"text": row["text"], "label": n % 3} for n, row in enumerate(tiny.sentences(54, seed=2))]
    with pytest.raises(ValueError, match="the scores are of another task than"):
        ask(task=task_of(rows, words))


def test_texts_are_cut_as_they_were_for_the_scores(task):
    model, prompt = tiny.kept("gpt2"), prompt_for("gpt2")
    scores = skn.score_neurons(model, prompt, task, max_length=8, run=QUIET)
    found = skn.studies.accuracy_without_words(model, prompt, task, scores, LABEL, n_words=2)
    rules = skn.scores.evaluate_rules(model, prompt, task, scores, LABEL, max_length=8, run=QUIET)
    assert found.groups.accuracy[0] == pytest.approx(rules.mean)
    prompted = skn.PromptedModel(model, prompt, LABEL_WORDS, max_length=8)
    assert found.groups.prompt_accuracy[0] == pytest.approx(prompted.accuracy(task))


def test_what_was_found_shows_itself_and_survives_a_file(task, tmp_path):
    model, prompt = tiny.kept("gpt2"), prompt_for("gpt2")
    scores = skn.score_neurons(model, prompt, task, run=QUIET)
    found = skn.studies.accuracy_without_words(model, prompt, task, scores, LABEL, n_words=2, seed=3)
    assert repr(found).startswith("AccuracyWithoutWords(n_words=2, accuracy=0.") and "\n" not in repr(found)
    assert "without words" in found._repr_html_()
    read = skn.studies.AccuracyWithoutWords.load(found.save(tmp_path / "found.json"))
    pd.testing.assert_frame_equal(read.words, found.words)
    pd.testing.assert_frame_equal(read.groups, found.groups)
    assert read.settings == found.settings and read.settings["seed"] == 3


def test_an_accuracy_over_several_prompts_has_their_scatter_in_its_interval():
    right = torch.rand(2, 3, 40, generator=torch.Generator().manual_seed(0)).mul(5).floor().double()
    right[:, 2] += 4
    row = _of_group(right, 8, torch.arange(40) % 2, Units.single(40), 3)
    low, high = two_level_bootstrap(right[0] / 8, seed=3)
    assert (row["low"], row["high"]) == (float(low), float(high))
    assert row["accuracy"] == pytest.approx(float(right[0].mean() / 8))
    assert row["random_median"] == pytest.approx(float(right[1].mean() / 8))
