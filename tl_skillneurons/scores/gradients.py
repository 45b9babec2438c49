"""How much each neuron pushes the answer on single inputs: gradient times activation, and its integrated form.

With ``d`` the logit diff of an input (label 1 minus label 0; of more than two classes one class minus the highest of
the others), ``s`` +1 for examples of that label and -1 for others, and the mean over examples of ``s`` times, for each
neuron and prompt position:

- ``"gradient"``: ``a * dd/da``, first order at the input itself.
- ``"conductance"`` (Dhamdhere et al., 2019, "How Important Is a Neuron?"): the same along a path from an input whose
  text tokens have zero embeddings to the real one, ``sum over steps of dd/da * (change of a in that step)``.

Positive values push towards the right label. What it does not show: what happens when the neuron is changed by
more than a little; ``compare_with_exact`` and ablation tell. The control is the null of permuted labels
(``n_permutations=``), under which ``s`` means nothing.
"""

from collections.abc import Sequence

import torch
from einops import einsum
from jaxtyping import Float, Int
from torch import Tensor
from transformer_lens.hook_points import HookPoint
from transformer_lens.model_bridge import TransformerBridge

from tl_skillneurons._checks import require_int, require_option, require_seed
from tl_skillneurons._progress import Advance, progress_bar
from tl_skillneurons._widths import Width, in_layer, widest, width_in
from tl_skillneurons.models.batches import run_batches
from tl_skillneurons.models.hooks import Hook
from tl_skillneurons.models.sites import neuron_hooks, neuron_shape
from tl_skillneurons.models.verification import require
from tl_skillneurons.prompts.attached import VirtualTokens
from tl_skillneurons.prompts.positions import PromptedTokens
from tl_skillneurons.prompts.prompted_model import PromptedModel
from tl_skillneurons.prompts.run import RunOptions
from tl_skillneurons.prompts.soft_prompt import SoftPrompt
from tl_skillneurons.prompts.streaming import reading
from tl_skillneurons.scores.layers import Walked, score_layers
from tl_skillneurons.scores.measured import prompted_set, provenance_of, require_alike, task_provenance
from tl_skillneurons.scores.neuron_statistic import NeuronStatistic
from tl_skillneurons.scores.null import label_rows
from tl_skillneurons.tasks.subtasks import against_rest
from tl_skillneurons.tasks.task import Task
from tl_skillneurons.tasks.two_classes import require_class

KINDS = ("gradient", "conductance")


def score_gradients(
    model: TransformerBridge,
    prompts: SoftPrompt | Sequence[SoftPrompt],
    task: Task,
    kind: str = "gradient",
    *,
    steps: int = 8,
    role: str = "select",
    n_permutations: int = 0,
    seed: int = 0,
    aggregate: str = "mean",
    max_length: int | None = None,
    class_id: int | None = None,
    run: RunOptions = RunOptions(),
) -> NeuronStatistic:
    """How much each neuron at the prompt positions pushes towards the right label, on average over ``role``.

    Args:
        prompts: One, or several (equally long).
        kind: "gradient" or "conductance".
        steps: Of the path, for "conductance"; each costs a forward and a backward pass.
        n_permutations: Label permutations, drawn by ``seed``, for ``.significant()``: labels that mean nothing. They
            need every example's value: ``prompts * examples * layers * positions * neurons`` numbers in float32.
        aggregate: How prompts are combined: ``"mean"``, or ``"min"``.
        max_length: Longest sequence in tokens; ``None`` is what the prompts were tuned with.
        class_id: The class that is told from all others; must be said of more than two.
        run: Batches, progress.

    Returns:
        In units of the logit diff, positive where the neuron pushes towards the right label.

    Raises:
        ValueError: Inside ``torch.no_grad()`` or ``torch.inference_mode()``, for a task of more than two classes
            without a ``class_id``, or without a prompt.

    Example:
        >>> found = skn.scores.score_gradients(model, prompts, task, n_permutations=1000)
        >>> found.significant()
    """
    require_seed(seed)
    if torch.is_inference_mode_enabled() or not torch.is_grad_enabled():
        raise ValueError(
            "gradient scores need gradients; call it outside torch.no_grad() and torch.inference_mode()"
        )
    require_option(kind, "kind", KINDS)
    require_int(steps, "steps")
    chosen = require_class(task, class_id)
    rows = against_rest(label_rows(task, role, n_permutations, seed=seed), chosen)
    sign = 2.0 * rows.double() - 1
    prompted = prompted_set(
        model, prompts, "prompt", task=task, label_words=task.label_words, max_length=max_length, run=run
    )
    require_alike(prompted)
    texts = list(task.split(role)["text"])
    path = steps if kind == "conductance" else 0
    kept = []
    with progress_bar(kind, len(texts) * len(prompted), show=run.progress) as advance:
        for one in prompted:
            kept.append(_collect(one, texts, None if n_permutations else sign[0], path, chosen, advance))
    if n_permutations:
        walked = _with_null(torch.stack(kept), rows, aggregate, seed)
    else:
        walked = Walked(torch.stack(kept) / len(texts), None)
    provenance = {
        **provenance_of(prompted),
        **task_provenance(prompted[0], task, [role]),
        "target": "label",
        "steps": path or None,
        **({} if class_id is None else {"class_id": chosen}),
    }
    return NeuronStatistic(
        name=kind,
        values=walked.values,
        n_examples=len(texts),
        role=role,
        aggregate=aggregate,
        null=None if walked.null is None else walked.null.of_units(task.units(role), rows[0]),
        provenance=provenance,
    )


def _collect(
    prompted: PromptedModel,
    texts: list[str],
    sign: Float[Tensor, " example"] | None,
    steps: int,
    class_id: int,
    advance: Advance,
) -> Float[Tensor, "*example layer position neuron"]:
    """The sum over examples times their signs, float64; without signs each example's, float32."""
    n_layers, d_mlp = neuron_shape(prompted.model)
    shape = (n_layers, prompted.n_prompt_positions, widest(d_mlp))
    kept = torch.zeros(shape, dtype=torch.float64) if sign is not None else torch.empty(len(texts), *shape)
    ids = prompted.encode(texts)
    with prompted.attached() as virtual:

        def run(batch: list[int]) -> None:
            tokens = prompted.assemble([ids[i] for i in batch], batch)
            pushed = _pushes(prompted, tokens, virtual, steps, d_mlp, class_id)
            if sign is None:
                kept[batch] = pushed.float()
            else:
                kept.add_(
                    einsum(sign[batch], pushed, "example, example layer pos neuron -> layer pos neuron")
                )
            advance(len(batch))

        run_batches(prompted.batches(ids), run)
    return kept


def _with_null(
    kept: Float[Tensor, "prompt example layer position neuron"],
    rows: Int[Tensor, "row example"],
    aggregate: str,
    seed: int,
) -> Walked:
    n_prompts, n, n_layers, n_positions, d_mlp = kept.shape
    sign = (2.0 * rows.double() - 1) / n

    def pushed(columns: Tensor, rows: Tensor, layer: int, neurons: slice) -> Tensor:
        return sign @ columns.double()

    width = width_in(kept[0, 0, :, 0])
    counts = [in_layer(width, layer) for layer in range(n_layers)]
    layers = ((layer, kept[:, :, layer, :, :own]) for layer, own in enumerate(counts) if own)
    shape = (n_prompts, n_layers, n_positions, d_mlp)
    walked = score_layers(layers, rows, {"pushed": pushed}, shape, aggregate=aggregate, seed=seed, slack=1e-6)
    return walked["pushed"]


def _pushes(
    prompted: PromptedModel,
    tokens: PromptedTokens,
    virtual: VirtualTokens,
    steps: int,
    width: Width,
    class_id: int,
) -> Float[Tensor, "example layer position neuron"]:
    """Of one batch: gradient times activation, or with ``steps`` the conductance; float64, NaN where there is no
    neuron."""
    require(prompted.model, "neurons")
    names = neuron_hooks(prompted.model)
    read = reading(tokens, "prompt")
    is_text = tokens.is_text[..., None]

    def at(share: float, gradients: bool) -> tuple[list[Tensor], list[Tensor]]:
        live: list[Tensor] = []

        def start(act: Tensor, hook: HookPoint) -> Tensor:
            scaled = torch.where(is_text.to(act.device), share * act.detach(), act.detach())
            return scaled.requires_grad_(gradients)

        def hold(act: Tensor, hook: HookPoint) -> Tensor:
            live.append(act)
            return act  # which OPT, that shows a view, would else go on without

        hooks: list[Hook] = [("embed.hook_out", start), *((name, hold) for name in names.values())]
        with torch.set_grad_enabled(gradients):
            logits = prompted.read_out(tokens, virtual, hooks)
        acts = [read(act.detach()).double().cpu() for act in live]
        if not gradients:
            return acts, []
        others = logits[:, [k for k in range(logits.shape[1]) if k != class_id]]
        found = torch.autograd.grad((logits[:, class_id] - others.amax(1)).sum(), live)
        return acts, [read(gradient).double().cpu() for gradient in found]

    def everywhere(found: list[Tensor]) -> Tensor:
        wide = widest(width)
        each = found[0].new_full(
            (len(found[0]), len(prompted.model.blocks), found[0].shape[1], wide), torch.nan
        )
        for layer, own in zip(names, found, strict=True):
            each[:, layer, :, : own.shape[-1]] = own
        return each

    if not steps:
        acts, gradients = at(1.0, True)
        return everywhere([a * g for a, g in zip(acts, gradients, strict=True)])
    total: list[Tensor] = []
    before, _ = at(0.0, False)
    for step in range(steps):
        _, gradients = at((step + 0.5) / steps, True)
        after, _ = at((step + 1) / steps, False)
        moved = [g * (b - a) for g, a, b in zip(gradients, before, after, strict=True)]
        total = [t + m for t, m in zip(total, moved, strict=True)] if total else moved
        before = after
    return everywhere(total)
