"""Do tasks share skill neurons, and does taking one task's away hurt the others?

MiniLM on two built-in tasks: about a minute on two CPU cores.
``python compare_tasks.py MODEL FOLDER...`` takes folders of two-class data (train, validation, test .jsonl of ``text``
and ``label``).
"""

# %% Tasks, a prompt and scores of each
import os
import sys
from pathlib import Path

from rich.console import Console

import tl_skillneurons as skn

SMALL = os.environ.get("SKILLNEURONS_SMALL") == "1"  # fewer examples and steps, for a quick check
model = skn.load_model(sys.argv[1] if len(sys.argv) > 1 else "minilm")
if len(sys.argv) > 2:
    from datasets import load_dataset

    words = {0: " negative", 1: " positive"}
    tasks = {
        Path(folder).name: skn.Task.from_datasets(
            load_dataset(folder), template="{text}", label_words=words, name=Path(folder).name
        ).limit(train=1200, select=400, report=400)
        for folder in sys.argv[2:]
    }
else:
    n_pairs = 60 if SMALL else 200
    tasks = {
        kind: skn.minimal_pairs(kind, n_pairs=n_pairs, tokenizer=model.tokenizer)
        for kind in ("movie_reviews", "subject_verb")
    }
tuning = {"n_virtual_tokens": 4, "n_steps": 10 if SMALL else 60, "seeds": [0]}
prompts = {name: skn.fit_soft_prompts(model, task, **tuning) for name, task in tasks.items()}
scores = {name: skn.score_neurons(model, prompts[name], task) for name, task in tasks.items()}

# %% A control: the same texts, the same prompt, labels of select that mean nothing
first = next(iter(tasks))
noise = tasks[first].with_shuffled_labels(1, roles=("select",))
control = skn.score_neurons(model, prompts[first], noise, progress=False)
found = skn.compare_tasks({**scores, f"{first}, shuffled labels": control})
Console().print(found.to_table())
print("\nSpearman by layer")
by_layer = found.pairs[found.pairs.layer >= 0].pivot(
    index=["one", "other"], columns="layer", values="spearman"
)
print(by_layer.round(3).to_string())

# %% Ablate each task's best 2 %, measure each task; 20 draws of random neurons of the same layers
damage = skn.measure_damage(
    model,
    tasks,
    prompts,
    {name: one.top(0.02) for name, one in scores.items()},
    values={name: [one.mean_baseline()] for name, one in scores.items()},
)
print(
    "\naccuracy on report with one task's neurons held at their mean; damage is beyond that of random neurons"
)
print(damage.round(3).to_string(index=False))

# %% What this does not show: that shared neurons do the same for both tasks. Tasks on the same texts share what those
# texts make predictable, labels or not: that is what the shuffled row is for.
