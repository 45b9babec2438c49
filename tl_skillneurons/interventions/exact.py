"""How good a first-order estimate is: neurons patched for real, one at a time, beside what attribution said of them."""

from dataclasses import replace

import pandas as pd
import torch
from transformer_lens.model_bridge import TransformerBridge

from tl_skillneurons._checks import differing, require_int, require_seed
from tl_skillneurons._widths import width_in
from tl_skillneurons.interventions._exchange import recovered_alone
from tl_skillneurons.interventions.ablation import positions_of
from tl_skillneurons.interventions.attribution import NeuronAttribution
from tl_skillneurons.interventions.twins import twins_of, twins_recorded
from tl_skillneurons.models.records import model_record
from tl_skillneurons.neurons.neuron_set import NeuronSet
from tl_skillneurons.prompts.prompted_model import PromptedModel
from tl_skillneurons.prompts.run import RunOptions, prompt_record
from tl_skillneurons.prompts.soft_prompt import SoftPrompt
from tl_skillneurons.stats.ranks import spearman
from tl_skillneurons.tasks.task import Task


def compare_with_exact(
    model: TransformerBridge,
    prompt: SoftPrompt,
    task: Task,
    attribution: NeuronAttribution,
    *,
    n_top: int = 20,
    n_sample: int = 20,
    seed: int = 0,
    run: RunOptions = RunOptions(),
) -> pd.DataFrame:
    """Patch neurons one at a time, the highest by attribution and a random sample, and compare.

    Twins, positions, direction and length are those that the attribution was made with: this compares two measures on
    the same twins, on which the highest look better than they are.

    Returns:
        One row per neuron: ``group`` ("top" or "sample"), ``layer``, ``index``, ``estimate`` and ``exact``, both
        fractions of the gap, the group's Spearman correlation of the two, ``rank_agreement``, and ``neurons_chosen``
        "on these examples" for the highest.

    Raises:
        ValueError: For another model, prompt or task than the attribution's.

    Example:
        >>> attribution = skn.attribute_neurons(model, prompt, task)
        >>> compare_with_exact(model, prompt, task, attribution, n_top=10, n_sample=10)
    """
    require_seed(seed)
    settings = attribution.settings
    here = {
        "model": model_record(model),
        "prompt": prompt_record(prompt),
        "task": {"name": task.name, "fingerprint": task.fingerprint},
    }
    differs = differing(settings, here)
    if differs:
        raise ValueError(
            f"the attribution is of another run ({'; '.join(differs)}); give what it was made with"
        )
    n_layers, d_mlp = attribution.effect.shape
    top = attribution.top(n_top)
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randperm(n_layers * d_mlp, generator=generator)
    drawn = drawn[~attribution.effect.flatten()[drawn].isnan()][: require_int(n_sample, "n_sample")]
    width = width_in(attribution.effect)
    groups = {"top": top, "sample": NeuronSet(drawn // d_mlp, drawn % d_mlp, n_layers, width)}
    twins = replace(twins_of(task, twins_recorded(settings["twins"])), on_chosen_examples=True)
    prompted = PromptedModel.for_task(model, prompt, task, max_length=settings["max_length"], run=run)
    at = {"direction": settings["direction"], "positions": positions_of(settings["positions"])}
    frames = []
    for group, neurons in groups.items():
        exact = recovered_alone(prompted, twins, neurons, **at)
        estimate = attribution.recovered[neurons.layer, neurons.index]
        frame = neurons.to_dataframe().assign(group=group)
        frame["estimate"], frame["exact"] = estimate.tolist(), exact.tolist()
        where_chosen = twins.where_chosen(neurons)
        frames.append(frame.assign(rank_agreement=spearman(estimate, exact), neurons_chosen=where_chosen))
    return pd.concat(frames, ignore_index=True)
