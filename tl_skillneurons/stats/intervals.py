"""How sure a rate or a mean is; no model is run.

**Exact interval** of a rate (Clopper and Pearson, 1934). For ``h`` hits of ``n`` the ends ``low`` and ``high`` solve
``P(Binomial(n, low) >= h) = (1 - confidence) / 2`` and ``P(Binomial(n, high) <= h) = (1 - confidence) / 2``.

**Bootstrap** (percentile; Efron, 1979). Examples are drawn with replacement, and the quantiles of the drawn means
bound the interval. It is about other examples of the same kind, not about other prompts or seeds, and is too narrow
for a few dozen examples or less. Examples that belong together are drawn together: see :func:`bootstrap_counts`.

What they do not show: anything about examples that chose what is measured. For a neuron picked on the same examples
every interval here is too high.
"""

from collections.abc import Iterator

import torch
from einops import rearrange
from jaxtyping import Float, Int
from scipy.special import betaincinv
from torch import Tensor

from tl_skillneurons._checks import require_int, require_open_unit

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
) -> tuple[Float[Tensor, "*row"], Float[Tensor, "*row"]]:
    """The percentile bootstrap interval of each row's mean over examples: ``(low, high)``, float64.

    All rows see the same resampled examples, so a difference of rows is resampled in pairs.

    Raises:
        ValueError: Without examples, or for ``confidence`` outside (0, 1).

    Example:
        >>> low, high = bootstrap_mean(torch.tensor([0.0, 1.0] * 50))
        >>> round(low.item(), 1), round(high.item(), 1)
        (0.4, 0.6)
    """
    n = values.shape[-1]
    require_int(n_draws, "n_draws")
    if n == 0:
        raise ValueError("values must hold at least one example, got none")
    tail = (1 - require_open_unit(confidence, "confidence")) / 2
    rows = rearrange(values.detach().double().cpu(), "... example -> (...) example")
    generator = torch.Generator().manual_seed(seed)
    chunks = _draw_counts(n, n_draws, generator, torch.float64)
    means = torch.cat([rows @ counts.T / n for counts in chunks], dim=1)
    low, high = means.quantile(torch.tensor([tail, 1 - tail], dtype=torch.float64), dim=1)
    return low.reshape(values.shape[:-1]), high.reshape(values.shape[:-1])


def bootstrap_counts(
    n_examples: int, n_draws: int, *, seed: int = 0, units: Int[Tensor, " example"] | None = None
) -> Int[Tensor, "draw example"]:
    """How often each example stands in each bootstrap draw; examples of one unit always stand together.

    Args:
        units: The number of the unit that each example belongs to (a pair, a group), from 0 without gaps or not;
            ``None`` draws every example for itself.

    Raises:
        ValueError: For counts below 1, or units that are not one per example.

    Example:
        >>> bootstrap_counts(4, 1000, units=torch.tensor([0, 0, 1, 1])).double().mean(0).round().tolist()
        [1.0, 1.0, 1.0, 1.0]
    """
    require_int(n_examples, "n_examples")
    require_int(n_draws, "n_draws")
    generator = torch.Generator().manual_seed(require_int(seed, "seed", minimum=0))
    if units is None:
        return torch.cat(list(_draw_counts(n_examples, n_draws, generator, torch.int64)))
    if len(units) != n_examples:
        raise ValueError(f"units must be one per example, got {len(units)} for {n_examples} examples")
    member = units.unique(return_inverse=True)[1]
    chunks = _draw_counts(int(member.max()) + 1, n_draws, generator, torch.int64)
    return torch.cat(list(chunks))[:, member]


def _draw_counts(
    n: int, n_draws: int, generator: torch.Generator, dtype: torch.dtype
) -> Iterator[Int[Tensor, "draw item"] | Float[Tensor, "draw item"]]:
    """How often each of ``n`` items comes up in ``n`` draws with replacement, a chunk of bootstrap draws at a time."""
    for start in range(0, n_draws, chunk := max(1, _MOST_NUMBERS // n)):
        size = min(chunk, n_draws - start)
        drawn = torch.randint(n, (size, n), generator=generator)
        yield torch.zeros(size, n, dtype=dtype).scatter_add_(1, drawn, torch.ones(size, n, dtype=dtype))


def _lower_end(hits: int, n: int, tail: float) -> float:
    """The rate at which ``hits`` or more of ``n`` have probability ``tail``: a quantile of the beta law."""
    return 0.0 if hits == 0 else float(betaincinv(hits, n - hits + 1, tail))
