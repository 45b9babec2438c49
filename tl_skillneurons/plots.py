"""Pictures of scores beside the level that luck reaches; needs plotly (``pip install "tl_skillneurons[plots]"``)."""

from html import escape
from typing import Any

import torch

from tl_skillneurons.scores.neuron_scores import NeuronScores
from tl_skillneurons.scores.neuron_statistic import NeuronStatistic
from tl_skillneurons.scores.ranked import strength

__docformat__ = "google"
QUANTILES = (0.5, 0.9, 0.99, 1.0)


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
    try:
        from plotly import graph_objects
    except ImportError as error:
        raise ImportError(
            'plots need plotly; install it with pip install "tl_skillneurons[plots]"'
        ) from error
    values = strength(scores).double()
    if isinstance(scores, NeuronScores):
        name, role, n = "predictivity", "select", scores.n_select
    else:
        name, role, n = scores.name, scores.role, scores.n_examples
    layers = list(range(len(values)))
    index = values.argmax(1).tolist()
    figure = graph_objects.Figure()
    for share in QUANTILES:
        line = values.quantile(share, dim=1).tolist() if share < 1 else values.amax(1).tolist()
        best = share == 1
        figure.add_scatter(
            x=layers,
            y=line,
            mode="lines+markers" if best else "lines",
            name="best neuron" if best else f"{share:.0%} of neurons below",
            customdata=index if best else None,
            hovertemplate="layer %{x}, neuron %{customdata}: %{y:.3f}" if best else "%{y:.3f}",
        )
    for level, words in _levels(scores):
        figure.add_hline(y=level, line_dash="dash", annotation_text=words)
    figure.update_layout(
        title=f"{escape(name)} of {torch.Size(values.shape).numel():,} neurons, {n} examples of role {role}",
        xaxis_title="layer",
        yaxis_title=escape(name),  # plotly reads tags in titles
    )
    return figure


def _levels(scores: NeuronScores | NeuronStatistic) -> list[tuple[float, str]]:
    if scores.null is not None:
        n = scores.null.n_permutations
        if scores.null.least > 0.05:  # no score is significant, however high
            return [(scores.null.expected(), f"best of all by luck, mean of {n:,} permutations")]
        return [(scores.null.level(), f"best of all by luck in 5 % of {n:,} permutations")]
    if isinstance(scores, NeuronScores):
        return [(scores.chance_level().threshold, "best of all by luck in 5 %, independent scores (a bound)")]
    return []
