"""Numbers over several prompts. Tensors in, numbers out.

**Two-level bootstrap**. Every prompt answers the same examples, so prompts and examples are crossed: both are
drawn with replacement, each on its own, and the quantiles of the drawn means bound the interval (the pigeonhole
bootstrap of Owen, 2007, which errs to the wide side). It is about other prompts and other examples of these kinds;
two or three prompts say little about others.
"""

import math

import torch
from einops import einsum, rearrange
from jaxtyping import Float, Int
from torch import Tensor

from tl_skillneurons._checks import require_int
from tl_skillneurons.stats.metrics import answer_confidence, calibration_error, per_example, value_of

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
