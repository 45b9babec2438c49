"""Votes and probes over the best neurons: by hand, on planted neurons, and what is refused."""

from dataclasses import replace

import pytest
import tiny
import torch
from toy import HOOKS, QUIET, TASK, prompt_for, read, task_of

import tl_skillneurons as skn
from tl_skillneurons.scores.neuron_scores import best_positions
from tl_skillneurons.stats.hypothesis_tests import mcnemar
from tl_skillneurons.stats.units import Units
from tl_skillneurons.studies.combining import majority


def test_a_majority_decides_and_an_even_split_goes_to_the_first():
    said = torch.tensor([[1, 1, -1], [-1, -1, 1], [1, -1, -1]])
    assert majority(said).tolist() == [1, 0, 0]
    assert majority(torch.tensor([[1, -1], [-1, 1]])).tolist() == [1, 0]


@pytest.fixture(scope="module")
def gpt2():
    return tiny.bridge("gpt2", dtype=torch.float64)


def test_one_neuron_votes_as_its_rule_and_three_as_counted_by_hand(gpt2):
    prompt = prompt_for("gpt2")
    scores = skn.score_neurons(gpt2, prompt, TASK, run=QUIET)
    frame = skn.studies.vote_and_probe(gpt2, prompt, TASK, scores, [1, 3]).to_dataframe()
    rules = skn.scores.evaluate_rules(gpt2, prompt, TASK, scores, run=QUIET)
    best = scores.top(3, per="model")
    assert frame.vote[0] == pytest.approx(float(rules.accuracy_of(best)[0]))
    split = TASK.split("report")
    acts, labels = read(gpt2, prompt, split["text"]), torch.tensor(split["label"])
    _, where, sign = best_positions(scores.correct, scores.n_select)
    votes = torch.zeros(len(labels))
    for layer, index in best:
        p = where[0, layer, index]
        fires = acts[:, layer, p, index] > scores.baseline[0, layer, p, index]
        votes += torch.where(fires, 1.0, -1.0) * sign[0, layer, index]
    assert frame.vote[1] == pytest.approx(float(((votes > 0) == labels.bool()).double().mean()))
    with torch.no_grad():
        logits = skn.PromptedModel(gpt2, prompt, TASK.label_words).class_logits(split["text"])
    right, voted = logits.argmax(1) == labels, (votes > 0) == labels.bool()
    assert frame.vote_p[1] == mcnemar(right, voted).p_value
    own = float(right.double().mean())
    assert frame.prompt.tolist() == [own, own] and set(frame.role) == {"report"}
    assert (frame.vote_low <= frame.vote).all() and (frame.vote <= frame.vote_high).all()


def test_planted_neurons_carry_the_label_together_and_random_ones_do_not(monkeypatch):
    """Six neurons that are right three times in four: one says little, six much, random ones nothing."""
    model = tiny.bridge("gpt2")
    rows = tiny.sentences(600, seed=5)
    task = task_of(rows, train=rows[:100], validation=rows[100:300], test=rows[300:])
    label = {row["text"]: row["label"] for row in rows}
    ids = {tuple(skn.PromptedModel(model, None).encode([text])[0]): text for text in label}
    prompt = prompt_for("gpt2")
    generator = torch.Generator().manual_seed(0)
    flip = {text: torch.rand(6, generator=generator) < 0.25 for text in label}

    def plant(act, hook):
        from tl_skillneurons.prompts.positions import current_tokens

        tokens = current_tokens(hook)
        act = act.clone()
        for row in range(len(act)):
            own = tuple(tokens.ids[row][tokens.is_text[row]].tolist())
            text = ids[own]
            up = flip[text] ^ bool(label[text])
            act[row, :, :6] = torch.where(up, 5.0, -5.0)
        return act

    model.add_hook(HOOKS[1], plant)
    try:
        scores = skn.score_neurons(model, prompt, task, run=QUIET)
        assert set(scores.top(6, per="model")) == {(1, i) for i in range(6)}
        frame = skn.studies.vote_and_probe(model, prompt, task, scores, [1, 6]).to_dataframe()
    finally:
        model.reset_hooks()
    assert 0.65 < frame.vote[0] < 0.85 and frame.vote[1] > frame.vote[0] + 0.05
    assert frame.probe[1] > 0.8 and frame.random_vote[1] < 0.65 and frame.random_probe[1] < 0.65


def test_intervals_and_tests_are_of_what_belongs_together(gpt2):
    """Four copies of every answer say no more than one: intervals and p-values don't shrink."""
    prompt = prompt_for("gpt2")
    scores = skn.score_neurons(gpt2, prompt, TASK, run=QUIET)
    found = skn.studies.vote_and_probe(gpt2, prompt, TASK, scores, [1, 3])
    copies = {name: getattr(found, name).repeat_interleave(4, -1) for name in ("vote", "probe", "prompt")}
    authors = Units(torch.arange(15).repeat_interleave(4), "author")
    grouped = replace(found, **copies, units=authors).to_dataframe()
    alone = replace(found, **copies, units=Units.single(60)).to_dataframe()
    assert ((grouped.vote_high - grouped.vote_low) > 1.5 * (alone.vote_high - alone.vote_low)).all()
    assert (grouped.vote_p >= alone.vote_p).all() and set(grouped.n_units) == {15}


def test_scores_of_a_task_with_the_labels_in_another_order_are_refused(gpt2):
    prompt = prompt_for("gpt2")
    scores = skn.score_neurons(gpt2, prompt, TASK, run=QUIET)
    swapped = replace(TASK, label_words={0: TASK.label_words[1], 1: TASK.label_words[0]})
    with pytest.raises(ValueError, match="the scores are of another task"):
        skn.studies.vote_and_probe(gpt2, prompt, swapped, scores, [1])


def test_too_few_random_sets_are_told_and_none_is_drawn_twice(gpt2):
    prompt = prompt_for("gpt2")
    scores = skn.score_neurons(gpt2, prompt, TASK, run=QUIET)
    found = skn.studies.vote_and_probe(gpt2, prompt, TASK, scores, [1], n_random=60)
    assert found.vote.shape[1] == 48 and found.settings["smallest_p"] == 1 / 48
    assert "only 47 distinct controls (60 were asked for)" in found.settings["warnings"][0]
    assert "only 47 distinct controls" in repr(found)
    layer, index = next(iter(scores.top(1, per="model")))
    rules = skn.scores.evaluate_rules(gpt2, prompt, TASK, scores, run=QUIET)
    others = [float(rules.accuracy_of(skn.NeuronSet([layer], [i])).mean()) for i in range(48) if i != index]
    assert sorted(found.vote[0, 1:].double().mean(1).tolist()) == pytest.approx(sorted(others))


def test_scores_of_several_prompts_or_of_another_are_refused(gpt2):
    prompts = [prompt_for("gpt2"), prompt_for("gpt2", seed=1)]
    both = skn.score_neurons(gpt2, prompts, TASK, run=QUIET)
    with pytest.raises(ValueError, match="give the scores of this prompt alone"):
        skn.studies.vote_and_probe(gpt2, prompts[0], TASK, both)
    one = skn.score_neurons(gpt2, prompts[1], TASK, run=QUIET)
    with pytest.raises(ValueError, match="give the scores of this prompt alone"):
        skn.studies.vote_and_probe(gpt2, prompts[0], TASK, one)
    with pytest.raises(ValueError, match="amount must give 1 to 96 neurons per model, got 97"):
        skn.studies.vote_and_probe(gpt2, prompts[1], TASK, one, [97])
    with pytest.raises(ValueError, match="sizes must hold at least one number of neurons, got none"):
        skn.studies.vote_and_probe(gpt2, prompts[1], TASK, one, [])


def test_scores_of_texts_cut_to_another_length_are_refused(gpt2):
    prompt = prompt_for("gpt2")
    short = skn.score_neurons(gpt2, prompt, TASK, max_length=7, run=QUIET)
    with pytest.raises(
        ValueError, match="were measured on texts cut to 7 tokens, which here are cut to 48 tokens"
    ):
        skn.studies.vote_and_probe(gpt2, prompt, TASK, short, [1])
    found = skn.studies.vote_and_probe(gpt2, prompt, TASK, short, [1], max_length=7)
    rules = skn.scores.evaluate_rules(gpt2, prompt, TASK, short, short.top(1, per="model"), max_length=7)
    assert found.to_dataframe().vote[0] == pytest.approx(rules.mean)
    assert found.settings["max_length"] == 7


def test_it_comes_back_from_its_file_and_shows_itself_in_a_line(gpt2, tmp_path):
    prompt = prompt_for("gpt2")
    scores = skn.score_neurons(gpt2, prompt, TASK, run=QUIET)
    found = skn.studies.vote_and_probe(gpt2, prompt, TASK, scores, [1, 3], n_random=4)
    again = skn.studies.VoteAndProbe.load(found.save(tmp_path / "curve.safetensors"))
    assert again.to_dataframe().equals(found.to_dataframe())
    assert (again.sizes, again.settings) == ((1, 3), found.settings)
    assert again.units.member.equal(found.units.member) and set(found.to_dataframe().unit) == {"text"}
    assert repr(found).startswith(
        "VoteAndProbe(sizes=(1, 3), n_random=4, n_examples=15, n_units=15, best_vote="
    )
    assert "random_probe" in found._repr_html_()
    frame = found.to_dataframe()
    drawn = found.vote[1, 1:].double().mean(1)
    assert frame.random_vote[1] == pytest.approx(
        float(drawn.sort().values[1:3].mean())
    )  # of four: the middle two
