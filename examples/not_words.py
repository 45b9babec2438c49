"""Are skill neurons just selective for words? Weights, single words, and texts whose words no other role has.

MiniLM on built-in movie reviews: about a minute on two CPU cores.
"""

# %% Two tasks: reviews whose roles share words, and reviews whose roles share none
import os

import tl_skillneurons as skn

SMALL = os.environ.get("SKILLNEURONS_SMALL") == "1"  # fewer examples and steps, for a quick check
model = skn.load_model("minilm")
settings = {"n_virtual_tokens": 4, "n_steps": 10 if SMALL else 60, "seeds": [0]}
tasks = {
    "shared words": skn.minimal_pairs(
        "movie_reviews", n_pairs=60 if SMALL else 300, tokenizer=model.tokenizer
    ),
    "disjoint words": skn.minimal_pairs(
        "movie_reviews", n_pairs=60 if SMALL else 300, tokenizer=model.tokenizer, disjoint_words=True
    ),
}
prompts, scores = {}, {}
for name, task in tasks.items():
    prompts[name] = skn.fit_soft_prompts(model, task, **settings)
    scores[name] = skn.score_neurons(model, prompts[name], task)

# %% The same rules on words that no other role has: what is left of the accuracy is not memory of words
for name, task in tasks.items():
    top = scores[name].top(10, per="model")
    print(f"{name}: the best", skn.selected_accuracy(model, prompts[name], task, scores[name], top))

# %% How much of a neuron does one word explain? The best neurons beside random ones of the same layers
task, [prompt] = tasks["shared words"], prompts["shared words"]
skill = scores["shared words"].top(20, per="model")
print("\nwhat single words of the text explain at the prompt positions, on role report")
for name, neurons in (("skill", skill), ("random", skill.random_like(0))):
    frame = skn.word_selectivity(model, prompt, task, neurons, n_permutations=199 if SMALL else 1000)
    print(
        f"{name}: one word explains {frame.word_r.pow(2).mean():.3f} of the variance on average, the label "
        f"{frame.label_r.pow(2).mean():.3f}; {frame.token_detector.sum()} of {len(frame)} are token detectors, "
        f"{frame.length_neuron.sum()} follow length, {frame.dead.sum()} are dead"
    )
    if name == "skill":
        print(
            frame[["layer", "index", "word", "word_r", "p_word", "label_r"]]
            .head(8)
            .round(3)
            .to_string(index=False)
        )

# %% Words near to their weights, beside how near random neurons come
print("\nwords nearest to input and output weights")
print(skn.weight_words(model, scores["shared words"].top(5, per="model")).round(3).to_string(index=False))

# %% What this does not show: a neuron can follow a set of words, each of which explains little.
