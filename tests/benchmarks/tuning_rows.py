"""The rows about tuning. Both sides take the same examples in the same steps."""

from collections.abc import Callable, Sequence
from typing import Any

import measure
import peers
import torch
import transformers
from measure import Measured
from setups import QUIET, Setting, bridge, task_of, untouched

import tl_skillneurons as skn
from tl_skillneurons.models.tokenizing import text_token_ids
from tl_skillneurons.prompts.tuning.schedule import batch_at, hold_back

BATCH_SIZE = 16
HELD_BACK = 0.02


def tuning_sst2(setting: Setting) -> Measured:
    """One prompt of SmolLM2 on SST-2 against PEFT."""
    sizes = setting.sizes
    return _against_peft(setting, setting.sst2, sizes.n_trained, sizes.n_peft_steps)


def tuning_imdb(setting: Setting) -> Measured:
    """One prompt of SmolLM2 on long texts against PEFT."""
    sizes = setting.sizes
    return _against_peft(
        setting, setting.imdb, sizes.n_trained_imdb, sizes.n_peft_steps_imdb, n_tokens=sizes.n_tokens_imdb
    )


def tuning_five_seeds(setting: Setting) -> Measured:
    """Five prompts of SmolLM2 on SST-2 against five runs of PEFT."""
    sizes = setting.sizes
    return _against_peft(setting, setting.sst2, sizes.n_trained, sizes.n_peft_steps_seeds, n_seeds=5)


def _against_peft(
    setting: Setting,
    source: str,
    n_trained: int,
    n_peft_steps: int,
    *,
    n_tokens: int | None = None,
    n_seeds: int = 1,
) -> Measured:
    n_virtual, n_steps = 8, setting.sizes.n_steps
    model = bridge("smollm2")
    task = task_of(source, baseline=n_trained)
    bare = skn.PromptedModel(model, None, task.label_words)
    texts, labels = _texts(model, task, bare.prepend_bos, n_tokens)
    batches = _batches(labels, n_steps, range(n_seeds))
    hf = untouched("smollm2", transformers.AutoModelForCausalLM)
    pad_id = model.tokenizer.pad_token_id or 0
    theirs = peers.PeftTuning(hf, n_virtual_tokens=n_virtual, label_ids=bare.label_ids, pad_id=pad_id)

    def ours() -> None:
        skn.fit_soft_prompts(
            model,
            task,
            n_virtual_tokens=n_virtual,
            seeds=range(n_seeds),
            n_steps=n_steps,
            training=_training(n_steps),
            max_length=None if n_tokens is None else n_tokens + n_virtual,
            run=QUIET,
        )

    def steps_of_peft(chosen: Sequence[list[int]]) -> Callable[[], None]:
        def run() -> None:
            for batch in chosen:
                theirs.step([texts[i] for i in batch], labels[batch])

        return run

    sample = _typical(batches, texts, n_peft_steps)
    steps_of_peft(sample[:1])()  # warms up
    measured = Measured()
    scale = len(batches) / len(sample)
    for _ in range(setting.n_pairs):
        before, peak_before = measure.timed(steps_of_peft(sample[::2]))
        seconds, peak = measure.timed(ours)
        after, peak_after = measure.timed(steps_of_peft(sample[1::2]))
        measured.ours.values.append(seconds)
        measured.ours.peak_bytes.append(peak)
        measured.peer.values.append(scale * (before + after))
        measured.peer.peak_bytes.append(None if peak is None else max(peak_before, peak_after))
        measured.details.setdefault("seconds of PEFT's steps, before and after", []).append([before, after])
        measure.say_pair(measured, setting.n_pairs)
    measured.extrapolated = (
        f"PEFT ran {len(sample)} of {len(batches)} steps in each pair, half before ours and half after; "
        f"told is {scale:g} times that. The steps stand at even quantiles of the padded length, so that their "
        "mean length is that of all steps. Neither loading nor tokenizing counts for PEFT."
    )
    measured.details |= {
        "padded tokens of a step, mean of all": _mean_size(batches, texts),
        "padded tokens of a step, mean of those run": _mean_size(sample, texts),
        "not taken off ours": f"{len(hold_back(labels, HELD_BACK)[1])} held-back examples, evaluated at start and end",
    }
    return measured


def tuning_minilm(setting: Setting) -> Measured:
    """One prompt of MiniLM on SST-2 against a loop around an untouched ``BertForMaskedLM``; both run every step."""
    n_virtual, n_steps = 16, setting.sizes.n_steps
    model = bridge("minilm")
    task = task_of(setting.sst2, baseline=setting.sizes.n_trained)
    texts, labels = _texts(model, task, None, None)
    batches = _batches(labels, n_steps, [0])
    tokenizer = model.tokenizer
    label_ids = torch.tensor(tokenizer.convert_tokens_to_ids(["negative", "positive"]))
    with torch.random.fork_rng():
        torch.manual_seed(0)  # the head is random
        hf = untouched("minilm", transformers.AutoModelForMaskedLM)
    theirs = peers.MaskedTuning(hf, n_virtual_tokens=n_virtual, label_ids=label_ids, tokenizer=tokenizer)

    def ours() -> None:
        skn.fit_soft_prompts(
            model,
            task,
            n_virtual_tokens=n_virtual,
            n_steps=n_steps,
            training=_training(n_steps),
            readout="linear",
            run=QUIET,
        )

    def peer() -> None:
        for batch in batches:
            theirs.step([texts[i] for i in batch], labels[batch])

    theirs.step([texts[i] for i in batches[0]], labels[batches[0]])  # warms up
    return measure.paired(ours, peer, setting.n_pairs)


def _training(n_steps: int) -> skn.prompts.TrainingOptions:
    return skn.prompts.TrainingOptions(batch_size=BATCH_SIZE, held_back=HELD_BACK, evaluate_every=n_steps)


def _texts(
    model: Any, task: skn.Task, prepend_bos: bool | None, n_tokens: int | None
) -> tuple[list[list[int]], torch.Tensor]:
    """Role train as token ids, cut, and its labels."""
    split = task.split("train")
    ids = text_token_ids(model, list(split["text"]), prepend_bos)
    return [row[:n_tokens] for row in ids], torch.tensor(split["label"])


def _batches(labels: torch.Tensor, n_steps: int, seeds: Sequence[int]) -> list[list[int]]:
    """The examples of every step that ``fit_soft_prompts`` takes."""
    trained, _ = hold_back(labels, HELD_BACK)
    return [batch_at(step, trained, BATCH_SIZE, seed) for seed in seeds for step in range(n_steps)]


def _padded_size(batch: list[int], texts: list[list[int]]) -> int:
    return len(batch) * max(len(texts[i]) for i in batch)


def _mean_size(batches: Sequence[list[int]], texts: list[list[int]]) -> float:
    return sum(_padded_size(batch, texts) for batch in batches) / len(batches)


def _typical(batches: list[list[int]], texts: list[list[int]], n: int) -> list[list[int]]:
    """``n`` steps at even quantiles of the padded size; every other one is half of them, as typical as the rest."""
    n = min(n, len(batches))
    ordered = sorted(batches, key=lambda batch: _padded_size(batch, texts))
    return [ordered[int((i + 0.5) * len(ordered) / n)] for i in range(n)]
