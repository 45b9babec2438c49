"""Models adapted without their MLP weights: what is trained, what stays, and what the neurons do there."""

import sys

import pandas as pd
import pytest
import tiny
import torch
from toy import QUIET

import tl_skillneurons as skn
from tl_skillneurons.prompts import AdapterTraining
from tl_skillneurons.prompts.tuning.adapters import METHODS

SETTINGS = {
    "n_steps": 30,
    "width": 4,
    "training": AdapterTraining(batch_size=8, learning_rate=0.02),
    "run": QUIET,
}


def weights_of(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


@pytest.fixture(scope="module")
def task():
    return tiny.task(n_train=60)


@pytest.mark.parametrize(
    ("family", "how"),
    [
        (family, how)
        for family in ("bert", "gpt2", "phi3")
        for how in METHODS
        if (family, how) != ("phi3", "bitfit")
    ],
)
@pytest.mark.filterwarnings("ignore:adapting by:UserWarning")
def test_a_copy_learns_the_task_and_no_weight_of_an_mlp_nor_the_model_itself_changes(family, how, task):
    model = tiny.kept(family)
    before, state = weights_of(model), torch.get_rng_state()
    adapted = skn.studies.adapt(model, task, how, **SETTINGS)
    losses = adapted.provenance["losses"]
    assert sum(losses[-5:]) < sum(losses[:5])
    assert adapted.model is not model and not adapted.model.training
    after = model.state_dict()
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)
    assert torch.equal(state, torch.get_rng_state())
    assert all(not p.requires_grad for m in (model, adapted.model, adapted.prompt) for p in m.parameters())
    for old, new in zip(model.blocks, adapted.model.blocks, strict=True):
        assert torch.equal(old.mlp.W_out, new.mlp.W_out) and torch.equal(old.mlp.W_in, new.mlp.W_in)
    words = task.label_words
    texts = task.split("report")["text"]
    with torch.no_grad():
        plain = skn.PromptedModel(model, adapted.prompt, words).class_logits(texts)
        changed = skn.PromptedModel(adapted.model, adapted.prompt, words).class_logits(texts)
    assert not torch.allclose(plain, changed, atol=1e-3)


AGAIN = ("gpt2", "llama", "bert")


@pytest.mark.parametrize("family", tiny.CONFIGS)
@pytest.mark.filterwarnings("ignore:adapting by:UserWarning")
def test_every_family_can_be_adapted_and_gives_the_same_bits_again(family, task):
    settings, model = {**SETTINGS, "n_steps": 2}, tiny.kept(family)
    for how in ("lora", "adapter"):
        runs = [skn.studies.adapt(model, task, how, **settings) for _ in range(1 + (family in AGAIN))]
        assert runs[0].n_trained > 0 and len(runs[0].provenance["losses"]) == 2
        if family in AGAIN:
            assert runs[0].provenance["losses"] == runs[1].provenance["losses"]
            with torch.no_grad():
                one, other = (
                    skn.PromptedModel(run.model, run.prompt, task.label_words).class_logits(["good film"])
                    for run in runs
                )
            assert torch.equal(one, other)


@pytest.mark.filterwarnings("ignore:adapting by:UserWarning")
def test_bitfit_trains_every_bias_and_nothing_else(task):
    model = tiny.kept("gpt2")
    adapted = skn.studies.adapt(model, task, "bitfit", **SETTINGS)
    changed = {
        name
        for (name, old), new in zip(model.named_parameters(), adapted.model.parameters(), strict=True)
        if not torch.equal(old, new)
    }
    assert changed and all(name.endswith("bias") for name in changed)
    assert any("mlp" in name for name in changed) and any("ln" in name for name in changed)


@pytest.mark.filterwarnings("ignore:adapting by:UserWarning")
def test_the_effect_in_an_adapted_model_is_that_of_the_panel_there(task):
    model = tiny.kept("gpt2")
    adapted = {how: skn.studies.adapt(model, task, how, **SETTINGS) for how in ("lora", "adapter")}
    neurons = skn.NeuronSet([0, 1, 1], [3, 5, 9])
    frame = skn.studies.measure_adapted(
        adapted, task, neurons, interventions=("zero",), n_random=19, run=QUIET
    )
    assert frame.adapted.tolist() == ["lora", "lora", "adapter", "adapter"]
    assert frame.metric.tolist() == ["accuracy", "logit_diff"] * 2
    one = adapted["adapter"]
    panel = skn.measure_effects(
        one.model,
        one.prompt,
        task,
        neurons,
        interventions=("zero",),
        positions=("all",),
        n_random=19,
        run=QUIET,
    ).to_dataframe()
    row = panel[panel.metric == "accuracy"].iloc[0]
    mine = frame[(frame.adapted == "adapter") & (frame.metric == "accuracy")].iloc[0]
    for name in ("intact", "value", "random_median", "p_random"):
        assert mine[name] == row[name]
    assert mine.n_trained == one.n_trained == 2 * 2 * 2 * 32 * 4


@pytest.mark.parametrize(
    ("family", "how", "settings", "message"),
    [
        ("gpt2", "prefix", {}, "how must be one of 'lora', 'bitfit', 'adapter', got 'prefix'"),
        ("llama", "bitfit", {}, "has no biases for bitfit to train; use 'lora' or 'adapter'"),
        ("gpt2", "lora", {"n_steps": 0}, "n_steps must be an integer of at least 1"),
        ("gpt2", "lora", {"width": 0}, "width must be an integer of at least 1"),
        ("gpt2", "lora", {"seed": -1}, "seed must be an integer of at least 0"),
        (
            "gpt2",
            "bitfit",
            {"training": AdapterTraining(learning_rate=1e30)},
            "diverged at step .* than 1e.30",
        ),
    ],
)
def test_what_cannot_be_adapted_is_refused(family, how, settings, message, task):
    with pytest.raises(ValueError, match=message):
        skn.studies.adapt(tiny.kept(family), task, how, **{**SETTINGS, **settings})


def test_lora_without_peft_says_what_to_install(task, monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(
        ImportError, match=r'lora needs the package peft; pip install "tl_skillneurons\[peft\]"'
    ):
        skn.studies.adapt(tiny.kept("gpt2"), task, "lora", **SETTINGS)


def test_no_adapted_model_is_refused(task):
    with pytest.raises(ValueError, match="at least one adapted model"):
        skn.studies.measure_adapted({}, task, skn.NeuronSet([0], [0]))


def test_a_model_that_learned_nothing_is_said_to_have(task):
    noise = task.with_shuffled_labels(1)
    with pytest.warns(UserWarning, match="is not above guessing"):
        still = {**SETTINGS, "n_steps": 1, "training": AdapterTraining(batch_size=8, learning_rate=1e-9)}
        skn.studies.adapt(tiny.kept("gpt2"), noise, "lora", **still)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"learning_rate": -1.0}, "learning_rate must be between 0 and inf, got -1"),
        ({"held_back": 0.0}, "held_back must be between 0 and 1, got 0"),
        ({"clip": 0.0}, "clip must be between 0 and inf, got 0"),
        ({"warmup": 1.0}, r"warmup is a share of the steps and must be in \[0, 1\), got 1"),
        ({"batch_size": 0}, "batch_size must be an integer of at least 1, got 0"),
    ],
)
def test_training_outside_its_range_is_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        AdapterTraining(**settings)


@pytest.mark.parametrize("family", ["gpt2", "bert", "encoder"])
@pytest.mark.filterwarnings("ignore:adapting by:UserWarning")
def test_what_was_trained_survives_a_file_to_the_last_bit(family, task, tmp_path):
    model = tiny.bridge("gpt2" if family == "gpt2" else "bert")
    if family == "encoder":  # without a language-model head
        model.original_model.config.architectures = ["BertModel"]
    texts = task.split("report")["text"]
    for how in METHODS:
        adapted = skn.studies.adapt(model, task, how, **{**SETTINGS, "n_steps": 3}, max_length=9)
        read = skn.studies.AdaptedModel.load(adapted.save(tmp_path / f"{how}.safetensors"), model)
        assert (read.how, read.n_trained, read.provenance) == (how, adapted.n_trained, adapted.provenance)
        assert read.prompt.max_length == adapted.prompt.max_length == 9 and read.model is not model
        assert (adapted.prompt.readout is None) == (family != "encoder")
        with torch.no_grad():
            one, other = (
                skn.PromptedModel(each.model, each.prompt, task.label_words).class_logits(texts)
                for each in (adapted, read)
            )
        assert torch.equal(one, other)
        assert not any(p.requires_grad for m in (read.model, read.prompt) for p in m.parameters())
    assert repr(read).startswith("AdaptedModel(model='tiny', how='adapter', n_trained=")
    assert read.to_dataframe().loss.tolist() == read.provenance["losses"] and "<table" in read._repr_html_()


@pytest.mark.filterwarnings("ignore:adapting by:UserWarning")
def test_a_file_of_another_model_and_a_model_that_learned_nothing_are_refused(task, tmp_path):
    model = tiny.kept("gpt2")
    adapted = skn.studies.adapt(model, task, "bitfit", **{**SETTINGS, "n_steps": 1})
    path = adapted.save(tmp_path / "adapted.safetensors")
    with pytest.raises(ValueError, match=r"it was trained in another model \(architecture: "):
        skn.studies.AdaptedModel.load(path, tiny.kept("llama"))
    tuned = skn.studies.AdaptedModel(model, adapted.prompt, "prompt", 96)
    with pytest.raises(ValueError, match=r"nothing of the model itself was trained \(how='prompt'\)"):
        tuned.save(tmp_path / "tuned.safetensors")
    assert tuned.to_dataframe().empty and "held_back" not in repr(tuned)
    other = skn.studies.AdaptedModel(
        model, adapted.prompt, "adapter", 1, adapted.provenance, {"mlp.down": torch.zeros(2)}
    )
    with pytest.raises(
        ValueError, match=r"trained by adapter is not of this model: blocks.0.attn.o.hook_out.down is"
    ):
        skn.studies.AdaptedModel.load(other.save(tmp_path / "other.safetensors"), model)


def test_a_cache_of_the_model_is_of_no_use_to_adapted_ones(task):
    model = tiny.kept("gpt2")
    cached = skn.RunOptions(cache=skn.InputCache(model), progress=False)
    settings = {**SETTINGS, "n_steps": 2}
    with pytest.warns(UserWarning, match="is not above guessing"):
        plain = skn.studies.adapt(model, task, "lora", **settings)
    with pytest.warns(UserWarning, match="is not above guessing"):
        other = skn.studies.adapt(model, task, "lora", **{**settings, "run": cached})
    assert plain.provenance == other.provenance
    neurons = skn.NeuronSet([0, 1], [3, 5])
    frames = [
        skn.studies.measure_adapted({"one": plain}, task, neurons, interventions="zero", n_random=19, run=run)
        for run in (QUIET, cached)
    ]
    pd.testing.assert_frame_equal(*frames)
