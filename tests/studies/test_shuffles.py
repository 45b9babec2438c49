"""Scores on shuffles of one multiple-choice task: how far they agree, and what is no shuffle."""

import pytest
import tiny
import torch
from toy import QUIET, prompt_for

import tl_skillneurons as skn

NOUNS = ("film", "plot", "cast", "music", "scene")
ROWS = [
    {"question": f"{noun} {word} {also}", "answer": word}
    for noun in NOUNS
    for word in ("good", "bad", "dull")
    for also in ("very slow", "not quick", "and bright", "but slow")
]
CHOICES = ("good", "bad", "dull")


@pytest.fixture(scope="module")
def gpt2():
    return tiny.bridge("gpt2", dtype=torch.float64)


def shuffles(n, **more):
    return [
        skn.tasks.multiple_choice(ROWS, choices=CHOICES, by="both", name="words", shuffle=shuffle, **more)
        for shuffle in range(n)
    ]


def test_each_class_has_a_row_for_every_two_shuffles_as_two_scores_agree(gpt2):
    tasks, prompt = shuffles(2), prompt_for("gpt2")
    found = skn.studies.compare_shuffles(gpt2, prompt, tasks, amount=5, n_permutations=19, run=QUIET)
    assert list(zip(found["class"], found.one, found.other, strict=True)) == [
        (name, 0, 1) for name in CHOICES
    ]
    scores = [
        skn.scores.score_classes(gpt2, prompt, task, keep_outcomes=True, run=QUIET)[1] for task in tasks
    ]
    expected = skn.scores.score_agreement(*scores, 5, n_permutations=19).row(-1)
    row = found[found["class"] == "bad"].iloc[0]
    assert {key: row[key] for key in ("spearman", "p_value", "n_shared", "p_shared")} == {
        key: expected[key] for key in ("spearman", "p_value", "n_shared", "p_shared")
    }
    assert (found.n_top == 5).all() and found.spearman.between(-1, 1).all()


def test_the_questions_of_a_role_are_the_same_in_every_shuffle_and_labels_too():
    one, other = shuffles(2)
    for role in ("train", "select", "report"):
        splits = [task.split(role) for task in (one, other)]
        assert list(splits[0]["label"]) == list(splits[1]["label"])
        questions = [[text.split("\n")[0] for text in split["text"]] for split in splits]
        assert questions[0] == questions[1] and list(splits[0]["text"]) != list(splits[1]["text"])


def test_what_is_no_shuffle_is_refused(gpt2):
    ask = skn.studies.compare_shuffles
    first, second = shuffles(2)
    with pytest.raises(ValueError, match=r"got 1 task; give multiple_choice\(..., shuffle=0\)"):
        ask(gpt2, None, [first])
    with pytest.raises(ValueError, match="task 1 is the same shuffle as one before"):
        ask(gpt2, None, [first, first])
    with pytest.raises(ValueError, match=r"task 1 \('words'\) is no shuffle of the first"):
        ask(gpt2, None, [first, second.limit(train=6)])
    with pytest.raises(ValueError, match="n_permutations must be at least 19"):
        ask(gpt2, None, [first, second], n_permutations=5)
