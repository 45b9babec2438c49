"""How pictures look: colours, a light and a dark theme, and the sentences around each figure.

Colours are those of Okabe and Ito (2008), told apart with any colour vision. What is drawn without a colour of its own
takes the theme's ink, black or white, so that a page can turn dark by changing the theme alone.
"""

import textwrap
from fractions import Fraction
from html import escape
from types import ModuleType
from typing import Any

COLOURS = {
    "skill": "#D55E00",
    "random": "#999999",
    "matched": "#56B4E9",
    "least": "#0072B2",
    "luck": "#F0E442",
    "label 1": "#009E73",
    "label 0": "#CC79A7",
}
"""What each colour stands for, in every picture and on the page."""
SERIES = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00")
"""For prompts and models, which have no order."""
DASHES = ("solid", "dash", "dot", "dashdot", "longdash", "longdashdot")
SYMBOLS = ("circle", "square", "diamond", "triangle-up", "cross", "x")
NOT_SHOWN = "not shown"
"""The name of the annotation below a figure, by which a page that says the sentence itself leaves it out."""
INK = {False: ("#1b1b1b", "#d9d9d9", "#8c8c8c"), True: ("#e8e8e8", "#3a3a3a", "#7d7d7d")}
"""Ink, grid and axis lines, by whether the theme is dark."""
GROUND = {False: "#ffffff", True: "#16181c"}
FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Noto Sans', sans-serif"
_MARGIN = {"l": 64, "r": 24, "t": 40, "b": 56}
_MOST_COUNTED = 10_001
_WIDTH = 96  # characters of a line of a sentence around a figure


def graph_objects() -> ModuleType:
    """plotly's figures.

    Raises:
        ImportError: Without plotly, with what to install.
    """
    try:
        from plotly import graph_objects
    except ImportError as error:
        raise ImportError(
            'plots need plotly; install it with pip install "tl_skillneurons[plots]"'
        ) from error
    return graph_objects


def theme(*, dark: bool = False) -> Any:
    """The plotly template that every picture has; figures are made with the light one.

    Example:
        >>> skn.plot_scores(scores).update_layout(template=skn.plots.theme(dark=True))
    """
    ink, grid, line = INK[dark]
    axis = {
        "gridcolor": grid,
        "linecolor": line,
        "zerolinecolor": line,
        "zeroline": False,
        "ticks": "outside",
        "tickcolor": line,
        "ticklen": 4,
        "automargin": True,
        "title": {"standoff": 8},
    }
    layout = {
        "font": {"family": FONT, "size": 13, "color": ink},
        "colorway": [ink],
        "paper_bgcolor": GROUND[dark],
        "plot_bgcolor": GROUND[dark],
        "xaxis": axis,
        "yaxis": axis,
        "annotationdefaults": {"font": {"color": ink}, "arrowcolor": ink},
        "shapedefaults": {"line": {"color": ink}},
        "hoverlabel": {"font": {"family": FONT, "color": ink}, "bgcolor": GROUND[dark], "bordercolor": line},
        "legend": {"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom", "bgcolor": "rgba(0,0,0,0)"},
        "title": {"x": 0, "xref": "paper", "xanchor": "left", "font": {"size": 15}},
        "margin": _MARGIN,
        "modebar": {"bgcolor": "rgba(0,0,0,0)", "color": line, "activecolor": ink},
    }
    return graph_objects().layout.Template(layout=layout)


def figure_of(rows: int = 1, columns: int = 1, **options: Any) -> Any:
    """An empty figure in the light theme, of so many panels (plotly's ``make_subplots``)."""
    empty = graph_objects().Figure()  # says what to install before plotly's other modules are asked for
    if rows * columns > 1 or options:
        from plotly.subplots import make_subplots

        empty = make_subplots(rows=rows, cols=columns, **options)
    return empty.update_layout(template=theme())


def told(figure: Any, title: str, seen: str, not_shown: str, height: int = 420) -> Any:
    """The figure with its title and its two sentences, as data (``layout.meta``) and to be read.

    Args:
        title, seen, not_shown: Plain text, whatever it holds.
        height: Of the panels with their axes, in pixels; the sentences come on top.
    """
    above, below = (textwrap.wrap(text, _WIDTH) for text in (seen, not_shown))
    lines = [f"<b>{escape(title)}</b>", *(f"<sup>{escape(line)}</sup>" for line in above)]
    top, bottom = 56 + 22 * len(lines), 64 + 16 * len(below)
    figure.add_annotation(
        name=NOT_SHOWN,
        text="<br>".join(escape(line) for line in below),
        xref="paper",
        yref="paper",
        x=0,
        y=0,
        yshift=-44,
        xanchor="left",
        yanchor="top",
        align="left",
        showarrow=False,
        font_size=11,
    )
    return figure.update_layout(
        title={"text": "<br>".join(lines), "y": 1, "yref": "container", "yanchor": "top", "pad": {"t": 12}},
        meta={"title": title, "seen": seen, "not_shown": not_shown, "height": height},
        height=height + top + bottom - _MARGIN["t"] - _MARGIN["b"],
        margin={"t": top, "b": bottom},
    )


def faded(colour: str, opacity: float) -> str:
    """A ``#rrggbb`` colour with an opacity, as plotly writes it."""
    red, green, blue = (int(colour[at : at + 2], 16) for at in (1, 3, 5))
    return f"rgba({red},{green},{blue},{opacity})"


def fraction(p: float) -> str:
    """A p-value of counted controls or permutations as the fraction that it is, ``1/21``; to three digits where it is
    none.

    Example:
        >>> fraction(1 / 21), fraction(0.05), fraction(1 / 1001), fraction(0.0312345)
        ('1/21', '1/20', '1/1001', '0.0312')
    """
    if not 0 < p < 1:
        return f"{p:.3g}"
    near = Fraction(p).limit_denominator(_MOST_COUNTED)
    return str(near) if near and abs(float(near) - p) < 1e-12 else f"{p:.3g}"
