"""Put the skill neurons' values of one review into its twin of the other label: does the answer go along?

MiniLM on built-in movie reviews, twins that differ in one word: about a minute on two CPU cores.
"""

# %% A model, twins, a prompt, and the neurons that tell the labels apart
import os

import tl_skillneurons as skn

SMALL = os.environ.get("SKILLNEURONS_SMALL") == "1"  # fewer examples and steps, for a quick check
model = skn.load_model("minilm")
task = skn.minimal_pairs("movie_reviews", n_pairs=120, tokenizer=model.tokenizer)
[prompt] = skn.fit_soft_prompts(model, task, n_virtual_tokens=4, seeds=[0], n_steps=60)
skill = skn.score_neurons(model, prompt, task).top(4 if SMALL else 10)

# %% Both directions, at the prompt: clean into corrupted (enough?), corrupted into clean (needed?)
found = skn.patch_neurons(model, prompt, task, skill, curves=() if SMALL else ("layer",))
frame = found.to_dataframe()
shown = ["direction", "curve", "layer", "n_neurons", "recovered", "low", "high"]
controls = ["random_median", "random_max", "p_random", "placebo_median", "placebo_max", "p_placebo"]
print(f"\n{len(skill)} skill neurons exchanged between {frame.n_pairs[0]} pairs of role report")
print(frame[shown + controls].round(3).to_string(index=False))

# %% What this does not show: that these neurons are the only ones that could; a set that recovers little may act only
# together with others, and one that recovers much may still be replaced by others when it is missing (ablate it).
