"""The label-permutation null against slow loops, closed forms and shuffled labels."""

import dataclasses
import math

import pytest
import tiny
import torch
from datasets import Dataset
from drawn import random_outcomes, slow_predictivity
from scipy import stats
from toy import TASK, prompt_for, task_of

import tl_skillneurons as skn
from tl_skillneurons.scores.null import permutation_null
from tl_skillneurons.scores.outcomes import RuleOutcomes, count_right, pack
from tl_skillneurons.stats.multiple_testing import benjamini_hochberg, critical_level, family_wise_p
from tl_skillneurons.stats.permutation import permuted_labels
from tl_skillneurons.tasks.task import twin_pairs


@pytest.mark.parametrize("aggregate", ["mean", "min"])
def test_the_null_equals_a_slow_loop_over_permutations_neurons_and_positions(aggregate, monkeypatch):
    monkeypatch.setattr("tl_skillneurons.scores.outcomes.MOST_NUMBERS", 2000)  # chunks of one byte
    above, outcomes = random_outcomes()
    null = permutation_null(outcomes, n_permutations=30, seed=3, aggregate=aggregate)
    observed = slow_predictivity(above, outcomes.labels, aggregate)
    drawn = permuted_labels(outcomes.labels, 30, seed=3)
    under = torch.stack([slow_predictivity(above, row, aggregate) for row in drawn])
    torch.testing.assert_close(null.largest.T, under.flatten(2).amax(2), rtol=0, atol=1e-12)
    reached = (under >= observed - 1e-12).sum(0)
    torch.testing.assert_close(null.p_value, (1 + reached.double()) / 31)
    family = (under.flatten(2).amax(2)[:, :, None, None] >= observed - 1e-12).sum(0)
    torch.testing.assert_close(null.p_family, (1 + family.double()) / 31)


def test_bits_come_back_as_they_were_packed_and_count_as_they_should():
    above, outcomes = random_outcomes(d_mlp=21)
    for layer, neurons in outcomes.chunks(5):
        got = outcomes.unpack(1, layer, neurons)
        assert torch.equal(got.bool(), above[1, :, layer, :, neurons])
    weights = torch.randint(0, 4, (2, 24), generator=torch.Generator().manual_seed(0))
    rows = outcomes.labels.expand(2, -1)
    for layer, neurons, counted in count_right(outcomes, weights, rows):
        right = above[0, :, layer, :, neurons] == outcomes.labels[:, None, None].bool()
        expected = torch.einsum("re,epn->rpn", weights.double(), right.double())
        assert torch.equal(counted[0].double(), 2 * expected - weights.sum(1)[:, None, None])


def test_a_single_neurons_p_value_is_the_hypergeometric_one():
    above, outcomes = random_outcomes(n_prompts=1, n=40, n_layers=1, n_positions=1, d_mlp=8, seed=1)
    null = permutation_null(outcomes, n_permutations=20_000)
    for neuron in range(8):
        fires = above[0, :, 0, 0, neuron]
        hits = int((fires & outcomes.labels.bool()).sum())
        law = stats.hypergeom(40, 20, int(fires.sum()))
        support = torch.arange(41)
        right = 2 * support - int(fires.sum()) + 20  # of so many hits
        deviation = (2 * right - 40).abs()
        exact = float(torch.tensor(law.pmf(support))[deviation >= deviation[hits]].sum())
        assert float(null.p_value[0, 0, neuron]) == pytest.approx(exact, abs=4 * math.sqrt(0.25 / 20_000))


@pytest.mark.parametrize("paired", [False, True])
def test_the_exact_law_of_one_position_is_what_permutations_find(paired):
    _, outcomes = random_outcomes(n_prompts=1, n=40, n_layers=1, n_positions=1, d_mlp=8, seed=1)
    if paired:
        outcomes = dataclasses.replace(
            outcomes, pairs=torch.arange(40).roll(1) // 2, labels=torch.tensor([1, 0] * 20)
        )
    null = permutation_null(outcomes, n_permutations=20_000)
    torch.testing.assert_close(null.p_bound[0], null.p_value[0], rtol=0, atol=0.015)
    assert torch.equal(null.p_bound[0], null.p_bound[1])


@pytest.mark.parametrize("aggregate", ["mean", "min"])
def test_the_bound_of_several_positions_and_prompts_is_never_too_small(aggregate):
    _, outcomes = random_outcomes(n=40, d_mlp=64, seed=3)
    null = permutation_null(outcomes, n_permutations=2000, aggregate=aggregate)
    assert (null.p_bound > null.p_value - 0.03).all()
    assert (
        null.p_bound[:2] < 6 * null.p_value[:2] + 0.05
    ).all()  # and not far above: there are three positions


def test_a_strong_neuron_among_thousands_has_a_small_q_although_permutations_are_few():
    generator = torch.Generator().manual_seed(0)
    labels = torch.tensor([0, 1] * 100)
    above = torch.rand(1, 200, 1, 2, 4000, generator=generator) < 0.5
    above[0, :, 0, 0, 5] = torch.where(torch.rand(200, generator=generator) < 0.8, labels, 1 - labels).bool()
    null = permutation_null(RuleOutcomes(pack(above), labels, 4000), n_permutations=19)
    q = null.q_value()
    assert q[0, 5] < 1e-6 and (q <= 0.05).sum() == 1


def test_on_independent_neurons_the_level_is_that_of_the_exact_binomial():
    _, outcomes = random_outcomes(n_prompts=1, n=200, n_layers=4, n_positions=2, d_mlp=256, share=0.5)
    null = permutation_null(outcomes, n_permutations=400)
    exact = skn.stats.best_of_chance(200, 4 * 2 * 256)
    assert null.expected() == pytest.approx(exact.expected, abs=0.01)
    assert null.level(0.05) == pytest.approx(exact.threshold, abs=0.0101)  # two examples


def test_correlated_neurons_have_a_lower_level_than_independent_ones():
    above, outcomes = random_outcomes(n_prompts=1, n=200, n_layers=1, n_positions=1, d_mlp=256, share=0.5)
    same = RuleOutcomes(pack(above[..., :1].expand_as(above)), outcomes.labels, 256)
    assert permutation_null(same).level() < permutation_null(outcomes).level() - 0.02


def test_permutations_keep_the_class_counts_and_come_from_their_seed():
    labels = torch.tensor([0, 1, 2, 1, 0, 2, 2, 2])
    drawn = permuted_labels(labels, 50, seed=1)
    assert torch.equal(drawn.sort(1).values, labels.sort().values.expand(50, -1))
    assert torch.equal(drawn, permuted_labels(labels, 50, seed=1))
    assert not torch.equal(drawn, permuted_labels(labels, 50, seed=2))


def test_the_labels_of_twins_are_exchanged_within_pairs():
    labels = torch.tensor([0, 1, 1, 0, 1, 0, 0, 1] + [0, 1] * 4)
    pairs = torch.tensor([7, 7, 3, 5, 5, 3, 9, 9, 1, 1, 2, 2, 4, 4, 6, 6])
    drawn = permuted_labels(labels, 200, pairs=pairs)
    for pair in pairs.unique():
        own = drawn[:, pairs == pair]
        assert torch.equal(own.sum(1), torch.ones(200).long())
        assert 60 < int(own[:, 0].sum()) < 140


def test_only_a_role_of_whole_pairs_with_both_labels_is_permuted_within_them():
    rows = {"label": [0, 1, 1, 0], "pair": [3, 3, 5, 5]}
    assert twin_pairs(Dataset.from_dict(rows)).tolist() == [3, 3, 5, 5]
    for spoiled in ({"pair": [3, 3, 5, 6]}, {"label": [0, 1, 1, 1]}, {"label": [0, 1, 2, 0]}):
        assert twin_pairs(Dataset.from_dict({**rows, **spoiled})) is None
    assert twin_pairs(Dataset.from_dict({"label": [0, 1]})) is None


@pytest.mark.parametrize(
    "labels, pairs, ways",
    [([0, 0, 0, 0, 1], None, "5 ways"), ([0, 1, 0, 1], [0, 0, 1, 1], "4 ways within pairs")],
)
def test_too_few_examples_for_the_permutations_asked_for_are_refused(labels, pairs, ways):
    with pytest.raises(ValueError, match=f"{ways}, too few for 19 permutations; give more examples"):
        permuted_labels(torch.tensor(labels), 19, pairs=None if pairs is None else torch.tensor(pairs))


def test_q_values_are_those_of_scipy():
    p = torch.rand(200, generator=torch.Generator().manual_seed(0), dtype=torch.float64) ** 3
    expected = torch.from_numpy(stats.false_discovery_control(p.numpy()))
    torch.testing.assert_close(benjamini_hochberg(p), expected)
    with pytest.raises(ValueError, match=r"must be in \[0, 1\]"):
        benjamini_hochberg(torch.tensor([0.1, float("nan")]))


def test_a_score_above_the_level_is_significant_and_one_at_it_is_not():
    largest = torch.arange(1.0, 100.0)  # 99 draws
    level = critical_level(largest, 0.05)
    p = family_wise_p(torch.tensor([level, level + 1]), largest)
    assert p[0] > 0.05 >= p[1]
    with pytest.raises(ValueError, match=r"19 permutations can't give a p-value of 0.01; take at least 99"):
        critical_level(largest[:19], 0.01)


@pytest.fixture(scope="module")
def models():
    return {family: tiny.bridge(family, dtype=torch.float64) for family in ("gpt2", "bert")}


@pytest.mark.parametrize("family", ["gpt2", "bert"])
def test_scores_with_a_null_are_the_scores_without_and_keep_it_in_their_file(models, family, tmp_path):
    prompts = [prompt_for(family), prompt_for(family, seed=1)]
    plain = skn.score_neurons(models[family], prompts, TASK, progress=False)
    scores = skn.score_neurons(
        models[family], prompts, TASK, n_permutations=99, keep_outcomes=True, batch_size=4, progress=False
    )
    assert torch.equal(scores.correct, plain.correct)
    torch.testing.assert_close(scores.baseline, plain.baseline)
    back = skn.NeuronScores.load(scores.save(tmp_path / "scores.safetensors"))
    assert torch.equal(back.null.p_family, scores.null.p_family)
    assert torch.equal(back.outcomes.above, scores.outcomes.above)
    frame = back.to_dataframe()
    assert list(frame.columns[-3:]) == ["p_family", "p_value", "q_value"]
    called = back.significant(0.05)
    assert len(called) == int((frame.p_family <= 0.05).sum())
    assert set(called) == {(r.layer, r["index"]) for _, r in frame[frame.p_family <= 0.05].iterrows()}
    level = back.null.level(0.05)
    assert torch.equal(back.predictivity > level + 1e-12, back.null.family() <= 0.05)


def test_nulls_of_single_prompts_are_not_taken_for_that_of_the_set(models):
    one = skn.score_neurons(models["gpt2"], prompt_for("gpt2"), TASK, n_permutations=99, progress=False)
    both = skn.NeuronScores.of_prompts([one, one])
    with pytest.raises(ValueError, match="no permutation null; score with n_permutations=1000"):
        both.significant()
    with pytest.raises(ValueError, match="kept no outcomes"):
        both.with_null()
    with pytest.raises(
        ValueError, match=r"n_permutations must be at least 999 for a p-value of 0.001, got 99"
    ):
        one.significant(0.001)


def test_each_class_of_three_is_scored_in_one_pass_as_if_alone(models):
    words = {0: "negative", 1: "positive", 2: "other"}
    rows = [
        {"text": row["text"], "label": number % 3} for number, row in enumerate(tiny.sentences(54, seed=2))
    ]
    task = task_of(rows, words)
    prompts = [prompt_for("gpt2"), prompt_for("gpt2", seed=1)]
    classes = skn.scores.score_classes(
        models["gpt2"], prompts, task, n_permutations=99, seed=5, progress=False
    )
    for class_id, subtask in enumerate(task.binary_subtasks()):
        alone = skn.score_neurons(models["gpt2"], prompts, subtask, progress=False)
        assert torch.equal(classes[class_id].correct, alone.correct)
        assert classes[class_id].class_counts == alone.class_counts
        assert classes[class_id].class_id == class_id and classes[class_id].null.n_permutations == 99
        rule = skn.scores.rule_accuracy(models["gpt2"], prompts, task, classes[class_id], progress=False)
        other = skn.scores.rule_accuracy(models["gpt2"], prompts, subtask, alone, progress=False)
        assert torch.equal(rule, other)


def slow_union(scores, share):
    """The paper's rule a neuron at a time: int(share * d_mlp) of each subtask and layer, lowest index first."""
    chosen = set()
    for one in scores:
        for layer in range(one.n_layers):
            ranked = sorted(range(one.d_mlp), key=lambda i: (-float(one.predictivity[layer, i]), i))
            chosen |= {(layer, i) for i in ranked[: int(share * one.d_mlp)]}
    return chosen


@pytest.mark.parametrize("aggregate", ["mean", "min"])
def test_the_union_of_subtasks_takes_equally_many_of_each_ties_by_lowest_index(models, aggregate):
    rows = [
        {"text": row["text"], "label": number % 3} for number, row in enumerate(tiny.sentences(54, seed=2))
    ]
    task = task_of(rows, {0: "negative", 1: "positive", 2: "other"})
    prompts = [prompt_for("bert"), prompt_for("bert", seed=1)]
    classes = skn.scores.score_classes(models["bert"], prompts, task, aggregate=aggregate, progress=False)
    ties = [len(one.predictivity[0].unique()) for one in classes]
    assert min(ties) < 48  # there are ties to decide
    union = skn.scores.top_union(classes, 0.1)
    assert set(union) == slow_union(classes, 0.1)
    with pytest.raises(ValueError, match="at least one subtask"):
        skn.scores.top_union([], 0.1)


def test_shuffled_labels_are_called_significant_as_rarely_as_they_should_be():
    """200 tasks without an effect, correlated neurons: the share with any discovery fits the binomial of 5 %."""
    generator = torch.Generator().manual_seed(0)
    false_alarms = 0
    for repetition in range(200):
        shared = torch.randn(60, 1, 1, 3, generator=generator)
        acts = shared @ torch.randn(3, 40, generator=generator) + torch.randn(
            60, 2, 2, 40, generator=generator
        )
        outcomes = RuleOutcomes(pack(acts > 0)[None], torch.tensor([0, 1] * 30), 40)
        null = permutation_null(outcomes, n_permutations=99, seed=repetition)
        false_alarms += bool((null.family() <= 0.05).any())
    low, high = stats.binom.interval(0.99, 200, 0.05)
    assert low <= false_alarms <= high


def test_a_planted_neuron_is_found_among_hundreds():
    generator = torch.Generator().manual_seed(0)
    labels = torch.tensor([0, 1] * 200)
    found = 0
    for repetition in range(20):
        above = torch.rand(1, 400, 2, 2, 64, generator=generator) < 0.5
        right = torch.rand(400, generator=generator) < 0.68
        above[0, :, 1, 0, 5] = torch.where(right, labels, 1 - labels).bool()
        null = permutation_null(RuleOutcomes(pack(above), labels, 64), n_permutations=99, seed=repetition)
        found += bool(null.family()[1, 5] <= 0.05)
    assert found >= 18
