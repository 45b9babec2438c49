"""Which examples come when, at what rate, and what is held back."""

import itertools

import numpy as np
import pytest
import tiny
import torch
from toy import QUIET

import tl_skillneurons as skn
from tl_skillneurons.prompts.tuning import fit, schedule
from tl_skillneurons.tasks.task import Task


@pytest.mark.parametrize(
    ("n_steps", "warmup"), [(1, 0.06), (1, 0.0), (10, 0.0), (100, 0.06), (50, 0.25), (7, 0.9)]
)
def test_the_rate_rises_and_falls_in_straight_lines(n_steps, warmup):
    rates = np.array([schedule.rate(step, n_steps, warmup) for step in range(n_steps)])
    assert (rates > 0).all() and (rates <= 1).all()
    n_warmup = warmup * n_steps
    rising = np.arange(1, n_steps + 1) < n_warmup
    assert rates[rising] == pytest.approx((np.arange(n_steps)[rising] + 1) / n_warmup)
    falling = rates[~rising]
    assert np.diff(falling) == pytest.approx(-1 / (n_steps - n_warmup + 1))
    assert falling[-1] == pytest.approx(
        1 / (n_steps - n_warmup + 1)
    )  # so that the step after it would be zero
    if n_warmup >= 1 and n_warmup == int(n_warmup):
        assert rates.max() == rates[int(n_warmup) - 1] == 1


def test_each_epoch_runs_through_every_example_once():
    trained = [3, 5, 8, 9, 11, 20, 21]
    epochs = [
        [schedule.batch_at(step, trained, 3, seed=1) for step in range(3 * e, 3 * e + 3)] for e in range(4)
    ]
    for epoch in epochs:
        assert [len(batch) for batch in epoch] == [3, 3, 1]
        assert sorted(itertools.chain(*epoch)) == trained
    orders = {tuple(itertools.chain(*epoch)) for epoch in epochs}
    assert len(orders) == 4
    assert schedule.batch_at(7, trained, 3, seed=1) == epochs[2][1]
    assert schedule.batch_at(0, trained, 7, seed=2) != schedule.batch_at(0, trained, 7, seed=1)


def test_what_is_of_one_group_stands_on_one_side_of_what_is_held_back():
    labels, authors = torch.arange(96) % 2, (torch.arange(96) // 6).tolist()  # 16 authors of 6 texts
    trained, held = schedule.hold_back(labels, 0.25, authors)
    assert sorted(trained + held) == list(range(96)) and len(held) == 24
    assert not {authors[i] for i in trained} & {authors[i] for i in held}
    assert labels[held].bincount().tolist() == [12, 12]
    assert schedule.hold_back(labels, 0.25, list(range(96))) == schedule.hold_back(labels, 0.25)
    large = [0] * 80 + list(range(1, 17))  # a group that is larger than what is to be held back
    trained, held = schedule.hold_back(labels, 0.25, large)
    assert set(range(80)) <= set(trained) and len(held) == 16
    of_one = [i % 2 for i in range(96)]  # each class all of one author
    trained, held = schedule.hold_back(labels, 0.25, of_one)
    assert sorted(labels[held].tolist()) == [0, 1] and len(trained) == 94


def test_authors_and_equal_texts_are_held_back_whole_when_a_prompt_is_tuned(monkeypatch):
    seen = []
    monkeypatch.setattr(fit, "hold_back", lambda *given: seen.append(given) or schedule.hold_back(*given))
    rows = [{"text": f"text {i % 20}", "label": i % 2, "author": i // 4} for i in range(80)]
    task = Task.from_datasets(
        rows, template="{text}", label="label", label_words={0: "bad", 1: "good"}, name="t", group="author"
    )
    with pytest.warns(UserWarning):
        skn.fit_soft_prompts(tiny.bridge("gpt2"), task, n_virtual_tokens=2, n_steps=1, run=QUIET)
    split, [(_, _, group)] = task.split("train"), seen
    for i, j in itertools.combinations(range(len(split)), 2):
        alike = split["group"][i] == split["group"][j] or split["text"][i] == split["text"][j]
        assert not alike or group[i] == group[j]


@pytest.mark.parametrize(
    ("counts", "share", "expected"),
    [((30, 10), 0.2, (6, 2)), ((30, 3), 0.1, (3, 1)), ((2, 2), 0.9, (1, 1)), ((4000, 1000), 0.5, (205, 51))],
)
def test_of_each_class_the_same_share_is_held_back(counts, share, expected):
    labels = torch.cat([torch.full((n,), label) for label, n in enumerate(counts)])
    labels = labels[torch.randperm(len(labels), generator=torch.Generator().manual_seed(1))]
    trained, held = schedule.hold_back(labels, share)
    assert sorted(trained + held) == list(range(len(labels)))
    assert tuple(torch.bincount(labels[held]).tolist()) == expected
    assert (trained, held) == schedule.hold_back(labels, share)
