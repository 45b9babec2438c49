"""Other label words, beside other seeds: every pair by hand, planted neurons that stay, files, refusals."""

from itertools import combinations

import pandas as pd
import pytest
import tiny
import torch
from scipy import stats
from toy import LABEL_WORDS, QUIET
from worded import plant, worded_task

import tl_skillneurons as skn
from tl_skillneurons.studies.words.label_words import random_label_words


@pytest.fixture(scope="module")
def task():
    return worded_task()


QUICK = {
    "n_virtual_tokens": 3,
    "n_steps": 2,
    "training": skn.prompts.TrainingOptions(batch_size=8, learning_rate=1.0),
}
untrained = pytest.mark.filterwarnings("ignore:.*not below chance")


@untrained
def test_every_pair_is_what_tuning_and_scoring_each_wording_by_hand_gives(task, tmp_path):
    model, task = tiny.bridge("llama"), task.limit(train=24, select=16, report=20)
    given = {"the same": dict(LABEL_WORDS)}
    settings = {"amount": 4, "n_permutations": 19, "run": QUIET, "folder": tmp_path, **QUICK}
    found = skn.studies.compare_label_words(model, task, given, **settings)
    [drawn] = random_label_words(model, task, 1)
    assert found.label_words == {"own": LABEL_WORDS, **given, "random 0": drawn}
    scores, accuracy = {}, {}
    for name, words in found.label_words.items():
        other = skn.Task(task.name, words, task.splits, task.label_names)
        for seed in (0, 1):
            [prompt] = skn.fit_soft_prompts(model, other, seeds=[seed], run=QUIET, **QUICK)
            scores[name, seed] = skn.score_neurons(model, prompt, other, keep_outcomes=True, run=QUIET)
            accuracy[name, seed] = skn.PromptedModel(model, prompt, words).accuracy(other)
    frame = found.to_dataframe()
    assert len(frame) == len(list(combinations(scores, 2))) == 15
    for row, (one, other) in zip(frame.itertuples(), combinations(scores, 2), strict=True):
        assert ((row.one, row.seed_one), (row.other, row.seed_other)) == (one, other)
        a, b = scores[one], scores[other]
        expected = stats.spearmanr(a.predictivity.flatten(), b.predictivity.flatten()).statistic
        assert row.spearman == pytest.approx(expected)
        shared = a.top(4).overlap(b.top(4))
        assert (row.n_shared, row.jaccard, row.chance_jaccard) == (
            shared.n_shared,
            shared.jaccard,
            shared.chance_jaccard,
        )
        agree = skn.scores.score_agreement(a, b, 4, n_permutations=19).row(-1)
        told = ["null_low", "null_high", "p_value", "p_shared"]
        assert [getattr(row, name) for name in told] == [agree[name] for name in told]
        assert agree["labels_of"] == "both sides together"
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
    read = skn.studies.LabelWordComparison.load(found.save(tmp_path / "comparison"))
    pd.testing.assert_frame_equal(read.pairs, found.pairs)
    pd.testing.assert_frame_equal(read.wordings, found.wordings)
    assert (read.label_words, read.settings) == (found.label_words, found.settings)
    assert list(read.scores) == list(found.scores)
    assert all(torch.equal(read.scores[key].correct, found.scores[key].correct) for key in found.scores)
    assert repr(read).startswith("LabelWordComparison(wordings=['own', 'the same', 'random 0'], n_seeds=2, ")
    assert "<table" in read._repr_html_()


@untrained
def test_the_length_that_prompts_are_tuned_with_is_the_length_they_are_scored_with(task):
    model, task = tiny.bridge("gpt2"), task.limit(train=24, select=16, report=20)
    found = skn.studies.compare_label_words(
        model, task, {}, amount=4, n_permutations=19, run=QUIET, max_length=7, **QUICK
    )
    assert {scores.provenance["max_length"] for scores in found.scores.values()} == {7}
    assert (
        found.settings["tuning"]["max_length"] == 7
        and found.settings["tuning"]["training"]["batch_size"] == 8
    )


@untrained
@pytest.mark.parametrize("family", ["llama", "bert"])
def test_neurons_of_the_label_stay_the_best_whatever_the_label_words(family, task):
    task = task.limit(train=24, select=40, report=20)
    model = plant(tiny.bridge(family), task)
    found = skn.studies.compare_label_words(
        model, task, {}, n_random=2, amount=1, n_permutations=19, run=QUIET, **QUICK
    )
    assert (found.pairs.jaccard == 1).all() and (found.pairs.n_shared == 2).all()
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
    with pytest.raises(ValueError, match=r"'bright dull' .* begins with all the tokens of 'bright'"):
        ask(model, task, {"looks": {0: "bright dull", 1: "bright"}})
    with pytest.raises(ValueError, match="label_words must number the classes from 0"):
        ask(model, task, {"looks": {1: "dull", 2: "bright"}})
    with pytest.raises(ValueError, match="n_permutations must be at least 19"):
        ask(model, task, {}, n_permutations=5)


def test_each_wording_has_a_folder_of_its_own_whatever_it_is_called():
    from tl_skillneurons.studies.words.label_words import _folder_name

    names = ["mood", "the same", "the-same", "the/same", "!!", "\U0001f44d", "\U0001f44e", "", "a.b", "हिन्दी"]
    folders = [_folder_name(name) for name in names]
    assert len(set(folders)) == len(names) and folders[:2] == ["mood", "the-same"]
    assert not any("/" in folder or folder in ("", ".", "..") for folder in folders)
