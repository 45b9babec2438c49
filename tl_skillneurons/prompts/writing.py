"""What a causal model writes after texts and a prompt: how it is asked, batch by batch, and what is kept of it.

Nothing depends on the batch. Padding stands on the left; what is drawn depends on the seed, the text and the step
alone; a hook that does not declare that it treats each position on its own
(:class:`~tl_skillneurons.prompts.positions.ActsAt`) runs without kept keys and values, beside texts of its own length
alone. What remains is rounding, which may decide between two tokens of equal logits.
"""

import hashlib
import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from numbers import Integral
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge
from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from tl_skillneurons._checks import require_int, require_option, require_seed
from tl_skillneurons.models.batches import batch_tokens_on, length_batches, run_batches
from tl_skillneurons.models.hooks import Hook, Hooks
from tl_skillneurons.models.locks import held
from tl_skillneurons.models.packaged import quiet
from tl_skillneurons.models.records import model_label, model_record
from tl_skillneurons.models.sites import hf_config, max_length
from tl_skillneurons.models.tokenizing import pad_id, special_token_ids
from tl_skillneurons.models.verification import agrees
from tl_skillneurons.prompts._ready import WrittenBatch, ready_to_write
from tl_skillneurons.prompts.positions import PLACES, ActsAt, Positions, PromptedTokens, columns
from tl_skillneurons.prompts.run import prompt_record
from tl_skillneurons.prompts.written import Completions

if TYPE_CHECKING:
    from tl_skillneurons.prompts.prompted_model import PromptedModel


@dataclass(frozen=True)
class Writing:
    """How a model writes.

    Attributes:
        max_new_tokens: Most tokens of an answer, its end token included.
        temperature, top_k, top_p: Of what is drawn; without a temperature the likeliest token is taken.
        seed: Of what is drawn.
        end_ids: Token ids that end an answer.
        keeps: Whether keys and values are kept.
    """

    max_new_tokens: int
    temperature: float | int | None
    top_k: int | None
    top_p: float | int | None
    seed: int
    end_ids: tuple[int, ...]
    keeps: bool

    @classmethod
    def of(
        cls,
        prompted: "PromptedModel",
        max_new_tokens: int,
        temperature: float | int | None,
        top_k: int | None,
        top_p: float | int | None,
        seed: int,
        end_ids: Sequence[int] | None,
        keeps: bool,
    ) -> "Writing":
        """What was asked for, where it makes sense.

        Raises:
            ValueError: Where it doesn't, with the reason.
        """
        model = prompted.model
        if not prompted.causal:
            raise ValueError(
                f"{model_label(model)} is bidirectional: every position sees later ones, so it can't write one token "
                "after another; use a causal language model, or read class_logits"
            )
        if temperature is None and (top_k, top_p) != (None, None):
            raise ValueError(
                "top_k and top_p are of what is drawn; give temperature=1.0 as well, or leave them out"
            )
        if temperature is not None and not 0 < temperature < math.inf:
            raise ValueError(
                f"temperature must be positive and finite, or None to draw nothing, got {temperature}"
            )
        if top_p is not None and not 0 < top_p <= 1:
            raise ValueError(f"top_p must be in (0, 1], got {top_p}")
        d_vocab = model.W_E.shape[0]
        ends = end_ids_of(model) if end_ids is None else _ids(end_ids)
        if outside := [i for i in ends if not 0 <= i < d_vocab]:
            raise ValueError(f"end_ids must be token ids in [0, {d_vocab}), got {outside[0]}")
        return cls(
            require_int(max_new_tokens, "max_new_tokens"),
            temperature,
            None if top_k is None else require_int(top_k, "top_k"),
            top_p,
            require_seed(seed),
            ends,
            keeps,
        )


def end_ids_of(model: TransformerBridge) -> tuple[int, ...]:
    """The token ids that end an answer: those of the model's generation settings, else of its config, else its
    tokenizer's; none where nobody says any."""
    settings = getattr(model.original_model, "generation_config", None)
    for owner in (settings, hf_config(model), model.tokenizer):
        given = getattr(owner, "eos_token_id", None)
        if given is not None:
            ids = [given] if isinstance(given, int) else list(given)
            return tuple(i for i in ids if 0 <= i < model.W_E.shape[0])
    return ()


def _ids(given: Any) -> tuple[int, ...]:
    """Token ids as they were given, several or one.

    Raises:
        TypeError: For anything else.
    """
    several = given if isinstance(given, list | tuple | Tensor) else [given]
    ids = [one.item() if isinstance(one, Tensor) else one for one in several]
    if odd := [one for one in ids if not isinstance(one, Integral) or isinstance(one, bool)]:
        raise TypeError(
            f"end_ids must be token ids, integers, got {type(odd[0]).__name__} {odd[0]!r}; "
            "model.tokenizer.convert_tokens_to_ids gives a token's"
        )
    return tuple(map(int, ids))


def limited(hooks: Hooks, positions: Any) -> list[Hook]:
    """The same hooks, acting at these positions alone.

    Raises:
        ValueError: For one that says already that it acts elsewhere.
    """

    if isinstance(positions, str):
        require_option(positions, "positions", PLACES)

    def wrapped(function: Callable[..., Any]) -> Callable[..., Any]:
        says = function.positions if isinstance(function, ActsAt) else None
        if says not in (None, "all", "chosen", positions):
            raise ValueError(
                f"positions={positions!r} was asked for, and a hook acts at {says!r}; say where once: in "
                "ablate(positions=...) or in generate(positions=...)"
            )

        def at_positions(act: Tensor, hook: Any) -> Tensor | None:
            new = function(act, hook=hook)
            if new is None:
                return None
            here = columns(positions, act, hook)
            return torch.where(here.view(*here.shape, *[1] * (act.ndim - 2)), new, act)

        at_positions.__name__ = _told(function)
        digest = _digest(function)
        at_positions.digest = digest and f"{positions!r} {digest}"  # type: ignore[attr-defined]
        known = isinstance(positions, str) and says in (*PLACES,)
        return ActsAt(positions, at_positions) if known else at_positions

    return [(name, wrapped(function)) for name, function in hooks]


def completions(
    prompted: "PromptedModel", texts: Sequence[str], how: Writing, hooks: Hooks, positions: Positions | None
) -> Completions:
    """What the model writes after each text, with what made it."""
    ids = prompted.encode(texts)
    if not ids:
        raise ValueError("texts must not be empty")
    hooks = _as_hooks(hooks)
    chosen = hooks if positions is None else limited(hooks, positions)
    rows = write(prompted, ids, how, chosen)
    special = special_token_ids(prompted.model.tokenizer)
    with held(prompted.model):
        answers = [prompted.model.tokenizer.decode([i for i in row if i not in special]) for row in rows]
    prompt = prompted.prompt
    settings = {
        "model": model_record(prompted.model),
        "prompt": None if prompt is None else prompt_record(prompt),
        "max_length": prompted.max_length,
        "prepend_bos": prompted.prepend_bos,
        "chat": None if prompted.layout.chat is None else prompted.layout.chat.told,
        "n_cut": prompted.layout.n_cut(ids),
        "writing": {k: v for k, v in asdict(how).items() if k != "keeps"} | {"end_ids": list(how.end_ids)},
        "interventions": [_record(name, function) for name, function in chosen],
    }
    ended = tuple(bool(row) and row[-1] in how.end_ids for row in rows)
    return Completions(tuple(texts), tuple(answers), tuple(map(tuple, rows)), ended, settings)


def _as_hooks(given: Any) -> list[Hook]:
    """Interventions as hooks.

    Raises:
        TypeError: For anything else, an intervention that nobody gave its neurons among it.
    """
    hooks = list(given) if isinstance(given, list | tuple) else [given]
    for hook in hooks:
        if not (
            isinstance(hook, tuple) and len(hook) == 2 and isinstance(hook[0], str) and callable(hook[1])
        ):
            raise TypeError(
                "interventions must be hooks, pairs of a hook point's name and a function, such as "
                f"ablate(neurons, how=Scale(2.0)) gives; got {hook!r}"
            )
    return hooks


def _record(name: str, function: Any) -> dict[str, str | None]:
    """What is recorded of a hook; ``digest`` tells edits of other neurons or values apart, and is ``None`` of a
    function."""
    return {
        "hook": name,
        "what": _told(function),
        "positions": function.positions if isinstance(function, ActsAt) else "any",
        "digest": _digest(function),
    }


def _digest(function: Any) -> str | None:
    inner = function.function if isinstance(function, ActsAt) else function
    digest = getattr(inner, "digest", None)
    return digest if isinstance(digest, str) else None


def _told(function: Any) -> str:
    inner = function.function if isinstance(function, ActsAt) else function
    return str(getattr(inner, "told", None) or getattr(inner, "__name__", type(inner).__name__))


def write(
    prompted: "PromptedModel", text_ids: list[list[int]], how: Writing, hooks: Hooks
) -> list[list[int]]:
    """What the model writes after each text (as :meth:`PromptedModel.encode` gives them), end tokens included."""
    declared = all(isinstance(f, ActsAt) and f.positions in PLACES for _, f in hooks)
    layout = replace(prompted.layout, padding_side="left", pads=agrees(prompted.model, "padding left"))
    written: dict[int, list[int]] = {}
    seeds = _seeds(text_ids, how.seed)
    with prompted.attached() as virtual, quiet():
        keeps = how.keeps and declared and virtual.alone
        lengths = layout.lengths(text_ids)
        _require_room(prompted, lengths, how.max_new_tokens)
        batches = length_batches(
            [n + how.max_new_tokens for n in lengths],
            _batch_tokens(prompted),
            prompted.run.batch_size,
            padded=layout.pads and declared and virtual.alone,
            limit=None if layout.limit is None else layout.limit + how.max_new_tokens,
        )
        how = replace(how, keeps=keeps)
        with ready_to_write(prompted, virtual, hooks) as (engine, state):

            def run(batch: list[int]) -> None:
                tokens = layout.assemble([text_ids[i] for i in batch], batch)
                steps = _steps(batch, how, [seeds[i] for i in batch])
                rows = _written(engine, state, tokens, how, pad_id(prompted.model), steps)
                written.update(zip(batch, rows, strict=True))

            run_batches(batches, run)
    return [written[i] for i in range(len(text_ids))]


def _batch_tokens(prompted: "PromptedModel") -> int | None:
    given = prompted.run.batch_tokens
    if given is None and prompted.run.batch_size is None:
        return batch_tokens_on(prompted.model.cfg.device)
    return given


def _require_room(prompted: "PromptedModel", lengths: list[int], n_new: int) -> None:
    """Refuse to write beyond what the model can read."""
    longest, most, name = max(lengths), max_length(prompted.model), prompted.model.cfg.model_name
    if most is not None and longest + n_new > most:
        room = most - longest
        advice = [f"give max_new_tokens of at most {room}"] if room > 0 else []
        advice += [f"cut texts by PromptedModel(max_length={most - n_new})"] if most > n_new else []
        raise ValueError(
            f"text {lengths.index(longest)} has {longest} tokens with the prompt, and with {n_new} new ones that is "
            f"more than the {most} that {name} takes; {', or '.join(advice) or 'give shorter texts and fewer tokens'}"
        )
    limit = prompted.layout.limit
    crossing = [] if limit is None else [n for n in lengths if n <= limit < n + n_new]
    if limit is not None and crossing:
        raise ValueError(
            f"positions of {name} change their meaning where a sequence grows beyond {limit} tokens, and one of "
            f"{crossing[0]} with {n_new} new ones does; give max_new_tokens of at most {limit - max(crossing)}"
        )


def _seeds(text_ids: list[list[int]], seed: int) -> list[int]:
    """A seed of its own for each text: by the text, and by how often it stood there before, so that a text is answered
    alike alone and among others, and differently each time it is asked again."""
    seen: Counter[tuple[int, ...]] = Counter()
    found = []
    for ids in map(tuple, text_ids):
        digest = hashlib.sha256(f"{seed} {seen[ids]} {ids}".encode()).digest()
        found.append(int.from_bytes(digest[:8], "big") % 2**63)
        seen[ids] += 1
    return found


def _steps(examples: list[int], how: Writing, seeds: list[int]) -> list[Any]:
    """What is done to the logits of each step, after the model's own generation settings."""
    steps: list[Any] = [_Finite(examples)]
    if how.temperature is not None:
        steps += [TemperatureLogitsWarper(float(how.temperature))]
        steps += [] if how.top_k is None else [TopKLogitsWarper(how.top_k)]
        steps += [] if how.top_p is None else [TopPLogitsWarper(how.top_p)]
        steps += [_Drawn(seeds)]
    return steps


@torch.no_grad()
def _written(
    engine: Any, batch: WrittenBatch, tokens: PromptedTokens, how: Writing, pad: int, steps: list[Any]
) -> list[list[int]]:
    """What ``engine`` writes after each row of one batch."""
    try:
        ids = engine.generate(
            batch.begin(tokens),
            attention_mask=tokens.attention_mask,
            max_new_tokens=how.max_new_tokens,
            do_sample=False,  # what is drawn is drawn by a step of our own, row by row
            num_beams=1,
            disable_compile=True,  # hooks count the runs
            use_cache=how.keeps,
            eos_token_id=list(how.end_ids) or None,
            pad_token_id=pad,
            logits_processor=steps,
            return_dict_in_generate=False,
        )
    finally:
        batch.virtual.batch = None
    if not batch.n_runs:
        raise RuntimeError(
            f"{type(engine).__name__} ran without its embedding; virtual tokens can't be put there"
        )
    return [_until_end(row, how.end_ids) for row in ids[:, tokens.ids.shape[1] :].tolist()]


def _until_end(ids: list[int], ends: Sequence[int]) -> list[int]:
    """The ids up to the first end token."""
    n = next((k + 1 for k, i in enumerate(ids) if i in ends), len(ids))
    return ids[:n]


@dataclass(frozen=True)
class _Finite:
    """Refuses logits that are no numbers: a step of ``generate``'s."""

    examples: list[int]

    def __call__(
        self, input_ids: Int[Tensor, "batch pos"], scores: Float[Tensor, "batch d_vocab"]
    ) -> Float[Tensor, "batch d_vocab"]:
        if (bad := scores.isnan().any(1)).any():
            raise ValueError(
                f"logits are not finite after text {self.examples[int(bad.nonzero()[0])]}; load the model in float32"
            )
        return scores


class _Drawn:
    """Draws a token of each row as the largest of its log-probabilities plus Gumbel noise (Maddison et al., 2014,
    section 2): a step of ``generate``'s. A row's noise depends on its seed and the step alone."""

    def __init__(self, seeds: list[int]) -> None:
        self.generators = [torch.Generator().manual_seed(one) for one in seeds]

    def __call__(
        self, input_ids: Int[Tensor, "batch pos"], scores: Float[Tensor, "batch d_vocab"]
    ) -> Float[Tensor, "batch d_vocab"]:
        n = scores.shape[1]
        waiting = torch.stack([torch.empty(n).exponential_(generator=own) for own in self.generators])
        return scores - waiting.log().to(scores)
