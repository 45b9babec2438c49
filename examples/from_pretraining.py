"""Do skill neurons come from pre-training? Models without it, and models that learned the task in other ways.

MiniLM on built-in movie reviews: a few minutes on two CPU cores. ``python from_pretraining.py MODEL FOLDER`` takes
another packaged model ("smollm2") and a folder with train, validation and test .jsonl (sst2, by its name).
"""

# %% A model, labelled text, a tuned prompt and its skill neurons
import os
import sys

from rich.console import Console
from transformer_lens.tools.analysis.interchange import random_init_bridge

import tl_skillneurons as skn

SMALL = os.environ.get("SKILLNEURONS_SMALL") == "1"  # fewer examples and steps, for a quick check
name = sys.argv[1] if len(sys.argv) > 1 else "minilm"
model = skn.load_model(name)
if len(sys.argv) > 2:
    from labelled_folders import load_task

    task = load_task(sys.argv[2], binary=True).limit(train=1000, select=400, report=300)
else:
    task = skn.minimal_pairs("movie_reviews", n_pairs=60 if SMALL else 400, tokenizer=model.tokenizer)
tuning = {"n_virtual_tokens": 4, "n_steps": 3 if SMALL else 100, "seeds": [0]}
[prompt] = skn.fit_soft_prompts(model, task, **tuning)
scores = skn.score_neurons(model, prompt, task)
skill = scores.top(0.02)

# %% The same discovery without pre-training (random weights), and with its parts but not the whole (layers shuffled)
untrained = random_init_bridge(str(skn.packaged_model(name)), seed=0)
found = skn.studies.over_checkpoints(
    {"random weights": untrained, "layers shuffled": skn.models.shuffle_layers(model), "pre-trained": model},
    task,
    **tuning,
)
Console(width=160).print(found.to_table())

# %% The task learned in other ways, the weights of the MLPs frozen
methods = (
    ["lora", "adapter", "bitfit"] if name == "minilm" else ["lora", "adapter"]
)  # Llama models have no biases
steps = 3 if SMALL else 300
adapted = {
    "tuned prompt": skn.studies.AdaptedModel(
        model, prompt, "prompt", sum(p.numel() for p in prompt.parameters())
    )
}
adapted |= {how: skn.studies.adapt(model, task, how, n_steps=steps) for how in methods}

# %% Are the neurons that the prompt found needed there too? Beside random neurons, 20 draws of each control
damage = skn.studies.measure_adapted(adapted, task, skill, positions=("all",))
shown = [
    "adapted",
    "n_trained",
    "metric",
    "intact",
    "value",
    "random_median",
    "random_min",
    "random_max",
    "p_random",
]
print(
    f"\n{len(skill)} skill neurons of the tuned prompt held at their mean, on {damage.n_examples[0]} examples of report"
)
print(damage[[*shown, "matched_median", "p_matched"]].round(3).to_string(index=False))

# %% What this does not show: that the neurons came from pre-training rather than from what these methods share, the
# texts and the read-out; nor what happens where the weights of the MLPs are trained.
