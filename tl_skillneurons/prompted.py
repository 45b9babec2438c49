"""A TransformerLens model with a soft prompt in place: batches of text in, class logits and activations out.

Only the read-out position is projected, and only onto the label words: the run stops at the last hook point
before the vocabulary, and ``W_U``'s columns of the label words do the rest. An encoder without a
language-model head is read out by the linear read-out that was trained with the prompt.

No result depends on what else is in a batch, on its size or on the padding side (see
:mod:`~tl_skillneurons.positions`).
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from transformer_lens import utilities as tl_utilities
from transformer_lens.model_bridge.exceptions import StopAtLayerException

from tl_skillneurons._checks import require_int, require_option
from tl_skillneurons.positions import PADDING_SIDES, PromptedTokens, arrange
from tl_skillneurons.sites import (
    embedding_width,
    has_language_model_head,
    is_causal,
    max_length,
    require_eval,
    require_supported,
)
from tl_skillneurons.soft_prompt import SoftPrompt, VirtualTokens, attach

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
    ) -> None:
        require_supported(model)
        require_eval(model)
        if model.tokenizer is None:
            raise ValueError(
                f"{model.cfg.model_name} has no tokenizer; boot it with tokenizer=..., texts need one"
            )
        if prompt is not None:
            prompt.require_fits(model)
        self.model, self.prompt = model, prompt
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
        self, texts: Sequence[str], fwd_hooks: Hooks = (), *, batch_size: int = 32
    ) -> Float[Tensor, "batch n_classes"]:
        """Logits of the classes at the read-out position, columns in the order of the class ids, float32 or
        wider.

        Args:
            texts: Any number; they run in batches of similar length, and the rows come back in the order
                given.
            fwd_hooks: Run in every batch, for example ``ablate(...)``.

        Raises:
            ValueError: Without label words or a read-out, for hooks beyond the read-out, which would never fire,
                or when logits are not finite.
        """
        require_int(batch_size, "batch_size")
        ids = self.encode(texts)
        if not ids:
            raise ValueError("texts must not be empty")
        rows: dict[int, Tensor] = {}
        with self.attached() as virtual:
            for batch in length_batches([len(i) for i in ids], batch_size):
                tokens = self.assemble([ids[i] for i in batch], batch)
                logits = self.read_out(tokens, virtual, fwd_hooks)
                rows.update(zip(batch, logits, strict=True))
        logits = torch.stack([rows[i] for i in range(len(ids))])
        if not logits.isfinite().all():
            row = int((~logits.isfinite()).any(1).nonzero()[0])
            raise ValueError(
                f"class logits are not finite for text {row} ({texts[row]!r}); load the model in float32 "
                "(in float64, Hugging Face's attention masks overflow beside padding: use batch_size=1)"
            )
        return logits

    def read_out(
        self, tokens: PromptedTokens, virtual: VirtualTokens, fwd_hooks: Hooks = ()
    ) -> Float[Tensor, "batch n_classes"]:
        """Class logits of one batch inside :meth:`attached`; gradients reach the prompt and its read-out."""
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
        readout = (torch.arange(len(tokens)), tokens.readout.cpu())

        def stop_at_readout(act: Tensor, hook: Any) -> Tensor:
            raise StopAtLayerException(act[readout])

        def keep_readout(act: Tensor, hook: Any) -> Tensor:
            return act[readout][:, None]

        def stop(act: Tensor, hook: Any) -> Tensor:
            raise StopAtLayerException(act[:, 0])

        if self.causal:
            ours = [("unembed.hook_in", stop_at_readout)]
        elif self.linear:
            ours = [("mlm_head.hook_in", stop_at_readout)]
        else:  # the head's own transform runs at the read-out alone
            ours = [("mlm_head.hook_in", keep_readout), ("unembed.hook_in", stop)]
        hidden = self.forward(tokens, virtual, [*fwd_hooks, *ours])
        if self.linear:
            return hidden.to(self.prompt.readout.dtype) @ self.prompt.readout.T.to(hidden.device)
        ids = self.label_ids.to(hidden.device)
        logits = hidden @ model.W_U[:, ids].to(hidden) + model.b_U[ids].to(hidden)
        transform = getattr(model.adapter, "apply_output_logits_transform", None)  # Gemma-2's softcap, say
        logits = logits if transform is None else transform(logits)
        return logits.to(torch.promote_types(logits.dtype, torch.float32))

    def forward(
        self, tokens: PromptedTokens, virtual: VirtualTokens, fwd_hooks: Hooks = (), **kwargs: Any
    ) -> Any:
        """Run one batch inside :meth:`attached`; keyword arguments go to ``model.run_with_hooks``."""
        virtual.batch = tokens
        try:
            return self.model.run_with_hooks(
                tokens.ids, fwd_hooks=list(fwd_hooks), attention_mask=tokens.attention_mask, **kwargs
            )
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


def length_batches(lengths: Sequence[int], batch_size: int) -> list[list[int]]:
    """Indices in batches of similar length, the longest first (so that memory that won't do shows at once)."""
    order = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    return [order[i : i + batch_size] for i in range(0, len(order), batch_size)]


def resolve_prepend_bos(model: Any, prepend_bos: bool | None) -> bool | None:
    """Whether texts get a BOS: as asked, else as TransformerLens has it; ``None`` for bidirectional models."""
    if not is_causal(model):
        return None
    return bool(getattr(model.cfg, "default_prepend_bos", True)) if prepend_bos is None else prepend_bos


def text_token_ids(model: Any, texts: list[str], prepend_bos: bool | None) -> list[list[int]]:
    """Token ids of each text, as ``model.to_tokens(text, prepend_bos=...)`` gives them, but neither padded
    nor cut.

    A bidirectional model's text keeps all the special tokens its tokenizer gives it (``prepend_bos`` is
    ``None``).
    """
    tokenizer, cfg = model.tokenizer, model.cfg
    adds_bos = bool(getattr(cfg, "tokenizer_prepends_bos", True))
    if prepend_bos and not adds_bos:
        bos = tokenizer.bos_token
        if bos is not None and len(tokenizer(bos, add_special_tokens=False)["input_ids"]) == 1:
            texts = tl_utilities.get_input_with_manually_prepended_bos(bos, texts)
    if not texts:
        return []
    rows = tokenizer(texts, verbose=False)["input_ids"]
    if prepend_bos is None:
        return rows
    if getattr(cfg, "tokenizer_appends_eos", False):
        rows = [row[:-1] if len(row) > 1 and row[-1] == tokenizer.eos_token_id else row for row in rows]
    if not prepend_bos and adds_bos:
        rows = [row[1:] if row and row[0] == tokenizer.bos_token_id else row for row in rows]
    return rows


def special_token_ids(tokenizer: Any) -> frozenset[int]:
    """Ids of BOS, [CLS] and the like; the unknown token stands for a word, unless it is one of them too (as
    GPT-2's is).

    Compared by name: TransformerLens names a BOS that BERT's vocabulary lacks, and its id is then the unknown
    token's.
    """
    named = {name: token for name, token in tokenizer.special_tokens_map.items() if name != "unk_token"}
    special = set(tokenizer.all_special_ids)
    if tokenizer.unk_token not in named.values():
        special.discard(tokenizer.unk_token_id)
    return frozenset(special)


def label_token_ids(model: Any, label_words: Mapping[int, str | int]) -> Tensor:
    """The token id of each class's label word, in the order of the class ids.

    Raises:
        ValueError: For a word of several tokens, an id outside the vocabulary, two classes with one token,
            fewer than two classes, or a model whose language-model head was never trained.
    """
    if not has_language_model_head(model):
        raise ValueError(
            f"{model.cfg.model_name} has no language-model head, so label words can't be read; "
            "use a prompt with a linear read-out (fit_soft_prompts trains one)"
        )
    if len(label_words) < 2:
        raise ValueError(
            f"label_words must hold a word for each of at least two classes, got {dict(label_words)}"
        )
    d_vocab = model.W_U.shape[1]
    ids = []
    for label in sorted(label_words):
        word = label_words[label]
        if isinstance(word, str):
            word = _single_token(model.tokenizer, word)
        elif not 0 <= word < d_vocab:
            raise ValueError(f"the token id of label {label} must be in [0, {d_vocab}), got {word}")
        ids.append(word)
    if len(set(ids)) < len(ids):
        raise ValueError(f"each label needs a token of its own, got {dict(label_words)} with token ids {ids}")
    return torch.tensor(ids)


def _single_token(tokenizer: Any, word: str) -> int:
    def pieces(candidate: str) -> list[int]:
        return tokenizer(candidate, add_special_tokens=False)["input_ids"]

    ids = pieces(word)
    if len(ids) == 1 and ids[0] != tokenizer.unk_token_id:
        return ids[0]
    stem = word.strip()
    candidates = [
        f" {stem}",
        stem,
        f" {stem.lower()}",
        stem.lower(),
        f" {stem.partition('-')[0].partition(' ')[0]}",
    ]
    works = [
        c
        for c in candidates
        if c.strip() and c != word and len(pieces(c)) == 1 and pieces(c)[0] != tokenizer.unk_token_id
    ]
    told = (
        f"is {len(ids)} tokens ({tokenizer.convert_ids_to_tokens(ids)})"
        if len(ids) != 1
        else "is not in the vocabulary"
    )
    advice = f"try {works[0]!r}" if works else "choose another word, or give a token id"
    raise ValueError(f"label word {word!r} {told}; each label word must be one token ({advice})")


def _max_length(model: Any, wanted: int | None) -> int | None:
    limit = max_length(model)
    if wanted is None:
        return limit
    require_int(wanted, "max_length")
    if limit is not None and wanted > limit:
        raise ValueError(f"max_length must be at most {limit} for {model.cfg.model_name}, got {wanted}")
    return wanted
