"""Each token stands for its own characters of the text, whatever the tokenizer."""

import pytest
import tiny
import transformers as hf
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers

from tl_skillneurons.models.token_spans import token_spans


def bytes_of_text():
    letters = {c: n for n, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    merged = {"fi": len(letters), "Ġfi": len(letters) + 1, "<s>": len(letters) + 2}
    made = Tokenizer(models.BPE({**letters, **merged}, [("f", "i"), ("Ġ", "fi")]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, trim_offsets=False)
    made.decoder = decoders.ByteLevel()
    return hf.PreTrainedTokenizerFast(tokenizer_object=made, bos_token="<s>")


def word_pieces():
    words = ["[UNK]", "[CLS]", "[SEP]", "fi", "##ne", "a", "film", "."]
    made = Tokenizer(models.WordPiece({w: n for n, w in enumerate(words)}, unk_token="[UNK]"))
    made.normalizer, made.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    named = {"unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    return hf.PreTrainedTokenizerFast(tokenizer_object=made, **named)


def pieces(tokenizer, text, ids):
    spans = token_spans(tokenizer, text, ids)
    return [None if span is None else text[slice(*span)] for span in spans]


def test_white_space_belongs_to_no_token_and_the_bytes_of_one_character_stand_for_it_all():
    made = bytes_of_text()
    text = "fi  fi\u00e9 \n"
    ids = made(text, add_special_tokens=False)["input_ids"]
    assert pieces(made, text, [made.bos_token_id, *ids]) == [None, "fi", "", "fi", "\u00e9", "\u00e9", "", ""]


@pytest.mark.parametrize("knows_offsets", [True, False])
def test_pieces_of_words_are_found_in_the_text_as_it_was_written(knows_offsets, monkeypatch):
    made = word_pieces()
    if not knows_offsets:
        monkeypatch.setattr(type(made), "is_fast", False)
    text = "A  Fine zzz film [SEP] Film."
    ids = [1, *made(text, add_special_tokens=False)["input_ids"], 2]
    expected = [None, "A", "Fi", "ne", "zzz" if knows_offsets else "", "film", None, "Film", ".", None]
    assert pieces(made, text, ids) == expected
    assert pieces(made, text, ids[:4]) == expected[:4]  # a text that was cut


def test_a_word_level_tokenizer_gives_its_words():
    made = tiny.tokenizer("bert")
    ids = made("a good film")["input_ids"]
    assert pieces(made, "a good film", ids) == [None, "a", "good", "film", None]
