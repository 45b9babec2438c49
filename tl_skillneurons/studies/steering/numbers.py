"""From what was written to numbers: how fluent it is, and where it stands among its controls; no model is run.

Cross-entropy of an answer of ``n`` tokens ``a`` after a text, under the untouched model, in nats per token; perplexity
is ``exp`` of its mean over texts::

    -1/n * sum over k of log p(a[k] | text, a[0], ..., a[k - 1])

A low one is no praise: a model that repeats itself is easily predicted. So repetition stands beside it, and collapse is
a perplexity outside the controls' range on either side.
"""

import math
from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from tl_skillneurons._checks import require_int
from tl_skillneurons.stats.hypothesis_tests import rank_p_value
from tl_skillneurons.stats.ranks import median


def answer_losses(
    logits: Float[Tensor, "batch pos d_vocab"],
    ids: Int[Tensor, "batch pos"],
    written: Bool[Tensor, "batch pos"],
) -> Float[Tensor, " batch"]:
    """Mean over the written tokens of each row of ``-log p(token | all before it)``, in nats, float64.

    Args:
        logits: At each position, for the token after it.
        written: Which tokens were written; at least one of each row, and never the first column.

    Example:
        >>> ids = torch.tensor([[0, 1]])
        >>> loss = answer_losses(torch.zeros(1, 2, 4), ids, torch.tensor([[False, True]]))
        >>> round(loss.item(), 4)  # log 4
        1.3863
    """
    rows, columns = written[:, 1:].nonzero(as_tuple=True)
    each = torch.nn.functional.cross_entropy(
        logits[rows, columns].float(), ids[rows, columns + 1], reduction="none"
    )
    total = torch.zeros(len(ids), dtype=torch.float64).index_add_(0, rows.cpu(), each.double().cpu())
    return total / written[:, 1:].sum(1).cpu()


def repeated_share(ids: Sequence[int], n: int = 3) -> float:
    """The share of runs of ``n`` tokens that stood there before; 0 of fewer than ``n`` tokens.

    Example:
        >>> repeated_share([1, 2, 1, 2, 1, 2], n=2), repeated_share([1, 2, 3])
        (0.6, 0.0)
    """
    require_int(n, "n")
    runs = [tuple(ids[k : k + n]) for k in range(len(ids) - n + 1)]
    return 0.0 if not runs else 1 - len(set(runs)) / len(runs)


def is_empty(answer: str) -> bool:
    """Whether nothing but white space was written."""
    return not answer.strip()


def perplexity(losses: Float[Tensor, " text"]) -> float:
    """``exp`` of the mean cross-entropy over texts.

    Example:
        >>> round(perplexity(torch.tensor([0.0, 2.0])), 4)  # exp(1)
        2.7183
    """
    mean = float(losses.double().mean())
    return math.exp(mean) if mean < 700 else math.inf


def outside(value: float, drawn: Sequence[float]) -> bool:
    """Whether a number leaves the range of the controls', on either side; what is NaN does.

    Example:
        >>> outside(3.0, [1.0, 2.0]), outside(1.5, [1.0, 2.0]), outside(0.5, [1.0, 2.0])
        (True, False, True)
    """
    margin = 1e-9 * max(map(abs, drawn))  # rounding must not decide
    return not min(drawn) - margin <= value <= max(drawn) + margin


def beside_controls(
    value: Float[Tensor, " text"], controls: Mapping[str, Float[Tensor, "draw text"]]
) -> dict[str, float]:
    """Of each kind of control the median, least and most of its draws' means, and the two-sided rank p of ``value``'s
    mean, with the smallest p that so many draws allow.

    Example:
        >>> found = beside_controls(torch.tensor([1.0]), {"random": torch.zeros(3, 1)})
        >>> found["p_random"], found["smallest_p_random"]
        (0.25, 0.25)
    """
    found: dict[str, float] = {}
    mean = float(value.double().mean())
    for kind, drawn in controls.items():
        means = drawn.double().mean(1)
        found |= {
            f"{kind}_median": float(median(means)),
            f"{kind}_min": float(means.min()),
            f"{kind}_max": float(means.max()),
            f"p_{kind}": rank_p_value(mean, means, "two-sided"),
            f"smallest_p_{kind}": 1 / (1 + len(means)),
        }
    return found
