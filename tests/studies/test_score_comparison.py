"""Scores compared with each other, and with what ablating their tops does."""

import pytest
import tiny
import torch
from toy import QUIET, TASK, prompt_for

import tl_skillneurons as skn


@pytest.fixture(scope="module")
def models():
    return {family: tiny.bridge(family, dtype=torch.float64) for family in ("gpt2", "bert")}


def test_scores_are_compared_on_all_neurons_and_on_their_tops(models):
    model, prompt = models["gpt2"], prompt_for("gpt2")
    scores = {"predictivity": skn.score_neurons(model, prompt, TASK, run=QUIET)}
    scores |= skn.scores.score_labels(model, prompt, TASK, ["accuracy", "auc"], run=QUIET)
    frame = skn.studies.compare_scores(scores, amount=4).agreement
    assert list(zip(frame.one, frame.other, strict=True)) == [
        ("predictivity", "accuracy"),
        ("predictivity", "auc"),
        ("accuracy", "auc"),
    ]
    same = frame.iloc[0]
    assert same.spearman == pytest.approx(1) and same.n_shared == 8 and same.jaccard == 1
    assert frame.spearman[1] == pytest.approx(frame.spearman[2]) and 0 < frame.spearman[1] < 1
    assert (frame.chance_jaccard < 0.1).all()


def test_panels_tell_which_score_foretells_the_effect(models):
    model, prompt = models["gpt2"], prompt_for("gpt2")
    scores = {"predictivity": skn.score_neurons(model, prompt, TASK, run=QUIET)}
    scores |= skn.scores.score_labels(model, prompt, TASK, ["auc"], run=QUIET)
    panels = {
        name: skn.measure_effects(
            model, prompt, TASK, score.top(2), interventions=("zero",), n_random=19, run=QUIET
        )
        for name, score in scores.items()
    }
    effects = skn.studies.compare_scores(scores, amount=2, panels=panels).effects
    assert set(effects.score) == {"predictivity", "auc"} and effects.change.is_monotonic_increasing
    for row in effects.itertuples():
        frame = panels[row.score].to_dataframe()
        own = frame[(frame.metric == "logit_diff") & (frame.intervention == row.intervention)].iloc[0]
        assert row.change == pytest.approx(own.value - own.intact) and row.random_median == own.random_median
    with pytest.raises(ValueError, match="panels must go by the names of the scores"):
        skn.studies.compare_scores(scores, amount=2, panels={"other": panels["auc"]})
