"""What label words are told that are not one token."""

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from tl_skillneurons.models.tokenizing import _single_token


@pytest.fixture(scope="module")
def tokenizer():
    """Bytes, and `` bad`` as one token: how the tokenizers of GPT-2 and Llama 3 have most words."""
    merges = [("a", "d"), ("b", "ad"), ("Ġ", "bad")]
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    pieces = [*letters, *("".join(pair) for pair in merges)]
    words = Tokenizer(models.BPE({piece: i for i, piece in enumerate(pieces) if piece != "bad"}, merges[:1]))
    words.pre_tokenizer, words.decoder = (
        pre_tokenizers.ByteLevel(add_prefix_space=False),
        decoders.ByteLevel(),
    )
    words.add_tokens([" bad"])
    return PreTrainedTokenizerFast(tokenizer_object=words, unk_token="!")


def test_a_word_that_lacks_its_blank_is_told_the_one_that_is_a_single_token(tokenizer):
    assert _single_token(tokenizer, " bad") == len(tokenizer) - 1
    with pytest.raises(
        ValueError,
        match=r"label word 'bad' is 2 tokens .* must be one token \(try ' bad', for the blank before a word is part "
        r"of its token\)",
    ):
        _single_token(tokenizer, "bad")
    with pytest.raises(
        ValueError, match=r"label word ' good' is 5 tokens .*\(choose another word, or give a token"
    ):
        _single_token(tokenizer, " good")
    with pytest.raises(ValueError, match=r"label word ' bad-ish' is .* tokens .*\(try ' bad'\)"):
        _single_token(tokenizer, " bad-ish")
