"""nnsight on the untouched Hugging Face model sees the neurons that are seen here, and holds them to the same end."""

import pytest
import tiny
import torch

from tl_skillneurons import NeuronSet, PromptedModel, SoftPrompt, ablate
from tl_skillneurons.prompts import neuron_activations

TEXTS = ["good film", "the plot was very slow and the music dull but not bad", "a bright scene"]
WORDS = {0: "negative", 1: "positive"}
N_VIRTUAL = 3
HELD = NeuronSet.from_pairs([(0, 1), (0, 5), (1, 40)], n_layers=2, d_mlp=48)
VALUES = torch.linspace(-1, 1, 96).reshape(2, 48)


class Both:
    """A tiny model here, and its untouched copy in nnsight, with the same soft prompt behind each text."""

    def __init__(self, nnsight, family):
        embedding = torch.randn(N_VIRTUAL, 32, generator=torch.Generator().manual_seed(0))
        self.model, self.prompt = tiny.bridge(family), SoftPrompt(embedding, placement="suffix")
        self.prompt.requires_grad_(False)
        self.prompted = PromptedModel(self.model, self.prompt, WORDS)
        self.untouched = tiny.hf_model(family).requires_grad_(False)
        self.traced = nnsight.NNsight(self.untouched)
        if family == "gpt2":
            self.down = [block.mlp.c_proj for block in self.traced.transformer.h]
        else:
            self.down = [block.mlp.down_proj for block in self.traced.model.layers]

    def inputs(self, text):
        (ids,) = self.prompted.encode([text])
        words = self.untouched.get_input_embeddings()(torch.tensor([ids]))
        return torch.cat([words, self.prompt.embedding[None]], 1)


@pytest.fixture(scope="module", params=["llama", "gpt2"])
def both(request):
    # imported here and not above, since it gives every object a .save
    reason = 'nnsight comes with pip install -e ".[notebooks]"'
    return Both(pytest.importorskip("nnsight", reason=reason), request.param)


def test_nnsight_sees_the_same_activations_at_the_prompt(both):
    ours = neuron_activations(both.model, both.prompt, TEXTS)
    for number, text in enumerate(TEXTS):
        with both.traced.trace(inputs_embeds=both.inputs(text)):
            first, second = both.down[0].input.save(), both.down[1].input.save()
        theirs = torch.stack([first, second])[:, 0, -N_VIRTUAL:].mean(1)
        torch.testing.assert_close(ours[number], theirs, rtol=1e-5, atol=1e-6)


def test_neurons_held_by_nnsight_change_the_answer_as_they_do_here(both):
    hooks = ablate(HELD, how="mean", values=VALUES, positions="prompt")
    intact, ours = both.prompted.class_logits(TEXTS), both.prompted.class_logits(TEXTS, fwd_hooks=hooks)
    assert (ours - intact).abs().min() > 1e-4
    for number, text in enumerate(TEXTS):
        with both.traced.trace(inputs_embeds=both.inputs(text)):
            for layer, index in HELD.by_layer().items():
                both.down[layer].input[:, -N_VIRTUAL:, index] = VALUES[layer, index]
            logits = both.traced.lm_head.output[0, -1].save()
        torch.testing.assert_close(ours[number], logits[both.prompted.label_ids], rtol=1e-5, atol=1e-6)
