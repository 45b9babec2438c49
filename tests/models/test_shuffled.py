"""Layers in another order: the same weights, another function, and the model itself untouched."""

import copy

import pytest
import tiny
import torch
from torch import nn

import tl_skillneurons as skn


@pytest.mark.parametrize("family", ["gpt2", "bert", "llama", "phi3"])
def test_shuffled_layers_are_the_models_own_in_another_order(family):
    model = tiny.bridge(family)
    shuffled = skn.models.shuffle_layers(model, seed=3)
    for layer in range(2):
        for one, other in zip(
            model.blocks[layer].parameters(), shuffled.blocks[1 - layer].parameters(), strict=True
        ):
            assert torch.equal(one, other)
    ids = torch.tensor([[1, 6, 7, 8]])
    with torch.no_grad():
        assert not torch.allclose(model(ids), shuffled(ids), atol=1e-3)
        back = skn.models.shuffle_layers(shuffled, seed=3)
        torch.testing.assert_close(back(ids), model(ids))
    assert all(not p.requires_grad for p in shuffled.parameters()) and not shuffled.training


def test_the_order_is_another_one_whatever_the_seed_and_the_model_is_left_alone():
    model = tiny.bridge("gpt2")
    before, state = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    for seed in range(6):
        shuffled = skn.models.shuffle_layers(model, seed)
        assert torch.equal(shuffled.blocks[0].mlp.W_in, model.blocks[1].mlp.W_in)
        assert shuffled.cfg.model_name == f"{model.cfg.model_name}, layers shuffled"
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert torch.equal(state, torch.get_rng_state())


def test_layers_that_cannot_change_places_are_refused():
    model = tiny.bridge("gpt2")
    with pytest.raises(ValueError, match="seed must be an integer of at least 0, got -1"):
        skn.models.shuffle_layers(model, seed=-1)
    model = tiny.bridge("llama")
    model.blocks[1].mlp.out.set_original_component(nn.Linear(48, 32))  # with a bias, where the other has none
    with pytest.raises(ValueError, match=r"layers . and . of .* differ in their weights"):
        skn.models.shuffle_layers(model)
    alone = tiny.bridge("llama")
    del alone.blocks[1:]
    alone.cfg.n_layers = 1
    with pytest.raises(ValueError, match="nothing to shuffle in one layer"):
        skn.models.shuffle_layers(alone)
