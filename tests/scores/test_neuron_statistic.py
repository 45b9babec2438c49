"""Any score of every neuron as a result: ranking, direction, table and file."""

import jaxtyping
import pytest
import torch
from drawn import random_outcomes

from tl_skillneurons._files import load_tensors, save_tensors
from tl_skillneurons.scores import NeuronStatistic
from tl_skillneurons.scores.null import permutation_null


def statistic(**changes):
    values = torch.randn(2, 2, 3, 13, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    settings = {"name": "auc", "values": values, "n_examples": 24, "role": "select"}
    return NeuronStatistic(**{**settings, **changes})


@pytest.mark.parametrize("aggregate", ["mean", "min"])
def test_the_score_is_the_best_position_of_each_prompt_combined(aggregate):
    made = statistic(aggregate=aggregate)
    for layer in range(2):
        for neuron in range(13):
            signed = [max(made.values[k, layer, :, neuron].tolist(), key=abs) for k in range(2)]
            best = [abs(value) for value in signed]
            expected = min(best) if aggregate == "min" else sum(best) / 2
            assert float(made.score[layer, neuron]) == pytest.approx(expected, abs=1e-15)
            signs = {1 if one >= 0 else -1 for one in signed}
            assert int(made.direction[layer, neuron]) == (signs.pop() if len(signs) == 1 else 0)
    assert made.top(1, per="model").index[0] == made.score.flatten().argmax() % 13


def test_a_statistic_shows_itself_on_one_screen_and_comes_back_from_its_file(tmp_path):
    null = permutation_null(random_outcomes()[1], n_permutations=19)
    made = statistic(null=null)
    back = NeuronStatistic.load(made.save(tmp_path / "auc.safetensors"))
    assert torch.equal(back.values, made.values) and torch.equal(back.null.p_family, null.p_family)
    assert repr(back) == repr(made) and "auc, 2 prompts, 2 layers x 13 neurons, 3 positions" in repr(made)
    assert len(repr(made)) < 200 and "16 more rows" in made._repr_html_()
    assert (made.n_prompts, made.n_layers, made.d_mlp) == (2, 2, 13)
    frame = made.to_dataframe()
    directions = ["direction", "direction_agreement", "direction_0", "direction_1"]
    assert list(frame.columns) == ["layer", "index", "auc", *directions, "p_family", "p_value", "q_value"]
    assert set(frame[frame.direction == 0].direction_agreement) == {0.5}
    assert frame.auc.tolist() == made.score.flatten().tolist()


def test_a_null_of_other_neurons_is_refused_in_a_file_too(monkeypatch, tmp_path):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # as users have it
    null = permutation_null(random_outcomes(d_mlp=8)[1], n_permutations=19)
    with pytest.raises(
        ValueError, match=r"p_family of the null must have the shape \(3, 2, 13\), got \(3, 2, 8\)"
    ):
        statistic(null=null)
    path = statistic().save(tmp_path / "auc.safetensors")
    tensors, header = load_tensors(path, "NeuronStatistic")
    save_tensors(path, "NeuronStatistic", tensors | null.tensors(), {**header, "null": {"seed": 0}})
    with pytest.raises(ValueError, match="not a sound NeuronStatistic file: p_family of the null"):
        NeuronStatistic.load(path)
    save_tensors(path, "NeuronStatistic", tensors, {**header, "site": "mlp.hook_pre"})
    with pytest.raises(ValueError, match=r"measured at mlp.hook_pre, this package measures at mlp.hook_post"):
        NeuronStatistic.load(path)
