"""Questions with several choices, shuffled so that the place of the right one says nothing.

Which examples have which role doesn't depend on the shuffle, so scores measured on two shuffles are of the same
questions: a neuron that reads where the right choice stands is not found in both
(:func:`tl_skillneurons.studies.compare_shuffles`). With ``by="letter"`` the class *is* the place, which such a
comparison can't tell from the question; with ``by="text"`` and ``"both"`` the class is what the choice says, and the
right one of each class stands at each place equally often.
"""

import random
import string
from collections import Counter
from collections.abc import Mapping, Sequence
from numbers import Integral
from typing import Any, NamedTuple

import numpy as np

from tl_skillneurons._checks import listed, near, require_int, require_option, require_seed, require_text
from tl_skillneurons._words import same_text
from tl_skillneurons.tasks.chat import Chat, ChatGiven, as_chat
from tl_skillneurons.tasks.columns import (
    Columns,
    Rows,
    as_dataset,
    column,
    column_names,
    columns_of,
    each_once,
)
from tl_skillneurons.tasks.reading import as_splits, parse_template
from tl_skillneurons.tasks.task import Task

BY = ("letter", "text", "both")
"""What a choice is shown with and answered by: its letter; its text without letters; letters, and its text."""
_FIELDS = ("question", "options")


class _Asked(NamedTuple):
    """One question: its choices as the data has them, and which is right."""

    question: str
    choices: tuple[str, ...]
    right: int

    @property
    def key(self) -> str:
        """The same for the same question with the same choices, in whatever order."""
        return "\n".join([self.question, *sorted(self.choices)])


def multiple_choice(
    rows: Any,
    *,
    question: str = "question",
    choices: str | Sequence[str] = "choices",
    answer: str = "answer",
    by: str = "letter",
    template: str | None = None,
    chat: ChatGiven = None,
    name: str | None = None,
    roles: Mapping[str, Any] | None = None,
    seed: int = 0,
    shuffle: int = 0,
    letters: Sequence[str] | None = None,
) -> Task:
    """The task of answering questions that have the same number of choices each.

    Args:
        rows: As for :meth:`~tl_skillneurons.Task.from_datasets`: one table or several by the name of their split.
        question: The column of the questions.
        choices: The column of the choices, lists of strings (or ``{"text": [...], "label": [...]}``); or the names of
            columns with one choice each; or the choices themselves, where every question has the same.
        answer: The column of the right choice: its number from 0, its text, or its letter.
        by: ``"letter"`` lists the choices by letters, one of which is the answer and the class. Where every question
            has the same choices, ``"text"`` lists them without letters, ``"both"`` with, and their texts are answers
            and classes.
        template: What is written, with ``{question}`` and ``{options}``; by default one after the other, and
            ``Answer:`` where no chat asks for it.
        chat: For chat models, as for :meth:`~tl_skillneurons.Task.from_datasets`.
        name, roles, seed: As there. Equal questions with equal choices never stand in two roles.
        shuffle: Draws the choices' order, of each question for itself; the right one stands at each place equally
            often in each role (with ``by`` other than "letter", of each class). The roles don't depend on it.
        letters: What the choices go by, one each; else A, B, C and so on.

    Raises:
        TypeError: For a question, a choice or an answer of a kind that can't be used.
        ValueError: For fewer choices than letters or more, questions of unlike numbers of choices, a choice twice, an
            answer that is none of them, ``by`` their text where questions have choices of their own.

    Example:
        >>> rows = [{"question": f"{k} + 1?", "choices": [f"{k + 1}", f"{k}"], "answer": 0} for k in range(20)]
        >>> task = multiple_choice(rows, name="sums")
        >>> print(task.split("report")["text"][0])
        5 + 1?
        A. 6
        B. 5
        Answer:
        >>> task.label_words
        {0: ' A', 1: ' B'}
    """
    require_option(by, "by", BY)
    require_seed(seed)
    require_int(shuffle, "shuffle", minimum=0)
    messages, template = as_chat(chat, template)
    if template is None:
        template = "{question}\n{options}" + ("" if messages is not None else "\nAnswer:")
    pieces = parse_template(template)
    named = [piece.column for piece in pieces if piece.column is not None]
    if sorted(named) != sorted(_FIELDS):
        raise ValueError(
            f"the template of multiple choice must have the fields {listed(_FIELDS)} once each, got {template!r}"
        )
    asked = {
        split: _asked(table, f"split {split!r}", question, choices, answer, letters)
        for split, table in as_splits(rows).items()
    }
    fixed = _require_alike(asked, by)
    n_choices = len(fixed)
    names = _letters(letters, n_choices)
    base = _in_roles(asked, by, fixed, name, roles, seed)
    known = {one.key: one for ones in asked.values() for one in ones}

    def written(one: _Asked, order: Sequence[str]) -> str:
        bullets = ["-"] * n_choices if by == "text" else [f"{letter}." for letter in names]
        lines = [f"{bullet} {choice}" for bullet, choice in zip(bullets, order, strict=True)]
        values = {"question": one.question, "options": "\n".join(lines)}
        return "".join(
            piece.literal + (values[piece.column] if piece.column is not None else "") for piece in pieces
        )

    def shuffled(columns: Columns) -> Columns:
        ones = [known[text] for text in columns["text"]]
        kinds = [0] * len(ones) if by == "letter" else columns["label"]
        places = _places(kinds, n_choices, shuffle)
        texts = [written(one, _order(one, place, shuffle)) for one, place in zip(ones, places, strict=True)]
        rest = {name: values for name, values in columns.items() if name not in ("text", "label")}
        return {"text": texts, "label": places if by == "letter" else columns["label"], **rest}

    splits = each_once(base.splits, lambda dataset: as_dataset(shuffled(columns_of(dataset))))
    blank = "" if _needs_no_blank(messages, template) else " "
    classes = names if by == "letter" else fixed
    where = "in each role" if by == "letter" else "in each role and class"
    return Task(
        name=base.name,
        label_words={number: f"{blank}{one}" for number, one in enumerate(classes)},
        splits=splits,
        label_names=tuple(classes),
        template=template,
        dropped=base.dropped,
        notes=(
            *base.notes,
            f"the right choice stands at each place equally often {where} (shuffle {shuffle}).",
        ),
        chat=messages,
    )


def _asked(
    rows: Rows,
    where: str,
    question: str,
    choices: str | Sequence[str],
    answer: str,
    letters: Sequence[str] | None,
) -> list[_Asked]:
    """The questions of one split."""
    names = column_names(rows)
    if not len(names):
        return []
    for name in (question, answer, *([choices] if isinstance(choices, str) else [])):
        if name not in names:
            raise ValueError(
                f"column {name!r} is not in {where}, which has {listed(names)}; {near(name, names)}"
            )
    questions, answers = column(rows, question), column(rows, answer)
    lists, labels = _lists(rows, names, choices)
    found = []
    for row, (text, own, label, right) in enumerate(zip(questions, lists, labels, answers, strict=True)):
        at = f"{where}, row {row}"
        if not _text(text, f"{at}: the question"):
            raise ValueError(f"{at}: the question is empty; drop such examples")
        options = [_text(one, f"{at}: a choice") for one in own]
        if len(options) < 2:
            raise ValueError(
                f"{at}: a question must have two choices at least, got {options}; drop such examples"
            )
        if len({same_text(one) for one in options}) < len(options) or not all(options):
            raise ValueError(
                f"{at}: choices must be different and not empty, got {options}; drop such examples"
            )
        given = _letters(letters if label is None else label, len(options), at)
        found.append(_Asked(text, tuple(options), _right(right, options, given, at)))
    return found


def _lists(
    rows: Rows, names: Sequence[str], choices: str | Sequence[str]
) -> tuple[list[Sequence[Any]], list[Sequence[str] | None]]:
    """Each row's choices, and what they go by where the data says it."""
    n = len(rows)
    if not isinstance(choices, str):
        if not len(choices):
            raise ValueError("choices must name at least two columns or two choices, got none")
        there = [one in names for one in choices]
        if all(there):
            return list(map(list, zip(*(column(rows, one) for one in choices), strict=True))), [None] * n
        if any(there):
            odd = next(one for one, is_column in zip(choices, there, strict=True) if not is_column)
            raise ValueError(
                f"choices must be all columns or all choices, and {odd!r} is no column, which are {listed(names)}; "
                f"{near(odd, names)}"
            )
        return [list(choices)] * n, [None] * n
    cells = column(rows, choices)
    for row, cell in enumerate(cells):
        inside = cell.get("text") if isinstance(cell, Mapping) else cell
        if not isinstance(inside, (list, tuple, np.ndarray)):
            raise TypeError(
                f"row {row}: column {choices!r} must hold lists of choices, got {type(cell).__name__} "
                f"{str(cell)[:60]!r}; give choices=[...] with the columns that hold one each, or the choices of every "
                "question"
            )
    lists: list[Sequence[Any]] = [list(cell["text"] if isinstance(cell, Mapping) else cell) for cell in cells]
    return lists, [cell.get("label") if isinstance(cell, Mapping) else None for cell in cells]


def _right(answer: Any, choices: Sequence[str], letters: Sequence[str], at: str) -> int:
    """Which choice is right: by its number, its text, or what it goes by."""
    if isinstance(answer, Integral) and not isinstance(answer, bool):
        number = int(answer)
        if not 0 <= number < len(choices):
            raise ValueError(
                f"{at}: the answer must be 0 to {len(choices) - 1}, the number of a choice, got {answer}; drop such "
                "examples, or count choices from 0"
            )
        return number
    if not isinstance(answer, str):
        raise TypeError(
            f"{at}: the answer must be a choice's number (an integer from 0), text or letter, got "
            f"{type(answer).__name__} {answer!r}; drop examples without an answer"
        )
    by_text = [k for k, one in enumerate(choices) if same_text(one) == same_text(answer)]
    by_letter = [k for k, one in enumerate(letters) if one == answer.strip()]
    found = sorted({*by_text, *by_letter})
    if len(found) != 1:
        known = f"{listed(choices)} by the letters {listed(letters)}"
        why = (
            "is none of the choices"
            if not found
            else "is the text of one and the letter of another of the choices"
        )
        raise ValueError(f"{at}: the answer {answer!r} {why}, {known}; give the choice's number from 0")
    return found[0]


def _require_alike(asked: Mapping[str, Sequence[_Asked]], by: str) -> tuple[str, ...]:
    """The choices of the first question, of which the others have as many, and the same where these are the classes.

    Raises:
        ValueError: Otherwise; and for the same question with two answers.
    """
    first: _Asked | None = None
    answers: dict[str, str] = {}
    for split, ones in asked.items():
        for row, one in enumerate(ones):
            first = first or one
            if len(one.choices) != len(first.choices) or len(one.choices) < 2:
                raise ValueError(
                    f"split {split!r}, row {row}: every question must have the same number of choices, two at least; "
                    f"the first has {len(first.choices)}, this one {len(one.choices)}; drop such examples"
                )
            if by != "letter" and set(one.choices) != set(first.choices):
                raise ValueError(
                    f"split {split!r}, row {row}: by={by!r} makes a class of each choice's text, so every question "
                    f"must have the same; got {listed(one.choices)} beside {listed(first.choices)}; give by='letter'"
                )
            right = one.choices[one.right]
            if answers.setdefault(one.key, right) != right:
                raise ValueError(
                    f"split {split!r}, row {row}: the same question with the same choices is answered by {right!r} "
                    f"here and by {answers[one.key]!r} before; drop one of them"
                )
    if first is None:
        raise ValueError("there is no question; give at least a few")
    return first.choices


def _letters(letters: Sequence[str] | None, n_choices: int, where: str = "the questions") -> tuple[str, ...]:
    """What the choices of a question go by.

    Raises:
        TypeError: For a letter that is no string.
        ValueError: For one that is blank or stands there twice, or fewer or more than choices.
    """
    known = list(string.ascii_uppercase[:n_choices] if letters is None else letters)
    for one in known:
        if require_text(one, f"a letter of {where}") != one.strip() or not one:
            raise ValueError(
                f"letters must be what a choice goes by, without blanks around it, got {one!r} ({where}); give A, B "
                "and so on"
            )
    if len(known) != n_choices or len(set(known)) < len(known):
        raise ValueError(
            f"letters must be different and one for each choice, got {len(known)} ({listed(known)}) and {n_choices} "
            f"choices ({where}); give letters=[...], as many as there are choices"
        )
    return tuple(known)


def _text(value: Any, what: str) -> str:
    """A cell without the blanks around it.

    Raises:
        TypeError: For one that is no string, a missing value among them.
    """
    if not isinstance(value, str):
        raise TypeError(
            f"{what} must be a string, got {type(value).__name__} {value!r}; drop such examples, or write it as text"
        )
    return require_text(value, what).strip()


def _in_roles(
    asked: Mapping[str, Sequence[_Asked]],
    by: str,
    fixed: Sequence[str],
    name: str | None,
    roles: Mapping[str, Any] | None,
    seed: int,
) -> Task:
    """The questions' keys in their roles, whatever the shuffle: by class where there are any, else at random."""
    keys = sorted({one.key for ones in asked.values() for one in ones})
    random.Random(seed).shuffle(keys)
    half = {key: number % 2 for number, key in enumerate(keys)}
    number_of = {key: number for number, key in enumerate(sorted(keys))}
    twice = any(max(Counter(one.key for one in ones).values()) > 1 for ones in asked.values() if ones)

    def row(one: _Asked) -> dict[str, Any]:
        label = half[one.key] if by == "letter" else fixed.index(one.choices[one.right])
        return {"text": one.key, "label": label, "group": number_of[one.key]}

    return Task.from_datasets(
        {split: [row(one) for one in ones] for split, ones in asked.items()},
        template="{text}",
        label_words={k: str(k) for k in range(2 if by == "letter" else len(fixed))},
        name=name or "multiple choice",
        roles=roles,
        seed=seed,
        group="group" if twice else None,
    )


def _places(kinds: Sequence[int], n_choices: int, shuffle: int) -> list[int]:
    """Where each question's right choice stands: of each kind at each place equally often, or once more."""
    generator = random.Random(shuffle)
    places = [0] * len(kinds)
    for kind in sorted(set(kinds)):
        rows = [row for row, own in enumerate(kinds) if own == kind]
        order = generator.sample(range(n_choices), n_choices)
        each = [order[k % n_choices] for k in range(len(rows))]
        generator.shuffle(each)
        for row, place in zip(rows, each, strict=True):
            places[row] = place
    return places


def _order(one: _Asked, place: int, shuffle: int) -> list[str]:
    """The choices with the right one at its place and the others in an order of this question's own."""
    others = sorted(choice for k, choice in enumerate(one.choices) if k != one.right)
    random.Random(f"{shuffle}\n{one.key}").shuffle(others)
    return [*others[:place], one.choices[one.right], *others[place:]]


def _needs_no_blank(chat: Chat | None, template: str) -> bool:
    """Whether the answer begins a message, or follows white space."""
    before = template if chat is None else chat.assistant
    return before is None or before[-1].isspace()
