"""What each prompt position is and does: by hand on tiny models, and planted tokens that must show."""

import dataclasses

import numpy as np
import pandas as pd
import pytest
import tiny
import torch
from scipy import stats
from toy import QUIET, TASK, prompt_for

import tl_skillneurons as skn
from tl_skillneurons.studies.prompt_description import _agreement, _permuted, _position_rows


@pytest.fixture(scope="module")
def models():
    return {family: tiny.bridge(family) for family in ("gpt2", "bert")}


def prompts_of(family):
    made = []
    for seed in range(2):
        rows = prompt_for(family, seed=seed).embedding.detach().float()
        placement = "prefix" if family == "bert" else "suffix"
        made.append(skn.SoftPrompt(rows, placement=placement, initial=torch.zeros_like(rows), seed=seed))
    return made


def report_accuracy(model, prompt):
    return skn.PromptedModel(model, prompt, TASK.label_words).accuracy(TASK)


@pytest.mark.parametrize("family", ["gpt2", "bert"])
def test_every_number_of_a_position_is_what_one_would_measure_by_hand(models, family):
    model, prompts = models[family], prompts_of(family)
    scores = skn.score_neurons(model, prompts, TASK, run=QUIET)
    found = skn.studies.describe_prompt(model, prompts, TASK, scores, amount=5, run=QUIET)
    frame = found.positions
    n = 4 if family == "bert" else 3
    assert len(frame) == 2 * n and frame.token.tolist()[:n] == ["mask", "<v0>", "<v1>", "<v2>"][-n:]
    assert frame.groupby("prompt").peak_share.sum().tolist() == pytest.approx([1, 1])
    top = scores.top(5)
    each = torch.maximum(scores.accuracy, 1 - scores.accuracy)[1, top.layer, :, top.index]
    shares = torch.zeros(n)
    for row in each:
        ties = (row == row.max()).nonzero().flatten()
        shares[ties] += 1 / len(ties) / len(top)
    assert frame[frame.prompt == 1].peak_share.tolist() == pytest.approx(shares.tolist())
    row = frame[(frame.prompt == 1) & (frame.token == "<v1>")].iloc[0]
    rows = prompts[1].embedding.detach()
    kinds = {"placement": prompts[1].placement}
    assert row.without == report_accuracy(model, skn.SoftPrompt(rows[[0, 2]], **kinds))
    back = rows.clone()
    back[1] = 0
    assert row["initial"] == report_accuracy(model, skn.SoftPrompt(back, **kinds))
    assert found.prompts.accuracy[1] == report_accuracy(model, prompts[1])
    assert found.prompts.permuted_low[1] <= found.prompts.permuted[1] <= found.prompts.permuted_high[1]
    seen = skn.attention.attention_over_task(model, prompts[1], TASK, run=QUIET)
    at = int(row.position)
    assert row.to_text == pytest.approx(float(seen.given[:, :, :, at, 0].mean()), abs=1e-6)
    assert row.from_text == pytest.approx(float(seen.received[:, :, :, at].mean()), abs=1e-6)
    values = torch.maximum(scores.accuracy, 1 - scores.accuracy)[1, :, at].flatten().numpy()
    quartiles = np.quantile(values, [0.25, 0.75])
    assert [row.low_quartile, row.high_quartile] == pytest.approx(quartiles.tolist())
    assert row.low_quartile <= row["median"] <= row.high_quartile < row.best
    [agreement] = found.agreement.to_dict("records")
    assert agreement["n_positions"] == n and agreement["peak_share"] >= -1
    for name in ("peak_share", "best", "median", "without", "norm_percentile", "to_text", "from_text"):
        one, other = (frame[frame.prompt == k][name].to_numpy() for k in range(2))
        known = ~np.isnan(one)
        if np.ptp(one[known]) and np.ptp(other[known]):
            assert agreement[name] == pytest.approx(stats.spearmanr(one[known], other[known]).statistic)
        else:
            assert np.isnan(agreement[name])


def test_what_prompts_agree_on_stands_beside_what_they_agree_on_under_permuted_labels(models):
    model, prompts = models["bert"], prompts_of("bert")
    scores = skn.score_neurons(model, prompts, TASK, keep_outcomes=True, run=QUIET)
    quick = {"amount": 5, "n_shuffles": 1, "attention": False, "run": QUIET, "seed": 2}
    [row] = skn.studies.describe_prompt(model, prompts, TASK, scores, **quick).agreement.to_dict("records")
    units = scores.outcomes.units
    drawn = units.permuted(scores.outcomes.labels, 99, seed=2)
    found = []
    for labels in drawn[:12]:  # by hand, the best of each position
        best = []
        for prompt in range(2):
            above = torch.stack([scores.outcomes.unpack(prompt, k, slice(0, 48)) for k in range(2)])
            right = (above == labels[None, :, None, None]).double().mean(1)
            best.append(torch.maximum(right, 1 - right).amax((0, 2)).numpy())
        constant = any(np.ptp(one) == 0 for one in best)
        found.append(np.nan if constant else stats.spearmanr(*best).statistic)
    every = [_agreement(_position_rows(one, 5)).best[0] for one in _permuted(scores, 2)]
    np.testing.assert_allclose(every[:12], found, atol=1e-9)
    known = np.array(every)[~np.isnan(every)]
    assert len(every) == 99 and row["null_best"] == pytest.approx(known.mean())
    reached = (known >= row["best"] - 1e-12).sum()
    assert row["p_best"] == pytest.approx((1 + reached) / (1 + len(known)))
    bare = dataclasses.replace(scores, outcomes=None)
    [without] = skn.studies.describe_prompt(model, prompts, TASK, bare, **quick).agreement.to_dict("records")
    assert np.isnan(without["p_best"]) and without["best"] == row["best"]


def test_a_token_that_is_a_word_is_named_and_a_random_one_is_no_nearer_than_chance(models):
    model = models["gpt2"]
    word = tiny.VOCABULARY["good"]
    rows = torch.stack([2 * model.W_E[word], torch.randn(32, generator=torch.Generator().manual_seed(3))])
    prompt = skn.SoftPrompt(rows, placement="suffix")
    scores = skn.score_neurons(model, prompt, TASK, run=QUIET)
    found = skn.studies.describe_prompt(model, prompt, TASK, scores, amount=5, attention=False, run=QUIET)
    frame = found.positions
    assert found.agreement.empty and "to_text" not in found.agreement and "best" in found.agreement
    same, random = frame.iloc[0], frame.iloc[1]
    assert same.nearest.split()[0] == "good" and same.cosine == pytest.approx(1)
    assert same.distance_percentile == 0 and random.cosine < 0.7
    assert abs(random.cosine - random.chance_cosine) < 0.25
    assert "to_text" not in frame and "initial" not in frame


def test_a_planted_position_takes_all_peaks(models):
    prompt = prompts_of("gpt2")[0]
    scores = skn.score_neurons(models["gpt2"], prompt, TASK, run=QUIET)
    correct = scores.correct.clone()
    correct[:, :, 2] = 15
    planted = dataclasses.replace(scores, correct=correct)
    frame = skn.studies.describe_prompt(models["gpt2"], prompt, TASK, planted, amount=5, run=QUIET).positions
    assert frame.peak_share.tolist() == [0, 0, 1] and frame.uniform.tolist() == [1 / 3] * 3


def test_scores_that_do_not_go_with_the_prompts_are_refused(models):
    prompts = prompts_of("gpt2")
    scores = skn.score_neurons(models["gpt2"], prompts[0], TASK, run=QUIET)
    with pytest.raises(ValueError, match="prompts that are not the 1 given"):
        skn.studies.describe_prompt(models["gpt2"], prompts[1], TASK, scores)
    at_text = skn.score_neurons(models["gpt2"], prompts[0], TASK, positions="mean", run=QUIET)
    with pytest.raises(ValueError, match="must be read at prompt positions, got positions='mean'"):
        skn.studies.describe_prompt(models["gpt2"], prompts[0], TASK, at_text)
    short = skn.score_neurons(models["gpt2"], prompts[0], TASK, max_length=7, run=QUIET)
    with pytest.raises(
        ValueError, match="measured on texts cut to 7 tokens, which here are cut to 48 tokens"
    ):
        skn.studies.describe_prompt(models["gpt2"], prompts[0], TASK, short)
    with pytest.raises(ValueError, match="at least one soft prompt, got none"):
        skn.studies.describe_prompt(models["gpt2"], [], TASK, scores)


def test_texts_are_cut_to_the_length_that_the_prompt_was_tuned_with(models):
    model, prompt = models["gpt2"], prompts_of("gpt2")[0]
    tuned = skn.SoftPrompt(prompt.embedding, placement="suffix", max_length=7)
    options = {"amount": 5, "n_shuffles": 2, "run": QUIET}
    scores = skn.score_neurons(model, tuned, TASK, run=QUIET)
    found = skn.studies.describe_prompt(model, tuned, TASK, scores, **options)
    kinds = {"placement": "suffix", "max_length": 7}
    rest = skn.SoftPrompt(prompt.embedding[[0, 2]], **kinds)
    assert found.positions.without[1] == report_accuracy(model, rest)
    assert found.prompts.accuracy[0] == report_accuracy(model, tuned)
    given = skn.studies.describe_prompt(
        model,
        prompt,
        TASK,
        skn.score_neurons(model, prompt, TASK, max_length=7, run=QUIET),
        max_length=7,
        **options,
    )
    shown = [column for column in found.positions if column != "initial"]
    pd.testing.assert_frame_equal(given.positions[shown], found.positions[shown])


def test_a_description_shows_itself_and_survives_a_file(models, tmp_path):
    prompts = prompts_of("gpt2")
    scores = skn.score_neurons(models["gpt2"], prompts, TASK, run=QUIET)
    found = skn.studies.describe_prompt(
        models["gpt2"], prompts, TASK, scores, amount=5, n_shuffles=2, attention=False, run=QUIET
    )
    assert repr(found).startswith("PromptDescription(n_prompts=2, n_positions=6, accuracy=0.")
    assert "peak_share" in found._repr_html_() and found.to_dataframe() is not found.positions
    read = skn.studies.PromptDescription.load(found.save(tmp_path / "found.json"))
    for name in ("positions", "prompts", "agreement"):
        pd.testing.assert_frame_equal(getattr(read, name), getattr(found, name))
    assert read.settings == found.settings and read.settings["n_shuffles"] == 2
