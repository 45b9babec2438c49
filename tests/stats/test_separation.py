"""The area under the ROC curve, against scipy's Mann-Whitney test and a slow bootstrap."""

import pytest
import torch
from scipy import stats

import tl_skillneurons as skn
from tl_skillneurons.stats.units import Units

VALUES = torch.tensor([0.2, 0.9, 0.4, 0.8, 0.6, 0.1, 0.55, 0.3, 0.7])
LABELS = torch.tensor([0, 1, 0, 1, 1, 0, 0, 1, 0])


def test_the_area_and_its_p_value_are_those_of_the_exact_test_of_mann_and_whitney():
    found = skn.stats.auroc(VALUES, LABELS, n_permutations=1000)  # there are 126 orders
    exact = stats.mannwhitneyu(VALUES[LABELS == 1], VALUES[LABELS == 0], method="exact")
    assert found.value == pytest.approx(exact.statistic / 20)
    assert found.p_value == pytest.approx(exact.pvalue)
    assert (found.n_ones, found.n_zeros, found.n_units) == (4, 5, 9)
    turned = skn.stats.auroc(-VALUES, LABELS.bool(), n_permutations=1000)
    assert turned.value == pytest.approx(1 - found.value)
    assert turned.p_value == pytest.approx(exact.pvalue)


def test_equals_count_one_half():
    values = torch.tensor([1, 1, 2, 0, 1])
    labels = torch.tensor([1, 0, 1, 0, 0])
    wins = [
        (a > b) + 0.5 * (a == b) for a in values[labels == 1].tolist() for b in values[labels == 0].tolist()
    ]
    assert skn.stats.auroc(values, labels).value == pytest.approx(sum(wins) / 6)


def test_the_interval_is_that_of_units_drawn_with_replacement():
    generator = torch.Generator().manual_seed(1)
    labels = torch.arange(60) % 2
    values = labels + 1.5 * torch.randn(60, generator=generator)
    found = skn.stats.auroc(values, labels, n_draws=1000, n_permutations=20)
    drawn = []
    for seed in range(1000):
        rows = torch.randint(60, (60,), generator=torch.Generator().manual_seed(seed))
        one, zero = values[rows][labels[rows] == 1], values[rows][labels[rows] == 0]
        drawn.append(float((one[:, None] > zero).double().mean()))
    low, high = torch.tensor(drawn).quantile(torch.tensor([0.025, 0.975]))
    assert found.low == pytest.approx(float(low), abs=0.025)  # two bootstraps of 1,000 differ by a hundredth
    assert found.high == pytest.approx(float(high), abs=0.025)
    pairs = Units(torch.arange(120) // 2, "copy")
    twice = skn.stats.auroc(
        values.repeat_interleave(2), labels.repeat_interleave(2), units=pairs, n_draws=1000
    )
    assert (twice.value, twice.low, twice.high) == pytest.approx((found.value, found.low, found.high))
    assert (twice.unit, twice.n_units) == ("copy", 60)


@pytest.mark.parametrize(
    ("values", "labels", "message"),
    [
        (VALUES, torch.zeros(9).long(), "must hold both 0 and 1, got 9 and 0 examples"),
        (VALUES, torch.arange(9), "labels must be 0 and 1, got 2"),
        (VALUES[:3], LABELS, "of the same examples, got 3 and 9"),
        (VALUES / 0 * 0, LABELS, "got 9 NaN of 9"),
    ],
)
def test_what_has_no_area_is_refused(values, labels, message):
    with pytest.raises(ValueError, match=message):
        skn.stats.auroc(values, labels)
