"""What holding one neuron at its mean, alone and at the prompt, does to the answer.

With ``d = z_label - max over other classes`` the logit diff, ``m`` the neuron's mean over role ``baseline`` and the
prompt positions, averaged over the examples of a role::

    direct = change of d through the residual stream alone, at the read-out    (interventions/direct_effects)
    total  = sum over prompt positions p of (m - a_p) * gradient of d with respect to a_p

Negative numbers: the neuron helped the answer. ``total`` is a first-order estimate of what a run with the neuron held
would give, for all neurons by one gradient; one neuron moves little, so it is near it. The direct effect is exact and
knows the read-out position alone, the last of the prompt (of a bidirectional model the mask).

What it does not show: what neurons do together; a set's effect beside random and matched sets tells more
(:func:`~tl_skillneurons.measure_effects`). A single neuron's effect is small beside those of its layer's others.
"""

from collections.abc import Callable, Sequence

import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformer_lens.hook_points import HookPoint

from tl_skillneurons.interventions.ablation import ablate
from tl_skillneurons.interventions.direct_effects import direct_logits
from tl_skillneurons.models.batches import run_batches
from tl_skillneurons.models.hooks import Hook
from tl_skillneurons.models.sites import neuron_hooks
from tl_skillneurons.neurons.neuron_set import NeuronSet
from tl_skillneurons.prompts.prompted_model import PromptedModel
from tl_skillneurons.stats.intervals import bootstrap_mean
from tl_skillneurons.stats.metrics import per_example
from tl_skillneurons.tasks.task import Task

N_EXAMPLES = 64


def single_effects(
    prompted: PromptedModel,
    task: Task,
    role: str,
    neurons: NeuronSet,
    held_at: Float[Tensor, "layer neuron"],
    *,
    seed: int,
) -> tuple[pd.DataFrame, Float[Tensor, "layer neuron"]]:
    """A row per neuron: ``direct`` and ``total``, each with its 95 % interval over units, and ``n_examples``; and
    ``total`` of every neuron of the model.

    At most :data:`N_EXAMPLES` examples are used, drawn with the labels' shares kept.

    Raises:
        ValueError: For a model whose direct effects can't be told, or one without class logits.
    """
    few = task.limit(**{role: min(N_EXAMPLES, task.n_examples[role])}, seed=seed)
    texts, labels = list(few.split(role)["text"]), torch.tensor(few.split(role)["label"])
    with torch.no_grad():
        intact = prompted.class_logits(texts).cpu()
    before = per_example("logit_diff", intact, labels)
    each = [
        ablate(NeuronSet.from_pairs([pair]), how="mean", values=held_at, positions="prompt")
        for pair in neurons
    ]
    direct = torch.stack(
        [
            per_example("logit_diff", after.detach().cpu(), labels) - before
            for after in direct_logits(prompted, texts, intact, each)
        ]
    )
    chosen, every = estimated_totals(prompted, texts, labels, neurons, held_at)
    total = chosen.T
    frame = pd.DataFrame([{"layer": layer, "index": index} for layer, index in neurons])
    for name, values in (("direct", direct), ("total", total)):
        low, high = bootstrap_mean(values, seed=seed, units=few.units(role))
        frame[name] = values.mean(1).numpy()
        frame[f"{name}_low"], frame[f"{name}_high"] = low.numpy(), high.numpy()
    return frame.assign(n_examples=len(texts)), every


def estimated_totals(
    prompted: PromptedModel,
    texts: Sequence[str],
    labels: Int[Tensor, " example"],
    neurons: NeuronSet,
    held_at: Float[Tensor, "layer neuron"],
) -> tuple[Float[Tensor, "example neuron"], Float[Tensor, "layer other_neuron"]]:
    """The change of each example's logit diff by holding each neuron alone at the prompt positions, to first order; and
    its mean over the examples for every neuron of the model, NaN where a layer has no such neuron."""
    names = neuron_hooks(prompted.model)
    columns = {layer: (neurons.layer == layer).nonzero()[:, 0] for layer in names}
    first = min(names)
    every = torch.full(held_at.shape, torch.nan, dtype=torch.float64)
    ids = prompted.encode(texts)
    found = torch.empty(len(texts), len(neurons), dtype=torch.float64)
    with prompted.attached() as virtual, torch.enable_grad():

        def run(batch: list[int]) -> None:
            acts: dict[int, Tensor] = {}

            def at(layer: int) -> Callable[..., Tensor]:
                def record(act: Tensor, hook: HookPoint) -> Tensor:
                    acts[layer] = act.detach().requires_grad_(True) if layer == first else act
                    return acts[layer]

                return record

            tokens = prompted.assemble([ids[i] for i in batch], batch)
            past = prompted.past(tokens) if prompted.runs_apart(virtual) else None
            hooks: list[Hook] = [(name, at(layer)) for layer, name in names.items()]
            logits = prompted.read_out(tokens, virtual, hooks, past)
            here = tokens if past is None else tokens.last(prompted.layout.n_virtual_tokens)
            own = labels[batch].to(logits.device)
            right = logits.gather(1, own[:, None])[:, 0]
            other = logits.scatter(1, own[:, None], -torch.inf).amax(1)
            gradients = torch.autograd.grad((right - other).sum(), [acts[layer] for layer in names])
            prompt_at = here.prompt_columns()
            rows = torch.arange(len(batch), device=prompt_at.device)[:, None]
            for layer, gradient in zip(names, gradients, strict=True):
                slope, width = gradient[rows, prompt_at].double(), gradient.shape[-1]
                away = held_at[layer, :width].to(slope) - acts[layer].detach()[rows, prompt_at]
                total = (away * slope).sum(1).cpu()
                found[torch.tensor(batch)[:, None], columns[layer]] = total[:, neurons.index[columns[layer]]]
                every[layer, :width] = every[layer, :width].nan_to_num() + total.sum(0)

        run_batches(prompted.batches(ids), run)
    return found, (every / len(texts)).float()
