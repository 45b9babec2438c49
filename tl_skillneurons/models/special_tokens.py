"""The special tokens that a model's own tokenizer puts around a text, kept through the boot.

TransformerLens loads a tokenizer with ``add_bos_token=True``. Of a generic class (``PreTrainedTokenizerFast``) the rule
that puts special tokens around a text is then written anew, for a BOS alone: a RoBERTa-like model never sees its
``</s>``, a BERT-like one neither ``[CLS]`` nor ``[SEP]``. Here the own rule is put back, and what a booted model's
tokenizer gives is compared with the tokenizer loaded afresh.

Whether a causal model's text begins with a BOS, and that no EOS ends it, follows TransformerLens
(:func:`~tl_skillneurons.models.tokenizing.text_token_ids`), whatever its tokenizer does by itself.
"""

import copy
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

from transformer_lens.model_bridge import TransformerBridge

from tl_skillneurons.models.sites import hf_config, is_causal
from tl_skillneurons.models.tokenizing import resolve_prepend_bos, text_token_ids

TEXTS = ("a", "The film was not bad at all.", "1, 2, 3")
"""What is encoded by both tokenizers."""
_SEEN: WeakKeyDictionary[TransformerBridge, list[list[int]]] = WeakKeyDictionary()
"""The ids that these texts were run as when the model was first looked at."""
_FRESH: WeakKeyDictionary[TransformerBridge, tuple[tuple[str, str], Any]] = WeakKeyDictionary()


class Frame(NamedTuple):
    """The ids that a tokenizer puts before and after a text."""

    before: tuple[int, ...]
    after: tuple[int, ...]


def frame_of(tokenizer: Any) -> Frame | None:
    """What ``tokenizer`` puts around a text; ``None`` where the text's own ids change with it.

    Example:
        >>> frame_of(AutoTokenizer.from_pretrained("FacebookAI/roberta-base"))
        Frame(before=(0,), after=(2,))
    """
    for text in TEXTS:
        bare = list(tokenizer(text, add_special_tokens=False)["input_ids"])
        framed = list(tokenizer(text)["input_ids"])
        for start in range(len(framed) - len(bare) + 1):
            if bare and framed[start : start + len(bare)] == bare:
                return Frame(tuple(framed[:start]), tuple(framed[start + len(bare) :]))
    return None


def fresh_tokenizer(model: TransformerBridge, revision: str | None = None) -> Any:
    """The tokenizer that the booted one came from, loaded again from its files, or from what the hub left here: of the
    model's own revision, unless another is given.

    ``None`` for a tokenizer that was made in memory, or whose files aren't here.
    """
    from transformers import AutoTokenizer

    source = getattr(model.tokenizer, "name_or_path", None)
    if not source:
        return None
    asked = (source, revision or _revision(model))
    known, own = _FRESH.get(model, (None, None))
    if known == asked:
        return own
    try:
        own = AutoTokenizer.from_pretrained(
            source, revision=asked[1], local_files_only=True, trust_remote_code=False
        )
    except Exception:  # whatever keeps it from being loaded, there is nothing to compare with
        return None
    _FRESH[model] = asked, own
    return own


def _revision(model: TransformerBridge) -> str:
    """The commit that the model's configuration was loaded at, where it says."""
    return getattr(hf_config(model), "_commit_hash", None) or "main"


def keep_special_tokens(model: TransformerBridge, own: Any = None) -> None:
    """Let the booted tokenizer put around a text what the model's own tokenizer does.

    A causal model's tokenizer that differs by a BOS alone is left as TransformerLens has it.

    Args:
        own: The tokenizer loaded afresh; by default :func:`fresh_tokenizer`.

    Example:
        >>> model = TransformerBridge.boot_transformers(folder)  # loses what a generic class puts around a text
        >>> skn.models.keep_special_tokens(model)
    """
    booted = model.tokenizer
    own = fresh_tokenizer(model) if own is None else own
    if own is None or booted is None:
        return
    wanted, given = frame_of(own), frame_of(booted)
    if wanted is None or _counting(model, wanted) == _counting(model, given):
        return
    backend = getattr(own, "backend_tokenizer", None)
    if backend is not None:
        booted.backend_tokenizer.post_processor = copy.deepcopy(backend.post_processor)
    for name in ("add_bos_token", "add_eos_token"):
        if backend is not None:
            object.__setattr__(booted, f"_{name}", getattr(own, name, False))
        elif hasattr(own, name):
            setattr(booted, name, getattr(own, name))
        booted.init_kwargs.pop(
            name, None
        )  # else the rule is written anew where this tokenizer is saved and loaded
        if name in own.init_kwargs:
            booted.init_kwargs[name] = own.init_kwargs[name]
    found = frame_of(booted) or Frame((), ())
    model.cfg.tokenizer_prepends_bos = bool(
        {booted.bos_token_id, getattr(booted, "cls_token_id", None)} & set(found.before)
    )
    model.cfg.tokenizer_appends_eos = booted.eos_token_id in found.after


def token_differences(model: TransformerBridge, own: Any = None) -> str | None:
    """How the ids that texts are run as differ from those of the tokenizer loaded afresh, or from those that they were
    run as when the model was first looked at, in one sentence.

    ``None`` where they don't, or where there is nothing to compare with.

    Args:
        own: The tokenizer loaded afresh; by default :func:`fresh_tokenizer`.
    """
    if model.tokenizer is None:
        return None
    texts = list(TEXTS)
    here = text_token_ids(model, texts, resolve_prepend_bos(model, None))
    counted = [_counted_row(model, ids) for ids in here]
    for text, ids, before in zip(texts, counted, _SEEN.get(model, counted), strict=True):
        if ids != before:
            return (
                f"the text {text!r} was run as the ids {before} and is run as {ids}, since another tokenizer was put "
                "in the place of the model's; put that back, or boot the model with this one"
            )
    differs = _from_its_own(model, own, texts, here)
    if differs is None:
        _SEEN[model] = counted
    return differs


def _from_its_own(model: TransformerBridge, own: Any, texts: list[str], here: list[list[int]]) -> str | None:
    own = fresh_tokenizer(model) if own is None else own
    if own is None:
        return None
    afresh = [list(row) for row in own(texts)["input_ids"]]
    for text, ids, wanted in zip(texts, here, afresh, strict=True):
        if _counted_row(model, ids) != _counted_row(model, wanted):
            return (
                f"the text {text!r} is run as {_named(model.tokenizer, ids)}, and the model's own tokenizer "
                f"({type(own).__name__} of {own.name_or_path}) gives {_named(own, wanted)}; "
                "skn.models.keep_special_tokens(model) puts its rule back"
            )
    return None


def _counting(model: TransformerBridge, frame: Frame | None) -> Frame | None:
    """A frame without what TransformerLens decides in causal models: the BOS before a text."""
    if frame is None or not is_causal(model):
        return frame
    return Frame(tuple(i for i in frame.before if i != model.tokenizer.bos_token_id), frame.after)


def _counted_row(model: TransformerBridge, row: list[int]) -> list[int]:
    if not is_causal(model):
        return row
    bos, eos = model.tokenizer.bos_token_id, model.tokenizer.eos_token_id
    kept = [i for n, i in enumerate(row) if not (i == eos and n == len(row) - 1)]
    return [i for i in kept if i != bos]


def _named(tokenizer: Any, ids: list[int]) -> str:
    return " ".join(map(str, tokenizer.convert_ids_to_tokens(ids)))
