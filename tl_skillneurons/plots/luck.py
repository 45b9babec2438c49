"""How good neurons are, and how good luck is: histograms of all neurons with the chosen ones among them."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from tl_skillneurons._widths import even
from tl_skillneurons.neurons.neuron_set import Neurons, NeuronSet, as_neurons
from tl_skillneurons.plots.layers import levels, said
from tl_skillneurons.plots.look import COLOURS, figure_of, told
from tl_skillneurons.scores.evaluated_rules import AllRules
from tl_skillneurons.scores.neuron_scores import NeuronScores
from tl_skillneurons.scores.neuron_statistic import NeuronStatistic
from tl_skillneurons.scores.ranked import strength
from tl_skillneurons.scores.selection import every_neuron

_N_BINS = 48
_ENDS = torch.tensor([0.025, 0.975], dtype=torch.float64)


def plot_histogram(
    scores: NeuronScores | NeuronStatistic, chosen: Neurons | None = None, rules: AllRules | None = None
) -> Any:
    """How the scores of all neurons are spread, with the level of luck, and the chosen neurons among them.

    Args:
        scores: Predictivity, or any other score.
        chosen: Neurons to mark.
        rules: All rules on examples that chose nothing, for a second panel below the first.

    Returns:
        A plotly ``Figure``; counts are on a log scale, so that the few best are seen beside the thousands.

    Raises:
        ImportError: Without plotly.

    Example:
        >>> skn.plots.plot_histogram(scores, skill, rules)
    """
    chosen = None if chosen is None else as_neurons(chosen)
    name, role, n = said(scores)
    even(scores.d_mlp, "this picture")
    values = strength(scores).double().flatten().numpy()
    panels = [(f"{name} on {role} ({n} examples), which chose", values)]
    if rules is not None:
        every = NeuronSet(*every_neuron(*strength(scores).shape))
        on_report = rules.accuracy_of(every).numpy()
        panels.append(
            (f"accuracy of the same rules on {rules.role} ({rules.n_examples} examples)", on_report)
        )
    figure = (
        figure_of(len(panels), 1, shared_xaxes=True, vertical_spacing=0.16)
        if len(panels) > 1
        else figure_of()
    )
    edges = _edges(np.concatenate([own for _, own in panels]))
    taken = None if chosen is None else chosen.mask(*strength(scores).shape).flatten().numpy()
    for row, (axis, own) in enumerate(panels, start=1):
        at = {"row": row, "col": 1} if len(panels) > 1 else {}
        _bars(figure, own, edges, "all neurons", {"color": COLOURS["random"]}, row == 1, at)
        if taken is not None:
            striped = {"shape": "/", "fgcolor": "#ffffff", "size": 5, "fillmode": "overlay"}
            marker = {"color": COLOURS["skill"], "pattern": striped}
            _bars(figure, own[taken], edges, f"the {int(taken.sum()):,} chosen", marker, row == 1, at)
            figure.add_vline(x=float(own[taken].mean()), line={"color": COLOURS["skill"], "width": 2}, **at)
        figure.update_xaxes(title_text=axis, showticklabels=True, **at)
        figure.update_yaxes(title_text="neurons", type="log", dtick=1, **at)
    first = {"row": 1, "col": 1} if len(panels) > 1 else {}
    level, words = next(iter(levels(scores)), (None, ""))
    if level is not None:
        figure.add_vline(x=level, line_dash="dash", annotation_text=f"{level:.3f} luck", **first)
        if scores.null is not None:
            low, high = scores.null.largest[-1].double().quantile(_ENDS).tolist()
            figure.add_vrect(
                x0=low, x1=high, fillcolor=COLOURS["luck"], opacity=0.45, line_width=0, layer="below", **first
            )
    figure.update_layout(barmode="overlay", bargap=0)
    return told(
        figure,
        f"How good is a neuron, and how good is luck? {values.size:,} neurons",
        _seen(words, taken is not None, rules, scores.null is not None),
        "Not shown: whether the model uses any of them. Neurons are correlated, so thousands beyond the level are "
        "no thousands of separate findings.",
        height=300 * len(panels),
    )


def _seen(words: str, marked: bool, rules: AllRules | None, null: bool) -> str:
    said = "All neurons"
    said += ", the chosen ones hatched with their mean as a line" if marked else ""
    said += f"; dashed: {words}" if words else ""
    said += ", shaded its middle 95 %" if null else ""
    return said + (
        f"; below, the same rules on {rules.role}, which chose nothing." if rules is not None else "."
    )


def _bars(
    figure: Any,
    values: NDArray[np.floating],
    edges: NDArray[np.floating],
    name: str,
    marker: dict[str, Any],
    legend: bool,
    at: dict[str, int],
) -> None:
    counts, _ = np.histogram(values, edges)
    figure.add_bar(
        x=((edges[1:] + edges[:-1]) / 2).tolist(),
        y=[int(count) or None for count in counts],  # a log scale has no zero
        width=(edges[1:] - edges[:-1]).tolist(),
        name=name,
        legendgroup=name,
        showlegend=legend,
        marker={**marker, "line": {"width": 0}},
        hovertemplate="%{x:.3f}: %{y:,} neurons",
        **at,
    )


def _edges(values: NDArray[np.floating]) -> NDArray[np.floating]:
    return np.linspace(values.min(), max(values.max(), values.min() + 1e-6), _N_BINS + 1)
