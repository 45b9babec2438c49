"""Which of two ways to steer changes more at the same perplexity? Numbers in, numbers out; no model is run.

Each way is a path: from what is written untouched over its doses, the weaker before the stronger, with at every point
the mean cross-entropy over texts ``c`` and the mean of a measure ``m``. Between two doses both go straight. At a level
``c*`` a path has the value of the first place at which it comes to ``c*``, and none where it never does::

    m(c*) = m[k] + (c* - c[k]) / (c[k + 1] - c[k]) * (m[k + 1] - m[k])        the first k with c* between c[k], c[k + 1]
    difference = (m_neurons(c*) - m_untouched) - (m_direction(c*) - m_untouched)

The levels are the cross-entropies of the doses of either that change what is written, so one of the two values is
always measured and the other lies between two doses. Texts are drawn again for both together (a bootstrap by units),
and the level of every draw is that of its own texts. A draw in which the other path doesn't come to the level counts as
the worst on either side: with more than a few of them there is no interval. The row "mean" is the mean over all levels
that can be compared.

What it does not show: anything beyond what both reach; that texts of equal perplexity are equally good (repetition and
empty answers stand beside it); each level's interval stands alone.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tl_skillneurons.stats.intervals import bootstrap_counts, bootstrap_ends
from tl_skillneurons.stats.units import Units

PRICE = "cross_entropy"
N_DRAWS = 2000
_LEAVES = {"both": "both leave", "neurons": "the neurons leave", "direction": "the direction leaves"}
Values = Mapping[str, Float[Tensor, " text"]]


@dataclass(frozen=True, eq=False)
class Path:
    """One way to steer, in one direction.

    Attributes:
        doses: The weaker before the stronger, as they are called in a table.
        values: Of what is written untouched, then at each dose, every measure of every text.
        collapse: At each dose, whether it leaves the range of its controls.
    """

    doses: Sequence[float]
    values: Sequence[Values]
    collapse: Sequence[bool]

    def means(self, measure: str, counts: Float[Tensor, "draw text"]) -> Float[Tensor, "draw point"]:
        """The mean of a measure at every point, of each draw of texts."""
        of_texts = torch.stack([one[measure].double() for one in self.values])
        return counts @ of_texts.T / counts.sum(1, keepdim=True)


def first_at(
    price: Float[Tensor, "draw point"], level: Float[Tensor, " draw"]
) -> tuple[Int[Tensor, " draw"], Float[Tensor, " draw"]]:
    """The first place of each path at which its price is ``level``: the point before it, and how far it is from there
    to the next, from 0 to 1; -1 and NaN where the path never comes to it.

    Example:
        >>> first_at(torch.tensor([[1.0, 3.0, 2.0]]), torch.tensor([2.5]))
        (tensor([0]), tensor([0.7500]))
        >>> first_at(torch.tensor([[1.0, 3.0, 2.0]]), torch.tensor([4.0]))
        (tensor([-1]), tensor([nan]))
    """
    before = torch.full(level.shape, -1)
    share = torch.full_like(level, math.nan)
    for k in range(price.shape[1] - 1):
        one, other = price[:, k], price[:, k + 1]
        here = (before < 0) & (torch.minimum(one, other) <= level) & (level <= torch.maximum(one, other))
        way = torch.where(other == one, 1.0, other - one)  # of a flat piece its beginning
        before = torch.where(here, k, before)
        share = torch.where(here, (level - one) / way, share)
    return before, share


def value_at(
    values: Float[Tensor, "draw point"], before: Int[Tensor, " draw"], share: Float[Tensor, " draw"]
) -> Float[Tensor, " draw"]:
    """What a path has at places that :func:`first_at` found.

    Example:
        >>> value_at(torch.tensor([[0.0, 4.0, 1.0]]), *first_at(torch.tensor([[1.0, 3.0, 2.0]]), torch.tensor([2.5])))
        tensor([3.])
    """
    k = before.clamp(min=0)[:, None]
    one, other = values.gather(1, k)[:, 0], values.gather(1, k + 1)[:, 0]
    return one + share * (other - one)


def compare_paths(
    neurons: Path, direction: Path, measures: Mapping[str, int], units: Units, *, seed: int = 0
) -> list[dict[str, Any]]:
    """A row per level and measure, and one for the mean over the levels that can be compared.

    Args:
        neurons, direction: From the same texts, untouched alike.
        measures: Which, by 1 where more of it was wanted, -1 where less was, 0 where nobody said.

    Returns:
        Rows with ``at`` ("neurons" or "direction": whose ``dose`` sets the level; or "mean"), the ``perplexity``, the
        changes from untouched of ``neurons`` and ``direction``, their ``difference``, 95 % intervals of all three
        (``..._low``, ``..._high``), who left the range of its controls (``collapse``), and a ``verdict``.
    """
    generator = torch.Generator().manual_seed(seed)
    n = units.n_examples
    drawn = bootstrap_counts(n, N_DRAWS, generator, units=units)
    counts = torch.cat(
        [torch.ones(1, n, dtype=torch.float64), drawn]
    )  # the texts as they are, then the draws
    paths = {"neurons": neurons, "direction": direction}
    prices = {name: path.means(PRICE, counts) for name, path in paths.items()}
    rows: list[dict[str, Any]] = []
    for measure, wanted in measures.items():
        means = {name: path.means(measure, counts) for name, path in paths.items()}
        both: list[dict[str, Tensor]] = []
        fell: set[str] = set()
        for at, other in (("neurons", "direction"), ("direction", "neurons")):
            for number, dose in enumerate(paths[at].doses):
                if torch.equal(paths[at].values[number + 1][PRICE], paths[at].values[0][PRICE]):
                    continue  # it writes what is written untouched
                level = prices[at][:, number + 1]
                before, share = first_at(prices[other], level)
                changes = {
                    at: means[at][:, number + 1] - means[at][:, 0],
                    other: value_at(means[other], before, share) - means[other][:, 0],
                }
                place = int(before[0])
                collapsed = {at} if paths[at].collapse[number] else set()
                if place >= 0 and any(paths[other].collapse[max(0, place - 1) : place + 1]):
                    collapsed |= {other}
                reason = None
                if place < 0:
                    reason = _reach(other, prices[other][0])
                head = {"measure": measure, "at": at, "dose": dose, "perplexity": _exp(level[0])}
                rows.append(head | _told(changes, wanted, collapsed, reason, units))
                if not math.isnan(rows[-1]["difference_low"]):
                    both.append(changes)
                    fell |= collapsed
        nowhere = None if both else "they come to no perplexity in common"
        mean = {name: torch.stack([one[name] for one in both]).mean(0) for name in paths} if both else {}
        head = {"measure": measure, "at": "mean", "dose": math.nan, "perplexity": math.nan}
        rows.append(head | _told(mean, wanted, fell, nowhere, units))
    return rows


def _told(
    changes: Mapping[str, Float[Tensor, " draw"]],
    wanted: int,
    collapsed: set[str],
    reason: str | None,
    units: Units,
) -> dict[str, Any]:
    """What a row says of two changes, of which the first number is of the texts as they are."""
    parts: dict[str, Tensor] = dict(changes)
    if len(parts) == 2:
        parts["difference"] = changes["neurons"] - changes["direction"]
    told: dict[str, Any] = {}
    missing = 0.0
    for name in ("neurons", "direction", "difference"):
        one = parts.get(name, torch.full((2,), math.nan, dtype=torch.float64))
        missing = max(missing, float(one[1:].isnan().double().mean()))
        low, high = interval(one[1:], units)
        told |= {name: float(one[0]), f"{name}_low": low, f"{name}_high": high}
    if reason is None and math.isnan(told["difference_low"]):
        reason = f"in {100 * missing:.2g} % of the draws of texts one doesn't come to the other's perplexity"
    who = "both" if len(collapsed) == 2 else next(iter(collapsed), "")
    said = verdict(told, wanted) if reason is None else f"not comparable: {reason}"
    if who and reason is None:
        said += f" ({_LEAVES[who]} the controls' range of perplexity)"
    return told | {"collapse": who, "verdict": said}


def interval(drawn: Float[Tensor, " draw"], units: Units) -> tuple[float, float]:
    """The 95 % interval of what was drawn, NaN where draws without a number may decide an end.

    Example:
        >>> interval(torch.full((100,), 0.5).double(), Units.single(10))
        (0.5, 0.5)
        >>> interval(torch.tensor([0.5] * 90 + [torch.nan] * 10).double(), Units.single(10))
        (nan, nan)
    """
    low, _ = bootstrap_ends(drawn.nan_to_num(nan=-math.inf)[None], 0.95, units)
    _, high = bootstrap_ends(drawn.nan_to_num(nan=math.inf)[None], 0.95, units)
    if not (low.isfinite().all() and high.isfinite().all()):
        return math.nan, math.nan
    return float(low), float(high)


def verdict(told: Mapping[str, float], wanted: int) -> str:
    """Which of two steers more, in words that say no more than the intervals do.

    One steers more where the interval of the difference leaves 0 out, and so does that of its own change, on the side
    that was wanted. Where nobody said which side is, it says whose value is higher.

    Example:
        >>> told = {"difference_low": 0.1, "difference_high": 0.3, "neurons_low": 0.2, "neurons_high": 0.4}
        >>> verdict(told | {"direction_low": -0.1, "direction_high": 0.2}, wanted=1)
        'the neurons steer more'
    """
    low, high = told["difference_low"], told["difference_high"]
    if not wanted:
        if low <= 0 <= high:
            return "can't be told apart"
        return "higher with the neurons" if low > 0 else "higher with the direction"
    steers = {
        name: told[f"{name}_low"] > 0 if wanted > 0 else told[f"{name}_high"] < 0
        for name in ("neurons", "direction")
    }
    if not any(steers.values()):
        return "neither is seen to steer"
    ahead = "neurons" if (low > 0 if wanted > 0 else high < 0) else "direction"
    if low <= 0 <= high or not steers[ahead]:
        return "can't be told apart"
    return "the neurons steer more" if ahead == "neurons" else "the direction steers more"


def _reach(name: str, price: Float[Tensor, " point"]) -> str:
    stays = "the neurons stay" if name == "neurons" else "the direction stays"
    return f"{stays} at perplexities of {_exp(price.min()):.4g} to {_exp(price.max()):.4g}"


def _exp(loss: Tensor) -> float:
    return math.exp(float(loss)) if float(loss) < 700 else math.inf
