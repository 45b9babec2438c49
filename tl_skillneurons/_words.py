"""Words of any script, by the Unicode rules for word boundaries (UAX 29), of text in normal form C, case left out.

Letters stay with their vowel signs and accents, contractions and numbers in one piece; Chinese falls into single
characters, since no rule without a dictionary knows its words. What has neither a letter nor a digit (punctuation,
emoji) is no word; a text of such alone stands for itself, as one word, so that only the same texts are equal.
"""

import itertools
import unicodedata

import regex

_BOUNDARY = regex.compile(r"\b", regex.WORD | regex.VERSION1)
_IN_A_WORD = regex.compile(r"[\p{L}\p{N}]")


def same_text(text: str) -> str:
    """A text as it is compared with others: in normal form C, white space is one blank, and none at the ends.

    Example:
        >>> same_text("cafe\\u0301  noir ") == same_text("caf\\u00e9 noir")
        True
    """
    return " ".join(unicodedata.normalize("NFC", text).split())


def words_of(text: str) -> list[str]:
    """The words of a text in their order; the text itself, without white space around it, where it has none.

    Example:
        >>> words_of("It's 1,5 km.")
        ["it's", '1,5', 'km']
        >>> words_of("हिन्दी किताब"), words_of("我喜歡"), words_of("👍!")
        (['हिन्दी', 'किताब'], ['我', '喜', '歡'], ['👍!'])
    """
    composed = unicodedata.normalize("NFC", unicodedata.normalize("NFC", text).casefold())
    composed = composed.replace("\u2019", "'")  # one apostrophe, however it is set
    words = [piece for piece in _BOUNDARY.split(composed) if _IN_A_WORD.search(piece)]
    alone = " ".join(composed.split())
    return words or ([alone] if alone else [])


def word_spans(text: str) -> list[tuple[int, int]]:
    """Where a text falls apart by the same rules, white space and punctuation included: spans that cover all of it.

    Example:
        >>> word_spans("It's fine.")
        [(0, 4), (4, 5), (5, 9), (9, 10)]
    """
    ends = [found.end() for found in _BOUNDARY.finditer(text) if 0 < found.end() < len(text)]
    return [pair for pair in itertools.pairwise([0, *ends, len(text)]) if pair[0] < pair[1]]
