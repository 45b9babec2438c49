"""How far can a discovery be trusted? Chance level, report accuracy, stability, calibration and controls.

MiniLM on built-in movie reviews: a few minutes on two CPU cores. ``python trustworthy_discovery.py MODEL FOLDER`` takes
another model and a folder with train, validation and test .jsonl (see labelled_folders.py).
"""

# %% A model and labelled text
import os
import sys

from labelled_folders import load_task
from transformer_lens.tools.analysis.interchange import random_init_bridge

import tl_skillneurons as skn

SMALL = os.environ.get("SKILLNEURONS_SMALL") == "1"  # fewer examples and steps, for a quick check
name = sys.argv[1] if len(sys.argv) > 1 else "minilm"
model = skn.load_model(name)
if len(sys.argv) > 2:
    n_baseline = None if name == "minilm" else 400  # None: all of train; it is read again for every reading
    task = load_task(sys.argv[2], near_duplicates=0.8)
    task = task.limit(train=1200, baseline=n_baseline, select=400, report=400)
else:
    n_pairs = 80 if SMALL else 400
    task = skn.minimal_pairs("movie_reviews", n_pairs=n_pairs, tokenizer=model.tokenizer)
print(f"{task.name}: {task.n_examples}, dropped as also in a later role: {task.dropped}")
quiet = skn.RunOptions(progress=False)
tuning = {"n_virtual_tokens": 4, "n_steps": 10 if SMALL else 100}

# %% More than two classes: one prompt for all, each class scored against the rest in the same pass
if task.n_classes > 2:
    prompts = skn.fit_soft_prompts(model, task, seeds=range(2), **tuning)
    classes = skn.scores.score_classes(model, prompts, task, n_permutations=1000)
    for scores, word in zip(classes, task.label_words.values(), strict=True):
        rules = skn.scores.evaluate_rules(model, prompts, task, scores, run=quiet)
        best = scores.top(1, per="model")
        print(
            f"{word.strip()} against the rest: {len(scores.significant())} neurons significant on select, best "
            f"{scores.predictivity.max():.3f} (level {scores.null.level():.3f}), "
            f"on report {rules.accuracy_of(best)[0]:.3f}"
        )
    print(f"union of the best 0.5 % per class and layer: {len(skn.scores.top_union(classes, 0.005))} neurons")
    task = task.binary_subtasks("pairs")[0]
    print(f"\nwhat follows: {task.name}, {task.n_examples}")

# %% How many neurons luck does not explain, and how good they are on examples that chose nothing
prompts = skn.fit_soft_prompts(model, task, seeds=range(2), **tuning)
scores = skn.score_neurons(model, prompts, task, n_permutations=1000, keep_outcomes=True)
found = scores.significant()
null = scores.null
print(
    f"\nselect: best {scores.predictivity.max():.3f}; luck reaches {null.level():.3f} in 5 % of cases "
    f"({null.n_permutations} permutations; independent scores would {scores.chance_level().threshold:.3f}). "
    f"{len(found)} of {scores.predictivity.numel()} neurons are above, "
    f"{len(scores.significant(correction='fdr'))} at a false discovery rate of 5 %"
)
top = scores.top(10, per="model")
print("the best", skn.scores.evaluate_rules(model, prompts, task, scores, top))
if len(found):
    print("all significant", skn.scores.evaluate_rules(model, prompts, task, scores, found))

# %% Does the null keep its promise here? Labels shuffled, again and again
checked = skn.scores.check_calibration(scores.outcomes, n_repetitions=20 if SMALL else 200)
low, high = checked.false_interval
print(
    f"\nshuffled labels called significant in {checked.n_false} of {checked.n_repetitions} repetitions "
    f"(promised 5 %; interval {low:.3f} to {high:.3f}); a planted neuron of accuracy {checked.planted} found in "
    f"{checked.n_found}"
)

# %% Would another prompt, or other examples, have named the same? Is there a neuron outside that says the same?
skill = scores.top(0.02)
print(f"\nstability of {len(skill)} neurons, the best 2 % of each layer")
stable = skn.studies.diagnose(model, prompts, task, skill, scores=scores)
print(stable.to_dataframe().round(3).to_string(index=False))

# %% Do other scores name the same neurons?
others = skn.scores.score_labels(model, prompts, task, ["auc", "mean_difference", "mutual_information"])
compared = skn.studies.compare_scores({"predictivity": scores, **others})
print("\nagreement of scores, all neurons and the best 2 %, beside permuted labels where answers were kept")
print(compared.agreement.round(3).to_string(index=False))

# %% How much of the skill do k neurons carry?
own = skn.score_neurons(model, prompts[0], task, run=quiet)
print("\nthe best k neurons together, on report, beside the prompt and random neurons")
shown = ["k", "vote", "vote_low", "vote_high", "random_vote", "probe", "random_probe", "prompt", "n_examples"]
curve = skn.studies.vote_and_probe(model, prompts[0], task, own, [1, 4, 16, 64]).to_dataframe()
print(curve[shown].round(3).to_string(index=False))

# %% Why prompt tuning? The same scores with everything less
readings = skn.studies.compare_readings(
    model,
    prompts,
    task,
    natural=["all in all it was"],
    shuffled=tuning,
    reinitialised=random_init_bridge(str(skn.packaged_model(name)), seed=0),
)
print("\nreadings: the best ten neurons of each on report, and minus those of the tuned prompts")
print(readings.to_dataframe().round(3).to_string(index=False))

# %% What this does not show: that the model uses these neurons (measure_effects), or that they know the task rather
# than its words (minimal_pairs with disjoint words).
