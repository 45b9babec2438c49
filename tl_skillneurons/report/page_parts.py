"""What the page says of a run, part by part, ready for its template."""

from collections.abc import Mapping
from typing import Any

import pandas as pd
from markupsafe import Markup

from tl_skillneurons._files import read_json
from tl_skillneurons.find.findings import Findings
from tl_skillneurons.find.folder import RUN
from tl_skillneurons.find.said import label_said
from tl_skillneurons.find.verdicts import ANSWERS, KINDS, MARGIN, RULES
from tl_skillneurons.plots.effects import ends_of
from tl_skillneurons.report.further import answers_in
from tl_skillneurons.report.small_svg import bar, strip
from tl_skillneurons.report.tables import Cell, PageTable, bracketed, digits, table_of
from tl_skillneurons.stats.intervals import clopper_pearson
from tl_skillneurons.tasks.roles import ROLES
from tl_skillneurons.tasks.task import Task

N_ROWS = 200
"""So many of the best neurons stand in the table."""
_LOOKS = {
    "YES": ("yes", "✓"),
    "NO": ("no", "✕"),
    "NOT ESTABLISHED": ("open", "?"),
    "PARTLY": ("partly", "◐"),
    "NO MORE THAN CONTROLS": ("yes", "="),
    "MORE THAN CONTROLS": ("partly", "▲"),
    "LESS THAN CONTROLS": ("open", "▼"),
}
"""Of each answer: how it looks, and the sign beside the word."""


def title_of(found: Findings) -> tuple[str, str]:
    """The task and the model."""
    return found.task.name.replace("_", " "), str(found.model.get("name") or "a model")


def about_run(found: Findings) -> str:
    """One line: prompts, examples, neurons."""
    n = len(found.fitted)
    prompts = f"{n} {'prompt' if n == 1 else 'prompts'} of {found.fitted[0].n_virtual_tokens} virtual tokens"
    counts = ", ".join(f"{role} {found.task.n_examples[role]:,}" for role in ROLES)
    neurons = (
        ""
        if found.stopped
        else f" · {len(found.skill):,} skill neurons of {found.scores.predictivity.numel():,}"
    )
    return f"{prompts} · examples: {counts}{neurons}"


def verdict_rows(found: Findings) -> list[dict[str, Any]]:
    """The verdicts with their looks; an answer in two parts looks as both where they are one, else as partly."""
    rows = []
    for verdict in found.verdicts:
        look, mark = _LOOKS.get(verdict.answer, ("partly", "◐"))
        drawn = effect_strips(found) if verdict.question == RULES["uses"].question else []
        rows.append({**verdict.record(), "look": look, "mark": mark, "drawn": drawn})
    return rows


def effect_strips(found: Findings) -> list[Markup]:
    """The effect on margin and on accuracy, pooled over prompts, with every draw of every control."""
    rows, draws = found.effects.to_dataframe(each_prompt=False), found.effects.draws()
    strips = []
    for metric in (MARGIN, ANSWERS):
        row = rows[rows.metric == metric].iloc[0]
        own = draws[(draws.metric == metric) & (draws.prompt == row.prompt)]
        ends = ends_of(row.to_dict())
        beside = {words: own.value[own.neurons == kind].tolist() for kind, words in KINDS.items()}
        there = {words: values for words, values in beside.items() if values}
        strips.append(strip(metric.replace("_", " "), float(row.intact), float(row.value), ends, there))
    return strips


def prompt_table(found: Findings) -> PageTable:
    """Accuracy and balanced accuracy of every prompt with their intervals, beside the majority."""
    rows = []
    for row in found.answers.to_dataframe().to_dict("records"):
        drawn = bar(row["accuracy"], row["accuracy_low"], row["accuracy_high"], mark=row["majority"])
        says = label_name(found.task, int(row["says"]))
        rows.append(
            {
                "prompt": int(row["prompt"]),
                "seed": str(row["seed"]),
                "accuracy on report": bracketed(row["accuracy"], row["accuracy_low"], row["accuracy_high"]),
                "0 to 1": drawn,
                "balanced accuracy": bracketed(row["balanced"], row["balanced_low"], row["balanced_high"]),
                "p against the commonest": digits(float(row["p_majority"])),
                "answers most": f"{row['says_share']:.0%}: {says}",
                "held back": float(row["held_back"]),
                "tuning": row["outcome"] + (f", {row['n_cut']:,} texts cut" if row["n_cut"] else ""),
                "used": "yes" if row["prompt"] in found.used else "no: does not beat it",
            }
        )
    return table_of(rows)


def readable_table(found: Findings) -> PageTable:
    """The best neurons' rules beside everything that could do as well."""
    return table_of(
        [
            {
                "who": row["who"],
                "accuracy": float(row["accuracy"]),
                "0 to 1": bar(row["accuracy"], *_ends(row)),
                "from": float(row["low"]),
                "to": float(row["high"]),
                "which are": row["what"],
                "on": row["role"],
            }
            for row in found.readability.to_dataframe().to_dict("records")
        ]
    )


def neuron_table(found: Findings, profiles: Mapping[str, Any]) -> dict[str, Any]:
    """The best neurons: a row each, with a link to their section where they have one (``profiles``)."""
    scores, task = found.scores, found.task
    predictivity = scores.predictivity
    best = scores.top(min(len(found.skill), N_ROWS), per="model")
    on_report = found.rules.accuracy_of(best).tolist()
    direction, by_prompt = scores.direction[best.layer, best.index].tolist(), scores.predictivity_by_prompt
    turned = scores.direction_by_prompt[:, best.layer, best.index]
    units = task.units("report")
    rows = []
    for number, (layer, index) in enumerate(best):
        accuracy = on_report[number]
        low, high = clopper_pearson(round(accuracy * len(units)), len(units))
        row: dict[str, Any] = {
            "neuron": Cell(f"{layer}.{index}", layer + index / 1e6, profiles["anchors"].get((layer, index))),
            "predictivity": float(predictivity[layer, index]),
        }
        if scores.n_prompts > 1:
            for prompt in range(scores.n_prompts):
                sign = "+" if int(turned[prompt, number]) > 0 else "-"
                own = float(by_prompt[prompt, layer, index])
                row[f"prompt {prompt}"] = Cell(f"{digits(own)} {sign}", own)
        row["rule on report"] = bracketed(accuracy, low, high)
        row["high means"] = meaning(task, direction[number])
        if scores.null is not None:
            p_value = float(scores.null.family()[layer, index])
            row["p, family-wise"] = p_value
        row |= profiles["columns"].get((layer, index), {})
        rows.append(row)
    return {
        "table": table_of(rows),
        "words": f"The {len(rows):,} most predictive neurons of the model, as layer.index; + and - tell which label a "
        "high activation speaks for under each prompt.",
        "note": "Predictivity chose them, so it is too good; their rules on report chose nothing. Intervals are exact "
        f"binomial ones of {len(units):,} units ({units.what}), as if a unit were one example: rather too wide. "
        "Not shown: whether the model uses any one of them.",
    }


def meaning(task: Task, direction: int) -> str:
    """Which label a high activation speaks for."""
    return label_name(task, int(direction > 0)) if direction else "prompts disagree"


def label_name(task: Task, label: int) -> str:
    """A label's name; where that is a bare number, also what stands for it."""
    name = str(task.label_names[label])
    said = label_said(task, label)
    return f"{name} ({said})" if name.lstrip("-").isdigit() and name not in said else name


def asked_later(found: Findings) -> list[dict[str, Any]]:
    """What was asked of the finished run by further commands: a title, tables under their titles, and notes each."""
    return [
        {
            "title": answer.title,
            "command": answer.command,
            "tables": [{"title": title, "table": table_of(rows)} for title, rows in answer.tables.items()],
            "notes": list(answer.notes),
        }
        for answer in answers_in(found.folder)
    ]


def settings_of_run(found: Findings) -> list[dict[str, Any]]:
    """Data, settings, versions, how to load the run and how to cite: a title each, with words, a table or code."""
    task = found.task
    roles = [
        {
            "role": role,
            "examples": task.n_examples[role],
            "dropped": task.dropped.get(role, 0),
            "for": _USES[role],
        }
        for role in ROLES
    ]
    parts: list[dict[str, Any]] = [
        {"title": "Data", "words": " ".join(task.notes), "table": table_of(roles), "code": None},
        {"title": "Settings and seeds", "words": "", "table": _flat_table(found.settings), "code": None},
        {"title": "Where the time went", "words": "", "table": _seconds(found.seconds), "code": None},
    ]
    path = found.folder / RUN
    if path.is_file():
        versions = read_json(path, "run").get("versions", {})
        parts.append({"title": "Versions", "words": "", "table": _flat_table(versions), "code": None})
    load = f"import tl_skillneurons as skn\n\nfound = skn.load_run({str(found.folder)!r})\n"
    load += "found.verdicts, found.scores, found.skill, found.effects.to_dataframe()"
    parts.append(
        {"title": "How to load this run", "words": "No model is needed.", "table": None, "code": load}
    )
    parts.append({"title": "How to cite", "words": _CITE, "table": None, "code": None})
    return parts


_USES = {
    "train": "tunes the prompts",
    "baseline": "sets thresholds and means",
    "select": "chooses neurons",
    "report": "is measured on, and chose nothing",
}
_CITE = (
    "The method: Wang, Wen, Zhang, Hou, Liu and Li (2022), Finding Skill Neurons in Pre-trained Transformer-based "
    "Language Models, EMNLP 2022, arXiv:2211.07349. The software: tl_skillneurons, see its CITATION.cff."
)


def _seconds(seconds: Mapping[str, Mapping[str, float]]) -> PageTable | None:
    rows = [
        {"phase": phase, "seconds": round(own["wall"], 1), "of processors": round(own["cpu"], 1)}
        for phase, own in seconds.items()
    ]
    return table_of(rows) if rows else None


def _flat_table(settings: Mapping[str, Any]) -> PageTable:
    rows = [{"setting": name, "value": Cell(_spelled(value))} for name, value in _flat(settings).items()]
    return table_of(rows)


def _flat(nested: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in nested.items():
        flat |= (
            _flat(value, f"{prefix}{name}: ") if isinstance(value, Mapping) else {f"{prefix}{name}": value}
        )
    return flat


def _spelled(value: Any) -> str:
    """A setting's value; in quotes where its ends are spaces, which a page would not show."""
    return repr(value) if isinstance(value, str) and value != value.strip() else str(value)


def _ends(row: Mapping[Any, Any]) -> tuple[float, float]:
    """Of an interval; the value itself where it has no end."""
    low, high = row["low"], row["high"]
    return (row["accuracy"] if pd.isna(low) else low, row["accuracy"] if pd.isna(high) else high)
