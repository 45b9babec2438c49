"""Correlation of every neuron with a number per text: a rating, a reward margin, the model's own confidence or loss.

With a(N, p, x) the activation of neuron N at position p on text x, t(x) the target and w(x) its weight (else 1)::

    r(N, p) = sum of w (a - mean a) (t - mean t) / sqrt(sum of w (a - mean a)^2 * sum of w (t - mean t)^2)

where means and sums are over texts and weighted ("pearson"), or the same of ranks ("spearman").

It does not show that a neuron makes the target, only that they go together on these texts. The null deals the targets
out anew to the texts' units (``n_permutations=``), and each target takes its weight along: what makes a text count may
be its target (a weight that is the target's own size, say), and then a target without its weight would be one that
never occurs. It assumes that units are exchangeable; equal texts are one unit, and :class:`Targets` can name others.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from tl_skillneurons._checks import require_int, require_option, require_seed
from tl_skillneurons._files import fingerprint
from tl_skillneurons._results import html_of_fields, short_repr
from tl_skillneurons.prompts.activations import MEMORY
from tl_skillneurons.prompts.prompted_model import PromptedModel
from tl_skillneurons.prompts.run import RunOptions
from tl_skillneurons.prompts.soft_prompt import SoftPrompt
from tl_skillneurons.prompts.streaming import READINGS
from tl_skillneurons.scores.kinds import KINDS
from tl_skillneurons.scores.label_scores import score_texts
from tl_skillneurons.scores.measured import (
    chose_record,
    prompted_set,
    provenance_of,
    require_alike,
    unit_record,
)
from tl_skillneurons.scores.neuron_statistic import NeuronStatistic
from tl_skillneurons.stats.metrics import per_example
from tl_skillneurons.stats.units import Units
from tl_skillneurons.tasks.chat import Chat
from tl_skillneurons.tasks.task import Task
from tl_skillneurons.tasks.two_classes import require_class

CORRELATIONS = tuple(name for name, kind in KINDS.items() if kind.any_number)
ANSWERS = ("confidence", "probability", "loss", "logit_diff")

Numbers = Sequence[float | int] | Tensor
"""One number per text."""


@dataclass(frozen=True, eq=False)
class Targets:
    """What neurons are correlated with, where it is more than a number per text.

    Attributes:
        values: One number per text.
        weights: How much each text counts, 0 or more; ``None`` counts all alike.
        name: What to call the target, in the record and in messages.
        role: Where the texts come from, for the record.
        units: Which texts belong together; ``None`` joins equal texts alone.
        chat: What stands around the texts in a conversation; ``None`` is what the prompts were tuned in, and nothing
            without a prompt.

    Example:
        >>> targets = Targets(torch.tensor([len(text) for text in texts]).double(), name="length in characters")
        >>> skn.scores.score_targets(model, prompts, texts, targets)
    """

    __repr__ = short_repr
    _repr_html_ = html_of_fields

    values: Numbers
    weights: Numbers | None = None
    name: str = "target"
    role: str = "select"
    units: Units | None = None
    chat: Chat | None = None


def score_targets(
    model: TransformerBridge,
    prompts: SoftPrompt | Sequence[SoftPrompt] | None,
    texts: Sequence[str],
    targets: Targets | Numbers,
    kind: str = "pearson",
    *,
    n_permutations: int = 0,
    seed: int = 0,
    positions: str = "prompt",
    aggregate: str = "mean",
    memory: int = MEMORY,
    max_length: int | None = None,
    run: RunOptions = RunOptions(),
) -> NeuronStatistic:
    """The correlation of every neuron's activation with a number per text, in [-1, 1].

    Args:
        prompts: One, several (equally long), or ``None`` for the bare text.
        texts: Such as ``task.split("select")["text"]``; for pairwise preferences the texts of the pair in one
            template, with the difference of rewards as target.
        targets: One number for each text, or :class:`Targets` with weights, a name, or the chat that the texts are in.
        kind: "pearson" or "spearman".
        n_permutations: Permutations of the targets (each with its weight), drawn by ``seed``; 0 for none.
        positions: ``"prompt"``; ``"last"``, ``"mean"``, ``"max"`` over the text's own tokens; or another of
            :data:`~tl_skillneurons.prompts.streaming.READINGS`: "readout", "template", "answer_last" and so on.
        aggregate: How prompts are combined: ``"mean"``, or ``"min"``.
        memory: Bytes that kept activations may take.
        max_length: Longest sequence in tokens; ``None`` is what the prompts were tuned with.
        run: Batches, cache, progress.

    Raises:
        ValueError: For targets that are constant, not finite or not one per text, weights that are negative or sum
            to zero, or activations that are the same for every example.

    Example:
        >>> loss = skn.scores.answer_targets(model, prompts[0], task, "loss")
        >>> found = skn.scores.score_targets(model, prompts, task.split("select")["text"], loss, "spearman")
    """
    require_seed(seed)
    require_option(kind, "kind", CORRELATIONS)
    require_option(positions, "positions", READINGS)
    require_int(n_permutations, "n_permutations", minimum=0)
    given = targets if isinstance(targets, Targets) else Targets(targets)
    values = _numbers(given.values, len(texts))
    weights = None if given.weights is None else _weights(given.weights, len(texts))
    counting = values if weights is None else values[weights > 0]
    if (counting == counting[0]).all():
        raise ValueError(
            f"{given.name} is {float(values[0]):g} for every example; nothing can correlate with it"
        )
    units = _units(given, texts)
    rows, of_rows = _drawn(units, values, weights, n_permutations, seed)
    prompted = prompted_set(model, prompts, positions, chat=given.chat, max_length=max_length, run=run)
    require_alike(prompted)

    def scorer(columns: Tensor, drawn: Tensor, layer: int, neurons: slice) -> Tensor:
        return torch.stack([KINDS[kind].score(own, drawn, of_rows) for own in columns])

    walked = score_texts(
        prompted,
        list(texts),
        rows,
        {kind: scorer},
        positions=positions,
        aggregate=aggregate,
        seed=seed,
        memory=memory,
        progress=run.progress,
    )[kind]
    provenance = {
        **provenance_of(prompted),
        "target": given.name,
        "targets": fingerprint(values),
        "weights": None if weights is None else fingerprint(weights),
        "n_cut": {given.role: max(one.n_truncated(texts) for one in prompted)},
        "units": unit_record(units),
        "chose": chose_record(given.role, list(texts)),
    }
    return NeuronStatistic(
        name=kind,
        values=walked.values,
        n_examples=len(texts),
        role=given.role,
        positions=positions,
        aggregate=aggregate,
        null=None if walked.null is None else walked.null.of_units(units, values),
        provenance=provenance,
    )


def answer_targets(
    model: TransformerBridge,
    prompt: SoftPrompt,
    task: Task,
    what: str = "confidence",
    *,
    role: str = "select",
    class_id: int | None = None,
    max_length: int | None = None,
    run: RunOptions = RunOptions(),
) -> Float[Tensor, " example"]:
    """One number per example of ``role`` from the model's own answers, as a target for :func:`score_targets`.

    Args:
        what: "confidence", the probability given to the class it answers; "probability", to the right class;
            "loss", minus its logarithm in nats; "logit_diff", logit of class 1 minus class 0 (of more than two: of
            ``class_id`` minus the highest of the others).
        class_id: Whose logit diff; must be said of more than two classes.
        max_length: Longest sequence in tokens; ``None`` is what the prompt was tuned with.
        run: Batches, cache.

    Raises:
        ValueError: For another ``what``, or the logit diff of a task of more than two classes without a ``class_id``.

    Example:
        >>> confidence = skn.scores.answer_targets(model, prompt, task)
    """
    require_option(what, "what", ANSWERS)
    chosen = require_class(task, class_id) if what == "logit_diff" else None
    split = task.split(role)
    prompted = PromptedModel.for_task(model, prompt, task, max_length=max_length, run=run)
    with torch.no_grad():
        logits = prompted.class_logits(list(split["text"])).double().cpu()
    if chosen is not None:
        own = torch.full((len(logits),), chosen)
        return per_example("logit_diff", logits, own)
    log_p = logits.log_softmax(1)
    right = log_p.gather(1, torch.tensor(split["label"])[:, None])[:, 0]
    return {"confidence": log_p.amax(1).exp(), "probability": right.exp(), "loss": -right}[what]


def _units(targets: Targets, texts: Sequence[str]) -> Units:
    units = targets.units
    if units is None:
        return Units.of([[" ".join(text.split()) for text in texts]])
    if units.n_examples != len(texts):
        raise ValueError(f"units must be of the {len(texts)} texts, got those of {units.n_examples}")
    return units


def _drawn(
    units: Units,
    values: Float[Tensor, " example"],
    weights: Float[Tensor, " example"] | None,
    n: int,
    seed: int,
) -> tuple[Float[Tensor, "row example"], Float[Tensor, "row example"] | None]:
    """The targets and their weights, and below them both together dealt out anew ``n`` times."""
    if weights is None:
        rows = values[None]
        return (torch.cat([rows, units.permuted(values, n, seed=seed)]) if n else rows), None
    both, code = torch.stack([values, weights], 1).unique(dim=0, return_inverse=True)
    codes = torch.cat([code[None], units.permuted(code, n, seed=seed)]) if n else code[None]
    return both[codes, 0], both[codes, 1]


def _numbers(targets: Numbers, n: int) -> Float[Tensor, " example"]:
    values = torch.as_tensor(targets).detach().double().cpu()
    if values.shape != (n,):
        raise ValueError(f"targets must be one number for each of {n} texts, got shape {tuple(values.shape)}")
    if not values.isfinite().all():
        at = int((~values.isfinite()).nonzero()[0])
        raise ValueError(f"targets must be finite, got {float(values[at])} for example {at}; leave it out")
    return values


def _weights(weights: Numbers, n: int) -> Float[Tensor, " example"]:
    values = torch.as_tensor(weights).detach().double().cpu()
    if values.shape != (n,) or not values.isfinite().all() or (values < 0).any():
        raise ValueError(f"weights must be one number of at least 0 for each of {n} texts")
    if not values.sum() > 0:
        raise ValueError("weights sum to zero, so no example counts; give some example a weight above 0")
    return values
