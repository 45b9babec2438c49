"""Texts and label words as token ids, by the conventions of TransformerLens and of the model's tokenizer."""

from collections.abc import Mapping, Sequence
from typing import Any
from weakref import WeakKeyDictionary

from transformer_lens import utilities as tl_utilities
from transformer_lens.model_bridge import TransformerBridge

from tl_skillneurons._checks import require_text
from tl_skillneurons.models.locks import held
from tl_skillneurons.models.sites import has_language_model_head, hf_config, is_causal
from tl_skillneurons.models.untouched import inner

T5_MASK = "<extra_id_0>"
_COUNTING: WeakKeyDictionary[TransformerBridge, int | None] = WeakKeyDictionary()


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
        ValueError: For half of a surrogate pair, a token that the model has no row for, or padding in the text of a
            model that counts positions by it.
    """
    for number, text in enumerate(texts):
        require_text(text, f"text {number}")
    tokenizer, cfg = model.tokenizer, model.cfg
    adds_bos = bool(getattr(cfg, "tokenizer_prepends_bos", True))
    if not texts:
        return []
    with held(model):  # a tokenizer is one thread's as well
        bos = tokenizer.bos_token if prepend_bos and not adds_bos else None
        if bos is not None and len(tokenizer(bos, add_special_tokens=False)["input_ids"]) == 1:
            texts = list(tl_utilities.get_input_with_manually_prepended_bos(bos, texts))
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
    counted = _counts_positions_by(model)
    for number, row in enumerate(rows):
        if counted in row:
            raise ValueError(
                f"text {number} holds {model.tokenizer.convert_ids_to_tokens(counted)!r}, the padding token, and "
                f"{model.cfg.model_name} counts its positions by where that stands, so that the text's positions are "
                "others beside a prompt than alone; leave it out of the text"
            )


def _counts_positions_by(model: TransformerBridge) -> int | None:
    """The id of padding where the model counts positions by where it stands in the ids (RoBERTa and its kin)."""
    if model not in _COUNTING:
        parts: list[Any] = [
            part
            for part in map(inner, model.original_model.modules())
            if hasattr(part, "create_position_ids_from_inputs_embeds")
        ]
        _COUNTING[model] = next((p.padding_idx for p in parts if hasattr(p, "padding_idx")), None)
    return _COUNTING[model]


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


def label_tokens(model: TransformerBridge, label_words: Mapping[int, str | int]) -> list[list[int]]:
    """The token ids of each class's label word, in the order of the class ids: one of a masked language model, which
    fills one mask, one or several of a causal one.

    Raises:
        TypeError: For what is neither a word nor an id.
        ValueError: For a word of several tokens in a masked language model, an id outside the vocabulary, words that
            can't be told apart, fewer than two classes, or a model whose language-model head was never trained.
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
    d_vocab, causal = model.W_U.shape[1], is_causal(model)
    found = []
    for label in sorted(label_words):
        word = label_words[label]
        if not isinstance(word, str):
            if not isinstance(word, int) or isinstance(word, bool):
                raise TypeError(
                    f"the label word of label {label} must be a string or a token id, got {type(word).__name__} "
                    f"{word!r}; give a word such as ' good' for each label"
                )
            if not 0 <= word < d_vocab:
                raise ValueError(f"the token id of label {label} must be in [0, {d_vocab}), got {word}")
            found.append([word])
            continue
        with held(model):
            ids = _several_tokens(model.tokenizer, word) if causal else [_single_token(model.tokenizer, word)]
        if beyond := [i for i in ids if i >= d_vocab]:
            raise ValueError(
                f"label word {word!r} has the token id {beyond[0]}, and the model answers with the ids 0 to "
                f"{d_vocab - 1}; a token added to the tokenizer needs a row of its own (resize_token_embeddings, "
                "before the model is booted), or choose another word"
            )
        found.append(ids)
    _require_told_apart(found, label_words)
    return found


def told_ids(ids: Sequence[Sequence[int]]) -> list[Any]:
    """Label words' token ids as a message tells them: numbers where each is one."""
    return [own[0] for own in ids] if all(len(own) == 1 for own in ids) else [list(own) for own in ids]


def _require_told_apart(ids: list[list[int]], label_words: Mapping[int, str | int]) -> None:
    """Refuse words of the same tokens, and a word that another begins with, which is never less likely than that."""
    words = [label_words[label] for label in sorted(label_words)]
    for one, own in enumerate(ids):
        for other, longer in enumerate(ids):
            if one == other or own != longer[: len(own)]:
                continue
            if len(own) == len(longer):
                raise ValueError(
                    f"each label needs a word of its own, got {dict(label_words)} with token ids {told_ids(ids)}; give "
                    "words that the tokenizer tells apart"
                )
            raise ValueError(
                f"label words must be told apart, and {words[other]!r} ({longer}) begins with all the tokens of "
                f"{words[one]!r} ({own}), which is never the less likely; give words that differ before one of them "
                "ends"
            )


def _several_tokens(tokenizer: Any, word: str) -> list[int]:
    """The tokens of a word, all of them in the vocabulary."""
    ids = list(tokenizer(word, add_special_tokens=False)["input_ids"])
    if not ids or tokenizer.unk_token_id in ids:
        pieces = f"holds what is not in the vocabulary ({tokenizer.convert_ids_to_tokens(ids)})"
        told = pieces if len(ids) > 1 else "is not in the vocabulary"
        raise ValueError(f"label word {word!r} {told}; {_advice(tokenizer, word)}")
    return ids


def _single_token(tokenizer: Any, word: str) -> int:
    ids = list(tokenizer(word, add_special_tokens=False)["input_ids"])
    if len(ids) == 1 and ids[0] != tokenizer.unk_token_id:
        return ids[0]
    told = (
        f"is {len(ids)} tokens ({tokenizer.convert_ids_to_tokens(ids)})"
        if len(ids) != 1
        else "is not in the vocabulary"
    )
    raise ValueError(
        f"label word {word!r} {told}; each label word must be one token ({_advice(tokenizer, word)}), for a masked "
        "language model fills one mask with one"
    )


def _advice(tokenizer: Any, word: str) -> str:
    """Which word near to this one is one token, if any is."""

    def is_one(candidate: str) -> bool:
        ids = tokenizer(candidate, add_special_tokens=False)["input_ids"]
        return len(ids) == 1 and ids[0] != tokenizer.unk_token_id

    stem = word.strip()
    first = f" {stem.partition('-')[0].partition(' ')[0]}"
    candidates = [f" {stem}", stem, f" {stem.lower()}", stem.lower(), first]
    works = [c for c in candidates if c.strip() and c != word and is_one(c)]
    if not works:
        return "choose another word, or give a token id"
    same = works[0].strip() == stem  # they differ in the blank alone
    return f"try {works[0]!r}" + (", for the blank before a word is part of its token" if same else "")
