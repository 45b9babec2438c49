"""Scores of activations that stand ready, against scipy and against scores of the model that gave them."""

import pytest
import tiny
import torch
from scipy import stats
from toy import QUIET, TASK, prompt_for

import tl_skillneurons as skn

LABELS = torch.tensor([0, 1] * 10)
TEXTS = [f"text {i}" for i in range(20)]


@pytest.fixture(scope="module")
def planted():
    """Neuron 2 of layer 1 says the label; layer 0 has three neurons only."""
    activations = torch.randn(20, 2, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    activations[:, 1, 2] = -5.0 * LABELS
    activations[:, 0, 3:] = torch.nan
    return activations


def test_the_planted_neuron_alone_is_significant_and_every_area_is_scipys(planted):
    found = skn.scores.score_activations(planted, LABELS, TEXTS, n_permutations=200)
    assert list(found.significant()) == [(1, 2)]
    assert float(found.null.p_family[-1, 1, 2]) == pytest.approx(1 / 201)
    for layer, index in [(0, 0), (0, 2), (1, 2), (1, 4)]:
        acts = planted[:, layer, index]
        area = stats.mannwhitneyu(acts[LABELS == 1], acts[LABELS == 0]).statistic / 100
        assert float(found.values[0, layer, 0, index]) == pytest.approx(2 * area - 1)
    assert found.values[0, 0, 0, 3:].isnan().all()
    pearson = skn.scores.score_activations(planted, LABELS.bool(), TEXTS, "pearson")
    expected = stats.pearsonr(planted[:, 1, 0], LABELS).statistic
    assert float(pearson.values[0, 1, 0, 0]) == pytest.approx(expected)


def test_scores_of_a_models_activations_are_the_models_scores_and_know_who_chose():
    model, prompt, split = tiny.bridge("gpt2", dtype=torch.float64), prompt_for("gpt2"), TASK.split("select")
    options = {"n_permutations": 30, "seed": 2}
    expected = skn.scores.score_labels(
        model, prompt, TASK, ["auc"], positions="readout", run=QUIET, **options
    )["auc"]
    texts = list(split["text"])
    acts = skn.prompts.neuron_activations(model, prompt, texts, positions="readout")
    units = TASK.units("select")
    found = skn.scores.score_activations(acts, torch.tensor(split["label"]), texts, units=units, **options)
    torch.testing.assert_close(found.values, expected.values)
    torch.testing.assert_close(found.null.largest, expected.null.largest)
    with pytest.raises(ValueError, match="chose"):
        skn.scores.evaluate_rules(
            model,
            prompt,
            TASK,
            skn.score_neurons(model, prompt, TASK, run=QUIET),
            found.top(2),
            role="select",
            run=QUIET,
        )


def test_equal_texts_are_one_unit(planted):
    twice = torch.cat([planted, planted])
    found = skn.scores.score_activations(twice, torch.cat([LABELS, LABELS]), TEXTS * 2, n_permutations=50)
    assert (found.null.unit, found.null.n_units) == ("text", 20)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": LABELS * 0}, "labels must hold 0 and 1"),
        ({"labels": LABELS[:5]}, "of the same examples, got 20, 5 and 20"),
        ({"kind": "accuracy"}, "accuracy"),
        ({"activations": torch.ones(20, 2, 5)}, "the same for every example"),
        ({"activations": torch.rand(20, 2, 5).index_fill(2, torch.tensor([1]), torch.nan)}, "have NaN"),
    ],
)
def test_what_can_not_be_scored_is_refused(planted, change, message):
    given = {"activations": planted, "labels": LABELS, "texts": TEXTS, **change}
    with pytest.raises(ValueError, match=message):
        skn.scores.score_activations(**given)
