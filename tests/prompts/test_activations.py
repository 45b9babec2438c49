"""Activations that are kept, against each text read alone."""

import pytest
import tiny
import torch
from toy import EXACT, ROWS, prompt_for, read_alone

import tl_skillneurons as skn
from tl_skillneurons.prompts.run import RunOptions


@pytest.fixture(scope="module")
def models():
    return {family: tiny.bridge(family, dtype=torch.float64) for family in ("gpt2", "bert")}


def test_a_weight_that_is_not_a_number_is_named_too():
    model = tiny.bridge("gpt2")
    with torch.no_grad():
        model.blocks[1].mlp.W_in[0, 0] = torch.nan
    with pytest.raises(ValueError, match="not finite in layer 1 on example"):
        skn.prompts.neuron_activations(model, prompt_for("gpt2"), ["good film"])


def test_reference_activations_of_a_prompt_that_never_sees_the_text_are_refused(models):
    with pytest.raises(ValueError, match="never see it"):
        skn.prompts.neuron_activations(models["gpt2"], prompt_for("gpt2", placement="prefix"), ["good"])


@pytest.mark.parametrize("positions", ["prompt", "last", "mean", "max"])
@pytest.mark.parametrize("family", ["gpt2", "bert"])
def test_reference_activations_are_those_of_each_text_alone(models, family, positions):
    texts = [row["text"] for row in ROWS[:7]]
    kept = skn.prompts.neuron_activations(
        models[family], prompt_for(family), texts, positions=positions, run=RunOptions(batch_size=3)
    )
    expected = [read_alone(models[family], prompt_for(family), text, positions).mean(1) for text in texts]
    torch.testing.assert_close(kept, torch.stack(expected), rtol=0, atol=EXACT)
    if positions == "prompt":
        with pytest.raises(ValueError, match="without a prompt there are no prompt positions"):
            skn.prompts.neuron_activations(models[family], None, texts)
