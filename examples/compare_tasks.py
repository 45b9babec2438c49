"""Do tasks share skill neurons, does taking one task's away hurt the others, and do their prompts work on each other?

MiniLM on three built-in tasks: a few minutes on two CPU cores.
``python compare_tasks.py MODEL FOLDER...`` takes folders with train, validation and test .jsonl (those that
labelled_folders.py knows by their names, or two classes of text). Of more classes the first and last are told apart.
"""

# %% Tasks, a prompt and scores of each
import os
import sys
from pathlib import Path

from labelled_folders import load_task
from rich.console import Console

import tl_skillneurons as skn

SMALL = os.environ.get("SKILLNEURONS_SMALL") == "1"  # fewer examples and steps, for a quick check
model = skn.load_model(sys.argv[1] if len(sys.argv) > 1 else "minilm")
tuning = {"n_virtual_tokens": 4, "n_steps": 3 if SMALL else 60, "seeds": [0]}
if len(sys.argv) > 2:
    tuning["n_steps"] = 120
    tasks = {Path(folder).name: load_task(folder, binary=True, max_words=64) for folder in sys.argv[2:]}
    tasks = {name: task.limit(train=1000, select=400, report=300) for name, task in tasks.items()}
else:
    options = {"n_pairs": 60 if SMALL else 200, "tokenizer": model.tokenizer}
    tasks = {kind: skn.minimal_pairs(kind, **options) for kind in ("movie_reviews", "subject_verb")}
    tasks["other_reviews"] = skn.minimal_pairs("movie_reviews", disjoint_words=True, **options)
for name, task in tasks.items():
    print(f"{name}: {task.name}, {task.n_examples}")
prompts = {name: skn.fit_soft_prompts(model, task, **tuning)[0] for name, task in tasks.items()}
kept = {"keep_outcomes": True}  # single answers, so that labels can be permuted
scores = {name: skn.score_neurons(model, prompts[name], task, **kept) for name, task in tasks.items()}

# %% A control: the same texts, the same prompt, labels of select that mean nothing
console = Console(width=160)
first = next(iter(tasks))
noise = tasks[first].with_shuffled_labels(1, roles=("select",))
control = skn.score_neurons(model, prompts[first], noise, run=skn.RunOptions(progress=False), **kept)
found = skn.studies.compare_tasks({**scores, f"{first}, shuffled labels": control})
console.print(found.to_table())
print("\nSpearman by layer")
by_layer = found.pairs[found.pairs.layer >= 0].pivot(
    index=["one", "other"], columns="layer", values="spearman"
)
print(by_layer.round(3).to_string())

# %% Every prompt on every task; of few tasks a warning says that nothing foretold can be significant
if len(tasks) > 2:
    console.print(skn.studies.transfer_prompts(model, tasks, prompts, scores).to_table())

# %% Hold each task's best 2 % at their mean, measure each task; 20 draws of random neurons of the same layers
damage = skn.studies.cross_task_damage(
    model,
    {name: task.limit(report=12 if SMALL else 40) for name, task in tasks.items()},  # 61 passes for each cell
    prompts,
    {name: one.top(0.02) for name, one in scores.items()},
)
console.print(damage.to_table())
shown = ["ablated", "measured", "intact", "ablated_accuracy", "random_median", "random_min", "random_max"]
others = ["matched_median", "p_matched", "least_median", "p_least"]
print(damage.to_dataframe()[[*shown, "damage", "p_random", *others]].round(3).to_string(index=False))

# %% What this does not show: that shared neurons do the same for both tasks. Tasks on the same texts share what those
# texts make predictable, labels or not: that is what the shuffled row is for.
