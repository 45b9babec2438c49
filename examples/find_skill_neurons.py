"""Which neurons of a small language model carry the sentiment of a movie review, and does the model use them?

SmolLM2-135M-Instruct, built-in movie reviews: about six minutes on two CPU cores.
"""

# %% A model, and labelled text whose every sentence has a twin with one word changed
import os

import tl_skillneurons as skn

SMALL = os.environ.get("SKILLNEURONS_SMALL") == "1"  # fewer examples and steps, for a quick check
model = skn.load_model("minilm" if SMALL else "smollm2")
task = skn.minimal_pairs("movie_reviews", n_pairs=80 if SMALL else 400, tokenizer=model.tokenizer, seed=0)

# %% Train soft prompts, everything else frozen, and score every neuron at every virtual token
prompts = skn.fit_soft_prompts(model, task, n_virtual_tokens=8, seeds=range(2), n_steps=40)
scores = skn.score_neurons(model, prompts, task)
skill = scores.top(0.02)

# %% The best neurons: select chose them, report did not
on_report = skn.scores.evaluate_rules(model, prompts, task, scores, skill)
chance = scores.chance_level()
print(f"\n{len(skill)} skill neurons; the best of all scores reaches {chance.expected:.3f} by luck alone")
print("all of them:", on_report)
print(on_report.to_dataframe().head(5).round(3).to_string(index=False))

# %% Does the model use them? Hold them at their mean at the prompt, beside 20 sets of random and 20 of matched neurons
panel = skn.measure_effects(model, prompts, task, skill, interventions=["mean"])
frame = panel.to_dataframe()
shown = ["prompt", "metric", "intact", "value", "random_median", "random_min", "p_random"]
shown += ["matched_median", "matched_min", "p_matched"]
print(f"\nthe effect on {frame.n_examples[0]} examples of role {panel.role}, for each prompt and pooled")
print(frame[frame.metric.isin(["accuracy", "logit_diff"])][shown].round(3).to_string(index=False))

# %% What this does not show: that each of them matters (only the set was ablated), or that they know more than these
# words; with disjoint_words=True no sentiment word stands in two roles.
