"""A toy task over random words, prompts of random numbers for it, and activations read one text at a time."""

import tiny
import torch

import tl_skillneurons as skn
from tl_skillneurons.prompts.run import RunOptions

LABEL_WORDS = {0: "negative", 1: "positive"}
EXACT = 1e-12  # a few roundings of 1e-16 on numbers of order 1, in models that compute in float64 throughout
HOOKS = ["blocks.0.mlp.hook_post", "blocks.1.mlp.hook_post"]


def prompt_for(family, seed=0, n=3, **more):
    placement = "prefix" if family in tiny.BIDIRECTIONAL else "suffix"
    embedding = torch.randn(n, 32, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return skn.SoftPrompt(embedding, **{"placement": placement, **more})


def task_of(rows, label_words=LABEL_WORDS, **roles):
    """A task of ``rows`` split in three: 24 for train and baseline, the next 15 for select, the rest for report."""
    splits = {"train": rows[:24], "validation": rows[24:39], "test": rows[39:], **roles}
    return skn.Task.from_datasets(
        splits, template="{text}", label="label", label_words=label_words, name="toy", overlap="refuse"
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


QUIET = RunOptions(progress=False)
"""Without a progress bar."""
