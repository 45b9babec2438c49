"""Pictures show the scores and the level of luck that the numbers have."""

import pytest
import tiny
import torch
from toy import QUIET, TASK, prompt_for

import tl_skillneurons as skn


@pytest.fixture(scope="module")
def gpt2():
    return tiny.bridge("gpt2")


def test_the_picture_has_each_layers_best_neuron_and_the_level_of_the_null(gpt2):
    scores = skn.score_neurons(gpt2, prompt_for("gpt2"), TASK, n_permutations=99, run=QUIET)
    figure = skn.plot_scores(scores)
    best = figure.data[-1]
    assert best.name == "best neuron" and list(best.y) == scores.predictivity.amax(1).tolist()
    assert list(best.customdata) == scores.predictivity.argmax(1).tolist()
    assert figure.layout.shapes[0].y0 == scores.null.level()
    assert "99 permutations" in figure.layout.annotations[0].text
    assert "15 examples of role select" in figure.layout.title.text


def test_without_a_null_predictivity_shows_its_bound_and_other_scores_none(gpt2):
    scores = skn.score_neurons(gpt2, prompt_for("gpt2"), TASK, run=QUIET)
    assert skn.plot_scores(scores).layout.shapes[0].y0 == scores.chance_level().threshold
    [auc] = skn.scores.score_labels(gpt2, prompt_for("gpt2"), TASK, ["auc"], run=QUIET).values()
    figure = skn.plot_scores(auc)
    assert not figure.layout.shapes and figure.layout.yaxis.title.text == "auc"
    torch.testing.assert_close(torch.tensor(figure.data[0].y), auc.score.quantile(0.5, dim=1).float())
