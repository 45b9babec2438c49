"""Cross-entropy of plain text: against a slow loop over tokens, and the same in any batch."""

import pytest
import tiny
import torch

from tl_skillneurons import NeuronSet, PromptedModel, RunOptions, SoftPrompt, ablate
from tl_skillneurons.interventions import cross_entropy
from tl_skillneurons.interventions.plain_text import MASKED_SHARE

TEXTS = ["the film is good", "a dull plot and a slow scene but not bad", "music was very bright"]


def plain(family="llama", **run):
    return PromptedModel(tiny.kept(family), None, run=RunOptions(**run))


@pytest.mark.parametrize("family", ["llama", "gpt2", "opt", "gemma2", "bloom"])
def test_a_causal_models_loss_is_the_mean_over_tokens_of_what_hugging_face_gives(family):
    model = plain(family)
    untouched = tiny.hf_model(family)
    found = cross_entropy(model, TEXTS)
    for text, loss in zip(TEXTS, found, strict=True):
        [ids] = model.encode([text])
        with torch.no_grad():
            logits = untouched(torch.tensor([ids])).logits[0].log_softmax(-1)
        expected = -sum(logits[k, ids[k + 1]] for k in range(len(ids) - 1)) / (len(ids) - 1)
        assert loss.item() == pytest.approx(expected.item(), rel=1e-5)


def test_a_masked_models_loss_is_that_of_its_masked_tokens():
    model = plain("bert")
    untouched = tiny.hf_model("bert")
    found = cross_entropy(model, TEXTS, seed=3)
    for number, (text, loss) in enumerate(zip(TEXTS, found, strict=True)):
        [ids] = model.encode([text])
        own = list(range(1, len(ids) - 1))  # without the special tokens at both ends
        generator = torch.Generator().manual_seed(3 * 1_000_003 + number + 1)
        n = max(1, round(MASKED_SHARE * len(own)))
        masked = [own[i] for i in torch.randperm(len(own), generator=generator)[:n]]
        shown = torch.tensor([ids])
        shown[0, masked] = model.model.tokenizer.mask_token_id
        with torch.no_grad():
            logits = untouched(shown).logits[0].log_softmax(-1)
        expected = -sum(logits[k, ids[k]] for k in masked) / n
        assert loss.item() == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize("family", ["llama", "bert"])
def test_a_texts_loss_does_not_depend_on_its_batch(family):
    alone, together = (cross_entropy(plain(family, batch_size=n), TEXTS) for n in (1, 3))
    torch.testing.assert_close(alone, together, rtol=1e-5, atol=1e-6)


def test_an_ablation_of_the_text_changes_the_loss_and_leaves_the_model_as_it_was():
    model = plain()
    neurons = NeuronSet([0, 1], [3, 7])
    before = cross_entropy(model, TEXTS)
    changed = cross_entropy(model, TEXTS, ablate(neurons, positions="text"))
    assert (before != changed).all()
    assert torch.equal(cross_entropy(model, TEXTS), before)


def test_plain_text_is_refused_where_nothing_predicts_it():
    model = tiny.kept("llama")
    prompt = SoftPrompt(torch.ones(2, 32), placement="suffix")
    with pytest.raises(ValueError, match="runs without a prompt"):
        cross_entropy(PromptedModel(model, prompt), TEXTS)
    with pytest.raises(ValueError, match=r"text 1 .* single token"):
        cross_entropy(PromptedModel(model, None, prepend_bos=False), ["the film", "good"])


def test_a_text_without_a_token_of_its_own_is_refused_by_its_number_in_any_batch():
    for size in (1, 2, 4):
        with pytest.raises(ValueError, match="text 2 has no token of its own"):
            cross_entropy(plain("bert", batch_size=size), [*TEXTS[:2], "</s>", TEXTS[2]])
