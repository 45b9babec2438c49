"""Do the same neurons answer when the choices stand in another order?

The questions are the same, in the same roles (:func:`tl_skillneurons.tasks.multiple_choice` with another ``shuffle``);
only where each choice stands has changed. A neuron that reads what a choice says keeps its score, one that reads where
it stands doesn't. Agreement is compared with what permuted labels give (:mod:`~tl_skillneurons.scores.agreement`).

What it does not show: where the class *is* the place of the right choice (``by="letter"``), a neuron that writes "B"
keeps its score in every shuffle without reading the choices; there the control is a task whose choices are blank.
"""

from collections.abc import Sequence
from itertools import combinations

import pandas as pd
from transformer_lens.model_bridge import TransformerBridge

from tl_skillneurons._checks import require_seed, selection_size
from tl_skillneurons._widths import even
from tl_skillneurons.models.sites import neuron_shape
from tl_skillneurons.prompts.run import RunOptions
from tl_skillneurons.prompts.soft_prompt import SoftPrompt
from tl_skillneurons.scores.agreement import agreements
from tl_skillneurons.scores.predictivity import require_orders, score_classes
from tl_skillneurons.stats.hypothesis_tests import require_draws
from tl_skillneurons.tasks.task import Task


def compare_shuffles(
    model: TransformerBridge,
    prompts: SoftPrompt | Sequence[SoftPrompt] | None,
    tasks: Sequence[Task],
    *,
    positions: str = "prompt",
    amount: float | int = 0.02,
    n_permutations: int = 99,
    seed: int = 0,
    max_length: int | None = None,
    run: RunOptions = RunOptions(),
) -> pd.DataFrame:
    """How far every neuron's scores agree between every two shuffles of one multiple-choice task.

    Args:
        prompts: The same for all shuffles; ``None`` reads the bare text.
        tasks: Shuffles of one task: at least two.
        positions: Where neurons are read, as for :func:`~tl_skillneurons.score_neurons`.
        amount: The tops that are compared, as a share of each layer or a count.
        n_permutations: Of the labels, for what agreement luck gives; at least 19.
        seed: Of the permutations.
        max_length: Longest sequence in tokens; by default what the prompts were tuned with.

    Returns:
        A row for each class (its scores against the rest; of two classes one row) and every two shuffles: ``class``,
        ``one`` and ``other`` (their places in ``tasks``), Spearman's correlation of their predictivities over all
        layers (``spearman``), the middle 95 % of it under permuted labels (``null_low``, ``null_high``), its two-sided
        ``p_value``; ``n_shared`` neurons of the tops of ``n_top`` a layer, and how often permuted labels share as many
        (``p_shared``).

    Raises:
        ValueError: For a single task, or tasks that are no shuffles of one.

    Example:
        >>> tasks = [skn.tasks.multiple_choice(rows, by="both", shuffle=shuffle) for shuffle in range(3)]
        >>> print(skn.studies.compare_shuffles(model, prompts, tasks))
    """
    require_seed(seed)
    require_draws(n_permutations, name="n_permutations")
    _require_shuffles(tasks)
    for task in tasks:
        require_orders(task, n_permutations, 0.05)
    n_top = selection_size(amount, even(neuron_shape(model)[1], "compare_shuffles"), per="layer")
    scores = [
        score_classes(
            model,
            prompts,
            task,
            positions=positions,
            seed=seed,
            keep_outcomes=True,
            max_length=max_length,
            run=run,
        )
        for task in tasks
    ]
    rows = []
    for number, name in enumerate(tasks[0].label_names):
        if len(scores[0]) == 2 and number == 0:
            continue  # against the rest, it is the other class turned round
        of_class = {str(place): one[number] for place, one in enumerate(scores)}
        found = agreements(
            of_class, list(combinations(of_class, 2)), n_top, n_permutations=n_permutations, seed=seed
        )
        for (one, other), agreement in found.items():
            whole = agreement.row(-1)
            kept = ("spearman", "null_low", "null_high", "p_value", "n_shared", "p_shared")
            row = {"class": name, "one": int(one), "other": int(other)}
            rows.append({**row, **{key: whole[key] for key in kept}, "n_top": n_top})
    return pd.DataFrame(rows)


def _require_shuffles(tasks: Sequence[Task]) -> None:
    """Refuse tasks that don't differ in the order of their choices alone, as far as can be seen.

    Raises:
        ValueError: Then.
    """
    advice = (
        "give multiple_choice(..., shuffle=0), multiple_choice(..., shuffle=1) and so on, of the same rows"
    )
    if len(tasks) < 2:
        raise ValueError(f"shuffles are compared with each other, got {len(tasks)} task; {advice}")
    first = tasks[0]
    for number, task in enumerate(tasks[1:], start=1):
        if (task.label_names, task.template, task.n_examples) != (
            first.label_names,
            first.template,
            first.n_examples,
        ):
            raise ValueError(
                f"task {number} ({task.name!r}) is no shuffle of the first ({first.name!r}): its classes, template or "
                f"numbers of examples are others; {advice}"
            )
        if task.fingerprint in {one.fingerprint for one in tasks[:number]}:
            raise ValueError(f"task {number} is the same shuffle as one before; {advice}")
