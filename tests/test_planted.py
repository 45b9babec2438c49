"""What the planted model is said to do, it does."""

import planted
import pytest
import torch
from planted import DECOY, HEADS, NEURONS, SHAPE
from toy import QUIET

from tl_skillneurons import PromptedModel, RunOptions, ablate, score_neurons
from tl_skillneurons.prompts import neuron_activations

TASK = planted.task(n_train=40, n_select=24, n_report=24)
TEXTS, LABELS = TASK.split("report")["text"][:], TASK.split("report")["label"][:]
SIGN = 2 * torch.tensor(LABELS) - 1
RANDOM = (NEURONS | DECOY).random_like(0, n_layers=SHAPE[0], d_mlp=SHAPE[1])


@pytest.fixture(scope="module")
def model():
    return planted.model()


@pytest.fixture(scope="module")
def scores(model):
    return score_neurons(model, planted.prompt(), TASK, run=QUIET)


def prompted(model):
    return PromptedModel(model, planted.prompt(), planted.LABEL_WORDS)


def logit_diff(model, texts=TEXTS, hooks=()):
    logits = prompted(model).class_logits(texts, hooks)
    return logits[:, 1] - logits[:, 0]


def hold_heads(heads):
    """Zero ablation of whole heads."""

    def zeroed(chosen):
        def zero(act, hook):
            act = act.clone()
            act[:, :, chosen] = 0
            return act

        return zero

    layers = {layer for layer, _ in heads}
    return [
        (f"blocks.{at}.attn.hook_z", zeroed([head for layer, head in heads if layer == at])) for at in layers
    ]


def label_at(model, neurons, hooks=()):
    """How far the neurons' activations at the last virtual token are apart, label 1 minus label 0: [neuron]."""
    one = prompted(model)
    activations = []
    for text in TEXTS:  # one at a time: no padding, the last column is the last virtual token
        kept = {}

        def keep(act, hook, kept=kept):
            kept[hook.name] = act[0, -1]

        names = [f"blocks.{layer}.mlp.hook_post" for layer in range(SHAPE[0])]
        one.run_with_hooks([text], [*hooks, *((name, keep) for name in names)])
        activations.append(torch.stack(list(kept.values()))[neurons.layer, neurons.index])
    activations, of_one = torch.stack(activations), torch.tensor(LABELS) == 1
    return activations[of_one].mean(0) - activations[~of_one].mean(0)


def test_the_model_answers_every_text_of_the_task(model):
    for role in TASK.splits:
        assert prompted(model).accuracy(TASK, role) == 1.0
    assert (logit_diff(model) * SIGN).min() > 1


def test_the_three_neurons_and_the_decoy_predict_without_an_error_and_no_other_does(scores):
    table = scores.to_dataframe()
    perfect = table[table["predictivity"] == 1.0]
    assert set(zip(perfect["layer"], perfect["index"], strict=True)) == set(NEURONS | DECOY)


def test_ablating_the_three_leaves_chance(model, scores):
    hooks = ablate(NEURONS, how="mean", values=scores.mean_baseline())
    assert prompted(model).accuracy(TASK, fwd_hooks=hooks) == 0.5
    left = logit_diff(model, hooks=hooks)
    assert left.std() < 0.01 * logit_diff(model).std()
    assert logit_diff(model, hooks=ablate(NEURONS)).abs().max() < 1e-5


@pytest.mark.parametrize("neurons", [DECOY, RANDOM, DECOY | RANDOM])
def test_ablating_the_decoy_or_random_neurons_does_nothing(model, scores, neurons):
    hooks = ablate(neurons, how="mean", values=scores.mean_baseline())
    assert prompted(model).accuracy(TASK, fwd_hooks=hooks) == 1.0
    intact = logit_diff(model)
    assert ((logit_diff(model, hooks=hooks) - intact) / intact).abs().max() < 0.05


def test_without_the_decoys_output_nothing_at_all_changes_under_interchange(model):
    """The decoy writes as much for one label as for the other, so the norms see no difference."""
    sign_flip = [
        ("blocks.1.mlp.hook_post", lambda act, hook: act * torch.where(torch.arange(SHAPE[1]) == 20, -1, 1))
    ]
    torch.testing.assert_close(logit_diff(model, hooks=sign_flip), logit_diff(model), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("gone", [HEADS, HEADS[:1], HEADS[1:]])
def test_the_two_heads_bring_the_label_to_the_neurons(model, gone):
    intact, left = label_at(model, NEURONS | DECOY), label_at(model, NEURONS | DECOY, hold_heads(gone))
    assert intact.min() > 5
    if gone == HEADS:
        assert left.abs().max() < 1e-5
        assert logit_diff(model, hooks=hold_heads(gone)).abs().max() < 1e-4
    else:  # the other head is enough to answer, with less
        assert left.min() > 1
        assert (left < 0.8 * intact).all()


def test_the_other_heads_do_not_bring_it(model):
    others = [(layer, head) for layer in range(SHAPE[0]) for head in range(planted.N_HEADS)]
    others = [place for place in others if place not in HEADS]
    assert prompted(model).accuracy(TASK, fwd_hooks=hold_heads(others)) == 1.0
    left = label_at(model, NEURONS | DECOY, hold_heads(others))
    assert (left / label_at(model, NEURONS | DECOY) - 1).abs().max() < 0.2


def test_the_heads_look_from_the_virtual_tokens_at_the_label_word(model):
    text = "the film was good and very slow"
    _, cache = prompted(model).run_with_cache([text])
    word = 1 + text.split().index("good")  # after the BOS
    for layer, head in HEADS:
        assert cache[f"blocks.{layer}.attn.hook_pattern"][0, head, -3:, word].min() > 0.99


def test_random_neurons_vary_from_text_to_text(model):
    spread = neuron_activations(model, planted.prompt(), TEXTS).std(0)
    assert spread[spread > 0].numel() == spread.numel()
    assert spread.median() > 0.05


def test_twins_have_equal_lengths_and_opposite_labels_and_answers(model):
    pairs = planted.twins(n_pairs=12)
    clean, corrupted = (list(texts) for texts in zip(*pairs, strict=True))
    one = prompted(model)
    assert [len(ids) for ids in one.encode(clean)] == [len(ids) for ids in one.encode(corrupted)]
    labels = torch.tensor([planted.label_of(text) for text in clean])
    assert labels.tolist() == [1 - planted.label_of(text) for text in corrupted] == [0, 1] * 6
    right, wrong = logit_diff(model, clean), logit_diff(model, corrupted)
    assert ((right > 0) == (labels == 1)).all()
    torch.testing.assert_close(right, -wrong, rtol=1e-4, atol=1e-4)


def test_the_facts_hold_in_float64_to_rounding():
    exact = planted.model(torch.float64)
    alone = RunOptions(batch_size=1)
    one = PromptedModel(exact, planted.prompt(), planted.LABEL_WORDS, run=alone)
    intact = one.class_logits(TEXTS[:8])
    assert (intact.argmax(1) == torch.tensor(LABELS[:8])).all()
    held = one.class_logits(TEXTS[:8], ablate(NEURONS))
    assert held.dtype == torch.float64 and (held[:, 1] - held[:, 0]).abs().max() < 1e-7


@pytest.mark.parametrize("seed", [1, 2])
def test_another_seed_changes_only_what_does_not_answer(model, seed):
    other = planted.model(seed=seed)
    assert prompted(other).accuracy(TASK) == 1.0
    assert logit_diff(other, hooks=ablate(NEURONS)).abs().max() < 1e-5
    assert not torch.equal(other.blocks[0].mlp.W_out, model.blocks[0].mlp.W_out)
