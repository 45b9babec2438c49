"""What interventions on neurons do to the answers, every effect inside what its controls do."""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import pandas as pd

from tl_skillneurons._checks import require_option
from tl_skillneurons.interventions._measured import POOLED, TASK_METRICS
from tl_skillneurons.interventions.controls import CONTROLS
from tl_skillneurons.interventions.effect_panel import EffectPanel
from tl_skillneurons.plots.look import COLOURS, faded, figure_of, fraction, told

NAMES = {
    "logit_diff": "logit diff (logits)",
    "accuracy": "accuracy (share right)",
    "probability": "probability of the right label",
    "calibration_error": "calibration error",
}
CONTROL_NAMES = {"random": "random neurons", "matched": "matched neurons", "least": "least predictive"}
"""The kinds of control, as a reader calls them."""
_SYMBOLS = {"random": "circle", "matched": "square", "least": "triangle-down"}
_ASIDE = {"random": 0.955, "matched": 1.045, "least": 1.0}  # dots of different kinds stand beside one another
_BANDS = ("random", "matched")  # three bands on one another can't be told apart
_MOST_PROMPTS = 4


def plot_sizes(
    panels: EffectPanel | Sequence[EffectPanel], *, metrics: Sequence[str] = ("logit_diff", "accuracy")
) -> Any:
    """What neurons of growing number cost, inside the bands of as many random and matched ones.

    Args:
        panels: One panel whose sets differ in size, or one per size; of several interventions or positions the first
            counts.
        metrics: A row of panels each.

    Returns:
        A plotly ``Figure``: pooled over prompts first, then up to four prompts beside it. Bands hold the middle 90 % of
        the controls' draws, every draw is a dot.

    Raises:
        ValueError: For an unknown metric, or without a panel.
        ImportError: Without plotly.

    Example:
        >>> panel = skn.measure_effects(model, prompts, task, {"1%": scores.top(0.01), "2%": scores.top(0.02)})
        >>> skn.plots.plot_sizes(panel)
    """
    for metric in metrics:
        require_option(metric, "metric", TASK_METRICS)
    rows, draws = _first_of(panels, list(metrics))
    prompts = _shown(rows)
    figure = figure_of(
        len(metrics),
        len(prompts),
        shared_xaxes=True,
        shared_yaxes="rows",
        vertical_spacing=0.07,
        horizontal_spacing=0.02,
        column_titles=[_of(prompt) for prompt in prompts],
    )
    kinds = [kind for kind in CONTROLS if (draws.neurons == kind).any()]
    for row, metric in enumerate(metrics, start=1):
        for column, prompt in enumerate(prompts, start=1):
            at = {"row": row, "col": column}
            own = rows[(rows.metric == metric) & (rows.prompt == prompt)].sort_values("n_neurons")
            beside = draws[(draws.metric == metric) & (draws.prompt == prompt)]
            for kind in kinds:
                _band(figure, beside[beside.neurons == kind], kind, row == column == 1, at)
            _curve(figure, own, row == column == 1, at)
        figure.update_yaxes(title_text=NAMES[metric], row=row, col=1)
    sizes = sorted({int(n) for n in rows.n_neurons})
    figure.update_xaxes(type="log", tickvals=sizes, ticktext=[f"{n:,}" for n in sizes])
    figure.update_xaxes(title_text="neurons held", row=len(metrics))
    figure.update_layout(legend_y=1 + 28 / (240 * len(metrics)))  # above the titles of the columns
    figure.update_annotations(font_size=13)
    first = rows.iloc[0]
    n_draws = int(draws[draws.neurons != "chosen"].draw.max()) + 1 if kinds else 0
    return told(
        figure,
        f"Does it matter? Neurons held by {first.intervention} at {first.positions} positions, "
        f"{first.n_examples} examples of {first.role}",
        f"The skill neurons (line, 95 % intervals of the change) beside {_draws(n_draws)} of each control of "
        "the same size (dots; bands hold the middle 90 %); the dashed line is the intact model.",
        "Not shown: which neuron of a set matters, and that a harmless set is unused, since later layers may repair "
        f"what is missing. With {_draws(n_draws)} no p-value is below {fraction(1 / (n_draws + 1))}.",
        height=240 * len(metrics) + 40,
    )


def plot_effects(panel: EffectPanel, *, metrics: Sequence[str] = ("logit_diff", "accuracy")) -> Any:
    """Each effect of a panel with its interval, beside every draw of its controls.

    Args:
        panel: What :func:`~tl_skillneurons.measure_effects` gave; its first task, total effects.
        metrics: A column of panels each.

    Returns:
        A plotly ``Figure``: a line per intervention, positions and set, and per prompt; the pooled ones first.

    Raises:
        ValueError: For an unknown metric.
        ImportError: Without plotly.

    Example:
        >>> skn.measure_effects(model, prompts, task, skill).plot()
    """
    for metric in metrics:
        require_option(metric, "metric", TASK_METRICS)
    rows, draws = _tables(panel, list(metrics))
    lines = _lines(rows)
    figure = figure_of(1, len(metrics), shared_yaxes=True, horizontal_spacing=0.04)
    kinds = [kind for kind in CONTROLS if (draws.neurons == kind).any()]
    for column, metric in enumerate(metrics, start=1):
        at, legend = {"row": 1, "col": column}, column == 1
        own, beside = rows[rows.metric == metric], draws[draws.metric == metric]
        for number, kind in enumerate(kinds):
            some = beside[beside.neurons == kind]
            figure.add_scatter(
                x=some.value.tolist(),
                y=[_place(one, lines) - 0.22 - 0.16 * number for one in some.to_dict("records")],
                mode="markers",
                marker={"color": faded(COLOURS[kind], 0.6), "symbol": _SYMBOLS[kind], "size": 6},
                name=CONTROL_NAMES[kind],
                legendgroup=kind,
                showlegend=legend,
                hovertemplate=f"{CONTROL_NAMES[kind]}: %{{x:.3f}}",
                **at,
            )
        for words, x, symbol in (
            ("intact model", own.intact, "line-ns-open"),
            ("chosen", own.value, "diamond"),
        ):
            chosen = words == "chosen"
            figure.add_scatter(
                x=x.tolist(),
                y=[_place(one, lines) for one in own.to_dict("records")],
                error_x=_interval(own) if chosen else None,
                mode="markers",
                marker={"symbol": symbol, "size": 10 if chosen else 14, "line": {"width": 2}}
                | ({"color": COLOURS["skill"]} if chosen else {}),
                name=words,
                legendgroup=words,
                showlegend=legend,
                customdata=[_p_values(one, kinds) for one in own.to_dict("records")] if chosen else None,
                hovertemplate=f"{words}: %{{x:.3f}}" + ("<br>%{customdata}" if chosen else ""),
                **at,
            )
        figure.update_xaxes(title_text=NAMES[metric], row=1, col=column)
    figure.update_yaxes(
        tickvals=[len(lines) - 1 - at for at in range(len(lines))],
        ticktext=[words for words, _ in lines],
        showgrid=False,
        range=[-0.8, len(lines) - 0.6],
    )
    first = rows.iloc[0]
    n_draws = int(draws.draw.max()) + 1
    return told(
        figure,
        f"What holding {first.n_neurons:,} neurons does, {first.n_examples} examples of {first.role}",
        f"Diamonds: the chosen neurons, with 95 % intervals of the change; below each, {_draws(n_draws)} of every "
        "kind of control; bars: the intact model.",
        "Not shown: which neuron of a set matters, and that a harmless set is unused. The p-values are per line, and "
        f"none can be below {fraction(1 / (n_draws + 1))}.",
        height=max(260, 64 * len(lines) + 110),
    )


def _tables(panel: EffectPanel, metrics: list[str]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The total effects on the panel's own task, and every draw."""
    task = panel.measured[0].task
    found = []
    for table in (panel.to_dataframe(), panel.draws()):
        found.append(table[(table.task == task) & (table.effect == "total") & table.metric.isin(metrics)])
    return found[0], found[1]


def _first_of(
    panels: EffectPanel | Sequence[EffectPanel], metrics: list[str]
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The tables of all panels, for the first intervention and positions."""
    several = [panels] if isinstance(panels, EffectPanel) else list(panels)
    if not several:
        raise ValueError("plot_sizes needs at least one panel, got none")
    tables = [_tables(panel, metrics) for panel in several]
    rows, draws = (pd.concat(each, ignore_index=True) for each in zip(*tables, strict=True))
    first = rows.iloc[0]

    def alike(table: pd.DataFrame) -> pd.DataFrame:
        return table[(table.intervention == first.intervention) & (table.positions == first.positions)]

    return alike(rows), alike(draws)


def _shown(rows: pd.DataFrame) -> list[Any]:
    """Pooled first, then the first few prompts."""
    prompts = list(dict.fromkeys(rows.prompt))
    single = [prompt for prompt in prompts if prompt != POOLED][:_MOST_PROMPTS]
    return [POOLED, *single] if POOLED in prompts else single


def _of(prompt: int | str) -> str:
    return "pooled over prompts" if prompt == POOLED else f"prompt {prompt}"


def _band(figure: Any, draws: pd.DataFrame, kind: str, legend: bool, at: dict[str, int]) -> None:
    """A kind of control over the sizes: every draw, and between which values the middle 90 % lie."""
    if kind in _BANDS:
        spread = draws.groupby("n_neurons").value
        low, high = spread.quantile(0.05), spread.quantile(0.95)
        sizes = [int(n) for n in low.index]
        figure.add_scatter(
            x=[*sizes, *reversed(sizes)],
            y=[*low, *reversed(list(high))],
            fill="toself",
            fillcolor=faded(COLOURS[kind], 0.28),
            line={"width": 1 if len(sizes) > 1 else 0, "color": faded(COLOURS[kind], 0.5)},
            mode="lines",
            hoverinfo="skip",
            legendgroup=kind,
            showlegend=False,
            **at,
        )
    figure.add_scatter(
        x=[n * _ASIDE[kind] for n in draws.n_neurons],
        y=draws.value.tolist(),
        mode="markers",
        marker={"color": faded(COLOURS[kind], 0.55), "symbol": _SYMBOLS[kind], "size": 5},
        name=CONTROL_NAMES[kind],
        legendgroup=kind,
        showlegend=legend,
        hovertemplate=f"{CONTROL_NAMES[kind]}: %{{y:.3f}}",
        **at,
    )


def _curve(figure: Any, own: pd.DataFrame, legend: bool, at: dict[str, int]) -> None:
    """The chosen neurons over the sizes, and the intact model as a line."""
    sizes = own.n_neurons.tolist()
    ends = [min(sizes) * 0.8, max(sizes) * 1.25]
    figure.add_scatter(
        x=ends,
        y=[float(own.intact.iloc[0])] * 2,
        mode="lines",
        line={"dash": "dash", "width": 1.5},
        name="intact model",
        legendgroup="intact",
        showlegend=legend,
        hovertemplate="intact: %{y:.3f}",
        **at,
    )
    kinds = [kind for kind in CONTROLS if f"p_{kind}" in own]
    figure.add_scatter(
        x=sizes,
        y=own.value.tolist(),
        error_y=_interval(own),
        mode="lines+markers",
        marker={"symbol": "diamond", "size": 9},
        line={"color": COLOURS["skill"], "width": 2.5},
        name="skill neurons",
        legendgroup="skill",
        showlegend=legend,
        customdata=[_p_values(one, kinds) for one in own.to_dict("records")],
        hovertemplate="%{x:,} skill neurons: %{y:.3f}<br>%{customdata}",
        **at,
    )


def ends_of(row: Mapping[Any, Any]) -> tuple[float, float]:
    """Between which values the interval of the change puts a metric; no share is below 0 or above 1."""
    low, high = float(row["intact"] + row["change_low"]), float(row["intact"] + row["change_high"])
    if row["metric"] == "logit_diff":
        return low, high
    return max(low, 0.0), min(high, 1.0)


def _interval(own: pd.DataFrame) -> dict[str, Any]:
    rows = own.to_dict("records")
    return {
        "type": "data",
        "array": [ends_of(row)[1] - row["value"] for row in rows],
        "arrayminus": [row["value"] - ends_of(row)[0] for row in rows],
        "color": COLOURS["skill"],
        "thickness": 1.5,
        "width": 5,
    }


def _p_values(row: dict[Any, Any], kinds: Sequence[str]) -> str:
    return ", ".join(
        f"p {fraction(row[f'p_{kind}'])} ({CONTROL_NAMES[kind]})" for kind in kinds if f"p_{kind}" in row
    )


_LINE = ["intervention", "positions", "set", "prompt"]


def _lines(rows: pd.DataFrame) -> list[tuple[str, tuple[Any, ...]]]:
    """What stands on each line from the top: its words, which name only what differs, and its key."""
    keys = list(dict.fromkeys(rows[_LINE].itertuples(index=False, name=None)))
    groups = list(dict.fromkeys(key[:3] for key in keys))
    keys.sort(key=lambda key: (groups.index(key[:3]), key[3] != POOLED))
    varies = [len({key[at] for key in keys}) > 1 for at in range(3)]
    lines = []
    for key in keys:
        named = [str(part) for part, differs in zip(key, varies, strict=False) if differs]
        lines.append((", ".join([*(escape(part) for part in named), _of(key[3])]), key))
    return lines


def _place(row: dict[Any, Any], lines: list[tuple[str, tuple[Any, ...]]]) -> float:
    key = tuple(row[name] for name in _LINE)
    return len(lines) - 1 - next(at for at, (_, known) in enumerate(lines) if known == key)


def _draws(n: int) -> str:
    return f"{n} {'draw' if n == 1 else 'draws'}"
