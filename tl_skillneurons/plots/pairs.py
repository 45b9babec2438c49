"""Two numbers of each neuron against one another: density of all, and the chosen ones marked by where they point."""

from html import escape
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor

from tl_skillneurons._checks import require_int
from tl_skillneurons._widths import even
from tl_skillneurons.interventions.attribution import NeuronAttribution
from tl_skillneurons.neurons.neuron_set import Neurons, NeuronSet, as_neurons
from tl_skillneurons.plots.layers import levels, said
from tl_skillneurons.plots.look import COLOURS, figure_of, told
from tl_skillneurons.scores.neuron_scores import NeuronScores
from tl_skillneurons.scores.neuron_statistic import NeuronStatistic
from tl_skillneurons.scores.ranked import strength
from tl_skillneurons.studies.profiles.result import NeuronProfiles

_N_CELLS = 56
_MOST_MARKED = 1500
_GREYS = [[0, "rgba(140,140,140,0)"], [0.001, "rgba(140,140,140,0.12)"], [1, "rgba(140,140,140,0.9)"]]


def plot_prompts(scores: NeuronScores, chosen: Neurons | None = None, *, one: int = 0, other: int = 1) -> Any:
    """Each neuron's predictivity under one prompt against another: the same neurons, the same way round?

    Args:
        scores: Of at least two prompts.
        chosen: Neurons to mark; by default the best 2 % of each layer. Of more than 1,500 the first are marked.
        one, other: Which prompts.

    Returns:
        A plotly ``Figure``.

    Raises:
        ValueError: For fewer than two prompts, or a prompt that isn't there.
        ImportError: Without plotly.

    Example:
        >>> skn.plots.plot_prompts(scores, skill)
    """
    chosen = None if chosen is None else as_neurons(chosen)
    if scores.n_prompts < 2:
        raise ValueError("plot_prompts compares two prompts, and these scores are of one; score several")
    for name, prompt in (("one", one), ("other", other)):
        if not 0 <= require_int(prompt, name, minimum=0) < scores.n_prompts:
            raise ValueError(f"{name} must be in [0, {scores.n_prompts}), got {prompt}")
    marked = scores.top(0.02 if even(scores.d_mlp, "this picture") >= 50 else 1) if chosen is None else chosen
    each, direction = scores.predictivity_by_prompt, scores.direction_by_prompt
    figure = figure_of()
    _density(figure, each[one], each[other])
    first, second = (direction[k][marked.layer, marked.index] for k in (one, other))
    turned = _marks(figure, each[one], each[other], marked, first, second, _label_names(scores))
    if scores.null is not None and scores.null.least <= 0.05:
        for prompt, add in ((one, figure.add_vline), (other, figure.add_hline)):
            level = scores.null.level(prompt=prompt)
            add(**{"x" if prompt == one else "y": level}, line_dash="dash", line_width=1)
    figure.update_layout(
        xaxis_title=f"predictivity under prompt {one}", yaxis_title=f"predictivity under prompt {other}"
    )
    return told(
        figure,
        "The same twice? One prompt against another",
        f"Grey: all {each[0].numel():,} neurons. Of the {len(marked):,} marked, {turned:,} "
        f"({turned / max(1, len(marked)):.0%}) turn their sign from one prompt to the other.",
        "Not shown: what agreement luck gives. Both prompts read the same texts, and correlated neurons agree "
        "whatever the labels mean. Dashed: what the best of all reaches by luck in 5 %.",
        height=460,
    )


def plot_read_and_drive(
    scores: NeuronScores | NeuronStatistic,
    driving: NeuronAttribution | NeuronProfiles,
    chosen: Neurons | None = None,
) -> Any:
    """What can be read from each neuron against what it is estimated to move.

    Args:
        scores: Predictivity, or any other score: the axis of reading.
        driving: Of the same model: attribution between twins, in logits toward the other label, or the profiles of a
            run, which know what holding each neuron alone at its mean does to the logit diff.
        chosen: Neurons to mark, the first 1,500 of them; by default the 50 best of each axis.

    Returns:
        A plotly ``Figure``.

    Raises:
        ValueError: For scores and effects of models of different shape, or profiles without effects.
        ImportError: Without plotly.

    Example:
        >>> skn.plots.plot_read_and_drive(scores, skn.attribute_neurons(model, prompts[0], task))
        >>> skn.plots.plot_read_and_drive(found.scores, found.profiles)
    """
    chosen = None if chosen is None else as_neurons(chosen)
    name, *_ = said(scores)
    even(scores.d_mlp, "this picture")
    effect, how, what = _driving(driving)
    reading, moving = strength(scores).double(), effect.double()
    if reading.shape != moving.shape:
        raise ValueError(
            f"scores and effects must be of one model, got [layer, neuron] = {list(reading.shape)} and "
            f"{list(moving.shape)}"
        )
    figure = figure_of()
    _density(figure, reading, moving)
    if chosen is None:
        n = min(50, reading.numel())
        by_drive = moving.abs().flatten().argsort(descending=True, stable=True)[:n]
        width = reading.shape[1]
        drivers = NeuronSet(by_drive // width, by_drive % width, *reading.shape)
        sets = {f"the {n} that read best": scores.top(n, per="model"), f"the {n} that move most": drivers}
    else:
        sets = {f"{len(chosen):,} chosen": chosen}
    looks = ((COLOURS["skill"], "circle"), (COLOURS["least"], "diamond-open"))
    for (words, marked), (colour, symbol) in zip(sets.items(), looks, strict=False):
        _points(figure, reading, moving, list(marked)[:_MOST_MARKED], words, colour, symbol)
    for level, _ in levels(scores):
        figure.add_vline(x=level, line_dash="dash", line_width=1)
    figure.add_hline(y=0, line_width=1)
    figure.update_layout(xaxis_title=name, yaxis_title=f"estimated effect, logits ({how})")
    return told(
        figure,
        "Read and drive",
        f"Grey: all {reading.numel():,} neurons, by {name} and by what {what}; dashed: the level of luck.",
        "Not shown: what neurons do together. The effect is a gradient's estimate of each alone; "
        f"{'patch_neurons' if isinstance(driving, NeuronAttribution) else 'measure_effects'} measures sets.",
        height=460,
    )


def _driving(driving: NeuronAttribution | NeuronProfiles) -> tuple[Float[Tensor, "layer neuron"], str, str]:
    """Each neuron's effect, what was done in two words, and in a sentence."""
    if isinstance(driving, NeuronAttribution):
        how, n_pairs = driving.settings.get("direction", "patching"), len(driving.gaps)
        return driving.effect, f"{how}, {n_pairs} pairs", "patching each alone is estimated to move"
    if driving.driving is None:
        why = driving.left_out.get("effects", "they were made without that part")
        raise ValueError(
            f"these profiles know of no effects ({why}); give parts=('effects',), or attribution"
        )
    sentence = "holding each alone at its mean at the prompt is estimated to do to the logit diff"
    return driving.driving, "held at its mean", f"{sentence} (below 0: it helps the answer)"


def _label_names(scores: NeuronScores) -> tuple[str, str]:
    """What a legend calls label 0 and label 1, as plotly takes it: their names where they are known and short."""
    names = [str(name) for name in scores.provenance.get("task", {}).get("label_names", ())]
    short = len(names) == 2 and all(len(name) <= 24 and not name.isdigit() for name in names)
    return (escape(names[0]), escape(names[1])) if short else ("label 0", "label 1")


def _density(figure: Any, x: Float[Tensor, "layer neuron"], y: Float[Tensor, "layer neuron"]) -> None:
    """All neurons as counts in cells, darker where there are more of them (log scale)."""
    across, up = x.flatten().double().numpy(), y.flatten().double().numpy()
    counts, x_edges, y_edges = np.histogram2d(across, up, bins=_N_CELLS)
    shade = np.log10(1 + counts.T) / np.log10(1 + max(counts.max(), 1))
    figure.add_heatmap(
        z=shade.round(3).tolist(),
        x=_middle(x_edges),
        y=_middle(y_edges),
        customdata=counts.T.astype(int).tolist(),
        colorscale=_GREYS,
        showscale=False,
        zmin=0,
        zmax=1,
        hovertemplate="%{customdata:,} neurons at (%{x:.3f}, %{y:.3f})<extra></extra>",
    )


def _middle(edges: NDArray[np.floating]) -> list[float]:
    return [round(float(at), 6) for at in (edges[1:] + edges[:-1]) / 2]


def _marks(
    figure: Any,
    x: Float[Tensor, "layer neuron"],
    y: Float[Tensor, "layer neuron"],
    marked: NeuronSet,
    first: Int[Tensor, " neuron"],
    second: Int[Tensor, " neuron"],
    names: tuple[str, str],
) -> int:
    """The marked neurons in three kinds, by which way they point under both prompts; returns how many turn."""
    same = first == second
    kinds = (
        (f"high means {names[1]} under both", same & (first > 0), COLOURS["label 1"], "circle"),
        (f"high means {names[0]} under both", same & (first < 0), COLOURS["label 0"], "square"),
        ("turns its sign", ~same, COLOURS["skill"], "x-thin-open"),
    )
    pairs = list(marked)
    for words, which, colour, symbol in kinds:
        own = [pair for pair, is_one in zip(pairs, which.tolist(), strict=True) if is_one]
        _points(figure, x, y, own[:_MOST_MARKED], f"{words} ({len(own):,})", colour, symbol)
    return int((~same).sum())


def _points(
    figure: Any,
    x: Float[Tensor, "layer neuron"],
    y: Float[Tensor, "layer neuron"],
    pairs: list[tuple[int, int]],
    name: str,
    colour: str,
    symbol: str,
) -> None:
    figure.add_scatter(
        x=[round(float(x[pair]), 4) for pair in pairs],
        y=[round(float(y[pair]), 5) for pair in pairs],
        mode="markers",
        name=name,
        text=[f"{layer}.{index}" for layer, index in pairs],
        marker={
            "color": colour,
            "symbol": symbol,
            "size": 7,
            "opacity": 0.85,
            "line": {"color": colour, "width": 1.6},
        },
        hovertemplate="%{text}: (%{x:.3f}, %{y:.3f})",
    )
