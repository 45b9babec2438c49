"""What is wanted of what a model writes: measures of answers, each a number per answer.

* :class:`ReadOut`: the probability of a class, read by soft prompts from what was written, by the untouched model. It
  is no independent judge of neurons that those prompts chose.
* a function of your own from an answer to a number;
* a list of words: the share of an answer's words that are in it.
"""

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from tl_skillneurons._checks import listed
from tl_skillneurons._words import words_of
from tl_skillneurons.prompts.prompted_model import PromptedModel
from tl_skillneurons.prompts.run import RunOptions
from tl_skillneurons.prompts.soft_prompt import SoftPrompt
from tl_skillneurons.studies._common import soft_prompts
from tl_skillneurons.studies.steering.numbers import is_empty
from tl_skillneurons.tasks.reading import Field, parse_template
from tl_skillneurons.tasks.task import Task

CLASS = "class"
FLUENCY = ("cross_entropy", "repeated", "empty")
"""What is measured of every answer: its price."""
Reader = Callable[[Sequence[str]], Float[Tensor, " text"]]
"""From answers to a number of each."""
Judge = Callable[[str], Any]


@dataclass(frozen=True, eq=False)
class ReadOut:
    """The probability of a class by the read-out of soft prompts, averaged over them, on what was written.

    An answer stands in the task's template. One of white space alone says nothing of the class: 1 / n_classes.

    Attributes:
        prompts: Tuned on ``task``.
        task: Whose classes; another task than the one whose neurons are steered shows what else changes.
        toward: The class, an integer.

    Example:
        >>> off_target = skn.studies.ReadOut(its_prompts, other_task, toward=1)
        >>> skn.studies.steer(model, prompts, task, skill, toward=1, measure={"other": off_target})
    """

    prompts: SoftPrompt | Sequence[SoftPrompt]
    task: Task
    toward: int

    def __post_init__(self) -> None:
        n = len(self.task.label_names)
        if isinstance(self.toward, bool) or not isinstance(self.toward, int) or not 0 <= self.toward < n:
            raise ValueError(
                f"toward must be a class of {self.task.name!r}, an integer in [0, {n}), got {self.toward!r}"
            )

    def reader(self, model: TransformerBridge, run: RunOptions) -> Reader:
        """A function from answers to the probability of each.

        Raises:
            ValueError: For a task whose texts are made of several columns.
        """
        prompted = [
            PromptedModel.for_task(model, one, self.task, run=run) for one in soft_prompts(self.prompts)
        ]
        n_classes = len(self.task.label_names)
        parts = parse_template(self.task.template)
        if len({column for _, column, _ in parts if column is not None}) != 1:
            raise ValueError(
                f"what was written can't stand in the template {self.task.template!r} of {self.task.name!r}, which has "
                "several columns; give a task of single texts"
            )

        def read(answers: Sequence[str]) -> Float[Tensor, " text"]:
            found = torch.full((len(answers),), 1 / n_classes, dtype=torch.float64)
            said = [k for k, answer in enumerate(answers) if not is_empty(answer)]
            if said:
                texts = [in_template(parts, answers[k].strip()) for k in said]
                with torch.no_grad():
                    logits = [one.class_logits(texts).double().cpu() for one in prompted]
                found[said] = torch.stack([one.softmax(1)[:, self.toward] for one in logits]).mean(0)
            return found

        return read


def in_template(parts: Sequence[Field], text: str) -> str:
    """A text in a template of one column.

    Example:
        >>> in_template(parse_template("It says: {text}."), "fine")
        'It says: fine.'
    """
    return "".join(before + ("" if column is None else text) for before, column, _ in parts)


def word_share(answer: str, words: Collection[str]) -> float:
    """The share of an answer's words that are among ``words``, case left out; 0 of an empty one.

    Example:
        >>> word_share("A good, GOOD film", {"good"})
        0.5
    """
    said = words_of(answer)
    return 0.0 if not said else sum(word in words for word in said) / len(said)


def readers(
    measure: Mapping[str, ReadOut | Judge | Collection[str]],
    own: ReadOut,
    model: TransformerBridge,
    run: RunOptions,
) -> dict[str, Reader]:
    """A function for each measure by its name, the read-out of the steered class, ``own``, first.

    Raises:
        ValueError: For a name that is taken, or an empty list of words.
        TypeError: For what is no measure.
    """
    found = {CLASS: own.reader(model, run)}
    for name, one in measure.items():
        if name in (CLASS, *FLUENCY):
            raise ValueError(
                f"a measure can't be called {name!r}: {listed((CLASS, *FLUENCY))} are measured anyway; name it "
                "otherwise"
            )
        if isinstance(one, ReadOut):
            found[name] = one.reader(model, run)
        elif callable(one):
            found[name] = _judged(name, one)
        elif isinstance(one, Collection) and not isinstance(one, str | bytes):
            found[name] = _worded(name, one)
        else:
            raise TypeError(
                f"measure {name!r} must be a ReadOut, a function from an answer to a number, or a list of words, got "
                f"{one!r}"
            )
    return found


def _worded(name: str, words: Collection[str]) -> Reader:
    listed_words = frozenset(piece for word in words for piece in words_of(word))
    if not listed_words:
        raise ValueError(f"the word list {name!r} must hold at least one word, got none")
    longer = [word for word in words if len(words_of(word)) > 1]
    if longer:
        raise ValueError(f"the word list {name!r} must hold single words, got {longer[0]!r}; give its parts")
    return lambda answers: torch.tensor(
        [word_share(answer, listed_words) for answer in answers], dtype=torch.float64
    )


def _judged(name: str, judge: Judge) -> Reader:
    def read(answers: Sequence[str]) -> Float[Tensor, " text"]:
        found = []
        for answer in answers:
            value = judge(answer)
            if not isinstance(value, Real):
                raise TypeError(
                    f"judge {name!r} must give a number for each answer, gave {value!r} for {answer!r}"
                )
            if not math.isfinite(value):
                raise ValueError(
                    f"judge {name!r} must give a finite number, gave {float(value)} for {answer!r}; give a number for "
                    "answers that it can't judge too (an empty one is '')"
                )
            found.append(float(value))
        return torch.tensor(found, dtype=torch.float64)

    return read
