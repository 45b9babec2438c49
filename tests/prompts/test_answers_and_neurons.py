"""Answers and neurons of one run of the texts, against a run for each."""

import chats
import pytest
import tiny
import torch
from toy import EXACT, LABEL_WORDS, ROWS, prompt_for

import tl_skillneurons as skn
from tl_skillneurons.prompts.run import RunOptions
from tl_skillneurons.tasks.chat import Chat

TEXTS = [row["text"] for row in ROWS[:7]]


@pytest.mark.parametrize("family", ["gpt2", "bert", "gpt2 in a chat"])
def test_answers_and_neurons_are_those_of_a_run_for_each(family, monkeypatch):
    if family == "gpt2 in a chat":
        model, prompt, chat = chats.chatting(dtype=torch.float64), None, Chat(assistant="the film is")
    else:
        model, prompt, chat = tiny.bridge(family, dtype=torch.float64), prompt_for(family), None
    prompted = skn.PromptedModel(model, prompt, LABEL_WORDS, chat=chat, run=RunOptions(batch_size=3))
    n_runs = []
    whole = skn.PromptedModel.forward
    monkeypatch.setattr(
        skn.PromptedModel, "forward", lambda self, *args: n_runs.append(1) or whole(self, *args)
    )
    answers, neurons = skn.prompts.answers_and_neurons(prompted, TEXTS)
    assert len(n_runs) == 3  # batches of 7 texts, each run once
    torch.testing.assert_close(answers, prompted.class_logits(TEXTS), rtol=0, atol=EXACT)
    expected = skn.prompts.neuron_activations(model, prompt, TEXTS, positions="readout", chat=chat)
    torch.testing.assert_close(neurons, expected, rtol=0, atol=EXACT)


def test_what_takes_more_than_one_run_is_refused():
    model = tiny.bridge("gpt2")
    words = {0: "not good", 1: "positive"}
    with pytest.raises(ValueError, match="label words of several tokens are read at several positions"):
        skn.prompts.answers_and_neurons(skn.PromptedModel(model, prompt_for("gpt2"), words), TEXTS)
    with pytest.raises(ValueError, match="texts must not be empty"):
        skn.prompts.answers_and_neurons(skn.PromptedModel(model, prompt_for("gpt2"), LABEL_WORDS), [])
