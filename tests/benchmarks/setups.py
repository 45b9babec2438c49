"""What both sides of a row are given: sizes, data, models, soft prompts and batches."""

import random
import warnings
from collections.abc import Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers

import tl_skillneurons as skn
from tl_skillneurons.prompts.positions import PromptedTokens
from tl_skillneurons.tasks.sources import load_splits

_DATA = Path(__file__).parents[3] / "shared" / "data"
_HUB = {"sst2": "stanfordnlp/sst2", "imdb": "stanfordnlp/imdb", "ag_news": "fancyzhx/ag_news"}
QUIET = skn.RunOptions(progress=False)
LABEL_WORDS = {0: " negative", 1: " positive"}
TOPICS = ("World", "Sports", "Business", "Science and technology")
_LONGEST_NEWS = 200  # characters


@dataclass(frozen=True)
class Sizes:
    """How much each row runs; ``n_peft_steps`` is per pair, half before ours and half after."""

    n_baseline: int = 600
    n_select: int = 400
    n_baseline_causal: int = 160
    n_select_causal: int = 96
    n_trained: int = 1500
    n_trained_imdb: int = 300
    n_steps: int = 300
    n_peft_steps: int = 12
    n_peft_steps_imdb: int = 4
    n_peft_steps_seeds: int = 20
    n_tokens_imdb: int = 256
    n_ablations: int = 10
    n_imports: int = 3
    n_many: int = 5000
    n_few: int = 500
    n_written: int = 32
    n_asked: int = 160
    n_ablated: int = 8
    n_controls: int = 20


QUICK = Sizes(
    n_baseline=64,
    n_select=32,
    n_baseline_causal=16,
    n_select_causal=8,
    n_trained=64,
    n_trained_imdb=20,
    n_steps=4,
    n_peft_steps=2,
    n_peft_steps_imdb=2,
    n_peft_steps_seeds=2,
    n_tokens_imdb=64,
    n_ablations=4,
    n_imports=1,
    n_many=200,
    n_few=64,
    n_written=4,
    n_asked=32,
    n_ablated=2,
    n_controls=2,
)
"""Sizes that only show whether a row runs; their ratios say nothing."""


@dataclass(frozen=True)
class Setting:
    """One run of the benchmark."""

    sst2: str
    imdb: str
    ag_news: str
    n_pairs: int
    n_threads: int
    sizes: Sizes = field(default_factory=Sizes)


def default_data(name: str) -> str:
    """The folder beside the checkout when it is there, else the data set's name on the hub."""
    folder = _DATA / name
    return str(folder) if folder.is_dir() else _HUB[name]


def task_of(source: str, *, baseline: int | None = None, select: int | None = None) -> skn.Task:
    """SST-2 or IMDB; ``baseline`` limits the roles train and baseline to the same examples."""
    splits = load_splits(source)
    template = "{sentence}" if "sentence" in splits["train"][0] else "{text}"
    task = skn.Task.from_datasets(splits, template=template, label_words=LABEL_WORDS, name=Path(source).name)
    return task.limit(train=baseline, select=select)


@dataclass(frozen=True)
class Question:
    """A question of four choices, as it is asked, and which of its choices is right."""

    text: str
    options: list[str]
    right: int


def questions_of(source: str, n: int, *, shuffled: bool) -> list[Question]:
    """As many short news of each topic, the topics in turns, each asked for its topic by letter."""
    of_topic: dict[int, list[str]] = {number: [] for number in range(len(TOPICS))}
    for row in load_splits(source)["train"]:
        if len(row["text"]) <= _LONGEST_NEWS:
            of_topic[row["label"]].append(row["text"])
    found = []
    for number in range(n):
        topic = number % len(TOPICS)
        options = list(TOPICS)
        if shuffled:
            random.Random(number).shuffle(options)
        listed = "\n".join(f"{letter}. {one}" for letter, one in zip("ABCD", options, strict=True))
        asked = "Which topic is this news about? Answer with the letter of the right topic."
        text = f"{of_topic[topic][number // len(TOPICS)]}\n{asked}\n{listed}"
        found.append(Question(text, options, options.index(TOPICS[topic])))
    return found


def bridge(name: str) -> Any:
    """A packaged model as the package loads it, float32."""
    return skn.load_model(name, device="cpu", verbose=False)


def untouched(name: str, model_class: Any, **options: Any) -> Any:
    """The same weights as Hugging Face loads them, float32, frozen, no bridge around them."""
    folder = skn.packaged_model(name, verbose=False)
    model = model_class.from_pretrained(folder, dtype=torch.float32, **options)
    return model.eval().requires_grad_(False)


def random_prompts(
    model: Any, n_prompts: int, n_virtual_tokens: int, *, readout: bool = False
) -> list[skn.SoftPrompt]:
    """Untrained prompts, which cost what trained ones cost: a prefix for MiniLM, a suffix for SmolLM2."""
    causal = model.cfg.attention_dir == "causal"
    prompts = []
    for seed in range(n_prompts):
        generator = torch.Generator().manual_seed(seed)
        embedding = 0.1 * torch.randn(n_virtual_tokens, model.W_E.shape[1], generator=generator)
        rows = torch.randn(2, model.cfg.d_model, generator=generator) if readout else None
        placement = "suffix" if causal else "prefix"
        prompts.append(skn.SoftPrompt(embedding, placement=placement, readout=rows))
    return prompts


def batches_as_scored(prompted: skn.PromptedModel, texts: Sequence[str]) -> list[PromptedTokens]:
    """The batches that ``score_neurons`` runs by default, in its order."""
    ids = prompted.encode(list(texts))
    return [prompted.assemble([ids[i] for i in batch], batch) for batch in prompted.batches(ids)]


@contextmanager
def quiet():
    """No warnings about prompts that a few steps did not teach anything, nor about random heads."""
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
