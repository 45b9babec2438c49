"""Scores compared with each other, and with what ablating their tops does."""

import io

import drawn
import pytest
import tiny
import torch
from rich.console import Console
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
    assert (frame.chance_jaccard < 0.1).all() and set(frame.permuted) == {"neurons"}


def test_scores_that_kept_their_answers_are_compared_with_permuted_labels_and_never_with_independence(models):
    """Neurons in groups that say the same: scores of unrelated labels share tops, and independence calls them alike."""
    alike = []
    for seed in range(12):
        generator = torch.Generator().manual_seed(seed)
        above = (torch.rand(60, 1, 4, generator=generator) > 0.5).repeat_interleave(
            16, 2
        )  # 64 neurons, 4 voices
        one, other = (drawn.answered(above, torch.randperm(60, generator=generator) % 2) for _ in range(2))
        found = skn.studies.compare_scores({"a": one, "b": other}, amount=16, n_permutations=39, seed=seed)
        same = skn.scores.score_agreement(one, other, 16, n_permutations=39, seed=seed).row(-1)
        row = found.agreement.iloc[0]
        assert {name: row[name] for name in same} == same and row.permuted == "labels"
        alike.append((row.p_shared <= 0.05, one.top(16).overlap(other.top(16)).p_value <= 0.05))
    assert found.settings["units"] == ["60 units (text)"] and "labels of each side in turn" in repr(found)
    by_labels, by_independence = (sum(column) for column in zip(*alike, strict=True))
    assert by_labels == 0 and by_independence >= 2  # of 12, where nothing is alike
    with pytest.raises(ValueError, match="n_permutations must be at least 19"):
        skn.studies.compare_scores({"a": one, "b": other}, n_permutations=5)


def test_where_one_side_alone_kept_its_answers_the_printed_result_says_that_p_is_too_small(models):
    model, prompt = models["gpt2"], prompt_for("gpt2")
    scores = {"predictivity": skn.score_neurons(model, prompt, TASK, keep_outcomes=True, run=QUIET)}
    scores |= skn.scores.score_labels(model, prompt, TASK, ["auc"], run=QUIET)
    found = skn.studies.compare_scores(scores, amount=4, n_permutations=19)
    assert list(found.agreement.labels_of) == ["one side alone"] and "one side alone" in found._repr_html_()
    assert "permuted='labels of one side alone (p too small)'" in repr(found)
    alone = skn.scores.score_agreement(scores["predictivity"], scores["auc"], 4, n_permutations=19)
    assert "under permuted labels of one side alone of 15 units (text)" in repr(alone)
    tasks = io.StringIO()
    Console(width=200, file=tasks).print(
        skn.studies.compare_tasks(scores, amount=4, n_permutations=19).to_table()
    )
    assert "its labels alone were permuted: p too small" in tasks.getvalue()
    both = {"a": scores["predictivity"], "b": scores["predictivity"]}
    together = skn.studies.compare_scores(both, amount=4, n_permutations=19)
    assert (
        list(together.agreement.labels_of) == ["both sides together"] and together.agreement.p_value[0] == 1
    )


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
        assert row.neurons_chosen == own.neurons_chosen == "on other examples"
    with pytest.raises(ValueError, match="panels must go by the names of the scores"):
        skn.studies.compare_scores(scores, amount=2, panels={"other": panels["auc"]})
    fewer = {
        **panels,
        "auc": skn.measure_effects(model, prompt, TASK, scores["auc"].top(1), n_random=19, run=QUIET),
    }
    with pytest.raises(ValueError, match="the panels must be of equally large sets, got n_neurons"):
        skn.studies.compare_scores(scores, amount=2, panels=fewer)


def test_of_several_prompts_the_pooled_rows_are_compared(models):
    model, prompts = models["gpt2"], [prompt_for("gpt2", seed=seed) for seed in range(2)]
    scores = {"predictivity": skn.score_neurons(model, prompts, TASK, run=QUIET)}
    scores |= skn.scores.score_labels(model, prompts, TASK, ["auc"], run=QUIET)
    panel = skn.measure_effects(
        model, prompts, TASK, scores["auc"].top(2), interventions="zero", n_random=19, run=QUIET
    )
    effects = skn.studies.compare_scores(scores, amount=2, panels={"auc": panel}).effects
    pooled = panel.to_dataframe(each_prompt=False)
    own = pooled[pooled.metric == "logit_diff"].iloc[0]
    assert len(effects) == 1 and own.prompt == "pooled" and effects.change[0] == own.value - own.intact


def test_it_shows_itself_in_a_line_and_as_a_table():
    one, other = drawn.scores(seed=0), drawn.scores(seed=1)
    found = skn.studies.compare_scores({"one": one, "other": other}, amount=3)
    ends = [one.top(3), other.top(3)]
    assert found.agreement.n_shared[0] == len(ends[0] & ends[1])
    assert found.settings == {
        **{
            "scores": ["one", "other"],
            "amount": 3,
            "metric": "logit_diff",
            "n_permutations": 1000,
            "seed": 0,
        },
        "units": [],
    }
    assert found.to_dataframe().equals(found.agreement) and found.effects is None
    assert repr(found).startswith(
        "ScoreComparison(scores=['one', 'other'], amount=3, metric='logit_diff', n_permutations=1000, "
    )
    assert "chance_jaccard" in found._repr_html_()


@pytest.mark.parametrize(
    ("scores", "error", "message"),
    [
        ({"one": drawn.scores()}, ValueError, "give at least two scores by name"),
        ({"one": drawn.scores(), "other": drawn.scores(d_mlp=9)}, ValueError, "scores must be of one model"),
    ],
)
def test_scores_that_cannot_be_compared_are_refused(scores, error, message):
    with pytest.raises(error, match=message):
        skn.studies.compare_scores(scores)
