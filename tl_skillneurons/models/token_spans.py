"""Which characters of a text each of its tokens stands for.

A tokenizer that knows its offsets tells them. Where it doesn't (those written in Python), tokens are looked for in the
text one after another by what they decode to; one that isn't found there has an empty span at the place reached.
"""

from typing import Any

from tl_skillneurons.models.tokenizing import special_token_ids

Span = tuple[int, int]
"""The first character, and the one after the last."""


def token_spans(tokenizer: Any, text: str, ids: list[int]) -> list[Span | None]:
    """The span of each token of ``text``, without white space around it; ``None`` for special tokens.

    Args:
        ids: As :func:`~tl_skillneurons.models.tokenizing.text_token_ids` gives them, or the beginning of these (a text
            that was cut).

    Example:
        >>> token_spans(tokenizer, "a fine film", tokenizer("a fine film")["input_ids"])
        [(0, 1), (2, 6), (7, 11)]
    """
    special = special_token_ids(tokenizer)
    own = [i for i in ids if i not in special]
    found = iter(_told(tokenizer, text, own, special) or _looked_for(tokenizer, text, own))
    return [None if i in special else _trimmed(text, next(found)) for i in ids]


def _told(tokenizer: Any, text: str, own: list[int], special: frozenset[int]) -> list[Span] | None:
    """By the tokenizer's own offsets; ``None`` where it has none, or where the tokens alone are others."""
    if not getattr(tokenizer, "is_fast", False):
        return None
    alone = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    pairs = [
        (i, (int(start), int(end)))
        for i, (start, end) in zip(alone["input_ids"], alone["offset_mapping"], strict=True)
        if i not in special
    ]
    same = [i for i, _ in pairs[: len(own)]] == own
    return [span for _, span in pairs[: len(own)]] if same else None


def _looked_for(tokenizer: Any, text: str, own: list[int]) -> list[Span]:
    spans, reached = [], 0
    folded = text.lower() if len(text.lower()) == len(text) else text
    for i in own:
        piece = str(tokenizer.decode([i])).removeprefix("##").strip()
        at = folded.find(piece if folded is text else piece.lower(), reached)
        if not piece or at < 0:
            spans.append((reached, reached))
            continue
        reached = at + len(piece)
        spans.append((at, reached))
    return spans


def _trimmed(text: str, span: Span) -> Span:
    start, end = span
    piece = text[start:end]
    start += len(piece) - len(piece.lstrip())
    return (start, max(start, end - (len(piece) - len(piece.rstrip()))))
