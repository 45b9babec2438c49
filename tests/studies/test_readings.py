"""The same scores with tuned prompts and with everything less: what each control is, and one table."""

from dataclasses import replace

import pytest
import tiny
import torch
from scipy import stats
from toy import QUIET, TASK, prompt_for, task_of

import tl_skillneurons as skn
from tl_skillneurons.prompts.tuning.schedule import TrainingOptions
from tl_skillneurons.stats.intervals import bootstrap_mean, two_level_bootstrap
from tl_skillneurons.stats.units import Units

FEW = TrainingOptions(batch_size=4)


@pytest.fixture(scope="module")
def models():
    return {family: tiny.bridge(family, dtype=torch.float64) for family in ("gpt2", "bert")}


@pytest.mark.parametrize("family", ["gpt2", "bert"])
def test_every_reading_is_what_scoring_it_alone_gives(models, family):
    model = models[family]
    prompts = [prompt_for(family), prompt_for(family, seed=1)]
    found = skn.studies.compare_readings(
        model, prompts, TASK, natural=["the film was"], n_top=3, n_permutations=99, run=QUIET
    )
    assert list(found.scores) == ["tuned", "random", "natural", "last", "mean", "max"]
    for name, given, positions in (("tuned", prompts, "prompt"), ("last", None, "last")):
        alone = skn.score_neurons(model, given, TASK, positions=positions, run=QUIET)
        assert torch.equal(found.scores[name].correct, alone.correct)
        rules = skn.scores.evaluate_rules(model, given, TASK, alone, run=QUIET)
        expected = rules.accuracy_of(found.tops[name]).mean()
        assert float(found.accuracy[name].mean()) == pytest.approx(float(expected))
    words = [tiny.VOCABULARY[word] for word in "the film was".split()]
    row = model.W_E[words]
    by_hand = skn.SoftPrompt(row, placement=prompts[0].placement)
    alone = skn.score_neurons(model, by_hand, TASK, run=QUIET)
    assert torch.equal(found.scores["natural"].correct, alone.correct)
    frame = found.to_dataframe()
    assert list(frame.n_prompts) == [2, 2, 1, 1, 1, 1] and set(frame.role) == {"report"}
    assert frame.minus_tuned[0] == frame.minus_low[0] == frame.minus_high[0] == 0
    assert frame.minus_tuned[1] == pytest.approx(frame.accuracy[1] - frame.accuracy[0])
    assert (frame.minus_low <= frame.minus_tuned).all() and (frame.minus_tuned <= frame.minus_high).all()
    again = skn.studies.compare_readings(
        model, prompts, TASK, natural=["the film was"], n_top=3, n_permutations=99, run=QUIET
    )
    assert again.to_dataframe().equals(frame)


def test_intervals_speak_for_other_prompts_where_there_are_three(models):
    found = skn.studies.compare_readings(
        models["gpt2"], prompt_for("gpt2"), TASK, ["last"], n_top=3, n_permutations=39, run=QUIET
    )
    generator = torch.Generator().manual_seed(0)
    accuracy = {
        name: torch.rand(n, 15, generator=generator).double() for name, n in (("tuned", 3), ("last", 1))
    }
    accuracy["tuned"] += torch.tensor([0.0, 0.5, 1.0])[:, None]
    row = replace(found, accuracy=accuracy).to_dataframe().set_index("reading")
    low, high = two_level_bootstrap(accuracy["tuned"], units=found.units)
    assert (row.low["tuned"], row.high["tuned"]) == (float(low), float(high))
    assert row.about["tuned"].startswith("other prompts (3 seen)") and "alone" in row.about["last"]
    apart = accuracy["last"][0] - accuracy["tuned"].mean(0)
    down, up = bootstrap_mean(apart, units=found.units)
    width = stats.t.ppf(0.975, 2) * accuracy["tuned"].mean(1).std() / 3**0.5
    assert row.minus_low["last"] == pytest.approx(
        apart.mean() - ((apart.mean() - down) ** 2 + width**2) ** 0.5
    )
    assert row.minus_high["last"] == pytest.approx(
        apart.mean() + ((up - apart.mean()) ** 2 + width**2) ** 0.5
    )
    assert row.minus_low["tuned"] == row.minus_high["tuned"] == 0


def test_shuffled_and_reinitialised_controls_are_tuned_and_run_as_they_say(models):
    prompts = [prompt_for("gpt2")]
    other = tiny.bridge("gpt2", seed=1, dtype=torch.float64)
    found = skn.studies.compare_readings(
        models["gpt2"],
        prompts,
        TASK,
        (),
        shuffled={"n_steps": 2, "training": FEW},
        reinitialised=other,
        n_top=2,
        n_permutations=19,
        run=QUIET,
    )
    assert list(found.scores) == ["tuned", "shuffled", "reinitialised"]
    alone = skn.score_neurons(other, prompts, TASK, run=QUIET)
    assert torch.equal(found.scores["reinitialised"].correct, alone.correct)
    noise = TASK.with_shuffled_labels(0)
    settings = {"n_virtual_tokens": 3, "n_steps": 2, "training": FEW}
    with pytest.warns(UserWarning, match="not below chance"):
        tuned = skn.fit_soft_prompts(models["gpt2"], noise, seeds=[0], run=QUIET, **settings)
    alone = skn.score_neurons(models["gpt2"], tuned, TASK, run=QUIET)
    assert torch.equal(found.scores["shuffled"].correct, alone.correct)


def test_shuffled_labels_keep_texts_and_counts_and_leave_other_roles():
    noise = TASK.with_shuffled_labels(3)
    assert noise.split("train")["text"][:] == TASK.split("train")["text"][:]
    assert noise.class_counts("train") == TASK.class_counts("train")
    assert noise.split("train")["label"][:] != TASK.split("train")["label"][:]
    assert noise.split("baseline")["label"][:] == noise.split("train")["label"][:]
    assert noise.split("report")["label"][:] == TASK.split("report")["label"][:]
    assert TASK.with_shuffled_labels(3).fingerprint == noise.fingerprint != TASK.fingerprint
    assert "the labels of train and baseline are shuffled (seed 3)." in noise.notes


def test_texts_are_cut_alike_under_every_reading(models):
    prompt = prompt_for("gpt2")
    tuned = skn.SoftPrompt(prompt.embedding, placement="suffix", max_length=8)
    options = {"n_top": 2, "n_permutations": 19, "run": QUIET}
    found = skn.studies.compare_readings(models["gpt2"], tuned, TASK, natural=["the film was"], **options)
    lengths = {name: one.provenance["max_length"] for name, one in found.scores.items()}
    beside = {"tuned": 8, "random": 8, "natural": 8}
    assert lengths == {**beside, "last": 5, "mean": 5, "max": 5}  # without three virtual tokens
    asked = skn.studies.compare_readings(
        models["gpt2"], prompt, TASK, natural=["the film was"], max_length=8, **options
    )
    assert asked.to_dataframe().equals(found.to_dataframe())
    whole = skn.studies.compare_readings(models["gpt2"], prompt, TASK, natural=["the film was"], **options)
    assert not torch.equal(whole.scores["last"].correct, found.scores["last"].correct)
    by_hand = skn.score_neurons(models["gpt2"], None, TASK, positions="mean", max_length=5, run=QUIET)
    assert torch.equal(found.scores["mean"].correct, by_hand.correct)


def test_it_comes_back_from_its_folder_and_shows_itself_in_a_line(models, tmp_path):
    prompts = [prompt_for("bert")]
    found = skn.studies.compare_readings(
        models["bert"], prompts, TASK, ["last"], n_top=3, n_permutations=19, run=QUIET
    )
    again = skn.studies.ReadingComparison.load(found.save(tmp_path / "readings"))
    assert again.to_dataframe().equals(found.to_dataframe())
    assert {name: list(top) for name, top in again.tops.items()} == {
        name: list(top) for name, top in found.tops.items()
    }
    assert again.settings == found.settings and again.units.member.equal(found.units.member)
    assert (
        repr(found).startswith("ReadingComparison(accuracy={'tuned': 0.")
        and "minus_tuned" in found._repr_html_()
    )
    (tmp_path / "readings" / "tables.json").unlink()  # as after an interrupted save
    with pytest.raises(FileNotFoundError):
        skn.studies.ReadingComparison.load(tmp_path / "readings")


def test_intervals_are_of_what_belongs_together(models):
    """Five copies of an answer are one answer: the interval is as wide as without copies."""
    single = skn.studies.compare_readings(
        models["gpt2"], prompt_for("gpt2"), TASK, ["last"], n_top=3, n_permutations=19, run=QUIET
    )
    n = len(single.units)
    assert set(single.to_dataframe().unit) == {"text"} and set(single.to_dataframe().n_units) == {n}
    copies = {name: right.repeat_interleave(5, 1) for name, right in single.accuracy.items()}
    units = Units(torch.arange(n).repeat_interleave(5), "author")
    copied = replace(single, accuracy=copies, units=units)
    for column in ("low", "high", "minus_low", "minus_high"):
        assert list(copied.to_dataframe()[column]) == pytest.approx(list(single.to_dataframe()[column]))
    assert set(copied.to_dataframe().n_units) == {n} and "n_units=" in repr(copied)


def test_readings_that_cannot_be_compared_are_refused(models):
    prompt = prompt_for("gpt2")
    with pytest.raises(ValueError, match="readings without a prompt come by readings="):
        skn.studies.compare_readings(models["gpt2"], None, TASK)
    with pytest.raises(
        ValueError, match="readings must be one of 'random', 'last', 'mean', 'max', got 'first'"
    ):
        skn.studies.compare_readings(models["gpt2"], prompt, TASK, ["first"])
    narrow = skn.prune(models["gpt2"], keep=skn.NeuronSet([0, 1], [1, 2]), values=torch.zeros(2, 48))
    with pytest.raises(ValueError, match="re-initialised model must have the shape of the model"):
        skn.studies.compare_readings(models["gpt2"], prompt, TASK, reinitialised=narrow)
    mixed = [prompt, skn.SoftPrompt(prompt.embedding, placement="suffix", max_length=8)]
    with pytest.raises(ValueError, match="must see texts cut to one length"):
        skn.studies.compare_readings(models["gpt2"], mixed, TASK, run=QUIET)
    with pytest.raises(ValueError, match="a natural-language prompt must have at least one token, got ''"):
        skn.studies.compare_readings(models["gpt2"], prompt, TASK, natural=[""])
    words = {0: "negative", 1: "positive", 2: "other"}
    rows = [{"text": row["text"], "label": n % 3} for n, row in enumerate(tiny.sentences(54, seed=2))]
    with pytest.raises(ValueError, match="predictivity is defined for two classes"):
        skn.studies.compare_readings(models["gpt2"], prompt, task_of(rows, words))
