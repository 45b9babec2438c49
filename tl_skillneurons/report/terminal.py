"""What a run found, as numbers and as tables: :func:`numbers` decides what is said, :func:`show` prints just
that.

Every accuracy says which role it was measured on, and every effect stands beside its controls.
"""

from collections.abc import Sequence
from typing import Any

import pandas as pd
from rich.console import Console
from rich.table import Table

from tl_skillneurons._terminal import shown
from tl_skillneurons.find.findings import Findings
from tl_skillneurons.scores.null import PermutationNull
from tl_skillneurons.stats.intervals import clopper_pearson

N_SHOWN = 10
ALPHA = 0.05
CONTROLS = {"random": "random", "matched": "matched", "least": "least predictive"}
"""The kinds of control, as a reader calls them; the last where the set knows which score chose it."""
METRICS = ("accuracy", "logit_diff")
DECIDES = "logit_diff"
"""What the verdict goes by: it sees how far every answer moved, not only those that tipped over."""


def numbers(findings: Findings, n_shown: int = N_SHOWN) -> dict[str, Any]:
    """Every number of the report, as plain JSON values."""
    frame = findings.effects.to_dataframe()
    return {
        "prompts": _prompts(findings, frame),
        "layers": _layers(findings),
        "chance": _chance(findings),
        "skill_neurons": _skill(findings, n_shown),
        "effects": _effects(findings, frame),
    }


def _prompts(findings: Findings, effects: pd.DataFrame) -> list[dict[str, Any]]:
    n = findings.task.n_examples["report"]
    rows = []
    for prompt, intact in zip(findings.prompts, _of_prompts(effects, "accuracy").intact, strict=True):
        low, high = clopper_pearson(round(intact * n), n)
        rows.append(
            {
                "seed": prompt.seed,
                "outcome": prompt.provenance["outcome"],
                "best_step": prompt.provenance["best_step"],
                "n_truncated": prompt.provenance["n_truncated"],
                "accuracy_held_back": prompt.provenance["held_back_accuracy"],
                "accuracy_on_report": intact,
                "interval_95": [low, high],
            }
        )
    return rows


def _layers(findings: Findings) -> list[dict[str, Any]]:
    scores, null = findings.scores, _null(findings)
    best, index = scores.predictivity.max(1)
    level = scores.chance_level(per="layer")
    significant = (null.family() <= ALPHA).sum(1)
    return [
        {
            "layer": layer,
            "best_predictivity_on_select": best[layer].item(),
            "neuron": index[layer].item(),
            "chance_expects": level.expected,
            "chance_exceeds_in_5_percent": level.threshold,
            "n_neurons_significant": significant[layer].item(),
        }
        for layer in range(scores.n_layers)
    ]


def _chance(findings: Findings) -> dict[str, Any]:
    scores, null = findings.scores, _null(findings)
    bound = scores.chance_level()
    return {
        "what": "the best of all neurons under permuted labels (largest statistic, Westfall and Young)",
        "n_permutations": null.n_permutations,
        "n_examples_on_select": scores.n_select,
        "expected": null.expected(),
        "threshold": null.level(ALPHA),
        "alpha": ALPHA,
        "n_neurons_significant": len(scores.significant(ALPHA)),
        "n_neurons_at_fdr_5_percent": len(scores.significant(ALPHA, correction="fdr")),
        "upper_bound": {
            "what": "exact binomial level, which treats all scores as independent",
            "n_scores": bound.n_scores,
            "largest_class_share": bound.largest_class_share,
            "expected": bound.expected,
            "threshold": bound.threshold,
        },
    }


def _meaning(direction: int, label_names: Sequence[Any]) -> str:
    """The label that a high activation speaks for, where all prompts say the same."""
    return str(label_names[direction > 0]) if direction else "prompts disagree"


def _skill(findings: Findings, n_shown: int) -> dict[str, Any]:
    skill = findings.skill
    direction = findings.scores.direction[skill.layer, skill.index]
    p_family = _null(findings).family()[skill.layer, skill.index]
    n = findings.task.n_examples["report"]
    rows = [
        {
            "layer": layer,
            "index": index,
            "high_means": _meaning(int(sign), findings.task.label_names),
            "accuracy_on_select": on_select,
            "p_family": p,
            "accuracy_on_report": on_report,
            "interval_95_on_report": list(clopper_pearson(round(on_report * n), n)),
        }
        for (layer, index), sign, p, on_select, on_report in zip(
            skill,
            direction.tolist(),
            p_family.tolist(),
            findings.on_select.tolist(),
            findings.on_report.tolist(),
            strict=True,
        )
    ][:n_shown]
    return {
        "n": len(skill),
        "mean_accuracy_on_select": float(findings.on_select.mean()),
        "mean_accuracy_on_report": float(findings.on_report.mean()),
        "best": rows,
    }


def _null(findings: Findings) -> PermutationNull:
    null = findings.scores.null
    if null is None:
        raise ValueError("the scores have no null; score with n_permutations, as find_skill_neurons does")
    return null


def _of_prompts(effects: pd.DataFrame, metric: str) -> pd.DataFrame:
    """The effect's rows of single prompts."""
    return effects[(effects.metric == metric) & (effects.prompt != "pooled")]


def _effects(findings: Findings, frame: pd.DataFrame) -> dict[str, Any]:
    panel = findings.effects
    first = frame.iloc[0]
    said = {
        "role": panel.role,
        "n_examples": int(first.n_examples),
        "n_neurons": int(first.n_neurons),
        "intervention": first.intervention,
        "positions": first.positions,
        "n_random": panel.settings["n_random"],
        "metrics": {
            metric: {
                # the last row is pooled, or that of the only prompt
                "pooled": _row(frame[frame.metric == metric].iloc[-1]),
                "each_prompt": [_row(row) for _, row in _of_prompts(frame, metric).iterrows()],
            }
            for metric in METRICS
        },
    }
    return {**said, "verdict": verdict(said)}


def _row(row: "pd.Series[Any]") -> dict[str, float]:
    columns = ["intact", "value", "change_low", "change_high"]
    for control in _controls_of(row):
        columns += [f"{control}_median", f"{control}_min", f"{control}_max", f"p_{control}"]
    return {column: float(row[column]) for column in columns}


def _controls_of(row: "pd.Series[Any] | dict[str, float]") -> list[str]:
    """The kinds of control that stand beside a row."""
    return [control for control in CONTROLS if f"{control}_median" in row]


def verdict(effects: dict[str, Any]) -> str:
    """What the effect shows, in a sentence or two, whatever it is.

    "Uses" takes a smaller logit diff than the median control, at p <= 0.05, for every prompt and every kind of control.
    """
    rows = effects["metrics"][DECIDES]["each_prompt"]
    beyond = [
        row[f"p_{control}"] <= ALPHA and row["value"] < row[f"{control}_median"]
        for row in rows
        for control in _controls_of(row)
    ]
    pooled = effects["metrics"][DECIDES]["pooled"]
    kinds = _controls_of(pooled)
    *first, last = (CONTROLS[control] for control in kinds)
    others = f"{', '.join(first)} and {last} neurons"
    lost = f"logit diff lost: {pooled['intact'] - pooled['value']:.3f}, "
    lost += ", ".join(
        f"{CONTROLS[control]} controls {pooled['intact'] - pooled[f'{control}_median']:.3f}"
        for control in kinds
    )
    prompts = "the prompt" if len(rows) == 1 else f"each of {len(rows)} prompts"
    if all(beyond):
        return (
            f"Held at their mean, the skill neurons cost more than {others} do, for {prompts} at "
            f"p <= {ALPHA} ({lost}): the model uses what they carry."
        )
    if not any(beyond):
        return (
            f"Held at their mean, the skill neurons are not seen to cost more than {others} do ({lost}): "
            "however well the label can be read off them, nothing here shows that the model uses them."
        )
    return (
        f"Held at their mean, the skill neurons cost more than controls do at p <= {ALPHA} in {sum(beyond)} of "
        f"{len(beyond)} comparisons (prompts and kinds of control; {lost}): that the model uses them is not "
        "established."
    )


def show(said: dict[str, Any], console: Console) -> None:
    """Print what :func:`numbers` gave."""
    console.print(_prompt_table(said["prompts"]))
    console.print(_layer_table(said["layers"], said["chance"]))
    console.print(_neuron_table(said["skill_neurons"]))
    console.print(_effect_table(said["effects"]))
    console.print(shown(said["effects"]["verdict"]))


def _table(title: str, *columns: str, caption: str | None = None) -> Table:
    table = Table(
        title=shown(title, "table.title"),
        title_justify="left",
        caption=None if caption is None else shown(caption, "table.caption"),
        caption_justify="left",
    )
    for column in columns:
        table.add_column(shown(column), justify="right")
    return table


def _prompt_table(prompts: list[dict[str, Any]]) -> Table:
    table = _table(
        "Soft prompts", "seed", "held back (train)", "accuracy on report", "95% interval", "outcome"
    )
    for row in prompts:
        low, high = row["interval_95"]
        table.add_row(
            str(row["seed"]),
            f"{row['accuracy_held_back']:.3f}",
            f"{row['accuracy_on_report']:.3f}",
            f"{low:.3f} to {high:.3f}",
            shown(row["outcome"] + (f", {row['n_truncated']} texts cut" if row["n_truncated"] else "")),
        )
    return table


def _layer_table(layers: list[dict[str, Any]], chance: dict[str, Any]) -> Table:
    bound = chance["upper_bound"]
    caption = (
        f"Chance: {chance['what']}, {chance['n_permutations']:,} permutations of {chance['n_examples_on_select']} "
        f"labels. Best of the whole model by luck: {chance['expected']:.3f}, above {chance['threshold']:.3f} in 5% of "
        f"cases (bound for independent scores: {bound['threshold']:.3f}); {chance['n_neurons_significant']:,} neurons "
        f"are above that, {chance['n_neurons_at_fdr_5_percent']:,} at a false discovery rate of 5%. The layers' "
        "levels are the exact binomial ones, an upper bound."
    )
    table = _table(
        "Predictivity (on select)",
        "layer",
        "best",
        "neuron",
        "chance: best of a layer",
        "chance: 5% level",
        "significant",
        caption=caption,
    )
    for row in layers:
        table.add_row(
            str(row["layer"]),
            f"{row['best_predictivity_on_select']:.3f}",
            str(row["neuron"]),
            f"{row['chance_expects']:.3f}",
            f"{row['chance_exceeds_in_5_percent']:.3f}",
            f"{row['n_neurons_significant']:,}",
        )
    return table


def _neuron_table(skill: dict[str, Any]) -> Table:
    caption = (
        f"All {skill['n']} skill neurons: mean accuracy {skill['mean_accuracy_on_select']:.3f} on select, "
        f"{skill['mean_accuracy_on_report']:.3f} on report. Select chose them, so its figures are too good. "
        "Intervals: exact binomial, as of one prompt (of a mean over prompts too wide, not too narrow)."
    )
    table = _table(
        f"Skill neurons (best {len(skill['best'])} of {skill['n']})",
        "layer",
        "index",
        "high activation means",
        "accuracy on select",
        "p (family-wise)",
        "accuracy on report",
        "95% interval",
        caption=caption,
    )
    for row in skill["best"]:
        table.add_row(
            str(row["layer"]),
            str(row["index"]),
            shown(row["high_means"]),
            f"{row['accuracy_on_select']:.3f}",
            f"{row['p_family']:.3f}",
            f"{row['accuracy_on_report']:.3f}",
            "{:.3f} to {:.3f}".format(*row["interval_95_on_report"]),
        )
    return table


def _effect_table(effects: dict[str, Any]) -> Table:
    kinds = _controls_of(effects["metrics"][DECIDES]["pooled"])
    caption = (
        f"{effects['n_examples']} examples of {effects['role']}; at {effects['positions']} positions, held at the mean "
        f"over baseline. Controls: {effects['n_random']} sets of random neurons of the same layers, as many of neurons "
        "also alike in activation and output norm"
        + (", and of such of their layers' less predictive half" if "least" in kinds else "")
        + ": median (range), two-sided rank p."
    )
    table = _table(
        f"What {effects['n_neurons']} skill neurons do",
        "",
        "intact",
        "held",
        *(CONTROLS[kind] for kind in kinds),
        caption=caption,
    )
    table.columns[0].justify = "left"
    for metric, rows in effects["metrics"].items():
        of_prompts = rows["each_prompt"]
        named = [(f"prompt {k}", row) for k, row in enumerate(of_prompts)] if len(of_prompts) > 1 else []
        for name, row in [*named, ("all prompts" if named else "the prompt", rows["pooled"])]:
            controls = [
                f"{row[f'{c}_median']:.3f} ({row[f'{c}_min']:.3f} to {row[f'{c}_max']:.3f}), p {row[f'p_{c}']:.3f}"
                for c in kinds
            ]
            table.add_row(
                shown(f"{metric.replace('_', ' ')}, {name}"),
                f"{row['intact']:.3f}",
                f"{row['value']:.3f}",
                *controls,
            )
    return table
