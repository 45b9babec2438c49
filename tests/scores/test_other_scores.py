"""Other scores and targets against numpy, scipy and slow loops; their nulls, and what is refused."""

import numpy as np
import pytest
import tiny
import torch
from scipy import stats
from toy import TASK, prompt_for

import tl_skillneurons as skn
from tl_skillneurons.scores import kinds as score_kinds

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
    torch.testing.assert_close(score_kinds.auc(acts, labels[None])[0], torch.from_numpy(expected))


def test_pearson_and_spearman_are_those_of_scipy_and_zero_for_a_constant(columns):
    acts, _ = columns
    target = torch.randn(N, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    for name, law in (("pearson", stats.pearsonr), ("spearman", stats.spearmanr)):
        found = score_kinds.CORRELATIONS[name](acts, target[None])[0]
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
    found = score_kinds.pearson(acts, target[None], weights.double())
    torch.testing.assert_close(found, score_kinds.pearson(acts[often], target[often][None]))


def test_mean_difference_is_cohens_d(columns):
    acts, labels = columns
    one, zero = acts[labels == 1], acts[labels == 0]
    pooled = ((len(one) - 1) * one.var(0) + (len(zero) - 1) * zero.var(0)) / (N - 2)
    expected = (one.mean(0) - zero.mean(0)) / pooled.sqrt()
    expected[2] = 0
    torch.testing.assert_close(score_kinds.mean_difference(acts, labels[None])[0], expected)


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
            assert float(score_kinds.accuracy(hit, rows)[row, column]) == pytest.approx(right - 0.5)
            assert float(score_kinds.balanced_accuracy(hit, rows)[row, column]) == pytest.approx(
                sum(sides) / 2 - 0.5
            )
            found = float(score_kinds.mutual_information(hit, rows)[row, column])
            assert abs(found) == pytest.approx(bits, abs=1e-12)
            assert bits < 1e-9 or (found > 0) == (sum(sides) > 1)


def test_the_best_threshold_makes_the_fewest_mistakes_of_all(columns):
    acts, labels = columns
    found = score_kinds.best_threshold(acts, labels)
    for column in range(6):
        values = acts[:, column]
        scored = {}
        for cut in sorted(values.tolist()):
            right = float(((values > cut) == labels.bool()).double().mean())
            scored[cut] = max(right, 1 - right)
        best = max(scored.values())
        assert float(found[column]) == min(cut for cut, s in scored.items() if s >= best - 1e-12)


@pytest.fixture(scope="module")
def models():
    return {family: tiny.bridge(family, dtype=torch.float64) for family in ("gpt2", "bert")}


@pytest.mark.parametrize("family", ["gpt2", "bert"])
def test_scores_of_a_model_are_those_of_its_activations_whatever_the_memory_and_batches(models, family):
    model, prompt = models[family], prompt_for(family)
    names = skn.scores.other_scores.LABEL_SCORES
    found = skn.scores.measure_scores(model, prompt, TASK, names, memory=1, batch_size=4, progress=False)
    split = TASK.split("select")
    acts, labels = read(model, prompt, split["text"]), torch.tensor(split["label"])
    flat, rows = acts.flatten(1), labels[None]
    for name in ("auc", "mean_difference", "pearson", "spearman"):
        expected = score_kinds.OF_VALUES[name](flat, rows)[0].view(acts.shape[1:])
        torch.testing.assert_close(found[name].values[0], expected)
    predictivity = skn.score_neurons(model, prompt, TASK, progress=False)
    torch.testing.assert_close(found["accuracy"].values, predictivity.accuracy - 0.5)
    torch.testing.assert_close(found["accuracy"].score + 0.5, predictivity.predictivity)
    assert set(found["accuracy"].top(3)) == set(predictivity.top(3))
    base = TASK.split("baseline")
    limit = score_kinds.best_threshold(
        read(model, prompt, base["text"]).flatten(1), torch.tensor(base["label"])
    )
    expected = score_kinds.accuracy(flat > limit, rows)[0].view(acts.shape[1:])
    near = (flat - limit).abs().amin(0) > 1e-12  # where rounding of a batch can't move an activation across
    got = found["best_threshold"].values[0]
    torch.testing.assert_close(got.flatten()[near], expected.flatten()[near])
    again = skn.scores.measure_scores(model, prompt, TASK, ["auc"], progress=False)["auc"]
    torch.testing.assert_close(again.values, found["auc"].values)


def test_the_null_of_a_score_is_that_of_its_permuted_labels(models):
    prompts = [prompt_for("gpt2"), prompt_for("gpt2", seed=1)]
    found = skn.scores.measure_scores(
        models["gpt2"], prompts, TASK, ["auc"], n_permutations=30, seed=2, progress=False
    )["auc"]
    split = TASK.split("select")
    drawn = skn.scores.null.permuted_labels(torch.tensor(split["label"]), 30, seed=2)
    acts = torch.stack([read(models["gpt2"], prompt, split["text"]) for prompt in prompts])
    best = torch.stack([score_kinds.auc(a.flatten(1), drawn).view(30, 2, 3, 48).abs().amax(2) for a in acts])
    torch.testing.assert_close(found.null.largest[:2], best.flatten(2).amax(2))
    torch.testing.assert_close(found.null.largest[2], best.mean(0).flatten(1).amax(1))
    reached = (best.mean(0) >= found.score - 1e-9).sum(0)
    torch.testing.assert_close(found.null.p_value[2], (1 + reached.double()) / 31)


def test_a_planted_target_is_found_significant_and_kept_in_the_file(models, tmp_path):
    model, prompt = models["bert"], prompt_for("bert")
    texts = [row["text"] for row in tiny.sentences(60, seed=9)]
    acts = read(model, prompt, texts)
    noise = torch.randn(60, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    target = acts[:, 1, 2, 7] + 0.3 * acts[:, 1, 2, 7].std() * noise
    found = skn.scores.correlate_neurons(
        model, prompt, texts, target, n_permutations=99, target="rating", role="report", progress=False
    )
    expected = np.corrcoef(acts[:, 1, 2, 7], target)[0, 1]
    assert float(found.values[0, 1, 2, 7]) == pytest.approx(expected, abs=1e-9)
    assert (1, 7) in found.significant()
    assert found.direction[1, 7] == 1
    back = skn.scores.NeuronStatistic.load(found.save(tmp_path / "rating.safetensors"))
    assert torch.equal(back.values, found.values) and torch.equal(back.null.p_family, found.null.p_family)
    assert (back.name, back.role, back.n_examples) == ("pearson", "report", 60)
    assert back.provenance["target"] == "rating" and "p_family" in back.to_dataframe()
    with pytest.raises(ValueError, match="holds a NeuronStatistic, expected a NeuronScores"):
        skn.NeuronScores.load(tmp_path / "rating.safetensors")


def test_the_models_own_answers_are_targets(models):
    model, prompt = models["gpt2"], prompt_for("gpt2")
    split = TASK.split("select")
    with torch.no_grad():
        logits = skn.PromptedModel(model, prompt, TASK.label_words).class_logits(split["text"])
    p = logits.softmax(1)
    right = p[torch.arange(len(p)), split["label"]]
    for what, expected in {
        "confidence": p.amax(1),
        "probability": right,
        "loss": -right.log(),
        "logit_diff": logits[:, 1] - logits[:, 0],
    }.items():
        torch.testing.assert_close(skn.scores.answer_targets(model, prompt, TASK, what), expected.double())
    targets = skn.scores.answer_targets(model, prompt, TASK, "loss")
    found = skn.scores.correlate_neurons(
        model, prompt, list(split["text"]), targets, kind="spearman", progress=False
    )
    assert found.values.abs().max() <= 1 and found.name == "spearman"


@pytest.mark.parametrize(
    "targets, settings, message",
    [
        ([1.0] * 3, {}, "target is 1 for every example"),
        ([1.0, float("nan"), 2.0], {}, "targets must be finite, got nan for example 1"),
        ([1.0, 2.0], {}, r"one number for each of 3 texts, got shape \(2,\)"),
        ([1.0, 2.0, 3.0], {"weights": [0, 0, 0]}, "weights sum to zero"),
        ([1.0, 2.0, 3.0], {"weights": [1, -1, 0]}, "at least 0 for each of 3 texts"),
        ([1.0, 1.0, 3.0], {"weights": [1, 1, 0]}, "target is 1 for every example"),
        ([1.0, 2.0, 3.0], {"n_permutations": 99}, "3 examples have too few orders for 99 permutations"),
        ([1.0, 2.0, 3.0], {"kind": "kendall"}, "kind must be one of 'pearson', 'spearman'"),
    ],
)
def test_targets_and_weights_that_make_no_sense_are_refused(models, targets, settings, message):
    texts = ["the film was good", "a dull plot", "bad music"]
    with pytest.raises(ValueError, match=message):
        skn.scores.correlate_neurons(
            models["gpt2"], prompt_for("gpt2"), texts, targets, progress=False, **settings
        )


def test_activations_that_never_change_are_refused(models):
    with pytest.raises(ValueError, match="every neuron's activation is the same for every example"):
        skn.scores.correlate_neurons(
            models["gpt2"], prompt_for("gpt2"), ["the film"] * 3, [1, 2, 3], batch_size=3, progress=False
        )


def test_a_score_without_a_null_calls_nothing_significant_and_unknown_scores_are_named(models):
    found = skn.scores.measure_scores(models["gpt2"], prompt_for("gpt2"), TASK, ["auc"], progress=False)
    with pytest.raises(ValueError, match="auc has no permutation null"):
        found["auc"].significant()
    with pytest.raises(ValueError, match=r"scores must be one of .* did you mean 'auc'"):
        skn.scores.measure_scores(models["gpt2"], prompt_for("gpt2"), TASK, ["acu"], progress=False)
