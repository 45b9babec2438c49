"""Stability of neuron sets: slow loops, planted twins, and what is refused."""

import dataclasses

import numpy as np
import pandas as pd
import pytest
import tiny
import torch
from drawn import random_outcomes, slow_predictivity
from toy import QUIET, TASK, prompt_for

import tl_skillneurons as skn
from tl_skillneurons.scores.outcomes import RuleOutcomes, pack
from tl_skillneurons.stats.ranks import spearman
from tl_skillneurons.stats.units import Units
from tl_skillneurons.studies.diagnosis import _nearest_by_luck, bootstrap_jaccard, nearest_outside
from tl_skillneurons.studies.permuted_stability import permuted_stability


def test_the_bootstrap_equals_resampling_the_examples_by_hand():
    above, outcomes = random_outcomes()
    neurons = skn.NeuronSet.from_pairs([(0, 1), (0, 12), (1, 3)], n_layers=2, d_mlp=13)
    found = bootstrap_jaccard(outcomes, neurons, n_draws=5, seed=4)
    drawn = torch.randint(24, (5, 24), generator=torch.Generator().manual_seed(4))
    for number, rows in enumerate(drawn):
        score = slow_predictivity(above[:, rows], outcomes.labels[rows])[-1]
        tops = [
            sorted(range(13), key=lambda i, k=k, score=score: (-round(float(score[k, i]), 9), i))[:n]
            for k, n in ((0, 2), (1, 1))
        ]
        shared = len({(k, i) for k, top in enumerate(tops) for i in top} & set(neurons))
        assert float(found[number]) == pytest.approx(shared / (6 - shared))


def test_a_strong_set_is_found_again_and_a_random_one_is_not():
    above, outcomes = random_outcomes(n=100, d_mlp=50, seed=2)
    right = outcomes.labels.bool()
    noise = torch.rand(2, 100, 3, 4, generator=torch.Generator().manual_seed(1)) < 0.1
    above[:, :, 1, :, :4] = right[None, :, None, None] ^ noise
    outcomes = RuleOutcomes(pack(above), outcomes.labels, 50)
    planted = skn.NeuronSet.from_pairs([(1, i) for i in range(4)], n_layers=2, d_mlp=50)
    assert bootstrap_jaccard(outcomes, planted).min() == 1
    assert bootstrap_jaccard(outcomes, planted.random_like(0)).max() == 0


def test_what_belongs_together_is_resampled_together():
    _, outcomes = random_outcomes(n=20)
    pairs = torch.arange(20) // 2
    twins = Units.of([pairs.tolist()], what="pair of twins", pair=pairs)
    paired = RuleOutcomes(outcomes.above, outcomes.labels, 13, units=twins)
    neurons = skn.NeuronSet.from_pairs([(0, 1), (1, 3)], n_layers=2, d_mlp=13)
    found = bootstrap_jaccard(paired, neurons, n_draws=5, seed=4)
    drawn = torch.randint(10, (5, 10), generator=torch.Generator().manual_seed(4))
    for number, chosen in enumerate(drawn):
        rows = torch.stack([2 * chosen, 2 * chosen + 1], dim=1).flatten()
        again = RuleOutcomes(outcomes.above[:, rows], outcomes.labels[rows], 13)
        once = bootstrap_jaccard_of_all(again, neurons)
        assert float(found[number]) == pytest.approx(once)


def bootstrap_jaccard_of_all(outcomes, neurons):
    """What the whole of these examples finds again of the set, by one neuron of each layer."""
    above = torch.stack(
        [outcomes.unpack(prompt, layer, slice(0, 13)) for prompt in range(2) for layer in range(2)]
    )
    above = above.unflatten(0, (2, 2)).permute(0, 2, 1, 3, 4).bool()
    score = slow_predictivity(above, outcomes.labels)[-1]
    best = {(k, min(range(13), key=lambda i, k=k: (-round(float(score[k, i]), 9), i))) for k in range(2)}
    shared = len(best & set(neurons))
    return shared / (4 - shared)


def test_a_planted_twin_is_named_with_its_sign_and_a_lonely_neuron_has_none():
    acts = torch.randn(200, 2, 30, generator=torch.Generator().manual_seed(0))
    acts[:, 1, 7] = -2 * acts[:, 0, 3] + 0.1 * acts[:, 1, 7]
    acts[:, 0, 4] = 5.0  # constant
    frame = nearest_outside(acts, skn.NeuronSet.from_pairs([(0, 3), (0, 9), (0, 4)], n_layers=2, d_mlp=30))
    twin, lonely, constant = frame.itertuples()
    assert (twin.nearest_layer, twin.nearest_index) == (1, 7) and twin.correlation < -0.99
    expected = torch.corrcoef(torch.stack([acts[:, 0, 3], acts[:, 1, 7]]))[0, 1]
    assert twin.correlation == pytest.approx(float(expected), abs=1e-6)
    assert abs(lonely.correlation) < 0.35 and constant.correlation == 0


def test_a_neuron_of_the_set_is_nobodys_twin():
    acts = torch.randn(100, 1, 5, generator=torch.Generator().manual_seed(0))
    acts[:, 0, 1] = acts[:, 0, 0]
    frame = nearest_outside(acts, skn.NeuronSet.from_pairs([(0, 0), (0, 1)], n_layers=1, d_mlp=5))
    assert not set(frame.nearest_index) & {0, 1} and frame.correlation.abs().max() < 0.4


@pytest.fixture(scope="module")
def gpt2():
    return tiny.bridge("gpt2", dtype=torch.float64)


def test_one_call_answers_all_three_for_any_set(gpt2):
    prompts = [prompt_for("gpt2", seed=seed) for seed in range(3)]
    scores = skn.score_neurons(gpt2, prompts, TASK, keep_outcomes=True, run=QUIET)
    neurons = skn.NeuronSet.from_pairs([(0, 1), (0, 5), (1, 2)])
    found = skn.studies.diagnose(gpt2, prompts, TASK, neurons, scores=scores, n_bootstrap=20, run=QUIET)
    assert len(found.prompts) == 3 and len(found.jaccard) == 20 and len(found.twins) == 3
    frame = found.to_dataframe()
    assert list(frame.quantity) == [
        "prompts: Spearman of predictivity",
        "prompts: Jaccard of the tops",
        "examples: bootstrap Jaccard",
        "twins: correlation outside",
    ]
    assert (frame.low <= frame.value).all() and (frame.value <= frame.high).all()
    assert frame.p_value.between(0, 1).all() and set(frame.n_permutations) == {99}
    assert list(frame.random.notna()) == [False, False, False, True]
    assert frame.control.notna().all() and set(frame.role) == {"select"} and set(frame.n_examples) == {15}
    again = skn.studies.diagnose(gpt2, prompts, TASK, neurons, n_bootstrap=20, run=QUIET)
    assert torch.equal(again.jaccard, found.jaccard) and again.prompts.equals(found.prompts)
    alone = skn.studies.diagnose(gpt2, prompts[0], TASK, neurons, n_bootstrap=20, run=QUIET)
    assert len(alone.prompts) == 0 and len(alone.to_dataframe()) == 2


@pytest.fixture(scope="module")
def shuffled(gpt2):
    """A diagnosis of the best neurons for labels of ``select`` that mean nothing, again and again."""
    found = []
    prompts = [prompt_for("gpt2", seed=seed) for seed in range(2)]
    for seed in range(16):
        task = TASK.with_shuffled_labels(seed, roles=("select",))
        scores = skn.score_neurons(gpt2, prompts, task, keep_outcomes=True, run=QUIET)
        top = scores.top(4)
        frame = skn.studies.diagnose(
            gpt2, prompts, task, top, scores=scores, n_bootstrap=50, n_permutations=39, seed=seed, run=QUIET
        ).to_dataframe()
        best = scores.predictivity_by_prompt.argsort(dim=2, descending=True, stable=True)[:, :, :4]
        tops = [
            skn.NeuronSet.from_pairs([(k, int(i)) for k in range(2) for i in one[k]], n_layers=2, d_mlp=48)
            for one in best
        ]
        found.append((frame.set_index("quantity"), tops[0].overlap(tops[1])))
    return found


def test_where_labels_mean_nothing_stability_is_no_finding_though_independence_would_call_it_one(shuffled):
    by_luck = [overlap.p_value <= 0.05 for _, overlap in shuffled]
    assert sum(by_luck) >= 8  # what stood beside the tops until they had a null of their own
    for quantity in shuffled[0][0].index:
        assert sum(frame.p_value[quantity] <= 0.05 for frame, _ in shuffled) <= 3


def test_the_null_is_what_two_prompts_and_resamplings_agree_on_by_themselves(shuffled):
    for frame, overlap in shuffled:
        assert frame.control["prompts: Jaccard of the tops"] > 2 * overlap.chance_jaccard
        assert frame.control["examples: bootstrap Jaccard"] > 2 * overlap.chance_jaccard


def test_the_null_equals_choosing_and_comparing_again_with_each_permutation_by_hand():
    above, outcomes = random_outcomes()
    null = permuted_stability(outcomes, {0: 2, 1: 1}, n_permutations=4, n_resamplings=2, seed=3)
    dealt = outcomes.units.permuted(outcomes.labels, 4, seed=3)
    weights = outcomes.units.weights(8, torch.Generator().manual_seed(3)).view(4, 2, -1)

    def top(score):
        order = score.argsort(dim=1, descending=True, stable=True)
        return {(0, int(i)) for i in order[0, :2]} | {(1, int(i)) for i in order[1, :1]}

    def jaccard(one, other):
        return len(one & other) / len(one | other)

    for draw, labels in enumerate(dealt):
        one, other, both = slow_predictivity(above, labels).round(decimals=9)
        assert float(null.jaccard[draw, 0]) == pytest.approx(jaccard(top(one), top(other)))
        assert float(null.spearman[draw, 0]) == pytest.approx(spearman(one.flatten(), other.flatten()))
        found = []
        for weight in weights[draw]:
            rows = torch.arange(24).repeat_interleave(weight)
            again = slow_predictivity(above[:, rows], labels[rows])[-1].round(decimals=9)
            found.append(jaccard(top(again), top(both)))
        assert float(null.bootstrap[draw]) == pytest.approx(sum(found) / 2)


def test_the_neighbours_of_what_permuted_labels_choose_are_looked_for_as_those_of_the_set():
    _, outcomes = random_outcomes()
    null = permuted_stability(outcomes, {0: 2, 1: 3}, n_permutations=6, seed=3)
    acts = torch.randn(24, 2, 13, generator=torch.Generator().manual_seed(5))
    found = _nearest_by_luck(acts, null)
    for draw, top in enumerate(null.tops):
        own = skn.NeuronSet.from_mask(top)
        assert own.counts_per_layer() == {0: 2, 1: 3}
        assert found[draw] == pytest.approx(nearest_outside(acts, own).correlation.abs().median(), abs=1e-6)
    assert permuted_stability(outcomes, {1: 12}, n_permutations=3).tops[:, 0].sum() == 0
    many = torch.zeros(2, 1, 300, dtype=torch.bool)
    many[:, 0, :250] = True
    wide = torch.randn(40, 1, 300, generator=torch.Generator().manual_seed(5))
    looked = _nearest_by_luck(wide, dataclasses.replace(null, tops=many))
    every = nearest_outside(wide, skn.NeuronSet.from_mask(many[0])).correlation.abs()
    some = every[np.linspace(0, 249, 100).round().astype(int)].median()
    assert looked.tolist() == pytest.approx([some, some], abs=1e-6)


def test_so_few_units_as_allow_no_other_labels_have_no_null():
    _, outcomes = random_outcomes(n=4)
    few = RuleOutcomes(outcomes.above, outcomes.labels, 13, units=Units(torch.tensor([0, 1, 0, 1]), "group"))
    assert len(permuted_stability(few, {0: 2}).bootstrap) == 1
    one = RuleOutcomes(
        outcomes.above, outcomes.labels, 13, units=Units(torch.zeros(4, dtype=torch.int64), "group")
    )
    assert len(permuted_stability(one, {0: 2}).bootstrap) == 0


def test_what_cannot_be_diagnosed_is_refused(gpt2):
    prompt = prompt_for("gpt2")
    scores = skn.score_neurons(gpt2, prompt, TASK, run=QUIET)
    with pytest.raises(ValueError, match="kept no outcomes; score this task with keep_outcomes=True"):
        skn.studies.diagnose(gpt2, prompt, TASK, scores.top(1), scores=scores)
    other = skn.score_neurons(gpt2, prompt_for("gpt2", seed=5), TASK, keep_outcomes=True, run=QUIET)
    with pytest.raises(ValueError, match="prompts that are not the 1 given"):
        skn.studies.diagnose(gpt2, prompt, TASK, scores.top(1), scores=other)
    with pytest.raises(ValueError, match="at least one neuron"):
        skn.studies.diagnose(gpt2, prompt, TASK, skn.NeuronSet([], []))
    with pytest.raises(ValueError, match=r"layer must be in \[0, 2\)"):
        skn.studies.diagnose(gpt2, prompt, TASK, skn.NeuronSet([2], [0]))


def test_readings_of_the_bare_text_are_diagnosed_too(gpt2):
    scores = skn.score_neurons(gpt2, None, TASK, positions="mean", keep_outcomes=True, run=QUIET)
    found = skn.studies.diagnose(gpt2, None, TASK, scores.top(2), scores=scores, n_bootstrap=20)
    assert len(found.prompts) == 0 and len(found.twins) == 4 and len(found.null) == 99


def test_scores_of_texts_cut_to_another_length_are_refused(gpt2):
    prompt = prompt_for("gpt2")
    scores = skn.score_neurons(gpt2, prompt, TASK, keep_outcomes=True, max_length=7, run=QUIET)
    with pytest.raises(
        ValueError, match="were measured on texts cut to 7 tokens, which here are cut to 48 tokens"
    ):
        skn.studies.diagnose(gpt2, prompt, TASK, scores.top(2), scores=scores)
    found = skn.studies.diagnose(
        gpt2, prompt, TASK, scores.top(2), scores=scores, max_length=7, n_bootstrap=9
    )
    again = skn.studies.diagnose(gpt2, prompt, TASK, scores.top(2), max_length=7, n_bootstrap=9, run=QUIET)
    assert found.settings == again.settings and found.settings["max_length"] == 7
    pd.testing.assert_frame_equal(found.twins, again.twins)
    tuned = skn.SoftPrompt(prompt.embedding, placement="suffix", max_length=7)
    alike = skn.studies.diagnose(gpt2, tuned, TASK, scores.top(2), n_bootstrap=9, run=QUIET)
    pd.testing.assert_frame_equal(found.twins, alike.twins)
    whole = skn.studies.diagnose(gpt2, prompt, TASK, scores.top(2), n_bootstrap=9, run=QUIET)
    assert not found.twins.equals(whole.twins)


def test_it_comes_back_from_its_file_to_the_last_bit_and_shows_itself_in_a_line(gpt2, tmp_path):
    for prompts in ([prompt_for("gpt2", seed=seed) for seed in range(2)], prompt_for("gpt2")):
        neurons = skn.NeuronSet.from_pairs([(0, 1), (1, 2)])
        found = skn.studies.diagnose(gpt2, prompts, TASK, neurons, n_bootstrap=20, run=QUIET)
        again = skn.studies.Diagnosis.load(found.save(tmp_path / "diagnosis.json"))
        assert again.to_dataframe().equals(found.to_dataframe()) and again.settings == found.settings
        assert again.twins.equals(found.twins) and torch.equal(again.jaccard, found.jaccard)
        assert again.null.equals(found.null)
    assert repr(found).startswith("Diagnosis(n_neurons=2, n_prompt_pairs=0, jaccard=")
    assert "bootstrap Jaccard" in found._repr_html_()
