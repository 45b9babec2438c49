"""A model pruned to its skill neurons: how small, how fast, how good? Beside other neurons, equally many.

MiniLM on built-in movie reviews: some minutes on two CPU cores. ``python prune.py MODEL FOLDER`` takes another model
("smollm2") and, if given, a folder with train, validation and test .jsonl (sst2, by its name).
"""

# %% A model, labelled text, a prompt, and the scores of its neurons
import os
import statistics
import sys
import time
from itertools import product

import pandas as pd
import torch
from torch.utils.flop_counter import FlopCounterMode

import tl_skillneurons as skn
from tl_skillneurons.stats.paired_equivalence import equivalence

SMALL = os.environ.get("SKILLNEURONS_SMALL") == "1"  # fewer examples and steps, for a quick check
SHARES = (0.1,) if SMALL else (0.02, 0.1, 0.3)
MARGIN = 0.03  # accuracies that differ by less are called equivalent
BATCH, LENGTH = 16, 64  # for the latency; virtual tokens included
model = skn.load_model(sys.argv[1] if len(sys.argv) > 1 else "minilm")
if len(sys.argv) > 2:
    from labelled_folders import load_task

    task = load_task(sys.argv[2], binary=True).limit(train=1000, select=400, report=400)
else:
    n_pairs = 40 if SMALL else 400
    task = skn.minimal_pairs("movie_reviews", n_pairs=n_pairs, tokenizer=model.tokenizer)
quiet = skn.RunOptions(progress=False)
tuning = {"n_virtual_tokens": 4, "n_steps": 3 if SMALL else 60, "seeds": [0], "run": quiet}
[prompt] = skn.fit_soft_prompts(model, task, **tuning)
scores = skn.score_neurons(model, prompt, task)

# %% What the dropped neurons are held at: their mean at the prompt, as in the paper, or at the text, most of the tokens
at_text = skn.score_neurons(model, None, task, positions="mean", run=quiet)
values = {"prompt": scores.mean_baseline(), "text": at_text.mean_baseline()}

# %% The controls: neurons by luck, by how active they are, and the most predictive of labels that mean nothing
noise = task.with_shuffled_labels(1, roles=("select",))
of_noise = skn.score_neurons(model, prompt, noise, run=quiet)
n_layers, d_mlp = scores.n_layers, scores.d_mlp
active = scores.mean_absolute()


def kept(share, arm):
    skill = scores.top(share)
    if arm == "random":
        return skill.random_like(0, exclude=False)
    if arm == "most active":
        index = active.argsort(dim=1, descending=True)[:, : len(skill) // n_layers]
        layer = torch.arange(n_layers).repeat_interleave(index.shape[1])
        return skn.NeuronSet(layer, index.flatten(), n_layers, d_mlp)
    return of_noise.top(share) if arm == "shuffled labels" else skill


# %% What is measured: right answers on report, time and arithmetic of one batch, numbers of parameters
def right(of, its_prompt):
    prompted = skn.PromptedModel(of, its_prompt, task.label_words)
    split = task.split("report")
    with torch.no_grad():
        return prompted.class_logits(split["text"]).argmax(1) == torch.tensor(split["label"])


words = " ".join(task.split("report")["text"]).split()
long_texts = [" ".join(words[start : start + 2 * LENGTH]) for start in range(BATCH)]
long_texts = [f"{text} " * (1 + 4 * LENGTH // len(text.split())) for text in long_texts]  # and cut to LENGTH


one_batch = skn.RunOptions(batch_size=BATCH, progress=False)


def answer(of):
    prompted = skn.PromptedModel(of, prompt, task.label_words, max_length=LENGTH, run=one_batch)
    with torch.no_grad():
        prompted.class_logits(long_texts)


def latency_ratio(one, other, n_pairs):
    """The first model's time over the second's: the median of pairs that run one after the other."""
    ratios = []
    for _ in range(n_pairs + 1):
        took = []
        for timed in (one, other):
            start = time.perf_counter()
            answer(timed)
            took.append(time.perf_counter() - start)
        ratios.append(took[0] / took[1])
    return statistics.median(ratios[1:])  # the first pair warms up


def n_flops(of):
    with FlopCounterMode(display=False) as counter:
        answer(of)
    return counter.get_total_flops()


def n_parameters(of):
    return sum(p.numel() for p in of.parameters())


# %% Every share of neurons, in all layers and sparing the first quarter as the paper does, beside the controls
intact = right(model, prompt)
units = task.units("report")  # texts with the same words are no independent answers
answer(model)  # what is looked up once per model is looked up now
whole_flops, whole = n_flops(model), n_parameters(model)
print(
    f"\nintact: {intact.double().mean():.3f} on {len(intact)} examples of role report, {whole / 1e6:.1f}M parameters"
)
rows = []
places = ((None, "all"), (range(n_layers // 4, n_layers), "last three quarters"))
for layers, where in places[1:] if SMALL else places:
    for share in SHARES:
        for mean, arm in product(values, ("skill", "random", "most active", "shuffled labels")):
            smaller = skn.prune(model, kept(share, arm), values[mean], layers=layers)
            now = right(smaller, prompt)
            [again] = skn.fit_soft_prompts(smaller, task, **tuning)
            tuned = right(smaller, again)
            row = {
                "layers": where,
                "kept": share,
                "held_at": mean,
                "neurons": arm,
                "accuracy": now.double().mean().item(),
                "p_equivalent": equivalence(intact, now, margin=MARGIN, units=units).p_value,
                "tuned_again": tuned.double().mean().item(),
                "p_tuned_equivalent": equivalence(intact, tuned, margin=MARGIN, units=units).p_value,
            }
            if (mean, arm) == ("prompt", "skill"):  # the others are as large
                row["parameters"] = n_parameters(smaller) / whole
                row["times_faster"] = latency_ratio(model, smaller, 3 if SMALL else 9)
                row["flop_ratio"] = whole_flops / n_flops(smaller)
            rows.append(row)
            print(
                f"{where} layers, {share:.0%} kept, {arm}, held at {mean}: {row['accuracy']:.3f}, tuned again "
                f"{row['tuned_again']:.3f}",
                file=sys.stderr,
            )
print(
    f"\nmodels pruned to their neurons; p: of not being within {MARGIN} of intact (two one-sided tests, {units})"
)
print(
    f"times_faster: {BATCH} texts of {LENGTH} tokens, median of pairs; flop_ratio is what arithmetic alone would give"
)
print(pd.DataFrame(rows).round(3).to_string(index=False, na_rep=""))

# %% What this does not show: that the dropped neurons were useless for anything else than this task.
