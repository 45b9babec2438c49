"""Are skill neurons just selective for words? Weights, single words, texts without the strongest, other label words.

MiniLM on built-in movie reviews, and for label words SmolLM2-135M: four minutes on two CPU cores. ``python
not_words.py FOLDER`` (with train, validation and test .jsonl, see labelled_folders.py) takes SmolLM2 for all of it.
"""

# %% Two tasks: reviews whose roles share words, and reviews whose roles share none
import os
import sys

from labelled_folders import load_task

import tl_skillneurons as skn

SMALL = os.environ.get("SKILLNEURONS_SMALL") == "1"  # fewer examples and steps, for a quick check
if len(sys.argv) > 1:
    model = skn.load_model("smollm2")
    task = load_task(sys.argv[1], binary=True)
    tasks = {"shared words": task.limit(train=600, select=300, report=600)}
    settings = {"n_virtual_tokens": 4, "n_steps": 60, "seeds": [0]}
else:
    model = skn.load_model("minilm")
    pairs = {"n_pairs": 48 if SMALL else 300, "tokenizer": model.tokenizer}
    tasks = {
        "shared words": skn.minimal_pairs("movie_reviews", **pairs),
        "disjoint words": skn.minimal_pairs("movie_reviews", disjoint_words=True, **pairs),
    }
    settings = {"n_virtual_tokens": 4, "n_steps": 10 if SMALL else 60, "seeds": [0]}
prompts, scores = {}, {}
for name, task in tasks.items():
    prompts[name] = skn.fit_soft_prompts(model, task, **settings)
    scores[name] = skn.score_neurons(model, prompts[name], task)

# %% The same rules on words that no other role has: what is left of the accuracy is not memory of words
for name, task in tasks.items():
    top = scores[name].top(10, per="model")
    print(f"{name}: the best", skn.scores.evaluate_rules(model, prompts[name], task, scores[name], top))
task, [prompt] = tasks["shared words"], prompts["shared words"]
skill = scores["shared words"].top(20, per="model")

# %% The same rules on texts without the words that go most with the label, beside random neurons and the prompt
strong = {"n_words": 20} if len(sys.argv) > 1 else {"n_words": 60, "min_texts": 1 if SMALL else 2}
found = skn.studies.accuracy_without_words(model, prompt, task, scores["shared words"], skill, **strong)
print(f"\nthe {len(found.words)} strongest words of role train, with their correlation with label 1:")
print(", ".join(f"{row.word} {row.r:+.2f}" for row in found.words.head(12).itertuples()), "...")
print(f"accuracy of the {len(skill)} best neurons on role report, and of as many random ones of their layers")
shown = ["texts", "n_examples", "accuracy", "low", "high", "majority"]
controls = ["random_median", "random_max", "p_random", "prompt_accuracy"]
print(found.to_dataframe()[shown + controls].round(3).to_string(index=False))

# %% How much of a neuron does one word explain? The best neurons beside random ones of the same layers
print("\nwhat single words of the text explain at the prompt positions, on role report")
for name, neurons in (("skill", skill), ("random", skill.random_like(0))):
    frame = skn.studies.word_selectivity(model, prompt, task, neurons, n_permutations=199 if SMALL else 1000)
    print(
        f"{name}: one word explains {frame.word_r.pow(2).mean():.3f} of the variance on average, the label "
        f"{frame.label_r.pow(2).mean():.3f}; of {len(frame)}, {frame.token_detector.sum()} are token detectors, "
        f"{frame.length_neuron.sum()} follow length, {frame.position_neuron.sum()} follow position (most "
        f"{frame.position_share.max():.2f} of the variance), {frame.dead.sum()} are dead"
    )
    if name == "skill":
        columns = ["layer", "index", "word", "word_r", "p_word", "label_r", "length_r", "position_share"]
        print(frame[columns].head(8).round(3).to_string(index=False))

# %% Words near to their weights, beside how near random neurons come
print("\nwords nearest to input and output weights")
print(
    skn.studies.weight_words(model, scores["shared words"].top(5, per="model"))
    .round(3)
    .to_string(index=False)
)

# %% Other label words: do they change the set more than another seed does? MiniLM has no head to read any with
if len(sys.argv) == 1:
    model = skn.load_model("smollm2")
    task = skn.minimal_pairs("movie_reviews", n_pairs=40 if SMALL else 100, tokenizer=model.tokenizer)
    settings = {"n_virtual_tokens": 4, "n_steps": 2 if SMALL else 40}
compared = skn.studies.compare_label_words(
    model,
    task,
    {} if SMALL else {"bad or good": {0: " bad", 1: " good"}},
    n_random=1,
    n_permutations=19 if SMALL else 1000,
    **{**settings, "seeds": [0, 1]},
)
print("\neach wording of the labels: did its prompts learn, and are its best neurons above luck?")
shown = ["wording", "seed", "words", "prompt_accuracy", "best_ten", "majority", "best", "level"]
print(compared.wordings[shown].round(3).to_string(index=False))
print("\nhow alike the neurons are (Spearman of all, Jaccard of each layer's best 2 % beside chance)")
print(compared.summary().round(3).to_string(index=False))

# %% What this does not show
print(
    "\nThis does not show that no words matter: a neuron can follow a set of words, each of which explains little, or "
    "weaker words than those left out; and a set that outlives its label words may be about anything else that goes "
    "with the labels."
)
