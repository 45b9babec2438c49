"""Which neurons read the answer to a question that a chat model is asked, and does its answer hang on them?

SmolLM2-135M-Instruct, by its chat template, on built-in movie reviews, and on words of four kinds with four choices: a
few minutes on two CPU cores. ``python chat_questions.py FOLDER...`` asks about the texts of such folders
(sst2, tweet_sentiment, ag_news; see labelled_folders.py): ten minutes each.
"""

# %% A chat model, and questions whose answers are known
import os
import random
import sys
from dataclasses import replace
from pathlib import Path

import pandas as pd
import torch
from datasets import load_dataset
from labelled_folders import load_task

import tl_skillneurons as skn
from tl_skillneurons.interventions import Beyond

SMALL = os.environ.get("SKILLNEURONS_SMALL") == "1"  # fewer questions, steps and controls, for a quick check
KINDS = {
    "bird": "robin eagle sparrow pigeon owl hawk swan duck goose crow parrot penguin falcon stork heron finch raven",
    "fish": "trout salmon tuna shark cod carp pike eel herring sardine perch bass halibut mackerel haddock ray sole",
    "insect": "ant bee wasp beetle moth fly mosquito cricket butterfly termite dragonfly ladybug flea locust aphid "
    "mantis gnat",
    "tree": "oak pine maple birch willow elm cedar spruce palm ash beech poplar walnut cypress fir chestnut larch",
}
SENTIMENT = {
    "movie_reviews": "Is this review positive or negative? {text}",
    "sst2": "Is this sentence from a film review positive or negative? {text}",
    "tweet_sentiment": "Is this tweet negative, neutral or positive? {text}",
}
TOPICS = ["World", "Sports", "Business", "Technology"]
n_train, n_select, n_report = (16, 40, 16) if SMALL else (160, 160, 120)
n_held = 8 if SMALL else 48  # examples of report that answer with neurons held
n_shuffled = 12 if SMALL else 80  # of each role, to compare shuffles
n_kinds = 2 if SMALL else 4
n_steps, n_random, n_permutations = (2, 1, 19) if SMALL else (60, 20, 1000)
model = skn.load_model("smollm2")
run = skn.RunOptions(progress=False, cache=skn.InputCache(model))


def about_reviews():
    """The built-in reviews as questions; those made from one word pair belong together."""
    return skn.minimal_pairs(
        "movie_reviews",
        n_pairs=100 if SMALL else 400,
        tokenizer=model.tokenizer,
        chat={"user": SENTIMENT["movie_reviews"]},
    )


def with_choices(splits, choices, name, shuffle=0, by="both"):
    """A question with choices under letters; what is answered is a choice's text (or by="letter", its letter)."""
    task = skn.tasks.multiple_choice(
        splits, choices=choices, by=by, shuffle=shuffle, chat={"user": "{question}\n{options}"}, name=name
    )
    words = {number: f" {str(word).strip()}" for number, word in task.label_words.items()}
    return replace(task, label_words=words)  # with a blank, since they follow words


def kinds():
    """What each word is, as rows; in small mode of two kinds."""
    rows = [
        {"question": f"What is {'an' if word[0] in 'aeio' else 'a'} {word}?", "answer": kind}
        for kind, words in list(KINDS.items())[:n_kinds]
        for word in words.split()
    ]
    random.Random(0).shuffle(rows)
    first, second = len(rows) * 2 // 5, len(rows) * 3 // 4
    return {"train": rows[:first], "validation": rows[first:second], "test": rows[second:]}


def news(folder):
    """AG News as rows: as many of each topic."""
    splits, sizes = load_dataset(str(folder)), {"train": n_train, "validation": n_select, "test": n_report}
    rows = {name: [row for row in splits[name] if len(row["text"].split()) <= 40] for name in sizes}
    return {
        name: [
            {"question": f"Which topic is this news about?\n{row['text']}", "answer": row["label"]}
            for label in range(4)
            for row in [row for row in rows[name] if row["label"] == label][: n // 4]
        ]
        for name, n in sizes.items()
    }


# %% What it answers, which neurons tell that, and what it answers with them held at their mean: after its own words,
# and after as many virtual tokens that are tuned from these words on
def answers(prompt, task):
    """Whether each answer of report is right, and what is answered."""
    with torch.no_grad():
        logits = skn.PromptedModel.for_task(model, prompt, task, run=run).class_logits(
            task.split("report")["text"]
        )
    said = logits.argmax(1)
    return said == torch.tensor(task.split("report")["label"]), said


def words_of(task):
    return [word.strip() for word in task.label_words.values()]


def commonest(task):
    """On which examples of report it would be right to always say the commonest answer."""
    labels = torch.tensor(task.split("report")["label"])
    return labels == labels.bincount().argmax()


def look(task, words):
    n_words = len(model.tokenizer(words, add_special_tokens=False)["input_ids"])
    tuning = {"n_virtual_tokens": n_words, "init": [words], "n_steps": n_steps, "run": run}
    [tuned] = skn.fit_soft_prompts(model, task, **tuning)
    own = skn.SoftPrompt(tuned.initial, placement="suffix", chat=task.chat)  # no more than its words
    for name, prompt in {f"its own words, {words!r}": own, "tuned": tuned}.items():
        if SMALL and prompt is own:
            continue
        right, said = answers(prompt, task)
        always, units = commonest(task), task.units("report")
        p_value = skn.stats.mcnemar(always, right, units=units).p_value
        shares = said.bincount(minlength=task.n_classes).double() / len(said)
        told = ", ".join(
            f"{one} {share:.2f}" for one, share in zip(words_of(task), shares.tolist(), strict=True)
        )
        print(
            f"\n{task.name}, {name}: right on {right.double().mean():.3f} of report, always saying the commonest on ",
            end="",
        )
        print(
            f"{always.double().mean():.3f} (p {p_value:.2g}); answers {told}. Units: {len(units)}, {units.what}."
        )
        found = neurons(prompt, task)
        effects(prompt, task.limit(report=n_held), found)
    return own


def neurons(prompt, task):
    """The neurons that tell the classes apart, beside luck and random ones; of three and more, each from the rest."""
    scored = skn.scores.score_classes(model, prompt, task, n_permutations=n_permutations, run=run)
    scored = scored[1:] if task.n_classes == 2 else scored
    rows = []
    for one in scored:
        rules = skn.scores.evaluate_rules(model, prompt, task, one, run=run)
        best = one.top(10, per="model")
        beside = [float(rules.accuracy_of(best.random_like(seed)).mean()) for seed in range(20)]
        share = task.class_counts("report")[one.class_id] / task.n_examples["report"]
        rows.append(
            {
                "class": words_of(task)[one.class_id],
                "best on select": float(one.predictivity.max()),
                "luck": one.null.level(),
                "beyond luck": len(one.significant()),
                "ten best on report": float(rules.accuracy_of(best).mean()),
                "ten random": f"{min(beside):.3f}-{max(beside):.3f}",
                "commonest": max(share, 1 - share),
            }
        )
    print(pd.DataFrame(rows).round(3).to_string(index=False))
    return skn.scores.top_union(scored, 0.02 / len(scored))


def effects(prompt, task, found):
    """Right answers and their lead with the neurons held at their mean where the answer begins, beside controls."""
    frame = skn.measure_effects(
        model,
        prompt,
        task,
        found,
        interventions="mean",
        n_random=n_random,
        beyond=Beyond(as_band=SMALL),
        run=run,
    ).to_dataframe()
    shown = ["metric", "intact", "value", "change_low", "change_high"]
    shown += [f"{kind}_{what}" for kind in ("random", "matched") for what in ("min", "max")]
    shown += ["p_random", "p_matched"]
    print(f"{len(found)} neurons held, {task.n_examples['report']} examples:")
    print(frame[frame.metric.isin(["accuracy", "logit_diff"])][shown].round(3).to_string(index=False))


# %% Choices: do the same neurons tell the answer when they stand in another order? One that reads the place is none.
# And what does it say when letters are asked for?
def shuffled(splits, choices, words, name):
    few = {split: rows[:: max(1, len(rows) // n_shuffled)] for split, rows in splits.items()}
    tasks = [with_choices(few, choices, name, shuffle) for shuffle in range(2)]
    start = skn.fit_soft_prompts(model, tasks[0], n_virtual_tokens=3, init=[words], n_steps=1, run=run)
    own = skn.SoftPrompt(start[0].initial, placement="suffix", chat=tasks[0].chat)
    n = 19 if SMALL else 99
    print(f"\n{name}, agreement of all neurons' scores between two shuffles of the choices:")
    print(
        skn.studies.compare_shuffles(model, own, tasks, n_permutations=n, run=run)
        .round(3)
        .to_string(index=False)
    )
    letters = with_choices(few, choices, name, by="letter")
    right, said = answers(own, letters)
    shares = (said.bincount(minlength=letters.n_classes).double() / len(said)).tolist()
    told = ", ".join(f"{one} {share:.2f}" for one, share in zip(words_of(letters), shares, strict=True))
    print(f"asked for the letter it is right on {right.double().mean():.3f}, and says {told}")


if len(sys.argv) > 1:
    for folder in map(Path, sys.argv[1:]):
        if folder.name == "ag_news":
            rows = news(folder)
            look(with_choices(rows, TOPICS, "ag_news"), "The topic is")
            shuffled(rows, TOPICS, "The topic is", "ag_news")
        elif folder.name not in SENTIMENT:
            sys.exit(
                f"there is a question for ag_news, {', '.join(SENTIMENT)}, got {folder}; add one to SENTIMENT"
            )
        else:
            task = load_task(folder, chat={"user": SENTIMENT[folder.name]})
            look(task.limit(train=n_train, select=n_select, report=n_report), "The sentiment is")
else:
    look(about_reviews().limit(train=n_train, select=n_select, report=n_report), "The review is")
    look(with_choices(kinds(), list(KINDS)[:n_kinds], "kinds of things"), "It is a")
    shuffled(kinds(), list(KINDS)[:n_kinds], "It is a", "kinds of things")
