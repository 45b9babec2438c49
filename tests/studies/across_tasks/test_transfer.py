"""Prompts tried on each other's tasks, and Mantel's test against all orders by hand."""

import dataclasses
import io

import pandas as pd
import pytest
import tiny
import torch
from rich.console import Console
from scipy import stats
from toy import QUIET, prompt_for, task_of

import tl_skillneurons as skn
from tl_skillneurons.stats.intervals import ratio_interval
from tl_skillneurons.stats.units import Units
from tl_skillneurons.studies.across_tasks.transfer import compare_answers


@pytest.fixture(scope="module")
def three():
    model = tiny.bridge("gpt2")
    names = ("a", "b", "c")
    tasks = {name: task_of(tiny.sentences(54, seed=seed)) for seed, name in enumerate(names)}
    prompts = {name: prompt_for("gpt2", seed=seed) for seed, name in enumerate(names)}
    scores = {name: skn.score_neurons(model, prompts[name], tasks[name], run=QUIET) for name in names}
    return model, tasks, prompts, scores


def test_every_prompt_answers_every_task_and_similarities_are_what_they_say(three):
    model, tasks, prompts, scores = three
    with pytest.warns(UserWarning) as warned:
        found = skn.studies.transfer_prompts(*three, run=QUIET)
    said = " ".join(str(one.message) for one in warned)
    assert "3 tasks have 6 orders, too few for a p-value of 0.05" in said
    row = found.pairs[(found.pairs.source == "a") & (found.pairs.target == "b")].iloc[0]
    split = tasks["b"].split("report")
    assert row.accuracy == skn.PromptedModel(model, prompts["a"], tasks["b"].label_words).accuracy(tasks["b"])
    assert row["skill"] == pytest.approx(
        stats.spearmanr(scores["a"].predictivity.flatten(), scores["b"].predictivity.flatten()).statistic
    )
    on = [scores[name].baseline[0] > 0 for name in "ab"]
    assert row.activated == pytest.approx(float((on[0] & on[1]).sum() / (on[0] | on[1]).sum()))
    vectors = [prompts[name].embedding.detach() for name in "ab"]
    cosines = [torch.nn.functional.cosine_similarity(x, y, dim=0) for x in vectors[0] for y in vectors[1]]
    assert row.cosine == pytest.approx(float(sum(cosines) / len(cosines)))
    n = len(split)
    exact = stats.binomtest(round(row.accuracy * n), n).proportion_ci(method="exact")
    assert (row.accuracy_low, row.accuracy_high) == pytest.approx((exact.low, exact.high))
    own = found.matrix("relative").to_numpy().diagonal()
    assert all(
        value == pytest.approx(1) or value != value for value in own
    )  # NaN where the own prompt only guesses
    assert list(found.foretold.similarity) == ["skill", "activated", "cosine"]
    assert found.foretold.low.isna().all()  # two tasks have one similarity, and nothing to be correlated
    assert found.to_dataframe().equals(found.pairs) and found.to_dataframe() is not found.pairs
    assert row.above == pytest.approx(row.accuracy - row.guessing)


def printed(found):
    console = Console(width=200, file=io.StringIO())
    console.print(dataclasses.replace(found, pairs=found.pairs.assign(role="report")).to_table())
    return " ".join(console.file.getvalue().split())


def answered(names, shares, n=80, seed=0):
    """By target, answers of every source's prompt, right with these shares."""
    generator = torch.Generator().manual_seed(seed)
    drawn = {target: torch.rand(len(names), n, generator=generator, dtype=torch.float64) for target in names}
    return {
        target: (rows < shares[number][:, None]).double()
        for number, (target, rows) in enumerate(drawn.items())
    }


def away(matrix):
    """What stands off the diagonal."""
    return matrix[~torch.eye(len(matrix), dtype=torch.bool)].numpy()


def test_beside_the_interval_stand_the_extremes_of_leaving_out_each_task_in_turn():
    names, generator = "abcd", torch.Generator().manual_seed(1)
    similar = torch.rand(4, 4, generator=generator, dtype=torch.float64)
    answers = answered(names, 0.6 + 0.3 * similar)
    found = compare_answers(answers, dict.fromkeys(names, 0.5), {"cosine": similar})
    relative = found.matrix("relative")
    left = []
    for name in names:
        rest = [other for other in names if other != name]
        x, y = (
            torch.tensor(found.matrix(what).loc[rest, rest].to_numpy()) for what in ("cosine", "relative")
        )
        left.append(stats.spearmanr(away(x), away(y)).statistic)
    row = found.foretold.set_index("similarity").loc["cosine"]
    assert (row.least_without, row.most_without) == pytest.approx((min(left), max(left)))
    assert row.least_without < row.most_without and -1 <= row.low < row.correlation < row.high <= 1
    pairs = found.pairs[found.pairs.source != found.pairs.target]
    assert (pairs.relative_low <= pairs.relative).all() and (pairs.relative <= pairs.relative_high).all()
    right = {target: rows.mean(1) for target, rows in answers.items()}
    expected = (right["c"][0] - 0.5) / (right["c"][2] - 0.5)
    assert relative.loc["a", "c"] == pytest.approx(float(expected))


def test_examples_of_one_group_are_drawn_together_so_that_copies_narrow_no_interval():
    names, generator = "abcd", torch.Generator().manual_seed(1)
    similar = {"cosine": torch.rand(4, 4, generator=generator, dtype=torch.float64)}
    copied = {
        name: rows.repeat_interleave(8, 1)
        for name, rows in answered(names, torch.full((4, 4), 0.8), n=12).items()
    }
    authors = Units(torch.arange(12).repeat_interleave(8), "author")
    one_by_one = compare_answers(copied, dict.fromkeys(names, 0.2), similar).pairs
    single = dict.fromkeys(names, Units.single(96))
    pd.testing.assert_frame_equal(
        one_by_one, compare_answers(copied, dict.fromkeys(names, 0.2), similar, units=single).pairs
    )
    by_author = compare_answers(
        copied, dict.fromkeys(names, 0.2), similar, units=dict.fromkeys(names, authors)
    ).pairs
    assert by_author.accuracy.equals(one_by_one.accuracy)
    inside = (one_by_one.accuracy > 0.5) & (one_by_one.accuracy < 1)
    width = [(frame.accuracy_high - frame.accuracy_low)[inside] for frame in (by_author, one_by_one)]
    assert inside.any() and (width[0] > 1.8 * width[1]).all()
    other = one_by_one.source != one_by_one.target
    width = [(frame.relative_high - frame.relative_low)[other].mean() for frame in (by_author, one_by_one)]
    assert width[0] > 1.5 * width[1]


def test_nothing_is_relative_to_an_own_prompt_that_may_only_guess_and_the_change_itself_is_told():
    """Own prompts: 10 of 15 right, 8 by guessing; two that do their tasks; and one that is below guessing."""
    names, generator = "abcde", torch.Generator().manual_seed(1)
    shares = torch.full((5, 5), 0.9, dtype=torch.float64)
    answers = answered(names, shares, n=60)
    answers["a"] = torch.tensor([1.0] * 10 + [0.0] * 5, dtype=torch.float64).expand(5, 15)
    guessing = {"a": 8 / 15, "b": 0.5, "c": 0.5, "d": 0.5, "e": 1.0}
    similar = {"cosine": torch.rand(5, 5, generator=generator, dtype=torch.float64)}
    with pytest.warns(UserWarning) as warned:
        found = compare_answers(answers, guessing, similar)
    said = " ".join(str(one.message) for one in warned)
    assert (
        "relative to the own prompt of a, nor foretold of it: it may be no better than guessing (0.667, "
        in said
    )
    assert "(0.667, 0.384 to 0.882; guessing 0.533)" in said
    assert "own prompt of e, nor foretold of it: it is no better than guessing" in said
    pairs = found.pairs.set_index("target")
    for target in "ae":
        assert pairs.loc[target, ["relative", "relative_low", "relative_high"]].isna().all(axis=None)
    assert pairs.loc["a"].above.to_list() == pytest.approx([2 / 15] * 5)
    assert "0.667 (+0.133)" in printed(found) and "own prompt of a: it may be no better" in printed(found)
    assert list(found.settings["left_out"]) == ["a", "e"] and "left_out=['a', 'e']" in repr(found)
    rest = {name: answers[name][1:4] for name in "bcd"}
    alone = compare_answers(rest, guessing, {"cosine": similar["cosine"][1:4, 1:4]})
    told = ["correlation", "p_value", "n_pairs", "n_orders"]
    assert found.foretold[told].equals(alone.foretold[told]) and set(alone.foretold.n_orders) == {6}
    assert f"({alone.matrix('relative').loc['b', 'c']:.2f})" in printed(found)
    assert "cosine foretells it: Spearman" in printed(found) and "over 6 orders of the tasks" in printed(
        found
    )


def test_the_interval_of_a_ratio_has_the_own_prompts_uncertainty_and_few_units_are_no_gap():
    names = "abc"
    answers = answered(names, torch.full((3, 3), 0.8, dtype=torch.float64), n=40)
    found = compare_answers(answers, dict.fromkeys(names, 0.5), {"cosine": torch.rand(3, 3).double()}, seed=3)
    low, high = ratio_interval(answers["b"] - 0.5, answers["b"][1] - 0.5, seed=3)
    pairs = found.pairs[found.pairs.target == "b"]
    assert pairs.relative_low.to_list() == low.tolist() and pairs.relative_high.to_list() == high.tolist()
    four = Units(torch.arange(4).repeat_interleave(10), "author")
    right = torch.ones(3, 40, dtype=torch.float64)
    right[:, 0] = 0
    with pytest.warns(UserWarning, match="of 4 units .author. the exact sign-flip p is 0.125"):
        few = compare_answers(
            dict.fromkeys(names, right),
            dict.fromkeys(names, 0.5),
            {"cosine": torch.rand(3, 3).double()},
            units=dict.fromkeys(names, four),
        )
    assert few.pairs.relative.isna().all()


@pytest.mark.filterwarnings("ignore:.*(own prompt|orders)")
def test_scores_of_other_prompts_or_of_texts_cut_to_another_length_are_refused(three, tmp_path):
    model, tasks, prompts, scores = three
    exchanged = {"a": prompts["b"], "b": prompts["a"], "c": prompts["c"]}
    with pytest.raises(ValueError, match="prompts that are not the 1 given"):
        skn.studies.transfer_prompts(model, tasks, exchanged, scores, run=QUIET)
    with pytest.raises(
        ValueError, match="measured on texts cut to 48 tokens, which here are cut to 8 tokens"
    ):
        skn.studies.transfer_prompts(*three, max_length=8, run=QUIET)
    cut = {
        name: skn.score_neurons(model, prompts[name], tasks[name], max_length=8, run=QUIET) for name in tasks
    }
    found = skn.studies.transfer_prompts(model, tasks, prompts, cut, max_length=8, run=QUIET)
    prompted = skn.PromptedModel(model, prompts["a"], tasks["b"].label_words, max_length=8)
    assert found.matrix("accuracy").loc["a", "b"] == prompted.accuracy(tasks["b"])
    assert (
        repr(found).startswith("PromptTransfer(tasks=['a', 'b', 'c'], relative=")
        and "<table" in found._repr_html_()
    )
    read = skn.studies.PromptTransfer.load(found.save(tmp_path / "found.json"))
    pd.testing.assert_frame_equal(read.pairs, found.pairs)
    pd.testing.assert_frame_equal(read.foretold, found.foretold)
    assert read.settings == found.settings and read.settings["max_length"] == 8


def test_transfers_that_cannot_be_compared_are_refused(three):
    model, tasks, prompts, scores = three
    two = ["a", "b"]
    with pytest.raises(ValueError, match="at least three tasks"):
        skn.studies.transfer_prompts(
            model, *({name: part[name] for name in two} for part in (tasks, prompts, scores))
        )
    with pytest.raises(ValueError, match="prompts must go by the names of the tasks"):
        skn.studies.transfer_prompts(model, tasks, {name: prompts[name] for name in two}, scores)
    longer = prompt_for("gpt2", n=5)
    other = {**scores, "c": skn.score_neurons(model, longer, tasks["c"], run=QUIET)}
    with pytest.raises(ValueError, match="prompts positions"):
        skn.studies.transfer_prompts(model, tasks, {**prompts, "c": longer}, other)
