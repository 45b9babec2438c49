"""What ranks the neurons, whichever score it is."""

import jaxtyping
import pytest
import torch
from drawn import scores

from tl_skillneurons.scores import NeuronStatistic
from tl_skillneurons.scores.ranked import require_one_model, strength


def statistic(d_mlp=7, name="tiny"):
    values = torch.randn(2, 2, 3, d_mlp, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return NeuronStatistic("auc", values, 12, "select", provenance={"model": {"name": name}})


def test_strength_is_the_predictivity_or_the_largest_absolute_score_of_the_positions():
    made, other = scores(), statistic()
    assert torch.equal(strength(made), made.predictivity)
    assert torch.equal(strength(other), other.values.abs().amax(2).mean(0))
    require_one_model({"predictivity": made, "auc": other})


def test_what_is_no_score_is_refused(monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # as users have it
    with pytest.raises(TypeError, match="must be a NeuronScores or a NeuronStatistic, got str"):
        strength("auc")


@pytest.mark.parametrize(
    "given, message",
    [
        ({"one": statistic()}, "at least two scores by name to compare, got"),
        ({"one": statistic(), "two": statistic(name="other")}, "scores must be of one model, got .*'other'"),
        ({"one": statistic(), "two": statistic(d_mlp=8)}, r"with \[layer, neuron\] = .*\(2, 8\)"),
    ],
)
def test_scores_that_cannot_be_compared_are_refused(given, message):
    with pytest.raises(ValueError, match=message):
        require_one_model(given)
