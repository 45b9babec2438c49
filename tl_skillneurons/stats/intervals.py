"""How sure a rate or a mean is; no model is run.

**Exact interval** of a rate (Clopper and Pearson, 1934). For ``h`` hits of ``n`` the ends ``low`` and ``high`` solve
``P(Binomial(n, low) >= h) = (1 - confidence) / 2`` and ``P(Binomial(n, high) <= h) = (1 - confidence) / 2``.

**Bootstrap** (percentile; Efron, 1979). Examples are drawn with replacement, and the quantiles of the drawn means
bound the interval. It is about other examples of the same kind, not about other prompts or seeds, and is too narrow
for a few dozen examples or less. It takes examples to be independent: those that belong together must be drawn together
(:meth:`Units.weights <tl_skillneurons.stats.units.Units.weights>`).

What they do not show: anything about examples that chose what is measured. For a neuron picked on the same examples
every interval here is too high.
"""

import torch
from einops import rearrange
from jaxtyping import Float
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
    means = torch.empty(len(rows), n_draws, dtype=torch.float64)
    for start in range(0, n_draws, chunk := max(1, _MOST_NUMBERS // n)):
        size = min(chunk, n_draws - start)
        drawn = torch.randint(n, (size, n), generator=generator)
        counts = torch.zeros(size, n, dtype=torch.float64)
        counts.scatter_add_(1, drawn, torch.ones(size, n, dtype=torch.float64))
        means[:, start : start + size] = rows @ counts.T / n
    low, high = means.quantile(torch.tensor([tail, 1 - tail], dtype=torch.float64), dim=1)
    return low.reshape(values.shape[:-1]), high.reshape(values.shape[:-1])


def _lower_end(hits: int, n: int, tail: float) -> float:
    """The rate at which ``hits`` or more of ``n`` have probability ``tail``: a quantile of the beta law."""
    return 0.0 if hits == 0 else float(betaincinv(hits, n - hits + 1, tail))
