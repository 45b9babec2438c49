"""Sums and counts against closed forms, in any order and any batches."""

import random
from fractions import Fraction

import pytest
import torch

from tl_skillneurons.scores import tallies


def activations(n=37, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(n, 2, 5, generator=generator) * torch.logspace(-6, 6, 5)).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_moments_are_those_of_the_definition_and_leave_the_activations_alone(dtype):
    acts = activations(dtype=dtype)
    before, wide = acts.clone(), acts.double()
    summary = tallies.summarize([tallies.moments(acts)], len(acts))
    torch.testing.assert_close(summary.mean[0], wide.mean(0), atol=0, rtol=1e-9)
    torch.testing.assert_close(summary.std[0], wide.std(0, correction=0), atol=0, rtol=1e-9)
    torch.testing.assert_close(summary.mean_abs[0], wide.abs().mean(0), atol=0, rtol=1e-12)
    assert torch.equal(acts, before)


def test_the_mean_is_the_same_bits_in_any_order_of_any_batches():
    acts = activations(400)
    means = set()
    for seed in range(20):
        order = list(range(len(acts)))
        random.Random(seed).shuffle(order)
        total = None
        for batch in torch.tensor(order).split(1 + seed):
            total = tallies.add_moments(total, tallies.moments(acts[batch]))
        means.add(tuple(tallies.summarize([total], len(acts)).mean.flatten().tolist()))
    assert len(means) == 1
    exact = [sum(Fraction(x) for x in acts[:, p, n].tolist()) / len(acts) for p in range(2) for n in range(5)]
    assert all(
        abs(Fraction(m) - e) <= abs(e) * Fraction(1, 2**51) for m, e in zip(means.pop(), exact, strict=True)
    )


def test_plain_sums_would_depend_on_the_order():
    """What the two-sum is for: without it these three numbers add up to 1 or to 0."""
    parts = [torch.full((1, 1, 1), x, dtype=torch.float64) for x in (1e17, 1.0, -1e17)]
    assert float(sum(parts)) == 0.0 and float(parts[0] + parts[2] + parts[1]) == 1.0
    total = None
    for part in parts:
        total = tallies.add_moments(total, tallies.moments(part))
    assert float(total[0] + total[1]) == 1.0


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_right_answers_are_counted_one_by_one(dtype):
    generator = torch.Generator().manual_seed(0)
    acts = torch.randint(-2, 3, (600, 2, 5), generator=generator).to(dtype)  # many stand exactly at a limit
    limits = torch.randint(-1, 2, (2, 5), generator=generator).to(dtype)
    labels = torch.randint(0, 2, (600,), generator=generator)
    expected = torch.zeros(2, 5, dtype=torch.int64)
    for act, label in zip(acts, labels.tolist(), strict=True):
        expected += (act > limits) == bool(label)
    assert torch.equal(tallies.count_above(acts, limits, labels[None])[0], expected)
