"""Every verdict beside an input that just reaches it and one that just doesn't."""

import doctest
import shlex

import pytest
import torch

from tl_skillneurons.find import answers, evidence, price, said, verdicts
from tl_skillneurons.find.verdicts import (
    LESS,
    MORE,
    NO,
    NO_MORE,
    NOT_ESTABLISHED,
    PARTLY,
    RULES,
    YES,
    can_be_done,
    costs,
    is_readable,
    is_same,
    is_used,
)
from tl_skillneurons.stats import Units

SOME = 1e-9  # just beyond


@pytest.mark.parametrize(
    ("accuracies", "p_values", "answer"),
    [
        ([0.51], [0.05], YES),
        ([0.51], [0.05 + SOME], NO),
        ([0.50], [0.01], NO),  # as often as the majority, on other examples
        ([0.30], [0.01], NO),  # significantly worse
        ([0.50, 0.51], [1.0, 0.05], YES),  # one of two will do
    ],
)
def test_the_task_can_be_done_where_some_prompt_is_right_more_often_than_the_majority(
    accuracies, p_values, answer
):
    assert can_be_done(accuracies, 0.5, p_values) == answer


@pytest.mark.parametrize(
    ("low", "high", "p_random", "answer"),
    [
        (0.70 + SOME, 0.8, 0.05, YES),
        (0.70, 0.8, 0.05, NOT_ESTABLISHED),
        (0.70 + SOME, 0.8, 0.05 + SOME, NOT_ESTABLISHED),
        (0.60, 0.70 + SOME, 0.05, NOT_ESTABLISHED),
        (0.60, 0.70, 0.05, NO),
    ],
)
def test_the_label_is_readable_where_the_interval_lies_above_luck_and_random_neurons_do_worse(
    low, high, p_random, answer
):
    assert is_readable(low, high, 0.70, p_random) == answer


def row(value, **changes):
    kinds = ("random", "matched", "least")
    told = {f"{kind}_median": 2.0 for kind in kinds} | {f"p_{kind}": 0.05 for kind in kinds}
    told |= {f"{kind}_min": 1.5 for kind in kinds}
    return {"value": value, "intact": 2.5, "change_low": -1.0, "change_high": -SOME, **told, **changes}


REACHES = row(2.0 - SOME)


@pytest.mark.parametrize(
    ("prompts", "pooled", "answer"),
    [
        ([REACHES], REACHES, YES),
        ([REACHES, REACHES], REACHES, YES),
        ([REACHES, row(1.0, p_random=0.05 + SOME)], REACHES, NOT_ESTABLISHED),
        ([REACHES, row(1.0, p_matched=0.05 + SOME)], REACHES, NOT_ESTABLISHED),
        ([REACHES, row(1.0, p_least=0.05 + SOME)], REACHES, NOT_ESTABLISHED),
        ([REACHES, row(2.0)], REACHES, NOT_ESTABLISHED),  # one prompt points nowhere
        ([REACHES, row(3.0)], REACHES, NOT_ESTABLISHED),  # as far from the controls, the other way
        ([REACHES], row(1.0, change_high=0.0), NOT_ESTABLISHED),  # the interval of the change holds zero
        ([row(2.0)], row(2.0), NO),
        ([row(2.0)], row(2.0 - SOME, least_median=2.0 - SOME), NO),  # no more than one kind of control
        ([row(1.0, p_random=1.0)], row(2.0 - SOME), NOT_ESTABLISHED),
        # the interval reaches beyond all controls of every kind, so that more than they do can't be excluded
        ([row(2.0)], row(2.0, change_low=-1.0 - SOME), NOT_ESTABLISHED),
        ([row(2.0)], row(2.0, change_low=-1.0 - SOME, least_min=1.5 - SOME), NO),
    ],
)
def test_the_model_uses_them_only_where_every_prompt_and_every_kind_of_control_say_so(
    prompts, pooled, answer
):
    assert is_used(prompts, pooled) == answer


def test_a_control_that_could_not_be_drawn_decides_nothing():
    without = {name: value for name, value in REACHES.items() if "least" not in name}
    assert is_used([without], without, ("random", "matched")) == YES


@pytest.mark.parametrize(
    ("p_values", "turned", "answer"),
    [
        ([0.05], 0.05, YES),
        ([0.05], 0.05 + SOME, PARTLY),
        ([0.05 + SOME], 0.0, NOT_ESTABLISHED),
        ([0.5 - SOME], 0.0, NOT_ESTABLISHED),
        ([0.5], 0.0, NO),
        ([0.05, 0.05 + SOME], 0.0, PARTLY),
        ([], 0.0, NOT_ESTABLISHED),
    ],
)
def test_neurons_are_the_same_where_all_prompts_share_their_best_beyond_luck_and_few_turn(
    p_values, turned, answer
):
    assert is_same(p_values, turned) == answer


@pytest.mark.parametrize(
    ("held", "answer"),
    [(18.3, NO_MORE), (18.3 - SOME, LESS), (18.9, NO_MORE), (18.9 + SOME, MORE)],
)
def test_the_price_is_flagged_where_it_leaves_the_controls_range(held, answer):
    assert costs(held, 18.3, 18.9) == answer


def test_every_rule_says_what_it_claims_how_what_it_assumes_and_what_would_overturn_it():
    for rule in RULES.values():
        told = rule.verdict(YES, "so it is.", "runs/one")
        assert all(len(value) > 2 for value in told.record().values())
        assert told.command.startswith("tl-skillneurons ") and "{" not in told.command
        parts = shlex.split(rule.verdict("YES", "", "a run of mine").command)
        assert "{run}" not in rule.command or "a run of mine" in parts


def answered(logits, labels, units=None):
    logits = torch.stack([torch.nn.functional.one_hot(torch.tensor(one), 2).float() for one in logits])
    told = [{"seed": k, "outcome": "fitted", "held_back": 0.5, "n_cut": 0} for k in range(len(logits))]
    units = Units.single(len(labels)) if units is None else units
    return answers.PromptAnswers(logits, torch.tensor(labels), units, {"prompts": told})


MOSTLY_ONE = [1] * 87 + [0] * 13


def test_a_prompt_that_always_says_the_commoner_label_is_right_on_87_percent_and_cannot_do_the_task():
    told = answered([[1] * 100], MOSTLY_ONE)
    row = told.to_dataframe().iloc[0]
    assert (row.accuracy, row.majority, row.balanced, row.says_share) == (0.87, 0.87, 0.5, 1.0)
    assert told.beating == ()
    verdict = verdicts.judge_answers(told, ['"bad"', '"good"'], "run")
    assert verdict.answer == NO
    assert verdict.sentence.startswith(
        'No prompt, no skill neurons: the prompt answers "good" on every text, which is right on 0.870 of report.'
    )
    assert "more examples" not in verdict.sentence
    few = answered([[1] * 87 + [0] * 5 + [1] * 8], MOSTLY_ONE)  # better, but not beyond chance
    said = verdicts.judge_answers(few, ['"bad"', '"good"'], "run")
    assert said.answer == NO and "Try more examples of report, more steps" in said.sentence


def test_of_two_prompts_the_one_that_beats_the_majority_is_used_and_the_other_is_named():
    told = answered([[1] * 100, [1] * 87 + [0] * 7 + [1] * 6], MOSTLY_ONE)
    assert told.beating == (
        1,
    )  # seven more right and none lost: McNemar's p is 2 / 128, and there are two prompts
    six = [1] * 87 + [0] * 6 + [1] * 7  # 2 / 64: enough for one prompt, not for one of two
    assert (
        answered([six], MOSTLY_ONE).beating == (0,) and answered([[1] * 100, six], MOSTLY_ONE).beating == ()
    )
    verdict = verdicts.judge_answers(told, ['"bad"', '"good"'], "run")
    assert verdict.answer == YES
    assert "The prompt of seed 0 does not beat that, and is not used." in verdict.sentence
    assert answered([[1] * 87 + [0] * 5 + [1] * 8], MOSTLY_ONE).beating == ()  # five: 2 / 32 is above 0.05


def test_answers_that_come_in_few_units_are_few_answers():
    labels = [0] * 20 + [1] * 20
    alone = answered([labels], labels)
    together = answered([labels], labels, Units.of([[k // 10 for k in range(40)]], what="group"))
    assert alone.beating == (0,) and together.beating == ()  # of four units two change: p is 1/2
    one, other = (told.to_dataframe().iloc[0] for told in (alone, together))
    assert one.accuracy_low > 0.9 and other.accuracy_low < 0.5


def test_balanced_accuracy_is_that_of_the_slow_formula():
    generator = torch.Generator().manual_seed(0)
    right, labels = (torch.randint(2, (60,), generator=generator) for _ in range(2))
    value, low, high = answers.balanced_accuracy(right.bool(), labels, Units.single(60))
    slow = sum(
        sum(int(r) for r, y in zip(right, labels, strict=True) if y == k) / int((labels == k).sum())
        for k in (0, 1)
    )
    assert value == pytest.approx(slow / 2) and low < value < high


@pytest.mark.parametrize("module", [answers, evidence, price, said, verdicts])
def test_what_docstrings_show_is_true(module):
    names = vars(module) | {"torch": torch, "Units": Units}
    runner = doctest.DocTestRunner()
    for one in doctest.DocTestFinder(exclude_empty=True).find(module, module.__name__, extraglobs=names):
        if not any("found." in example.source or "skn." in example.source for example in one.examples):
            runner.run(one)
    assert runner.tries and not runner.failures
