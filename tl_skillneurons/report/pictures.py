"""The page's pictures: each a figure, its sentences, and its numbers as a table, for a reader without scripts."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import pandas as pd

from tl_skillneurons import plots
from tl_skillneurons.find.findings import Findings
from tl_skillneurons.interventions._measured import POOLED
from tl_skillneurons.interventions.effect_panel import EffectPanel
from tl_skillneurons.plots.effects import CONTROL_NAMES, NAMES
from tl_skillneurons.plots.look import NOT_SHOWN, fraction
from tl_skillneurons.report.tables import PageTable, bracketed, plain, table_of, table_of_frame

_N_DRIVERS = 20
_METRICS = ("logit_diff", "accuracy")
_SHARES = (0.5, 0.9, 0.99, 1.0)
_MARGIN = {"l": 60, "r": 16, "t": 64, "b": 46}


@dataclass(frozen=True)
class Picture:
    """One picture of the page.

    Attributes:
        name: Unique on the page.
        title, seen, not_shown, height: As the figure's ``layout.meta`` has them.
        figure: Data and layout as plotly's script takes them, without what the page says itself.
        table: The numbers behind it.
    """

    name: str
    title: str
    seen: str
    not_shown: str
    height: int
    figure: dict[str, Any]
    table: PageTable


def pictures_of(found: Findings) -> list[Picture]:
    """What a run has to show, the question of use first."""
    scores, skill = found.scores, found.skill
    spread = scores.top(len(skill), per="model")
    drawn: list[tuple[str, Callable[[], Any], Callable[[], PageTable]]] = [
        ("sizes", lambda: plots.plot_sizes(found.curve), lambda: effects_table(found.curve)),
        ("effects", lambda: plots.plot_effects(found.effects), lambda: effects_table(found.effects)),
        ("histogram", lambda: plots.plot_histogram(scores, skill, found.rules), lambda: _quantiles(found)),
        ("positions", lambda: plots.plot_positions(scores, spread), lambda: _by_layer(found)),
        ("layers", lambda: plots.plot_scores(scores), lambda: _by_layer(found)),
        ("tuning", lambda: plots.plot_tuning(found.fitted), lambda: _histories(found)),
    ]
    if scores.n_prompts > 1:
        drawn.insert(4, ("prompts", lambda: plots.plot_prompts(scores, skill), lambda: _stability(found)))
    if found.profiles.driving is not None:
        driving = partial(plots.plot_read_and_drive, scores, found.profiles)
        drawn.insert(len(drawn) - 2, ("drive", driving, lambda: _drivers(found)))  # before layers and tuning
    return [_picture(name, figure(), table()) for name, figure, table in drawn]


def _picture(name: str, figure: Any, table: PageTable) -> Picture:
    told = figure.layout.meta
    kept = json.loads(figure.to_json())  # numbers that are none become null
    layout = kept["layout"]
    for dropped in ("template", "title", "meta", "height", "width"):
        layout.pop(dropped, None)
    layout["annotations"] = [one for one in layout.get("annotations", ()) if one.get("name") != NOT_SHOWN]
    layout["margin"] = _MARGIN
    return Picture(
        name=name,
        title=told["title"],
        seen=told["seen"],
        not_shown=told["not_shown"],
        height=told["height"],
        figure={"data": kept["data"], "layout": layout},
        table=table,
    )


def effects_table(panel: EffectPanel) -> PageTable:
    """A row per size, prompt and metric: intact, held, and beside each kind of control with its p-value."""
    frame = panel.to_dataframe()
    rows = []
    for row in frame[(frame.effect == "total") & frame.metric.isin(_METRICS)].to_dict("records"):
        one = {
            "neurons": int(row["n_neurons"]),
            "of": "pooled" if row["prompt"] == POOLED else f"prompt {row['prompt']}",
            "measure": NAMES[row["metric"]],
            "intact": float(row["intact"]),
            "held": float(row["value"]),
            "change": bracketed(row["change"], row["change_low"], row["change_high"]),
        }
        for kind, words in CONTROL_NAMES.items():
            if f"p_{kind}" in row:
                one[words] = bracketed(row[f"{kind}_median"], row[f"{kind}_min"], row[f"{kind}_max"])
                one[f"p ({words})"] = fraction(row[f"p_{kind}"])
        rows.append(one)
    return table_of(rows)


def _quantiles(found: Findings) -> PageTable:
    values = found.scores.predictivity.flatten().double()
    chosen = found.on_select
    rows = [
        {
            "neurons": "best" if share == 1 else f"{share:.0%} are below",
            "all, on select": float(values.quantile(share)),
            f"the {len(chosen):,} chosen, on select": float(chosen.double().quantile(share)),
            "the chosen, on report": float(found.on_report.double().quantile(share)),
        }
        for share in _SHARES
    ]
    return table_of(rows)


def _by_layer(found: Findings) -> PageTable:
    scores = found.scores
    predictivity = scores.predictivity
    best, index = predictivity.max(1)
    null = scores.null
    significant = None if null is None else (null.family() <= 0.05).sum(1)
    rows = []
    for layer in range(scores.n_layers):
        row: dict[str, Any] = {
            "layer": layer,
            "best neuron": f"{layer}.{int(index[layer])}",
            "its predictivity": float(best[layer]),
            "median of the layer": float(predictivity[layer].double().quantile(0.5)),
        }
        if significant is not None:
            row["beyond luck (family-wise 5 %)"] = int(significant[layer])
        rows.append(row)
    return table_of(rows)


def _drivers(found: Findings) -> PageTable:
    """The neurons that move most, by their estimated effect, with what can be read from them."""
    predictivity, effect = found.scores.predictivity, found.profiles.driving
    assert effect is not None  # for type checkers: the picture is left out then
    best = effect.nan_to_num().abs().flatten().argsort(descending=True, stable=True)[:_N_DRIVERS].tolist()
    pairs = [divmod(number, effect.shape[1]) for number in best]
    return table_of(
        [
            {
                "neuron": f"{layer}.{index}",
                "held alone, logit diff": float(effect[layer, index]),
                "predictivity": float(predictivity[layer, index]),
            }
            for layer, index in pairs
        ]
    )


def _stability(found: Findings) -> PageTable:
    names = {
        "one": "prompt",
        "other": "and prompt",
        "spearman": "rankings agree at",
        "null_low": "under permuted labels, from",
        "null_high": "to",
        "p_value": "p",
        "n_shared": "best shared",
        "null_shared": "under permuted labels",
        "p_jaccard": "p of that",
        "turned": "share that turns its sign",
    }
    return table_of_frame(found.stability.to_dataframe(), names)


def _histories(found: Findings) -> PageTable:
    rows = []
    for number, prompt in enumerate(found.fitted):
        history = pd.DataFrame(prompt.history)
        for entry in history.to_dict("records"):
            kept = entry["step"] == prompt.provenance.get("best_step")
            rows.append(
                {
                    "prompt": number,
                    "step": int(entry["step"]),
                    "held-back loss": float(plain(entry["loss"])),
                    "held-back accuracy": float(plain(entry["accuracy"])),
                    "kept": "kept" if kept else "",
                }
            )
    return table_of(rows)
