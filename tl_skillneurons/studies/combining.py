"""How much of the skill do ``k`` neurons carry? A vote and a probe over the best, beside the prompt's own answers.

The neurons are ranked, their positions and directions chosen, on ``select``; thresholds come from ``baseline``;
everything is measured on ``report``. The *vote* of ``k`` neurons is the label that most of their rules say (an even
split goes to the best one). The *probe* is TransformerLens' logistic regression on their activations at those
positions, fitted on ``select``. Beside both: as many random neurons of the same layers, with positions and directions
chosen in the same way, so that what a crowd of any neurons can do is not taken for skill.

What it does not show: that the model reads the neurons. It shows what is in them.
"""

from collections.abc import Sequence
from typing import Any

import pandas as pd
import torch
from jaxtyping import Int
from torch import Tensor
from transformer_lens.tools.analysis.sparse_probing import fit_sparse_probe

from tl_skillneurons._checks import require_int
from tl_skillneurons.models.input_cache import InputCache
from tl_skillneurons.prompts.prompted_model import PromptedModel
from tl_skillneurons.prompts.run import prompt_record, require_sees_text
from tl_skillneurons.prompts.soft_prompt import SoftPrompt
from tl_skillneurons.scores.neuron_scores import NeuronScores, best_positions
from tl_skillneurons.scores.rules import chosen_activations
from tl_skillneurons.stats.chance import clopper_pearson
from tl_skillneurons.stats.intervals import mcnemar
from tl_skillneurons.tasks.task import Task


def combine_neurons(
    model: Any,
    prompt: SoftPrompt,
    task: Task,
    scores: NeuronScores,
    sizes: Sequence[int] = (1, 2, 4, 8, 16, 32, 64),
    *,
    n_random: int = 5,
    seed: int = 0,
    batch_size: int | None = None,
    batch_tokens: int | None = None,
    max_length: int | None = None,
    cache: InputCache | None = None,
) -> pd.DataFrame:
    """Accuracy on ``report`` of the best ``k`` neurons of the model together, for each ``k`` of ``sizes``.

    Args:
        scores: Of this prompt alone, on this task.
        n_random: Random sets, of the layers of the best.

    Returns:
        One row per size: ``k``; ``vote`` and ``probe`` with exact 95 % intervals (``vote_low``, ...), medians of the
        random sets (``random_vote``, ``random_probe``) and their ranges' ends; the prompt's own accuracy ``prompt``,
        and the p-value of McNemar's test of vote and probe against it (``vote_p``, ``probe_p``).

    Raises:
        ValueError: When the scores are of another prompt or of several, or a size is more than there are neurons.
    """
    if scores.provenance.get("prompts", [None]) != [prompt_record(prompt)]:
        raise ValueError("give the scores of this prompt alone: score_neurons(model, prompt, task)")
    for size in sizes:
        require_int(size, "sizes")
    if not len(sizes):
        raise ValueError("sizes must hold at least one number of neurons, got none")
    require_int(n_random, "n_random")
    best = scores.top(max(sizes), per="model")
    sets = [best, *(best.random_like(seed + draw) for draw in range(n_random))]
    prompted = PromptedModel(model, prompt, task.label_words, max_length=max_length, cache=cache)
    require_sees_text(prompted, scores.positions)
    options = {"positions": scores.positions, "batch_size": batch_size, "batch_tokens": batch_tokens}
    layer = torch.cat([one.layer for one in sets])
    index = torch.cat([one.index for one in sets])
    _, where, sign = best_positions(scores.correct, scores.n_select)
    position = where[0, layer, index]
    limits = scores.baseline[0, layer, position, index]
    direction = sign[0, layer, index]
    acts, labels = {}, {}
    for role in ("select", "report"):
        texts = list(task.split(role)["text"])
        acts[role] = chosen_activations(prompted, texts, layer, position, index, options)
        labels[role] = torch.tensor(task.split(role)["label"])
    answer_options = {"batch_size": batch_size, "batch_tokens": batch_tokens}
    with torch.no_grad():
        logits = prompted.class_logits(list(task.split("report")["text"]), **answer_options)
    own = logits.argmax(1).cpu() == labels["report"]
    said = torch.where(direction > 0, 1, -1) * torch.where(acts["report"].double() > limits, 1, -1)
    rows = []
    for size in sizes:
        vote, probe = [], []
        for number in range(len(sets)):
            first = number * len(best)
            chosen = slice(first, first + size)
            vote.append(majority(said[:, chosen]) == labels["report"])
            probe.append(_probe(acts, labels, chosen, seed) == labels["report"])
        row: dict[str, Any] = {"k": size}
        for name, right in (("vote", vote), ("probe", probe)):
            hits, n = int(right[0].sum()), len(own)
            low, high = clopper_pearson(hits, n)
            random = torch.stack([one.double().mean() for one in right[1:]])
            row |= {name: hits / n, f"{name}_low": low, f"{name}_high": high}
            row |= {f"random_{name}": float(random.median()), f"random_{name}_max": float(random.max())}
            row[f"{name}_p"] = mcnemar(own, right[0]).p_value
        rows.append({**row, "prompt": float(own.double().mean())})
    return pd.DataFrame(rows).assign(role="report", n_examples=len(own))


def majority(said: Int[Tensor, "example neuron"]) -> Int[Tensor, " example"]:
    """The label that most neurons say (+1 for label 1, -1 for label 0); where they are even, the first one's."""
    total = said.sum(1)
    return (torch.where(total == 0, said[:, 0], total) > 0).long()


def _probe(
    acts: dict[str, Tensor], labels: dict[str, Tensor], chosen: slice, seed: int
) -> Int[Tensor, " example"]:
    """What a logistic regression on these columns, fitted on ``select``, says on ``report``."""
    features = acts["select"][:, chosen].float()
    fitted = fit_sparse_probe(
        features,
        labels["select"],
        k=features.shape[1],
        test_fraction=0.1,  # its own held-out part, which is not read here
        preprocess="standardize",
        seed=seed,
    )
    other = acts["report"][:, chosen].double()[:, fitted.selected_features]
    scaled = (other - fitted.preprocess_mean) / fitted.preprocess_scale
    return (scaled @ fitted.coefficients + fitted.intercept > 0).long()
