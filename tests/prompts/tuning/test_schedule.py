"""Which examples come when, at what rate, and what is held back."""

import itertools

import numpy as np
import pytest
import torch

from tl_skillneurons.prompts.tuning import schedule


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
