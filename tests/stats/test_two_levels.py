"""Intervals over prompts and units: against enumeration, and what a wrong unit of resampling would give."""

import math

import pytest
import torch
from scipy import stats

from tl_skillneurons.stats.intervals import (
    bootstrap_mean,
    interval_scope,
    two_level_bootstrap,
    two_level_calibration,
)
from tl_skillneurons.stats.units import Units

GENERATOR = torch.Generator().manual_seed(0)


def test_the_half_widths_of_units_and_of_prompts_add_in_quadrature():
    values = torch.randn(3, 40, generator=GENERATOR, dtype=torch.float64) + torch.tensor(
        [[0.0], [1.0], [3.0]]
    )
    low, high = two_level_bootstrap(values)
    middle, (unit_low, unit_high) = values.mean(), bootstrap_mean(values.mean(0))
    student = stats.t.interval(0.95, 2, values.mean(), stats.sem(values.mean(1).numpy()))
    assert float(middle - low) == pytest.approx(math.hypot(middle - unit_low, middle - student[0]))
    assert float(high - middle) == pytest.approx(math.hypot(unit_high - middle, student[1] - middle))


@pytest.mark.parametrize("n_prompts", [3, 4, 8])
@pytest.mark.parametrize("spread", [0.0, 1.0])
def test_an_interval_over_prompts_leaves_out_the_true_mean_no_more_often_than_it_says(n_prompts, spread):
    generator = torch.Generator().manual_seed(n_prompts)
    of_prompt = spread * torch.randn(1000, n_prompts, 1, generator=generator)
    of_text = 0.5 * torch.randn(1000, 1, 50, generator=generator)
    low, high = two_level_bootstrap(
        of_prompt + of_text + torch.randn(1000, n_prompts, 50, generator=generator)
    )
    wrong = int(((low > 0) | (high < 0)).sum())
    assert (
        stats.binomtest(wrong, 1000, 0.05, alternative="greater").pvalue > 0.01
    )  # drawing prompts: 0.25 for 3


def test_two_prompts_speak_for_themselves_alone():
    values = torch.randn(2, 30, generator=GENERATOR) + torch.tensor([[0.0], [9.0]])
    for end, alone in zip(two_level_bootstrap(values), bootstrap_mean(values.double().mean(0)), strict=True):
        torch.testing.assert_close(end, alone)


def test_prompts_that_agree_leave_the_examples_and_prompts_that_differ_widen_the_interval():
    one = torch.randn(1, 200, generator=GENERATOR, dtype=torch.float64)
    low, high = two_level_bootstrap(one.expand(5, 200))
    alone = bootstrap_mean(one[0])
    assert (low.item(), high.item()) == pytest.approx([end.item() for end in alone])
    apart = one + torch.linspace(-2, 2, 5, dtype=torch.float64)[:, None]
    low, high = two_level_bootstrap(apart)
    assert high - low > 3 * (alone[1] - alone[0])


def test_examples_are_the_same_for_all_prompts_so_their_luck_does_not_average_out():
    shared = torch.randn(1, 50, generator=GENERATOR, dtype=torch.float64)
    low, high = two_level_bootstrap(shared.expand(20, 50))
    assert high - low == pytest.approx(
        4 * shared.std().item() / math.sqrt(50), rel=0.15
    )  # not 20 times as many


def test_rows_see_the_same_resamples_and_large_input_runs_in_parts(monkeypatch):
    from tl_skillneurons.stats import intervals

    values = torch.randn(4, 3, 11, generator=GENERATOR)
    low, high = two_level_bootstrap(values, n_draws=50)
    again = [two_level_bootstrap(row, n_draws=50) for row in values]
    torch.testing.assert_close(low, torch.stack([one for one, _ in again]))
    monkeypatch.setattr(intervals, "_MOST_NUMBERS", 200)
    for whole, parts in zip((low, high), two_level_bootstrap(values, n_draws=50), strict=True):
        torch.testing.assert_close(whole, parts)


def test_of_calibration_errors_the_mean_over_prompts_has_the_scatter_of_units_and_of_prompts():
    labels = torch.randint(2, (60,), generator=GENERATOR)
    sure = torch.nn.functional.one_hot(labels, 2).double() * 9
    before, after = torch.stack([sure] * 3), torch.stack([sure, sure, sure.flip(1)])
    settings = {"n_draws": 200, "confidence": 0.95, "seed": 0}
    low, high = two_level_calibration(before, after, labels, **settings)
    student = stats.t.interval(
        0.95, 2, 1 / 3, stats.sem([0, 0, 1])
    )  # one prompt is wrong of every text alike
    assert (low, high) == pytest.approx(student, abs=1e-3)
    assert two_level_calibration(before, before, labels, **settings) == (0, 0)
    low, high = two_level_calibration(before[1:], after[1:], labels, **settings)
    assert (low, high) == pytest.approx((0.5, 0.5), abs=1e-3)  # of these two prompts alone


def test_examples_that_belong_together_are_drawn_together():
    one = torch.randn(3, 50, generator=GENERATOR, dtype=torch.float64)
    copied = one.repeat_interleave(4, dim=1)
    units = Units(torch.arange(50).repeat_interleave(4))
    for ends, again in zip(two_level_bootstrap(one), two_level_bootstrap(copied, units=units), strict=True):
        torch.testing.assert_close(ends, again)
    low, high = two_level_bootstrap(copied)
    wide = two_level_bootstrap(copied, units=units)
    assert high - low < 0.9 * (wide[1] - wide[0])


def test_calibration_errors_of_one_prompt_are_resampled_by_units():
    labels = torch.randint(2, (40,), generator=GENERATOR)
    before, after = torch.randn(2, 1, 40, 2, generator=GENERATOR, dtype=torch.float64)
    settings = {"n_draws": 100, "seed": 3}
    units = Units(torch.arange(40).repeat_interleave(3))
    copied = [one.repeat_interleave(3, dim=1) for one in (before, after)]
    assert two_level_calibration(before, after, labels, **settings) == pytest.approx(
        two_level_calibration(*copied, labels.repeat_interleave(3), **settings, units=units)
    )


def test_an_interval_says_what_it_is_about():
    assert interval_scope(1, Units.single(4)).startswith("this prompt alone (3 or more")
    assert interval_scope(2, Units.single(4)).startswith("these 2 prompts alone")
    assert interval_scope(3, Units.single(8)) == "other prompts (3 seen) and other examples (8 units: text)"
    assert interval_scope(3, Units.single(7)).endswith("(7 units: text; too narrow, it takes 8 or more)")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: two_level_bootstrap(torch.zeros(0, 3)), "at least one prompt and one example, got 0 and 3"),
        (lambda: two_level_bootstrap(torch.zeros(2, 3), confidence=1.0), "between 0 and 1"),
        (lambda: two_level_bootstrap(torch.zeros(2, 3), n_draws=0), "n_draws must be an integer"),
        (
            lambda: two_level_bootstrap(torch.zeros(2, 3), units=Units.single(2)),
            "of the 3 examples, got those of 2",
        ),
    ],
)
def test_numbers_that_make_no_sense_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
