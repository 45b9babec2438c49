"""How far two scores agree, layer by layer, beside luck."""

from typing import Any

from tl_skillneurons.plots.look import COLOURS, figure_of, fraction, told
from tl_skillneurons.scores.agreement import Agreement


def plot_agreement(found: Agreement) -> Any:
    """Spearman's correlation of two scores in each layer, inside what permutations give.

    Args:
        found: What :func:`~tl_skillneurons.scores.score_agreement` gave.

    Returns:
        A plotly ``Figure``; the last column, "all", is over all layers.

    Raises:
        ImportError: Without plotly.

    Example:
        >>> skn.scores.score_agreement(scores, other_scores, 30).plot()
    """
    frame = found.to_dataframe()
    where = [str(layer) if layer >= 0 else "all" for layer in frame.layer]
    middle = (frame.null_low + frame.null_high) / 2
    figure = figure_of()
    figure.add_scatter(
        x=where,
        y=middle.tolist(),
        mode="markers",
        marker={"symbol": "line-ew-open", "size": 1, "color": COLOURS["random"]},
        error_y={
            "type": "data",
            "array": (frame.null_high - middle).tolist(),
            "arrayminus": (middle - frame.null_low).tolist(),
            "thickness": 7,
            "width": 0,
            "color": COLOURS["random"],
        },
        name=f"middle 95 % under permuted {found.permuted}",
        hovertemplate="layer %{x}: permuted %{y:.3f}",
    )
    figure.add_scatter(
        x=where,
        y=frame.spearman.tolist(),
        mode="markers",
        marker={"color": COLOURS["skill"], "symbol": "diamond", "size": 9},
        customdata=[fraction(p) for p in frame.p_value],
        name="found",
        hovertemplate="layer %{x}: %{y:.3f}, p %{customdata}",
    )
    figure.add_hline(y=0, line_width=1)
    figure.update_xaxes(title_text="layer", type="category")
    figure.update_yaxes(title_text="Spearman's correlation")
    shared = frame.iloc[-1]
    return told(
        figure,
        f"Agreement of two scores: {shared.spearman:.3f} over all layers",
        f"Each layer's correlation of all neurons' scores beside permuted {found.permuted}; {int(shared.n_shared):,} "
        f"of the best {found.n_top} of each layer are shared.",
        "Not shown: that both use these neurons for the same thing. No p-value can be below "
        f"{fraction(found.smallest_p)} with so many draws.",
    )
