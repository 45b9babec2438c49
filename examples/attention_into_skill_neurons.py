"""Which attention heads bring the label to the skill neurons, and from which words?

MiniLM on built-in movie reviews: about a minute on two CPU cores. ``python attention_into_skill_neurons.py FOLDER``
(with train, validation and test .jsonl, see labelled_folders.py) takes SmolLM2-135M: about six minutes.
"""

# %% A model, labelled text, a prompt, and the neurons that tell its labels apart best
import os
import sys

from labelled_folders import load_task
from rich.console import Console

import tl_skillneurons as skn

SMALL = os.environ.get("SKILLNEURONS_SMALL") == "1"  # fewer examples and steps, for a quick check
if len(sys.argv) > 1:
    model = skn.load_model("smollm2")
    task = load_task(sys.argv[1], binary=True).limit(train=1000, select=400, report=300)
    tuning = {"n_virtual_tokens": 8, "n_steps": 100}
else:
    model = skn.load_model("minilm")
    task = skn.minimal_pairs("movie_reviews", n_pairs=60 if SMALL else 400, tokenizer=model.tokenizer)
    tuning = {"n_virtual_tokens": 4, "n_steps": 40 if SMALL else 60}
[prompt] = skn.fit_soft_prompts(model, task, seeds=[0], **tuning)
scores = skn.score_neurons(model, prompt, task)
skill = scores.top(4 if SMALL else 16, per="model")
random = skill.random_like(0)

# %% The parts of one text's pre-activations sum to the whole
texts = list(task.split("report")["text"])
parts = skn.attention.decompose(model, prompt, texts[:1], skill)
print(f"\nleft unexplained: {parts.remainder.abs().max():.1e} of {parts.total.abs().max():.1f}")

# %% Which heads separate the labels at these neurons, chosen on role select; the same for as many random neurons of
# their layers. The heads remember what chose them: what follows is measured on role report
found = skn.attention.head_writers(model, prompt, task, skill)
control = skn.attention.head_writers(model, prompt, task, random)
shown = ["layer", "head", "difference", "share", "n_significant", "at_most", "low", "high", "p_family"]
print(f"\nheads that separate the labels at {len(skill)} skill neurons, on role {found.role}")
print(found.to_dataframe()[shown].head(10).round(3).to_string(index=False))
print("\nthe same at random neurons of the same layers")
print(control.to_dataframe()[shown].head(5).round(3).to_string(index=False))

# %% From which words they move it
heads = found.top_heads(3)
words = skn.attention.source_words(model, prompt, task, skill, heads).to_dataframe()
print(f"\ntokens that heads {heads} move most from, of those that stand in at least 5 texts")
print(words[words.n >= 5].head(10).round(3).to_string(index=False))
for text in texts[:2]:
    Console().print(skn.attention.coloured_sources(model, prompt, text, skill, heads))

# %% Do they matter? Hold the outputs of ten heads at their mean, at the prompt; 20 draws of random heads
ten = found.top_heads(3 if SMALL else 10)
effects = skn.attention.head_effects(model, prompt, task, ten, skill, n_random=20)
print(f"\nheads {ten} held at their mean")
print(effects.to_dataframe().round(3).to_string(index=False))

# %% What this does not show: that nothing else does the same; nor where a head got the label from: at later layers
# a position holds more than its own word.
