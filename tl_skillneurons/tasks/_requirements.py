"""What the classes and the examples of a task must be."""

from collections.abc import Mapping

from datasets import ClassLabel, Dataset

from tl_skillneurons._checks import listed, require_text
from tl_skillneurons.tasks.columns import columns_of


def require_classes(label_words: dict[int, str | int], label_names: tuple[int | str, ...]) -> None:
    """Refuse label words that can't tell classes apart, and names that no file can hold; no words at all are fine."""
    n_classes = len(label_words or label_names)
    if n_classes < 2:
        where = "label_words" if label_words else f"the data ({listed(label_names)})"
        raise ValueError(f"a task needs at least two labels, got {n_classes} in {where}")
    for name in label_names:
        if isinstance(name, str):
            require_text(name, "the name of a label")
    if (label_words and sorted(label_words) != list(range(n_classes))) or len(label_names) != n_classes:
        raise ValueError(
            "label_words must number the classes from 0 and label_names name each, "
            f"got {label_words} and {label_names}"
        )
    for word in label_words.values():
        if isinstance(word, bool) or not isinstance(word, (int, str)):
            raise TypeError(f"a label word must be a string or a token id, got {word!r}")
        if isinstance(word, str):
            require_text(word, "a label word")
        if word == "" or (isinstance(word, int) and word < 0):
            raise ValueError(f"a label word must be a word or a token id of at least 0, got {word!r}")
    if len(set(label_words.values())) < len(label_words):
        raise ValueError(f"each class needs a label word of its own, got {listed(label_words.values())}")


def require_one_numbering(splits: Mapping[str, Dataset]) -> None:
    """Refuse roles whose classes (``ClassLabel`` columns) are numbered differently."""
    features = {role: dataset.features["label"] for role, dataset in splits.items()}
    named = {role: one.names for role, one in features.items() if isinstance(one, ClassLabel)}
    for role, names in named.items():
        first = next(iter(named))
        if names != named[first]:
            raise ValueError(
                f"the roles number their classes differently: {first!r} has {listed(named[first])} and {role!r} has "
                f"{listed(names)}; make the task with Task.from_datasets, which matches classes by name"
            )


def require_examples(role: str, dataset: Dataset, label_names: tuple[int | str, ...], dropped: int) -> None:
    """Refuse a role without columns, examples or a class, and texts that are empty or no strings."""
    missing = {"text", "label"} - set(dataset.column_names)
    if missing:
        raise ValueError(
            f"role {role!r} must have the columns 'text' and 'label', got {listed(dataset.column_names)}"
        )
    lost = f" once {dropped} examples whose text also stands in a later role are dropped" if dropped else ""
    if not len(dataset):
        raise ValueError(f"role {role!r} is left empty{lost}; give it other examples")
    columns = columns_of(dataset)
    for row, text in enumerate(columns["text"]):
        if text is not None and not isinstance(text, str):
            raise TypeError(
                f"role {role!r}, row {row}: a text must be a string, got {type(text).__name__} {text!r}"
            )
        if not (text or "").strip():
            raise ValueError(f"role {role!r}, row {row}: the text is empty; drop such examples")
    found = set(columns["label"])
    outside = found - set(range(len(label_names)))
    if outside:
        raise ValueError(
            f"role {role!r}: classes must be 0 to {len(label_names) - 1}, got {listed(sorted(outside))}"
        )
    absent = [name for i, name in enumerate(label_names) if i not in found]
    if absent:
        raise ValueError(
            f"role {role!r} has no example of label {listed(absent)}{lost}; each role needs every label"
        )
