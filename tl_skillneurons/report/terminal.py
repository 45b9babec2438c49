"""What a run found, as text of at most 80 columns: the verdicts, the ten best neurons, where the time went.

:func:`numbers` decides what is said, as plain JSON values; :func:`show` prints it.
"""

from typing import Any

import pandas as pd
from rich.console import Console
from rich.table import Table
from rich.text import Text

from tl_skillneurons._terminal import shown
from tl_skillneurons._widths import n_neurons
from tl_skillneurons.find.answers import ALPHA
from tl_skillneurons.find.findings import Findings
from tl_skillneurons.find.said import label_said
from tl_skillneurons.find.verdicts import NO, YES, Verdict
from tl_skillneurons.plots.look import fraction

N_SHOWN = 10
WIDTH = 80
_STYLES = {YES: "bold green", NO: "bold red"}


def numbers(findings: Findings, n_shown: int = N_SHOWN) -> dict[str, Any]:
    """Every number of a run's report, as plain JSON values; of a run without neurons its verdict and its prompts."""
    said: dict[str, Any] = {
        "verdicts": [verdict.record() for verdict in findings.verdicts],
        "prompts": _rows(findings.answers.to_dataframe()),
        "seconds": findings.seconds,
    }
    if findings.stopped:
        return said
    price = findings.price
    return said | {
        "readability": _rows(findings.readability.to_dataframe()),
        "luck": _luck(findings),
        "layers": _layers(findings),
        "skill_neurons": _skill(findings, n_shown),
        "effects": _rows(findings.effects.to_dataframe()),
        "curve": _rows(findings.curve.to_dataframe()),
        "stability": _rows(findings.stability.to_dataframe()),
        "share_turned": findings.stability.share_turned,
        "price": None if price is None else _rows(price.to_dataframe()),
    }


def show(findings: Findings, console: Console, *, layers: bool = False) -> None:
    """Print what a run found.

    Args:
        layers: Whether to print each layer's best neurons too.
    """
    for line in verdict_block(findings, min(WIDTH, console.width)):
        console.print(line, soft_wrap=True)
    if not findings.stopped:
        console.print()
        console.print(_neuron_table(_skill(findings, N_SHOWN), _luck(findings)))
        if layers:
            console.print(_layer_table(_layers(findings), _luck(findings)))
    if said := time_said(findings.seconds):
        console.print(shown(said))


def verdict_block(findings: Findings, width: int = WIDTH) -> list[Text]:
    """The verdicts as lines: each question with its answer, below it the sentence with its numbers."""
    n, model = len(findings.fitted), findings.model
    tokens = findings.settings["n_virtual_tokens"]
    title = [
        findings.task.name,
        str(model.get("name", "")).rstrip("/").rsplit("/")[-1],
        f"{n} prompt{'s' if n > 1 else ''} of {tokens} virtual token{'s' if tokens > 1 else ''}",
    ]
    lines = [shown(" · ".join(part for part in title if part))]
    lines[0].truncate(width, overflow="ellipsis")
    for number, verdict in enumerate(findings.verdicts):
        last = number == len(findings.verdicts) - 1
        corner = "└" if last else "├" if number else "┌"
        lines.append(_head(corner, verdict))
        measure = Console(width=width, color_system=None)
        for part in shown(verdict.sentence).wrap(measure, width - 4):
            lines.append(Text("    " if last else "│   ") + part)
    return lines


def time_said(seconds: dict[str, dict[str, float]]) -> str:
    """Where the time went, longest first; empty where nobody looked.

    Example:
        >>> time_said({"effects": {"wall": 150.0, "cpu": 290.0}, "price": {"wall": 20.4, "cpu": 39.0}})
        'Where the time went: effects 150 s, price 20 s; 170 s in all.'
    """
    if not seconds:
        return ""
    wall = {phase: took["wall"] for phase, took in seconds.items()}
    longest = sorted(wall.items(), key=lambda one: -one[1])
    told = (
        ", ".join(f"{phase} {took:.0f} s" for phase, took in longest if took >= 0.5)
        or "every phase under 1 s"
    )
    return f"Where the time went: {told}; {sum(wall.values()):.0f} s in all."


def _head(corner: str, verdict: Verdict) -> Text:
    style = _STYLES.get(verdict.answer, "bold yellow")
    return Text(f"{corner} ") + shown(verdict.question, "bold") + Text("  ") + shown(verdict.answer, style)


def _rows(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """A table's rows as plain JSON values; what is no number is ``None``."""
    return [
        {
            str(name): None if value != value else value.item() if hasattr(value, "item") else value
            for name, value in row.items()
        }
        for row in frame.to_dict("records")
    ]


def _luck(findings: Findings) -> dict[str, Any]:
    """What the best of all neurons reaches under permuted labels, and how many neurons are above that."""
    scores = findings.scores
    null = scores.null
    assert null is not None  # scores of a run have one
    return {
        "what": "the best of all neurons under permuted labels (largest statistic, Westfall and Young)",
        "n_permutations": null.n_permutations,
        "n_examples_on_select": scores.n_select,
        "unit": null.unit,
        "n_units": null.n_units,
        "smallest_p": null.least,
        "expected": null.expected(),
        "threshold": null.level(ALPHA),
        "alpha": ALPHA,
        "n_neurons": n_neurons(scores.n_layers, scores.d_mlp),
        "n_neurons_significant": len(scores.significant(ALPHA)),
        "n_neurons_at_fdr_5_percent": len(scores.significant(ALPHA, correction="fdr")),
    }


def _layers(findings: Findings) -> list[dict[str, Any]]:
    scores, null = findings.scores, findings.scores.null
    assert null is not None  # scores of a run have one
    best, index = scores.predictivity.max(1)
    significant = (null.family() <= ALPHA).sum(1)
    return [
        {
            "layer": layer,
            "best_predictivity_on_select": best[layer].item(),
            "neuron": index[layer].item(),
            "n_neurons_significant": significant[layer].item(),
        }
        for layer in range(scores.n_layers)
    ]


def _skill(findings: Findings, n_shown: int) -> dict[str, Any]:
    skill, scores, task = findings.skill, findings.scores, findings.task
    null = scores.null
    assert null is not None  # scores of a run have one
    told = findings.readability.best.table.set_index(["layer", "index"])
    rows = []
    for (layer, index), on_select, on_report in zip(
        list(skill)[:n_shown], findings.on_select.tolist(), findings.on_report.tolist(), strict=False
    ):
        direction = int(scores.direction[layer, index])
        row = {
            "layer": layer,
            "index": index,
            "high_means": label_said(task, int(direction > 0)) if direction else "prompts disagree",
            "accuracy_on_select": on_select,
            "p_family": float(null.family()[layer, index]),
            "accuracy_on_report": on_report,
            "interval_95_on_report": None,
        }
        if (layer, index) in told.index:
            row["interval_95_on_report"] = [float(told.low[layer, index]), float(told.high[layer, index])]
        rows.append(row)
    return {
        "n": len(skill),
        "rule": f"the {_amount(findings.settings['top'])} of each layer's neurons that have the highest predictivity "
        "on select",
        "mean_accuracy_on_select": float(findings.on_select.mean()),
        "mean_accuracy_on_report": float(findings.on_report.mean()),
        "best": rows,
    }


def _amount(top: float | int) -> str:
    return f"{100 * top:g} %" if isinstance(top, float) else str(top)


def _table(title: str, *columns: str, caption: str | None = None) -> Table:
    table = Table(
        title=shown(title, "table.title"),
        title_justify="left",
        caption=None if caption is None else shown(caption, "table.caption"),
        caption_justify="left",
        width=WIDTH,
    )
    for column in columns:
        table.add_column(shown(column), justify="right")
    return table


def _luck_said(luck: dict[str, Any]) -> str:
    return (
        f"Significant: the label can be read off a neuron better than luck explains, that is above "
        f"{luck['threshold']:.3f}, which the best of all neurons reaches in 5 % of {luck['n_permutations']:,} "
        f"permutations of the labels ({luck['expected']:.3f} on average); {luck['n_neurons_significant']:,} of "
        f"{luck['n_neurons']:,} neurons are, and often thousands."
    )


def _neuron_table(skill: dict[str, Any], luck: dict[str, Any]) -> Table:
    caption = (
        f"Skill neurons are {skill['rule']}. On select, which chose them, figures are too good "
        f"(mean of all {skill['n']:,}: {skill['mean_accuracy_on_select']:.3f}, on report "
        f"{skill['mean_accuracy_on_report']:.3f}). p: family-wise, none below {fraction(luck['smallest_p'])}. "
        f"{_luck_said(luck)}"
    )
    table = _table(
        f"Skill neurons (best {len(skill['best'])} of {skill['n']:,})",
        "neuron",
        "high means",
        "report",
        "95 %",
        "select",
        "p",
        caption=caption,
    )
    for row in skill["best"]:
        ends = row["interval_95_on_report"]
        table.add_row(
            f"{row['layer']}.{row['index']}",
            shown(row["high_means"]),
            f"{row['accuracy_on_report']:.3f}",
            "" if ends is None else f"{ends[0]:.3f}-{ends[1]:.3f}",
            f"{row['accuracy_on_select']:.3f}",
            fraction(row["p_family"]),
        )
    return table


def _layer_table(layers: list[dict[str, Any]], luck: dict[str, Any]) -> Table:
    table = _table(
        "Layers (predictivity on select)", "layer", "best", "neuron", "significant", caption=_luck_said(luck)
    )
    for row in layers:
        table.add_row(
            str(row["layer"]),
            f"{row['best_predictivity_on_select']:.3f}",
            f"{row['layer']}.{row['neuron']}",
            f"{row['n_neurons_significant']:,}",
        )
    return table
