"""A task out of a model's own answers: what it wrote to each question, judged, is the label of the question.

The labels say of the model, not of the world, what it got right. Right answers may differ from wrong ones in much
besides: a topic that the model knows has more of them, and a neuron that reads the topic is no truth neuron. ``topic=``
keeps equally many of each label within each topic of a split. What it does not show: that a neuron which tells right
from wrong before the answer is written is used in writing it.
"""

import hashlib
import json
import os
import random
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol, TypeAlias, runtime_checkable

import pandas as pd

from tl_skillneurons._checks import differing, listed, near, require_option, require_seed
from tl_skillneurons._files import FORMAT, package_version, read_json, sound, write_json
from tl_skillneurons._results import html_of, one_line
from tl_skillneurons._words import same_text
from tl_skillneurons.tasks.chat import ANSWERED, Chat
from tl_skillneurons.tasks.columns import (
    Columns,
    Rows,
    as_dataset,
    column,
    column_names,
    columns_of,
    each_once,
)
from tl_skillneurons.tasks.reading import as_splits, parse_template, rendered
from tl_skillneurons.tasks.task import Task

KIND = "Answers"
JUDGES = ("exact", "choice")
UNENDED = ("refuse", "judge", "drop")
_AT_ONCE = 64  # questions between two writes of the file; fixed, for what is drawn depends on it
_UNLIKE = ("writing", "n_cut")  # of the settings, those that differ from call to call

Judge: TypeAlias = str | Callable[[str, Mapping[str, Any]], Any]
"""``"exact"``, ``"choice"``, or a function of the answer and the row to a label, ``True``, ``False``, or ``None`` to
leave it out."""


@runtime_checkable
class Writer(Protocol):
    """What writes answers: a :class:`~tl_skillneurons.PromptedModel`."""

    @property
    def chat(self) -> Chat | None:
        """What stands around a text in a conversation."""

    def generate(self, texts: Sequence[str], max_new_tokens: int = 32, **how: Any) -> Any:
        """What is written after each text: ``answers``, ``ended`` and ``settings``."""


@dataclass(frozen=True, repr=False, eq=False)
class JudgedAnswers:
    """Questions, what a model answered, and the task of telling its right answers from its wrong ones.

    Attributes:
        task: The questions with the judge's labels; of right and wrong ones, right is class 1.
        table: A row for each question: ``split``, ``text`` as it was asked, ``answer``, whether it ``ended`` by itself,
            the ``label`` (``None`` where the judge gave none), and whether the task has ``kept`` it.
        settings: Of the writing and the judge, as plain JSON values.

    Example:
        >>> found.task.class_counts("train"), found.to_dataframe().answer.head()
    """

    task: Task
    table: pd.DataFrame
    settings: dict[str, Any]

    _repr_html_ = html_of

    def __repr__(self) -> str:
        labels = {str(label): int(n) for label, n in self.table.label.value_counts(dropna=True).items()}
        return one_line(self, n=len(self.table), n_kept=int(self.table.kept.sum()), **labels)

    def to_dataframe(self) -> pd.DataFrame:
        """A copy of :attr:`table`."""
        return self.table.copy()

    def with_answers(self) -> Task:
        """The task with each answer behind its question, so that neurons can be read at it:
        ``score_neurons(model, None, found.with_answers(), positions="answer_last")``, or "answer_first", "answer".

        Raises:
            ValueError: For a question that was answered twice, in other words.
        """
        given: dict[str, str] = {}
        for text, answer in self.table.loc[self.table.kept, ["text", "answer"]].itertuples(index=False):
            if given.setdefault(text, answer) != answer:
                raise ValueError(
                    f"the question {text[:80]!r} has two answers, {given[text][:80]!r} and {answer[:80]!r}; ask each "
                    "once"
                )

        def answered(columns: Columns) -> Columns:
            return {**columns, "text": [f"{text}{ANSWERED}{given[text]}" for text in columns["text"]]}

        splits = each_once(self.task.splits, lambda dataset: as_dataset(answered(columns_of(dataset))))
        return replace(self.task, name=f"{self.task.name}, with answers", splits=splits)


def from_answers(
    model: Writer,
    rows: Any,
    *,
    question: str = "question",
    reference: str = "answer",
    judge: Judge = "exact",
    writing: Mapping[str, Any] | None = None,
    unended: str = "refuse",
    topic: str | None = None,
    seed: int = 0,
    path: str | os.PathLike[str] | None = None,
    name: str | None = None,
    roles: Mapping[str, Any] | None = None,
) -> JudgedAnswers:
    """Let a model answer questions, judge each answer, and make a task of the questions with these labels.

    The neurons can be read at the end of the question: without a prompt ``positions="last"`` (of its own tokens) or
    ``"readout"`` (where the answer begins, after the chat template); and at the answer's first or last token, or
    averaged over it, in the task that :meth:`JudgedAnswers.with_answers` gives.

    Args:
        model: A :class:`~tl_skillneurons.PromptedModel`, with its chat, its prompt, if any, and its batches.
        rows: As for :meth:`~tl_skillneurons.Task.from_datasets`: one table or several by the name of their split.
        question: The column of the questions, or a template with columns in braces.
        reference: The column of what is right, which the built-in judges read: a string, or a list of several.
        judge: ``"exact"``: right where the answer is a reference, case, white space and a full stop at its end apart.
            ``"choice"``: right where the first letter that stands alone in the answer and is some question's reference
            is this one's. Or a function of the answer and the row.
        writing: How answers are written: ``max_new_tokens`` (32), ``temperature``, ``interventions`` and so on, as
            ``generate`` takes them.
        unended: What becomes of answers that did not end within ``max_new_tokens``: ``"refuse"`` them, ``"judge"`` them
            as they are, or ``"drop"`` them.
        topic: A column within whose equal values equally many of each label are kept in each split of ``rows``, drawn
            by ``seed``. Roles that are drawn from one table have its topics as luck deals them out.
        seed: Of what is drawn: answers, balance, roles.
        path: A file that keeps answers as they come; the same call goes on where it stopped.
        name, roles: Of the task, as there.

    Raises:
        TypeError: For a judge that is none, or gives something else than a label.
        ValueError: For answers that never end, labels that are all the same, a ``path`` of other questions, another
            model, other neurons or settings, or one beside hook functions that no file can tell apart.

    Example:
        >>> asked = skn.PromptedModel(model, None, chat=skn.tasks.Chat(system="Answer with one word."))
        >>> found = skn.tasks.from_answers(asked, rows, question="{q}", reference="a", topic="continent")
        >>> scores = skn.score_neurons(model, None, found.task, positions="readout")
    """
    require_seed(seed)
    require_option(unended, "unended", UNENDED)
    splits = as_splits(rows)
    template = question if "{" in question else f"{{{question}}}"
    texts = _texts(splits, template)
    how = {"max_new_tokens": 32, **(writing or {})}
    asked = [text for of_split in texts.values() for text in of_split]
    answers, ended, settings = _written(model, asked, how, seed, None if path is None else Path(path))
    table = pd.DataFrame(
        {
            "split": [split for split, of_split in texts.items() for _ in of_split],
            "text": asked,
            "answer": answers,
            "ended": ended,
        }
    )
    n_unended = len(table) - int(table.ended.sum())
    if n_unended and unended == "refuse":
        first = table[~table.ended].iloc[0]
        raise ValueError(
            f"{n_unended} of {len(table)} answers did not end within {how['max_new_tokens']} tokens, such as "
            f"{first.answer[:80]!r} to {first.text[:80]!r}; give writing={{'max_new_tokens': ...}}, or "
            "unended='judge' or 'drop'"
        )
    cells = {split: _cells(of_split) for split, of_split in splits.items()}
    every_row = [row for of_split in cells.values() for row in of_split]
    labels = _judged(answers, every_row, judge, reference)
    table["label"] = pd.Series(
        [None if unended == "drop" and not end else label for label, end in zip(labels, ended, strict=True)],
        dtype=object,
    )
    kept, said = _kept(table, every_row, topic, seed)
    table["kept"] = kept
    _require_labels(table)
    chosen = table[table.kept]
    data = {split: chosen[chosen.split == split][["text", "label"]].to_dict("records") for split in texts}
    told = f"{len(table) - len(chosen)} of {len(table)} answered questions are left out"
    task = Task.from_datasets(
        {split: found for split, found in data.items() if found},
        template="{text}",
        label_words=dict.fromkeys(_ordered(set(chosen.label))),
        name=name or "own answers",
        roles=roles,
        seed=seed,
        chat=model.chat,
    )
    task = replace(
        task, notes=(f"labels are the judge's of the model's own answers; {told}{said}.", *task.notes)
    )
    judged = judge if isinstance(judge, str) else getattr(judge, "__name__", type(judge).__name__)
    return JudgedAnswers(task, table, {**settings, "judge": judged, "unended": unended, "topic": topic})


def _texts(splits: Mapping[str, Rows], template: str) -> dict[str, list[str]]:
    """The questions as they are asked."""
    parts = parse_template(template)
    texts = {}
    for split, rows in splits.items():
        names = column_names(rows)
        for part in parts:
            if part.column is not None and part.column not in names:
                raise ValueError(
                    f"question field {part.column!r} is not in split {split!r}, which has the columns {listed(names)}; "
                    f"{near(part.column, names)}"
                )
        texts[split] = rendered(rows, f"split {split!r}", parts)
    if not any(texts.values()):
        raise ValueError("there is no question; give at least a few")
    return texts


def _cells(rows: Rows) -> list[dict[str, Any]]:
    names = column_names(rows)
    return [
        dict(zip(names, row, strict=True))
        for row in zip(*(column(rows, name) for name in names), strict=True)
    ]


def _written(
    model: Writer, texts: Sequence[str], how: Mapping[str, Any], seed: int, path: Path | None
) -> tuple[list[str], list[bool], dict[str, Any]]:
    """What the model answers, from the file where it was kept."""
    probe = model.generate(texts[:1], **{**how, "max_new_tokens": 1, "seed": seed}).settings
    if path is not None and any(one.get("digest") is None for one in probe.get("interventions", ())):
        raise ValueError(
            "a file can't tell one hook function from another of the same name, so answers that were written with it "
            "can't be kept; give what ablate(neurons, how=Scale(2.0)) or ablate_heads(...) makes, or leave path out"
        )
    digest = hashlib.sha256(json.dumps(list(texts)).encode()).hexdigest()
    said = {name: value for name, value in how.items() if isinstance(value, (int, float, str, type(None)))}
    settings = {name: value for name, value in probe.items() if name not in _UNLIKE}
    settings |= {"writing": said, "seed": seed, "texts": digest}
    settings = json.loads(json.dumps(settings))  # as it is read back
    answers: list[str] = []
    ended: list[bool] = []
    if path is not None and path.exists():
        content = read_json(path, KIND)
        with sound(path, KIND):
            was, answers, ended = content["settings"], list(content["answers"]), list(content["ended"])
        if apart := differing(was, settings):
            raise ValueError(
                f"{path} has answers of another call ({'; '.join(apart)[:300]}); choose another path"
            )
    for start in range(len(answers), len(texts), _AT_ONCE):
        some = model.generate(texts[start : start + _AT_ONCE], **{**how, "seed": (seed + start) % 2**63})
        answers += some.answers
        ended += some.ended
        if path is not None:
            kept = {"settings": settings, "answers": answers, "ended": ended}
            write_json(path, {"kind": KIND, "format": FORMAT, "package_version": package_version(), **kept})
    return answers, ended, settings


def _judged(
    answers: Sequence[str], rows: Sequence[Mapping[str, Any]], judge: Judge, reference: str
) -> list[str | int | None]:
    """The judge's label of each answer; ``None`` where it gives none."""
    if callable(judge):
        return [_label(judge(answer, row), answer) for answer, row in zip(answers, rows, strict=True)]
    if not isinstance(judge, str):
        raise TypeError(f"judge must be {listed(JUDGES)} or a function (answer, row) -> label, got {judge!r}")
    require_option(judge, "judge", JUDGES)
    right = [_references(row, reference, number) for number, row in enumerate(rows)]
    if judge == "exact":
        hits = [_bare(answer) in set(map(_bare, own)) for answer, own in zip(answers, right, strict=True)]
    else:
        letters = {one.strip() for own in right for one in own}
        if any(len(one) != 1 for one in letters):
            raise ValueError(
                f"judge='choice' reads letters, and the references of column {reference!r} are "
                f"{listed(sorted(letters)[:5])}; give the letter of the right choice there, or judge='exact'"
            )
        found = [_first_of(letters, answer) for answer in answers]
        hits = [one in {r.strip() for r in own} for one, own in zip(found, right, strict=True)]
    return ["right" if hit else "wrong" for hit in hits]


def _references(row: Mapping[str, Any], reference: str, number: int) -> list[str]:
    if reference not in row:
        raise ValueError(
            f"column {reference!r} is not in the rows, which have {listed(row)}; {near(reference, row)}"
        )
    given = row[reference]
    own = [given] if isinstance(given, str) else list(given) if isinstance(given, (list, tuple)) else []
    if not own or not all(isinstance(one, str) and one.strip() for one in own):
        raise TypeError(
            f"question {number}: the reference must be a string or a list of strings, got {given!r}; give judge= a "
            "function"
        )
    return own


def _bare(text: str) -> str:
    return same_text(text).strip().removesuffix(".").strip().casefold()


def _first_of(letters: set[str], answer: str) -> str | None:
    """The first of these letters that stands alone in the answer."""
    alone = re.findall(r"(?<!\w)\w(?!\w)", answer)
    return next((one for one in alone if one in letters), None)


def _label(given: Any, answer: str) -> str | int | None:
    if isinstance(given, bool):
        return "right" if given else "wrong"
    if given is None or isinstance(given, (str, int)):
        return given
    raise TypeError(
        f"a judge must give a string, an integer, True, False or None, got {type(given).__name__} {given!r} of the "
        f"answer {answer[:80]!r}"
    )


def _kept(
    table: pd.DataFrame, rows: Sequence[Mapping[str, Any]], topic: str | None, seed: int
) -> tuple[list[bool], str]:
    """Which questions have a label, and where topics are asked for, are as many as those of the other labels there, in
    each split for itself: what is balanced over all splits may be skewed in the one that chooses or measures."""
    has_label = [label is not None for label in table.label]
    if topic is None:
        return has_label, ""
    members: dict[Any, dict[Any, list[int]]] = {}
    for number, row in enumerate(rows):
        if topic not in row:
            raise ValueError(
                f"topic {topic!r} is not in the rows, which have {listed(row)}; {near(topic, row)}"
            )
        if has_label[number]:
            of_topic = members.setdefault((table.split[number], row[topic]), {})
            of_topic.setdefault(table.label[number], []).append(number)
    labels = {label for of_topic in members.values() for label in of_topic}
    generator, chosen = random.Random(seed), set()
    for of_topic in members.values():
        least = min(len(of_topic.get(label, [])) for label in labels)
        for label in sorted(of_topic, key=str):
            chosen |= set(generator.sample(of_topic[label], least))
    return [
        number in chosen for number in range(len(rows))
    ], f", for labels to be equally many within each {topic!r}"


def _require_labels(table: pd.DataFrame) -> None:
    """Refuse labels that are all the same, or of several kinds.

    Raises:
        ValueError: Then.
    """
    found = Counter(table.label[table.kept])
    if len(found) < 2:
        all_found = Counter(label for label in table.label if label is not None)
        raise ValueError(
            f"a task needs answers of at least two labels, got {dict(found)} (of {dict(all_found)} before topics were "
            "balanced); give harder or easier questions, or another judge"
        )
    if len({type(label) for label in found}) > 1:
        raise ValueError(f"a judge's labels must be all strings or all integers, got {listed(found)}")


def _ordered(labels: set[Any]) -> list[Any]:
    """Right after wrong, so that it is class 1; others as they sort."""
    return ["wrong", "right"] if labels == {"wrong", "right"} else sorted(labels)
