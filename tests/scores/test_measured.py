"""Scores are used where they were measured: same model, same prompts, texts cut to the same length."""

from dataclasses import replace

import pytest
import tiny
import torch
from toy import QUIET, TASK, prompt_for

import tl_skillneurons as skn
from tl_skillneurons.scores.measured import require_measured_here

SHORT = 6


@pytest.fixture(scope="module")
def gpt2():
    return tiny.bridge("gpt2", dtype=torch.float64)


@pytest.fixture(scope="module")
def prompt():
    return prompt_for("gpt2")


@pytest.fixture(scope="module")
def short(gpt2, prompt):
    return skn.score_neurons(gpt2, prompt, TASK, max_length=SHORT, run=QUIET)


def test_scores_record_what_texts_were_cut_to(gpt2, prompt, short):
    assert short.provenance["max_length"] == SHORT
    whole = skn.score_neurons(gpt2, prompt, TASK, run=QUIET)
    assert whole.provenance["max_length"] == gpt2.cfg.n_ctx
    assert not torch.equal(short.correct, whole.correct)  # so that a mix-up would change numbers


@pytest.mark.parametrize("of_a_set", [False, True])
def test_scores_of_shortened_texts_are_not_used_on_whole_ones(gpt2, prompt, short, of_a_set):
    neurons = short.top(2) if of_a_set else None
    message = (
        f"measured on texts cut to 6 tokens, which here are cut to {gpt2.cfg.n_ctx} tokens; give max_length=6, or "
        f"scores measured with max_length={gpt2.cfg.n_ctx}"
    )
    with pytest.raises(ValueError, match=message):
        skn.scores.evaluate_rules(gpt2, prompt, TASK, short, neurons, run=QUIET)
    at_its_length = skn.scores.evaluate_rules(gpt2, prompt, TASK, short, neurons, max_length=SHORT, run=QUIET)
    assert at_its_length.provenance["max_length"] == SHORT


def test_a_prompt_brings_the_length_it_was_tuned_with(gpt2, short):
    tuned = prompt_for("gpt2", max_length=SHORT)
    scores = skn.score_neurons(gpt2, tuned, TASK, run=QUIET)
    assert scores.provenance["max_length"] == SHORT and torch.equal(scores.correct, short.correct)
    require_measured_here(scores, gpt2, [tuned])
    with pytest.raises(ValueError, match="cut to 6 tokens, which here are cut to 5 tokens"):
        require_measured_here(scores, gpt2, tuned, max_length=5)
    with pytest.raises(ValueError, match=r"tuned with max_length=6 and .*; give max_length"):
        skn.score_neurons(gpt2, [tuned, prompt_for("gpt2", seed=1)], TASK, run=QUIET)


def test_other_scores_are_compared_alike(gpt2, prompt):
    auc = skn.scores.score_labels(gpt2, prompt, TASK, ["auc"], max_length=SHORT, run=QUIET)["auc"]
    require_measured_here(auc, gpt2, prompt, max_length=SHORT)
    with pytest.raises(ValueError, match="give max_length=6"):
        require_measured_here(auc, gpt2, prompt)


def test_scores_measured_at_different_lengths_are_not_joined(gpt2, prompt, short):
    whole = skn.score_neurons(gpt2, prompt, TASK, run=QUIET)
    with pytest.raises(
        ValueError, match=f"measured alike; they differ in max_length: 6 there, {gpt2.cfg.n_ctx} now"
    ):
        skn.NeuronScores.of_prompts([short, whole])


def test_scores_made_by_hand_say_nothing_of_a_length_and_are_taken_as_they_are(gpt2, prompt, short):
    require_measured_here(replace(short, provenance={}), gpt2, prompt)


def test_other_prompts_are_refused(gpt2, prompt, short):
    for others in ([], [prompt, prompt], prompt_for("gpt2", seed=1), None):
        with pytest.raises(ValueError, match=r"the scores are of 1 prompts that are not the . given"):
            require_measured_here(short, gpt2, others, max_length=SHORT)


def test_scores_of_another_model_are_refused_by_shape_and_told_by_name(gpt2, prompt, short):
    other = {**short.provenance, "model": {**short.provenance["model"], "name": "other"}}
    with pytest.warns(UserWarning, match="scores are of another model \\(name: 'other' then, 'tiny' here\\)"):
        require_measured_here(replace(short, provenance=other), gpt2, prompt, max_length=SHORT)
    cut = {name: getattr(short, name)[..., :40] for name in ("baseline", "std", "mean_abs", "correct")}
    with pytest.raises(ValueError, match=r"\[layer, neuron\] = \[2, 40\], tiny has \[2, 48\]"):
        require_measured_here(replace(short, **cut), gpt2, prompt, max_length=SHORT)
