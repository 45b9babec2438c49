"""Tasks compared by planted neurons they share."""

import dataclasses

import pandas as pd
import pytest
import torch
from drawn import scores as some_scores
from scipy import stats

import tl_skillneurons as skn


def planted(neurons, seed, n_layers=2, d_mlp=200):
    """Scores near chance but for planted neurons that are right on nearly all of 100 examples."""
    generator = torch.Generator().manual_seed(seed)
    correct = torch.randint(40, 61, (1, n_layers, 1, d_mlp), generator=generator)
    for layer, index in neurons:
        correct[0, layer, 0, index] = 95
    filled = torch.zeros(1, n_layers, 1, d_mlp, dtype=torch.float64)
    return skn.NeuronScores(filled, filled.float(), filled.float(), correct, 100, 100, (50, 50))


def test_two_tasks_that_share_half_of_their_planted_neurons_are_found_to(tmp_path):
    one = [(layer, i) for layer in range(2) for i in range(8)]
    other = [(layer, i) for layer in range(2) for i in range(4, 12)]
    third = [(layer, i) for layer in range(2) for i in range(100, 108)]
    scores = {"a": planted(one, 0), "b": planted(other, 1), "c": planted(third, 2)}
    found = skn.studies.compare_tasks(scores, amount=8, n_permutations=99)
    everywhere = found.pairs[found.pairs.layer == -1].set_index(["one", "other"])
    assert everywhere.n_shared.to_dict() == {("a", "b"): 8, ("a", "c"): 0, ("b", "c"): 0}
    assert everywhere.jaccard[("a", "b")] == pytest.approx(8 / 24)
    assert everywhere.p_overlap[("a", "b")] < 1e-6 and everywhere.p_overlap[("a", "c")] == 1
    assert (found.pairs[found.pairs.layer >= 0].query("one == 'a' and other == 'b'").n_shared == 4).all()
    assert found.matrix("n_shared").loc["b", "a"] == 8
    assert found.to_dataframe().equals(found.pairs) and found.to_dataframe() is not found.pairs
    assert repr(found).startswith("TaskComparison(tasks=['a', 'b', 'c'], most_alike='a and b', spearman=")
    assert "<table" in found._repr_html_()
    read = skn.studies.TaskComparison.load(found.save(tmp_path / "found.json"))
    pd.testing.assert_frame_equal(read.pairs, found.pairs)
    assert (read.names, read.settings) == (found.names, found.settings) and read.settings["amount"] == 8


def test_spearman_is_that_of_scipy_and_independent_scores_are_within_their_null():
    scores = {"a": planted([], 0), "b": planted([], 1)}
    found = skn.studies.compare_tasks(scores, amount=5, n_permutations=199)
    for layer in range(2):
        x, y = (scores[name].predictivity[layer].numpy() for name in "ab")
        row = found.pairs[found.pairs.layer == layer].iloc[0]
        assert row.spearman == pytest.approx(stats.spearmanr(x, y).statistic, abs=1e-12)
        assert row.null_low < row.spearman < row.null_high and row.p_value > 0.05
    x, y = (scores[name].predictivity.flatten().numpy() for name in "ab")
    assert found.matrix().loc["a", "b"] == pytest.approx(stats.spearmanr(x, y).statistic, abs=1e-12)
    same = skn.studies.compare_tasks({"a": scores["a"], "b": scores["a"]}, amount=5, n_permutations=99)
    assert same.pairs.spearman.min() == pytest.approx(1) and same.pairs.p_value.max() == 0.02
    assert same.to_table().row_count == 1


def test_scores_of_different_models_or_too_few_are_refused():
    one = some_scores()
    with pytest.raises(ValueError, match="at least two scores"):
        skn.studies.compare_tasks({"a": one})
    other = dataclasses.replace(one, provenance={"model": {"name": "another"}})
    with pytest.raises(ValueError, match="scores must be of one model"):
        skn.studies.compare_tasks({"a": one, "b": other})
    with pytest.raises(ValueError, match="n_permutations must be at least 19"):
        skn.studies.compare_tasks({"a": one, "b": one}, n_permutations=10)
