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
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from numbers import Real
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import pandas as pd

from tl_skillneurons._checks import differing, listed, near, require_option, require_seed
from tl_skillneurons._files import FORMAT, package_version, read_json, sound, write_json
from tl_skillneurons._results import html_of, one_line
from tl_skillneurons.tasks.chat import ANSWERED, Chat
from tl_skillneurons.tasks.columns import (
    Columns,
    Rows,
    as_dataset,
    column,
    column_names,
    columns_of,
    each_once,
    is_missing,
)
from tl_skillneurons.tasks.judging import Judge, judge_of
from tl_skillneurons.tasks.reading import as_splits, parse_template, rendered
from tl_skillneurons.tasks.task import Task

KIND = "Answers"
UNENDED = ("refuse", "judge", "drop")
WRITING = (
    "max_new_tokens",
    "interventions",
    "positions",
    "temperature",
    "top_k",
    "top_p",
    "end_ids",
    "use_past_kv_cache",
)
"""The options of ``generate`` that a call of :func:`from_answers` may give; the seed is its own."""
_AT_ONCE = 64  # questions between two writes of the file; fixed, for what is drawn depends on it
_UNLIKE = ("writing", "n_cut")  # of the settings, those that differ from call to call


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
            ``"choice"``: right where the first letter that stands alone in the answer, of the kind that references are,
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
    if not isinstance(model, Writer):
        raise TypeError(
            f"model must be a PromptedModel, which knows the chat: PromptedModel(model, None, chat=Chat()), got "
            f"{type(model).__name__}"
        )
    how = _how(writing)
    splits = as_splits(rows)
    template = question if "{" in question else f"{{{question}}}"
    texts = _texts(splits, template)
    every_row = [row for of_split in splits.values() for row in _cells(of_split)]
    judged = judge_of(judge, every_row, reference)
    topics = None if topic is None else _topics(every_row, topic)
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
    labels = judged(answers)
    table["label"] = pd.Series(
        [None if unended == "drop" and not end else label for label, end in zip(labels, ended, strict=True)],
        dtype=object,
    )
    table["kept"] = _kept(table, topics, seed)
    _require_labels(table)
    chosen = table[table.kept]
    data = {split: chosen[chosen.split == split][["text", "label"]].to_dict("records") for split in texts}
    told = f"{len(table) - len(chosen)} of {len(table)} answered questions are left out"
    told += "" if topic is None else f", for labels to be equally many within each {topic!r}"
    task = Task.from_datasets(
        {split: found for split, found in data.items() if found},
        template="{text}",
        label_words=dict.fromkeys(_ordered(set(chosen.label))),
        name=name or "own answers",
        roles=roles,
        seed=seed,
        chat=model.chat,
    )
    task = replace(task, notes=(f"labels are the judge's of the model's own answers; {told}.", *task.notes))
    by = judge if isinstance(judge, str) else getattr(judge, "__name__", type(judge).__name__)
    return JudgedAnswers(task, table, {**settings, "judge": by, "unended": unended, "topic": topic})


def _how(writing: Mapping[str, Any] | None) -> dict[str, Any]:
    """How answers are written.

    Raises:
        TypeError: For anything but options by their names.
        ValueError: For an option that ``generate`` doesn't have, or that is given otherwise.
    """
    if not isinstance(writing or {}, Mapping):
        raise TypeError(
            f"writing must be a dict of generate's options, got {type(writing).__name__} {writing!r}"
        )
    for name in writing or {}:
        if name == "seed":
            raise ValueError("writing has no seed of its own; give from_answers(seed=...)")
        require_option(name, "an option of writing", WRITING)
    return {"max_new_tokens": 32, **(writing or {})}


def _texts(splits: Mapping[str, Rows], template: str) -> dict[str, list[str]]:
    """The questions as they are asked."""
    parts = parse_template(template)
    texts = {}
    for split, rows in splits.items():
        names = column_names(rows)
        for part in parts if names else ():
            if part.column is not None and part.column not in names:
                raise ValueError(
                    f"question field {part.column!r} is not in split {split!r}, which has the columns {listed(names)}; "
                    f"{near(part.column, names)}"
                )
        texts[split] = rendered(rows, f"split {split!r}", parts)
    if not any(texts.values()):
        raise ValueError("there is no question; give at least a few")
    return texts


def _topics(rows: Sequence[Mapping[str, Any]], topic: str) -> list[Any]:
    """Each question's topic.

    Raises:
        TypeError: For one that is no string and no number.
        ValueError: For a column that isn't there, or a question without a topic.
    """
    found = []
    for number, row in enumerate(rows):
        if topic not in row:
            raise ValueError(
                f"topic {topic!r} is not in the rows, which have {listed(row)}; {near(topic, row)}"
            )
        if is_missing(row[topic]):
            raise ValueError(f"question {number} has no {topic!r}; drop it, or leave topic out")
        if not isinstance(row[topic], (str, Real)):
            raise TypeError(
                f"question {number}: a topic must be a string or a number, got {type(row[topic]).__name__} "
                f"{row[topic]!r}"
            )
        found.append(row[topic])
    return found


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
    if path is not None and path.is_dir():
        raise ValueError(f"path must be a file, and {path} is a folder; give one in it, such as answers.json")
    digest = hashlib.sha256(json.dumps(list(texts)).encode()).hexdigest()
    said = {name: value for name, value in probe.get("writing", {}).items() if name not in ("seed", "keeps")}
    said["max_new_tokens"] = how["max_new_tokens"]
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


def _kept(table: pd.DataFrame, topics: Sequence[Any] | None, seed: int) -> list[bool]:
    """Which questions have a label, and where there are topics, are as many as those of the other labels there, in
    each split for itself: what is balanced over all splits may be skewed in the one that chooses or measures."""
    has_label = [label is not None for label in table.label]
    if topics is None:
        return has_label
    members: dict[Any, dict[Any, list[int]]] = {}
    for number, one in enumerate(topics):
        if has_label[number]:
            of_topic = members.setdefault((table.split[number], one), {})
            of_topic.setdefault(table.label[number], []).append(number)
    labels = {label for of_topic in members.values() for label in of_topic}
    generator, chosen = random.Random(seed), set()
    for of_topic in members.values():
        least = min(len(of_topic.get(label, [])) for label in labels)
        for label in sorted(of_topic, key=str):
            chosen |= set(generator.sample(of_topic[label], least))
    return [number in chosen for number in range(len(topics))]


def _require_labels(table: pd.DataFrame) -> None:
    """Refuse labels that are all the same, or of several kinds.

    Raises:
        ValueError: Then.
    """
    found = Counter(table.label[table.kept])
    if len(found) < 2:
        every = Counter(label for label in table.label if label is not None)
        told = ", ".join(f"{n} {label!r}" for label, n in every.items()) or "none"
        without = len(table) - sum(every.values())
        if without:
            told += f", and {without} of {len(table)} answers without one (dropped, or None by the judge)"
        advice = "harder or easier questions"
        if len(every) > 1:
            told += ", of which none is left where labels are as many within each topic"
            advice = "more questions of each topic"
        raise ValueError(
            f"a task needs answers of at least two labels, got {told}; give {advice}, or another judge"
        )
    if len({type(label) for label in found}) > 1:
        raise ValueError(
            f"a judge's labels must be all strings or all integers, got {listed(found)}; give str(label) of each"
        )


def _ordered(labels: set[Any]) -> list[Any]:
    """Right after wrong, so that it is class 1; others as they sort."""
    return ["wrong", "right"] if labels == {"wrong", "right"} else sorted(labels)
