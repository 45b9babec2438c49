"""Small drawings that need no script: bars with their interval, and densities; SVG as text, from numbers alone."""

from collections.abc import Mapping, Sequence

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

_CONTROLS = ("#999999", "#56B4E9", "#0072B2")
_DRAWN = {1: ("#009E73", "none", "solid"), 0: ("#CC79A7", "6 4", "dashed")}
"""Of each label: colour, dashes, and the word for them."""


def bar(value: float, low: float, high: float, mark: float | None = None) -> Markup:
    """A value in [0, 1] as a bar with its interval as a line, and another number as a tick."""
    x, a, b = (round(100 * min(1.0, max(0.0, one)), 1) for one in (value, low, high))
    tick = (
        "" if mark is None else f'<path d="M{100 * mark:.1f} 0V14" stroke="currentColor" stroke-width="1.5"/>'
    )
    return Markup(  # numbers alone
        '<svg class="bar" viewBox="-1 0 102 14" preserveAspectRatio="none" aria-hidden="true">'
        '<rect x="0" y="4" width="100" height="6" fill="currentColor" opacity=".12"/>'
        f'<rect x="0" y="4" width="{x}" height="6" fill="#D55E00" opacity=".75"/>'
        f'<path d="M{a} 7H{b}M{a} 4.5V9.5M{b} 4.5V9.5" stroke="currentColor" stroke-width="1.2" fill="none"/>'
        f"{tick}</svg>"
    )


def strip(
    name: str, intact: float, held: float, ends: tuple[float, float], draws: Mapping[str, Sequence[float]]
) -> Markup:
    """One effect on one line: the intact model, the chosen neurons with their interval, every draw of each control.

    Args:
        name: Of the measure, with its unit.
        ends: Of the interval of ``held``.
        draws: Of each kind of control, by the word for it.
    """
    left, width, row = 112, 560, 13
    every = [intact, held, *ends, *(value for own in draws.values() for value in own)]
    low, high = min(every), max(every)
    margin = 0.04 * (high - low) or 0.5
    low, high = low - margin, high + margin
    height = row * (len(draws) + 1) + 18

    def x(at: float) -> str:
        return f"{left + (width - left) * (at - low) / (high - low):.1f}"

    y = row - 3
    parts = [
        f'<path d="M{x(ends[0])} {y}H{x(ends[1])}" stroke="#D55E00" stroke-width="2"/>',
        f'<path d="M{x(held)} {y - 6}l6 6l-6 6l-6 -6z" fill="#D55E00"/>',
        f'<path d="M{x(intact)} {y - 8}V{height - 18}" stroke="currentColor" stroke-dasharray="4 3"/>',
    ]
    words = [Markup('<text x="0" y="{}">{}</text>').format(y + 4, name)]
    for number, (kind, own) in enumerate(draws.items(), start=1):
        at = y + number * row
        colour = _CONTROLS[(number - 1) % len(_CONTROLS)]
        parts += [_dot(number, x(value), at, colour) for value in own]
        words.append(
            Markup('<text x="{}" y="{}" text-anchor="end">{}</text>').format(left - 10, at + 4, kind)
        )
    parts.append(f'<path d="M{left} {height - 14}H{width}" stroke="currentColor" opacity=".4"/>')
    parts.append(f'<text x="{x(held)}" y="{height - 2}" text-anchor="middle">{_short(held)}</text>')
    apart = abs(float(x(intact)) - float(x(held))) > 60
    parts.append(
        f'<text x="{x(intact)}" y="{height - 2}" text-anchor="middle">{_short(intact)}</text>'
        if apart
        else ""
    )
    return Markup(
        '<svg class="small strip" viewBox="0 0 {width} {height}" width="{width}" role="img"><title>{name}: dashed the '
        "intact model, the diamond the skill neurons held, dots each draw of the controls</title>{drawn}{words}</svg>"
    ).format(
        width=width, height=height, name=name, drawn=Markup("".join(parts)), words=Markup("").join(words)
    )


def _dot(kind: int, x: str, y: float, colour: str) -> str:
    """A circle, a square or a triangle, by the kind's number."""
    if kind % 3 == 1:
        return f'<circle cx="{x}" cy="{y}" r="3" fill="{colour}" opacity=".7"/>'
    if kind % 3 == 2:
        return f'<rect x="{float(x) - 2.7:.1f}" y="{y - 2.7}" width="5.4" height="5.4" fill="{colour}" opacity=".7"/>'
    return f'<path d="M{x} {y + 3.4}l-3.6 -6.4h7.2z" fill="{colour}" opacity=".7"/>'


def _short(value: float) -> str:
    return f"{value:.2f}"


def densities(
    activations: NDArray[np.floating], labels: NDArray[np.integer], baseline: float, names: tuple[str, str]
) -> Markup:
    """Activations of examples of label 0 and of label 1 as two densities, and the baseline as a line.

    Args:
        names: Of label 0 and of label 1.
    """
    width, height, foot, head = 360, 130, 22, 20
    finite = activations[np.isfinite(activations)]
    low, high = (float(finite.min()), float(finite.max())) if len(finite) else (0.0, 1.0)
    low, high = min(low, baseline), max(high, baseline)
    margin = 0.06 * (high - low) or 0.5
    low, high = low - margin, high + margin
    grid = np.linspace(low, high, 90)
    curves = {label: _density(finite_of(activations[labels == label]), grid) for label in (0, 1)}
    top = max(float(curve.max()) for curve in curves.values()) or 1.0

    def x(at: float) -> float:
        return width * (at - low) / (high - low)

    parts = []
    for label, curve in curves.items():
        colour, dashes, _ = _DRAWN[label]
        points = " ".join(
            f"{x(at):.1f},{head + (height - head) * (1 - y / top):.1f}"
            for at, y in zip(grid, curve, strict=True)
        )
        parts.append(
            f'<polygon points="0,{height} {points} {width},{height}" fill="{colour}" opacity=".18"/>'
            f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="2" stroke-dasharray="{dashes}"/>'
        )
    at = x(baseline)
    parts.append(f'<path d="M{at:.1f} {head}V{height}" stroke="currentColor" stroke-dasharray="2 2"/>')
    parts.append(f'<path d="M0 {height}H{width}" stroke="currentColor" opacity=".4"/>')
    ends = f'<text x="0" y="{height + 14}">{low:.3g}</text>'
    ends += f'<text x="{width}" y="{height + 14}" text-anchor="end">{high:.3g}</text>'
    anchor = "start" if at < width / 2 else "end"
    ends += (
        f'<text x="{at:.1f}" y="{height + 14}" text-anchor="middle">baseline {baseline:.3g}</text>'
        if (0.2 * width < at < 0.8 * width)
        else f'<text x="{at:.1f}" y="{head - 6}" text-anchor="{anchor}">baseline {baseline:.3g}</text>'
    )
    words = Markup("activation at the prompt: {} {} (green), {} {} (pink)").format(
        names[1], _DRAWN[1][2], names[0], _DRAWN[0][2]
    )
    drawn = "".join(parts) + ends  # numbers alone
    return Markup(
        f'<svg class="small" viewBox="0 0 {width} {height + foot}" width="{width}" role="img">'
        "<title>{words}</title>{drawn}</svg><p class=note>{words}</p>"
    ).format(words=words, drawn=Markup(drawn))


def finite_of(values: NDArray[np.floating]) -> NDArray[np.floating]:
    """Those that are finite."""
    return values[np.isfinite(values)]


def _density(values: NDArray[np.floating], grid: NDArray[np.floating]) -> NDArray[np.floating]:
    """Gaussian kernels of Silverman's width, at least a fiftieth of the axis."""
    if not len(values):
        return np.zeros_like(grid)
    spread = float(values.std()) * (4 / (3 * len(values))) ** 0.2
    width = max(spread, (grid[-1] - grid[0]) / 50)
    return np.exp(-0.5 * ((grid[:, None] - values[None]) / width) ** 2).sum(1) / (len(values) * width)
