"""Labelled text from a folder with train, validation and test .jsonl, for the examples that take one.

``python labelled_folders.py`` does nothing but say how to use it.
"""

from pathlib import Path

from datasets import load_dataset

import tl_skillneurons as skn

TWO_CLASSES = ("{text}", (" negative", " positive"))
KNOWN = {
    "sst2": TWO_CLASSES,
    "imdb": TWO_CLASSES,
    "tweet_sentiment": ("{text}", (" negative", " neutral", " positive")),
    "emotion": ("{text}", (" anger", " joy", " hope", " sadness")),
    "ag_news": ("{text}", (" World", " Sports", " Business", " Tech")),
    "mnli": ("{premise} {hypothesis}", (" yes", " maybe", " no")),
}
"""Template and label words (of label 0, 1, ...) by the folder's name; a folder of another name has two classes."""


def load_task(folder, *, near_duplicates=None, binary=False, max_words=None, chat=None):
    """The task in ``folder``.

    Args:
        near_duplicates: As in ``Task.from_datasets``.
        binary: Of more than two classes, keep the last as label 1 and the first as label 0.
        max_words: Cut the texts (of each column of the template) after so many words, and say how many were.
        chat: As in ``Task.from_datasets``; its "user" stands for the template.
    """
    name = Path(folder).name
    template, words = KNOWN.get(name, TWO_CLASSES)
    data = load_dataset(str(folder))
    if max_words is not None:
        columns = [column for column in ("text", "premise", "hypothesis") if f"{{{column}}}" in template]
        rows = {split: list(data[split]) for split in data}
        n_cut = 0
        for row in (row for split in rows.values() for row in split):
            pieces = {column: row[column].split() for column in columns}
            n_cut += any(len(piece) > max_words for piece in pieces.values())
            row.update({column: " ".join(piece[:max_words]) for column, piece in pieces.items()})
        data = rows
        if n_cut:
            print(f"{name}: {n_cut} of {sum(map(len, rows.values()))} texts cut after {max_words} words")
    task = skn.Task.from_datasets(
        data,
        template=template if chat is None else None,
        label_words=dict(enumerate(words)),
        name=name,
        near_duplicates=near_duplicates,
        chat=chat,
    )
    if binary and task.n_classes > 2:
        [task] = task.binary_subtasks([(task.n_classes - 1, 0)])
    return task


if __name__ == "__main__":
    print(
        f"from labelled_folders import load_task; load_task(folder), a folder called {', '.join(KNOWN)} or else"
    )
