"""Which virtual tokens matter, and what are they?

MiniLM on built-in movie reviews, two prompts: a few minutes on two CPU cores.
"""

# %% A model, labelled text, two prompts and the scores of all neurons
import os

import pandas as pd

import tl_skillneurons as skn

SMALL = os.environ.get("SKILLNEURONS_SMALL") == "1"  # fewer examples and steps, for a quick check
model = skn.load_model("minilm")
task = skn.minimal_pairs("movie_reviews", n_pairs=60 if SMALL else 400, tokenizer=model.tokenizer)
n_steps = 10 if SMALL else 80
prompts = skn.fit_soft_prompts(
    model,
    task,
    n_virtual_tokens=4,
    n_steps=n_steps,
    seeds=[0, 1],
    training=skn.prompts.TrainingOptions(evaluate_every=n_steps // 4, snapshots=True),
)
scores = skn.score_neurons(model, prompts, task, keep_outcomes=True)

# %% A row per position: peaks beside a uniform share, nearest words beside chance, attention, accuracy without it
found = skn.studies.describe_prompt(model, prompts, task, scores, n_shuffles=2 if SMALL else 10)
pd.set_option("display.width", 250)
print("\npositions of each prompt: peaks and scores on role select, accuracies and attention on role report")
print(
    found.positions.drop(columns=["position", "role_of_scores", "role_of_accuracy"])
    .round(3)
    .to_string(index=False)
)
print("\neach prompt whole, and with its tokens in other orders")
print(found.prompts.round(3).to_string(index=False))
print(
    "\ndo the prompts agree on which positions matter? (Spearman over positions; of scores beside permuted labels)"
)
print(found.agreement.round(3).to_string(index=False))

# %% How it came about: every neuron scored with the prompts as they were during tuning, step 0 being random words
history = skn.studies.prompt_trajectory(model, prompts, task).to_dataframe()
shown = ["prompt", "step", "kept", "accuracy", "best", "level", "n_significant", "median"]
print(
    "\nfrom the initial prompt to the last, report accuracy; all neurons' predictivity on select, level of luck"
)
print(history[[*shown, "distance"]].round(3).to_string(index=False))
shown = ["prompt", "step", "top_on_select", "top_on_report", "random_on_report"]
print(
    "\nthe neurons that are the best 2 % of each layer in the end, and how near each step's ranking is to theirs"
)
beside = ["jaccard", "chance_jaccard", "p_shared", "spearman", "null_low", "null_high", "p_value"]
print(history[[*shown, *beside]].round(3).to_string(index=False))

# %% The same of prompts that were never tuned: what of the above needs training?
random = [
    skn.SoftPrompt(prompt.initial, placement=prompt.placement, readout=prompt.readout) for prompt in prompts
]
quiet = skn.RunOptions(progress=False)
of_random = skn.score_neurons(model, random, task, run=quiet)
control = skn.studies.describe_prompt(model, random, task, of_random, n_shuffles=1, run=quiet)
shown = ["prompt", "token", "peak_share", "uniform", "best", "nearest", "cosine", "chance_cosine", "without"]
print("\nthe prompts as they were before tuning")
print(control.positions[shown].round(3).to_string(index=False))

# %% What this does not show: that a token means the words it is near to, or that one that can be dropped is empty.
