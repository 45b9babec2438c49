"""Scores of a model's neurons by a task's labels, against the scores of its activations; their nulls."""

from dataclasses import replace

import pytest
import tiny
import torch
from toy import QUIET, TASK, prompt_for, read

import tl_skillneurons as skn
from tl_skillneurons.scores import kinds
from tl_skillneurons.stats.permutation import permuted_labels


@pytest.fixture(scope="module")
def models():
    return {family: tiny.bridge(family, dtype=torch.float64) for family in ("gpt2", "bert")}


@pytest.mark.parametrize("family", ["gpt2", "bert"])
def test_scores_of_a_model_are_those_of_its_activations_whatever_the_memory_and_batches(models, family):
    model, prompt = models[family], prompt_for(family)
    names = list(kinds.KINDS)
    run = replace(QUIET, batch_size=4)
    found = skn.scores.score_labels(model, prompt, TASK, names, memory=1, run=run)
    split = TASK.split("select")
    acts, labels = read(model, prompt, split["text"]), torch.tensor(split["label"])
    flat, rows = acts.flatten(1), labels[None]
    for name in ("auc", "mean_difference", "pearson", "spearman"):
        expected = kinds.KINDS[name].score(flat, rows)[0].view(acts.shape[1:])
        torch.testing.assert_close(found[name].values[0], expected)
    predictivity = skn.score_neurons(model, prompt, TASK, run=QUIET)
    torch.testing.assert_close(found["accuracy"].values, predictivity.accuracy - 0.5)
    torch.testing.assert_close(found["accuracy"].score + 0.5, predictivity.predictivity)
    assert set(found["accuracy"].top(3)) == set(predictivity.top(3))
    base = TASK.split("baseline")
    limit = kinds.best_threshold(read(model, prompt, base["text"]).flatten(1), torch.tensor(base["label"]))
    expected = kinds.accuracy(flat > limit, rows)[0].view(acts.shape[1:])
    near = (flat - limit).abs().amin(0) > 1e-12  # where rounding of a batch can't move an activation across
    got = found["best_threshold"].values[0]
    torch.testing.assert_close(got.flatten()[near], expected.flatten()[near])
    again = skn.scores.score_labels(model, prompt, TASK, ["auc"], run=QUIET)["auc"]
    torch.testing.assert_close(again.values, found["auc"].values)


def test_the_null_of_a_score_is_that_of_its_permuted_labels(models):
    prompts = [prompt_for("gpt2"), prompt_for("gpt2", seed=1)]
    found = skn.scores.score_labels(
        models["gpt2"], prompts, TASK, ["auc"], n_permutations=30, seed=2, run=QUIET
    )["auc"]
    split = TASK.split("select")
    drawn = permuted_labels(torch.tensor(split["label"]), 30, seed=2)
    acts = torch.stack([read(models["gpt2"], prompt, split["text"]) for prompt in prompts])
    best = torch.stack([kinds.auc(a.flatten(1), drawn).view(30, 2, 3, 48).abs().amax(2) for a in acts])
    torch.testing.assert_close(found.null.largest[:2], best.flatten(2).amax(2))
    torch.testing.assert_close(found.null.largest[2], best.mean(0).flatten(1).amax(1))
    reached = (best.mean(0) >= found.score - 1e-9).sum(0)
    torch.testing.assert_close(found.null.p_value[2], (1 + reached.double()) / 31)


def test_a_score_without_a_null_calls_nothing_significant_and_unknown_scores_are_named(models):
    found = skn.scores.score_labels(models["gpt2"], prompt_for("gpt2"), TASK, ["auc"], run=QUIET)
    with pytest.raises(ValueError, match="auc has no permutation null"):
        found["auc"].significant()
    with pytest.raises(ValueError, match=r"kinds must be one of .* did you mean 'auc'"):
        skn.scores.score_labels(models["gpt2"], prompt_for("gpt2"), TASK, ["acu"], run=QUIET)
