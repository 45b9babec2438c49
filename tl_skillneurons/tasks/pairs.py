"""Built-in tasks whose every example has a twin: the same text but for one word, with the other label.

Twins are what interchange and path patching need: whatever differs between two runs comes from that word.
Both twins stand in the same role, so each role has as many examples of one class as of the other, and nothing
but the one word tells them apart. All sentences come from grammars and word lists written for this project
(``_sentences.py``).

Sentences are many and words are few: 100 pairs of movie reviews hold some 25 pairs of words, and whatever a model
makes of "dull" and "lively" it makes in all sentences with them. So the word pair, not the sentence, is the unit that
labels are exchanged by (:meth:`Task.units <tl_skillneurons.Task.units>`).

A task of this kind is easy to solve by knowing words: a neuron that fires for "wonderful" looks like a neuron
that knows sentiment. The control is ``disjoint_words=True``: then the words that tell the class differ
between train, select and report, and a neuron that was picked for its words fails on those of ``report``.

============= ============================================ ====================== =======================
kind          text                                         classes                label words
============= ============================================ ====================== =======================
movie_reviews "The plot of this movie is truly wonderful." 0 negative, 1 positive " negative" " positive"
subject_verb  "The keys near the cabinet"                  0 singular, 1 plural   " is" " are"
============= ============================================ ====================== =======================
"""

import itertools
import random
from collections.abc import Iterator
from typing import Any

from datasets import Dataset

from tl_skillneurons._checks import require_int, require_option, require_seed
from tl_skillneurons.tasks._grammar import Grammar, Twin, fill, n_fillings, told_apart_by
from tl_skillneurons.tasks._sentences import GRAMMARS
from tl_skillneurons.tasks.chat import ChatGiven, as_chat
from tl_skillneurons.tasks.columns import Columns, as_dataset
from tl_skillneurons.tasks.drawing import apportion
from tl_skillneurons.tasks.reading import Field, parse_template, rendered
from tl_skillneurons.tasks.roles import ROLES
from tl_skillneurons.tasks.task import Task

SHARES = {"train": 50, "select": 25, "report": 25}
"""How the pairs are divided among the roles, in percent; baseline is train."""

Words = dict[str, tuple[Twin, ...]]
"""The words that tell the class, by the slot of a frame that takes them."""


def minimal_pairs(
    kind: str = "movie_reviews",
    *,
    n_pairs: int = 2000,
    tokenizer: Any = None,
    seed: int = 0,
    disjoint_words: bool = False,
    label_words: dict[int, str | int] | None = None,
    chat: ChatGiven = None,
) -> Task:
    """A built-in task of ``2 * n_pairs`` examples: half train and baseline, a quarter each select and report.

    Args:
        kind: ``"movie_reviews"`` or ``"subject_verb"``, whose text stops right before the verb.
        n_pairs: How many pairs; each kind can make about 15 million.
        tokenizer: The Hugging Face tokenizer for which twins must have the same number of tokens; ``None``
            lets any through.
        seed: Draws the sentences.
        disjoint_words: Keep the words that tell the class from standing in more than one of train, select and
            report.
        label_words: Other label words than the kind's own, by class.
        chat: For chat models, as for :meth:`~tl_skillneurons.Task.from_datasets`; what the user writes has the field
            ``{text}`` alone.

    Raises:
        ValueError: When the kind is unknown, or can't make so many pairs.
        TypeError: When the tokenizer can't be called.

    Example:
        >>> task = minimal_pairs("subject_verb", n_pairs=100)
        >>> task.n_examples, task.label_words
        ({'train': 100, 'baseline': 100, 'select': 50, 'report': 50}, {0: ' is', 1: ' are'})
        >>> task.pairs("report")[0]
        ('The wet box close to the quiet gardeners', 'The wet boxes close to the quiet gardeners')
    """
    grammar = GRAMMARS[require_option(kind, "kind", GRAMMARS)]
    require_int(n_pairs, "n_pairs", minimum=len(SHARES))
    messages, user = as_chat(chat, None)
    parts = parse_template(user or "{text}")
    if tokenizer is not None and not callable(tokenizer):
        raise TypeError(f"tokenizer must be a Hugging Face tokenizer, got {type(tokenizer).__name__}")
    generator = random.Random(require_seed(seed))
    words = _usable_words(grammar, tokenizer)
    counts = dict(zip(SHARES, apportion(n_pairs, list(SHARES.values())), strict=True))
    if disjoint_words:
        words_of = _divide_words(words, generator)
        pairs = {
            role: _make(kind, words_of[role], n, tokenizer, generator, f" for {role}")
            for role, n in counts.items()
        }
    else:
        drawn = iter(_make(kind, words, n_pairs, tokenizer, generator, ""))
        pairs = {role: list(itertools.islice(drawn, n)) for role, n in counts.items()}
    names = dict(enumerate(grammar.label_words) if label_words is None else label_words.items())
    return Task(
        name=f"{kind}, disjoint words" if disjoint_words else kind,
        label_words=names,
        splits=_splits(pairs, parts),
        label_names=grammar.label_names,
        template=user or "{text}",
        dropped=dict.fromkeys(ROLES, 0),
        notes=(_note(kind, n_pairs, tokenizer, seed, disjoint_words),),
        chat=messages,
    )


def _note(kind: str, n_pairs: int, tokenizer: Any, seed: int, disjoint_words: bool) -> str:
    tokens = "" if tokenizer is None else " of equal token counts"
    words = (
        "; no word that tells the class stands in two of train, select and report" if disjoint_words else ""
    )
    return (
        f"{kind}: {n_pairs} pairs of twins{tokens}, generated by seed {seed}; "
        f"half are train, a quarter each select and report{words}."
    )


def _usable_words(grammar: Grammar, tokenizer: Any) -> Words:
    """The twins whose two words have the same number of tokens; whole texts are compared later."""
    words = {}
    for slot, twins in grammar.twins.items():
        same = _same_length([(f" {zero}", f" {one}") for zero, one in twins], tokenizer)
        words[slot] = tuple(twin for twin, kept in zip(twins, same, strict=True) if kept)
    return words


def _divide_words(words: Words, generator: random.Random) -> dict[str, Words]:
    """For each role, the words that only it uses."""
    divided: dict[str, Words] = {role: {} for role in SHARES}
    for slot, twins in words.items():
        shuffled = iter(generator.sample(twins, len(twins)))
        for role, count in zip(SHARES, apportion(len(twins), list(SHARES.values())), strict=True):
            divided[role][slot] = tuple(itertools.islice(shuffled, count))
    return divided


def _make(
    kind: str, words: Words, n_pairs: int, tokenizer: Any, generator: random.Random, purpose: str
) -> list[Twin]:
    """``n_pairs`` twins, no text twice."""
    grammar = GRAMMARS[kind]
    sizes = {frame: size for frame in grammar.frames if (size := n_fillings(grammar, words, frame))}
    n_possible = sum(sizes.values())
    equal = "" if tokenizer is None else " with equal token counts"
    if n_pairs > n_possible:
        raise ValueError(
            f"{kind} can make {n_possible} pairs{equal}{purpose}, got n_pairs={n_pairs}; ask for fewer"
        )
    candidates = _candidates(grammar, words, sizes, n_pairs, generator)
    made: list[Twin] = []
    n_tried = 0
    while len(made) < n_pairs and (batch := list(itertools.islice(candidates, n_pairs - len(made) + 100))):
        n_tried += len(batch)
        made += itertools.compress(batch, _same_length(batch, tokenizer))
    if len(made) < n_pairs:
        raise ValueError(
            f"{kind}: only {len(made)} of {n_tried} pairs that were tried{purpose} have equal token counts, "
            f"{n_pairs} are wanted; ask for fewer"
        )
    return made[:n_pairs]


def _candidates(
    grammar: Grammar, words: Words, sizes: dict[str, int], n_pairs: int, generator: random.Random
) -> Iterator[Twin]:
    """Twins drawn without repetition, one frame after the other so that each frame has its turn."""
    orders = {
        frame: generator.sample(range(size), min(size, max(n_pairs, 1000))) for frame, size in sizes.items()
    }
    frames = generator.sample(list(orders), len(orders))
    for turn in range(max(map(len, orders.values()))):
        for frame in frames:
            if turn < len(orders[frame]):
                yield fill(grammar, words, frame, orders[frame][turn])


def _same_length(twins: list[Twin], tokenizer: Any) -> list[bool]:
    if tokenizer is None or not twins:
        return [True] * len(twins)
    texts = list(itertools.chain.from_iterable(twins))
    lengths = [len(ids) for ids in tokenizer(texts, add_special_tokens=False)["input_ids"]]
    return [zero == one for zero, one in zip(lengths[::2], lengths[1::2], strict=True)]


def _splits(pairs: dict[str, list[Twin]], parts: list[Field]) -> dict[str, Dataset]:
    """The roles' examples, twins side by side, as the user writes them; numbers of pairs and of word pairs are of the
    whole task."""
    splits: dict[str, Dataset] = {}
    n_before, number_of = 0, dict[Twin, int]()
    for role, twins in pairs.items():
        numbers = range(n_before, n_before + len(twins))
        columns: Columns = {
            "text": rendered(
                [{"text": text} for twin in twins for text in twin], f"the built-in {role}", parts
            ),
            "label": [0, 1] * len(twins),
            "pair": [number for number in numbers for _ in (0, 1)],
            "unit": [
                number_of.setdefault(told_apart_by(twin), len(number_of)) for twin in twins for _ in (0, 1)
            ],
        }
        splits[role] = as_dataset(columns)
        n_before += len(twins)
    return {**splits, "baseline": splits["train"]}
