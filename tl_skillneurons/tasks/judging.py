"""What makes an answer right: it is a reference, or begins with a reference's letter, or a function of the user says.

What can be wrong with references and judge is looked at before anything is written.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from numbers import Integral
from typing import Any, TypeAlias

import numpy as np

from tl_skillneurons._checks import listed, near, require_option
from tl_skillneurons._words import same_text

JUDGES = ("exact", "choice")

Judge: TypeAlias = str | Callable[[str, Mapping[str, Any]], Any]
"""``"exact"``, ``"choice"``, or a function of the answer and the row to a label, ``True``, ``False``, or ``None`` to
leave it out."""

Label: TypeAlias = str | int | None


def judge_of(
    judge: Judge, rows: Sequence[Mapping[str, Any]], reference: str
) -> Callable[[Sequence[str]], list[Label]]:
    """A function from the rows' answers to the judge's labels, ``None`` where it gives none.

    Args:
        reference: The column of what is right, which the built-in judges read.

    Raises:
        TypeError: For a judge that is none, or a reference that is no string and no list of them.
        ValueError: For a built-in judge by another name, or that these references are not for. The function raises for
            a judge that fails or gives something else than a label.

    Example:
        >>> judge_of("exact", [{"answer": "Rome"}], "answer")([" rome."])
        ['right']
    """
    if callable(judge):
        by = judge  # for type checkers

        def labels(answers: Sequence[str]) -> list[Label]:
            return [
                _asked(by, answer, row, at)
                for at, (answer, row) in enumerate(zip(answers, rows, strict=True))
            ]

        return labels
    if not isinstance(judge, str):
        raise TypeError(f"judge must be {listed(JUDGES)} or a function (answer, row) -> label, got {judge!r}")
    require_option(judge, "judge", JUDGES)
    right = [_references(row, reference, number) for number, row in enumerate(rows)]
    is_right = _is_reference if judge == "exact" else _by_letter(right, reference)
    return lambda answers: [
        "right" if is_right(answer, own) else "wrong" for answer, own in zip(answers, right, strict=True)
    ]


def _references(row: Mapping[str, Any], reference: str, number: int) -> list[str]:
    if reference not in row:
        raise ValueError(
            f"column {reference!r} is not in the rows, which have {listed(row)}; {near(reference, row)}"
        )
    given = row[reference]
    own = (
        [given]
        if isinstance(given, str)
        else list(given)
        if isinstance(given, (list, tuple, np.ndarray))
        else []
    )
    if not own or not all(isinstance(one, str) and one.strip() for one in own):
        raise TypeError(
            f"question {number}: the reference must be a string or a list of strings, got {given!r}; drop such "
            "questions, write it as text, or give judge= a function"
        )
    return own


def _is_reference(answer: str, references: Sequence[str]) -> bool:
    return _bare(answer) in set(map(_bare, references))


def _by_letter(right: Sequence[Sequence[str]], reference: str) -> Callable[[str, Sequence[str]], bool]:
    letters = {one.strip() for own in right for one in own}
    if any(len(one) != 1 for one in letters):
        raise ValueError(
            f"judge='choice' reads letters, and the references of column {reference!r} are "
            f"{listed(sorted(letters)[:5])}; give the letter of the right choice there, or judge='exact'"
        )
    return lambda answer, own: _first_of(letters, answer) in {one.strip() for one in own}


def _bare(text: str) -> str:
    return same_text(text).strip().removesuffix(".").strip().casefold()


def _first_of(letters: set[str], answer: str) -> str | None:
    """The first letter that stands alone in the answer and can be a choice's: one of these, or of their kind, since a
    choice may be right nowhere. "I" is a word where choices don't go that far."""
    kinds = [kind for kind in (str.isupper, str.islower, str.isdigit) if any(map(kind, letters))]
    for one in re.findall(r"(?<!\w)\w(?!\w)", answer):
        if one in letters or (any(kind(one) for kind in kinds) and not (one in "Ii" and max(letters) < one)):
            return str(one)
    return None


def _asked(judge: Callable[..., Any], answer: str, row: Mapping[str, Any], at: int) -> Label:
    """A function's label of one answer."""
    try:
        given = judge(answer, row)
    except Exception as error:
        raise ValueError(
            f"the judge failed at question {at} on the answer {answer[:80]!r} ({type(error).__name__}: {error}); mend "
            "it, or let it give None there (path= keeps answers for the next call)"
        ) from error
    if isinstance(given, (bool, np.bool_)):
        return "right" if given else "wrong"
    if isinstance(given, Integral):
        return int(given)
    if given is None or (isinstance(given, str) and given.strip()):
        return given
    raise TypeError(
        f"a judge must give a string that is not empty, an integer, True, False or None, got {type(given).__name__} "
        f"{given!r} of the answer {answer[:80]!r}"
    )
