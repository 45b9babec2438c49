"""Labelled text for one classification task: its template, its label words and its split roles.

A role says what examples are used for: ``train`` fits soft prompts, ``baseline`` sets the neurons'
thresholds, ``select`` ranks neurons, and ``report`` is touched only for numbers that are reported. A neuron
picked as the best of thousands on some examples looks better on them than it is, so no text serves two of
train, select and report: what stands in two roles is dropped from the earlier one and counted (published
benchmarks do have this fault). Baseline is usually train itself, as in Wang et al. (2022, section 3).

Texts are equal when they are equal in normal form C, up to white space. Near-duplicates, and examples of one source,
are kept in one role when asked for: ``near_duplicates=0.8``, ``group="author"``. What belongs together is one unit of
every permutation, bootstrap and split (:meth:`Task.units`). Which class is label 1:
:mod:`~tl_skillneurons.tasks.reading`.
"""

import hashlib
import json
import random
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from datasets import Dataset

from tl_skillneurons._checks import listed, require_int, require_option, require_seed, require_text
from tl_skillneurons._results import html_of_fields, one_line
from tl_skillneurons.stats.units import Units
from tl_skillneurons.tasks._requirements import require_classes, require_examples, require_one_numbering
from tl_skillneurons.tasks.assembly import DROPPED, assembled, named_words, rows_of
from tl_skillneurons.tasks.chat import Chat, ChatGiven, as_chat
from tl_skillneurons.tasks.columns import as_dataset, columns_of, each_once, take
from tl_skillneurons.tasks.drawing import draw
from tl_skillneurons.tasks.groups import twins_of, units_of
from tl_skillneurons.tasks.roles import ROLES
from tl_skillneurons.tasks.subtasks import Classes, Grouping, groupings, regroup

WORD_SCORES = ("sum", "mean", "without_text")
"""What a class's score can be, of the log-probabilities of its label word's tokens."""


@dataclass(frozen=True, eq=False)
class Task:
    """Labelled text; make it with :meth:`from_datasets` or :func:`~tl_skillneurons.minimal_pairs`.

    Args:
        name: What the task is called in tables.
        label_words: The word (or its token id) that stands for each class; classes are numbered from 0. Words of
            several tokens are for causal models. Empty where no model reads words: encoders without a language-model
            head, linear read-outs, own answers.
        splits: The examples of each role: ``text`` as rendered, ``label`` (the class) and, for tasks whose
            examples have twins, ``pair`` (the number that two twins share); where groups were asked for,
            ``group``; for built-in tasks ``unit`` (the word pair that a text was made from).
        label_names: The labels as the data has them, in class order.
        template: What the texts were rendered with; with ``chat`` the user's message.
        dropped: How many examples each role lost because their text also stands in a later role.
        notes: How the roles were made, one sentence each.
        chat: What stands around the texts for a chat model, which gets them by its tokenizer's chat template; ``None``
            for the text alone.
        word_score: Of a label word of several tokens the ``"sum"`` of their log-probabilities, the ``"mean"``, or the
            sum minus the same ``"without_text"``; asked for by ``dataclasses.replace(task, word_score="mean")``.

    Raises:
        ValueError: When a role, a column or a class is missing, a text is empty or label words can't tell
            classes apart.

    Example:
        >>> rows = [{"review": f"film {k} is {'good' if k % 2 else 'bad'}", "label": k % 2} for k in range(20)]
        >>> words = {0: " negative", 1: " positive"}
        >>> task = Task.from_datasets(rows, template="{review}. It was", label_words=words, name="films")
        >>> task.n_examples
        {'train': 12, 'baseline': 12, 'select': 4, 'report': 4}
        >>> task.notes
        ("split 'data' is divided into 60% train, 20% select and 20% report (seed 0, by label).",)
    """

    name: str
    label_words: dict[int, str | int]
    splits: dict[str, Dataset]
    label_names: tuple[int | str, ...]
    template: str = "{text}"
    dropped: dict[str, int] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    chat: Chat | None = None
    word_score: str = "sum"

    def __post_init__(self) -> None:
        require_classes(self.label_words, self.label_names)
        for what, said in (("name", self.name), ("template", self.template)):
            require_text(said, f"a task's {what}")
        require_option(self.word_score, "word_score", WORD_SCORES)
        if sorted(self.splits) != sorted(ROLES):
            raise ValueError(f"splits must have exactly the roles {listed(ROLES)}, got {listed(self.splits)}")
        for role, dataset in self.splits.items():
            require_examples(role, dataset, self.label_names, self.dropped.get(role, 0))
        require_one_numbering(self.splits)

    @classmethod
    def from_datasets(
        cls,
        data: Any,
        *,
        template: str | None = None,
        label: str = "label",
        label_words: Mapping[Any, Any] | None = None,
        name: str | None = None,
        roles: Mapping[str, Any] | None = None,
        seed: int = 0,
        drop: str | Sequence[str] = DROPPED,
        group: str | None = None,
        near_duplicates: float | int | None = None,
        pair: str | None = "pair",
        chat: ChatGiven = None,
    ) -> "Task":
        """The task that ``data`` holds.

        Splits called train, validation (or dev, valid) and test serve as train and baseline, select, and
        report. What is missing is made, with a note: a lone split is divided 60 to 20 to 20 into train,
        select and report; without test, validation is halved; without validation, 20% of train is held out. A
        test split with hidden labels counts as missing. Everything is drawn by ``seed``, each label for
        itself, so that roles keep the labels' shares.

        Args:
            data: A ``Dataset``, a pandas frame or a list of dicts; or a ``DatasetDict`` or a dict of split name to
                such.
            template: The text of an example, with columns in braces: ``"{premise} {hypothesis}"``. They must hold
                strings, which stay as they are spelled; ``{year!s}`` takes numbers as well. Without, the column
                ``text``, or the only other column that holds text.
            label: The column of the labels.
            label_words: The word (or its token id) for each label that stands in the column, such as
                ``{0: " negative", 1: " positive"}``. Integer labels become classes in rising order, strings
                in the order given; of a ``ClassLabel`` column either the numbers or the names will do. Numbers are
                those of the first split that is used: in others that number their classes otherwise, classes are
                matched by name. An integer label also matches its spelling (``"1"``, as CSV files have it).
                Without words (or with ``None`` for each) the labels are those found, which does for encoders and
                linear read-outs; a language-model head reads words, and asks for them.
            name: What to call the task; else what the data calls itself, or "task".
            roles: Role to split name, or several, where they are called otherwise; ``"baseline"`` is else train.
            seed: Draws what is drawn.
            drop: What is left out and counted: ``"overlap"``, text (or groups) in two roles, from the earlier one;
                ``"empty"``, examples without a text or a label. What isn't named is refused; ``()`` refuses both.
            group: A column whose equal values (an author, a review, a source) never straddle train, select and
                report.
            near_duplicates: A similarity in (0, 1], such as 0.8, from which on texts count as one group
                (:mod:`~tl_skillneurons.tasks.groups`).
            pair: The column, where there is one, whose equal values are two twins: texts of different labels that
                differ in what tells the label. An example whose value is None has no twin. Twins never straddle
                train, select and report.
            chat: For chat models: ``True``, or what stands around the text, ``{"system": ..., "assistant": ...}``, as
                it is written (:class:`~tl_skillneurons.tasks.Chat`). The text is the user's message, whose template
                may stand there as ``"user"``. The tokenizer's chat template makes the ids, once a model runs.

        Raises:
            TypeError: When ``data``, a label or a label word is of a kind that can't be used.
            ValueError: When anything else about the input is wrong; the message says what and where.

        Example:
            >>> frame = pd.DataFrame({"review": [f"Film {k}" for k in range(20)], "stars": [1, 5] * 10})
            >>> task = Task.from_datasets(frame, label="stars")
            >>> task.template, task.label_names, task.n_examples["report"]
            ('{review}', (1, 5), 4)
            >>> asked = {"user": "Is it good? {review}", "assistant": "It is"}
            >>> Task.from_datasets(frame, label="stars", chat=asked).split("report")["text"][0]
            'Is it good? Film 7'
        """
        messages, template = as_chat(chat, template)
        return cls(
            **assembled(
                data,
                template=template,
                label=label,
                label_words=label_words,
                name=name,
                roles=roles,
                seed=require_seed(seed),
                drop=drop,
                group=group,
                near_duplicates=near_duplicates,
                pair=pair,
                chat=messages,
            )
        )

    @classmethod
    def from_texts(
        cls,
        texts: Iterable[str | None],
        labels: Iterable[Any],
        *,
        label_words: Mapping[Any, Any] | None = None,
        label_names: Sequence[str] | Mapping[Any, str] | None = None,
        groups: Iterable[Any] | None = None,
        pairs: Iterable[Any] | None = None,
        template: str = "{text}",
        name: str | None = None,
        seed: int = 0,
        near_duplicates: float | int | None = None,
        drop: str | Sequence[str] = DROPPED,
        chat: ChatGiven = None,
    ) -> "Task":
        """The task of these texts and labels, divided by ``seed`` into 60% train, 20% select and 20% report.

        Args:
            texts: Strings, in a list, an array or a column of a frame; ``labels`` likewise, integers or strings.
            label_words: The word (or its token id) for each label; this and the rest as in :meth:`from_datasets`.
            label_names: What labels are called: by label (``{0: "bad", 1: "good"}``), or in order from 0.
            groups: Of each text what it belongs to (an author); equal ones never straddle train, select and report.
            pairs: Of each text the number of its pair of twins, ``None`` for none.
            template: What stands around the text: ``"Review: {text} It was"``.
            chat: What stands around it in a conversation, for chat models; this and ``drop`` as in
                :meth:`from_datasets`.

        Raises:
            TypeError: For one string in the place of several, or labels of a kind that can't be used.
            ValueError: When texts and labels differ in number, or anything else about them is wrong.

        Example:
            >>> texts = [f"film {k} is {'good' if k % 2 else 'bad'}" for k in range(20)]
            >>> task = Task.from_texts(texts, [k % 2 for k in range(20)], label_names=["bad", "good"])
            >>> task.label_names, task.n_examples["report"]
            (('bad', 'good'), 4)
        """
        rows = rows_of(texts, labels, label_names, groups, pairs)
        messages, rendered = as_chat(chat, template, default="{text}")
        return cls.from_datasets(
            rows,
            template=rendered,
            label_words=label_words if label_names is None else named_words(label_words, label_names),
            name=name,
            seed=require_seed(seed),
            group=None if groups is None else "group",
            near_duplicates=near_duplicates,
            pair=None if pairs is None else "pair",
            drop=drop,
            chat=messages,
        )

    def __repr__(self) -> str:
        labels = {name: self.label_words.get(i) for i, name in enumerate(self.label_names)}
        return one_line(
            self, name=self.name, labels=labels if self.label_words else list(labels), **self.n_examples
        )

    _repr_html_ = html_of_fields

    @property
    def n_classes(self) -> int:
        """How many classes the task has."""
        return len(self.label_names)

    @property
    def n_examples(self) -> dict[str, int]:
        """How many examples each role has."""
        return {role: len(self.splits[role]) for role in ROLES}

    def split(self, role: str) -> Dataset:
        """The examples of ``role`` (another is refused), with the columns ``text`` and ``label``."""
        return self.splits[require_option(role, "role", ROLES)]

    def units(self, role: str) -> Units:
        """Which examples of ``role`` belong together: equal texts, groups, twins, and texts of one word pair.

        Labels are permuted, examples are resampled and split by these units, since what belongs together is not
        independent.

        Raises:
            ValueError: When there is no such role.

        Example:
            >>> from tl_skillneurons import minimal_pairs
            >>> minimal_pairs(n_pairs=400).units("select")
            Units(61 of 200 examples: word pair)
        """
        return units_of(columns_of(self.split(role)))

    def class_counts(self, role: str) -> list[int]:
        """How many examples of each class ``role`` has."""
        counts = Counter(columns_of(self.split(role))["label"])
        return [counts[i] for i in range(self.n_classes)]

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of roles, texts, labels, template, label words and chat; the same in every process."""
        digest = hashlib.sha256()
        words = [self.label_words[i] for i in sorted(self.label_words)]
        digest.update(json.dumps([self.template, words]).encode())
        if self.chat is not None:
            digest.update(json.dumps(self.chat.record, sort_keys=True).encode())
        if self.word_score != "sum":
            digest.update(self.word_score.encode())
        for role in ROLES:
            columns = columns_of(self.splits[role])
            digest.update(json.dumps([role, columns["text"], columns["label"]]).encode())
        return digest.hexdigest()

    def pairs(self, role: str) -> list[tuple[str, str]]:
        """The twins of ``role``: each text beside its twin of a later class (of two classes: class 0, then class 1).

        Raises:
            ValueError: When the examples have no twins.
        """
        twins = twins_of(columns_of(self.split(role)), self.name, role)
        return [(earlier, later) for (_, earlier), (_, later) in twins]

    def limit(
        self,
        train: int | None = None,
        baseline: int | None = None,
        select: int | None = None,
        report: int | None = None,
        seed: int = 0,
    ) -> "Task":
        """The task with at most so many examples in each role.

        Drawn by ``seed``, keeping the labels' shares as well as rounding allows and twins together. Where
        baseline is train, limiting train alone limits both to the same examples.

        Raises:
            ValueError: When a limit is lower than the number of classes.
        """
        require_seed(seed)
        asked = {"train": train, "baseline": baseline, "select": select, "report": report}
        limits = {role: limit for role, limit in asked.items() if limit is not None}
        follows = baseline is None and self._baseline_is_train
        splits, notes = dict(self.splits), []
        for role, limit in limits.items():
            require_int(limit, f"the limit of {role}", minimum=self.n_classes)
            columns = columns_of(self.splits[role])
            kept = draw(columns, limit, seed)
            if len(kept) < len(columns["text"]):
                splits[role] = as_dataset(take(columns, kept))
                who = "train and baseline are" if role == "train" and follows else f"{role} is"
                notes.append(
                    f"{who} limited to {len(kept)} of {len(columns['text'])} examples (seed {seed})."
                )
        if follows:
            splits["baseline"] = splits["train"]
        return replace(self, splits=splits, notes=(*self.notes, *notes))

    def with_shuffled_labels(self, seed: int = 0, *, roles: Sequence[str] = ("train", "baseline")) -> "Task":
        """The task with the labels of ``roles`` in a random order: nothing to learn. Train and baseline, where they are
        the same examples, keep the same labels."""
        splits = dict(self.splits)
        follows = self._baseline_is_train and {"train", "baseline"} <= set(roles)
        for role in roles:
            if role == "baseline" and follows:
                continue
            columns = columns_of(self.split(role))
            labels = list(columns["label"])
            random.Random(require_seed(seed)).shuffle(labels)
            kept = {name: values for name, values in columns.items() if name != "pair"}  # twins no longer
            splits[role] = as_dataset({**kept, "label": labels})
        if follows:
            splits["baseline"] = splits["train"]
        note = f"the labels of {' and '.join(roles)} are shuffled (seed {seed})."
        return replace(self, name=f"{self.name}, labels shuffled", splits=splits, notes=(*self.notes, note))

    def binary_subtasks(
        self, scheme: str | Iterable[Any] = "one_vs_rest", *, rest_word: str | int = " other"
    ) -> list["Task"]:
        """The task as several tasks of two classes; of each, class 1 is what its name mentions first.

        Args:
            scheme: ``"one_vs_rest"`` (each class against all others), ``"pairs"`` (each class against each
                later one, examples of other classes left out), or a list of groupings ``(labels, labels)``,
                where labels are one or several label names, or class ids where the names are strings. By the
                first two, a task that already has two classes stays as it is.
            rest_word: The label word of a group of several labels; where both groups have several, that of
                class 0, while class 1 takes the word of its first label.

        Raises:
            ValueError: When the scheme is unknown, or a grouping names an unknown label, none, or one twice.

        Example:
            >>> words = {"art": " art", "sports": " sports", "money": " money"}
            >>> rows = [{"text": f"{k} {label}", "label": label} for k in range(9) for label in words]
            >>> task = Task.from_datasets(rows, template="{text}", label_words=words, name="topic")
            >>> [subtask.name for subtask in task.binary_subtasks([("art", ["sports", "money"])])]
            ['topic: art against sports or money']
        """
        chosen = groupings(scheme, self.label_names, self.name)
        if isinstance(scheme, str) and self.n_classes == 2:
            return [self]
        return [self._regrouped(grouping, rest_word) for grouping in chosen]

    def _regrouped(self, grouping: Grouping, rest_word: str | int) -> "Task":
        classes = Classes(self.label_names, self.label_words)
        new, (one, other) = classes.grouped(grouping, rest_word), classes.titles(grouping)
        return replace(
            self,
            name=f"{self.name}: {one} against {other}",
            label_words=new.words,
            label_names=new.names,
            splits=each_once(self.splits, lambda dataset: regroup(dataset, grouping.class_of)),
        )

    @property
    def _baseline_is_train(self) -> bool:
        train, baseline = self.splits["train"], self.splits["baseline"]
        return train is baseline or columns_of(train) == columns_of(baseline)
