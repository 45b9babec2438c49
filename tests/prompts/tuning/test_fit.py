"""Prompt tuning: what it learns, what it leaves alone, and that stopping and going on changes no bit."""

import math
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from tuned import QUICK, SMALL, TASK, assert_same_bits, fit, learnable, stop_at

from tl_skillneurons import PromptedModel, SoftPrompt, Task, score_neurons
from tl_skillneurons._files import save_tensors
from tl_skillneurons.models.sites import neuron_hooks
from tl_skillneurons.models.tokenizing import text_token_ids
from tl_skillneurons.prompts.tuning import fit as tuning
from tl_skillneurons.prompts.tuning import schedule, training

pytestmark = pytest.mark.filterwarnings("ignore:.*not below chance")  # a few steps seldom suffice


@pytest.fixture(scope="module")
def llama():
    return tiny.bridge("llama")


@pytest.fixture(scope="module")
def bert():
    return tiny.bridge("bert")


@pytest.fixture(scope="module")
def encoder():
    """BERT whose checkpoint has no language-model head."""
    model = tiny.bridge("bert")
    model.original_model.config.architectures = ["BertModel"]
    return model


@pytest.mark.parametrize(
    ("family", "settings"),
    [("llama", {}), ("gpt2", {}), ("bert", {}), ("encoder", {"readout_learning_rate": 0.05})],
)
def test_tuning_learns_what_is_in_the_text_and_not_what_is_not(family, settings):
    model = tiny.bridge("bert" if family == "encoder" else family)
    if family == "encoder":
        model.original_model.config.architectures = ["BertModel"]
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1 + (parameter.ndim == 2))  # so that random weights carry more of the text along
    settings = {"n_steps": 40, "batch_size": 16, "learning_rate": 0.5, "evaluate_every": 10} | settings
    (learned,) = fit(model, TASK, **settings)
    assert (
        learned.provenance["outcome"] == "fitted"
        and learned.placement == ("suffix", "prefix")[family in ("bert", "encoder")]
    )
    first = learned.history[0]
    best = max(learned.history, key=lambda entry: entry["accuracy"])
    assert first["step"] == 0 and best["loss"] < 0.75 * min(first["loss"], math.log(2))
    assert best["accuracy"] >= 0.8 > first["accuracy"]
    assert best["accuracy"] == learned.provenance["held_back_accuracy"]
    (shuffled,) = fit(model, learnable(shuffled=True), **settings)
    assert min(entry["loss"] for entry in shuffled.history) > 0.9 * math.log(2)


def test_the_prompt_kept_answers_as_its_history_says(llama):
    (prompt,) = fit(llama, TASK, n_steps=20, learning_rate=0.5)
    _, held = schedule.hold_back(torch.tensor(TASK.split("train")["label"]), 0.25)
    rows = TASK.split("train").select(held)
    with torch.no_grad():
        logits = PromptedModel(llama, prompt, TASK.label_words).class_logits(list(rows["text"]))
    labels = torch.tensor(rows["label"])
    kept = next(e for e in prompt.history if e["step"] == prompt.provenance["best_step"])
    assert kept["accuracy"] == float((logits.argmax(1) == labels).double().mean())
    loss = float(torch.nn.functional.cross_entropy(logits.double(), labels))
    assert kept["loss"] == pytest.approx(loss, rel=1e-5)  # float32, batched otherwise


def test_three_classes_are_told_apart(llama):
    task = learnable(n_train=72, n_classes=3)
    (prompt,) = fit(llama, task, n_steps=40, batch_size=16, learning_rate=0.5, evaluate_every=10)
    assert min(entry["loss"] for entry in prompt.history) < 0.9 * math.log(3)
    assert PromptedModel(llama, prompt, task.label_words).n_classes == 3


def test_a_linear_readout_of_a_causal_model_is_trained_with_the_prompt(llama):
    (prompt,) = fit(llama, readout="linear", readout_learning_rate=0.05)
    assert prompt.readout.shape == (2, 32) and prompt.readout.any()
    assert prompt.provenance["settings"]["readout"] == "linear"
    assert fit(llama, readout="auto")[0].readout is None


# Seeds


@pytest.mark.parametrize("family", ["llama", "bert", "encoder"])
def test_the_same_seed_gives_the_same_bits_and_another_another_prompt(family, request):
    model = request.getfixturevalue(family)
    together = fit(model, seeds=(3, 4), n_steps=4)
    alone = fit(model, seeds=[4], n_steps=4)
    assert_same_bits(together[1:], alone)
    three, four = together
    assert (three.seed, four.seed) == (3, 4)
    assert not torch.equal(three.embedding, four.embedding)
    assert not torch.equal(three.initial, four.initial)


# What it leaves alone


def state_of(model):
    hooks = {
        name: (list(point.fwd_hooks), list(point.bwd_hooks), dict(point.ctx))
        for name, point in model.hook_dict.items()
    }
    return (
        [(name, p.detach().clone(), p.requires_grad, p.grad) for name, p in model.named_parameters()],
        [part.training for part in model.modules()],
        hooks,
        torch.get_rng_state(),
        np.random.get_state()[1].copy(),
        torch.is_grad_enabled(),
    )


def assert_same_state(before, after):
    for (name, value, flag, grad), (name_after, value_after, flag_after, grad_after) in zip(
        before[0], after[0], strict=True
    ):
        assert name == name_after and torch.equal(value, value_after)
        assert flag == flag_after and grad is grad_after is None
    assert before[1] == after[1] and before[2] == after[2]
    assert torch.equal(before[3], after[3]) and (before[4] == after[4]).all() and before[5:] == after[5:]


@pytest.mark.parametrize("error", [None, RuntimeError, KeyboardInterrupt])
def test_the_model_and_the_random_state_come_back_as_they_were(monkeypatch, error):
    model = tiny.bridge("llama")
    for number, parameter in enumerate(model.parameters()):
        parameter.requires_grad_(number % 2 == 0)
    name = neuron_hooks(model)[0]
    calls = []
    model.add_hook(name, lambda act, hook: calls.append(hook.name), is_permanent=True)
    before = state_of(model)
    if error is None:
        fit(model)
    else:
        stop_at(monkeypatch, 4, error)
        with pytest.raises(error):
            fit(model)
    assert calls
    assert_same_state(before, state_of(model))


def test_tuning_works_where_gradients_are_off(llama):
    with torch.no_grad():
        off = fit(llama, n_steps=2)
        assert not torch.is_grad_enabled()
    assert_same_bits(off, fit(llama, n_steps=2))


def test_only_role_train_is_read(llama):
    read = []

    class Watched(Task):
        def split(self, role):
            read.append(role)
            return super().split(role)

    splits = dict(SMALL.splits)
    fields = {name: getattr(SMALL, name) for name in ("name", "label_words", "label_names", "template")}
    (one,) = fit(llama, Watched(splits=splits, **fields))
    assert set(read) == {"train"}
    other = learnable(n_train=16, n_others=5, shuffled=True)
    for role in ("baseline", "select", "report"):
        splits[role] = other.splits[role]
    (two,) = fit(llama, Task(splits=splits, **fields))
    assert torch.equal(one.embedding, two.embedding) and one.history == two.history


# Stopping and going on


@pytest.mark.parametrize("family", ["llama", "encoder"])
@pytest.mark.parametrize("step", [2, 5])
def test_going_on_after_an_interruption_gives_the_same_bits(family, step, request, tmp_path, monkeypatch):
    model = request.getfixturevalue(family)
    settings = {"seeds": (0, 1), "readout_learning_rate": 0.05}
    whole = fit(model, **settings)
    stop_at(monkeypatch, step)
    with pytest.raises(KeyboardInterrupt):
        fit(model, folder=tmp_path, **settings)
    monkeypatch.undo()
    assert len(list(tmp_path.iterdir())) == (step > 3)  # a checkpoint every 3 steps
    steps = []
    real = schedule.batch_at
    monkeypatch.setattr(training, "batch_at", lambda now, *rest: steps.append(now) or real(now, *rest))
    assert_same_bits(fit(model, folder=tmp_path, **settings), whole)
    assert steps == [*range(3 if step > 3 else 0, 8), *range(8)]
    assert sorted(p.name for p in tmp_path.iterdir()) == [f"prompt-seed{s}.safetensors" for s in (0, 1)]


def test_going_on_keeps_a_best_prompt_that_is_older_than_the_checkpoint(llama, tmp_path, monkeypatch):
    settings = {"n_steps": 20, "evaluate_every": 4, "learning_rate": 2.0, "patience": 9}
    whole = fit(llama, TASK, **settings)
    assert 0 < whole[0].provenance["best_step"] < 16
    stop_at(monkeypatch, 18)
    with pytest.raises(KeyboardInterrupt):
        fit(llama, TASK, folder=tmp_path, **settings)
    monkeypatch.undo()
    assert_same_bits(fit(llama, TASK, folder=tmp_path, **settings), whole)


def test_going_on_after_a_kill_gives_the_same_bits(llama, tmp_path):
    program = """
import os, random, signal
import tiny
import tuned
from tl_skillneurons.prompts.tuning import training

real = training.rate
def rate(step, *settings):
    if step == 7:
        assert random.getstate() == before  # here because the shape checker, off in this process, draws from it
        os.kill(os.getpid(), signal.SIGKILL)
    return real(step, *settings)
training.rate = rate
before = random.getstate()
tuned.fit(tiny.bridge("llama"), folder=os.environ["FOLDER"])
"""
    here = Path(__file__).parent
    path = os.pathsep.join(
        [str(here), str(here.parents[1] / "support"), str(here.parents[2]), os.environ.get("PYTHONPATH", "")]
    )
    environment = os.environ | {"PYTHONPATH": path, "FOLDER": str(tmp_path)}
    killed = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=300
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert [p.name for p in tmp_path.iterdir()] == ["prompt-seed0.checkpoint"]
    assert_same_bits(fit(llama, folder=tmp_path), fit(llama))


def test_a_finished_prompt_is_not_tuned_again(llama, tmp_path, monkeypatch):
    finished = fit(llama, folder=tmp_path)

    def fail(*args):
        raise AssertionError("tuned again")

    monkeypatch.setattr(tuning, "_train", fail)
    assert_same_bits(fit(llama, folder=tmp_path), finished)
    with pytest.raises(AssertionError, match="tuned again"):
        fit(llama, folder=tmp_path, seeds=(0, 1))


def test_early_stopping_survives_going_on(llama, tmp_path, monkeypatch):
    settings = {"n_steps": 30, "evaluate_every": 1, "patience": 2, "learning_rate": 1e-9}
    with pytest.warns(UserWarning, match="not below chance"):
        whole = fit(llama, **settings)
    n_steps = whole[0].provenance["n_steps_run"]
    assert n_steps == whole[0].provenance["best_step"] + 2 < 30
    stop_at(monkeypatch, n_steps - 1)
    with pytest.raises(KeyboardInterrupt):
        fit(llama, folder=tmp_path, **settings)
    monkeypatch.undo()
    for _ in range(2):  # the second time from the finished file; the warning comes with it
        with pytest.warns(UserWarning, match="not below chance"):
            assert_same_bits(fit(llama, folder=tmp_path, **settings), whole)


@pytest.mark.parametrize("finished", [True, False])
def test_a_folder_of_other_settings_is_refused_naming_each(llama, tmp_path, monkeypatch, finished):
    if not finished:
        stop_at(monkeypatch, 7)
    try:
        fit(llama, folder=tmp_path)
    except KeyboardInterrupt:
        monkeypatch.undo()
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(ValueError, match="is from another run") as refusal:
        fit(llama, replace(SMALL, name="other"), folder=tmp_path, n_steps=9, clip=2.0, init=["good"])
    message = str(refusal.value)
    for part in (
        "settings.n_steps: 8 there, 9 now",
        "settings.clip: 1.0 there, 2.0 now",
        "settings.init: 'vocabulary' there, ['good'] now",
        "task.name: 'learnable' there, 'other' now",
    ):
        assert part in message
    assert "batch_size" not in message and "fingerprint" not in message
    with pytest.raises(ValueError, match=r"model.architecture: 'Llama\w+' there, 'Mistral\w+' now"):
        fit(tiny.bridge("mistral"), folder=tmp_path)
    assert before == {path: path.read_bytes() for path in tmp_path.iterdir()}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\x00" * 100, "corrupt or not a safetensors file"),
        (b"", "corrupt or not a safetensors file"),
        ("half", "corrupt or not a safetensors file"),
        ("foreign", "holds a SoftPrompt, expected a SoftPrompt checkpoint"),
    ],
)
def test_a_corrupt_or_foreign_checkpoint_is_refused(llama, tmp_path, monkeypatch, content, message):
    path = tmp_path / "prompt-seed0.checkpoint"
    if content == "foreign":
        save_tensors(path, "SoftPrompt", {"embedding": torch.zeros(3, 32)}, {})
    elif content == "half":
        stop_at(monkeypatch, 7)
        with pytest.raises(KeyboardInterrupt):
            fit(llama, folder=tmp_path)
        monkeypatch.undo()
        path.write_bytes(path.read_bytes()[:-50])
    else:
        path.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        fit(llama, folder=tmp_path)


def test_a_folder_that_cant_be_written_is_refused(llama, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OSError, match=r"can't write .*choose a folder that can be written"):
        fit(llama, folder=tmp_path / "file")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


# The steps


def test_the_optimizer_follows_the_rate_in_the_units_of_the_embeddings(llama, monkeypatch):
    seen = []
    real = torch.optim.Adam.step
    monkeypatch.setattr(
        torch.optim.Adam,
        "step",
        lambda self: seen.append([group["lr"] for group in self.param_groups]) or real(self),
    )
    fit(llama, n_steps=4, warmup=0.5, learning_rate=0.2, readout="linear", readout_learning_rate=0.01)
    sample = torch.randint(tiny.D_VOCAB, (4096,), generator=torch.Generator().manual_seed(0))
    scale = float(llama.W_E[sample].double().std())
    for step, rates in enumerate(seen):
        share = schedule.rate(step, 4, 0.5)
        assert rates == pytest.approx([share * 0.2 * scale, share * 0.01])
    assert len(seen) == 4


def test_every_seed_is_measured_on_the_same_held_back_examples_and_trained_on_the_others(llama, monkeypatch):
    used, measured = [], []
    real_batch, real_batches = schedule.batch_at, PromptedModel.batches
    monkeypatch.setattr(training, "batch_at", lambda *args: used.append(real_batch(*args)) or used[-1])
    monkeypatch.setattr(
        PromptedModel, "batches", lambda self, ids: measured.append(ids) or real_batches(self, ids)
    )
    prompts = fit(llama, seeds=(0, 1))
    trained, held = schedule.hold_back(torch.tensor(SMALL.split("train")["label"]), 0.25)
    assert {i for batch in used for i in batch} == set(trained)
    ids = text_token_ids(llama, list(SMALL.split("train")["text"]), True)
    assert all(m == [ids[i] for i in held] for m in measured) and len(measured) == 8
    assert [p.provenance["n_trained"] for p in prompts] == [12, 12]
    assert [p.provenance["n_held_back"] for p in prompts] == [4, 4]


def test_larger_gradients_are_scaled_down_to_the_clip(llama, monkeypatch):
    norms = []
    real = torch.optim.Adam.step

    def step(self):
        norms.append([float(group["params"][0].grad.norm()) for group in self.param_groups])
        return real(self)

    monkeypatch.setattr(torch.optim.Adam, "step", step)
    settings = {"n_steps": 3, "readout": "linear", "readout_learning_rate": 0.05}
    fit(llama, clip=1e9, **settings)
    free, norms[:] = list(norms), []
    fit(llama, clip=1e-4, **settings)
    assert min(readout for _, readout in free) > 1e-3 and max(embedding for embedding, _ in free) > 1e-4
    assert all(embedding <= 1.0001e-4 for embedding, _ in norms)
    assert [readout for _, readout in norms] == pytest.approx([1e-4] * 3, rel=1e-3)


def test_the_best_prompt_is_kept_and_not_the_last(llama, monkeypatch):
    seen = {}
    real = tuning._evaluate

    def evaluate(prompted, virtual, examples, state, loss):
        real(prompted, virtual, examples, state, loss)
        seen[state.step] = state.prompt.embedding.detach().clone()

    monkeypatch.setattr(tuning, "_evaluate", evaluate)
    (prompt,) = fit(llama, TASK, n_steps=20, evaluate_every=4, learning_rate=2.0, patience=9)
    best = min(prompt.history, key=lambda e: (-e["accuracy"], e["loss"]))["step"]
    assert list(seen) == [0, 4, 8, 12, 16, 20] and best not in (0, 20)
    assert best == prompt.provenance["best_step"]
    assert torch.equal(prompt.embedding, seen[best]) and not torch.equal(prompt.embedding, seen[20])
    assert torch.equal(prompt.initial, seen[0])


@pytest.mark.parametrize(("patience", "n_evaluations"), [(1, 3), (2, 4)])
def test_training_stops_after_evaluations_that_are_not_better(llama, monkeypatch, patience, n_evaluations):
    real = tuning._evaluate
    accuracies = iter([0.5, 0.9, 0.6, 0.7, 0.95])

    def evaluate(prompted, virtual, examples, state, loss):
        real(prompted, virtual, examples, state, loss)
        state.history[-1]["accuracy"] = next(accuracies)

    monkeypatch.setattr(tuning, "_evaluate", evaluate)
    (prompt,) = fit(llama, n_steps=20, evaluate_every=2, patience=patience)
    assert len(prompt.history) == n_evaluations
    assert prompt.provenance["n_steps_run"] == 2 * (n_evaluations - 1)
    assert prompt.provenance["best_step"] == 2


# What goes wrong is said


@pytest.mark.parametrize(("while_training", "step"), [(True, 5), (False, 6)])
def test_a_diverging_prompt_is_reported_and_the_other_seeds_go_on(
    llama, tmp_path, monkeypatch, while_training, step
):
    """Whether a training step or an evaluation is the first to meet what is not finite."""
    with llama.hooks(
        fwd_hooks=[("blocks.1.hook_out", lambda act, hook: act)]
    ):  # with a hook, text runs again
        unharmed = fit(llama, seeds=(1,))
    real = schedule.batch_at
    poison = []

    def batch_at(now, trained, batch_size, seed):
        poison[:] = [True] * (seed == 0 and now == 5)
        return real(now, trained, batch_size, seed)

    def spoil(act, hook):
        return act * math.nan if poison and torch.is_grad_enabled() == while_training else act

    def run():
        named = pytest.warns(
            UserWarning, match=f"the prompt of seed 0: diverged at step {step}; the best prompt"
        )
        with llama.hooks(fwd_hooks=[("blocks.1.hook_out", spoil)]), named as caught:
            prompts = fit(llama, seeds=(0, 1), folder=tmp_path)
        assert caught[0].filename.endswith(("test_fit.py", "support/tuned.py", "jaxtyping/_decorator.py"))
        return prompts

    start = tuning._start
    monkeypatch.setattr(training, "batch_at", batch_at)
    monkeypatch.setattr(tuning, "_start", lambda *args: poison.clear() or start(*args))
    prompts = run()
    monkeypatch.undo()
    diverged, other = prompts
    assert diverged.provenance["outcome"] == f"diverged at step {step}"
    assert [entry["step"] for entry in diverged.history] == [0, 3]
    assert diverged.provenance["best_step"] in (0, 3) and diverged.embedding.isfinite().all()
    assert_same_bits([other], unharmed)
    assert_same_bits(run(), prompts)  # from the finished files, and told again


def test_a_gradient_that_is_not_finite_is_divergence_too(encoder, monkeypatch):
    """Of the embedding, which is not the last parameter to be clipped."""
    real = torch.nn.utils.clip_grad_norm_

    def clip(parameter, *args, **kwargs):
        norm = real(parameter, *args, **kwargs)
        return norm * math.nan if len(parameter[0]) == QUICK["n_virtual_tokens"] else norm

    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", clip)
    with pytest.warns(UserWarning, match="diverged at step 0"):
        fit(encoder)


def test_a_model_that_gives_nan_is_refused(tmp_path):
    model = tiny.bridge("llama")
    spoil = [("blocks.1.hook_out", lambda act, hook: act * math.nan)]
    refused = pytest.raises(ValueError, match="class logits are not finite with the initial prompt")
    with model.hooks(fwd_hooks=spoil), refused:
        fit(model, folder=tmp_path)
    assert list(tmp_path.iterdir()) == []
    with torch.no_grad():
        model.W_E.fill_(math.inf)
    with pytest.raises(ValueError, match="token embeddings of tiny hold values that are not finite"):
        fit(model)


def test_a_loss_that_stays_above_chance_is_reported(llama):
    with pytest.warns(UserWarning, match=r"seed 0: not below chance \(held-back loss \d.\d+, .* 0.693\)"):
        (prompt,) = fit(llama, learning_rate=1e-9)
    assert prompt.provenance["outcome"].startswith("not below chance")
    assert min(entry["loss"] for entry in prompt.history) >= math.log(2)


# Where it starts


@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_vocabulary_rows_are_taken_where_the_prompt_enters(family):
    model = tiny.bridge(family)
    (prompt,) = fit(model, n_steps=1, warmup=0.0, learning_rate=1e-12)
    _, cache = model.run_with_cache(torch.arange(tiny.D_VOCAB)[None], names_filter="embed.hook_out")
    rows = cache["embed.hook_out"][0]
    assert all((rows == row).all(1).any() for row in prompt.initial)
    scale = 32**0.5 if family == "gemma2" else 1
    assert torch.allclose(rows, scale * model.W_E, rtol=1e-5)
    assert prompt.provenance["embedding_scale"] == pytest.approx(scale, abs=1e-4)


@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_a_normal_start_has_the_standard_deviation_of_the_embeddings(family):
    model = tiny.bridge(family)
    scale = 32**0.5 if family == "gemma2" else 1
    (prompt,) = fit(model, init="normal", n_virtual_tokens=30, n_steps=1)
    assert float(prompt.initial.std()) == pytest.approx(scale * float(model.W_E.std()), rel=0.1)
    assert abs(float(prompt.initial.mean())) < 0.1 * float(prompt.initial.std())


@pytest.mark.parametrize(("n", "words"), [(5, "good film good film good"), (1, "good")])
def test_a_text_to_start_from_is_repeated_or_cut(llama, n, words):
    (prompt,) = fit(llama, init=["good film"], n_virtual_tokens=n, n_steps=1)
    ids = [tiny.VOCABULARY[word] for word in words.split()]
    assert torch.equal(prompt.initial, llama.W_E[ids])


# What a prompt carries


@pytest.mark.parametrize("prepend_bos", [None, True, False])
def test_a_prompt_carries_whether_texts_got_a_bos(llama, prepend_bos):
    (prompt,) = fit(llama, n_steps=1, prepend_bos=prepend_bos)
    expected = bool(llama.cfg.default_prepend_bos) if prepend_bos is None else prepend_bos
    assert prompt.prepend_bos is expected
    tokens = PromptedModel(llama, prompt).tokens(["good film"])
    assert (tokens.ids[0, 0] == 1) == expected


def test_a_bidirectional_prompt_has_no_bos_of_its_own(bert):
    assert fit(bert, n_steps=1)[0].prepend_bos is None


def test_texts_that_are_cut_are_counted(llama):
    lengths = [len(text.split()) + 1 for text in SMALL.split("train")["text"]]  # with BOS
    (prompt,) = fit(llama, n_steps=1, max_length=8, prepend_bos=True)
    assert prompt.provenance["n_truncated"] == sum(n > 8 - 3 for n in lengths) > 0
    assert prompt.n_virtual_tokens == 3
    assert fit(llama, n_steps=1)[0].provenance["n_truncated"] == 0


def test_a_mask_takes_room_too(bert):
    lengths = [len(text.split()) + 2 for text in SMALL.split("train")["text"]]  # with [CLS] and [SEP]
    (prompt,) = fit(bert, n_steps=1, max_length=9)
    assert prompt.provenance["n_truncated"] == sum(n > 9 - 3 - 1 for n in lengths) > 0


def test_a_prompt_carries_its_settings_and_survives_a_file(llama, tmp_path):
    (prompt,) = fit(llama, seeds=(5,))
    told = prompt.provenance
    assert told["settings"]["n_steps"] == 8 and told["settings"]["init"] == "vocabulary" and told["seed"] == 5
    assert told["task"] == {
        "name": "learnable",
        "fingerprint": SMALL.fingerprint,
        "role": "train",
        "template": "{text}",
        "label_words": ["negative", "positive"],
        "label_names": [0, 1],
    }
    assert told["label_words"] == {"0": "negative", "1": "positive"}
    assert [entry["step"] for entry in prompt.history] == [0, 3, 6, 8]
    assert set(prompt.history[1]) == {"step", "train_loss", "loss", "accuracy"}
    assert prompt.history[0]["train_loss"] is None and prompt.history[1]["train_loss"] > 0
    assert_same_bits([SoftPrompt.load(prompt.save(tmp_path / "prompt"))], [prompt])


def test_a_bfloat16_model_trains_a_float32_prompt(tmp_path, monkeypatch):
    model = tiny.bridge("llama", dtype=torch.bfloat16)
    (prompt,) = fit(model)
    assert prompt.embedding.dtype == prompt.initial.dtype == torch.float32
    moved = (prompt.embedding - prompt.embedding.bfloat16()).abs().max()
    assert moved > 0  # finer than bfloat16, so the optimizer worked on a master copy
    assert model.W_E.dtype == torch.bfloat16
    stop_at(monkeypatch, 4)
    with pytest.raises(KeyboardInterrupt):
        fit(model, folder=tmp_path)
    monkeypatch.undo()
    assert_same_bits(fit(model, folder=tmp_path), [prompt])


# Refusals


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"seeds": ()}, r"seeds must be distinct and at least one, got \[\]"),
        ({"seeds": (1, 1)}, r"seeds must be distinct and at least one, got \[1, 1\]"),
        ({"seeds": (-1,)}, "a seed must be an integer of at least 0, got -1"),
        ({"n_virtual_tokens": 0}, "n_virtual_tokens must be an integer of at least 1, got 0"),
        ({"n_steps": 0}, "n_steps must be an integer of at least 1"),
        ({"batch_size": -2}, "batch_size must be an integer of at least 1"),
        ({"evaluate_every": 0}, "evaluate_every must be an integer of at least 1"),
        ({"patience": 0}, "patience must be an integer of at least 1"),
        ({"held_back": 0.0}, "held_back must be between 0 and 1, got 0.0"),
        ({"held_back": 1.0}, "held_back must be between 0 and 1, got 1.0"),
        ({"learning_rate": 0.0}, "learning_rate must be between 0 and inf, got 0.0"),
        ({"learning_rate": math.nan}, "learning_rate must be between 0 and inf, got nan"),
        ({"readout_learning_rate": -1.0}, "readout_learning_rate must be between 0 and inf"),
        ({"clip": math.inf}, "clip must be between 0 and inf, got inf"),
        ({"warmup": 1.0}, r"warmup is a share of the steps and must be in \[0, 1\), got 1.0"),
        ({"init": "vocabuary"}, "init must be one of 'vocabulary', 'normal', .* did you mean 'vocabulary'"),
        ({"init": []}, "the text to start from must have at least one token, got ''"),
        ({"readout": "linea"}, "readout must be one of .* did you mean 'linear'"),
        ({"max_length": 49}, "max_length must be at most 48 for tiny, got 49"),
        ({"max_length": 4}, "3 prompt positions leave no room for text"),
        ({"n_virtual_tokens": 60}, "60 prompt positions leave no room for text"),
    ],
)
def test_settings_outside_their_range_are_refused(llama, tmp_path, settings, message):
    before = state_of(llama)
    with pytest.raises(ValueError, match=message):
        fit(llama, folder=tmp_path / "new", **settings)
    assert list(tmp_path.iterdir()) == []
    assert_same_state(before, state_of(llama))


def test_label_words_that_cant_be_read_are_refused_before_anything_runs(llama, encoder, monkeypatch):
    monkeypatch.setattr(tuning, "_prepare", lambda *args: pytest.fail("it ran"))
    with pytest.raises(ValueError, match=r"'very good' .* begins with all the tokens of 'very'"):
        fit(llama, replace(SMALL, label_words={0: "very good", 1: "very"}))
    with pytest.raises(
        ValueError, match=r"tiny answers with words, and the task has none .* such as \{'bad': ' bad'"
    ):
        fit(llama, replace(SMALL, label_words={}))
    with pytest.raises(ValueError, match="has no language-model head"):
        fit(encoder, readout="label_words")


def test_an_encoder_needs_no_label_words_and_gives_the_same_without_them(encoder):
    without = replace(SMALL, label_words={})
    [one], [other] = fit(encoder, without, n_steps=2), fit(encoder, SMALL, n_steps=2)
    assert torch.equal(one.embedding, other.embedding) and torch.equal(one.readout, other.readout)
    same = [PromptedModel.for_task(encoder, p, t).accuracy(t) for p, t in ((one, without), (other, SMALL))]
    assert same[0] == same[1]
    scores = [score_neurons(encoder, [p], t) for p, t in ((one, without), (other, SMALL))]
    assert torch.equal(scores[0].predictivity, scores[1].predictivity)


@pytest.mark.usefixtures("unchecked")
def test_models_that_cant_be_tuned_on_are_refused():
    with pytest.raises(TypeError, match=r"model must be a TransformerBridge, got .*LlamaForCausalLM"):
        fit(tiny.hf_model("llama"))
    model = tiny.bridge("llama")
    model.train()
    with pytest.raises(ValueError, match=r"call model.eval\(\) first"):
        fit(model)
    model.eval()
    model.tokenizer = None
    with pytest.raises(ValueError, match="tiny has no tokenizer"):
        fit(model)


def test_a_class_with_one_example_is_refused(llama):
    rows = tiny.sentences(9)
    data = {
        "train": [r for r in rows[:4] if r["label"]] + rows[:1],
        "validation": rows[4:6],
        "test": rows[6:8],
    }
    words = {0: "negative", 1: "positive"}
    task = Task.from_datasets(data, template="{text}", label_words=words, name="lone")
    with pytest.raises(ValueError, match="class 0 has one example in role train; at least 2 are needed"):
        fit(llama, task)


@pytest.mark.filterwarnings("ignore:the prompt of seed .* not below chance")
def test_an_evaluation_that_runs_out_of_memory_is_halved_and_counts_each_example_once(encoder):
    expected = fit(encoder)

    def scarce(act, hook):
        if not torch.is_grad_enabled() and len(act) > 1:
            raise torch.OutOfMemoryError("out of memory")

    with encoder.hooks(fwd_hooks=[("blocks.0.hook_in", scarce)]):
        found = fit(encoder)
    for before, after in zip(expected[0].history, found[0].history, strict=True):
        assert before["accuracy"] == after["accuracy"]
        assert math.isclose(before["loss"], after["loss"], rel_tol=1e-4)
