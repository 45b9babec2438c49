"""Scores by layer, and by layer and prompt position, beside the level of luck."""

from html import escape
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from tl_skillneurons._widths import even, widest
from tl_skillneurons.neurons.neuron_set import Neurons, as_neurons
from tl_skillneurons.plots.look import COLOURS, figure_of, told
from tl_skillneurons.scores.neuron_scores import NeuronScores
from tl_skillneurons.scores.neuron_statistic import NeuronStatistic
from tl_skillneurons.scores.null import combine
from tl_skillneurons.scores.ranked import strength

QUANTILES = ((0.5, "dot"), (0.9, "dash"), (0.99, "dashdot"), (1.0, "solid"))


def plot_scores(scores: NeuronScores | NeuronStatistic) -> Any:
    """Each layer's best score and quantiles of its neurons, with the level of luck.

    The level is that of permuted labels where the scores have a null; of predictivity without one it is the exact
    binomial bound for independent scores.

    Args:
        scores: Predictivity, or any other score.

    Returns:
        A plotly ``Figure``: scores by layer; predictivity is a share in [0.5, 1], of other scores it is how far they
        are from no relation.

    Raises:
        ImportError: Without plotly.

    Example:
        >>> skn.plot_scores(scores).write_html("predictivity.html")
    """
    even(scores.d_mlp, "this picture")
    values = strength(scores).double()
    name, role, n = said(scores)
    layers = list(range(len(values)))
    index = values.argmax(1).tolist()
    figure = figure_of()
    for share, dash in QUANTILES:
        best = share == 1
        line = values.amax(1).tolist() if best else values.quantile(share, dim=1).tolist()
        figure.add_scatter(
            x=layers,
            y=line,
            mode="lines+markers" if best else "lines",
            line={"dash": dash, "color": COLOURS["skill"] if best else None},
            name="best neuron" if best else f"{share:.0%} of neurons below",
            customdata=index if best else None,
            hovertemplate="layer %{x}, neuron %{customdata}: %{y:.3f}" if best else "%{y:.3f}",
        )
    for level, words in levels(scores):
        figure.add_hline(y=level, line_dash="dash", annotation_text=words, annotation_position="top left")
    figure.update_layout(
        xaxis_title="layer",
        yaxis_title=escape(name),  # plotly reads tags in titles
    )
    figure.update_xaxes(dtick=max(1, len(layers) // 12), tick0=0)
    return told(
        figure,
        f"{name[:1].upper()}{name[1:]} of {values.numel():,} neurons, {n} examples of role {role}",
        f"The best neuron of each layer, and how its other neurons are spread; above the dashed level a {name} "
        "is beyond luck.",
        "Not shown: whether the model uses these neurons. The role that chose them flatters the best.",
    )


def plot_positions(scores: NeuronScores, chosen: Neurons | None = None) -> Any:
    """The best predictivity of each layer at each scored position, and the share of the chosen neurons in each layer.

    Args:
        scores: Their positions are the prompt's: the mask first, where there is one, then the virtual tokens.
        chosen: Neurons to count by layer in a second panel; best not chosen layer by layer, which fixes the counts.

    Returns:
        A plotly ``Figure``; of several prompts, each neuron's predictivity there is combined as the scores say.

    Raises:
        ImportError: Without plotly.

    Example:
        >>> skn.plots.plot_positions(scores, scores.top(100, per="model"))
    """
    chosen = None if chosen is None else as_neurons(chosen)
    cells = _at_positions(scores)
    best, index = cells.max(-1)
    n_layers, n_positions = best.shape
    two = chosen is not None and len(chosen) > 0
    figure = (
        figure_of(1, 2, column_widths=[0.72, 0.28], shared_yaxes=True, horizontal_spacing=0.03)
        if two
        else figure_of()
    )
    (level, words), *_ = levels(scores)
    figure.add_heatmap(
        z=best.tolist(),
        x=list(range(n_positions)),
        y=list(range(n_layers)),
        customdata=index.tolist(),
        colorscale="Cividis",
        xgap=1,
        ygap=1,
        colorbar={"title": {"text": "best predictivity", "side": "right"}, "thickness": 14, "x": 1.02},
        hovertemplate="layer %{y}, position %{x}<br>best: neuron %{customdata}, %{z:.3f}<extra></extra>",
        **({"row": 1, "col": 1} if two else {}),
    )
    if chosen is not None and two:
        counts = chosen.counts_per_layer()
        share = [counts.get(layer, 0) / len(chosen) for layer in range(n_layers)]
        figure.add_bar(
            x=share,
            y=list(range(n_layers)),
            orientation="h",
            marker={
                "color": COLOURS["skill"],
                "pattern": {"shape": "/", "fgcolor": "#ffffff", "size": 5, "fillmode": "overlay"},
            },
            showlegend=False,
            hovertemplate="layer %{y}: %{x:.1%} of the chosen<extra></extra>",
            row=1,
            col=2,
        )
        figure.update_xaxes(title_text=f"share of {len(chosen):,} chosen", tickformat=".0%", row=1, col=2)
    figure.update_xaxes(
        title_text="prompt position", showgrid=False, dtick=max(1, n_positions // 16), **_first(two)
    )
    figure.update_yaxes(
        title_text="layer", showgrid=False, dtick=max(1, n_layers // 12), tick0=0, **_first(two)
    )
    return told(
        figure,
        f"Where: best predictivity by layer and position, {scores.n_select} examples of role select",
        "Each cell is the best of its layer's neurons at one position of the prompt; "
        f"{words[0].lower()}{words[1:]}: {level:.3f}.",
        "Not shown: how many neurons of a cell are good, and whether what can be read there is used there. Each "
        f"cell is the best of {widest(scores.d_mlp):,} neurons.",
        height=max(320, 14 * n_layers + 100),
    )


def said(scores: NeuronScores | NeuronStatistic) -> tuple[str, str, int]:
    """What a score is called, whose examples it was measured on, and how many they were."""
    if isinstance(scores, NeuronScores):
        return "predictivity", "select", scores.n_select
    return scores.name, scores.role, scores.n_examples


def levels(scores: NeuronScores | NeuronStatistic) -> list[tuple[float, str]]:
    """The level that luck reaches, and what it is; none of a score without a null or a bound."""
    if scores.null is not None:
        n = scores.null.n_permutations
        if scores.null.least > 0.05:  # no score is significant, however high
            return [(scores.null.expected(), f"best of all by luck, mean of {n:,} permutations")]
        return [(scores.null.level(), f"best of all by luck in 5 % of {n:,} permutations")]
    if isinstance(scores, NeuronScores):
        return [(scores.chance_level().threshold, "best of all by luck in 5 %, independent scores (a bound)")]
    return []


def _at_positions(scores: NeuronScores) -> Float[Tensor, "layer position neuron"]:
    """Each neuron's predictivity at each position, combined over prompts."""
    accuracy = scores.accuracy
    each = torch.maximum(accuracy, 1 - accuracy)
    return combine(each, scores.aggregate) / (len(each) if scores.aggregate == "mean" else 1)


def _first(two: bool) -> dict[str, int]:
    return {"row": 1, "col": 1} if two else {}
