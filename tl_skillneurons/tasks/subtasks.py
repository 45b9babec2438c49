"""A task of many classes as several of two: which classes stand against which, and which of them is class 1.

Predictivity and what is built on it are defined for two classes, one of which a high activation may speak for. Of each
subtask, class 1 is the class (or the group of classes) that its name mentions first, class 0 what it stands against::

    one_vs_rest   "topic: sports against rest"          K subtasks of all examples
    pairs         "topic: sports against economy"       K (K - 1) / 2 subtasks, of the examples of two classes each
    groupings     "topic: sports or games against art"  as many as there are groupings

Each subtask has its own prompts, baseline and scores. What it does not show: that neurons of a subtask tell all classes
apart; a subtask of one class against the rest is unbalanced, so that a constant answer is right far more often than one
half of the time (:func:`~tl_skillneurons.stats.best_of_chance` takes the larger class's share).
"""

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from datasets import Dataset
from jaxtyping import Bool, Int
from torch import Tensor

from tl_skillneurons._checks import near, require_option
from tl_skillneurons.tasks.columns import as_dataset, columns_of, take

SCHEMES = ("one_vs_rest", "pairs")
"""The groupings that have a name."""


@dataclass(frozen=True)
class Grouping:
    """Classes that become class 1, against those that become class 0; ``rest`` where these are all others."""

    one: tuple[int, ...]
    other: tuple[int, ...]
    rest: bool = False

    @property
    def class_of(self) -> dict[int, int]:
        """Class of the task -> class of the subtask; classes on neither side are left out."""
        return {**dict.fromkeys(self.other, 0), **dict.fromkeys(self.one, 1)}


@dataclass(frozen=True)
class Classes:
    """What the classes of a task are called: in the data (``names``) and as an answer (``words``)."""

    names: tuple[int | str, ...]
    words: dict[int, str | int]

    def title(self, class_id: int) -> str:
        """What to call a class in a name: as the data has it, or its label word where that is only a number."""
        name, word = self.names[class_id], self.words.get(class_id)
        return word.strip() if isinstance(name, int) and isinstance(word, str) else str(name)

    def titles(self, grouping: Grouping) -> tuple[str, str]:
        """What to call the two sides, class 1 first."""
        one, other = (" or ".join(map(self.title, side)) for side in (grouping.one, grouping.other))
        return one, "rest" if grouping.rest else other

    def grouped(self, grouping: Grouping, rest_word: str | int) -> "Classes":
        """What the two classes of a subtask are called."""
        one, other = grouping.one, grouping.other
        sides = zip((one, other), self.titles(grouping), strict=True)
        first, second = (self.names[side[0]] if len(side) == 1 else title for side, title in sides)
        if not self.words:
            return Classes((second, first), {})
        words = {
            0: rest_word if len(other) > 1 else self.words[other[0]],
            1: rest_word if len(one) > 1 and len(other) == 1 else self.words[one[0]],
        }
        return Classes((second, first), words)


def groupings(scheme: str | Iterable[Any], names: Sequence[int | str], task: str) -> list[Grouping]:
    """The groupings of a scheme for classes of these names.

    Args:
        scheme: ``"one_vs_rest"``, ``"pairs"``, or the groupings themselves, each ``(labels, labels)``.
        task: The task's name, for messages.

    Raises:
        ValueError: When the scheme is unknown, or a grouping names an unknown label, none, or one twice.
    """
    if not isinstance(scheme, str):
        return [_grouping(given, names, task) for given in scheme]
    require_option(scheme, "scheme", SCHEMES)
    classes = range(len(names))
    if scheme == "pairs":
        return [Grouping((i,), (j,)) for i, j in itertools.combinations(classes, 2)]
    return [Grouping((i,), tuple(j for j in classes if j != i), rest=True) for i in classes]


def regroup(dataset: Dataset, class_of: dict[int, int]) -> Dataset:
    """The examples of the classes in ``class_of``, with the classes that it gives them."""
    columns = columns_of(dataset)
    kept = take(columns, [i for i, label in enumerate(columns["label"]) if label in class_of])
    return as_dataset({**kept, "label": [class_of[label] for label in kept["label"]]})


def against_rest(labels: Int[Tensor, "*draw example"], class_id: int) -> Int[Tensor, "*draw example"]:
    """1 for the examples of one class, 0 for all others: how a score of that class reads the labels.

    Of two classes, ``class_id`` 1 leaves the labels as they are and 0 exchanges them.

    Example:
        >>> against_rest(torch.tensor([0, 2, 1, 2]), 2).tolist()
        [0, 1, 0, 1]
    """
    of_class: Bool[Tensor, "*draw example"] = labels == class_id
    return of_class.long()


def _grouping(given: Any, names: Sequence[int | str], task: str) -> Grouping:
    if isinstance(given, str) or not isinstance(given, Sequence) or len(given) != 2:
        raise ValueError(f"a grouping must be two groups of labels, (labels, labels), got {given!r}")
    one, other = ([group] if isinstance(group, (int, str)) else list(group) for group in given)
    if not one or not other:
        raise ValueError(f"each group must have at least one label, got {given!r}")
    classes = [_class_id(label, names, task) for label in (*one, *other)]
    if len(set(classes)) < len(classes):
        raise ValueError(f"each label must stand in a grouping once, got {given!r}")
    return Grouping(tuple(classes[: len(one)]), tuple(classes[len(one) :]))


def _class_id(label: int | str, names: Sequence[int | str], task: str) -> int:
    if label in names:
        return names.index(label)
    by_name = all(isinstance(name, str) for name in names)
    if by_name and isinstance(label, int) and 0 <= label < len(names):
        return label
    raise ValueError(f"there is no label {label!r} in task {task!r}; {near(label, names)}")
