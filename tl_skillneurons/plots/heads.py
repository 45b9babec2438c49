"""Which heads write the label into neurons."""

from typing import Any

import torch

from tl_skillneurons.attention.writers import HeadWriters
from tl_skillneurons.plots.look import figure_of, told


def plot_heads(writers: HeadWriters) -> Any:
    """How far each head's writing into the neurons lies apart for the two labels, layer by head.

    Args:
        writers: What :func:`~tl_skillneurons.attention.head_writers` gave.

    Returns:
        A plotly ``Figure``; a dot marks heads that are beyond luck at one neuron at least.

    Raises:
        ImportError: Without plotly.

    Example:
        >>> skn.attention.head_writers(model, prompt, task, skill).plot()
    """
    found = writers.separation
    strength = found.difference.abs().mean(0)
    significant = (found.p_family <= 0.05).sum(0)
    n_layers, n_heads = strength.shape
    figure = figure_of()
    figure.add_heatmap(
        z=strength.tolist(),
        x=list(range(n_heads)),
        y=list(range(n_layers)),
        customdata=significant.tolist(),
        colorscale="Cividis",
        xgap=1,
        ygap=1,
        colorbar={"title": {"text": "pre-activation units", "side": "right"}, "thickness": 14},
        hovertemplate="head %{y}.%{x}: %{z:.4f}, beyond luck at %{customdata} neurons<extra></extra>",
    )
    layer, head = torch.nonzero(significant, as_tuple=True)
    figure.add_scatter(
        x=head.tolist(),
        y=layer.tolist(),
        mode="markers",
        marker={"color": "#ffffff", "size": 6, "line": {"color": "#000000", "width": 1}},
        name="beyond luck at a neuron (family-wise 5 %)",
        showlegend=True,
        hoverinfo="skip",
    )
    figure.update_xaxes(title_text="head", showgrid=False, dtick=max(1, n_heads // 16))
    figure.update_yaxes(title_text="layer", showgrid=False, dtick=max(1, n_layers // 12), tick0=0)
    n = len(writers.neurons)
    return told(
        figure,
        f"Which heads write the label into {n:,} neurons",
        "How far a head's writing differs between the two labels, the mean over neurons of the absolute difference, "
        f"on {len(writers.labels)} examples of {writers.role}.",
        "Not shown: that the model needs the head (ablate it), and where the head got the label from. Random neurons "
        "of the same layers are the control.",
        height=max(320, 14 * n_layers + 100),
    )
