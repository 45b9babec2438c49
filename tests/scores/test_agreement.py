"""Rankings and tops that agree by luck: a null that keeps what neurons have in common, and scipy's Spearman."""

import dataclasses

import numpy as np
import pytest
import torch
from scipy import stats

import tl_skillneurons as skn
from tl_skillneurons.scores.agreement import agreements
from tl_skillneurons.scores.null import permutation_null, permuted_scores
from tl_skillneurons.scores.outcomes import RuleOutcomes, count_right, pack
from tl_skillneurons.stats.units import Units

N, D_MLP = 100, 64


def scores_of(above, labels):
    """Scores whose single answers are ``above`` [example, layer, neuron]."""
    bits = above[None, :, :, None, :]
    outcomes = RuleOutcomes(pack(bits), labels, D_MLP)
    right = (above == (labels[:, None, None] == 1)).sum(0)[None, :, None]
    filled = torch.zeros(right.shape, dtype=torch.float64)
    counts = tuple(torch.bincount(labels).tolist())
    return skn.NeuronScores(filled, filled.float(), filled.float(), right, N, N, counts, outcomes=outcomes)


def groups_of_neurons(seed, n_groups=4):
    """Answers of neurons that come in groups which nearly always say the same: effectively few neurons."""
    generator = torch.Generator().manual_seed(seed)
    own = torch.rand(N, 2, n_groups, generator=generator) > 0.5
    above = own.repeat_interleave(D_MLP // n_groups, dim=2)
    return above ^ (torch.rand(above.shape, generator=generator) < 0.02)


def labels_of(seed):
    order = torch.randperm(N, generator=torch.Generator().manual_seed(seed))
    return (order < N // 2).long()


def test_spearman_and_shared_tops_are_those_of_each_layer_and_of_all():
    one, other = (scores_of(groups_of_neurons(s), labels_of(s)) for s in (0, 1))
    found = agreements({"a": one, "b": other}, [("a", "b")], 5, n_permutations=19)["a", "b"]
    for layer in range(2):
        expected = stats.spearmanr(one.predictivity[layer], other.predictivity[layer]).statistic
        assert float(found.spearman[layer]) == pytest.approx(expected)
        shared = one.top(5).by_layer()[layer].tolist(), other.top(5).by_layer()[layer].tolist()
        assert int(found.n_shared[layer]) == len(set(shared[0]) & set(shared[1]))
    flat = [score.predictivity.flatten() for score in (one, other)]
    assert float(found.spearman[-1]) == pytest.approx(stats.spearmanr(*flat).statistic)
    assert int(found.n_shared[-1]) == int(found.n_shared[:-1].sum()) and found.null.shape == (38, 3)


def test_each_draw_is_what_scoring_permuted_labels_gives():
    score = scores_of(groups_of_neurons(0), labels_of(0))
    other = scores_of(groups_of_neurons(1), labels_of(1))
    [drawn] = list(permuted_scores(score.outcomes, 19, seed=3))
    found = agreements(
        {"a": score, "b": dataclasses.replace(other, outcomes=None)},
        [("a", "b")],
        5,
        n_permutations=19,
        seed=3,
    )["a", "b"]
    for draw in range(19):
        expected = stats.spearmanr(drawn[draw].flatten(), other.predictivity.flatten()).statistic
        assert float(found.null[draw, -1]) == pytest.approx(expected)
    largest = permutation_null(score.outcomes, n_permutations=19, seed=3).largest[-1]
    assert (0.5 + drawn.amax((1, 2)) / (2 * N)).tolist() == pytest.approx(largest.tolist())
    rows = torch.stack([score.outcomes.labels])
    for layer, neurons, counted in count_right(score.outcomes, torch.ones_like(rows), rows):
        best = counted[0][0].abs().amax(0)
        assert (0.5 + best / (2 * N)).tolist() == pytest.approx(score.predictivity[layer, neurons].tolist())


def test_permuted_labels_stay_honest_where_permuted_neurons_call_correlated_ones_alike():
    """Twins of neurons: two tasks on the same texts with labels that have nothing to do with each other."""
    by_labels, by_neurons = [], []
    for seed in range(20):
        above = groups_of_neurons(seed)
        one, other = (scores_of(above, labels_of(100 + 2 * seed + side)) for side in range(2))
        options = {"n_permutations": 39, "seed": seed}
        honest = agreements({"a": one, "b": other}, [("a", "b")], 5, **options)["a", "b"].row(-1)
        bare = {name: dataclasses.replace(s, outcomes=None) for name, s in (("a", one), ("b", other))}
        naive = agreements(bare, [("a", "b")], 5, **options)["a", "b"].row(-1)
        assert (honest["permuted"], naive["permuted"]) == ("labels", "neurons")
        assert np.isnan(naive["p_shared"]) and 0 < honest["p_shared"] <= 1
        by_labels.append(honest["p_value"] <= 0.05)
        by_neurons.append(naive["p_value"] <= 0.05)
    assert sum(by_labels) <= 3 < 6 <= sum(by_neurons)  # of 20, at 5 %


def test_two_prompts_of_one_task_whose_labels_mean_nothing_are_seldom_called_alike():
    """Their scores are of the same texts under the same labels, so what fits these by luck is high in both."""
    called, one_side = [], []
    for seed in range(20):
        texts, labels = groups_of_neurons(seed), labels_of(100 + seed)
        noise = [
            torch.rand(texts.shape, generator=torch.Generator().manual_seed(2 * seed + k)) for k in (0, 1)
        ]
        one, other = (scores_of(texts ^ (flip < 0.1), labels) for flip in noise)
        found = agreements({"a": one, "b": other}, [("a", "b")], 5, n_permutations=39, seed=seed)["a", "b"]
        called.append(found.row(-1)["p_value"] <= 0.05)
        bare = dataclasses.replace(other, outcomes=None)
        one_side.append(
            agreements({"a": one, "b": bare}, [("a", "b")], 5, n_permutations=39, seed=seed)["a", "b"]
        )
        assert found.sides == (39,)
    assert sum(called) <= 3 < 10 <= sum(one.row(-1)["p_value"] <= 0.05 for one in one_side)


def test_other_texts_that_happen_to_have_the_same_labels_are_permuted_side_by_side():
    sides = [
        dataclasses.replace(
            scores_of(groups_of_neurons(k), labels_of(3)), provenance={"task": {"roles": {"select": name}}}
        )
        for k, name in enumerate(("reviews", "verbs"))
    ]
    assert skn.scores.score_agreement(*sides, 5, n_permutations=9).sides == (9, 9)
    same = dataclasses.replace(sides[1], provenance=sides[0].provenance)
    assert skn.scores.score_agreement(sides[0], same, 5, n_permutations=9).sides == (9,)


def test_draws_of_both_sides_are_what_scoring_both_under_the_same_permuted_labels_gives():
    labels = labels_of(3)
    one, other = (scores_of(groups_of_neurons(seed), labels) for seed in (0, 1))
    found = agreements({"a": one, "b": other}, [("a", "b")], 5, n_permutations=5, seed=2)["a", "b"]
    drawn = one.outcomes.units.permuted(labels, 5, seed=2)
    for draw, permuted in zip(found.null, drawn, strict=True):
        sides = [scores_of(groups_of_neurons(seed), permuted).predictivity.flatten() for seed in (0, 1)]
        assert float(draw[-1]) == pytest.approx(stats.spearmanr(*sides).statistic)


def test_several_pairs_under_the_same_labels_have_the_draws_that_each_pair_has_alone():
    labels = labels_of(3)
    scores = {name: scores_of(groups_of_neurons(k), labels) for k, name in enumerate("abc")}
    scores["other"] = scores_of(groups_of_neurons(9), labels_of(4))
    pairs = [("a", "b"), ("c", "b"), ("a", "other")]
    found = agreements(scores, pairs, 5, n_permutations=5, seed=2)
    for pair in pairs:
        alone = agreements({name: scores[name] for name in pair}, [pair], 5, n_permutations=5, seed=2)[pair]
        assert torch.equal(found[pair].null, alone.null) and found[pair].row(-1) == alone.row(-1)
        assert torch.equal(found[pair].shared_null, alone.shared_null)
    whose = [found[pair].labels_of for pair in pairs]
    assert whose == ["both sides together"] * 2 + ["each side in turn"]
    assert "under permuted labels of each side in turn of 100 units (text)" in repr(found["a", "other"])


def test_the_side_whose_labels_mean_least_decides_however_few_its_permutations():
    """One side's labels can be dealt out in 16 ways, the other's in many: what 999 draws say can't hide the 15."""
    above = groups_of_neurons(0)
    one, other = scores_of(above, labels_of(1)), scores_of(above, labels_of(1))
    pair = torch.arange(N) // 2
    few = Units.of([(pair % 4).tolist()], what="word pair", pair=pair)
    one = dataclasses.replace(
        one, outcomes=dataclasses.replace(one.outcomes, labels=torch.arange(N) % 2, units=few)
    )
    found = agreements({"a": one, "b": other}, [("a", "b")], 5, n_permutations=99)["a", "b"]
    assert found.sides == (15, 99) and found.smallest_p == 2 / 16 and "no p below 0.12" in repr(found)
    row, alone = (
        found.row(-1),
        dataclasses.replace(found, null=found.null[15:], shared_null=found.shared_null[15:], sides=(99,)).row(
            -1
        ),
    )
    reached = 1 + int((found.null[:15, -1] >= found.spearman[-1] - 1e-12).sum())
    assert row["p_value"] == 2 * reached / 16 > alone["p_value"] == 2 / 100
    assert row["p_shared"] >= 1 / 16 and row["smallest_p"] == 2 / 16


def test_two_scores_agree_as_a_pair_of_many_do_and_the_agreement_keeps_its_file(tmp_path):
    one, other = (scores_of(groups_of_neurons(s), labels_of(s)) for s in (0, 1))
    found = skn.scores.score_agreement(one, other, 5, n_permutations=19, seed=2)
    same = agreements({"a": one, "b": other}, [("a", "b")], 5, n_permutations=19, seed=2)["a", "b"]
    back = skn.scores.Agreement.load(found.save(tmp_path / "agreement.safetensors"))
    for held in (same, back):
        for name in ("spearman", "null", "n_shared", "shared_null"):
            assert torch.equal(getattr(held, name), getattr(found, name))
    frame = back.to_dataframe()
    assert frame.layer.tolist() == [0, 1, -1] and frame.spearman.tolist() == found.spearman.tolist()
    assert frame.iloc[-1].p_value == found.row(-1)["p_value"]
    assert "of the best 5 of each layer shared, 38 draws" in repr(back) and "<table" in back._repr_html_()
    bare = skn.scores.score_agreement(
        dataclasses.replace(one, outcomes=None),
        dataclasses.replace(other, outcomes=None),
        5,
        n_permutations=19,
    )
    assert skn.scores.Agreement.load(bare.save(tmp_path / "bare.safetensors")).permuted == "neurons"


def test_a_layer_whose_neurons_all_score_the_same_has_no_correlation():
    above = groups_of_neurons(0)
    above[:, 0] = False
    one, other = scores_of(above, labels_of(0)), scores_of(groups_of_neurons(1), labels_of(1))
    row = agreements({"a": one, "b": other}, [("a", "b")], 5, n_permutations=19)["a", "b"].row(0)
    assert np.isnan(row["spearman"]) and np.isnan(row["p_value"])


def test_compare_tasks_says_which_null_it_used():
    one, other = (scores_of(groups_of_neurons(s), labels_of(s)) for s in (0, 1))
    frame = skn.studies.compare_tasks({"a": one, "b": other}, amount=5, n_permutations=19).pairs
    assert set(frame.permuted) == {"labels"} and frame.p_shared.between(0, 1).all()
    bare = {name: dataclasses.replace(s, outcomes=None) for name, s in (("a", one), ("b", other))}
    frame = skn.studies.compare_tasks(bare, amount=5, n_permutations=19).pairs
    assert set(frame.permuted) == {"neurons"} and frame.p_shared.isna().all()
