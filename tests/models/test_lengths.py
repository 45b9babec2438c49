"""No result depends on how long the longest text of a batch is."""

import families
import pytest
import tiny
import torch

import tl_skillneurons as skn
from tl_skillneurons.models.lengths import first_change, length_limit


def test_the_length_is_found_at_which_a_rotation_changes():
    for limit in (2, 7, 12, 99):
        assert first_change(lambda n, at=limit: torch.tensor([float(n > at)]), 100) == limit
    assert first_change(lambda n: torch.tensor([1.0]), 100) is None


def test_only_a_model_whose_frequencies_depend_on_the_longest_text_has_a_limit():
    assert length_limit(families.bridge("phi3_longrope")) == 12
    assert all(length_limit(tiny.bridge(f)) is None for f in ("llama", "gemma3", "gpt2", "bert"))


def test_rotations_that_are_complex_numbers_are_looked_at_too():
    model, untouched = families.bridge("llama4"), families.hf_model("llama4")
    assert length_limit(model) is None
    prompt = skn.SoftPrompt(
        torch.randn(2, 32, generator=torch.Generator().manual_seed(0)), placement="suffix"
    )
    prompted = skn.PromptedModel(model, prompt, {0: "negative", 1: "positive"})
    texts = ["good film", "a bright scene is very bad"]
    embed = untouched.get_input_embeddings()
    with torch.no_grad():
        for found, ids in zip(prompted.class_logits(texts), prompted.encode(texts), strict=True):
            rows = torch.cat([embed(torch.tensor(ids)), prompt.embedding])[None]
            logits = untouched(inputs_embeds=rows).logits[0, -1, prompted.label_ids]
            torch.testing.assert_close(found, logits, atol=1e-5, rtol=0)


def test_texts_on_both_sides_of_the_limit_get_the_numbers_they_have_alone():
    model, untouched = families.bridge("phi3_longrope"), families.hf_model("phi3_longrope")
    texts = [
        "good film",
        " ".join(["a bright scene"] * 5),
        " ".join(["plot"] * 10),
    ]  # 12 tokens and 2 more is beyond
    prompt = skn.SoftPrompt(
        torch.randn(2, 32, generator=torch.Generator().manual_seed(0)), placement="suffix"
    )
    words = {0: "negative", 1: "positive"}
    run = skn.RunOptions(cache=skn.InputCache(model))
    prompted = skn.PromptedModel(model, prompt, words, run=run)
    embed = untouched.get_input_embeddings()
    expected = []
    with torch.no_grad():
        for ids in prompted.encode(texts):
            rows = torch.cat([embed(torch.tensor(ids)), prompt.embedding])[None]
            expected.append(untouched(inputs_embeds=rows).logits[0, -1, prompted.label_ids])
        torch.testing.assert_close(prompted.class_logits(texts), torch.stack(expected), atol=1e-5, rtol=0)
    with pytest.raises(
        ValueError, match=r"up to 12 tokens .* can't stand in one batch of tiny.*max_length=12"
    ):
        prompted.tokens(texts)
    skn.PromptedModel(model, prompt, words, max_length=12).tokens(texts)
