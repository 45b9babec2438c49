"""Prompts tried on each other's tasks, and Mantel's test against all orders by hand."""

import itertools

import pytest
import tiny
import torch
from scipy import stats

import tl_skillneurons as skn
from tl_skillneurons.transfer import mantel

from test_scoring import prompt_for, task_of  # isort: skip


def away(matrix):
    return matrix[~torch.eye(len(matrix), dtype=torch.bool)].numpy()


def test_mantel_equals_trying_all_orders():
    generator = torch.Generator().manual_seed(0)
    one, other = torch.randn(2, 5, 5, generator=generator, dtype=torch.float64)
    found, p = mantel(one, other)
    assert found == pytest.approx(stats.spearmanr(away(one), away(other)).statistic)
    values = [
        stats.spearmanr(away(one), away(other[list(order)][:, list(order)])).statistic
        for order in itertools.permutations(range(5))
    ]
    assert p == pytest.approx(sum(value >= found - 1e-9 for value in values) / 120)
    assert mantel(one, one)[1] == pytest.approx(1 / 120)
    sampled = mantel(one, other, n_permutations=60)[1]
    assert abs(sampled - p) < 0.25
    assert mantel(torch.ones(4, 4), one[:4, :4])[1] == 1.0


@pytest.fixture(scope="module")
def three():
    model = tiny.bridge("gpt2")
    names = ("a", "b", "c")
    tasks = {name: task_of(tiny.sentences(54, seed=seed)) for seed, name in enumerate(names)}
    prompts = {name: prompt_for("gpt2", seed=seed) for seed, name in enumerate(names)}
    scores = {name: skn.score_neurons(model, prompts[name], tasks[name], progress=False) for name in names}
    return model, tasks, prompts, scores


def test_every_prompt_answers_every_task_and_similarities_are_what_they_say(three):
    model, tasks, prompts, scores = three
    with pytest.warns(UserWarning) as warned:
        found = skn.transfer_prompts(*three)
    said = " ".join(str(one.message) for one in warned)
    assert "3 tasks have 6 orders, too few for a p-value of 0.05" in said
    row = found.pairs[(found.pairs.source == "a") & (found.pairs.target == "b")].iloc[0]
    split = tasks["b"].split("report")
    prompted = skn.PromptedModel(model, prompts["a"], tasks["b"].label_words)
    assert row.accuracy == skn.accuracy(prompted, split["text"], split["label"])
    assert row["skill"] == pytest.approx(
        stats.spearmanr(scores["a"].predictivity.flatten(), scores["b"].predictivity.flatten()).statistic
    )
    on = [scores[name].baseline[0] > 0 for name in "ab"]
    assert row.activated == pytest.approx(float((on[0] & on[1]).sum() / (on[0] | on[1]).sum()))
    vectors = [prompts[name].embedding.detach() for name in "ab"]
    cosines = [torch.nn.functional.cosine_similarity(x, y, dim=0) for x in vectors[0] for y in vectors[1]]
    assert row.cosine == pytest.approx(float(sum(cosines) / len(cosines)))
    own = found.matrix("relative").to_numpy().diagonal()
    assert all(
        value == pytest.approx(1) or value != value for value in own
    )  # NaN where the own prompt only guesses
    assert list(found.foretold.similarity) == ["skill", "activated", "cosine"]
    assert set(found.foretold.n_pairs) == {6} and set(found.foretold.n_orders) == {6}


def test_transfers_that_cannot_be_compared_are_refused(three):
    model, tasks, prompts, scores = three
    two = ["a", "b"]
    with pytest.raises(ValueError, match="at least three tasks"):
        skn.transfer_prompts(
            model, *({name: part[name] for name in two} for part in (tasks, prompts, scores))
        )
    with pytest.raises(ValueError, match="prompts must go by the names of the tasks"):
        skn.transfer_prompts(model, tasks, {name: prompts[name] for name in two}, scores)
    longer = prompt_for("gpt2", n=5)
    other = {**scores, "c": skn.score_neurons(model, longer, tasks["c"], progress=False)}
    with pytest.raises(ValueError, match="prompts positions"):
        skn.transfer_prompts(model, tasks, {**prompts, "c": longer}, other)
