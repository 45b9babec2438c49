"""How high the best of many predictivities reaches by luck.

Numbers in, a number out; no model is run.

**Chance level.** The score of a rule with accuracy ``acc`` on ``n`` examples is ``max(acc, 1 - acc)``.
Suppose the labels have nothing to do with the activations: each is drawn on its own, the more frequent class
with probability ``p >= 1/2``. With ``X ~ Binomial(n, p)`` and ``k > n / 2``::

    P(score >= k/n) <= S(k) = P(X >= k) + P(X <= n - k)
    P(best of M independent scores >= k/n) = 1 - (1 - S(k))^M
    E[best] = 1/n * sum over k = 1..n of P(best >= k/n),      S(k) = 1 for k <= n / 2

``S(k)`` is exact for ``p = 1/2`` (every rule is then right with probability 1/2 on every example) and for a
rule that gives one label to all examples, whose accuracy is a class share. Every other rule stays below it: a
rule that says the more frequent class ``m`` times is right ``Binomial(m, p) + Binomial(n - m, 1 - p)`` times.
Say ``m >= (n - 1) / 2``, and let ``W`` be its hits on the other examples when one more answer is turned
towards the frequent class. That changes ``P(score >= k/n)`` by ``(2p - 1) * (P(W = k - 1) - P(W = n - k))``.
``W`` is a sum of pairs with chances ``p`` and ``1 - p``, which is symmetric and unimodal about its centre,
and of a remainder ``Binomial(r, p)``, which leans upwards; so of two values equally far from ``(n - 1) / 2``
the upper one, ``k - 1``, is at least as likely, and the change is never negative. Turning all answers one way
is the worst case; ``m < (n - 1) / 2`` is the same with the classes exchanged.

What it does not show: real neurons are correlated, and the best of correlated scores is lower; only a
permutation of the labels, kept the same for all neurons, keeps that. Labels permuted rather than drawn keep
their class counts, which widens the spread of a balanced rule's score by ``sqrt(n / (n - 1))``: by 0.5% at
100 examples, by 5% at 10.
"""

from dataclasses import dataclass

import torch
from scipy.stats import binom

from tl_skillneurons._checks import require_int, require_open_unit
from tl_skillneurons._results import html_of_fields


@dataclass(frozen=True)
class ChanceLevel:
    """Level of the best of ``n_scores`` scores when labels have nothing to do with the activations.

    The exact binomial level: an upper bound, since scores are treated as independent while real neurons are
    correlated (the best of correlated scores is lower).

    Attributes:
        expected: The best score's expectation, between 1/2 and 1.
        threshold: The smallest score that the best reaches with probability ``alpha`` at most. Above 1,
            namely ``(n_examples + 1) / n_examples``, where even a perfect score is more likely than that.
        alpha: The family-wise error rate of ``threshold``.
        n_examples: Examples that each score was measured on.
        n_scores: Scores that the best was chosen from.
        largest_class_share: Share of the more frequent class.
    """

    _repr_html_ = html_of_fields

    expected: float
    threshold: float
    alpha: float
    n_examples: int
    n_scores: int
    largest_class_share: float


def best_of_chance(
    n_examples: int, n_scores: int, *, alpha: float = 0.05, largest_class_share: float = 0.5
) -> ChanceLevel:
    """The score ``max(accuracy, 1 - accuracy)`` that the best of ``n_scores`` reaches by luck.

    The module's docstring has the equations.

    Args:
        n_examples: Examples that each score is measured on (role ``select``).
        n_scores: How many scores the best is chosen from: ``n_layers * d_mlp * n_positions``, times the
            prompts when it is the best of several prompts; 1 for the score of one neuron named beforehand.
        alpha: Probability at which the best score reaches the threshold by luck.
        largest_class_share: Share of the more frequent of the two labels among the examples.

    Returns:
        The expected best score and its threshold, both as shares of the examples.

    Raises:
        ValueError: For counts below 1, ``alpha`` outside (0, 1) or a share outside [0.5, 1].

    Example:
        >>> level = best_of_chance(200, 12 * 3072 * 127)  # RoBERTa-base, 200 examples
        >>> round(level.expected, 3), round(level.threshold, 3)
        (0.685, 0.705)
    """
    n = require_int(n_examples, "n_examples")
    n_scores = require_int(n_scores, "n_scores")
    require_open_unit(alpha, "alpha")
    if not 0.5 <= largest_class_share <= 1:
        raise ValueError(
            f"largest_class_share must be in [0.5, 1], got {largest_class_share}; "
            "give the share of the more frequent of two classes"
        )
    hits = torch.arange(n // 2 + 1, n + 1)
    law = binom(n, largest_class_share)
    at_least, at_most = (torch.from_numpy(tail) for tail in (law.logsf(hits - 1), law.logcdf(n - hits)))
    one = torch.logaddexp(at_least, at_most).clamp(max=0)  # log S(k)
    best = -torch.expm1(n_scores * torch.log1p(-one.exp()))  # P(best >= k/n)
    rare = hits[best <= alpha]
    return ChanceLevel(
        expected=(n // 2 + best.sum().item()) / n,
        threshold=(rare[0].item() if len(rare) else n + 1) / n,
        alpha=alpha,
        n_examples=n,
        n_scores=n_scores,
        largest_class_share=largest_class_share,
    )
