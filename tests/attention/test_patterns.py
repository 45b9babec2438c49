"""Attention from and to the prompt, over a task: shares that sum to one, a slow loop, planted heads."""

from dataclasses import replace

import chats
import planted
import pytest
import tiny
import torch
from toy import QUIET

import tl_skillneurons as skn
from tl_skillneurons import PromptedModel, RunOptions, SoftPrompt
from tl_skillneurons.attention import PromptAttention, attention_over_task, example_pattern

TASK = tiny.task()
SIZES = [RunOptions(batch_size=n, progress=False) for n in (1, 5)]


def prompt(family):
    rows = 0.1 * torch.randn(3, 32, generator=torch.Generator().manual_seed(0))
    return SoftPrompt(rows, placement="prefix" if family in tiny.BIDIRECTIONAL else "suffix")


@pytest.mark.parametrize("family", tiny.CONFIGS)
def test_shares_sum_to_one_and_do_not_depend_on_the_batch(family):
    model, own = tiny.kept(family), prompt(family)
    one, many = (attention_over_task(model, own, TASK, run=sized) for sized in SIZES)
    torch.testing.assert_close(one.given, many.given, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(one.received, many.received, rtol=1e-4, atol=1e-5)
    n_positions = 4 if family in tiny.BIDIRECTIONAL else 3
    assert one.given.shape == (2, 2, 4, n_positions, 3) and one.n_examples == (8, 8)
    torch.testing.assert_close(one.given.sum(-1), torch.ones(2, 2, 4, n_positions).double())
    assert (one.received > 0).all() if family in tiny.BIDIRECTIONAL else (one.received == 0).all()


@pytest.mark.parametrize("family", ["bert", "llama"])
def test_it_is_the_mean_of_what_each_text_shows_alone(family):
    model, own = tiny.kept(family), prompt(family)
    found = attention_over_task(model, own, TASK, run=QUIET)
    prompted = PromptedModel(model, own)
    split = TASK.split("report")
    texts = [text for text, label in zip(split["text"], split["label"], strict=True) if label == 1]
    to_text = torch.zeros(4)
    for text in texts:
        names, pattern = example_pattern(model, own, text)
        tokens = prompted.tokens([text])
        words = (tokens.is_text & ~tokens.is_special)[0]
        query = names.index("<v1>")
        assert pattern.shape == (2, 4, len(names), len(names)) and len(names) == tokens.ids.shape[1]
        to_text += pattern[1, :, query, words].sum(-1) / len(texts)
    place = 2 if family == "bert" else 1  # after the mask
    torch.testing.assert_close(found.given[1, 1, :, place, 0].float(), to_text, rtol=1e-4, atol=1e-5)


def test_planted_heads_look_at_the_text_from_the_prompt():
    found = attention_over_task(planted.model(), planted.prompt(), planted.task(), run=QUIET)
    frame = found.to_dataframe()
    assert list(frame.columns[-4:]) == ["to_text", "to_special", "to_prompt", "from_text"]
    by_head = frame.groupby(["layer", "head"]).to_text.mean()
    assert set(by_head.nlargest(2).index) == set(planted.HEADS)


def test_attention_that_does_not_show_is_refused():
    model = tiny.bridge("bert")
    model.original_model.set_attn_implementation("sdpa")
    with pytest.raises(ValueError, match=r"fired in 0 of 2 layers.*eager"):
        attention_over_task(model, prompt("bert"), TASK, run=QUIET)


def test_it_comes_back_from_its_file_and_shows_itself_in_a_line(tmp_path):
    found = attention_over_task(tiny.kept("llama"), prompt("llama"), TASK, max_length=9, run=QUIET)
    again = PromptAttention.load(found.save(tmp_path / "attention.safetensors"))
    assert again.to_dataframe().equals(found.to_dataframe())
    assert again.settings == found.settings and found.settings["max_length"] == 9
    assert repr(found) == (
        "PromptAttention(n_layers=2, n_heads=4, n_prompt_positions=3, role='report', n_examples=(8, 8))"
    )
    assert "to_text" in found._repr_html_()


@pytest.mark.parametrize(
    "asked",
    [
        lambda model, prompt, task, skill: skn.attention.attention_over_task(model, prompt, task),
        lambda model, prompt, task, skill: skn.attention.head_writers(model, prompt, task, skill),
        lambda model, prompt, task, skill: skn.attention.source_words(model, prompt, task, skill, [(0, 1)]),
        lambda model, prompt, task, skill: skn.studies.word_selectivity(model, prompt, task, skill),
    ],
)
def test_a_prompt_outside_the_chat_that_the_texts_are_in_is_refused(asked):
    model, task = chats.chatting(), replace(TASK, chat=skn.tasks.Chat())
    with pytest.raises(
        ValueError, match="the prompt stands beside the text alone, the texts of 'tiny' in a Chat"
    ):
        asked(model, prompt("gpt2"), task, skn.NeuronSet([0], [3], n_layers=2, d_mlp=48))
