"""The head that runs is the one that is read, and texts are kept only while the model is what it was."""

import threading

import pytest
import tiny
import torch
from torch import nn
from toy import QUIET

import tl_skillneurons as skn

TEXTS = ["good film", "the plot was very slow and dull", "quick"]
WORDS = {0: "negative", 1: "positive"}
IDS = [tiny.VOCABULARY[word] for word in WORDS.values()]


def prompt(placement="suffix"):
    return skn.SoftPrompt(torch.randn(3, 32, generator=torch.Generator().manual_seed(0)), placement=placement)


def by_the_whole_model(prompted):
    """The label words' logits, from all logits at each text's read-out."""
    tokens = prompted.tokens(TEXTS)
    return prompted.run_with_hooks(TEXTS)[torch.arange(len(TEXTS)), tokens.readout][:, IDS].detach()


class Shifted(nn.Module):
    def forward(self, weight):
        return 2 * weight


class Adapter(nn.Module):
    """What an adapter library puts in a layer's place."""

    def __init__(self, base):
        super().__init__()
        self.base, self.down, self.up = base, nn.Linear(32, 4), nn.Linear(4, tiny.D_VOCAB)

    def forward(self, x):
        return self.base(x) + self.up(self.down(x))


def hooked(model):
    model.original_model.lm_head.register_forward_hook(
        lambda module, inputs, out: out + inputs[0].sum(-1, True)
    )


def hooked_at_a_point(model):
    model.add_hook("unembed.hook_out", lambda act, hook: act**2)


def parametrised(model):
    nn.utils.parametrize.register_parametrization(
        model.unembed.original_component, "weight", Shifted(), unsafe=True
    )
    model.original_model.eval()


def adapted(model):
    model.original_model.lm_head = Adapter(model.original_model.lm_head).requires_grad_(False).eval()


@pytest.mark.parametrize("change", [hooked, hooked_at_a_point, parametrised, adapted])
def test_class_logits_are_those_of_the_head_that_runs(change):
    model = tiny.bridge("llama")
    before = skn.PromptedModel(model, prompt(), WORDS).class_logits(TEXTS).detach()
    change(model)
    prompted = skn.PromptedModel(model, prompt(), WORDS)
    found = prompted.class_logits(TEXTS).detach()
    torch.testing.assert_close(found, by_the_whole_model(prompted), atol=1e-5, rtol=1e-5)
    assert (found - before).abs().max() > 0.01


def write_an_embedding_row(model):
    model.original_model.get_input_embeddings().weight.data[tiny.VOCABULARY["quick"]] += 1


def write_a_weight_by_data(model):
    model.blocks[0].mlp.out.original_component.weight.data[3, 5] += 1


def swap_rows_by_data(model):
    weight = model.blocks[0].attn.q.original_component.weight
    weight.data = weight.data.flip(0)


def put_a_torch_hook_on(model):
    model.original_model.model.layers[0].register_forward_hook(lambda m, i, out: out * 1.5)


def switch_an_adapter_on(model):
    model.adapter_is_on[0] = True


@pytest.mark.parametrize(
    "change",
    [
        write_an_embedding_row,
        write_a_weight_by_data,
        swap_rows_by_data,
        put_a_torch_hook_on,
        switch_an_adapter_on,
    ],
)
def test_kept_texts_are_forgotten_when_the_model_is_another_however_it_was_changed(change):
    model = tiny.bridge("llama")
    model.adapter_is_on = [False]
    part = model.blocks[0].attn.v.original_component
    plain, switch = type(part).forward, model.adapter_is_on
    part.forward = lambda x: plain(part, x) * (2 if switch[0] else 1)
    cache = skn.InputCache(model)
    apart = skn.PromptedModel(model, prompt(), WORDS, run=skn.RunOptions(cache=cache))
    before = apart.class_logits(TEXTS).detach()
    torch.testing.assert_close(apart.class_logits(TEXTS).detach(), before)
    assert cache.n_runs == len(TEXTS)  # the second time they were there
    change(model)
    found = apart.class_logits(TEXTS).detach()
    torch.testing.assert_close(found, by_the_whole_model(apart), atol=1e-5, rtol=1e-5)
    assert (found - before).abs().max() > 1e-4


@pytest.mark.filterwarnings("ignore:the prompt of seed .* not below chance")
def test_threads_that_share_a_model_wait_for_each_other():
    model, task = tiny.bridge("gpt2"), tiny.task()
    options = {"n_steps": 4, "n_virtual_tokens": 2, "run": QUIET}
    alone = [skn.fit_soft_prompts(model, task, seeds=[seed], **options)[0] for seed in range(3)]
    scored = skn.score_neurons(model, prompt(), task, run=QUIET)
    found, errors = {}, []

    def work(seed):
        try:
            found[seed] = skn.fit_soft_prompts(model, task, seeds=[seed], **options)[0]
            found[f"scores {seed}"] = skn.score_neurons(model, prompt(), task, run=QUIET)
        except Exception as error:  # shown by the assertion
            errors.append(error)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    for seed in range(3):
        assert torch.equal(found[seed].embedding, alone[seed].embedding)
        assert torch.equal(found[f"scores {seed}"].accuracy, scored.accuracy)
