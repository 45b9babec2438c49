"""A model pruned to its skill neurons: how small, how fast, how good? Beside other neurons, equally many.

MiniLM on built-in movie reviews: some minutes on two CPU cores. ``python prune.py smollm2`` takes SmolLM2-135M.
"""

# %% A model, labelled text, a prompt, and the scores of its neurons
import os
import statistics
import sys
import time

import pandas as pd
import torch

import tl_skillneurons as skn
from tl_skillneurons.intervals import equivalence

SMALL = os.environ.get("SKILLNEURONS_SMALL") == "1"  # fewer examples and steps, for a quick check
MARGIN = 0.03
model = skn.load_model(sys.argv[1] if len(sys.argv) > 1 else "minilm")
n_pairs = 60 if SMALL else 400
task = skn.minimal_pairs("movie_reviews", n_pairs=n_pairs, tokenizer=model.tokenizer)
tuning = {"n_virtual_tokens": 4, "n_steps": 10 if SMALL else 60, "seeds": [0], "progress": False}
[prompt] = skn.fit_soft_prompts(model, task, **tuning)
scores = skn.score_neurons(model, prompt, task)
values = scores.mean_baseline()

# %% The controls: neurons by luck, by how active they are, and the most predictive of labels that mean nothing
noise = task.with_shuffled_labels(1, roles=("select",))
of_noise = skn.score_neurons(model, prompt, noise, progress=False)
n_layers, d_mlp = values.shape
active = scores.mean_absolute()


def kept(share, arm):
    skill = scores.top(share)
    if arm == "random":
        return skill.random_like(0, exclude=False)
    if arm == "most active":
        index = active.argsort(dim=1, descending=True)[:, : len(skill) // n_layers]
        return skn.NeuronSet(
            torch.arange(n_layers).repeat_interleave(index.shape[1]), index.flatten(), n_layers, d_mlp
        )
    return of_noise.top(share) if arm == "shuffled labels" else skill


# %% Accuracy on report, right after pruning and with the prompt tuned again on the smaller model
def right(pruned, its_prompt):
    prompted = skn.PromptedModel(pruned, its_prompt, task.label_words)
    split = task.split("report")
    with torch.no_grad():
        return prompted.class_logits(split["text"]).argmax(1) == torch.tensor(split["label"])


def latency_ratio(one, other, n_runs):
    """Full over pruned: the median of paired runs of 16 texts of 64 tokens."""
    tokens = torch.randint(5, 1000, (16, 64), generator=torch.Generator().manual_seed(0))
    ratios = []
    for _ in range(n_runs + 1):
        took = []
        for timed in (one, other):
            start = time.perf_counter()
            with torch.no_grad():
                timed(tokens, return_type=None)
            took.append(time.perf_counter() - start)
        ratios.append(took[0] / took[1])
    return statistics.median(ratios[1:])  # the first pair warms up


def n_weights(of):
    return sum(p.numel() for block in of.blocks for p in block.parameters())


intact = right(model, prompt)
print(f"\nintact: {intact.double().mean():.3f} on {len(intact)} examples of role report")
rows = []
for layers, where in ((None, "all"), (range(n_layers // 4, n_layers), "all but the first quarter")):
    for share in (0.1,) if SMALL else (0.02, 0.05, 0.1, 0.3):
        for arm in ("skill", "random", "most active", "shuffled labels"):
            smaller = skn.prune(model, kept(share, arm), values, layers=layers)
            now = right(smaller, prompt)
            row = {"layers": where, "kept": share, "neurons": arm, "accuracy": now.double().mean().item()}
            row["p_equivalent"] = equivalence(intact, now, margin=MARGIN).p_value
            if arm in ("skill", "random"):
                [again] = skn.fit_soft_prompts(smaller, task, **tuning)
                tuned = right(smaller, again)
                row["tuned_again"] = tuned.double().mean().item()
                row["p_tuned_equivalent"] = equivalence(intact, tuned, margin=MARGIN).p_value
            if arm == "skill":
                row["weights"] = n_weights(smaller) / n_weights(model)
                row["times_faster"] = latency_ratio(model, smaller, 2 if SMALL else 9)
                row["flop_ratio"] = 1 / row["weights"]
            rows.append(row)
print(f"\nmodels pruned to their neurons; equivalent means within {MARGIN} of intact (two one-sided tests)")
print(pd.DataFrame(rows).round(3).to_string(index=False, na_rep=""))

# %% What this does not show: that the dropped neurons were useless for anything else than this task.
