"""How alike two tasks are, by their scores or their prompts: each a plain function of the two."""

from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

from tl_skillneurons._widths import known
from tl_skillneurons.prompts.soft_prompt import SoftPrompt
from tl_skillneurons.scores.neuron_scores import NeuronScores
from tl_skillneurons.stats.ranks import spearman

Thing = TypeVar("Thing")


def each_pair(
    given: Sequence[Thing], likeness: Callable[[Thing, Thing], float]
) -> Float[Tensor, "source target"]:
    """The likeness of every two of them."""
    return torch.tensor([[likeness(a, b) for b in given] for a in given], dtype=torch.float64)


def skill_alike(one: NeuronScores, other: NeuronScores) -> float:
    """Spearman correlation of all neurons' predictivities."""
    return spearman(known(one.predictivity), known(other.predictivity))


def activated_alike(one: NeuronScores, other: NeuronScores) -> float:
    """Of the neurons whose mean activation is positive in either, the share for which it is in both."""
    a, b = (scores.baseline.mean(0) > 0 for scores in (one, other))
    return float((a & b).sum() / (a | b).sum().clamp(min=1))


def prompts_alike(one: SoftPrompt, other: SoftPrompt) -> float:
    """Mean cosine between the virtual tokens of one and of the other."""
    a, b = (torch.nn.functional.normalize(p.embedding.detach().double(), dim=1) for p in (one, other))
    return float((a @ b.T).mean())
