"""Neurons that a chat model's answers hang on are found from its own answers; turned off, they turn the answers."""

import pytest
import taught
from toy import QUIET

import tl_skillneurons as skn
from tl_skillneurons.interventions import Scale
from tl_skillneurons.interventions.controls import with_controls

N_CONTROLS = 19


@pytest.fixture(scope="module")
def own():
    """The model in its chat, and what it answers, right or wrong."""
    asked = skn.PromptedModel(taught.model(), None, chat=skn.tasks.Chat(), run=QUIET)
    return asked, skn.tasks.from_answers(asked, taught.questions(), writing={"max_new_tokens": 4})


@pytest.fixture(scope="module")
def scores(own):
    """Of all neurons, where the answers begin."""
    asked, found = own
    return skn.score_neurons(asked.model, None, found.task, positions="readout", run=QUIET)


@pytest.fixture(scope="module")
def skill(scores):
    """As many as were taught, the most predictive of the whole model."""
    return scores.top(len(taught.NEURONS), per="model")


def test_it_is_right_of_the_words_whose_truth_it_was_taught_and_of_no_other(own):
    table = own[1].table
    assert table.ended.all() and table.kept.all()
    true = [row["word"] in taught.GOOD for row in taught.questions()]
    assert table.answer.tolist() == ["good" if one else "bad" for one in true]
    assert table.label.tolist() == ["right" if one else "wrong" for one in true]


def test_what_its_answers_hang_on_is_found_and_tells_right_from_wrong_on_other_questions(own, scores, skill):
    asked, found = own
    assert set(skill) == set(taught.NEURONS)
    best = scores.predictivity.flatten().sort(descending=True).values
    assert best[2] > best[3]  # no tie chose them
    rules = skn.scores.evaluate_rules(asked.model, None, found.task, scores, run=QUIET)
    assert rules.accuracy_of(skill).min() > 0.9
    assert max(rules.accuracy_of(skill.random_like(seed)).mean() for seed in range(N_CONTROLS)) < 0.8


def test_turned_off_it_turns_every_answer_and_matched_neurons_turn_none(own, scores, skill):
    asked, found = own
    texts = list(found.task.split("report")["text"])
    before = asked.generate(texts, 4).answers
    drawn = with_controls({"skill": skill}, asked.model, scores.mean_abs[0].mean(1), N_CONTROLS, 0).sets
    turned = {"chosen": [], "matched": []}
    for (_, kind, _), neurons in drawn.items():
        if kind in turned:
            after = asked.generate(texts, 4, interventions=skn.ablate(neurons, how=Scale(0.0))).answers
            assert {*before, *after} == {"good", "bad"}
            turned[kind].append(sum(one != other for one, other in zip(before, after, strict=True)))
    assert turned == {"chosen": [len(texts)], "matched": [0] * N_CONTROLS}
