"""Gradient scores against finite differences and a run of one step by hand."""

from dataclasses import replace

import pytest
import tiny
import torch
from toy import HOOKS, QUIET, TASK, prompt_for, read
from untouched import softmax_in_float64  # noqa: F401 (a fixture: differences as small as 1e-5 need it)

import tl_skillneurons as skn


@pytest.fixture(scope="module")
def models():
    return {family: tiny.bridge(family, dtype=torch.float64) for family in ("gpt2", "bert", "opt")}


def prompt_columns(prompted, text):
    ids = prompted.tokens([text]).ids[0].tolist()
    return [c for c, i in enumerate(ids) if i >= tiny.D_VOCAB or i == tiny.VOCABULARY["<mask>"]]


def logit_diff(prompted, text, hooks=()):
    with torch.no_grad():
        logits = prompted.class_logits([text], hooks)[0]
    return float(logits[1] - logits[0])


@pytest.mark.parametrize("family", ["gpt2", "bert", "opt"])
def test_the_gradient_is_that_of_finite_differences_and_batches_change_nothing(models, family):
    model, prompt = models[family], prompt_for(family)
    found = skn.scores.score_gradients(model, prompt, TASK, run=replace(QUIET, batch_size=4))
    split = TASK.split("select")
    prompted = skn.PromptedModel(model, prompt, TASK.label_words)
    layer, position, neuron, step = 0, 1, 9, 1e-5
    if family == "opt":  # whose ReLU leaves some neurons at 0
        neuron = int(read(model, prompt, split["text"])[:, layer, position].amin(0).argmax())
    expected = 0.0
    for text, label in zip(split["text"], split["label"], strict=True):
        at = prompt_columns(prompted, text)[position]
        act = float(read(model, prompt, [text])[0, layer, position, neuron])
        ends = []
        for change in (step, -step):

            def nudge(acts, hook, change=change, at=at):
                acts = acts.clone()
                acts[:, at, neuron] += change
                return acts

            ends.append(logit_diff(prompted, text, [(HOOKS[layer], nudge)]))
        expected += (2 * label - 1) * act * (ends[0] - ends[1]) / (2 * step)
    assert float(found.values[0, layer, position, neuron]) == pytest.approx(expected / len(split), rel=1e-6)
    alone = skn.scores.score_gradients(model, prompt, TASK, run=replace(QUIET, batch_size=1))
    torch.testing.assert_close(found.values, alone.values)
    assert (found.name, found.role, found.n_examples) == ("gradient", "select", 15)


def test_one_step_of_conductance_is_the_midpoint_gradient_times_the_change(models):
    model, prompt = models["gpt2"], prompt_for("gpt2")
    found = skn.scores.score_gradients(model, prompt, TASK, "conductance", steps=1, run=QUIET)
    split = TASK.split("select")
    prompted = skn.PromptedModel(model, prompt, TASK.label_words)
    total = torch.zeros(2, 3, 48, dtype=torch.float64)
    for text, label in zip(split["text"], split["label"], strict=True):
        tokens = prompted.tokens([text])

        def run(share, tokens=tokens, text=text):
            live = {}

            def fade(act, hook):
                scaled = act.detach().clone()
                scaled[tokens.is_text] *= share
                return scaled.requires_grad_()

            hooks = [("embed.hook_out", fade)]
            hooks += [(name, lambda act, hook, name=name: live.__setitem__(name, act)) for name in HOOKS]
            logits = prompted.class_logits([text], hooks)[0]
            at = prompt_columns(prompted, text)
            gradients = torch.autograd.grad(logits[1] - logits[0], [live[name] for name in HOOKS])
            return [torch.stack([x[0, at].detach() for x in side]) for side in (live.values(), gradients)]

        (start, _), (_, gradient), (end, _) = run(0.0), run(0.5), run(1.0)
        total += (2 * label - 1) * gradient * (end - start)
    torch.testing.assert_close(found.values[0], total / len(split))


def test_gradients_have_the_null_of_permuted_labels(models):
    prompts = [prompt_for("bert"), prompt_for("bert", seed=1)]
    plain = skn.scores.score_gradients(models["bert"], prompts, TASK, run=QUIET)
    found = skn.scores.score_gradients(models["bert"], prompts, TASK, n_permutations=99, run=QUIET)
    torch.testing.assert_close(found.values, plain.values, rtol=1e-5, atol=1e-7)
    assert found.null.largest.shape == (3, 99) and found.null.p_family.min() >= 0.01
    assert float(found.null.p_value[-1].mean()) == pytest.approx(
        0.5, abs=0.2
    )  # this task is noise to a random model


def test_gradients_leave_the_model_as_it_was_and_need_a_graph(models):
    model, prompt = models["gpt2"], prompt_for("gpt2")
    before = [p.requires_grad for p in model.parameters()]
    skn.scores.score_gradients(model, prompt, TASK, run=QUIET)
    assert [p.requires_grad for p in model.parameters()] == before
    assert all(p.grad is None for p in model.parameters()) and prompt.embedding.grad is None
    with torch.no_grad(), pytest.raises(ValueError, match=r"outside torch.no_grad\(\)"):
        skn.scores.score_gradients(model, prompt, TASK)
    with pytest.raises(ValueError, match="prompts of one set must have equally many virtual tokens"):
        skn.scores.score_gradients(model, [prompt, prompt_for("gpt2", n=5)], TASK)
    with pytest.raises(ValueError, match="kind must be one of 'gradient', 'conductance'"):
        skn.scores.score_gradients(model, prompt, TASK, "saliency")
