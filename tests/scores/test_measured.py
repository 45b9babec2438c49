"""Scores are used where they were measured: same model, same prompts, texts cut to the same length."""

from dataclasses import replace

import pytest
import tiny
import torch
from tokenizers.normalizers import Replace
from toy import LABEL_WORDS, QUIET, ROWS, TASK, prompt_for, task_of
from tuned import SMALL, fit

import tl_skillneurons as skn
from tl_skillneurons.prompts.run import task_terms
from tl_skillneurons.scores.measured import require_measured_here

SHORT = 6


@pytest.fixture(scope="module")
def gpt2():
    return tiny.bridge("gpt2", dtype=torch.float64)


@pytest.fixture(scope="module")
def prompt():
    return prompt_for("gpt2")


@pytest.fixture(scope="module")
def short(gpt2, prompt):
    return skn.score_neurons(gpt2, prompt, TASK, max_length=SHORT, run=QUIET)


def test_scores_record_what_texts_were_cut_to(gpt2, prompt, short):
    assert short.provenance["max_length"] == SHORT
    whole = skn.score_neurons(gpt2, prompt, TASK, run=QUIET)
    assert whole.provenance["max_length"] == gpt2.cfg.n_ctx
    assert not torch.equal(short.correct, whole.correct)  # so that a mix-up would change numbers


@pytest.mark.parametrize("of_a_set", [False, True])
def test_scores_of_shortened_texts_are_not_used_on_whole_ones(gpt2, prompt, short, of_a_set):
    neurons = short.top(2) if of_a_set else None
    message = (
        f"measured on texts cut to 6 tokens, which here are cut to {gpt2.cfg.n_ctx} tokens; give max_length=6, or "
        f"scores measured with max_length={gpt2.cfg.n_ctx}"
    )
    with pytest.raises(ValueError, match=message):
        skn.scores.evaluate_rules(gpt2, prompt, TASK, short, neurons, run=QUIET)
    at_its_length = skn.scores.evaluate_rules(gpt2, prompt, TASK, short, neurons, max_length=SHORT, run=QUIET)
    assert at_its_length.provenance["max_length"] == SHORT


def test_a_prompt_brings_the_length_it_was_tuned_with(gpt2, short):
    tuned = prompt_for("gpt2", max_length=SHORT)
    scores = skn.score_neurons(gpt2, tuned, TASK, run=QUIET)
    assert scores.provenance["max_length"] == SHORT and torch.equal(scores.correct, short.correct)
    require_measured_here(scores, gpt2, [tuned])
    with pytest.raises(ValueError, match="cut to 6 tokens, which here are cut to 5 tokens"):
        require_measured_here(scores, gpt2, tuned, max_length=5)
    with pytest.raises(ValueError, match=r"tuned with max_length=6 and .*; give max_length"):
        skn.score_neurons(gpt2, [tuned, prompt_for("gpt2", seed=1)], TASK, run=QUIET)


def test_other_scores_are_compared_alike(gpt2, prompt):
    auc = skn.scores.score_labels(gpt2, prompt, TASK, ["auc"], max_length=SHORT, run=QUIET)["auc"]
    require_measured_here(auc, gpt2, prompt, max_length=SHORT)
    with pytest.raises(ValueError, match="give max_length=6"):
        require_measured_here(auc, gpt2, prompt)


def test_scores_measured_at_different_lengths_are_not_joined(gpt2, prompt, short):
    whole = skn.score_neurons(gpt2, prompt, TASK, run=QUIET)
    with pytest.raises(
        ValueError, match=f"measured alike; they differ in max_length: 6 there, {gpt2.cfg.n_ctx} now"
    ):
        skn.NeuronScores.of_prompts([short, whole])


def test_scores_made_by_hand_say_nothing_of_a_length_and_are_taken_as_they_are(gpt2, prompt, short):
    require_measured_here(replace(short, provenance={}), gpt2, prompt)


def test_other_prompts_are_refused(gpt2, prompt, short):
    for others in ([], [prompt, prompt], prompt_for("gpt2", seed=1), None):
        with pytest.raises(ValueError, match=r"the scores are of 1 prompts that are not the . given"):
            require_measured_here(short, gpt2, others, max_length=SHORT)


def test_scores_of_another_model_are_refused_by_shape_and_told_by_name(gpt2, prompt, short):
    other = {**short.provenance, "model": {**short.provenance["model"], "name": "other"}}
    with pytest.warns(UserWarning, match="scores are of another model \\(name: 'other' then, 'tiny' here\\)"):
        require_measured_here(replace(short, provenance=other), gpt2, prompt, max_length=SHORT)
    cut = {name: getattr(short, name)[..., :40] for name in ("baseline", "std", "mean_abs", "correct")}
    with pytest.raises(ValueError, match=r"with 2 layers and 40 neurons, tiny has 2 and 48"):
        require_measured_here(replace(short, **cut), gpt2, prompt, max_length=SHORT)


@pytest.fixture(scope="module")
def scores(gpt2, prompt):
    return skn.score_neurons(gpt2, prompt, TASK, run=QUIET)


def swapped_labels():
    words = {0: "positive", 1: "negative"}
    return task_of([{**row, "label": 1 - row["label"]} for row in ROWS], words)


def swapped_roles():
    return task_of(ROWS, validation=ROWS[39:], test=ROWS[24:39])


def another_template():
    return skn.Task.from_datasets(
        {"train": ROWS[:24], "validation": ROWS[24:39], "test": ROWS[39:]},
        template="the film {text}",
        label_words=LABEL_WORDS,
        name="toy",
    )


def other_label_names():
    named = [{**row, "label": ("no", "yes")[row["label"]]} for row in ROWS]
    return task_of(named, {"no": "negative", "yes": "positive"})


OTHER_TASKS = {
    "labels": (swapped_labels, r"another task than 'toy' \(label_words: \['negative', 'positive'\] there"),
    "roles": (
        swapped_roles,
        "other examples than 'toy' has in select: the examples that chose are its report",
    ),
    "template": (
        another_template,
        r"another task than 'toy' \(template: '\{text\}' there, 'the film \{text\}' now",
    ),
    "names": (
        other_label_names,
        r"another task than 'toy' \(label_names: \[0, 1\] there, \['no', 'yes'\] now",
    ),
}


@pytest.mark.parametrize("of_a_set", [False, True])
@pytest.mark.parametrize("what", OTHER_TASKS)
def test_rules_are_not_evaluated_on_another_task_than_the_one_that_chose_them(
    gpt2, prompt, scores, what, of_a_set
):
    make, message = OTHER_TASKS[what]
    if what == "roles" and of_a_set:  # a set remembers what chose it, and is asked first
        message = "examples to measure on are among those of role 'select' that chose these neurons"
    with pytest.raises(ValueError, match=message):
        skn.scores.evaluate_rules(
            gpt2, prompt, make(), scores, scores.top(2) if of_a_set else None, run=QUIET
        )


@pytest.mark.parametrize("what", OTHER_TASKS)
def test_scores_of_prompts_on_different_tasks_are_not_joined(gpt2, prompt, scores, what):
    others = skn.score_neurons(gpt2, prompt, OTHER_TASKS[what][0](), run=QUIET)
    with pytest.raises(ValueError, match=r"measured alike; they differ in .*task's"):
        skn.NeuronScores.of_prompts([scores, others])


def test_the_same_examples_under_other_roles_that_chose_nothing_are_the_same_task(
    gpt2, prompt, scores, tmp_path
):
    back = skn.NeuronScores.load(scores.save(tmp_path / "scores.safetensors"))
    less = TASK.limit(report=8)
    for task in (TASK, less):
        require_measured_here(back, gpt2, prompt, task=task)
    assert skn.scores.evaluate_rules(gpt2, prompt, less, back, run=QUIET).n_examples == 8


def test_other_scores_remember_their_task_too(gpt2, prompt):
    auc = skn.scores.score_labels(gpt2, prompt, TASK, ["auc"], run=QUIET)["auc"]
    pushed = skn.scores.score_gradients(gpt2, prompt, TASK, run=QUIET)
    for found in (auc, pushed):
        require_measured_here(found, gpt2, prompt, task=TASK)
        for make, message in OTHER_TASKS.values():
            with pytest.raises(ValueError, match=message):
                require_measured_here(found, gpt2, prompt, task=make())


def test_scores_that_record_no_more_of_their_task_than_its_fingerprint_are_compared_by_it(
    gpt2, prompt, scores
):
    old = replace(scores, provenance={"task": {"name": "toy", "fingerprint": TASK.fingerprint}})
    require_measured_here(old, gpt2, prompt, task=TASK)
    with pytest.raises(ValueError, match="its fingerprint differs"):
        require_measured_here(old, gpt2, prompt, task=swapped_roles())


def test_other_special_tokens_and_other_tokenizers_are_refused(prompt, scores):
    model = tiny.bridge("gpt2", dtype=torch.float64)
    names = {**scores.provenance["special_tokens"], "eos_token": ["<end>", 2]}
    other = replace(scores, provenance={**scores.provenance, "special_tokens": names})
    with pytest.raises(ValueError, match=r"other special tokens \(eos_token: \['<end>', 2\] there"):
        require_measured_here(other, model, prompt)
    require_measured_here(scores, model, prompt, task=TASK)
    words = model.tokenizer.backend_tokenizer
    normalizer, words.normalizer = words.normalizer, Replace("good", "bad")
    with pytest.raises(ValueError, match="texts of baseline are other tokens here"):
        require_measured_here(scores, model, prompt, task=TASK)
    words.normalizer = normalizer


def test_scores_say_how_many_texts_lost_their_end_and_what_their_units_are(gpt2, prompt, short, scores):
    assert scores.provenance["n_cut"] == {"baseline": 0, "select": 0}
    n_long = {
        role: sum(
            len(text.split()) + 4 > SHORT for text in TASK.split(role)["text"]
        )  # BOS and three virtual tokens
        for role in ("baseline", "select")
    }
    assert short.provenance["n_cut"] == n_long and n_long["select"] > 0
    assert scores.provenance["units"] == {"what": "text", "n": 15, "n_effective": 15}
    assert repr(scores).endswith("baseline 24 and select 15 examples, 15 units (text))")
    assert scores.to_dataframe().attrs == {"unit": "text", "n_units": 15}


def test_scores_of_the_built_in_tasks_permute_word_pairs_and_keep_them_in_their_file(gpt2, prompt, tmp_path):
    words = {0: "negative", 1: "positive"}
    task = skn.minimal_pairs(n_pairs=100, disjoint_words=True, label_words=words)
    units = task.units("select")
    assert units.what.startswith("word pair") and len(units) < 25  # of 25 pairs of twins
    found = skn.score_neurons(gpt2, prompt, task, n_permutations=39, keep_outcomes=True, run=QUIET)
    assert torch.equal(found.outcomes.units.member, units.member)
    assert (found.null.unit, found.null.n_units) == (units.what, len(units))
    back = skn.NeuronScores.load(found.save(tmp_path / "scores.safetensors"))
    assert repr(back) == repr(found) and f"{len(units)} units ({units.what})" in repr(back)
    assert repr(back.outcomes) == repr(found.outcomes) and repr(back.null) == repr(found.null)
    assert torch.equal(back.with_null(39).null.p_family, found.null.p_family)
    assert back.chance_level().n_examples == found.provenance["units"]["n_effective"] <= len(units)
    auc = skn.scores.score_labels(gpt2, prompt, task, ["auc"], n_permutations=39, run=QUIET)["auc"]
    assert (auc.null.unit, auc.null.n_units) == (units.what, len(units))
    assert (
        auc.to_dataframe().attrs == found.to_dataframe().attrs == {"unit": units.what, "n_units": len(units)}
    )


USES = {
    "scores": lambda model, prompt, task: skn.score_neurons(model, prompt, task, run=QUIET),
    "label scores": lambda model, prompt, task: skn.scores.score_labels(
        model, prompt, task, ["auc"], run=QUIET
    ),
    "gradients": lambda model, prompt, task: skn.scores.score_gradients(model, prompt, task, run=QUIET),
    "answers": lambda model, prompt, task: skn.scores.answer_targets(model, prompt, task, run=QUIET),
    "effects": lambda model, prompt, task: skn.measure_effects(
        model, prompt, task, skn.NeuronSet([0], [1]), n_random=19, run=QUIET
    ),
    "heads": lambda model, prompt, task: skn.attention.head_effects(
        model, prompt, task, [(0, 0)], skn.NeuronSet([0], [1]), run=QUIET
    ),
}


@pytest.mark.parametrize("use", USES.values(), ids=USES)
@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"template": "{text}. It was"}, r"template: '.*' there, '{text}\. It was' now"),
        ({"label_names": (1, 0)}, r"label_names: \[0, 1\] there, \[1, 0\] now"),
        ({"label_words": {0: "good", 1: "bad"}}, r"label_words: \[.*\] there, \['good', 'bad'\] now"),
    ],
    ids=["template", "order", "words"],
)
def test_a_prompt_tuned_on_another_task_is_refused_by_what_runs_it(
    gpt2, prompt, use, changes, said, tmp_path
):
    tuned = skn.SoftPrompt(
        prompt.embedding, placement="suffix", provenance={"task": {"name": "films", **task_terms(TASK)}}
    )
    tuned = skn.SoftPrompt.load(tuned.save(tmp_path / "prompt.safetensors"))
    other = object.__new__(skn.Task)
    other.__dict__.update({**TASK.__dict__, **changes})
    with pytest.raises(
        ValueError, match=rf"tuned on 'films', another task than .*{said}.*give a prompt tuned on this"
    ):
        use(gpt2, tuned, other)


def test_a_tuned_prompt_says_what_it_was_tuned_for_and_runs_there_and_on_labels_that_mean_nothing(gpt2):
    (tuned,) = fit(gpt2, SMALL, n_steps=1)
    assert {name: tuned.provenance["task"][name] for name in task_terms(SMALL)} == task_terms(SMALL)
    for task in (SMALL, SMALL.with_shuffled_labels(0)):
        skn.score_neurons(gpt2, tuned, task, run=QUIET)


def test_an_accuracy_by_another_tasks_label_words_is_refused(gpt2, prompt):
    swapped = {0: TASK.label_words[1], 1: TASK.label_words[0]}
    with pytest.raises(
        ValueError, match=r"the class logits are of the tokens \[.*give PromptedModel the task's label_words"
    ):
        skn.PromptedModel(gpt2, prompt, swapped, run=QUIET).accuracy(TASK)
