"""Texts and label words as token ids, by the conventions of TransformerLens and of the model's tokenizer."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from transformer_lens import utilities as tl_utilities
from transformer_lens.model_bridge import TransformerBridge

from tl_skillneurons._checks import require_text
from tl_skillneurons.models.locks import held
from tl_skillneurons.models.sites import has_language_model_head, hf_config, is_causal

T5_MASK = "<extra_id_0>"


def resolve_prepend_bos(model: TransformerBridge, prepend_bos: bool | None) -> bool | None:
    """Whether texts get a BOS: as asked, else as TransformerLens has it; ``None`` for bidirectional models."""
    if not is_causal(model):
        return None
    return bool(getattr(model.cfg, "default_prepend_bos", True)) if prepend_bos is None else prepend_bos


def text_token_ids(model: TransformerBridge, texts: list[str], prepend_bos: bool | None) -> list[list[int]]:
    """Token ids of each text, as ``model.to_tokens(text, prepend_bos=...)`` gives them, but neither padded
    nor cut.

    A bidirectional model's text keeps all the special tokens its tokenizer gives it (``prepend_bos`` is
    ``None``).

    Raises:
        TypeError: For a text that is no string.
        ValueError: For half of a surrogate pair, or a token that the model has no row for.
    """
    for number, text in enumerate(texts):
        require_text(text, f"text {number}")
    tokenizer, cfg = model.tokenizer, model.cfg
    adds_bos = bool(getattr(cfg, "tokenizer_prepends_bos", True))
    if prepend_bos and not adds_bos:
        bos = tokenizer.bos_token
        if bos is not None and len(tokenizer(bos, add_special_tokens=False)["input_ids"]) == 1:
            texts = list(tl_utilities.get_input_with_manually_prepended_bos(bos, texts))
    if not texts:
        return []
    with held(model):  # a tokenizer is one thread's as well
        rows = tokenizer(texts, verbose=False)["input_ids"]
    require_rows(model, rows)
    if prepend_bos is None:
        return rows
    if getattr(cfg, "tokenizer_appends_eos", False):
        rows = [row[:-1] if len(row) > 1 and row[-1] == tokenizer.eos_token_id else row for row in rows]
    if not prepend_bos and adds_bos:
        special = set(tokenizer.all_special_ids)
        rows = [_without_bos(row, tokenizer.bos_token_id, special) for row in rows]
    return rows


def _without_bos(row: list[int], bos: int | None, special: set[int]) -> list[int]:
    """A row without the BOS among the special tokens that it begins with."""
    for place, token in enumerate(row):
        if token == bos:
            return row[:place] + row[place + 1 :]
        if token not in special:
            break
    return row


def piece_ids(model: TransformerBridge, text: str) -> list[int]:
    """Token ids of a piece of text, without special tokens.

    Raises:
        ValueError: For a token that the model has no row for.
    """
    with held(model):
        ids = model.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    require_rows(model, [ids])
    return ids


def require_rows(model: TransformerBridge, rows: Sequence[Sequence[int]]) -> None:
    """Refuse ids from the model's last embedding row on: they would be taken for virtual tokens.

    Raises:
        ValueError: With the text's number and the token.
    """
    n_rows = model.W_E.shape[0]
    for number, row in enumerate(rows):
        beyond = next((i for i in row if i >= n_rows), None)
        if beyond is not None:
            raise ValueError(
                f"text {number} holds the token {model.tokenizer.convert_ids_to_tokens(beyond)!r} of id {beyond}, and "
                f"the model has rows for the ids 0 to {n_rows - 1}; a token added to the tokenizer needs a row of its "
                "own (resize_token_embeddings, before the model is booted), or leave the token out of the texts"
            )


def pad_id(model: TransformerBridge) -> int:
    """An id to pad with, which is never attended to: the tokenizer's, else that of the model's config (RoBERTa counts
    positions from where it stands), else 0."""
    for owner in (model.tokenizer, hf_config(model)):
        given = getattr(owner, "pad_token_id", None)
        if isinstance(given, int) and 0 <= given < model.W_E.shape[0]:
            return given
    return 0


def mask_token_id(tokenizer: Any) -> int | None:
    """The id of the mask token, or of what stands for words left out in T5 (``<extra_id_0>``); ``None`` without one."""
    given = getattr(tokenizer, "mask_token_id", None)
    if given is None and tokenizer is not None:
        sentinel = tokenizer.convert_tokens_to_ids(T5_MASK)
        given = None if sentinel == tokenizer.unk_token_id else sentinel
    return given


def mask_id(model: TransformerBridge) -> int:
    """The id of the mask token that the model has a row for; see :func:`mask_token_id`.

    Raises:
        ValueError: When the tokenizer has none, or the model no row for it.
    """
    given = mask_token_id(model.tokenizer)
    if given is None:
        raise ValueError(f"the tokenizer of {model.cfg.model_name} has no mask token to read out at")
    if given >= model.W_E.shape[0]:
        raise ValueError(
            f"the mask token {model.tokenizer.convert_ids_to_tokens(given)!r} has the id {given}, and the model has "
            f"rows for the ids 0 to {model.W_E.shape[0] - 1}; it needs a row of its own (resize_token_embeddings, "
            "before booting)"
        )
    return given


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


def label_token_ids(model: TransformerBridge, label_words: Mapping[int, str | int]) -> Tensor:
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
    if not label_words:
        raise ValueError(
            f"{model.cfg.model_name} answers with words, and the task has none for its labels: give label_words, "
            "such as {'bad': ' bad', 'good': ' good'} with one for each label, or train prompts with readout='linear'"
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
            spelled, word = word, _single_token(model.tokenizer, word)
            if word >= d_vocab:
                raise ValueError(
                    f"label word {spelled!r} has the token id {word}, and the model answers with the ids 0 to "
                    f"{d_vocab - 1}; a token added to the tokenizer needs a row of its own (resize_token_embeddings, "
                    "before the model is booted), or choose another word"
                )
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
    if works and works[0].strip() == stem:  # they differ in the blank alone
        advice += ", for the blank before a word is part of its token"
    raise ValueError(f"label word {word!r} {told}; each label word must be one token ({advice})")
