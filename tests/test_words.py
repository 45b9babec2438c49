"""Words of every script: what near-duplicates and word studies compare."""

import unicodedata

import pytest
from texts import make, texts_of

from tl_skillneurons._words import word_spans, words_of
from tl_skillneurons.studies.words.presence import distinct_words, word_presence
from tl_skillneurons.tasks.groups import near_duplicates


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("It's a GOOD film, isn't it?", ["it's", "a", "good", "film", "isn't", "it"]),
        ("It\u2019s", ["it's"]),
        ("3.14 and 1,000.50; e-mail", ["3.14", "and", "1,000.50", "e", "mail"]),
        ("हिन्दी में किताबें पढ़ना", ["हिन्दी", "में", "किताबें", "पढ़ना"]),
        ("தமிழ் மொழி", ["தமிழ்", "மொழி"]),
        ("cafe\u0301 E\u0301COLE", ["café", "école"]),
        ("q\u0307 ŗ", ["q\u0307", "ŗ"]),
        ("我喜歡這部電影。", list("我喜歡這部電影")),
        ("カタカナ テスト", ["カタカナ", "テスト"]),
        ("한국어 단어", ["한국어", "단어"]),
        ("שלום, עולם", ["שלום", "עולם"]),
        ("السَّلامُ عليكم", ["السَّلامُ", "عليكم"]),
        ("Straße STRASSE", ["strasse", "strasse"]),
        ("good 👍", ["good"]),
        ("👍🏽 !!", ["👍🏽 !!"]),
        (" ...\t?! ", ["... ?!"]),
        ("_", ["_"]),
        (" \n", []),
        ("", []),
    ],
)
def test_words_of_every_script_stay_whole(text, words):
    composed = [unicodedata.normalize("NFC", word) for word in words]
    assert words_of(text) == composed
    assert words_of(unicodedata.normalize("NFD", text)) == composed
    assert distinct_words(text) == set(composed)


@pytest.mark.parametrize(
    "texts",
    [
        ["👍", "👎", "😀😀", "👍👍"],
        ["!!!", "???", "...", "!?"],
        ["की", "का", "कि", "के"],
        ["我喜歡電影", "他討厭音樂", "天氣很冷啊"],
        ["pate\u0301", "pate", "pa\u0302te"],
    ],
)
def test_different_texts_of_any_script_are_no_near_duplicates(texts):
    assert near_duplicates(texts) == list(range(len(texts)))
    assert near_duplicates(texts + texts) == list(range(len(texts))) * 2


def test_one_text_in_two_normal_forms_is_a_near_duplicate():
    text = "une tre\u0300s belle e\u0301cole"
    assert near_duplicates([text, unicodedata.normalize("NFC", text), "autre chose ici"]) == [0, 0, 2]


def test_nearly_the_same_chinese_sentences_are_near_duplicates():
    one = "这部电影的音乐和画面都非常好看我很喜欢"
    assert near_duplicates([one, one + "!", "完全不同的一个句子在这里写着"]) == [0, 0, 2]


def test_texts_of_emoji_alone_are_dealt_over_the_roles():
    faces = [chr(0x1F600 + n) for n in range(40)]
    task = make([{"text": face, "label": n % 2} for n, face in enumerate(faces)], near_duplicates=0.8)
    assert [len(texts_of(task, role)) for role in ("train", "select", "report")] == [24, 8, 8]


def test_a_word_study_sees_emoji_and_vowel_signs():
    words, present = word_presence(["👍", "👎", "👍", "किताब अच्छी", "किताबें बुरी"], min_texts=1)
    assert words == sorted(["👍", "👎", "किताब", "किताबें", "अच्छी", "बुरी"])
    assert present.to_dense()[words.index("👍")].tolist() == [1, 0, 1, 0, 0]


@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        ("It's fine.", ["It's", " ", "fine", "."]),
        ("我喜歡 film!!", ["我", "喜", "歡", " ", "film", "!", "!"]),
        ("किताब 👍🏽\nx", ["किताब", " ", "👍🏽", "\n", "x"]),
        ("", []),
    ],
)
def test_a_text_falls_apart_into_words_and_what_stands_between(text, pieces):
    assert [text[start:end] for start, end in word_spans(text)] == pieces
