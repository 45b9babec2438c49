"""Units of exchange: what stays together under permutations, bootstraps, splits and flips; error rates that hold."""

import math

import pytest
import torch
from scipy import stats

from tl_skillneurons.stats.permutation import permuted_labels
from tl_skillneurons.stats.units import Units


def draws(units, labels, n=200):
    return units.permuted(torch.tensor(labels), n, seed=1)


def test_units_join_what_shares_a_value_in_any_column_directly_or_through_others():
    units = Units.of([["a", "b", "a", None, None], [1, 2, 3, 2, None]], what="author")
    assert units.member.tolist() == [0, 1, 0, 1, 2] and len(units) == 3
    assert repr(units) == "Units(3 of 5 examples: author)"
    assert not units.are_single and Units.single(3).are_single


def test_single_texts_are_permuted_to_the_bits_of_a_plain_permutation():
    labels = torch.tensor([0, 1, 1, 0, 1, 0])
    assert torch.equal(Units.single(6).permuted(labels, 9, seed=3), permuted_labels(labels, 9, seed=3))


def test_twins_alone_are_flipped_to_the_bits_they_had():
    pair = torch.tensor([0, 0, 1, 1, 2, 2])
    units = Units.of([pair.tolist()], what="pair of twins", pair=pair)
    labels = torch.tensor([0, 1, 1, 0, 0, 1])
    assert torch.equal(units.permuted(labels, 5, seed=3), permuted_labels(labels, 5, seed=3, pairs=pair))


def test_all_twins_of_a_unit_are_flipped_together():
    pair = torch.arange(6).repeat_interleave(2)
    words = [0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 2, 2]
    units = Units.of([words], what="word pair", pair=pair)
    labels = [0, 1] * 6
    flipped = draws(units, labels, 7) != torch.tensor(labels)
    assert len(flipped) == 7 == len(flipped.unique(dim=0))  # all there are but none flipped
    assert torch.equal(draws(units, labels, 8), draws(units, labels, 1000))
    for unit in range(3):
        own = flipped[:, torch.tensor(words) == unit]
        assert (own == own[:, :1]).all()
    assert flipped.any() and not flipped.all()


def test_a_label_of_a_whole_group_moves_as_one_whatever_the_sizes():
    groups = [0, 0, 0, 1, 1, 2, 3, 3, 3, 3]
    labels = [1, 1, 1, 0, 0, 1, 0, 0, 0, 0]
    units = Units.of([groups], what="group")
    drawn = units.permuted(torch.tensor(labels), 5, seed=0)
    for unit in range(4):
        own = drawn[:, torch.tensor(groups) == unit]
        assert (own == own[:, :1]).all()
    assert all(sorted(row[[0, 3, 5, 6]].tolist()) == [0, 0, 1, 1] for row in drawn)
    assert units.log_orders(torch.tensor(labels)) == pytest.approx(math.log(6))
    assert units.smallest_p(torch.tensor(labels)) == pytest.approx(2 / 6)  # the other way round says as much
    assert Units.of([[0, 0, 1, 2]]).smallest_p(torch.tensor([1, 1, 0, 0])) == pytest.approx(1 / 3)
    every = units.permuted(torch.tensor(labels), 1000)
    assert len(every) == 5 == len(every.unique(dim=0)) and all(
        sorted(row[[0, 3, 5, 6]].tolist()) == [0, 0, 1, 1] for row in every
    )


def test_groups_of_several_labels_go_whole_to_groups_of_their_size():
    groups = [0, 0, 1, 1, 2, 2, 3, 3, 3]
    labels = [0, 1, 1, 0, 0, 1, 0, 0, 1]
    drawn = Units.of([groups], what="group").permuted(torch.tensor(labels), 2, seed=0)
    vectors = {tuple(row[2 * k : 2 * k + 2].tolist()) for row in drawn for k in range(3)}
    assert vectors <= {(0, 1), (1, 0)}
    assert (drawn[:, 6:] == torch.tensor([0, 0, 1])).all()  # the only one of its size stays as it is
    assert len(drawn) == 2 == len(drawn.unique(dim=0)) and (drawn != torch.tensor(labels)).any(1).all()
    assert all(
        sorted(tuple(r[2 * k : 2 * k + 2].tolist()) for k in range(3)) == [(0, 1), (0, 1), (1, 0)]
        for r in drawn
    )


def test_a_text_without_its_twin_leaves_the_others_twins():
    pair = torch.tensor([*torch.arange(20).repeat_interleave(2).tolist(), -1])
    units = Units.of([[p if p >= 0 else None for p in pair.tolist()]], what="pair of twins", pair=pair)
    labels = [0, 1] * 20 + [1]
    drawn = draws(units, labels, 50)
    assert (drawn[:, -1] == 1).all()
    assert (drawn[:, :-1].reshape(50, 20, 2).sum(2) == 1).all()


def test_a_bootstrap_draws_units_and_a_split_keeps_them_whole():
    groups = [0, 0, 1, 1, 1, 2, 3]
    units = Units.of([groups])
    weights = units.weights(100, torch.Generator().manual_seed(0))
    assert weights.shape == (100, 7) and (weights[:, [0, 2, 5, 6]].sum(1) == 4).all()
    assert (weights[:, 0] == weights[:, 1]).all() and (weights[:, 2] == weights[:, 4]).all()
    one, other = units.halves(torch.Generator().manual_seed(0))
    assert sorted([*one.tolist(), *other.tolist()]) == list(range(7))
    assert not set(units.member[one].tolist()) & set(units.member[other].tolist())
    assert units.sums(torch.ones(7)).tolist() == [2, 3, 1, 1]
    assert units.take(torch.tensor([4, 5, 3])).member.tolist() == [0, 1, 0]


@pytest.mark.parametrize(("size", "n_units"), [(2, 60), (8, 30)])
def test_permuted_by_units_a_family_of_grouped_scores_keeps_its_error_rate_and_by_texts_it_does_not(
    size, n_units
):
    """One label per group, activations that groups share and that have nothing to do with the labels."""
    generator = torch.Generator().manual_seed(0)
    groups = torch.arange(n_units).repeat_interleave(size)
    units, alarms = Units.of([groups.tolist()], what="group"), torch.zeros(2)
    n_runs = 60
    for run in range(n_runs):
        labels = (torch.arange(n_units) % 2)[torch.randperm(n_units, generator=generator)][groups]
        shared = torch.randn(n_units, 50, generator=generator)[groups]
        acts = shared + 0.3 * torch.randn(len(groups), 50, generator=generator)
        above = (acts > acts.mean(0)).double()
        for by, unit in enumerate((units, Units.single(len(groups)))):
            rows = torch.cat([labels[None], unit.permuted(labels, 39, seed=run)]).double()
            right = rows @ above + (1 - rows) @ (1 - above)
            best = torch.maximum(right, len(groups) - right).amax(1)
            alarms[by] += (1 + int((best[1:] >= best[0]).sum())) / 40 <= 0.05
    by_units, by_texts = (int(n) for n in alarms)
    assert stats.binomtest(by_units, n_runs, 0.05, alternative="greater").pvalue > 0.01
    assert by_texts > 0.3 * n_runs
