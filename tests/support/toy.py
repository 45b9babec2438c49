"""A toy task over random words, prompts of random numbers for it, and activations read one text at a time."""

import tiny
import torch

import tl_skillneurons as skn
from tl_skillneurons.prompts.run import RunOptions

LABEL_WORDS = {0: "negative", 1: "positive"}
EXACT = 1e-12  # a few roundings of 1e-16 on numbers of order 1, in models that compute in float64 throughout
HOOKS = ["blocks.0.mlp.hook_post", "blocks.1.mlp.hook_post"]
QUIET = RunOptions(progress=False)
"""Without a progress bar."""


def prompt_for(family, seed=0, n=3, **more):
    placement = "prefix" if family in tiny.BIDIRECTIONAL else "suffix"
    embedding = torch.randn(n, 32, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return skn.SoftPrompt(embedding, **{"placement": placement, **more})


def task_of(rows, label_words=LABEL_WORDS, **roles):
    """A task of ``rows`` split in three: 24 for train and baseline, the next 15 for select, the rest for report."""
    splits = {"train": rows[:24], "validation": rows[24:39], "test": rows[39:], **roles}
    return skn.Task.from_datasets(
        splits, template="{text}", label="label", label_words=label_words, name="toy", drop=()
    )


ROWS = tiny.sentences(54, seed=2)  # select: 8 of label 0 and 7 of label 1
TASK = task_of(ROWS)


def read(model, prompt, texts):
    """``[example, layer, position, neuron]`` at the prompt positions, one text at a time."""
    prompted = skn.PromptedModel(model, prompt)
    rows = []
    for text in texts:
        ids = prompted.tokens([text]).ids[0].tolist()
        at = [c for c, i in enumerate(ids) if i >= tiny.D_VOCAB or i == tiny.VOCABULARY["<mask>"]]
        with torch.no_grad():
            _, cache = prompted.run_with_cache([text], names_filter=HOOKS)
        rows.append(torch.stack([cache[name][0, at] for name in HOOKS]))
    return torch.stack(rows)


def read_alone(model, prompt, text, positions):
    """``[layer, position, neuron]`` of one text, with its own tokens found by the words in it."""
    prompted = skn.PromptedModel(model, prompt)
    ids = prompted.tokens([text]).ids[0].tolist()
    with torch.no_grad():
        _, cache = prompted.run_with_cache([text], names_filter=HOOKS)
    acts = torch.stack([cache[name][0] for name in HOOKS])
    at_prompt = [c for c, i in enumerate(ids) if i >= tiny.D_VOCAB or i == tiny.VOCABULARY["<mask>"]]
    own = [c for c, i in enumerate(ids) if len(tiny.SPECIAL) <= i < tiny.D_VOCAB]
    assert len(own) == len(text.split())
    if positions == "prompt":
        return acts[:, at_prompt]
    if positions == "last":
        return acts[:, own[-1:]]
    rows = acts[:, own]
    return rows.mean(1, keepdim=True) if positions == "mean" else rows.amax(1, keepdim=True)


def slow_scores(model, prompt, positions, task=TASK, role="select", baseline=None):
    """Baseline, standard deviation, mean absolute value and counts, an example at a time."""
    reference = [read_alone(model, prompt, text, positions) for text in task.split("baseline")["text"]]
    n = len(reference)
    mean = sum(reference) / n if baseline is None else baseline
    std = (sum((acts - mean) ** 2 for acts in reference) / n).sqrt()
    absolute = sum(acts.abs() for acts in reference) / n
    correct = torch.zeros(mean.shape, dtype=torch.int64)
    for text, label in zip(task.split(role)["text"], task.split(role)["label"], strict=True):
        correct += (read_alone(model, prompt, text, positions) > mean) == bool(label)
    return mean, std, absolute, correct
