"""What ablating one task's neurons does to another, beside random neurons."""

import io

import pandas as pd
import pytest
import tiny
from rich.console import Console
from toy import TASK, prompt_for, task_of

import tl_skillneurons as skn


def test_the_damage_matrix_has_every_pair_and_is_what_each_ablation_alone_gives():
    model = tiny.bridge("gpt2")
    rows = tiny.sentences(54, seed=8)
    tasks = {"a": TASK, "b": task_of(rows)}
    prompts = {"a": prompt_for("gpt2"), "b": prompt_for("gpt2", seed=1)}
    sets = {
        name: skn.score_neurons(model, prompts[name], tasks[name], progress=False).top(2) for name in tasks
    }
    found = skn.studies.measure_damage(model, tasks, prompts, sets, how="zero", n_random=19, progress=False)
    frame = found.to_dataframe()
    assert list(zip(frame.ablated, frame.measured, strict=True)) == [
        ("a", "a"),
        ("b", "a"),
        ("a", "b"),
        ("b", "b"),
    ]
    row = frame.iloc[1]
    alone = skn.interventions.ablation_effect(
        model, prompts["a"], TASK, sets["b"], how="zero", positions="prompt", n_random=19, progress=False
    )
    intact, held, random = alone.mean_over_prompts()
    assert (row.intact, row.ablated_accuracy, row.random_median) == (
        intact,
        held,
        float(random.quantile(0.5)),
    )
    assert row.damage == pytest.approx(row.random_median - held) and row.p_random == alone.p_value
    assert (
        found.matrix().loc["b", "a"] == row.damage and found.matrix("intact").loc["a", "b"] == frame.intact[2]
    )
    with pytest.raises(ValueError, match="neurons must go by the names of the tasks"):
        skn.studies.measure_damage(model, tasks, prompts, {"a": sets["a"]}, how="zero")
    with pytest.raises(ValueError, match="n_random must be at least 19"):
        skn.studies.measure_damage(model, tasks, prompts, sets, how="zero", n_random=5)


def test_a_star_marks_damage_that_random_neurons_do_not_do():
    rows = [
        {"ablated": one, "measured": other, "damage": damage, "p_random": p, "intact": 0.9, "role": "report"}
        for one, other, damage, p in (
            ("a", "a", 0.25, 0.05),
            ("b", "a", -0.01, 0.7),
            ("a", "b", 0.1, 0.051),
            ("b", "b", 0.5, 0.01),
        )
    ]
    console = Console(width=100, file=io.StringIO())
    console.print(skn.studies.TaskDamage(pd.DataFrame(rows), ("a", "b")).to_table())
    printed = console.file.getvalue()
    lines = printed.splitlines()
    [of_a] = [line for line in lines if line.startswith("\u2502 a ")]
    [of_b] = [line for line in lines if line.startswith("\u2502 b ")]
    assert "+0.250*" in of_a and "+0.100 " in of_a and "-0.010 " in of_b and "+0.500*" in of_b
    [intact] = [line for line in lines if "intact accuracy" in line]
    assert intact.count("0.900") == 2 and "lost on report beyond random neurons" in " ".join(printed.split())
