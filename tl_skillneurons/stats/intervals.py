"""How sure a rate or a mean is; no model is run.

**Exact interval** of a rate (Clopper and Pearson, 1934). For ``h`` hits of ``n`` the ends ``low`` and ``high`` solve
``P(Binomial(n, low) >= h) = (1 - confidence) / 2`` and ``P(Binomial(n, high) <= h) = (1 - confidence) / 2``.

**Bootstrap** (expanded percentile; Efron, 1979; Hesterberg, 2015, section 3.3). Examples are drawn with replacement,
and two quantiles of the drawn means bound the interval. Drawn means scatter less than they should by ``(n - 1) / n``,
and a few units don't tell their own scatter well, so the quantiles lie further out, where the interval of a normal mean
would have Student's width::

    tail = Phi(-sqrt(n / (n - 1)) * t_{n - 1}((1 + confidence) / 2))

which is the plain percentile for many. Values with a long tail need more on its side: where the interval that corrects
for their skewness (:mod:`~tl_skillneurons.stats.skewness`) reaches further, so does this one, though not beyond the
values themselves, nor, where these are but two (right or wrong), beyond the exact interval of so many units' rate: of
units that are right in part the mean scatters less. Examples that belong together are drawn together: with ``units`` it
is units that are drawn, the drawn mean is over their examples (:mod:`~tl_skillneurons.stats.units`), and ``n`` is how
many units of equal size would vary as much (Kish, 1965). It is about other examples of the same kind, not about other
prompts or seeds. Of fewer than :data:`FEWEST_UNITS` no two quantiles reach far enough: such an interval is too narrow;
and so is one of a few dozen numbers that are mostly equal.

**Two levels.** Every prompt answers the same examples, so prompts and units are crossed. The interval of the units is
the bootstrap's; that of the prompts is Student's, on the prompts' own values and one degree of freedom less than there
are prompts; their half-widths ``h`` on either side add in quadrature (Zou and Donner, 2008)::

    h = sqrt(h_units^2 + h_prompts^2)

What prompts and units do together is in both, so it errs to the wide side. It is about other prompts and other examples
of these kinds. With fewer than :data:`FEWEST_PROMPTS` prompts their scatter is hardly known: then units alone are
drawn, and the interval holds for these prompts alone, whatever its name.

**Ratios.** Of ``mean(part) / mean(gap)`` both means are of the same drawn units, so the gap's own uncertainty is in the
interval. Where the interval of the gap holds zero the ratio may be anything, and there is none.

What they do not show: anything about examples that chose what is measured. For a neuron picked on the same examples
every interval here is too high.
"""

import math

import torch
from einops import einsum, rearrange
from jaxtyping import Float, Int
from scipy.special import betaincinv, ndtr
from torch import Tensor

from tl_skillneurons._checks import require_int, require_open_unit, require_seed
from tl_skillneurons.stats.hypothesis_tests import sign_flip_test
from tl_skillneurons.stats.metrics import answer_confidence, calibration_gaps
from tl_skillneurons.stats.skewness import skewed_ends, student_quantile
from tl_skillneurons.stats.units import Units, require_units

FEWEST_PROMPTS = 3
"""With fewer prompts an interval is about these prompts alone."""

FEWEST_UNITS = 8
"""With fewer units a bootstrap interval is too narrow, whatever is done: it can't leave the range of a few values."""

_MOST_NUMBERS = 2**24  # of one chunk of draws: 128 MB in float64


def clopper_pearson(hits: int, n: int, *, confidence: float = 0.95) -> tuple[float, float]:
    """The exact binomial interval of a rate, e.g. of an accuracy: ``(low, high)``, both in [0, 1].

    It covers the true rate with probability ``confidence`` or more, whatever the rate. The examples must not
    have chosen what is measured: for a neuron picked on the same examples the interval is too high.

    Args:
        hits: How many of the ``n`` examples were right.

    Raises:
        ValueError: For ``n`` below 1, ``hits`` outside [0, ``n``] or ``confidence`` outside (0, 1).

    Example:
        >>> low, high = clopper_pearson(5, 10)
        >>> round(low, 4), round(high, 4)
        (0.1871, 0.8129)
    """
    n = require_int(n, "n")
    hits = require_int(hits, "hits", minimum=0)
    if hits > n:
        raise ValueError(f"hits must be at most n, got {hits} hits of {n}")
    tail = (1 - require_open_unit(confidence, "confidence")) / 2
    return _lower_end(hits, n, tail), 1 - _lower_end(n - hits, n, tail)


def bootstrap_mean(
    values: Float[Tensor, "*row example"],
    *,
    n_draws: int = 2000,
    confidence: float = 0.95,
    seed: int = 0,
    units: Units | None = None,
) -> tuple[Float[Tensor, "*row"], Float[Tensor, "*row"]]:
    """The bootstrap interval of each row's mean over examples: ``(low, high)``, float64.

    All rows see the same resampled examples, so a difference of rows is resampled in pairs.

    Args:
        units: Which examples belong together and are drawn together; each is its own without.

    Raises:
        ValueError: Without examples, for units of other examples, or for ``confidence`` outside (0, 1).

    Example:
        >>> low, high = bootstrap_mean(torch.tensor([0.0, 1.0] * 50))
        >>> round(low.item(), 1), round(high.item(), 1)
        (0.4, 0.6)
    """
    require_seed(seed)
    n = values.shape[-1]
    if n == 0:
        raise ValueError("values must hold at least one example, got none")
    rows = rearrange(values.detach().double().cpu(), "... example -> (...) example")
    generator = torch.Generator().manual_seed(seed)
    means = torch.empty(len(rows), require_int(n_draws, "n_draws"), dtype=torch.float64)
    for start in range(0, n_draws, chunk := max(1, _MOST_NUMBERS // n)):
        counts = bootstrap_counts(n, min(chunk, n_draws - start), generator, units=units)
        means[:, start : start + len(counts)] = rows @ counts.T / counts.sum(1)
    mean = rows.mean(1)
    pulls = (rows - mean[:, None]) / n
    units = require_units(n, units)
    low, high = bootstrap_ends(means, confidence, units, mean, pulls, _rate_ends(rows, units, confidence))
    low, high = low.maximum(rows.amin(1)), high.minimum(rows.amax(1))  # as far as such values can be
    return low.reshape(values.shape[:-1]), high.reshape(values.shape[:-1])


def bootstrap_counts(
    n_examples: int, n_draws: int, generator: torch.Generator, *, units: Units | None = None
) -> Float[Tensor, "draw example"]:
    """How often each example is drawn, in each of ``n_draws`` draws of as many units as there are.

    Raises:
        ValueError: For units of other examples.

    Example:
        >>> bootstrap_counts(3, 2, torch.Generator().manual_seed(0)).sum(1).tolist()
        [3.0, 3.0]
    """
    return require_units(n_examples, units).weights(n_draws, generator).double()


def bootstrap_ends(
    means: Float[Tensor, "row draw"],
    confidence: float,
    units: Units,
    estimate: Float[Tensor, " row"] | None = None,
    pulls: Float[Tensor, "row example"] | None = None,
    furthest: tuple[Float[Tensor, " row"], Float[Tensor, " row"]] | None = None,
) -> tuple[Float[Tensor, " row"], Float[Tensor, " row"]]:
    """The ends ``(low, high)`` of the intervals of what was drawn: its expanded quantiles; of a single unit, which has
    no scatter, the plain ones.

    Args:
        means: What each draw of the ``units`` gave.
        estimate, pulls: What all examples gave, and by how much each pulls it away from the others
            (:func:`~tl_skillneurons.stats.skewness.skewed_ends`), for a tail that is longer on one side.
        furthest: The lowest and the highest end that such a tail may move the interval to.

    Example:
        >>> low, high = bootstrap_ends(torch.linspace(0, 1, 1001).double()[None], 0.95, Units.single(10))
        >>> round(low.item(), 4), round(high.item(), 4)
        (0.0086, 0.9914)
    """
    tail = (1 - require_open_unit(confidence, "confidence")) / 2
    n = units.n_examples**2 / int(units.sizes.square().sum())
    if n > 1:
        tail = float(ndtr(-math.sqrt(n / (n - 1)) * student_quantile(n, confidence)))
    low, high = means.quantile(torch.tensor([tail, 1 - tail], dtype=torch.float64), dim=1)
    if n > 1 and estimate is not None and pulls is not None:
        skewed_low, skewed_high = skewed_ends(estimate, units.sums(pulls), n, confidence)
        if furthest is not None:
            skewed_low, skewed_high = skewed_low.maximum(furthest[0]), skewed_high.minimum(furthest[1])
        low, high = low.minimum(skewed_low), high.maximum(skewed_high)
    return low, high


def two_level_bootstrap(
    values: Float[Tensor, "*row prompt example"],
    *,
    n_draws: int = 2000,
    confidence: float = 0.95,
    seed: int = 0,
    units: Units | None = None,
) -> tuple[Float[Tensor, "*row"], Float[Tensor, "*row"]]:
    """The interval ``(low, high)`` of each row's mean over prompts and examples, for other prompts and units; float64.

    All rows see the same resampled examples. With fewer than :data:`FEWEST_PROMPTS` prompts it says nothing about
    others (:func:`interval_scope`).

    Raises:
        ValueError: Without prompts or examples, for units of other examples, or for ``confidence`` outside (0, 1).

    Example:
        >>> low, high = two_level_bootstrap(torch.tensor([[0.0, 1.0] * 50] * 3))
        >>> round(low.item(), 1), round(high.item(), 1)
        (0.4, 0.6)
    """
    require_seed(seed)
    n_prompts, n_examples = values.shape[-2:]
    if not n_prompts or not n_examples:
        raise ValueError(
            f"values must hold at least one prompt and one example, got {n_prompts} and {n_examples}"
        )
    of_prompts = values.detach().double().cpu().mean(-1)
    low, high = bootstrap_mean(
        values.double().mean(-2), n_draws=n_draws, confidence=confidence, seed=seed, units=units
    )
    return _with_prompts(of_prompts, low, high, confidence)


def _with_prompts(
    of_prompts: Float[Tensor, "*row prompt"],
    low: Float[Tensor, "*row"],
    high: Float[Tensor, "*row"],
    confidence: float,
) -> tuple[Float[Tensor, "*row"], Float[Tensor, "*row"]]:
    """The interval over units, widened by that of the prompts where these are enough to have one."""
    n = of_prompts.shape[-1]
    if n < FEWEST_PROMPTS:
        return low, high
    middle = of_prompts.mean(-1)
    width = student_quantile(n, confidence) * of_prompts.std(-1) / math.sqrt(n)
    down, up = ((middle - low).clamp(min=0), (high - middle).clamp(min=0))
    return middle - torch.hypot(down, width), middle + torch.hypot(up, width)


def two_level_calibration(
    before: Float[Tensor, "prompt example output"],
    after: Float[Tensor, "prompt example output"],
    labels: Int[Tensor, " example"],
    *,
    n_draws: int = 500,
    confidence: float = 0.95,
    seed: int = 0,
    units: Units | None = None,
) -> tuple[float, float]:
    """The interval of the change of the mean calibration error, for other units, and other prompts where enough were
    seen.

    Example:
        >>> logits, labels = torch.tensor([[[2.0, 0.0], [0.0, 2.0]]]), torch.tensor([0, 1])
        >>> two_level_calibration(logits, logits, labels)
        (0.0, 0.0)
    """
    require_seed(seed)
    units = require_units(len(labels), units)
    generator = torch.Generator().manual_seed(seed)
    now, was = (  # [prompt, example, bin]
        torch.stack([calibration_gaps(*answer_confidence(one, labels)) for one in outputs]).cpu()
        for outputs in (after, before)
    )

    def changes(counts: Float[Tensor, "draw example"]) -> Float[Tensor, "draw prompt"]:
        of_prompts = "prompt example bin, draw example -> draw prompt bin"
        errors = [einsum(gaps, counts, of_prompts).abs().sum(2) for gaps in (now, was)]
        return (errors[0] - errors[1]) / counts.sum(1, keepdim=True)

    drawn = changes(bootstrap_counts(len(labels), n_draws, generator, units=units)).mean(1)
    low, high = bootstrap_ends(rearrange(drawn, "draw -> 1 draw"), confidence, units)
    low, high = _with_prompts(changes(torch.ones(1, len(labels), dtype=torch.float64)), low, high, confidence)
    return float(low), float(high)


def interval_scope(n_prompts: int, units: Units) -> str:
    """What an interval over so many prompts and these units is about, in words.

    Example:
        >>> interval_scope(5, Units.of([[*range(26), 25]], what="word pair"))
        'other prompts (5 seen) and other examples (26 units: word pair)'
        >>> interval_scope(2, Units.single(40))
        'these 2 prompts alone (3 or more would speak for others) and other examples (40 units: text)'
        >>> interval_scope(3, Units.of([[0, 0, 1]], what="word pair"))
        'other prompts (3 seen) and other examples (2 units: word pair; too narrow, it takes 8 or more)'
    """
    prompts = f"other prompts ({n_prompts} seen)"
    if n_prompts < FEWEST_PROMPTS:
        these = "this prompt" if n_prompts == 1 else f"these {n_prompts} prompts"
        prompts = f"{these} alone ({FEWEST_PROMPTS} or more would speak for others)"
    narrow = f"; too narrow, it takes {FEWEST_UNITS} or more" if len(units) < FEWEST_UNITS else ""
    return f"{prompts} and other examples ({len(units)} units: {units.what}{narrow})"


def doubtful_gap(
    gap: Float[Tensor, " example"],
    *,
    n_draws: int = 2000,
    confidence: float = 0.95,
    seed: int = 0,
    units: Units | None = None,
) -> str | None:
    """Why fractions of a gap's mean mean nothing, in words; ``None`` where they do.

    Its interval holds zero, it is of a single unit, which has no scatter to make an interval of, or it isn't finite. An
    interval of fewer than :data:`FEWEST_UNITS` units is too narrow to say: there the exact sign-flip p decides, which
    of fewer than 6 units is never as small as 0.05.

    Example:
        >>> doubtful_gap(torch.tensor([1.0, -1.0] * 20))
        'the gap is 0, its 95 % interval -0.324 to 0.324 holds zero (40 units: text)'
        >>> doubtful_gap(torch.tensor([1.0, 2.0] * 20)) is None
        True
    """
    require_seed(seed)
    units = require_units(len(gap), units)
    if odd := int((~gap.isfinite()).sum()):
        return f"the gap is not finite for {odd} of {len(gap)} examples"
    if len(units) == 1:
        size = f"the gap is {float(gap.double().mean()):.3g}"
        return f"{size}, of a single unit ({units.what}), which can't tell it from zero"
    low, high = bootstrap_mean(gap, n_draws=n_draws, confidence=confidence, seed=seed, units=units)
    size = f"the gap is {float(gap.double().mean()):.3g}"
    if low <= 0 <= high:
        interval = f"its {100 * confidence:g} % interval {float(low):.3g} to {float(high):.3g} holds zero"
        return f"{size}, {interval} ({len(units)} units: {units.what})"
    if len(units) >= FEWEST_UNITS:
        return None
    p, alpha = float(sign_flip_test(gap, units=units)), 1 - confidence
    if p <= alpha + 1e-12:
        return None
    takes = math.ceil(1 - math.log2(alpha) - 1e-9)
    return (
        f"{size}, and of {len(units)} units ({units.what}) the exact sign-flip p is {p:.3g}: {alpha:.3g} takes "
        f"{takes} or more that agree"
    )


def ratio_interval(
    part: Float[Tensor, "*row example"],
    gap: Float[Tensor, " of_gap"],
    *,
    n_draws: int = 2000,
    confidence: float = 0.95,
    seed: int = 0,
    units: Units | None = None,
) -> tuple[Float[Tensor, "*row"], Float[Tensor, "*row"]]:
    """The interval ``(low, high)`` of each row's ``mean(part) / mean(gap)``, e.g. of a recovered fraction; float64.

    Args:
        part: What was recovered of each example; all rows and the gap see the same resampled units.
        gap: What could be recovered of each example.

    Raises:
        ValueError: Where the interval of the gap holds zero (:func:`doubtful_gap` asks first), for parts that are not
            finite, without examples, or for parts and units of other examples.

    Example:
        >>> gap = torch.linspace(1, 2, 40)
        >>> [round(end.item(), 3) for end in ratio_interval(gap / 2, gap)]
        [0.5, 0.5]
    """
    require_seed(seed)
    if part.shape[-1] != len(gap):
        raise ValueError(f"part and gap must be of the same examples, got {part.shape[-1]} and {len(gap)}")
    if reason := doubtful_gap(gap, n_draws=n_draws, confidence=confidence, seed=seed, units=units):
        raise ValueError(f"{reason}: a fraction of it may be anything; give the change itself")
    if not part.isfinite().all():
        odd = int((~part.isfinite()).sum())
        raise ValueError(f"part must be finite, got {odd} numbers of {part.numel()} that are not")
    generator = torch.Generator().manual_seed(seed)
    counts = bootstrap_counts(len(gap), require_int(n_draws, "n_draws"), generator, units=units)
    rows = rearrange(part.detach().double().cpu(), "... example -> (...) example")
    whole = gap.detach().double().cpu()
    ratios = rows @ counts.T / (counts @ whole)
    ratio = rows.sum(1) / whole.sum()
    pulls = (rows - ratio[:, None] * whole) / whole.sum()
    low, high = bootstrap_ends(ratios, confidence, require_units(len(gap), units), ratio, pulls)
    return low.reshape(part.shape[:-1]), high.reshape(part.shape[:-1])


def _rate_ends(
    rows: Float[Tensor, "row example"], units: Units, confidence: float
) -> tuple[Float[Tensor, " row"], Float[Tensor, " row"]]:
    """The exact interval of a rate for each row of two values, were each unit's examples all alike; else no ends."""
    least, most = rows.aminmax(dim=1)
    wide = most - least
    two = ((rows == least[:, None]) | (rows == most[:, None])).all(1) & (wide > 0)
    n = units.n_examples**2 / int(units.sizes.square().sum())
    hits = (n * torch.where(two, (rows.mean(1) - least) / wide, 0.5)).numpy()
    tail = (1 - confidence) / 2
    low = torch.from_numpy(betaincinv(hits, n - hits + 1, tail))
    high = torch.from_numpy(betaincinv(hits + 1, n - hits, 1 - tail))
    return (
        torch.where(two, least + wide * low, -torch.inf),
        torch.where(two, least + wide * high, torch.inf),
    )


def _lower_end(hits: int, n: int, tail: float) -> float:
    """The rate at which ``hits`` or more of ``n`` have probability ``tail``: a quantile of the beta law."""
    return 0.0 if hits == 0 else float(betaincinv(hits, n - hits + 1, tail))
