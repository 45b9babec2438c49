"""Which neurons of a small language model carry the sentiment of a movie review, and does the model use them?

SmolLM2-135M-Instruct, built-in movie reviews: under five minutes on two CPU cores.
"""

# %% A model, and labelled text whose every sentence has a twin with one word changed
import os

import tl_skillneurons as skn

SMALL = os.environ.get("SKILLNEURONS_SMALL") == "1"  # fewer examples and steps, for a quick check
model = skn.load_model("minilm" if SMALL else "smollm2")
task = skn.minimal_pairs("movie_reviews", n_pairs=400, tokenizer=model.tokenizer, seed=0)

# %% Train soft prompts, everything else frozen, and score every neuron at every virtual token
prompts = skn.fit_soft_prompts(model, task, n_virtual_tokens=8, seeds=range(2), n_steps=40)
scores = skn.score_neurons(model, prompts, task)
skill = scores.top(0.02)

# %% The best neurons: select chose them, report did not
on_report = scores.rule_accuracy(skill, skn.scores.rule_accuracy(model, prompts, task, scores, role="report"))
chance = scores.chance_level()
print(f"\n{len(skill)} skill neurons; the best of all scores reaches {chance.expected:.3f} by luck alone")
best = skill.to_dataframe().assign(select=scores.rule_accuracy(skill), report=on_report).head(5)
print(best.round(3).to_string(index=False))

# %% Does the model use them? Hold them at their mean, and as many random neurons of the same layers
values = [scores.mean_baseline(k) for k in range(len(prompts))]
effect = skn.interventions.ablation_effect(model, prompts, task, skill, values=values, n_random=5)
random = effect.random.mean(0)
print(f"\naccuracy on {effect.n_examples} examples of role {effect.role}")
print(f"  intact                  {effect.intact.mean():.3f}")
print(f"  skill neurons ablated   {effect.ablated.mean():.3f}")
print(f"  random neurons ablated  {random.median():.3f} ({random.min():.3f} to {random.max():.3f})")

# %% What this does not show: that each of them matters (only the set was ablated), or that they know more than these
# words; with disjoint_words=True no sentiment word stands in two roles.
