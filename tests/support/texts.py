"""Small labelled texts that stand nowhere else, and tasks of them."""

from tl_skillneurons.tasks.task import Task

WORDS = {0: " bad", 1: " good"}


def rows(n, name, labels=(0, 1)):
    """``n`` examples that stand nowhere else, with the labels in turn."""
    return [{"text": f"{name} {i}", "label": labels[i % len(labels)]} for i in range(n)]


def three_splits(n=40):
    return {name: rows(n, name) for name in ("train", "validation", "test")}


def make(data, **changes):
    settings = {"template": "{text}", "label_words": WORDS, "name": "toy"} | changes
    return Task.from_datasets(data, **settings)


def texts_of(task, role):
    return task.split(role)["text"][:]


def four_classes(n=40):
    words = {"world": " world", "sports": " sports", "business": " business", "science": " science"}
    data = {name: rows(n, name, tuple(words)) for name in ("train", "validation", "test")}
    return Task.from_datasets(data, template="{text}", label_words=words, name="ag_news")
