"""Every family of models against its untouched Hugging Face copy, which runs each example alone and unpadded.

All in float64, so that a difference is a fault and no rounding.
"""

import functools

import pytest
import tiny
import torch
from untouched import (  # noqa: F401 (softmax_in_float64 is a fixture)
    EXACT,
    FAMILIES,
    LABEL_IDS,
    LABEL_WORDS,
    SEES_ONLY_THE_PROMPT,
    TEXTS,
    alone,
    models,
    placement,
    soft_prompt,
    softmax_in_float64,
)

import tl_skillneurons as skn


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("side", ["left", "right", "none"])
def test_logits_and_the_prompts_gradient_equal_inputs_embeds_on_the_untouched_model(family, side):
    check_injection(family, soft_prompt(family), side)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
@pytest.mark.parametrize("side", ["left", "right", "none"])
def test_a_causal_prefix_reads_out_at_the_last_token_of_the_text(family, side):
    check_injection(family, soft_prompt(family, where="prefix"), side)


def check_injection(family, prompt, side):
    model, _ = models(family)
    texts = ["a bright scene is good", "the cast was very dull"] if side == "none" else TEXTS
    prompted = skn.PromptedModel(model, prompt, LABEL_WORDS, padding_side=None if side == "none" else side)
    tokens = prompted.tokens(texts)
    assert bool(tokens.is_padding.any()) == (side != "none")
    weight = torch.randn(len(texts), 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)

    references = [alone(family, prompt, text)[0] for text in texts]
    expected = torch.stack([logits[LABEL_IDS] for logits in references])
    (expected_grad,) = torch.autograd.grad((expected.log_softmax(1) * weight).sum(), prompt.embedding)
    assert expected_grad.abs().min() > 1e-6  # every virtual token has an influence to compare

    with prompted.attached() as virtual:
        logits = prompted.read_out(tokens, virtual)
    (grad,) = torch.autograd.grad((logits.log_softmax(1) * weight).sum(), prompt.embedding)
    full = prompted.run_with_hooks(texts)[torch.arange(len(texts)), tokens.readout]
    torch.testing.assert_close(logits, expected, rtol=0, atol=EXACT[family])
    torch.testing.assert_close(full, torch.stack(references), rtol=0, atol=EXACT[family])
    torch.testing.assert_close(grad, expected_grad, rtol=0, atol=EXACT[family])


def slow_scores(family, prompt, task):
    """Wang et al. (2022), section 3.2, one example, layer, position and neuron at a time."""

    def activations(role):
        rows = []
        for text in task.split(role)["text"]:
            _, layers, at_prompt = alone(family, prompt, text)
            rows.append([layer[at_prompt].tolist() for layer in layers])
        return rows

    reference, chosen = activations("baseline"), activations("select")
    labels = task.split("select")["label"]
    n_layers, n_positions, d_mlp = len(chosen[0]), len(chosen[0][0]), len(chosen[0][0][0])
    baseline = torch.zeros(n_layers, n_positions, d_mlp, dtype=torch.float64)
    correct = torch.zeros(n_layers, n_positions, d_mlp, dtype=torch.int64)
    for layer in range(n_layers):
        for position in range(n_positions):
            for neuron in range(d_mlp):
                total = 0.0
                for example in reference:
                    total += example[layer][position][neuron]
                mean = total / len(reference)
                right = 0
                for example, label in zip(chosen, labels, strict=True):
                    answer = 1 if example[layer][position][neuron] > mean else 0
                    right += answer == label
                baseline[layer, position, neuron] = mean
                correct[layer, position, neuron] = right
    varies = torch.tensor(reference).std(0) > 1e-9
    return baseline, correct, varies


@pytest.mark.parametrize("family", FAMILIES)
def test_scores_equal_the_papers_formula_on_the_untouched_model(family):
    model, _ = models(family)
    task, prompt = tiny.task(), soft_prompt(family)
    scores = skn.score_neurons(model, prompt, task, run=skn.RunOptions(batch_size=7, progress=False))
    with torch.no_grad():
        baseline, correct, varies = slow_scores(family, prompt, task)
    if family in SEES_ONLY_THE_PROMPT:
        assert not varies[0].any()  # whether a constant is above its mean is rounding in the loop
    assert varies.sum() > varies.numel() / 3  # OPT's ReLU leaves some neurons at 0
    assert torch.equal(scores.correct[0][varies], correct[varies])
    torch.testing.assert_close(scores.baseline[0], baseline, rtol=0, atol=EXACT[family])
    assert scores.n_baseline == 24 and scores.n_select == 16
    assert torch.equal(scores.accuracy, scores.correct / 16)


@pytest.mark.parametrize("how", ["zero", "mean"])
@pytest.mark.parametrize("positions", ["all", "prompt", "text"])
@pytest.mark.parametrize("family", FAMILIES)
def test_ablation_equals_the_same_edit_on_the_untouched_models_modules(family, positions, how):
    model, _ = models(family)
    prompt = soft_prompt(family)
    d_mlp = model.blocks[0].mlp.W_out.shape[0]
    generator = torch.Generator().manual_seed(2)
    neurons = skn.NeuronSet.from_mask(torch.rand(2, d_mlp, generator=generator) < 0.3)
    values = torch.randn(2, d_mlp, generator=generator, dtype=torch.float64)

    def edited(text):
        _, layers, at_prompt = alone(family, prompt, text)
        where = torch.zeros(len(layers[0]), dtype=torch.bool)
        where[at_prompt] = True
        words = torch.zeros_like(where)
        words[~where] = model.to_tokens(text)[0] >= len(tiny.SPECIAL)
        where = {"all": where | True, "prompt": where, "text": words}[positions]

        def edit(act, layer):
            for position in where.nonzero()[:, 0].tolist():
                for of, index in neurons:
                    if of == layer:
                        act[position, index] = 0.0 if how == "zero" else values[layer, index]
            return act

        return alone(family, prompt, text, [functools.partial(edit, layer=k) for k in range(2)])[0]

    with torch.no_grad():
        expected = torch.stack([edited(text)[LABEL_IDS] for text in TEXTS])
        hooks = skn.ablate(neurons, how=how, values=values if how == "mean" else None, positions=positions)
        prompted = skn.PromptedModel(model, prompt, LABEL_WORDS)
        logits = prompted.class_logits(TEXTS, hooks)
        intact = prompted.class_logits(TEXTS)
    torch.testing.assert_close(logits, expected, rtol=0, atol=EXACT[family])
    assert (logits - intact).abs().amax(1).min() > 1e-4  # the edit reaches every example's read-out
