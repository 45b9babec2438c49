"""Built-in tasks: twins that differ in one word, and nothing else that tells the class."""

import re
from collections import Counter

import pytest

from tl_skillneurons.tasks._grammar import n_fillings, slots
from tl_skillneurons.tasks._sentences import GRAMMARS
from tl_skillneurons.tasks.pairs import minimal_pairs

KINDS = sorted(GRAMMARS)
ROLES = ("train", "select", "report")


def words(text):
    return re.findall(r"[\w']+", text)


def difference(zero, one):
    """The places at which two texts differ, as pairs of words; both must have equally many."""
    return [pair for pair in zip(words(zero), words(one), strict=True) if pair[0] != pair[1]]


def telling_words(task, role):
    return {word for pair in task.pairs(role) for word in difference(*pair)[0]}


@pytest.fixture(scope="session")
def tokenizer():
    """A byte-pair tokenizer of 400 tokens, trained on a few of our texts: few words are one token."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, show_progress=False)
    corpus = [text for kind in KINDS for text in minimal_pairs(kind, n_pairs=200).split("train")["text"][:]]
    inner.train_from_iterator(corpus, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=inner)


@pytest.mark.parametrize("disjoint_words", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_twins_differ_in_exactly_one_word_and_stand_in_one_role(kind, disjoint_words):
    task = minimal_pairs(kind, n_pairs=400, disjoint_words=disjoint_words)
    assert task.n_examples == {"train": 400, "baseline": 400, "select": 200, "report": 200}
    for role in ROLES:
        assert task.class_counts(role) == [task.n_examples[role] // 2] * 2
        pairs = task.pairs(role)
        assert len(pairs) == task.n_examples[role] // 2
        assert all(len(difference(*pair)) == 1 for pair in pairs)
    assert task.pairs("baseline") == task.pairs("train")


@pytest.mark.parametrize("kind", KINDS)
def test_a_kind_makes_thousands_of_distinct_examples_in_roles_that_share_none(kind):
    task = minimal_pairs(kind, n_pairs=6000)
    texts = [text for role in ROLES for text in task.split(role)["text"][:]]
    assert len(set(texts)) == len(texts) == 12000


@pytest.mark.parametrize("kind", KINDS)
def test_disjoint_words_stand_in_one_role_only(kind):
    task = minimal_pairs(kind, n_pairs=600, disjoint_words=True)
    telling = {role: telling_words(task, role) for role in ROLES}
    assert all(len(telling[role]) > 10 for role in ROLES)
    for role in ROLES:
        used = {word for text in task.split(role)["text"][:] for word in words(text)}
        for other in set(ROLES) - {role}:
            assert not used & telling[other]
    shared = minimal_pairs(kind, n_pairs=600)
    assert telling_words(shared, "train") & telling_words(shared, "report")


@pytest.mark.parametrize("disjoint_words", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_twins_have_equally_many_tokens(kind, disjoint_words, tokenizer):
    def unequal(task):
        pairs = [pair for role in ROLES for pair in task.pairs(role)]
        lengths = [[len(tokenizer(text)["input_ids"]) for text in pair] for pair in pairs]
        return sum(zero != one for zero, one in lengths)

    assert unequal(minimal_pairs(kind, n_pairs=200, disjoint_words=disjoint_words)) > 0
    kept = minimal_pairs(kind, n_pairs=200, disjoint_words=disjoint_words, tokenizer=tokenizer)
    assert kept.n_examples["train"] == 200 and unequal(kept) == 0
    assert "of equal token counts" in kept.notes[0]


@pytest.mark.parametrize("kind", KINDS)
def test_only_the_telling_word_tells_the_class(kind):
    task = minimal_pairs(kind, n_pairs=500)
    columns = task.split("train")
    telling = telling_words(task, "train")
    counts = [Counter(), Counter()]
    for text, label in zip(columns["text"], columns["label"], strict=True):
        counts[label].update(word for word in words(text) if word not in telling)
    assert counts[0] == counts[1]


@pytest.mark.parametrize("kind", KINDS)
def test_word_lists_are_sound(kind):
    grammar = GRAMMARS[kind]
    telling = Counter(word for twins in grammar.twins.values() for twin in twins for word in twin)
    assert min(map(len, grammar.twins.values())) >= 60 and max(telling.values()) == 1
    phrases = [phrase for options in grammar.fillers.values() for phrase in options]
    frames = [re.sub(r"\{\w+\}", " ", frame) for frame in grammar.frames]
    assert not set(telling) & {word for text in (*phrases, *frames) for word in words(text.lower())}
    assert len(set(grammar.frames)) == len(grammar.frames) >= 30
    assert all(len(set(options)) == len(options) for options in grammar.fillers.values())
    assert all(sum(slot in grammar.twins for slot in slots(frame)) == 1 for frame in grammar.frames)


def test_no_article_depends_on_the_telling_word():
    frames = GRAMMARS["movie_reviews"].frames
    assert not [frame for frame in frames if re.search(r"\b[Aa]n? \{adjective\}", frame)]
    for slot in re.findall(r"\b[Aa] \{(\w+)\}", " ".join(frames)):
        assert not [word for word in GRAMMARS["movie_reviews"].fillers[slot] if word[0] in "aeiou"]


def test_subject_verb_stops_before_the_verb_and_has_attractors_of_either_number():
    task = minimal_pairs("subject_verb", n_pairs=300)
    assert task.label_words == {0: " is", 1: " are"} and task.label_names == ("singular", "plural")
    for role in ROLES:
        for zero, one in task.pairs(role):
            assert not {"is", "are"} & set(words(zero)) and zero[-1].isalpha()
            assert difference(zero, one)[0] in {
                twin for twins in GRAMMARS["subject_verb"].twins.values() for twin in twins
            }
    used = {word for text in task.split("train")["text"][:] for word in words(text)}
    assert {"door", "doors", "merchant", "merchants"} <= used


def test_the_seed_decides_in_every_process():
    task = minimal_pairs(n_pairs=50, disjoint_words=True, seed=3)
    assert task.fingerprint == "a3dcafb3bbafcd0ef4b2535775862d3accea8d6207bd0e2c70d192d98631078d"
    assert task.fingerprint != minimal_pairs(n_pairs=50, disjoint_words=True, seed=4).fingerprint


def test_a_limit_keeps_twins_together():
    task = minimal_pairs(n_pairs=100).limit(train=31, select=10)
    assert task.n_examples == {"train": 30, "baseline": 30, "select": 10, "report": 50}
    assert len(task.pairs("train")) == 15 and task.class_counts("train") == [15, 15]


def test_groupings_keep_twins():
    task = minimal_pairs(n_pairs=20)
    (flipped,) = task.binary_subtasks([("negative", "positive")])
    assert flipped.pairs("select") == [(one, zero) for zero, one in task.pairs("select")]
    assert flipped.label_words == {0: " positive", 1: " negative"}


def test_half_a_pair_is_no_pair():
    task = minimal_pairs(n_pairs=20)
    half = task.split("select").select(range(1, 10))
    broken = type(task)(task.name, task.label_words, {**task.splits, "select": half}, task.label_names)
    with pytest.raises(ValueError, match=r"pair 10 of role 'select' must have two classes, got \[1\]"):
        broken.pairs("select")


def test_label_words_can_be_chosen():
    assert minimal_pairs(n_pairs=8, label_words={0: " no", 1: 42}).label_words == {0: " no", 1: 42}


def test_all_that_a_kind_can_make_is_made_and_no_more(monkeypatch):
    from dataclasses import replace

    full = GRAMMARS["movie_reviews"]
    small = replace(full, frames=full.frames[:1], twins={"adjective": full.twins["adjective"][:4]})
    monkeypatch.setitem(GRAMMARS, "movie_reviews", small)
    most = n_fillings(small, small.twins, small.frames[0])
    task = minimal_pairs(n_pairs=most)
    assert len({text for role in ROLES for text in task.split(role)["text"][:]}) == 2 * most
    with pytest.raises(ValueError, match=f"movie_reviews can make {most} pairs, got n_pairs={most + 1}"):
        minimal_pairs(n_pairs=most + 1)
    with pytest.raises(
        ValueError, match=rf"movie_reviews can make {most // 2} pairs for train, got n_pairs="
    ):
        minimal_pairs(n_pairs=2 * most, disjoint_words=True)


class ByPosition:
    """A tokenizer that gives each text one token more than the text before: no twins are equally long."""

    def __call__(self, texts, add_special_tokens):
        longer = any(len(text.split()) > 1 for text in texts)
        return {"input_ids": [[0] * (i if longer else 1) for i, _ in enumerate(texts)]}


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"kind": "movie_review"}, ValueError, "kind must be one of .* did you mean 'movie_reviews'"),
        ({"n_pairs": 2}, ValueError, "n_pairs must be an integer of at least 3, got 2"),
        ({"n_pairs": 10**9}, ValueError, r"movie_reviews can make \d{8} pairs, got n_pairs=1000000000"),
        ({"tokenizer": "gpt2"}, TypeError, "tokenizer must be a Hugging Face tokenizer, got str"),
        (
            {"tokenizer": ByPosition(), "n_pairs": 5},
            ValueError,
            "only 0 of .* have equal token counts, 5 are wanted",
        ),
        ({"label_words": {0: " no"}}, ValueError, "at least two labels, got 1"),
    ],
)
def test_what_can_not_be_made_is_refused(settings, error, message):
    with pytest.raises(error, match=message):
        minimal_pairs(**settings)
