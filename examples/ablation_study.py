"""What do skill neurons do? A panel of interventions, each beside random and matched neurons.

MiniLM on built-in movie reviews: a minute and a half on two CPU cores. ``python ablation_study.py FOLDER`` (with
train, validation and test .jsonl, see labelled_folders.py; of more than two classes the first and the last are told
apart) takes SmolLM2-135M, 0.5, 1, 2 and 5 % of each layer.
"""

# %% A model, labelled text, a prompt, and the neurons that tell its labels apart
import os
import sys

from labelled_folders import load_task

import tl_skillneurons as skn
from tl_skillneurons.interventions import Beyond, Scale

SMALL = os.environ.get("SKILLNEURONS_SMALL") == "1"  # fewer examples and steps, for a quick check
if len(sys.argv) > 1:
    model = skn.load_model("smollm2")
    task = load_task(sys.argv[1], binary=True).limit(train=1000, select=400, report=300)
    tuning = {"n_virtual_tokens": 8, "n_steps": 100}
    sizes, interventions = (0.005, 0.01, 0.02, 0.05), ("mean", "other_class_mean", "keep")
else:
    model = skn.load_model("minilm")
    task = skn.minimal_pairs("movie_reviews", n_pairs=60 if SMALL else 200, tokenizer=model.tokenizer)
    tuning = {"n_virtual_tokens": 4 if SMALL else 8, "n_steps": 5 if SMALL else 60}
    sizes, interventions = (0.02,), ("mean",) if SMALL else ("mean", "keep")
[prompt] = skn.fit_soft_prompts(model, task, seeds=[0], **tuning)
scores = skn.score_neurons(model, prompt, task)
skill = scores.top(sizes[-1])
sets = skill.nested(sizes)

# %% Hold them at their mean, keep nothing but them: at the prompt, 20 draws of each control
panel = skn.measure_effects(
    model,
    prompt,
    task,
    sets,
    interventions=interventions,
    n_random=20,
    beyond=Beyond(direct=True),
)
frame = panel.to_dataframe()
shown = ["effect", "intervention", "set", "intact", "value", "change_low", "change_high"]
controls = ["random_median", "random_min", "p_random", "matched_median", "p_matched"]
for metric in ("accuracy", "logit_diff"):
    print(
        f"\n{metric} on {len(task.split('report'))} examples of role {panel.role}, {len(skill)} neurons at most"
    )
    print(frame[frame.metric == metric][shown + controls].round(3).to_string(index=False))

# %% The ends of a dose-response curve: all activations of the set times 0 and 2
curve = skn.measure_effects(
    model,
    prompt,
    task,
    skill,
    interventions=[Scale(0.0), Scale(2.0)],
    n_random=20,
).to_dataframe()
curve = curve[curve.metric == "logit_diff"]
print("\nlogit diff with the neurons times a factor")
print(
    curve[["intervention", "value", "random_median", "random_min", "random_max"]]
    .round(3)
    .to_string(index=False)
)

# %% What this does not show: which neuron of the set matters, or that a harmless set is unused (compare direct with
# total effects: later layers may repair the damage). Each p-value stands alone; many rows make small ones by luck.
