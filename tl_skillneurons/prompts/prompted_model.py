"""A TransformerLens model with a soft prompt in place: batches of text in, class logits and activations out.

Only the read-out position is projected, and only onto the label words: the run stops at the last hook point
before the vocabulary, and ``W_U``'s columns of the label words do the rest. An encoder without a
language-model head is read out by the linear read-out that was trained with the prompt.

No result depends on what else is in a batch, on its size or on the padding side (see
:mod:`~tl_skillneurons.prompts.positions`).
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from transformer_lens.model_bridge.exceptions import StopAtLayerException

from tl_skillneurons._checks import require_int, require_option
from tl_skillneurons.models.batches import batch_tokens_on, length_batches, run_batches
from tl_skillneurons.models.hooks import remove_hook
from tl_skillneurons.models.input_cache import InputCache, fork, prefill, runs_text_apart
from tl_skillneurons.models.sites import (
    embedding_width,
    is_causal,
    last_mlp_input,
    max_length,
    require_eval,
    require_supported,
)
from tl_skillneurons.models.tokenizing import (
    label_token_ids,
    resolve_prepend_bos,
    special_token_ids,
    text_token_ids,
)
from tl_skillneurons.prompts.positions import PADDING_SIDES, PromptedTokens, arrange, truncate
from tl_skillneurons.prompts.soft_prompt import SoftPrompt, VirtualTokens, attach

Hooks = Sequence[tuple[Any, Any]]
"""Pairs of hook-point name and function, as ``model.run_with_hooks(fwd_hooks=...)`` takes them."""


class PromptedModel:
    """A model, a soft prompt (or none) and label words, ready for batches of text.

    It does not pose as a model: TransformerLens' tools take the real one, inside ``prompt.attached(model)``.

    Args:
        model: A TransformerBridge in eval mode, see :func:`tl_skillneurons.load_model`.
        prompt: ``None`` runs the text alone.
        label_words: Class id to a word of one token, or to a token id. Not needed with a linear read-out, nor
            for activations.
        prepend_bos: Overrides what the prompt was trained with (else ``cfg.default_prepend_bos``).
        max_length: Longest sequence in tokens, virtual tokens included; by default what the model can take.
            Longer texts are cut at their end, the prompt never.
        padding_side: ``None`` pads causal models on the left and bidirectional ones on the right. No result
            depends on it.
        cache: Keys and values of texts, taken from there wherever a run touches only prompt positions.

    Raises:
        ValueError: When the model, the prompt and the label words don't go together; the message says which.
    """

    def __init__(
        self,
        model: Any,
        prompt: SoftPrompt | None,
        label_words: Mapping[int, str | int] | None = None,
        *,
        prepend_bos: bool | None = None,
        max_length: int | None = None,
        padding_side: str | None = None,
        cache: InputCache | None = None,
    ) -> None:
        require_supported(model)
        require_eval(model)
        if model.tokenizer is None:
            raise ValueError(
                f"{model.cfg.model_name} has no tokenizer; boot it with tokenizer=..., texts need one"
            )
        if prompt is not None:
            prompt.require_fits(model)
        if cache is not None and cache.model is not model:
            raise ValueError("the input cache is of another model; make one of this model: InputCache(model)")
        self.model, self.prompt, self.cache = model, prompt, cache
        self.causal = is_causal(model)
        if prepend_bos is None and prompt is not None:
            prepend_bos = prompt.prepend_bos
        self.prepend_bos = resolve_prepend_bos(model, prepend_bos)
        self.padding_side = require_option(
            padding_side or ("left" if self.causal else "right"), "padding_side", PADDING_SIDES
        )
        self.max_length = _max_length(model, max_length)
        self.linear = prompt is not None and prompt.readout is not None
        self.label_ids = None if label_words is None or self.linear else label_token_ids(model, label_words)

    @property
    def n_classes(self) -> int | None:
        """How many class logits there are, ``None`` without label words or a read-out."""
        if self.linear:
            return len(self.prompt.readout)
        return None if self.label_ids is None else len(self.label_ids)

    @property
    def n_prompt_positions(self) -> int:
        """How many positions the prompt takes, the mask before a bidirectional model's included."""
        return 0 if self.prompt is None else self.prompt.n_virtual_tokens + (not self.causal)

    def tokens(self, texts: Sequence[str]) -> PromptedTokens:
        """The batch of ``texts`` as token ids with the virtual tokens in place, with mask and positions."""
        return self.assemble(self.encode(texts))

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each text alone: with the special tokens its tokenizer (and ``prepend_bos``) gives it."""
        if isinstance(texts, str):
            raise TypeError(f"texts must be a list of strings, got one string {texts!r}; put it in a list")
        return text_token_ids(self.model, list(texts), self.prepend_bos)

    def assemble(self, text_ids: list[list[int]], example: Sequence[int] | None = None) -> PromptedTokens:
        """Put the virtual tokens beside texts that :meth:`encode` made ids of."""
        tokenizer, base = self.model.tokenizer, self.model.W_E.shape[0]
        mask_id = None
        if not self.causal and self.prompt is not None:
            mask_id = tokenizer.mask_token_id
            if mask_id is None:
                raise ValueError(
                    f"the tokenizer of {self.model.cfg.model_name} has no mask token to read out at"
                )
        tokens = arrange(
            text_ids,
            virtual_ids=range(base, base + (0 if self.prompt is None else self.prompt.n_virtual_tokens)),
            placement="suffix" if self.prompt is None else self.prompt.placement,
            mask_id=mask_id,
            special_ids=special_token_ids(tokenizer),
            pad_id=tokenizer.pad_token_id or 0,
            padding_side=self.padding_side,
            max_length=self.max_length,
            example=example,
        )
        return tokens.to(self.model.cfg.device)

    @contextmanager
    def attached(self) -> Iterator[VirtualTokens]:
        """The prompt's virtual tokens in place; without a prompt, only the positions are made known to hooks."""
        embedding = (
            torch.empty(0, embedding_width(self.model)) if self.prompt is None else self.prompt.embedding
        )
        with attach(self.model, embedding) as virtual:
            yield virtual

    def class_logits(
        self,
        texts: Sequence[str],
        fwd_hooks: Hooks = (),
        *,
        batch_size: int | None = None,
        batch_tokens: int | None = None,
    ) -> Float[Tensor, "batch n_classes"]:
        """Logits of the classes at the read-out position, columns in the order of the class ids, float32 or
        wider.

        Args:
            texts: Any number; they run in batches of similar length, and the rows come back in the order
                given.
            fwd_hooks: Run in every batch, for example ``ablate(...)``.
            batch_size, batch_tokens: Most texts and most tokens of a batch (see :meth:`batches`).

        Raises:
            ValueError: Without label words or a read-out, for hooks beyond the read-out, which would never fire,
                or when logits are not finite.
        """
        ids = self.encode(texts)
        if not ids:
            raise ValueError("texts must not be empty")
        rows: dict[int, Tensor] = {}
        with self.attached() as virtual:
            apart = self.cache is not None and self.runs_apart(virtual, fwd_hooks)

            def run(batch: list[int]) -> None:
                tokens = self.assemble([ids[i] for i in batch], batch)
                past = self.past(tokens) if apart else None
                rows.update(zip(batch, self.read_out(tokens, virtual, fwd_hooks, past), strict=True))

            run_batches(self.batches(ids, batch_tokens, batch_size), run)
        logits = torch.stack([rows[i] for i in range(len(ids))])
        if not logits.isfinite().all():
            row = int((~logits.isfinite()).any(1).nonzero()[0])
            raise ValueError(
                f"class logits are not finite for text {row} ({texts[row]!r}); load the model in float32 "
                "(in float64, Hugging Face's attention masks overflow beside padding: use batch_size=1)"
            )
        return logits

    def batches(
        self, text_ids: list[list[int]], batch_tokens: int | None = None, batch_size: int | None = None
    ) -> list[list[int]]:
        """Which texts (as :meth:`encode` gives them) run together: those of similar length, the longest first.

        Args:
            batch_tokens: Most tokens of a batch, padding and virtual tokens included; without either limit
                1,024 on a CPU and 16,384 elsewhere.
            batch_size: Most texts of a batch.
        """
        if batch_tokens is None and batch_size is None:
            batch_tokens = batch_tokens_on(self.model.cfg.device)
        return length_batches(self.lengths(text_ids), batch_tokens, batch_size)

    def cut(self, text_ids: list[list[int]]) -> list[list[int]]:
        """The texts as they stand beside the prompt: without what is more than the model takes."""
        special = special_token_ids(self.model.tokenizer)
        return [truncate(ids, self.n_prompt_positions, special, self.max_length) for ids in text_ids]

    def lengths(self, text_ids: list[list[int]]) -> list[int]:
        """How many tokens each text has with the prompt in place, and cut to what the model takes."""
        limit = self.max_length or float("inf")
        return [min(len(ids) + self.n_prompt_positions, limit) for ids in text_ids]

    @cached_property
    def text_runs_apart(self) -> bool:
        """Whether the text can be run before the prompt: a suffix prompt, and a causal model that allows it."""
        is_suffix = self.prompt is not None and self.prompt.placement == "suffix"
        return is_suffix and self.padding_side == "left" and runs_text_apart(self.model)

    @cached_property
    def last_mlp(self) -> str | None:
        """The hook point at which the last MLP's input can be cut to one position that is read, with the same
        result there; ``None`` where the model's layer does not allow it (OPT's reshapes what comes out)."""
        name = last_mlp_input(self.model)
        ids = torch.full((2, 3), 3, device=self.model.cfg.device)
        last = [("unembed.hook_in" if self.causal else "mlm_head.hook_in", _stop_at_last)]
        points = self.model.hook_dict
        with torch.no_grad():
            whole = _run(self.model, points, ids, last, {})
            try:
                cut = _run(self.model, points, ids, [(name, _keep_last), *last], {})
            except (RuntimeError, IndexError, ValueError):  # ValueError: the hook point is switched off
                return None
        same = torch.allclose(cut.float(), whole.float(), rtol=1e-2, atol=1e-2 * float(whole.abs().max()))
        return name if same else None

    def runs_apart(self, virtual: VirtualTokens, fwd_hooks: Hooks = ()) -> bool:
        """Whether a run with these hooks may take the text's keys and values as they are without them.

        Not where anything acts on text positions: hooks are only known to leave the text alone when
        ``ablate(positions="prompt")`` made them, and other hooks on the model are not known at all.
        """
        return _all_act_at("prompt", fwd_hooks) and virtual.alone and self.text_runs_apart

    def past(self, tokens: PromptedTokens) -> Any:
        """The keys and values of the batch's texts, from the input cache where there is one."""
        n = self.prompt.n_virtual_tokens
        ids, mask = tokens.ids[:, :-n], tokens.attention_mask[:, :-n]
        return prefill(self.model, ids, mask) if self.cache is None else self.cache.past(ids, mask)

    def read_out(
        self,
        tokens: PromptedTokens,
        virtual: VirtualTokens,
        fwd_hooks: Hooks = (),
        past: Any = None,
    ) -> Float[Tensor, "batch n_classes"]:
        """Class logits of one batch inside :meth:`attached`; gradients reach the prompt and its read-out.

        Args:
            past: What :meth:`past` gave, where :meth:`runs_apart`; ``None`` runs the text too.
        """
        model = self.model
        if self.n_classes is None:
            raise ValueError("class logits need label words; give PromptedModel label_words={0: ..., 1: ...}")
        if not self.causal and self.prompt is None:
            raise ValueError(
                f"{model.cfg.model_name} is read out at the mask of its prompt; give PromptedModel a prompt"
            )
        never = ("mlm_head.hook_out", "unembed.hook_in", "unembed.hook_out")
        late = [name for name, _ in fwd_hooks if name in (never if self.linear else never[-1:])]
        if late:
            raise ValueError(
                f"a hook at {late[0]!r} would never fire: class logits are read before it; use run_with_hooks"
            )
        columns = tokens.readout if past is None else tokens.last(self.prompt.n_virtual_tokens).readout
        readout = (torch.arange(len(tokens), device=columns.device), columns)

        def stop_at_readout(act: Tensor, hook: Any) -> Tensor:
            raise StopAtLayerException(act[readout])

        def keep_readout(act: Tensor, hook: Any) -> Tensor:
            return act[readout][:, None]

        def stop(act: Tensor, hook: Any) -> Tensor:
            raise StopAtLayerException(act[:, 0])

        if _all_act_at("all", fwd_hooks) and virtual.alone and self.last_mlp is not None:
            fwd_hooks = [*fwd_hooks, (self.last_mlp, keep_readout)]  # the last MLP runs at the read-out alone
        if self.causal:
            ours = [("unembed.hook_in", stop_at_readout)]
        elif self.linear:
            ours = [("mlm_head.hook_in", stop_at_readout)]
        else:  # the head's own transform runs at the read-out alone
            ours = [("mlm_head.hook_in", keep_readout), ("unembed.hook_in", stop)]
        hidden = self.forward(tokens, virtual, [*fwd_hooks, *ours], past)
        if self.linear:
            return hidden.to(self.prompt.readout.dtype) @ self.prompt.readout.T.to(hidden.device)
        ids = self.label_ids.to(hidden.device)
        logits = hidden @ model.W_U[:, ids].to(hidden) + model.b_U[ids].to(hidden)
        transform = getattr(model.adapter, "apply_output_logits_transform", None)  # Gemma-2's softcap, say
        logits = logits if transform is None else transform(logits)
        return logits.to(torch.promote_types(logits.dtype, torch.float32))

    def forward(
        self,
        tokens: PromptedTokens,
        virtual: VirtualTokens,
        fwd_hooks: Hooks = (),
        past: Any = None,
        **kwargs: Any,
    ) -> Any:
        """Run one batch inside :meth:`attached`; keyword arguments go to ``model.run_with_hooks``.

        With ``past`` only the virtual tokens run, on top of it: hooks see their positions alone.
        """
        kwargs["attention_mask"] = tokens.attention_mask
        if past is not None:
            tokens = tokens.last(self.prompt.n_virtual_tokens)
            kwargs["past_key_values"] = fork(past)
        virtual.batch = tokens
        try:
            return _run(self.model, virtual.points, tokens.ids, fwd_hooks, kwargs)
        finally:
            virtual.batch = None

    def run_with_hooks(self, texts: Sequence[str], fwd_hooks: Hooks = (), **kwargs: Any) -> Any:
        """``model.run_with_hooks`` on one batch of texts with the prompt in place; positions as in :meth:`tokens`."""
        with self.attached() as virtual:
            return self.forward(self.tokens(texts), virtual, fwd_hooks, **kwargs)

    def run_with_cache(self, texts: Sequence[str], **kwargs: Any) -> Any:
        """``model.run_with_cache`` on one batch of texts with the prompt in place; positions as in :meth:`tokens`."""
        with self.attached() as virtual:
            tokens = virtual.batch = self.tokens(texts)
            return self.model.run_with_cache(tokens.ids, attention_mask=tokens.attention_mask, **kwargs)


def _all_act_at(positions: str, fwd_hooks: Hooks) -> bool:
    """Whether all hooks are of ``ablate(positions=...)``, and with these positions."""
    return all(getattr(function, "acts_at", None) == positions for _, function in fwd_hooks)


def _stop_at_last(act: Tensor, hook: Any) -> Tensor:
    raise StopAtLayerException(act[:, -1])


def _keep_last(act: Tensor, hook: Any) -> Tensor:
    return act[:, -1:]


def _run(
    model: Any, points: Mapping[str, Any], ids: Tensor, fwd_hooks: Hooks, kwargs: Mapping[str, Any]
) -> Any:
    """``model.run_with_hooks``, which looks all names up anew each time, only where that is needed."""

    def is_plain(name: Any) -> bool:
        known = isinstance(name, str) and name in points
        return known and (not model.compatibility_mode or points[name].name == name)

    if kwargs.keys() - {"attention_mask", "past_key_values"} or not all(is_plain(n) for n, _ in fwd_hooks):
        return model.run_with_hooks(ids, fwd_hooks=list(fwd_hooks), **kwargs)
    placed = []
    try:
        for name, function in fwd_hooks:
            model.check_hooks_to_add(points[name], name, function)
            placed.append((points[name], points[name].add_hook(function)))
        return model(ids, **kwargs)
    except StopAtLayerException as stopped:
        return stopped.layer_output
    finally:
        for point, handle in placed:
            remove_hook(point, handle)


def _max_length(model: Any, wanted: int | None) -> int | None:
    limit = max_length(model)
    if wanted is None:
        return limit
    require_int(wanted, "max_length")
    if limit is not None and wanted > limit:
        raise ValueError(f"max_length must be at most {limit} for {model.cfg.model_name}, got {wanted}")
    return wanted
