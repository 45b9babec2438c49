"""Random orders: every order as likely as another, twins kept together, the same orders from the same seed."""

import itertools
import math
from collections import Counter

import pytest
import torch

from tl_skillneurons.stats.permutation import permuted_labels, random_orders, row_orders


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize(
    "draw",
    [
        lambda n: random_orders(3, n, generator()),
        lambda n: row_orders(n, 3, generator()),
        lambda n: permuted_labels(torch.tensor([0.5, 1.5, 2.5]), 5).repeat(n // 5, 1).mul(2).long() // 2,
    ],
    ids=["one after the other", "all at once", "of a few targets"],
)
def test_every_row_is_an_order(draw):
    assert torch.equal(draw(60).sort(1).values, torch.arange(3).expand(60, -1))


@pytest.mark.parametrize("draw", [random_orders, lambda k, n, g: row_orders(n, k, g)])
def test_each_of_the_six_orders_of_three_comes_as_often(draw):
    counts = Counter(map(tuple, draw(3, 6000, generator()).tolist()))
    assert len(counts) == 6 and all(abs(count - 1000) < 120 for count in counts.values())  # four deviations


def test_orders_drawn_in_chunks_are_those_drawn_at_once():
    whole, own = generator(3), generator(3)
    parts = torch.cat([random_orders(7, n, own) for n in (2, 0, 5)])
    assert torch.equal(parts, random_orders(7, 7, whole))


def test_permutations_keep_the_class_counts_and_come_from_their_seed():
    labels = torch.tensor([0, 1, 2, 1, 0, 2, 2, 2])
    drawn = permuted_labels(labels, 50, seed=1)
    assert torch.equal(drawn.sort(1).values, labels.sort().values.expand(50, -1))
    assert torch.equal(drawn, permuted_labels(labels, 50, seed=1))
    assert not torch.equal(drawn, permuted_labels(labels, 50, seed=2))


def test_targets_that_are_numbers_are_permuted_like_labels():
    targets = torch.tensor([0.1, 2.0, -3.5, 0.7, 9.0, 4.0], dtype=torch.float64)
    drawn = permuted_labels(targets, 40, seed=5)
    assert drawn.dtype == torch.float64
    places = permuted_labels(torch.arange(6), 40, seed=5)
    assert torch.equal(drawn, targets[places])


def test_the_labels_of_twins_are_exchanged_within_pairs():
    labels = torch.tensor([0, 1, 1, 0, 1, 0, 0, 1] + [0, 1] * 4)
    pairs = torch.tensor([7, 7, 3, 5, 5, 3, 9, 9, 1, 1, 2, 2, 4, 4, 6, 6])
    drawn = permuted_labels(labels, 200, pairs=pairs)
    for pair in pairs.unique():
        own = drawn[:, pairs == pair]
        assert torch.equal(own.sum(1), torch.ones(200).long())
        assert 60 < int(own[:, 0].sum()) < 140


def test_the_labels_of_larger_groups_stay_within_them_too():
    labels, groups = torch.tensor([0, 0, 1, 5, 6, 7, 8]), torch.tensor([4, 4, 4, 1, 1, 1, 1])
    drawn = permuted_labels(labels, 60, pairs=groups)
    assert torch.equal(drawn[:, :3].sort(1).values, labels[:3].expand(60, -1))
    assert torch.equal(drawn[:, 3:].sort(1).values, labels[3:].expand(60, -1))
    ways = 3 * math.factorial(4)
    assert len(permuted_labels(labels, ways - 1, pairs=groups)) == ways - 1
    every = permuted_labels(labels, 1000, pairs=groups)
    assert len(every) == ways - 1 == len(every.unique(dim=0))
    assert (
        torch.equal(every[:, :3].sort(1).values, labels[:3].expand(ways - 1, -1))
        and (every != labels).any(1).all()
    )


@pytest.mark.parametrize(
    ("labels", "pairs", "n_ways"),
    [
        ([0, 0, 0, 0, 1], None, 5),
        ([0, 1, 0, 1], [0, 0, 1, 1], 4),
        ([0.5, 1.5, 2.5], None, 6),
        ([2, 0, 0, 1, 1], None, 30),
    ],
)
def test_where_orders_are_fewer_than_asked_for_every_other_one_comes_once(labels, pairs, n_ways):
    given = torch.tensor(labels)
    drawn = permuted_labels(given, 199, pairs=None if pairs is None else torch.tensor(pairs))
    expected = set(itertools.permutations(labels)) - {tuple(labels)}
    if pairs is not None:
        expected = {row for row in expected if row[0] + row[1] == row[2] + row[3] == 1}
    assert drawn.dtype == given.dtype and len(drawn) == n_ways - 1
    assert set(map(tuple, drawn.tolist())) == expected


@pytest.mark.parametrize(("labels", "pairs"), [([1, 1, 1], None), ([0, 0, 1, 1], [0, 0, 1, 1])])
def test_labels_of_no_other_order_are_refused(labels, pairs):
    with pytest.raises(ValueError, match=r"can be labelled in no other way.*; give examples of each class"):
        permuted_labels(torch.tensor(labels), 19, pairs=None if pairs is None else torch.tensor(pairs))
