"""How much each neuron pushes the answer on single inputs: gradient times activation, and its integrated form.

With ``d`` the logit diff of an input (label 1 minus label 0), ``s`` +1 for examples of label 1 and -1 for label 0,
and the mean over examples of ``s`` times, for each neuron and prompt position:

- ``"gradient"``: ``a * dd/da``, first order at the input itself.
- ``"conductance"`` (Dhamdhere et al., 2019, "How Important Is a Neuron?"): the same along a path from an input whose
  text tokens have zero embeddings to the real one, ``sum over steps of dd/da * (change of a in that step)``.

Positive values push towards the right label. What it does not show: what happens when the neuron is changed by
more than a little; ``compare_with_exact`` and ablation tell.
"""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from tl_skillneurons._checks import require_int, require_option
from tl_skillneurons._progress import Advance, progress_bar
from tl_skillneurons.models.batches import run_batches
from tl_skillneurons.models.records import model_record
from tl_skillneurons.models.sites import neuron_hooks, neuron_shape
from tl_skillneurons.prompts.positions import PromptedTokens
from tl_skillneurons.prompts.prompted_model import PromptedModel
from tl_skillneurons.prompts.run import as_list, prompt_record, require_sees_text
from tl_skillneurons.prompts.soft_prompt import SoftPrompt, VirtualTokens
from tl_skillneurons.prompts.streaming import reading, stand_alike
from tl_skillneurons.scores.neuron_statistic import NeuronStatistic
from tl_skillneurons.scores.null import NullTally, PermutationNull
from tl_skillneurons.scores.outcomes import MOST_NUMBERS
from tl_skillneurons.stats.permutation import permuted_labels
from tl_skillneurons.tasks.task import Task, require_two_classes, twin_pairs

KINDS = ("gradient", "conductance")


def score_gradients(
    model: Any,
    prompts: SoftPrompt | Sequence[SoftPrompt],
    task: Task,
    kind: str = "gradient",
    *,
    steps: int = 8,
    role: str = "select",
    n_permutations: int = 0,
    seed: int = 0,
    aggregate: str = "mean",
    batch_size: int | None = None,
    batch_tokens: int | None = None,
    max_length: int | None = None,
    progress: bool = True,
) -> NeuronStatistic:
    """How much each neuron at the prompt positions pushes towards the right label, on average over ``role``.

    Args:
        steps: Of the path, for "conductance"; each costs a forward and a backward pass.
        n_permutations: Label permutations for ``.significant()``: labels that mean nothing. They need every
            example's value: ``prompts * examples * layers * positions * neurons`` numbers in float32.

    Raises:
        ValueError: Inside ``torch.no_grad()`` or ``torch.inference_mode()``, for a task of more than two classes,
            or without a prompt.
    """
    if torch.is_inference_mode_enabled() or not torch.is_grad_enabled():
        raise ValueError(
            "gradient scores need gradients; call it outside torch.no_grad() and torch.inference_mode()"
        )
    require_option(kind, "kind", KINDS)
    require_int(steps, "steps")
    require_two_classes(task)
    split = task.split(role)
    labels = torch.tensor(split["label"])
    rows = labels[None]
    if n_permutations:
        pairs = twin_pairs(split)
        rows = torch.cat([rows, permuted_labels(labels, n_permutations, seed=seed, pairs=pairs)])
    sign = 2.0 * rows.double() - 1
    chosen = as_list(prompts)
    prompted = [PromptedModel(model, prompt, task.label_words, max_length=max_length) for prompt in chosen]
    for one in prompted:
        require_sees_text(one, "prompt")
    if len(stand_alike(prompted)) > 1:
        raise ValueError("prompts of one set must have equally many virtual tokens and one placement")
    texts = list(split["text"])
    path = steps if kind == "conductance" else 0
    kept = []
    with progress_bar(kind, len(texts) * len(chosen), show=progress) as advance:
        for one in prompted:
            batches = {"batch_size": batch_size, "batch_tokens": batch_tokens}
            kept.append(_collect(one, texts, None if n_permutations else sign[0], path, batches, advance))
    n = len(texts)
    if n_permutations:
        values, null = _with_null(torch.stack(kept), sign / n, aggregate, seed)
    else:
        values, null = torch.stack(kept) / n, None
    provenance = {
        "model": model_record(model),
        "prompts": [prompt_record(prompt) for prompt in chosen],
        "task": {"name": task.name, "fingerprint": task.fingerprint},
        "target": "label",
        "steps": steps if kind == "conductance" else None,
        "max_length": prompted[0].max_length,
    }
    return NeuronStatistic(kind, values, n, role, aggregate=aggregate, null=null, provenance=provenance)


def _collect(
    prompted: PromptedModel,
    texts: list[str],
    sign: Float[Tensor, " example"] | None,
    steps: int,
    batches: dict[str, Any],
    advance: Advance,
) -> Float[Tensor, "*example layer position neuron"]:
    """The sum over examples times their signs, float64; without signs each example's, float32."""
    n_layers, d_mlp = neuron_shape(prompted.model)
    shape = (n_layers, prompted.n_prompt_positions, d_mlp)
    kept = torch.zeros(shape, dtype=torch.float64) if sign is not None else torch.empty(len(texts), *shape)
    ids = prompted.encode(texts)
    with prompted.attached() as virtual:

        def run(batch: list[int]) -> None:
            tokens = prompted.assemble([ids[i] for i in batch], batch)
            pushed = _pushes(prompted, tokens, virtual, steps)
            if sign is None:
                kept[batch] = pushed.float()
            else:
                kept.add_(torch.einsum("e,elpn->lpn", sign[batch], pushed))
            advance(len(batch))

        run_batches(prompted.batches(ids, **batches), run)
    return kept


def _with_null(
    kept: Float[Tensor, "prompt example layer position neuron"],
    sign: Float[Tensor, "row example"],
    aggregate: str,
    seed: int,
) -> tuple[Float[Tensor, "prompt layer position neuron"], PermutationNull]:
    n_prompts, _, n_layers, n_positions, d_mlp = kept.shape
    values = torch.empty(n_prompts, n_layers, n_positions, d_mlp, dtype=torch.float64)
    tally = NullTally(n_prompts, n_layers, d_mlp, len(sign) - 1, aggregate, slack=1e-6)
    wide = max(1, MOST_NUMBERS // (n_positions * max(sign.shape)))
    for layer in range(n_layers):
        for start in range(0, d_mlp, wide):
            neurons = slice(start, min(start + wide, d_mlp))
            columns = kept[:, :, layer, :, neurons].flatten(2).double()
            found = (sign @ columns).unflatten(2, (n_positions, -1))
            values[:, layer, :, neurons] = found[:, 0]
            tally.add(layer, neurons, found.abs().amax(2))
    return values, tally.mean_null(seed)


def _pushes(
    prompted: PromptedModel, tokens: PromptedTokens, virtual: VirtualTokens, steps: int
) -> Float[Tensor, "example layer position neuron"]:
    """Of one batch: gradient times activation, or with ``steps`` the conductance; float64."""
    names = neuron_hooks(prompted.model)
    read = reading(tokens, "prompt")
    is_text = tokens.is_text[..., None]

    def at(share: float, gradients: bool) -> tuple[list[Tensor], list[Tensor]]:
        live: list[Tensor] = []

        def start(act: Tensor, hook: Any) -> Tensor:
            scaled = torch.where(is_text.to(act.device), share * act.detach(), act.detach())
            return scaled.requires_grad_(gradients)

        def hold(act: Tensor, hook: Any) -> None:
            live.append(act)

        hooks = [("embed.hook_out", start), *((name, hold) for name in names)]
        with torch.set_grad_enabled(gradients):
            logits = prompted.read_out(tokens, virtual, hooks)
        acts = [read(act.detach()).double().cpu() for act in live]
        if not gradients:
            return acts, []
        found = torch.autograd.grad((logits[:, 1] - logits[:, 0]).sum(), live)
        return acts, [read(gradient).double().cpu() for gradient in found]

    if not steps:
        acts, gradients = at(1.0, True)
        return torch.stack([a * g for a, g in zip(acts, gradients, strict=True)], dim=1)
    total: list[Tensor] | None = None
    before, _ = at(0.0, False)
    for step in range(steps):
        _, gradients = at((step + 0.5) / steps, True)
        after, _ = at((step + 1) / steps, False)
        moved = [g * (b - a) for g, a, b in zip(gradients, before, after, strict=True)]
        total = moved if total is None else [t + m for t, m in zip(total, moved, strict=True)]
        before = after
    return torch.stack(total, dim=1)
