"""What ablating one task's neurons does to another, beside random and matched neurons."""

import io

import pandas as pd
import pytest
import tiny
from rich.console import Console
from toy import QUIET, TASK, prompt_for, task_of

import tl_skillneurons as skn
from tl_skillneurons.interventions.asked import Examples


@pytest.fixture(scope="module")
def two():
    model = tiny.bridge("gpt2")
    tasks = {"a": TASK, "b": task_of(tiny.sentences(54, seed=8))}
    prompts = {"a": [prompt_for("gpt2"), prompt_for("gpt2", seed=2)], "b": prompt_for("gpt2", seed=1)}
    sets = {name: skn.score_neurons(model, prompts[name], tasks[name], run=QUIET).top(2) for name in tasks}
    return model, tasks, prompts, sets


def test_every_pair_is_what_that_ablation_alone_gives(two, how="zero"):
    model, _, prompts, sets = two
    settings = {"n_random": 19, "run": QUIET}
    found = skn.studies.cross_task_damage(*two, how=how, **settings)
    frame = found.to_dataframe()
    assert list(zip(frame.ablated, frame.measured, strict=True)) == [
        ("a", "a"),
        ("b", "a"),
        ("a", "b"),
        ("b", "b"),
    ]
    row = frame.iloc[1]
    alone = skn.measure_effects(model, prompts["a"], TASK, sets["b"], interventions=how, **settings)
    panel = alone.to_dataframe()
    [expected] = panel[(panel.metric == "accuracy") & (panel.prompt == "pooled")].to_dict("records")
    assert (row.intact, row.ablated_accuracy) == (expected["intact"], expected["value"])
    for control in ("random", "matched"):
        for name in (f"{control}_median", f"{control}_min", f"{control}_max", f"p_{control}"):
            assert row[name] == expected[name]
    assert row.neurons_chosen == expected["neurons_chosen"] == "on other examples"
    assert row.damage == expected["random_median"] - expected["value"] and row.n_neurons == 4
    prompted = [skn.PromptedModel(model, prompt, TASK.label_words) for prompt in prompts["a"]]
    assert row.intact == pytest.approx(sum(one.accuracy(TASK) for one in prompted) / 2)
    held = [one.accuracy(TASK, fwd_hooks=skn.ablate(sets["b"], positions="prompt")) for one in prompted]
    assert row.ablated_accuracy == pytest.approx(sum(held) / 2)
    assert (
        found.matrix().loc["b", "a"] == row.damage and found.matrix("intact").loc["a", "b"] == frame.intact[2]
    )


def test_names_that_differ_and_too_few_draws_are_refused(two):
    model, tasks, prompts, sets = two
    with pytest.raises(ValueError, match="neurons must go by the names of the tasks"):
        skn.studies.cross_task_damage(model, tasks, prompts, {"a": sets["a"]})
    with pytest.raises(ValueError, match="prompts must go by the names of the tasks"):
        skn.studies.cross_task_damage(model, tasks, {"a": prompts["a"]}, sets)
    with pytest.raises(ValueError, match="n_random must be at least 19"):
        skn.studies.cross_task_damage(*two, n_random=5)


def test_it_goes_on_where_it_stopped_shows_itself_and_survives_a_file(two, tmp_path, monkeypatch):
    settings = {"how": "zero", "n_random": 19, "examples": Examples(max_length=9), "run": QUIET}
    found = skn.studies.cross_task_damage(*two, folder=tmp_path, **settings)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.safetensors", "b.safetensors"]
    monkeypatch.setattr(skn.PromptedModel, "read_out", lambda *a, **k: pytest.fail("it ran"))
    again = skn.studies.cross_task_damage(*two, folder=tmp_path, **settings)
    pd.testing.assert_frame_equal(again.pairs, found.pairs)
    assert (
        repr(found).startswith("TaskDamage(tasks=['a', 'b'], damage_by_own=")
        and "<table" in found._repr_html_()
    )
    read = skn.studies.TaskDamage.load(found.save(tmp_path / "found.json"))
    pd.testing.assert_frame_equal(read.pairs, found.pairs)
    assert (read.names, read.settings) == (found.names, found.settings)
    assert found.settings["panels"]["a"]["max_length"] == [[9, 9]]


def test_a_star_marks_damage_that_random_neurons_do_not_do():
    rows = [
        {
            "ablated": one,
            "measured": other,
            "damage": damage,
            "p_random": p,
            "p_matched": p_matched,
            "intact": 0.9,
            "role": "report",
            "neurons_chosen": "on these examples" if (one, other) == ("b", "b") else "on other examples",
        }
        for one, other, damage, p, p_matched in (
            ("a", "a", 0.25, 0.05, 0.05),
            ("b", "a", -0.01, 0.05, 0.7),
            ("a", "b", 0.1, 0.051, 0.05),
            ("b", "b", 0.5, 0.01, 0.01),
        )
    ]
    console = Console(width=100, file=io.StringIO())
    console.print(skn.studies.TaskDamage(pd.DataFrame(rows), ("a", "b")).to_table())
    printed = console.file.getvalue()
    lines = printed.splitlines()
    [of_a] = [line for line in lines if line.startswith("\u2502 a ")]
    [of_b] = [line for line in lines if line.startswith("\u2502 b ")]
    assert "+0.250*" in of_a and "+0.100 " in of_a and "-0.010 " in of_b
    assert "+0.500* chosen here" in of_b and printed.count("chosen here") == 1
    [intact] = [line for line in lines if "intact accuracy" in line]
    assert intact.count("0.900") == 2 and "lost on report beyond random neurons" in " ".join(printed.split())
