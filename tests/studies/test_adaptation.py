"""Models adapted without their MLP weights: what is trained, what stays, and what the neurons do there."""

import pytest
import tiny
import torch

import tl_skillneurons as skn
from tl_skillneurons.studies.adaptation import METHODS

SETTINGS = {"n_steps": 30, "batch_size": 8, "learning_rate": 0.02, "width": 4, "progress": False}


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
    model = tiny.bridge(family)
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


@pytest.mark.parametrize("family", tiny.CONFIGS)
@pytest.mark.filterwarnings("ignore:adapting by:UserWarning")
def test_every_family_can_be_adapted_and_gives_the_same_bits_again(family, task):
    settings, model = {**SETTINGS, "n_steps": 2}, tiny.bridge(family)
    for how in ("lora", "adapter"):
        runs = [skn.studies.adapt(model, task, how, **settings) for _ in range(2)]
        assert runs[0].provenance["losses"] == runs[1].provenance["losses"]
        assert runs[0].n_trained > 0
        with torch.no_grad():
            one, other = (
                skn.PromptedModel(run.model, run.prompt, task.label_words).class_logits(["the film was good"])
                for run in runs
            )
        assert torch.equal(one, other)


@pytest.mark.filterwarnings("ignore:adapting by:UserWarning")
def test_bitfit_trains_every_bias_and_nothing_else(task):
    model = tiny.bridge("gpt2")
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
    model = tiny.bridge("gpt2")
    adapted = {how: skn.studies.adapt(model, task, how, **SETTINGS) for how in ("lora", "adapter")}
    neurons = skn.NeuronSet([0, 1, 1], [3, 5, 9])
    frame = skn.studies.measure_adapted(
        adapted, task, neurons, interventions=("zero",), n_random=19, progress=False
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
        progress=False,
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
        ("gpt2", "lora", {"learning_rate": -1.0}, "learning_rate must be above 0"),
        ("gpt2", "lora", {"held_back": 0.0}, "held_back is a share"),
        ("gpt2", "bitfit", {"learning_rate": 1e30}, "diverged at step"),
    ],
)
def test_what_cannot_be_adapted_is_refused(family, how, settings, message, task):
    with pytest.raises(ValueError, match=message):
        skn.studies.adapt(tiny.bridge(family), task, how, **{**SETTINGS, **settings})


def test_no_adapted_model_is_refused(task):
    with pytest.raises(ValueError, match="at least one adapted model"):
        skn.studies.measure_adapted({}, task, skn.NeuronSet([0], [0]))


def test_a_model_that_learned_nothing_is_said_to_have(task):
    noise = task.with_shuffled_labels(1)
    with pytest.warns(UserWarning, match="is not above guessing"):
        skn.studies.adapt(
            tiny.bridge("gpt2"), noise, "lora", **{**SETTINGS, "n_steps": 1, "learning_rate": 1e-9}
        )
