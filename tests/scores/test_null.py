"""The label-permutation null against slow loops, closed forms and shuffled labels."""

import itertools
import math
from dataclasses import replace

import pytest
import tiny
import torch
from drawn import grouped_outcomes, random_outcomes, slow_predictivity
from scipy import stats
from toy import QUIET, TASK, prompt_for

import tl_skillneurons as skn
from tl_skillneurons.scores.null import PermutationNull, permutation_null
from tl_skillneurons.scores.outcomes import RuleOutcomes, pack
from tl_skillneurons.scores.selection import called_significant
from tl_skillneurons.stats.permutation import permuted_labels
from tl_skillneurons.stats.units import Units, units_needed


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


@pytest.mark.parametrize(("size", "n_units"), [(2, 60), (8, 30)])
def test_neurons_of_groups_are_called_significant_as_rarely_as_promised_and_text_by_text_far_too_often(
    size, n_units
):
    n_runs, by_groups, by_texts = 60, 0, 0
    for seed in range(n_runs):
        outcomes = grouped_outcomes(n_units, size, seed)
        single = replace(outcomes, units=Units.single(len(outcomes.labels)))
        by_groups += bool((permutation_null(outcomes, n_permutations=39, seed=seed).family() <= 0.05).any())
        by_texts += bool((permutation_null(single, n_permutations=39, seed=seed).family() <= 0.05).any())
    assert stats.binomtest(by_groups, n_runs, 0.05, alternative="greater").pvalue > 0.01
    assert by_texts > 0.3 * n_runs


def test_nine_word_pairs_have_their_512_labellings_counted_each_once_when_a_thousand_are_asked_for():
    """Twins in nine word pairs, as the built-in tasks have with few examples: the p-values are exact."""
    generator = torch.Generator().manual_seed(0)
    pair = torch.arange(36) // 2
    labels = torch.arange(36) % 2
    units = Units.of([(pair % 9).tolist()], what="word pair", pair=pair)
    above = torch.rand(1, 36, 1, 1, 8, generator=generator) < 0.5
    above[0, :, 0, 0, 3] = labels == 1
    null = permutation_null(RuleOutcomes(pack(above), labels, 8, units=units), n_permutations=1000)
    signs = torch.tensor(list(itertools.product([0, 1], repeat=9)))
    every = labels ^ signs[:, units.member]
    scores = torch.stack([slow_predictivity(above, row) for row in every])[:, -1, 0]
    assert null.n_permutations == 511
    torch.testing.assert_close(null.p_value[-1, 0], (scores >= scores[0] - 1e-12).double().mean(0))
    reached = (scores.amax(1)[:, None] >= scores[0] - 1e-12).double().mean(0)
    torch.testing.assert_close(null.family()[0], reached)
    assert (
        float(null.family()[0, 3]) == null.smallest_p == 2 / 512
    )  # all labels turned say the same of a neuron
    assert "n_permutations=511" in repr(null) and "n_units=9, smallest_p=0.004" in repr(null)
    assert set(called_significant(scores[:1], null)) == {(0, 3)}


@pytest.mark.parametrize(
    ("n_words", "least", "needed"),
    [(5, "0.0625", 6), (3, "0.25", 6), (2, "0.5", 6)],
)
def test_a_level_that_so_few_units_cannot_reach_is_refused_with_how_many_it_takes(n_words, least, needed):
    """Labels all turned at once say the same of a neuron, so that 5 word pairs allow 2/32 and not 1/32."""
    pair = torch.arange(24) // 2
    words = Units.of([(pair % n_words).tolist()], what="word pair", pair=pair)
    above = torch.rand(1, 24, 1, 1, 8, generator=torch.Generator().manual_seed(0)) < 0.5
    outcomes = RuleOutcomes(pack(above), torch.arange(24) % 2, 8, units=words)
    null = permutation_null(outcomes, n_permutations=1000)
    assert null.n_permutations == 2**n_words - 1 and null.family().min() >= null.smallest_p
    said = rf"{n_words} units \(word pair\) .* no p-value is below {least}; 0\.05 takes about \d+ units"
    with pytest.raises(ValueError, match=said):
        called_significant(null.family(), null, 0.05)
    with pytest.raises(ValueError, match=said):
        null.level(0.05)
    with pytest.raises(ValueError, match=said):
        skn.scores.check_calibration(outcomes, n_repetitions=5)
    assert null.to_dataframe().level.isna().all()
    assert 2 / 2**needed <= 0.05 < 2 / 2 ** (needed - 1)
    about = units_needed(n_words, null.smallest_p, 0.05)
    assert needed <= about <= 3 * needed


def test_units_of_one_label_are_counted_out_too_and_one_way_alone_tests_nothing():
    outcomes = grouped_outcomes(4, 6, 0)  # two groups of each class: 6 ways
    few = permutation_null(outcomes, n_permutations=19)
    assert few.n_permutations == 5 and few.smallest_p == pytest.approx(1 / 3)
    with pytest.raises(ValueError, match=r"4 units \(group\) .* no p-value is below 0\.333"):
        called_significant(few.p_family[-1], few, 0.05)
    alone = replace(outcomes, labels=torch.ones_like(outcomes.labels))
    with pytest.raises(ValueError, match=r"4 units \(group\) of 24 examples can be labelled in no other way"):
        permutation_null(alone, n_permutations=19)


def test_a_null_says_what_was_permuted_and_how_many():
    null = permutation_null(grouped_outcomes(12, 2, 0), n_permutations=19)
    assert "unit='group', n_units=12" in repr(null)
    assert null.to_dataframe().attrs == {"unit": "group", "n_units": 12, "smallest_p": 1 / 20}
    assert null.smallest_p == pytest.approx(2 / math.comb(12, 6))
    again = PermutationNull.of_tensors(null.tensors(), **null.record())
    assert repr(again) == repr(null) and again.smallest_p == null.smallest_p


@pytest.fixture(scope="module")
def models():
    return {family: tiny.bridge(family, dtype=torch.float64) for family in ("gpt2", "bert")}


@pytest.mark.parametrize("family", ["gpt2", "bert"])
def test_scores_with_a_null_are_the_scores_without_and_keep_it_in_their_file(models, family, tmp_path):
    prompts = [prompt_for(family), prompt_for(family, seed=1)]
    plain = skn.score_neurons(models[family], prompts, TASK, run=QUIET)
    scores = skn.score_neurons(
        models[family], prompts, TASK, n_permutations=99, keep_outcomes=True, run=replace(QUIET, batch_size=4)
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
    table = back.null.to_dataframe()
    assert table.prompt.tolist() == [0, 1, "combined"] and table.level.iloc[-1] == level
    assert table.expected.iloc[0] == back.null.expected(prompt=0)
    assert "n_permutations=99" in repr(back.null) and "<table" in back.null._repr_html_()


def test_nulls_of_single_prompts_are_not_taken_for_that_of_the_set(models):
    one = skn.score_neurons(models["gpt2"], prompt_for("gpt2"), TASK, n_permutations=99, run=QUIET)
    both = skn.NeuronScores.of_prompts([one, one])
    with pytest.raises(ValueError, match="no permutation null; score with n_permutations=1000"):
        both.significant()
    with pytest.raises(ValueError, match="kept no outcomes"):
        both.with_null()
    with pytest.raises(
        ValueError, match=r"n_permutations must be at least 999 for a p-value of 0.001, got 99"
    ):
        one.significant(0.001)


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


def test_the_ways_to_label_single_texts_are_those_that_their_units_count():
    for labels in ([0, 1, 1, 0, 1], [0, 0, 0], [2.5, 1.0, 0.5, 1.0]):
        given, units = torch.tensor(labels), Units.single(len(labels))
        ways = len(set(itertools.permutations(labels)))
        assert units.log_orders(given) == pytest.approx(math.log(ways), abs=1e-9)
