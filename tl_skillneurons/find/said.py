"""Numbers in words, the same in the terminal, on the page and in ``run.json``."""

from collections.abc import Sequence
from typing import Any

from tl_skillneurons.tasks.task import Task


def number(value: float) -> str:
    """Three digits, as many of them behind the point as there is room for.

    Example:
        >>> number(0.5), number(-3.3249), number(18.249)
        ('0.500', '-3.32', '18.2')
    """
    return f"{value:.{3 if abs(value) < 1 else 2 if abs(value) < 10 else 1}f}"


def interval(low: float, high: float) -> str:
    """Both ends.

    Example:
        >>> interval(0.897, 0.941), interval(-0.065, 0.005)
        ('0.897-0.941', '-0.065 to 0.005')
    """
    return f"{number(low)}{' to ' if low < 0 else '-'}{number(high)}"


def fraction(p_value: float, n_draws: int) -> str:
    """A rank p-value as the fraction that it is.

    Example:
        >>> fraction(1 / 21, 20), fraction(1.0, 20)
        ('1/21', '21/21')
    """
    return f"{round(p_value * (n_draws + 1))}/{n_draws + 1}"


def listed(words: Sequence[str]) -> str:
    """With "and" before the last.

    Example:
        >>> listed(["a", "b", "c"]), listed(["a"])
        ('a, b and c', 'a')
    """
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


def label_said(task: Task, label: int) -> str:
    """What stands for a class: its label word, quoted, or its name where the word is a token id."""
    word: Any = task.label_words.get(label, task.label_names[label])
    return f'"{word.strip() or word}"' if isinstance(word, str) else f"label {task.label_names[label]}"
