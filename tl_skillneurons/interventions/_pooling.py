"""Numbers over several prompts, and how unusual one is among controls. Tensors in, numbers out.

**Two-level bootstrap**. Every prompt answers the same examples, so prompts and examples are crossed: both are
drawn with replacement, each on its own, and the quantiles of the drawn means bound the interval (the pigeonhole
bootstrap of Owen, 2007, which errs to the wide side). It is about other prompts and other examples of these kinds;
two or three prompts say little about others.

**Two-sided rank p-value**. With ``m`` the median of all values, the observed ``x`` and the draws together,
``p = (1 + draws with |draw - m| >= |x - m|) / (1 + draws)``: exact where ``x`` is one more draw, and as small as
``1 / (1 + draws)`` on either side.
"""

import math
from collections.abc import Sequence

import torch
from einops import einsum, rearrange
from jaxtyping import Float, Int
from torch import Tensor

from tl_skillneurons._checks import require_int
from tl_skillneurons.stats.metrics import answer_confidence, calibration_error, per_example, value_of
from tl_skillneurons.stats.ranks import median

_MOST_NUMBERS = 2**24  # of one chunk of rows: 128 MB in float64


def pooled_value(
    metric: str, outputs: Float[Tensor, "prompt example output"], labels: Int[Tensor, " example"] | None
) -> float:
    """A metric's mean over prompts; equal numbers of right answers give equal values, however they are spread."""
    if metric == "calibration_error":
        return math.fsum(value_of(metric, one, labels) for one in outputs) / len(outputs)
    return float(each_prompts_examples(metric, outputs, labels).mean())


def each_prompts_examples(
    metric: str, outputs: Float[Tensor, "prompt example output"], labels: Int[Tensor, " example"] | None
) -> Float[Tensor, "prompt example"]:
    """A metric's value for each prompt and example."""
    return torch.stack([per_example(metric, one, labels) for one in outputs])


def two_level_bootstrap(
    values: Float[Tensor, "*row prompt example"],
    *,
    n_draws: int = 2000,
    confidence: float = 0.95,
    seed: int = 0,
) -> tuple[Float[Tensor, "*row"], Float[Tensor, "*row"]]:
    """The interval ``(low, high)`` of each row's mean over prompts and examples, both resampled; float64.

    All rows see the same resampled prompts and examples.

    Raises:
        ValueError: Without prompts or examples, or for ``confidence`` outside (0, 1).
    """
    *rows, n_prompts, n_examples = values.shape
    require_int(n_draws, "n_draws")
    if not n_prompts or not n_examples:
        raise ValueError(
            f"values must hold at least one prompt and one example, got {n_prompts} and {n_examples}"
        )
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must be between 0 and 1, both excluded, got {confidence}")
    flat = values.detach().double().cpu().reshape(-1, n_prompts, n_examples)
    generator = torch.Generator().manual_seed(seed)
    of_prompts = _counts(n_draws, n_prompts, generator)
    of_examples = _counts(n_draws, n_examples, generator)
    means = torch.empty(len(flat), n_draws, dtype=torch.float64)
    for start in range(0, len(flat), size := max(1, _MOST_NUMBERS // (n_prompts * n_draws))):
        by_prompt = einsum(
            flat[start : start + size], of_examples, "row prompt example, draw example -> row prompt draw"
        )
        means[start : start + size] = einsum(
            by_prompt, of_prompts, "row prompt draw, draw prompt -> row draw"
        )
    low, high = _ends(means / (n_prompts * n_examples), confidence)
    return low.reshape(rows), high.reshape(rows)


def two_level_calibration(
    before: Float[Tensor, "prompt example output"],
    after: Float[Tensor, "prompt example output"],
    labels: Int[Tensor, " example"],
    *,
    n_draws: int,
    confidence: float,
    seed: int,
) -> tuple[float, float]:
    """The interval of the change of the mean calibration error, prompts and examples resampled."""
    generator = torch.Generator().manual_seed(seed)
    pairs = [
        [answer_confidence(outputs[k], labels) for outputs in (after, before)] for k in range(len(after))
    ]
    changes = torch.empty(n_draws, dtype=torch.float64)
    for draw in range(n_draws):
        prompts = torch.randint(len(after), (len(after),), generator=generator).tolist()
        rows = torch.randint(len(labels), (len(labels),), generator=generator)
        drawn = [
            [calibration_error(*(v[rows] for v in one)) for one in pair]
            for pair in (pairs[k] for k in prompts)
        ]
        changes[draw] = sum(now - was for now, was in drawn) / len(drawn)
    low, high = _ends(rearrange(changes, "draw -> 1 draw"), confidence)
    return float(low), float(high)


def two_sided_p(observed: float, draws: Sequence[float]) -> float:
    """The share of values, ``observed`` counting as one, that are as far from the middle of all; in (0, 1].

    Raises:
        ValueError: When there are no draws, or where a number is NaN.
    """
    values = torch.tensor([observed, *draws], dtype=torch.float64)
    if len(values) == 1:
        raise ValueError("draws must hold at least one number, got none; draw random controls first")
    if values.isnan().any():
        raise ValueError(f"observed and draws must be numbers, got observed = {observed} and a NaN")
    distance = (values - median(values)).abs()
    # what rounding makes of equal distances must not decide
    return int((distance >= distance[0] * (1 - 1e-9)).sum()) / len(values)


def _counts(n_draws: int, n: int, generator: torch.Generator) -> Float[Tensor, "draw item"]:
    """How often each of ``n`` items is drawn, with replacement, in each draw."""
    drawn = torch.randint(n, (n_draws, n), generator=generator)
    return torch.zeros(n_draws, n, dtype=torch.float64).scatter_add_(
        1, drawn, torch.ones(n_draws, n, dtype=torch.float64)
    )


def _ends(
    means: Float[Tensor, "row draw"], confidence: float
) -> tuple[Float[Tensor, " row"], Float[Tensor, " row"]]:
    tail = (1 - confidence) / 2
    low, high = means.quantile(torch.tensor([tail, 1 - tail], dtype=torch.float64), dim=1)
    return low, high
