"""The functions that scores are made of, against numpy, scipy and slow loops."""

import numpy as np
import pytest
import torch
from scipy import stats

from tl_skillneurons.scores import kinds

N = 40


@pytest.fixture(scope="module")
def columns():
    generator = torch.Generator().manual_seed(0)
    acts = torch.randn(N, 6, generator=generator, dtype=torch.float64)
    acts[:, 1] = acts[:, 1].round()  # ties
    acts[:, 2] = 3.0  # constant
    labels = torch.tensor([0, 1, 1, 0, 1] * 8)
    acts[:, 3] += 2 * labels
    return acts, labels


def test_auc_is_the_mann_whitney_statistic_of_scipy(columns):
    acts, labels = columns
    one, zero = acts[labels == 1].numpy(), acts[labels == 0].numpy()
    u = stats.mannwhitneyu(one, zero).statistic
    expected = 2 * u / (len(one) * len(zero)) - 1
    torch.testing.assert_close(kinds.auc(acts, labels[None])[0], torch.from_numpy(expected))


def test_pearson_and_spearman_are_those_of_scipy_and_zero_for_a_constant(columns):
    acts, _ = columns
    target = torch.randn(N, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    for name, law in (("pearson", stats.pearsonr), ("spearman", stats.spearmanr)):
        found = kinds.KINDS[name].score(acts, target[None])[0]
        assert found[2] == 0
        for column in (0, 1, 3, 4, 5):
            expected = law(acts[:, column].numpy(), target.numpy()).statistic
            assert float(found[column]) == pytest.approx(expected, abs=1e-12)


def test_weights_count_as_repetitions_and_zero_leaves_an_example_out(columns):
    acts, _ = columns
    generator = torch.Generator().manual_seed(1)
    target = torch.randn(N, generator=generator, dtype=torch.float64)
    weights = torch.randint(0, 4, (N,), generator=generator)
    often = torch.repeat_interleave(torch.arange(N), weights)
    rows = torch.stack([weights.double(), weights.flip(0).double()])
    found = kinds.pearson(acts, torch.stack([target, target.flip(0)]), rows)
    torch.testing.assert_close(found[:1], kinds.pearson(acts[often], target[often][None]))
    mirrored = kinds.pearson(acts.flip(0)[often], target[often][None])
    torch.testing.assert_close(found[1:], mirrored)  # each row's weights stand beside its targets
    assert found[0, 2] == found[1, 2] == 0


def test_mean_difference_is_cohens_d(columns):
    acts, labels = columns
    one, zero = acts[labels == 1], acts[labels == 0]
    pooled = ((len(one) - 1) * one.var(0) + (len(zero) - 1) * zero.var(0)) / (N - 2)
    expected = (one.mean(0) - zero.mean(0)) / pooled.sqrt()
    expected[2] = 0
    torch.testing.assert_close(kinds.mean_difference(acts, labels[None])[0], expected)


def test_scores_of_hits_are_those_of_a_slow_count(columns):
    acts, labels = columns
    hit = acts > 0.3
    rows = torch.stack([labels, labels.roll(3)])
    for row, y in enumerate(rows):
        for column in range(6):
            h = hit[:, column]
            right = float((h == y.bool()).double().mean())
            sides = [float((h[y == c] == bool(c)).double().mean()) for c in (0, 1)]
            table = np.array([[int((h[y == c] == k).sum()) for k in (False, True)] for c in (0, 1)]) / N
            outer = table.sum(1, keepdims=True) * table.sum(0, keepdims=True)
            inside = table > 0
            bits = (table[inside] * np.log2(table[inside] / outer[inside])).sum()
            assert float(kinds.accuracy(hit, rows)[row, column]) == pytest.approx(right - 0.5)
            assert float(kinds.balanced_accuracy(hit, rows)[row, column]) == pytest.approx(
                sum(sides) / 2 - 0.5
            )
            found = float(kinds.mutual_information(hit, rows)[row, column])
            assert abs(found) == pytest.approx(bits, abs=1e-12)
            assert bits < 1e-9 or (found > 0) == (sum(sides) > 1)


def test_the_best_threshold_makes_the_fewest_mistakes_of_all(columns):
    acts, labels = columns
    found = kinds.best_threshold(acts, labels)
    for column in range(6):
        values = acts[:, column]
        scored = {}
        for cut in sorted(values.tolist()):
            right = float(((values > cut) == labels.bool()).double().mean())
            scored[cut] = max(right, 1 - right)
        best = max(scored.values())
        assert float(found[column]) == min(cut for cut, s in scored.items() if s >= best - 1e-12)


def test_a_neuron_that_is_silent_wherever_weights_are_has_no_weighted_correlation():
    generator = torch.Generator().manual_seed(0)
    weights = torch.rand(1, 40, generator=generator)
    weights[:, 20:] = 0
    acts = torch.zeros(40, 200)
    acts[20:] = torch.rand(20, 200, generator=generator)
    assert (kinds.pearson(acts, torch.randn(1, 40, generator=generator), weights) == 0).all()
