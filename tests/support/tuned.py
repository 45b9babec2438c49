"""Tasks that a few steps of prompt tuning can learn, and tuning that is stopped on the way."""

from dataclasses import fields

import torch
from toy import QUIET

from tl_skillneurons import Task, fit_soft_prompts
from tl_skillneurons.prompts import TrainingOptions
from tl_skillneurons.prompts.tuning import training

CLASS_WORDS = (("bad", "dull", "slow"), ("good", "bright", "quick"))


def learnable(n_train=64, shuffled=False, n_classes=2, n_others=16):
    """A task whose texts hold words of their class; shuffled labels have nothing to do with the words."""
    kinds = (*CLASS_WORDS, ("film", "plot", "cast"))[:n_classes]
    generator = torch.Generator().manual_seed(0)
    drawn = lambda n: int(torch.randint(n, (), generator=generator))  # noqa: E731
    rows = {}
    while len(rows) < n_train + 2 * n_others:
        label = len(rows) % n_classes
        text = " ".join(kinds[label][drawn(3)] for _ in range(3 + drawn(5)))
        rows.setdefault(text, label)
    labels = list(rows.values())
    if shuffled:
        labels = [labels[i] for i in torch.randperm(len(labels), generator=generator).tolist()]
    rows = [{"text": text, "label": label} for text, label in zip(rows, labels, strict=True)]
    data = {
        "train": rows[:n_train],
        "validation": rows[n_train : n_train + n_others],
        "test": rows[n_train + n_others :],
    }
    words = dict(enumerate(("negative", "positive", "other")[:n_classes]))
    return Task.from_datasets(data, template="{text}", label_words=words, name="learnable")


TASK = learnable()
SMALL = learnable(n_train=16, n_others=4)
QUICK = {"n_virtual_tokens": 3, "n_steps": 8, "run": QUIET}
QUICK_TRAINING = {"batch_size": 4, "evaluate_every": 3, "held_back": 0.25}
_OF_TRAINING = {field.name for field in fields(TrainingOptions)}


def fit(model, task=SMALL, **changes):
    """Quick tuning; ``changes`` are arguments of ``fit_soft_prompts`` or of ``TrainingOptions``."""
    training = QUICK_TRAINING | {k: v for k, v in changes.items() if k in _OF_TRAINING}
    others = QUICK | {k: v for k, v in changes.items() if k not in _OF_TRAINING}
    return fit_soft_prompts(model, task, training=TrainingOptions(**training), **others)


def assert_same_bits(one, other):
    for a, b in zip(one, other, strict=True):
        assert torch.equal(a.embedding, b.embedding) and torch.equal(a.initial, b.initial)
        assert (a.readout is None) == (b.readout is None)
        assert a.readout is None or torch.equal(a.readout, b.readout)
        assert a.history == b.history and a.provenance == b.provenance


def stop_at(monkeypatch, step, error=KeyboardInterrupt):
    """Raise when ``step`` is about to be trained; undone by ``monkeypatch.undo()``."""
    real = training.rate

    def rate(now, *settings):
        if now == step:
            raise error("stopped here")
        return real(now, *settings)

    monkeypatch.setattr(training, "rate", rate)
