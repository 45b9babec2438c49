"""Prompt tuning: gradient descent on a few virtual tokens, the model frozen.

The loss is cross-entropy over the label words at the read-out position. Adam moves the virtual tokens (and
the linear read-out, for encoders without a language-model head); the rate warms up linearly and decays
linearly to zero. Part of role ``train`` is held back, stratified by label and the same for every seed: the prompt with
the highest accuracy on it (the lowest loss among equals) is kept. Lester et al. (2021); Wang et al. (2022), 3.1.

Defaults, measured on SST-2 (1,500 examples of role train, 255 of them held back, 8 virtual tokens, batches of 16,
seed 0; held-back loss and accuracy at the end, the standard error of an accuracy being 0.024)::

    rate, start              SmolLM2-135M-Instruct, 100 steps     MiniLM-L6, 300 steps
    0.1, vocabulary          0.350  0.839                         0.451  0.784
    0.3, vocabulary          0.360  0.824                         0.402  0.824
    1.0, vocabulary          0.339  0.847                         0.431  0.784
    0.3, normal              -                                    0.431  0.800

SmolLM2 does not tell the rates apart, MiniLM prefers 0.3. Untuned prompts start at losses of 0.682 and 0.693.

A prompt is not evidence of a skill: an untuned prompt, or one tuned on shuffled labels, is the control.
"""

import math
import os
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional
from transformer_lens.model_bridge import TransformerBridge

from tl_skillneurons._checks import require_int, require_option, require_seed
from tl_skillneurons._files import require_writable
from tl_skillneurons._processes import gather, rank_and_count
from tl_skillneurons._progress import Advance, progress_bar
from tl_skillneurons.models.batches import run_batches
from tl_skillneurons.models.hooks import frozen
from tl_skillneurons.models.input_cache import InputCache, runs_text_apart
from tl_skillneurons.models.records import model_record
from tl_skillneurons.models.sites import has_language_model_head, is_causal, require_supported
from tl_skillneurons.models.verification import verified
from tl_skillneurons.prompts.attached import VirtualTokens
from tl_skillneurons.prompts.prompted_model import PromptedModel
from tl_skillneurons.prompts.run import RunOptions, task_terms
from tl_skillneurons.prompts.soft_prompt import SoftPrompt
from tl_skillneurons.prompts.tuning.schedule import (
    INITS,
    TrainingOptions,
    embedding_rows,
    hold_back,
    initial_embedding,
    start_ids,
)
from tl_skillneurons.prompts.tuning.state import (
    TuningState,
    parameters_of,
    require_same,
    resume_state,
    save_state,
    stack_snapshots,
)
from tl_skillneurons.prompts.tuning.training import Examples, Steps, batch_logits, training_steps
from tl_skillneurons.tasks.columns import columns_of
from tl_skillneurons.tasks.groups import groups_of
from tl_skillneurons.tasks.task import Task

READOUTS = ("auto", "label_words", "linear")


def fit_soft_prompts(
    model: TransformerBridge,
    task: Task,
    *,
    n_virtual_tokens: int = 16,
    seeds: Iterable[int] = (0,),
    init: str | Sequence[str] = "vocabulary",
    n_steps: int = 300,
    readout: str = "auto",
    prepend_bos: bool | None = None,
    max_length: int | None = None,
    training: TrainingOptions = TrainingOptions(),
    folder: str | os.PathLike[str] | None = None,
    run: RunOptions = RunOptions(),
) -> list[SoftPrompt]:
    """One soft prompt per seed, tuned on role ``train`` of ``task``.

    Under ``torchrun`` or ``accelerate launch`` the seeds are dealt out to the processes, and each returns all
    prompts.

    Args:
        model: A TransformerBridge in eval mode; it comes back as it was, ``requires_grad`` flags included.
        seeds: Each decides the initial prompt and the order of the examples of one prompt.
        init: ``"vocabulary"`` (embeddings of random tokens), ``"normal"`` (mean 0, the embeddings' standard
            deviation), or ``["a text"]`` whose tokens' embeddings are repeated or cut to
            ``n_virtual_tokens``.
        readout: ``"label_words"`` reads the language-model head, ``"linear"`` trains ``[n_classes,
            d_model]``; ``"auto"`` takes the head where the model has one.
        prepend_bos: Whether texts get a BOS (causal models); ``None`` follows ``cfg.default_prepend_bos``.
            The prompt keeps it.
        max_length: Longest sequence, virtual tokens included; longer texts are cut and counted in
            ``provenance``. The prompt keeps it, and is run with it from then on.
        training: Batches, rates, evaluations and when to stop.
        folder: Where finished prompts and checkpoints are kept. The same call goes on where it stopped, to
            the same bits.
        run: ``run.cache`` holds the texts' keys and values (causal models), to share with scoring; by default one
            of its own, of at most a quarter of the memory that is free. What does not fit is computed again in
            every step.

    Returns:
        The prompts in the order of ``seeds``. ``provenance["outcome"]`` is "fitted", or says what went wrong
        (also given as a warning): "not below chance" when the held-back loss never fell below that of
        guessing the class shares, or "diverged at step ..." when the loss stopped being finite (the best
        prompt before that is kept).

    Raises:
        ValueError: For a model in train mode or of an unsupported kind, label words that it can't answer with, options
            outside their range, or a ``folder`` that holds prompts of other settings.

    Example:
        >>> prompts = skn.fit_soft_prompts(model, task, n_virtual_tokens=8, seeds=range(2), n_steps=100)
        >>> [prompt.provenance["held_back_accuracy"] for prompt in prompts]
    """
    require_supported(model)
    seeds = [require_seed(seed, "a seed") for seed in seeds]
    if not seeds or len(set(seeds)) < len(seeds):
        raise ValueError(f"seeds must be distinct and at least one, got {seeds}")
    counts = {"n_virtual_tokens": n_virtual_tokens, "n_steps": n_steps}
    counts |= {name: getattr(training, name) for name in ("batch_size", "evaluate_every", "patience")}
    counts = {name: require_int(value, name) for name, value in counts.items()}
    require_option(readout, "readout", READOUTS)
    linear = readout == "linear" or (readout == "auto" and not has_language_model_head(model))
    # refuses here what would be refused once training starts
    words = None if linear else task.label_words
    bare = PromptedModel(model, None, words, prepend_bos=prepend_bos, max_length=max_length, chat=task.chat)
    if not isinstance(init, str):
        start_ids(model, init)
    settings = {
        **counts,
        "init": require_option(init, "init", INITS) if isinstance(init, str) else list(init),
        "learning_rate": training.learning_rate,
        "readout_learning_rate": training.readout_learning_rate if linear else None,
        **{name: getattr(training, name) for name in ("warmup", "clip", "held_back")},
        "readout": "linear" if linear else "label_words",
        "prepend_bos": bare.prepend_bos,
        "max_length": max_length,
    }
    if training.snapshots:  # only then, so that what was tuned without goes on matching
        settings["snapshots"] = True
    if run.cache is None and runs_text_apart(model):
        run = replace(run, cache=InputCache(model))
    with frozen(model):
        data = _prepare(bare, task, settings)
        rank, count = rank_and_count()
        mine: dict[int, SoftPrompt] = {}
        for seed in seeds[rank::count]:
            prompt = _fit_one(model, task, data, settings, seed, folder, run)
            outcome = prompt.provenance["outcome"]
            if outcome != "fitted":
                warnings.warn(
                    f"the prompt of seed {seed}: {outcome}; the best prompt seen is kept", stacklevel=2
                )
            mine[seed] = prompt.cpu()
    everyone = {seed: prompt for part in gather(mine) for seed, prompt in part.items()}
    return [everyone[seed].to(model.cfg.device) for seed in seeds]


@dataclass(frozen=True)
class _Data:
    """What every seed is given."""

    examples: Examples
    scale: float
    chance_loss: float
    provenance: dict[str, Any]


def _prepare(bare: PromptedModel, task: Task, settings: dict[str, Any]) -> _Data:
    model = bare.model
    split = task.split("train")
    labels = torch.tensor(split["label"])
    ids = bare.encode(list(split["text"]))
    in_chat = {} if bare.layout.chat is None else {"chat": bare.layout.chat.told}
    trained, held = hold_back(labels, settings["held_back"], groups_of(columns_of(split)))
    sample = torch.randint(model.W_E.shape[0], (4096,), generator=torch.Generator().manual_seed(0))
    rows = embedding_rows(model, sample).double()
    scale = float(rows.std())
    if not math.isfinite(scale):
        raise ValueError(f"the token embeddings of {model.cfg.model_name} hold values that are not finite")
    share = torch.bincount(labels[held], minlength=task.n_classes).double() / len(held)
    weights = model.W_E[sample.to(model.W_E.device)].double()
    same_width = rows.shape == weights.shape
    # rounded, because the last bits depend on the number of threads
    embedding_scale = round(float(rows.norm() / weights.norm()), 4) if same_width else None
    return _Data(
        examples=Examples(ids, labels, trained, held),
        scale=scale,
        chance_loss=float(torch.special.entr(share).sum()),
        provenance={
            "model": model_record(model),
            "units": "embed.hook_out",
            "embedding_scale": embedding_scale,
            "times_inputs_embeds": verified(model).embedding_scale,
            "task": {"name": task.name, "fingerprint": task.fingerprint, "role": "train", **task_terms(task)},
            "label_words": {str(k): v for k, v in task.label_words.items()},
            "n_trained": len(trained),
            "n_held_back": len(held),
            "settings": settings,
            **in_chat,
        },
    )


def _fit_one(
    model: TransformerBridge,
    task: Task,
    data: _Data,
    settings: dict[str, Any],
    seed: int,
    folder: str | os.PathLike[str] | None,
    run: RunOptions,
) -> SoftPrompt:
    finished = None if folder is None else Path(folder) / f"prompt-seed{seed}.safetensors"
    checkpoint = None if folder is None else Path(folder) / f"prompt-seed{seed}.checkpoint"
    provenance = {**data.provenance, "seed": seed}
    if finished is not None and finished.exists():
        prompt = SoftPrompt.load(finished)
        require_same(finished, prompt.provenance, provenance)
        return prompt.to(model.cfg.device)
    state = _start(model, task, data, settings, seed)
    if checkpoint is not None and checkpoint.exists():
        resume_state(state, checkpoint, provenance)
    longest, words = settings["max_length"], task.label_words
    prompted = PromptedModel(
        model, state.prompt, words, max_length=longest, run=run, word_score=task.word_score
    )
    cut = prompted.cut(data.examples.ids)  # refuses a prompt that leaves no room for text
    if run.cache is not None:
        run.cache.plan(cut)
    if folder is not None:
        require_writable(folder)
    with progress_bar(f"tuning, seed {seed}", settings["n_steps"], show=run.progress) as advance:
        advance(state.step)
        keep = None if checkpoint is None else partial(save_state, path=checkpoint, provenance=provenance)
        _train(prompted, data.examples, settings, seed, state, keep, advance)
    prompt = _finish(state, prompted, data, seed, provenance)
    if finished is not None:
        prompt.save(finished)
    if checkpoint is not None:
        checkpoint.unlink(missing_ok=True)
    return prompt


def _start(
    model: TransformerBridge, task: Task, data: _Data, settings: dict[str, Any], seed: int
) -> TuningState:
    generator = torch.Generator().manual_seed(seed)
    initial = initial_embedding(model, settings["init"], settings["n_virtual_tokens"], data.scale, generator)
    initial = initial.to(
        torch.promote_types(initial.dtype, torch.float32)
    )  # a master copy of a bfloat16 model's
    readout = None
    if settings["readout"] == "linear":
        readout = torch.zeros(task.n_classes, model.cfg.d_model, dtype=initial.dtype, device=initial.device)
    placement = "suffix" if is_causal(model) else "prefix"
    prompt = SoftPrompt(
        initial,
        placement=placement,
        readout=readout,
        prepend_bos=settings["prepend_bos"],
        chat=task.chat,
        max_length=settings["max_length"],
    )
    groups: list[dict[str, Any]] = [
        {"params": [prompt.embedding], "lr": settings["learning_rate"] * data.scale}
    ]
    if prompt.readout is not None:
        groups.append({"params": [prompt.readout], "lr": settings["readout_learning_rate"]})
    optimizer = torch.optim.Adam(groups, foreach=False)
    snapshots: list[dict[str, Tensor]] | None = [] if settings.get("snapshots") else None
    return TuningState(prompt, optimizer, initial, best=parameters_of(prompt), snapshots=snapshots)


def _train(
    prompted: PromptedModel,
    examples: Examples,
    settings: dict[str, Any],
    seed: int,
    state: TuningState,
    keep: Callable[[TuningState], None] | None,
    advance: Advance,
) -> None:
    """Train until the steps or the patience are used up; ``keep`` is called after each evaluation."""
    n_steps, patience = settings["n_steps"], settings["patience"]
    steps = Steps(n_steps, settings["batch_size"], settings["warmup"], settings["clip"], seed)
    each = [[parameter] for parameter in state.prompt.parameters()]
    with prompted.attached() as virtual, torch.enable_grad():
        if not state.history:
            _evaluate(prompted, virtual, examples, state, None)
        if state.waited() >= patience:
            return
        taken = training_steps(prompted, virtual, examples, state.optimizer, each, steps, start=state.step)
        for step in taken:
            if not step.is_finite:
                state.diverged = step.n_done
                return
            state.step = step.n_done
            if state.step % settings["evaluate_every"] and state.step != n_steps:
                advance()
                continue
            _evaluate(prompted, virtual, examples, state, step.loss)
            if keep is not None and state.diverged is None:
                keep(state)
            advance(note=f"held back {state.history[-1]['accuracy']:.3f}")
            if state.diverged is not None or state.waited() >= patience:
                return


def _evaluate(
    prompted: PromptedModel,
    virtual: VirtualTokens,
    data: Examples,
    state: TuningState,
    train_loss: float | None,
) -> None:
    """Add accuracy and loss on the held-back part to the history, and keep the best prompt so far."""
    total, correct = 0.0, 0

    def run(batch: list[int]) -> None:
        nonlocal total, correct
        examples = [data.held[i] for i in batch]
        logits = batch_logits(prompted, virtual, [data.ids[i] for i in examples])
        labels = data.labels[examples].to(logits.device)
        loss = float(functional.cross_entropy(logits.double(), labels, reduction="sum"))
        correct += int((logits.argmax(1) == labels).sum())
        total += loss

    with torch.no_grad():
        run_batches(prompted.batches([data.ids[i] for i in data.held]), run)
    held_loss = total / len(data.held)
    if not math.isfinite(held_loss):
        if not state.history:
            raise ValueError(
                "the model's class logits are not finite with the initial prompt; "
                "check the weights, or load the model in float32"
            )
        state.diverged = state.step
        return
    entry = {
        "step": state.step,
        "train_loss": train_loss,
        "loss": held_loss,
        "accuracy": correct / len(data.held),
    }
    state.history.append(entry)
    if state.snapshots is not None:
        state.snapshots.append(parameters_of(state.prompt))
    if state.best_entry() is entry:
        state.best = parameters_of(state.prompt)


def _finish(
    state: TuningState,
    prompted: PromptedModel,
    data: _Data,
    seed: int,
    provenance: dict[str, Any],
) -> SoftPrompt:
    lowest = min(entry["loss"] for entry in state.history)
    outcome = "fitted"
    if state.diverged is not None:
        outcome = f"diverged at step {state.diverged}"
    elif lowest >= data.chance_loss:
        outcome = f"not below chance (held-back loss {lowest:.3f}, guessing the class shares {data.chance_loss:.3f})"
    best = state.best_entry()
    kept = stack_snapshots(state)
    return SoftPrompt(
        state.best["embedding"],
        placement=state.prompt.placement,
        readout=state.best.get("readout"),
        prepend_bos=state.prompt.prepend_bos,
        chat=state.prompt.chat,
        max_length=state.prompt.max_length,
        initial=state.initial,
        snapshots=kept.get("embedding"),
        readout_snapshots=kept.get("readout"),
        seed=seed,
        history=state.history,
        provenance={
            **provenance,
            "outcome": outcome,
            "n_steps_run": state.step,
            "n_truncated": prompted.layout.n_cut(data.examples.ids),
            "held_back_accuracy": best["accuracy"],
            "best_step": best["step"],
        },
    )
