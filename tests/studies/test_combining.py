"""Votes and probes over the best neurons: by hand, on planted neurons, and what is refused."""

import pytest
import tiny
import torch
from toy import HOOKS, TASK, prompt_for, read, task_of

import tl_skillneurons as skn
from tl_skillneurons.scores.neuron_scores import best_positions
from tl_skillneurons.stats.intervals import mcnemar
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
    scores = skn.score_neurons(gpt2, prompt, TASK, progress=False)
    frame = skn.studies.combine_neurons(gpt2, prompt, TASK, scores, [1, 3])
    rules = skn.scores.rule_accuracy(gpt2, prompt, TASK, scores, progress=False)
    best = scores.top(3, per="model")
    assert frame.vote[0] == pytest.approx(float(scores.rule_accuracy(best, rules)[0]))
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
        scores = skn.score_neurons(model, prompt, task, progress=False)
        assert set(scores.top(6, per="model")) == {(1, i) for i in range(6)}
        frame = skn.studies.combine_neurons(model, prompt, task, scores, [1, 6])
    finally:
        model.reset_hooks()
    assert 0.65 < frame.vote[0] < 0.85 and frame.vote[1] > frame.vote[0] + 0.05
    assert frame.probe[1] > 0.8 and frame.random_vote[1] < 0.65 and frame.random_probe[1] < 0.65


def test_scores_of_several_prompts_or_of_another_are_refused(gpt2):
    prompts = [prompt_for("gpt2"), prompt_for("gpt2", seed=1)]
    both = skn.score_neurons(gpt2, prompts, TASK, progress=False)
    with pytest.raises(ValueError, match="give the scores of this prompt alone"):
        skn.studies.combine_neurons(gpt2, prompts[0], TASK, both)
    one = skn.score_neurons(gpt2, prompts[1], TASK, progress=False)
    with pytest.raises(ValueError, match="give the scores of this prompt alone"):
        skn.studies.combine_neurons(gpt2, prompts[0], TASK, one)
    with pytest.raises(ValueError, match="amount must give 1 to 96 neurons per model, got 97"):
        skn.studies.combine_neurons(gpt2, prompts[1], TASK, one, [97])
