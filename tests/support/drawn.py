"""Outcomes and scores of random numbers, and predictivity as a slow loop over them."""

import itertools

import torch

import tl_skillneurons as skn
from tl_skillneurons.scores.outcomes import RuleOutcomes, pack
from tl_skillneurons.stats.units import Units

N_SELECT = 12


def scores(n_prompts=2, n_layers=2, n_positions=3, d_mlp=7, seed=0, correct=None, **changes):
    generator = torch.Generator().manual_seed(seed)
    shape = (n_prompts, n_layers, n_positions, d_mlp)
    if correct is None:
        correct = torch.randint(0, N_SELECT + 1, shape, generator=generator)
    settings = {
        "baseline": torch.randn(correct.shape, generator=generator, dtype=torch.float64),
        "std": torch.rand(correct.shape, generator=generator),
        "mean_abs": torch.rand(correct.shape, generator=generator),
        "n_baseline": 30,
        "n_select": N_SELECT,
        "class_counts": (5, 7),
        "provenance": {
            "model": {"name": "tiny"},
            "task": {"name": "toy"},
            "prompts": [{"seed": seed}] * n_prompts,
        },
    }
    return skn.NeuronScores(correct=correct, **{**settings, **changes})


def random_outcomes(n_prompts=2, n=24, n_layers=2, n_positions=3, d_mlp=13, seed=0, share=0.4):
    generator = torch.Generator().manual_seed(seed)
    above = torch.rand(n_prompts, n, n_layers, n_positions, d_mlp, generator=generator) < share
    labels = torch.tensor([0, 1] * (n // 2))
    return above, RuleOutcomes(pack(above), labels, d_mlp)


def grouped_outcomes(n_units, size, seed, d_mlp=50):
    """One label per group, activations that a group shares and that have nothing to do with the labels."""
    generator = torch.Generator().manual_seed(seed)
    groups = torch.arange(n_units).repeat_interleave(size)
    labels = (torch.arange(n_units) % 2)[torch.randperm(n_units, generator=generator)][groups]
    shared = torch.randn(n_units, 1, 1, d_mlp, generator=generator)[groups]
    acts = shared + 0.3 * torch.randn(len(groups), 1, 1, d_mlp, generator=generator)
    units = Units.of([groups.tolist()], what="group")
    return RuleOutcomes(pack(acts > acts.mean(0))[None], labels, d_mlp, units=units)


def slow_predictivity(above, labels, aggregate="mean"):
    """``[scope, layer, neuron]`` of the paper's formula, a neuron at a time."""
    n_prompts, n, n_layers, n_positions, d_mlp = above.shape
    each = torch.zeros(n_prompts + 1, n_layers, d_mlp, dtype=torch.float64)
    for layer, neuron in itertools.product(range(n_layers), range(d_mlp)):
        for prompt in range(n_prompts):
            best = 0
            for position in range(n_positions):
                answers = above[prompt, :, layer, position, neuron]
                right = sum(int(a) == int(y) for a, y in zip(answers, labels, strict=True))
                best = max(best, right, n - right)
            each[prompt, layer, neuron] = best / n
        of_prompts = each[:n_prompts, layer, neuron]
        each[-1, layer, neuron] = of_prompts.mean() if aggregate == "mean" else of_prompts.min()
    return each


def answered(above, labels):
    """Scores whose single answers are ``above`` [example, layer, neuron], with a threshold of zero."""
    n, d_mlp = len(labels), above.shape[-1]
    right = (above == (labels[:, None, None] == 1)).sum(0)[None, :, None]
    filled = torch.zeros(right.shape, dtype=torch.float64)
    counts = tuple(torch.bincount(labels).tolist())
    outcomes = RuleOutcomes(pack(above[None, :, :, None, :]), labels, d_mlp)
    return skn.NeuronScores(filled, filled.float(), filled.float(), right, n, n, counts, outcomes=outcomes)
