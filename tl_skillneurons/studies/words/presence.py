"""Which words stand in which texts, and how what neurons do goes with them; no model is run."""

from collections import Counter

import torch
from jaxtyping import Float
from torch import Tensor

from tl_skillneurons._words import words_of


def distinct_words(text: str) -> set[str]:
    """The words of a text, case left out (:mod:`~tl_skillneurons._words`)."""
    return set(words_of(text))


def word_presence(texts: list[str], min_texts: int = 1) -> tuple[list[str], Float[Tensor, "word text"]]:
    """The words of the texts, case left out, alphabetical; and a 1 where a text has one, sparse (COO).

    Raises:
        ValueError: When no word stands in, and is absent from, ``min_texts`` texts.
    """
    sets = [distinct_words(text) for text in texts]
    counts = Counter(word for own in sets for word in own)
    words = sorted(word for word, n in counts.items() if min_texts <= n <= len(texts) - min_texts)
    if not words:
        raise ValueError(
            f"no word stands in at least {min_texts} of {len(texts)} texts and is absent from as many; give more texts "
            "or a lower min_texts"
        )
    place = {word: number for number, word in enumerate(words)}
    pairs = sorted((place[word], row) for row, own in enumerate(sets) for word in own if word in place)
    present = torch.sparse_coo_tensor(
        torch.tensor(pairs).T,
        torch.ones(len(pairs), dtype=torch.float64),
        (len(words), len(texts)),
        check_invariants=True,
        is_coalesced=True,
    )
    return words, present


def word_correlations(
    present: Float[Tensor, "word text"], values: Float[Tensor, "text column"]
) -> Float[Tensor, "word column"]:
    """The point-biserial correlation of each word's presence with each column; 0 where either is constant.

    Args:
        present: As :func:`word_presence` gives it.
    """
    n_texts = present.shape[1]
    n = torch.bincount(present.indices()[0], minlength=len(present)).double()
    scale = (n * (1 - n / n_texts)).sqrt()
    sums = torch.sparse.mm(present, unit_columns(values))
    return sums / torch.where(scale == 0, torch.inf, scale)[:, None]


def unit_columns(values: Float[Tensor, "example column"]) -> Float[Tensor, "example column"]:
    """Centred columns of length 1, so that products are correlations; constant ones are 0."""
    wide = values.double()
    raw = wide.norm(dim=0)
    wide = wide - wide.mean(0)
    length = wide.norm(dim=0)
    return wide / torch.where(length <= 1e-7 * raw, torch.inf, length)
