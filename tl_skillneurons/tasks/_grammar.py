"""What a kind of minimal pairs is made of, and how a frame is filled.

A frame is a sentence with slots in braces. One slot, whose name is a key of ``twins``, takes the word that
tells the class; the others are filled without regard to it. No word of ``twins`` stands in a frame or a
filler, or in two twins.
"""

import math
import re
import string
from dataclasses import dataclass

Twin = tuple[str, str]
"""A word (or text) of class 0 and the one of class 1 that stands in the same place."""


@dataclass(frozen=True)
class Grammar:
    """A kind of minimal pairs.

    Args:
        label_names: What the classes are called.
        label_words: The word that stands for each class.
        frames: Sentences with slots.
        fillers: What may stand in a slot, whatever the class.
        twins: The words that tell the class, by the slot that takes them.
    """

    label_names: tuple[str, str]
    label_words: tuple[str, str]
    frames: tuple[str, ...]
    fillers: dict[str, tuple[str, ...]]
    twins: dict[str, tuple[Twin, ...]]


def slots(frame: str) -> list[str]:
    """The slots of ``frame``, in order."""
    return [name for _, name, _, _ in string.Formatter().parse(frame) if name is not None]


def n_fillings(grammar: Grammar, twins: dict[str, tuple[Twin, ...]], frame: str) -> int:
    """How many twins ``frame`` can make with these ``twins``."""
    return math.prod(len(twins.get(slot) or grammar.fillers.get(slot, ())) for slot in slots(frame))


def fill(grammar: Grammar, twins: dict[str, tuple[Twin, ...]], frame: str, number: int) -> Twin:
    """Filling ``number`` of ``frame``, from 0: its text of class 0 and its text of class 1."""
    zero, one = {}, {}
    for slot in slots(frame):
        pairs = twins.get(slot) or [(word, word) for word in grammar.fillers[slot]]
        number, i = divmod(number, len(pairs))
        zero[slot], one[slot] = pairs[i]
    return frame.format(**zero), frame.format(**one)


def told_apart_by(texts: Twin) -> Twin:
    """The words of class 0 and of class 1 in which two texts made by :func:`fill` differ."""
    words = zip(*(re.findall(r"[\w']+", text) for text in texts), strict=True)
    return next((zero, one) for zero, one in words if zero != one)
