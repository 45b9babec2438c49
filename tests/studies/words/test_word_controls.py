"""Word detectors fall to guessing where their word is missing, label neurons don't; other label words, beside seeds."""

from itertools import combinations

import pandas as pd
import pytest
import tiny
import torch
from scipy import stats
from toy import LABEL_WORDS, prompt_for, task_of

import tl_skillneurons as skn
from tl_skillneurons.prompts.positions import current_tokens
from tl_skillneurons.studies.words.label_words import random_label_words
from tl_skillneurons.studies.words.selectivity import distinct_words
from tl_skillneurons.studies.words.without_words import strongest_words

WORD, LABEL = skn.NeuronSet([1], [3]), skn.NeuronSet([1], [5])


def texts_with_words(n, share=0.6):
    """Labels take turns; in that share of the texts, "good" (label 1) or "bad" (label 0) tells them."""
    plain = [word for word in tiny.WORDS[:19] if word not in ("good", "bad")]
    generator = torch.Generator().manual_seed(3)
    rows = {}
    while len(rows) < n:
        length = int(torch.randint(4, 9, (), generator=generator))
        words = [plain[i] for i in torch.randint(len(plain), (length,), generator=generator).tolist()]
        label = len(rows) % 2
        if float(torch.rand((), generator=generator)) < share:
            words[int(torch.randint(length, (), generator=generator))] = ("bad", "good")[label]
        rows.setdefault(" ".join(words), label)
    return [{"text": text, "label": label} for text, label in rows.items()]


@pytest.fixture(scope="module")
def task():
    rows = texts_with_words(220)
    return task_of(rows, train=rows[:60], validation=rows[60:120], test=rows[120:])


def plant(model, task):
    """Neurons of layer 1 that follow the word "good" and the label, one of layer 0 that follows the label."""
    label_of = {
        tuple(tiny.VOCABULARY[word] for word in row["text"].split()): row["label"]
        for split in task.splits.values()
        for row in split
    }

    def planted(layer):
        def hook_function(act, hook):
            tokens = current_tokens(hook)
            if tokens is None:  # a trial run of the model without texts
                return act
            act = act.clone()
            for row in range(len(act)):
                own = tuple(tokens.ids[row][tokens.is_text[row] & ~tokens.is_special[row]].tolist())
                if own in label_of:
                    shake = 0.1 * torch.tensor(float(sum(own))).sin()
                    act[row, :, 5] = label_of[own] + shake
                    if layer == 1:
                        act[row, :, 3] = float(tiny.VOCABULARY["good"] in own) + shake
            return act

        return hook_function

    for layer in (0, 1):
        model.add_hook(f"blocks.{layer}.mlp.hook_post", planted(layer))
    return model


# Texts without the strongest words


def test_a_word_detector_falls_to_guessing_without_its_word_and_a_label_neuron_does_not(task):
    model, prompt = plant(tiny.bridge("gpt2"), task), prompt_for("gpt2")
    scores = skn.score_neurons(model, prompt, task, progress=False)
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
    model, prompt = tiny.bridge("gpt2"), prompt_for("gpt2")
    scores = skn.score_neurons(model, prompt, task, progress=False)
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
    model = tiny.bridge(family, dtype=torch.float64)
    prompts = [prompt_for(family), prompt_for(family, seed=1)]
    scores = skn.score_neurons(model, prompts, task, progress=False)
    top = scores.top(2, per="model")
    found = skn.studies.accuracy_without_words(model, prompts, task, scores, top, n_words=3, min_texts=2)
    strong = set(found.words.word)
    texts, labels = task.split("report")["text"][:], torch.tensor(task.split("report")["label"])
    have = torch.tensor([bool(strong & set(text.split())) for text in texts])
    roles = ("baseline", "select", "report")
    read = [{role: read_by_hand(model, prompt, task, role) for role in roles} for prompt in prompts]
    own = right_by_hand(read, top)
    random = torch.stack([right_by_hand(read, top.random_like(draw)) for draw in range(20)])
    answers = torch.stack(
        [
            skn.PromptedModel(model, p, LABEL_WORDS).class_logits(texts, batch_size=1).argmax(1)
            for p in prompts
        ]
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
    model, prompt = tiny.bridge("gpt2"), prompt_for("gpt2")
    scores = skn.score_neurons(model, prompt, task, progress=False)
    top = scores.top(3, per="model")
    row = skn.studies.accuracy_without_words(model, prompt, task, scores, top, n_words=2).groups.iloc[0]
    rules = skn.scores.rule_accuracy(model, prompt, task, scores, progress=False)
    means = [float(scores.rule_accuracy(top.random_like(draw), rules).mean()) for draw in range(20)]
    assert row.random_max == pytest.approx(max(means))
    assert row.random_median == pytest.approx(float(torch.tensor(means, dtype=torch.float64).quantile(0.5)))
    assert row.p_random == pytest.approx((1 + sum(m >= row.accuracy - 1e-12 for m in means)) / 21)


def test_without_a_prompt_there_is_no_accuracy_of_prompts(task):
    model = tiny.bridge("gpt2")
    scores = skn.score_neurons(model, None, task, positions="last", progress=False)
    frame = skn.studies.accuracy_without_words(
        model, None, task, scores, scores.top(2, per="model"), n_words=2
    ).groups
    assert frame.prompt_accuracy.isna().all() and frame.accuracy.notna().all()


def test_a_group_without_a_text_has_no_numbers(task):
    rows = [*task.split("train")]
    plain = [row for row in task.split("report") if not {"good", "bad"} & set(row["text"].split())]
    other = task_of(rows, train=rows, validation=[*task.split("select")], test=plain)
    model, prompt = tiny.bridge("gpt2"), prompt_for("gpt2")
    scores = skn.score_neurons(model, prompt, other, progress=False)
    frame = skn.studies.accuracy_without_words(model, prompt, other, scores, LABEL, n_words=2).groups
    assert frame.n_examples.tolist() == [len(plain), 0, len(plain)]
    assert frame.iloc[1][["accuracy", "majority", "p_random"]].isna().all()
    assert frame.accuracy[0] == frame.accuracy[2]


def test_texts_that_cannot_be_told_apart_are_refused(task):
    model, prompt = tiny.bridge("gpt2"), prompt_for("gpt2")
    scores = skn.score_neurons(model, prompt, task, progress=False)

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
        ask(task=skn.minimal_pairs(n_pairs=40), min_texts=10)
    with pytest.raises(ValueError, match="at least one neuron"):
        ask(skn.NeuronSet([], []))
    with pytest.raises(ValueError, match="n_random must be at least 19"):
        ask(n_random=5)
    with pytest.raises(ValueError, match="n_words must be an integer of at least 1"):
        ask(n_words=0)
    words = {0: "negative", 1: "positive", 2: "other"}
    rows = [{"text": row["text"], "label": n % 3} for n, row in enumerate(tiny.sentences(54, seed=2))]
    with pytest.raises(ValueError, match="predictivity is defined for two classes"):
        ask(task=task_of(rows, words))


# Other label words

QUICK = {"n_virtual_tokens": 3, "n_steps": 2, "batch_size": 8, "learning_rate": 1.0}
untrained = pytest.mark.filterwarnings("ignore:.*not below chance")


@untrained
def test_every_pair_is_what_tuning_and_scoring_each_wording_by_hand_gives(task, tmp_path):
    model, task = tiny.bridge("llama"), task.limit(train=24, select=16, report=20)
    given = {"the same": dict(LABEL_WORDS)}
    settings = {"amount": 4, "n_permutations": 19, "progress": False, "folder": tmp_path, **QUICK}
    found = skn.studies.compare_label_words(model, task, given, **settings)
    [drawn] = random_label_words(model, task, 1)
    assert found.label_words == {"own": LABEL_WORDS, **given, "random 0": drawn}
    scores, accuracy = {}, {}
    for name, words in found.label_words.items():
        other = skn.Task(task.name, words, task.splits, task.label_names)
        for seed in (0, 1):
            [prompt] = skn.fit_soft_prompts(model, other, seeds=[seed], progress=False, **QUICK)
            scores[name, seed] = skn.score_neurons(model, prompt, other, progress=False)
            split = task.split("report")
            prompted = skn.PromptedModel(model, prompt, words)
            accuracy[name, seed] = skn.interventions.accuracy(prompted, split["text"][:], split["label"][:])
    frame = found.to_dataframe()
    assert len(frame) == len(list(combinations(scores, 2))) == 15
    for row, (one, other) in zip(frame.itertuples(), combinations(scores, 2), strict=True):
        assert ((row.one, row.seed_one), (row.other, row.seed_other)) == (one, other)
        a, b = scores[one], scores[other]
        expected = stats.spearmanr(a.predictivity.flatten(), b.predictivity.flatten()).statistic
        assert row.spearman == pytest.approx(expected)
        shared = skn.scores.compare_sets(a.top(4), b.top(4))
        assert (row.n_shared, row.jaccard, row.p_value) == (shared.n_shared, shared.jaccard, shared.p_value)
        assert (row.same_words, row.same_seed) == (one[0] == other[0], one[1] == other[1])
    same = frame[(frame.one == "own") & (frame.other == "the same") & frame.same_seed]
    assert same.spearman.tolist() == pytest.approx([1, 1]) and same.jaccard.tolist() == [1, 1]
    assert found.wordings.prompt_accuracy.tolist() == pytest.approx(list(accuracy.values()))
    assert found.wordings.best.tolist() == [float(run.predictivity.max()) for run in scores.values()]
    summary = found.summary().set_index(["same_words", "same_seed"])
    assert summary.n_pairs.to_dict() == {(False, False): 6, (False, True): 6, (True, False): 3}
    by_kind = frame.groupby(["same_words", "same_seed"]).spearman.mean()
    assert summary.spearman.tolist() == pytest.approx(by_kind.tolist())
    kept = sorted(path.name for path in tmp_path.iterdir())
    assert kept == ["own", "random-0", "the-same"]
    again = skn.studies.compare_label_words(model, task, given, **settings)  # of the prompts that were kept
    pd.testing.assert_frame_equal(again.pairs, found.pairs)
    pd.testing.assert_frame_equal(again.wordings, found.wordings)


@untrained
@pytest.mark.parametrize("family", ["llama", "bert"])
def test_neurons_of_the_label_stay_the_best_whatever_the_label_words(family, task):
    task = task.limit(train=24, select=40, report=20)
    model = plant(tiny.bridge(family), task)
    found = skn.studies.compare_label_words(
        model, task, {}, n_random=2, amount=1, n_permutations=19, progress=False, **QUICK
    )
    assert (found.pairs.jaccard == 1).all() and (found.pairs.n_shared == 2).all()
    assert found.pairs.p_value.tolist() == pytest.approx([1 / 48**2] * 15)
    assert (found.wordings.best == 1).all() and (found.wordings.level < 1).all()
    assert found.wordings.wording.tolist() == ["own"] * 2 + ["random 0"] * 2 + ["random 1"] * 2
    assert found.wordings.words[0] == "'negative' / 'positive'" and found.wordings.majority[0] == 0.5


@pytest.mark.parametrize("family", ["gpt2", "bert"])
def test_random_label_words_are_plain_tokens_of_which_none_is_drawn_twice(family, task):
    model = tiny.bridge(family)
    special = {*model.tokenizer.all_special_ids, tiny.VOCABULARY["negative"], tiny.VOCABULARY["positive"]}
    drawn = random_label_words(model, task, 10, seed=5)
    ids = [word for words in drawn for word in words.values()]
    assert len(set(ids)) == 20 and not special & set(ids) and max(ids) < len(tiny.VOCABULARY)
    assert random_label_words(model, task, 3, seed=5) == drawn[:3] != random_label_words(model, task, 3)
    with pytest.raises(ValueError, match=r"11 wordings of random label words take 22 tokens, .* has 2\d? "):
        random_label_words(model, task, 11)


def test_wordings_that_cannot_be_compared_are_refused_before_anything_is_tuned(task, monkeypatch):
    monkeypatch.setattr(
        "tl_skillneurons.studies.words.label_words.fit_soft_prompts", lambda *a, **k: pytest.fail("it ran")
    )
    model, encoder = tiny.bridge("gpt2"), tiny.bridge("bert")
    encoder.original_model.config.architectures = ["BertModel"]
    ask = skn.studies.compare_label_words
    for given, more in ((encoder, {}), (model, {"readout": "linear"})):
        with pytest.raises(
            ValueError, match="read out by a trained linear map, so label words are never read"
        ):
            ask(given, task, {}, **more)
    with pytest.raises(ValueError, match=r"seeds must be at least two, got \[0\]"):
        ask(model, task, {}, seeds=[0])
    with pytest.raises(ValueError, match="must not go by 'own', which is the name of another wording"):
        ask(model, task, {"own": {0: "dull", 1: "bright"}})
    with pytest.raises(ValueError, match="must not go by 'random 0'"):
        ask(model, task, {"random 0": {0: "dull", 1: "bright"}})
    with pytest.raises(ValueError, match="there is no other wording to compare with"):
        ask(model, task, {}, n_random=0)
    with pytest.raises(ValueError, match="label word 'very dull' is 2 tokens"):
        ask(model, task, {"looks": {0: "very dull", 1: "bright"}})
    with pytest.raises(ValueError, match="label_words must number the classes from 0"):
        ask(model, task, {"looks": {1: "dull", 2: "bright"}})
    with pytest.raises(ValueError, match="n_permutations must be at least 19"):
        ask(model, task, {}, n_permutations=5)
