"""What tuning needs to know before a step: where a prompt starts, which examples come when, and at what rate."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge
from transformer_lens.model_bridge.exceptions import StopAtLayerException

from tl_skillneurons._checks import require_int
from tl_skillneurons.models.locks import held
from tl_skillneurons.models.tokenizing import piece_ids

INITS = ("vocabulary", "normal")
_MOST_HELD_BACK = 256


@dataclass(frozen=True)
class TrainingOptions:
    """How prompts are trained; the defaults are measured in :mod:`~tl_skillneurons.prompts.tuning.fit`.

    Attributes:
        batch_size: Examples of a training step.
        learning_rate: Adam's rate for the virtual tokens, in standard deviations of the model's token embeddings.
        readout_learning_rate: Adam's rate for a linear read-out.
        warmup: Share of the steps over which the rate rises from zero; then it falls to zero.
        clip: Largest norm of the gradient of the virtual tokens (and of the read-out, separately); larger ones
            are scaled.
        held_back: Share of ``train`` that is kept for early stopping (256 examples at most; what is of one group or
            the same text stays on one side).
        evaluate_every: Steps between evaluations on the held-back part; checkpoints are written then.
        patience: Evaluations without a better prompt after which training stops.
        snapshots: Whether a prompt keeps what it was at each evaluation, step 0 included (``prompt.snapshots``),
            for :func:`~tl_skillneurons.studies.prompt_trajectory`.

    Raises:
        ValueError: For a value outside its range.

    Example:
        >>> skn.fit_soft_prompts(model, task, training=skn.prompts.TrainingOptions(learning_rate=0.1))
    """

    batch_size: int = 16
    learning_rate: float = 0.3
    readout_learning_rate: float = 0.003
    warmup: float = 0.06
    clip: float = 1.0
    held_back: float = 0.1
    evaluate_every: int = 25
    patience: int = 6
    snapshots: bool = False

    def __post_init__(self) -> None:
        for name in ("batch_size", "evaluate_every", "patience"):
            require_int(getattr(self, name), name)
        for name, high in (
            ("held_back", 1.0),
            ("learning_rate", math.inf),
            ("readout_learning_rate", math.inf),
            ("clip", math.inf),
        ):
            require_between(getattr(self, name), name, 0.0, high)
        require_warmup(self.warmup)


def require_between(value: float, name: str, low: float, high: float) -> None:
    """Refuse a number that is not between two others, both excluded.

    Raises:
        ValueError: Otherwise.
    """
    if not low < value < high:
        raise ValueError(f"{name} must be between {low:g} and {high:g}, got {value}")


def require_warmup(warmup: float) -> None:
    """Refuse what is no share of the steps.

    Raises:
        ValueError: Otherwise.
    """
    if not 0 <= warmup < 1:
        raise ValueError(f"warmup is a share of the steps and must be in [0, 1), got {warmup}")


def embedding_rows(model: TransformerBridge, ids: Int[Tensor, " token"]) -> Float[Tensor, "token d_embed"]:
    """What ``embed.hook_out`` gives for these token ids: the units that soft prompts are kept in."""

    def stop(act: Tensor, hook: Any) -> Tensor:
        raise StopAtLayerException(act)

    with held(model), torch.no_grad():
        rows = model.run_with_hooks(ids[:, None].to(model.cfg.device), fwd_hooks=[("embed.hook_out", stop)])
    return rows[:, 0]


def hold_back(
    labels: Int[Tensor, " example"], share: float, group: Sequence[int] | None = None
) -> tuple[list[int], list[int]]:
    """Split examples into (trained on, held back): of each class the given share, at least one, drawn by a
    fixed seed.

    Args:
        group: Of each example what must not stand on both sides (:func:`~tl_skillneurons.tasks.groups.groups_of`). The
            share is met as nearly as whole groups allow; of a class that is all of one group one example is held back.

    Raises:
        ValueError: When a class has only one example.
    """
    generator = torch.Generator().manual_seed(0)
    share = min(share, _MOST_HELD_BACK / len(labels))
    held: list[int] = []
    wanted: dict[int, int] = {}
    for label in labels.unique():
        members = (labels == label).nonzero().flatten()
        if len(members) < 2:
            raise ValueError(
                f"class {int(label)} has one example in role train; at least 2 are needed, one to hold back"
            )
        n = min(max(1, round(share * len(members))), len(members) - 1)
        wanted[int(label)] = n
        held += members[torch.randperm(len(members), generator=generator)[:n]].tolist()
    if group is not None and len(set(group)) < len(group):
        held = _whole_groups(labels.tolist(), wanted, group, generator)
    kept = set(held)
    return [i for i in range(len(labels)) if i not in kept], sorted(held)


def _whole_groups(
    labels: list[int], wanted: dict[int, int], group: Sequence[int], generator: torch.Generator
) -> list[int]:
    """Whole groups in a random order, as many as fit; and of a class that none fits the smallest one of it."""
    members: dict[int, list[int]] = {}
    for i, one in enumerate(group):
        members.setdefault(one, []).append(i)
    groups = list(members.values())
    order = torch.randperm(len(groups), generator=generator).tolist()
    all_of, held = Counter(labels), Counter[int]()
    chosen: list[list[int]] = []

    def fits(rows: list[int], most: Mapping[int, int]) -> bool:
        return all(held[c] + n <= most[c] for c, n in Counter(labels[i] for i in rows).items())

    def hold(rows: list[int]) -> None:
        chosen.append(rows)
        held.update(labels[i] for i in rows)

    for rows in (groups[k] for k in order):
        if fits(rows, wanted):
            hold(rows)
    but_one = {c: n - 1 for c, n in all_of.items()}  # so that there is one to train on
    for c in (c for c in wanted if not held[c]):
        rest = [rows for rows in groups if rows not in chosen and c in {labels[i] for i in rows}]
        hold(min((rows for rows in rest if fits(rows, but_one)), key=len, default=[labels.index(c)]))
    return [i for rows in chosen for i in rows]


def initial_embedding(
    model: TransformerBridge,
    init: str | Sequence[str],
    n_virtual_tokens: int,
    scale: float,
    generator: torch.Generator,
) -> Float[Tensor, "virtual_token d_embed"]:
    """The embedding that tuning starts from, in ``embed.hook_out`` units."""
    if isinstance(init, str):
        ids = torch.randint(model.W_E.shape[0], (n_virtual_tokens,), generator=generator)
        rows = embedding_rows(model, ids)
        if init == "normal":
            return torch.randn(rows.shape, generator=generator).to(rows) * scale
        return rows
    start = start_ids(model, init)
    return embedding_rows(model, torch.tensor([start[i % len(start)] for i in range(n_virtual_tokens)]))


def start_ids(model: TransformerBridge, init: Sequence[str]) -> list[int]:
    """The token ids of the text that a prompt starts from.

    Raises:
        ValueError: When it has none.
    """
    text = " ".join(init)
    ids = piece_ids(model, text)
    if not ids:
        raise ValueError(f"the text to start from must have at least one token, got {text!r}")
    return ids


def rate(step: int, n_steps: int, warmup: float) -> float:
    """The learning rate of ``step`` as a share of the highest: up linearly during the warm-up, then down to zero."""
    n_warmup = warmup * n_steps
    return (step + 1) / n_warmup if step + 1 < n_warmup else (n_steps - step) / (n_steps - n_warmup + 1)


def batch_at(step: int, trained: list[int], batch_size: int, seed: int) -> list[int]:
    """The examples of ``step``, known without the steps before: each epoch has all of them in an order of its own."""
    n_batches = math.ceil(len(trained) / batch_size)
    epoch, place = divmod(step, n_batches)
    generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
    order = torch.randperm(len(trained), generator=generator)[place * batch_size : (place + 1) * batch_size]
    return [trained[i] for i in order.tolist()]
