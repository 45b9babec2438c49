"""Rules on examples that did not choose them, of every neuron and of a set."""

import jaxtyping
import pytest
import tiny
import torch
from drawn import scores as drawn_scores
from toy import EXACT, LABEL_WORDS, QUIET, ROWS, TASK, prompt_for, slow_scores

import tl_skillneurons as skn
from tl_skillneurons.prompts.run import RunOptions
from tl_skillneurons.scores import AllRules, RuleAccuracy, evaluate_rules
from tl_skillneurons.scores.rules import rule_answers
from tl_skillneurons.stats.intervals import bootstrap_mean, two_level_bootstrap
from tl_skillneurons.stats.units import Units

N_SELECT = 12


@pytest.fixture(scope="module")
def models():
    return {family: tiny.bridge(family, dtype=torch.float64) for family in ("gpt2", "bert")}


@pytest.fixture(scope="module")
def scored(models):
    """By family: the model, two prompts and their scores."""
    found = {}
    for family, model in models.items():
        prompts = [prompt_for(family), prompt_for(family, seed=1)]
        found[family] = model, prompts, skn.score_neurons(model, prompts, TASK, run=QUIET)
    return found


@pytest.mark.parametrize("family", ["gpt2", "bert"])
def test_every_rule_is_checked_elsewhere_with_the_thresholds_of_baseline(scored, family):
    model, prompts, scores = scored[family]
    run = RunOptions(batch_size=4, progress=False)
    on_report = evaluate_rules(model, prompts, TASK, scores, run=run)
    for number, prompt in enumerate(prompts):
        correct = slow_scores(model, prompt, "prompt", role="report", baseline=scores.baseline[number])[3]
        assert torch.equal(on_report.accuracy[number], correct.double() / 15)
    on_select = evaluate_rules(model, prompts, TASK, scores, role="select", run=QUIET)
    assert torch.equal(on_select.accuracy, scores.accuracy)
    assert (on_report.role, on_report.n_examples) == ("report", 15)
    assert not on_report.to_dataframe().chose_them.any() and on_select.to_dataframe().chose_them.all()
    neurons = scores.top(2)
    expected = scores.predictivity[neurons.layer, neurons.index]
    torch.testing.assert_close(scores.accuracy_of(neurons), expected, rtol=0, atol=EXACT)
    again = on_select.accuracy_of(neurons, on_chosen_examples=True)
    torch.testing.assert_close(again, expected, rtol=0, atol=EXACT)


def test_all_rules_say_where_a_set_was_chosen_and_measure_it_there_by_insistence_alone(scored, tmp_path):
    model, prompts, scores = scored["gpt2"]
    top, by_hand = scores.top(2), skn.NeuronSet([0], [3])
    made = {
        role: evaluate_rules(model, prompts, TASK, scores, role=role, run=QUIET)
        for role in ("select", "report")
    }
    read = {role: AllRules.load(rules.save(tmp_path / role)) for role, rules in made.items()}
    for rules in (made, read):
        with pytest.raises(ValueError, match=r"15 of the 15 .* chose these neurons.*on_chosen_examples=True"):
            rules["select"].accuracy_of(top)
        assert rules["select"].where_chosen(top, on_chosen_examples=True) == "on these examples"
        assert rules["report"].where_chosen(top) == "on other examples"
        assert rules["select"].where_chosen(by_hand) == "unknown"
    nameless = AllRules(made["select"].accuracy, *scores.rules(), "select", 15)
    assert nameless.where_chosen(top) == "unknown"


def test_a_rule_keeps_the_position_and_direction_that_select_chose():
    made = drawn_scores(seed=5)
    elsewhere = torch.rand(
        made.correct.shape, generator=torch.Generator().manual_seed(9), dtype=torch.float64
    )
    rules = AllRules(elsewhere, *made.rules(), "report", 30)
    neurons = skn.NeuronSet([1, 0, 1], [6, 2, 0])
    got, on_select = rules.accuracy_of(neurons), made.accuracy_of(neurons)
    for row, (layer, neuron) in enumerate(neurons):
        expected = []
        for prompt in range(2):
            counts = made.correct[prompt, layer, :, neuron].tolist()
            position = max(range(3), key=lambda p, c=counts: max(c[p], N_SELECT - c[p]))
            right = float(elsewhere[prompt, layer, position, neuron])
            expected.append(right if 2 * counts[position] >= N_SELECT else 1 - right)
        assert float(got[row]) == pytest.approx(sum(expected) / 2, abs=1e-15)  # last bit
        assert float(on_select[row]) == pytest.approx(float(made.predictivity[layer, neuron]), abs=1e-15)
    assert got.min() < 0.5  # rules may fail elsewhere
    frame = rules.to_dataframe().set_index(["layer", "index"])
    assert [frame.accuracy[pair] for pair in neurons] == got.tolist()
    for holder in (made, rules):
        with pytest.raises(ValueError, match="outside the model"):
            holder.accuracy_of(skn.NeuronSet([2], [0]))


def test_right_answers_are_those_of_each_rule(scored):
    model, prompts, scores = scored["gpt2"]
    top = scores.top(5, per="model")
    on_select = rule_answers(model, prompts, TASK, scores, top, role="select")
    torch.testing.assert_close(on_select.mean((0, 1)), scores.accuracy_of(top))


def test_a_set_is_evaluated_on_examples_that_did_not_choose_it_with_intervals(scored):
    model, prompts, scores = scored["bert"]
    top = scores.top(4, per="model")
    found = evaluate_rules(model, prompts, TASK, scores, top, run=QUIET)
    expected = evaluate_rules(model, prompts, TASK, scores, run=QUIET).accuracy_of(top)
    torch.testing.assert_close(torch.tensor(found.table.accuracy.to_numpy()), expected)
    assert found.mean == pytest.approx(float(expected.mean())) and found.low <= found.mean <= found.high
    assert (found.table.low <= found.table.accuracy).all()
    assert set(found.to_dataframe().role) == {found.role} == {"report"}
    assert not found.to_dataframe().chose_them.any()
    on_select = {"role": "select", "run": QUIET}
    with pytest.raises(ValueError, match=r"15 of the 15 .* chose these neurons.*on_chosen_examples=True"):
        evaluate_rules(model, prompts, TASK, scores, top, **on_select)
    too_good = evaluate_rules(model, prompts, TASK, scores, top, on_chosen_examples=True, **on_select)
    assert too_good.to_dataframe().chose_them.all() and "15 examples of select, some of which" in str(
        too_good
    )
    assert "on 15 examples of report" in str(found) and "on select, which chose them" in repr(found)
    assert "<table" in found._repr_html_()


def test_a_table_tells_where_its_neurons_were_chosen(scored):
    model, prompts, scores = scored["bert"]
    top = scores.top(4, per="model")
    bare = skn.NeuronSet(top.layer, top.index)
    for neurons, role, told in (
        (top, "report", "on other examples"),
        (top, "select", "on these examples"),
        (bare, "select", "unknown"),
    ):
        how = {"role": role, "on_chosen_examples": True, "run": QUIET}
        found = evaluate_rules(model, prompts, TASK, scores, neurons, **how)
        assert set(found.to_dataframe().neurons_chosen) == {told}
        assert ("neurons chosen on these examples" in repr(found)) == (told == "on these examples")


def test_what_was_evaluated_comes_back_from_its_file(scored, tmp_path):
    model, prompts, scores = scored["bert"]
    every = evaluate_rules(model, prompts, TASK, scores, run=QUIET)
    back = AllRules.load(every.save(tmp_path / "rules.safetensors"))
    for name in ("accuracy", "position", "direction"):
        assert torch.equal(getattr(back, name), getattr(every, name))
    assert (back.role, back.n_examples, back.positions) == ("report", 15, "prompt")
    assert back.provenance == every.provenance and repr(back) == repr(every)
    assert every.provenance["n_cut"] == {"baseline": 0, "select": 0, "report": 0}
    some = evaluate_rules(model, prompts, TASK, scores, scores.top(2), seed=3, run=QUIET)
    again = RuleAccuracy.load(some.save(tmp_path / "rules.json"))
    assert again.table.equals(some.table) and again.seed == 3
    assert (again.mean, again.low, again.high) == (some.mean, some.low, some.high)
    assert again.provenance == some.provenance == every.provenance and repr(again) == repr(some)
    assert again.to_dataframe().equals(some.to_dataframe())
    assert again.to_dataframe().attrs == some.to_dataframe().attrs
    with pytest.raises(ValueError, match="holds a AllRules, expected a NeuronScores"):
        skn.NeuronScores.load(tmp_path / "rules.safetensors")


def test_rules_that_contradict_themselves_are_refused(monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # as users have it
    made = drawn_scores()
    position, direction = made.rules()
    with pytest.raises(ValueError, match=r"direction must be \[prompt, layer, neuron\] = \[2, 2, 7\]"):
        AllRules(made.accuracy, position, direction[:1], "report", 12)
    with pytest.raises(ValueError, match=r"position must be in \[0, 3\)"):
        AllRules(made.accuracy, position + 3, direction, "report", 12)


def test_an_empty_set_has_no_accuracy(scored):
    model, prompts, scores = scored["bert"]
    with pytest.raises(ValueError, match="at least one neuron"):
        evaluate_rules(model, prompts, TASK, scores, skn.NeuronSet([], []))


def test_a_table_of_rules_has_each_prompts_direction_and_one_only_where_all_agree(scored):
    model, prompts, scores = scored["bert"]
    every = skn.NeuronSet(torch.arange(96) // 48, torch.arange(96) % 48)
    table = evaluate_rules(model, prompts, TASK, scores, every, run=QUIET).to_dataframe()
    one, other = scores.rules()[1].flatten(1)
    assert table.direction_0.tolist() == one.tolist() and table.direction_1.tolist() == other.tolist()
    agree = (one == other).numpy()
    assert (table.direction[agree] == table.direction_0[agree]).all() and (table.direction[~agree] == 0).all()
    assert (table.direction_agreement[~agree] == 0.5).all() and 0 < agree.sum() < 96
    first = skn.score_neurons(model, prompts[0], TASK, run=QUIET)
    alone = evaluate_rules(model, prompts[0], TASK, first, every, run=QUIET)
    assert alone.table.direction.tolist() == one.tolist() and "direction_0" not in alone.table


def test_intervals_resample_units_and_from_three_prompts_on_prompts_too(scored):
    model, prompts, scores = scored["bert"]
    top = scores.top(2)
    right = rule_answers(model, prompts, TASK, scores, top)
    two = evaluate_rules(model, prompts, TASK, scores, top, run=QUIET)
    low, high = bootstrap_mean(right.mean((0, 2)))
    assert (two.low, two.high) == (float(low), float(high))
    assert (two.unit, two.n_units) == ("text", 15) and "these 2 prompts alone" in repr(two)
    report = [{**row, "author": f"new {k // 3}"} for k, row in enumerate(ROWS[39:])]
    rest = [{**row, "author": str(k)} for k, row in enumerate(ROWS[:39])]
    data = {"train": rest[:24], "validation": rest[24:], "test": report}
    authors = skn.Task.from_datasets(
        data, template="{text}", label_words=LABEL_WORDS, name="toy", group="author", drop=()
    )
    by_author = evaluate_rules(model, prompts, authors, scores, top, run=QUIET)
    low, high = bootstrap_mean(right.mean((0, 2)), units=Units.of([torch.arange(15).div(3).long().tolist()]))
    assert (by_author.low, by_author.high) == (float(low), float(high))
    assert by_author.mean == two.mean and (by_author.unit, by_author.n_units) == ("group", 5)
    assert by_author.to_dataframe().attrs["n_units"] == 5
    three = [*prompts, prompt_for("bert", seed=2)]
    of_three = skn.score_neurons(model, three, TASK, run=QUIET)
    found = evaluate_rules(model, three, TASK, of_three, top, run=QUIET)
    answers = rule_answers(model, three, TASK, of_three, top)
    low, high = two_level_bootstrap(answers.mean(2))
    assert (found.low, found.high) == (float(low), float(high)) and "other prompts (3 seen)" in repr(found)
    each_low, _ = two_level_bootstrap(answers.permute(2, 0, 1))
    assert found.table.low.tolist() == each_low.tolist()
