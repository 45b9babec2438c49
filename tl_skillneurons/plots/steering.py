"""Dose against what was wanted and against perplexity, inside the bands of random and matched neurons."""

from collections.abc import Sequence
from html import escape
from typing import Any

import pandas as pd

from tl_skillneurons._checks import require_option
from tl_skillneurons.plots.effects import CONTROL_NAMES
from tl_skillneurons.plots.look import COLOURS, faded, figure_of, fraction, told
from tl_skillneurons.studies._common import records
from tl_skillneurons.studies.steering.curve import KINDS, SteeringCurve
from tl_skillneurons.studies.steering.measures import FLUENCY

_NAMES = {
    "class": "probability of the class",
    "cross_entropy": "cross-entropy (nats per token)",
    "repeated": "repeated 3-token runs (share)",
    "empty": "empty answers (share)",
}
_DASHES = {"random": "solid", "matched": "dot"}


def plot_steering(curve: SteeringCurve, *, measures: Sequence[str] | None = None) -> Any:
    """Dose against each measure, with the range of the controls at the same dose.

    Args:
        curve: What :func:`~tl_skillneurons.studies.steer` gave.
        measures: A row of panels each; by default what was wanted, then the cross-entropy.

    Returns:
        A plotly ``Figure``: a column per set; a band from the least to the most of each control's draws, a cross where
        the dose is flagged as collapse.

    Raises:
        ValueError: For an unknown measure, or none.
        ImportError: Without plotly.

    Example:
        >>> skn.studies.steer(model, prompts, task, skill, toward=1).plot()
    """
    known = list(dict.fromkeys(curve.doses.measure))
    if measures is None:
        chosen = [name for name in known if name not in FLUENCY] + ["cross_entropy"]
    else:
        chosen = [require_option(name, "measure", known) for name in measures]
    if not chosen:
        raise ValueError("measures must hold at least one measure, got none")
    sets = list(dict.fromkeys(curve.doses.set))
    figure = figure_of(
        len(chosen),
        len(sets),
        shared_xaxes=True,
        shared_yaxes="rows",
        vertical_spacing=0.07,
        horizontal_spacing=0.03,
        column_titles=[escape(str(name)) for name in sets] if len(sets) > 1 else None,
    )
    for row, measure in enumerate(chosen, start=1):
        for column, name in enumerate(sets, start=1):
            rows = curve.doses[(curve.doses.set == name) & (curve.doses.measure == measure)]
            _panel(figure, rows.sort_values("dose"), row == column == 1, {"row": row, "col": column})
        figure.update_yaxes(title_text=escape(_NAMES.get(measure, measure)), row=row, col=1)
    figure.update_xaxes(title_text="dose", row=len(chosen))
    first = curve.doses.iloc[0]
    p = max(float(first[f"smallest_p_{kind}"]) for kind in KINDS)
    return told(
        figure,
        f"Steering towards class {curve.settings['toward']} at {curve.settings['positions']} positions, "
        f"{first.n_texts} texts",
        "The chosen neurons (line, 95 % intervals of the change over texts) inside the range of random and of matched "
        "neurons at the same dose (bands); crosses: the perplexity leaves that range (collapse); dashed: untouched.",
        "Not shown: that a text is better, and what a direction that is no set of neurons would do. The p-values are "
        f"per dose, and none can be below {fraction(p)}.",
        height=240 * len(chosen) + 40,
    )


def _panel(figure: Any, rows: pd.DataFrame, legend: bool, at: dict[str, int]) -> None:
    doses = rows.dose.tolist()
    for kind in KINDS:
        low, high = rows[f"{kind}_min"].tolist(), rows[f"{kind}_max"].tolist()
        figure.add_scatter(
            x=[*doses, *reversed(doses)],
            y=[*low, *reversed(high)],
            fill="toself",
            fillcolor=faded(COLOURS[kind], 0.28),
            line={"width": 1, "color": faded(COLOURS[kind], 0.5), "dash": _DASHES[kind]},
            mode="lines",
            name=CONTROL_NAMES[kind],
            legendgroup=kind,
            showlegend=legend,
            hoverinfo="skip",
            **at,
        )
    figure.add_scatter(
        x=[min(doses), max(doses)],
        y=[float(rows.untouched.iloc[0])] * 2,
        mode="lines",
        line={"dash": "dash", "width": 1.5},
        name="untouched",
        legendgroup="untouched",
        showlegend=legend,
        **at,
    )
    figure.add_scatter(
        x=doses,
        y=rows.value.tolist(),
        error_y={
            "type": "data",
            "array": (rows.change_high - rows.change).tolist(),
            "arrayminus": (rows.change - rows.change_low).tolist(),
            "color": COLOURS["skill"],
            "thickness": 1.5,
            "width": 5,
        },
        mode="lines+markers",
        marker={"symbol": ["x" if one else "diamond" for one in rows.collapse], "size": 9},
        line={"color": COLOURS["skill"], "width": 2.5},
        name="chosen neurons",
        legendgroup="skill",
        showlegend=legend,
        customdata=[
            f"p {fraction(one['p_random'])} (random neurons), {fraction(one['p_matched'])} (matched neurons)"
            for one in records(rows)
        ],
        hovertemplate="dose %{x:g}: %{y:.3f}<br>%{customdata}",
        **at,
    )
