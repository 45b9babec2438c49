"""Dose against what was wanted and against perplexity, inside the bands of random and matched neurons; and what was
wanted against perplexity, neurons beside their rivals."""

import math
from collections.abc import Sequence
from html import escape
from typing import Any

import pandas as pd

from tl_skillneurons._checks import require_option
from tl_skillneurons.plots.effects import CONTROL_NAMES
from tl_skillneurons.plots.look import COLOURS, SERIES, faded, figure_of, fraction, told
from tl_skillneurons.studies._common import records
from tl_skillneurons.studies.steering.curve import KINDS, SteeringCurve
from tl_skillneurons.studies.steering.measures import FLUENCY
from tl_skillneurons.studies.steering.rivals import RANDOM

_NAMES = {
    "class": "probability of the class",
    "cross_entropy": "cross-entropy (nats per token)",
    "repeated": "repeated 3-token runs (share)",
    "empty": "empty answers (share)",
}
_DASHES = {"random": "solid", "matched": "dot"}
_DOTS = {"random": "circle", "matched": "square", "least": "triangle-down", RANDOM: "cross"}
_SKILL = ("chosen neurons", "skill", COLOURS["skill"], "solid", "diamond")
_SEEN = (
    " Directions over all neurons of the same layers go as far as the chosen ones do at each dose, beside the range of "
    "random ones."
)


def plot_steering(
    curve: SteeringCurve, *, measures: Sequence[str] | None = None, against: str = "dose"
) -> Any:
    """Dose against each measure, with the range of the controls at the same dose; or perplexity against each measure.

    Args:
        curve: What :func:`~tl_skillneurons.studies.steer` gave.
        measures: A row of panels each; by default what was wanted, then (against the dose) the cross-entropy.
        against: "dose", or "perplexity": what each way to steer gives for its price, every draw of a control a dot.

    Returns:
        A plotly ``Figure``: a column per set; a band from the least to the most of each control's draws, a line for the
        neurons and for each rival, a cross where the dose is flagged as collapse.

    Raises:
        ValueError: For an unknown measure, or none.
        ImportError: Without plotly.

    Example:
        >>> skn.studies.steer(model, prompts, task, skill, toward=1).plot()
    """
    require_option(against, "against", ("dose", "perplexity"))
    known = list(dict.fromkeys(curve.doses.measure))
    if measures is None:
        price = ["cross_entropy"] if against == "dose" else []
        chosen = [name for name in known if name not in FLUENCY] + price
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
    if len(sets) > 1:
        figure.update_layout(legend_y=1 + 24 / (240 * len(chosen)))  # above the names of the columns
    draw = _of_doses if against == "dose" else _of_prices
    for row, measure in enumerate(chosen, start=1):
        for column, name in enumerate(sets, start=1):
            draw(figure, curve, name, measure, row == column == 1, {"row": row, "col": column})
        figure.update_yaxes(title_text=escape(_NAMES.get(measure, measure)), row=row, col=1)
    figure.update_xaxes(title_text=against, row=len(chosen))
    first = curve.doses.iloc[0]
    p = max(float(first[f"smallest_p_{kind}"]) for kind in KINDS)
    rivals = ", or along directions as long," if len(curve.rivals) else ""
    seen = {
        "dose": "The chosen neurons (line, 95 % intervals of the change over texts) inside the range of random and of "
        "matched neurons at the same dose (bands); crosses: the perplexity leaves that range (collapse); dashed: "
        f"untouched.{_SEEN if rivals else ''}",
        "perplexity": f"What is written with the chosen neurons turned{rivals} at each dose, the weakest first, from "
        "what is written untouched on; dots: draws of controls; crosses: the perplexity leaves the range of its "
        "controls (collapse).",
    }
    beyond = (
        "what another direction would do" if rivals else "what a direction that is no set of neurons would do"
    )
    return told(
        figure,
        f"Steering towards class {curve.settings['toward']} at {curve.settings['positions']} positions, "
        f"{first.n_texts} texts",
        seen[against],
        f"Not shown: that a text is better, and {beyond}. The p-values are per dose, and none can be below "
        f"{fraction(p)}.",
        height=240 * len(chosen) + 40,
    )


def _of_doses(
    figure: Any, curve: SteeringCurve, name: str, measure: str, legend: bool, at: dict[str, int]
) -> None:
    """Dose against a measure: the neurons in the range of their controls, and the rivals in that of theirs."""
    rows = _rows(curve.doses, name, measure).sort_values("dose")
    for kind in KINDS:
        _band(figure, rows, kind, (CONTROL_NAMES[kind], COLOURS[kind], _DASHES[kind]), legend, at)
    against = _by_rival(curve, name, measure)
    for one in list(against.values())[:1]:
        _band(figure, one.sort_values("dose"), "random", (RANDOM, SERIES[0], "dashdot"), legend, at)
    figure.add_scatter(
        x=[rows.dose.min(), rows.dose.max()],
        y=[float(rows.untouched.iloc[0])] * 2,
        mode="lines",
        line={"dash": "dash", "width": 1.5},
        name="untouched",
        legendgroup="untouched",
        showlegend=legend,
        **at,
    )
    for number, (rival, one) in enumerate(against.items()):
        ordered = one.sort_values("dose")
        _line(figure, ordered, ordered.dose.tolist(), _look(rival, number), legend, at)
    _line(figure, rows, rows.dose.tolist(), _SKILL, legend, at)


def _of_prices(
    figure: Any, curve: SteeringCurve, name: str, measure: str, legend: bool, at: dict[str, int]
) -> None:
    """Perplexity against a measure: every draw of a control, and from what is written untouched the way of the neurons
    and of each rival."""
    draws = curve.draws[curve.draws.set == name]
    for kind, called in {**CONTROL_NAMES, RANDOM: RANDOM}.items():
        own = draws[draws.neurons == kind].pivot(index=["dose", "draw"], columns="measure", values="value")
        if len(own):
            figure.add_scatter(
                x=[math.exp(min(loss, 700)) for loss in own.cross_entropy],
                y=own[measure].tolist(),
                mode="markers",
                marker={"size": 4, "color": COLOURS.get(kind, SERIES[0]), "symbol": _DOTS[kind]},
                name=called,
                legendgroup=kind,
                showlegend=legend,
                hoverinfo="skip",
                **at,
            )
    price = float(_rows(curve.doses, name, "cross_entropy").untouched.iloc[0])
    neutral = float(curve.settings["neutral"])
    ways = [(_SKILL, _rows(curve.doses, name, measure))]
    ways += [(_look(rival, k), one) for k, (rival, one) in enumerate(_by_rival(curve, name, measure).items())]
    for look, rows in ways:
        begun = legend
        for of_way in (rows[rows.dose > neutral], rows[rows.dose < neutral]):
            if not len(of_way):
                continue
            own = of_way.iloc[(of_way.dose - neutral).abs().argsort().tolist()]
            still = own.iloc[[0]].assign(value=own.untouched, change=0.0, change_low=0.0, change_high=0.0)
            still = still.assign(dose=neutral, collapse=False, perplexity=math.exp(price))
            way = pd.concat([still, own], ignore_index=True)
            _line(figure, way, way.perplexity.tolist(), look, begun, at)
            begun = False


def _rows(frame: pd.DataFrame, name: str, measure: str) -> pd.DataFrame:
    return frame[(frame.set == name) & (frame.measure == measure)]


def _by_rival(curve: SteeringCurve, name: str, measure: str) -> dict[str, pd.DataFrame]:
    """The rows of each rival, if there is any."""
    if not len(curve.rivals):
        return {}
    rows = _rows(curve.rivals, name, measure)
    return {str(rival): of for rival, of in rows.groupby("rival", sort=False)}


def _look(rival: str, number: int) -> tuple[str, str, str, str, str]:
    """How a rival's line is called and drawn: its name, its group in the legend, colour, dashes and symbol."""
    called = f"direction: {rival.replace('_', ' ')}"
    return (
        called,
        rival,
        (SERIES[2], SERIES[3])[number % 2],
        ("dash", "dot")[number % 2],
        ("circle", "square")[number % 2],
    )


def _band(
    figure: Any, rows: pd.DataFrame, kind: str, look: tuple[str, str, str], legend: bool, at: dict[str, int]
) -> None:
    """From the least to the most of a control's draws; ``look`` is its name, colour and dashes."""
    called, colour, dash = look
    doses = rows.dose.tolist()
    figure.add_scatter(
        x=[*doses, *reversed(doses)],
        y=[*rows[f"{kind}_min"].tolist(), *reversed(rows[f"{kind}_max"].tolist())],
        fill="toself",
        fillcolor=faded(colour, 0.28),
        line={"width": 1, "color": faded(colour, 0.5), "dash": dash},
        mode="lines",
        name=called,
        legendgroup=called,
        showlegend=legend,
        hoverinfo="skip",
        **at,
    )


def _line(
    figure: Any,
    rows: pd.DataFrame,
    x: list[float],
    look: tuple[str, str, str, str, str],
    legend: bool,
    at: dict[str, int],
) -> None:
    """A way to steer over its doses, with the intervals of the change."""
    called, group, colour, dash, symbol = look
    beside = {"p_random": "random", "p_matched": "matched neurons"}
    there = [(column, name) for column, name in beside.items() if column in rows]
    figure.add_scatter(
        x=x,
        y=rows.value.tolist(),
        error_y={
            "type": "data",
            "array": (rows.change_high - rows.change).tolist(),
            "arrayminus": (rows.change - rows.change_low).tolist(),
            "color": colour,
            "thickness": 1.5,
            "width": 5,
        },
        mode="lines+markers",
        marker={"symbol": ["x" if one else symbol for one in rows.collapse], "size": 9},
        line={"color": colour, "width": 2.5, "dash": dash},
        name=called,
        legendgroup=group,
        showlegend=legend,
        customdata=[
            f"dose {one['dose']:g}, p {', '.join(f'{fraction(one[column])} ({name})' for column, name in there)}"
            for one in records(rows)
        ],
        hovertemplate="%{y:.3f}<br>%{customdata}",
        **at,
    )
