"""Rules on examples that did not choose them, of every neuron and of a set."""

import jaxtyping
import pytest
import tiny
import torch
from drawn import scores as drawn_scores
from toy import EXACT, QUIET, TASK, prompt_for, slow_scores

import tl_skillneurons as skn
from tl_skillneurons.prompts.run import RunOptions
from tl_skillneurons.scores import AllRules, RuleAccuracy, evaluate_rules
from tl_skillneurons.scores.rules import rule_answers

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
    neurons = scores.top(2)
    expected = scores.predictivity[neurons.layer, neurons.index]
    torch.testing.assert_close(scores.accuracy_of(neurons), expected, rtol=0, atol=EXACT)
    torch.testing.assert_close(on_select.accuracy_of(neurons), expected, rtol=0, atol=EXACT)


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
    assert "on 15 examples of report" in str(found) and "on select, which chose them" in repr(found)
    assert "<table" in found._repr_html_()


def test_what_was_evaluated_comes_back_from_its_file(scored, tmp_path):
    model, prompts, scores = scored["bert"]
    every = evaluate_rules(model, prompts, TASK, scores, run=QUIET)
    back = AllRules.load(every.save(tmp_path / "rules.safetensors"))
    for name in ("accuracy", "position", "direction"):
        assert torch.equal(getattr(back, name), getattr(every, name))
    assert (back.role, back.n_examples, back.positions) == ("report", 15, "prompt")
    assert back.provenance == scores.provenance and repr(back) == repr(every)
    some = evaluate_rules(model, prompts, TASK, scores, scores.top(2), seed=3, run=QUIET)
    again = RuleAccuracy.load(some.save(tmp_path / "rules.json"))
    assert again.table.equals(some.table) and again.seed == 3
    assert (again.mean, again.low, again.high) == (some.mean, some.low, some.high)
    assert again.provenance == scores.provenance
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
