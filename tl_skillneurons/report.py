"""What a run found, as numbers and as tables: :func:`numbers` decides what is said, :func:`show` prints just
that.

Every accuracy says which role it was measured on, and every effect stands beside its control.
"""

from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from tl_skillneurons.find import Findings
from tl_skillneurons.stats.chance import clopper_pearson

N_SHOWN = 10
ALPHA = 0.05


def numbers(findings: Findings, n_shown: int = N_SHOWN) -> dict[str, Any]:
    """Every number of the report, as plain JSON values."""
    return {
        "prompts": _prompts(findings),
        "layers": _layers(findings),
        "chance": _chance(findings),
        "skill_neurons": _skill(findings, n_shown),
        "ablation": _ablation(findings),
    }


def _prompts(findings: Findings) -> list[dict[str, Any]]:
    n = findings.effect.n_examples
    rows = []
    for prompt, intact in zip(findings.prompts, findings.effect.intact.tolist(), strict=True):
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
    scores = findings.scores
    best, index = scores.predictivity.max(1)
    level = scores.chance_level(per="layer")
    significant = (scores.null.family() <= ALPHA).sum(1)
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
    scores, null = findings.scores, findings.scores.null
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


def _skill(findings: Findings, n_shown: int) -> dict[str, Any]:
    skill = findings.skill
    direction = findings.scores.direction[skill.layer, skill.index]
    p_family = findings.scores.null.family()[skill.layer, skill.index]
    n = findings.effect.n_examples
    rows = [
        {
            "layer": layer,
            "index": index,
            "high_means": str(findings.task.label_names[1 if sign > 0 else 0]),
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


def _ablation(findings: Findings) -> dict[str, Any]:
    effect = findings.effect
    intact, ablated, random = effect.mean_over_prompts()
    row = {
        "role": effect.role,
        "n_examples": effect.n_examples,
        "n_neurons": effect.n_neurons,
        "how": effect.how,
        "positions": effect.positions,
        "intact": intact,
        "skill_neurons_ablated": ablated,
        "random_median": float(torch.quantile(random, 0.5)),
        "random_lowest": float(random.min()),
        "random_highest": float(random.max()),
        "n_random": len(random),
        "rank_p_value": effect.p_value,
        "each_prompt": [
            {"intact": own, "skill_neurons_ablated": held, "random": draws}
            for own, held, draws in zip(
                effect.intact.tolist(), effect.ablated.tolist(), effect.random.tolist(), strict=True
            )
        ],
    }
    return {**row, "verdict": verdict(row)}


def verdict(ablation: dict[str, Any]) -> str:
    """What the ablation shows, in one sentence, whatever it is."""
    lost = f"accuracy lost: {ablation['intact'] - ablation['skill_neurons_ablated']:.3f}, random controls "
    lost += f"{ablation['intact'] - ablation['random_median']:.3f} at their median"
    n = ablation["n_random"]
    if ablation["skill_neurons_ablated"] < ablation["random_lowest"]:
        return (
            f"Ablating the skill neurons does more harm than each of {n} random controls ({lost}): "
            "the model uses what they carry."
        )
    if ablation["skill_neurons_ablated"] >= ablation["random_median"]:
        return (
            f"Ablating the skill neurons does no more harm than ablating random ones ({lost}): "
            "however well the label can be read off them, nothing here shows that the model uses them."
        )
    return (
        f"Ablating the skill neurons does more harm than most, but not than each, of {n} random controls ({lost}): "
        "that the model uses them is not shown here; more controls, or more prompts, could tell."
    )


def show(said: dict[str, Any], console: Console) -> None:
    """Print what :func:`numbers` gave."""
    console.print(_prompt_table(said["prompts"]))
    console.print(_layer_table(said["layers"], said["chance"]))
    console.print(_neuron_table(said["skill_neurons"]))
    console.print(_ablation_table(said["ablation"]))
    console.print(said["ablation"]["verdict"])


def _table(title: str, *columns: str, caption: str | None = None) -> Table:
    table = Table(title=title, title_justify="left", caption=caption, caption_justify="left")
    for column in columns:
        table.add_column(column, justify="right")
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
            row["outcome"] + (f", {row['n_truncated']} texts cut" if row["n_truncated"] else ""),
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
            row["high_means"],
            f"{row['accuracy_on_select']:.3f}",
            f"{row['p_family']:.3f}",
            f"{row['accuracy_on_report']:.3f}",
            "{:.3f} to {:.3f}".format(*row["interval_95_on_report"]),
        )
    return table


def _ablation_table(ablation: dict[str, Any]) -> Table:
    caption = (
        f"{ablation['n_examples']} examples, mean over prompts; {ablation['how']} ablation "
        f"at {ablation['positions']} positions."
    )
    table = _table(
        f"Ablation ({ablation['n_neurons']} neurons)", "", "accuracy on report", "range", caption=caption
    )
    table.columns[0].justify = "left"
    table.add_row("intact", f"{ablation['intact']:.3f}", "")
    table.add_row("skill neurons ablated", f"{ablation['skill_neurons_ablated']:.3f}", "")
    table.add_row(
        f"random neurons ablated (median of {ablation['n_random']})",
        f"{ablation['random_median']:.3f}",
        f"{ablation['random_lowest']:.3f} to {ablation['random_highest']:.3f}",
    )
    return table
