"""A baked model equals the model under hooks, here and as plain transformers reads it from its folder."""

import functools
from dataclasses import dataclass

import families
import pytest
import tiny
import torch
import transformers as hf

import tl_skillneurons as skn
from tl_skillneurons.interventions import (
    ClassMean,
    GivenValues,
    Intervention,
    Keep,
    Mean,
    Noise,
    Resample,
    Scale,
    Shift,
    Zero,
    bake,
)

IDS = torch.tensor([[1, 6, 7, 8, 9, 20], [1, 9, 8, 7, 12, 5]])
NEURONS = [(0, 5), (1, 2), (1, 40), (0, 7)]
WITH_BIAS = ["gpt2", "gpt_neox", "llama", "bert"]


@functools.cache
def booted(family):
    """Shared: what is done to a model in a test here is done to a copy."""
    return families.bridge(family)


def reference(n_layers=2, d_mlp=48):
    draw = torch.Generator().manual_seed(1)
    return GivenValues(
        mean=torch.randn(n_layers, d_mlp, generator=draw),
        class_mean=torch.randn(2, n_layers, d_mlp, generator=draw),
        activations=torch.randn(6, n_layers, d_mlp, generator=draw),
    )


def read_by_transformers(folder, family):
    kind = hf.AutoModelForMaskedLM if family in tiny.BIDIRECTIONAL else hf.AutoModelForCausalLM
    model = kind.from_pretrained(folder)
    assert type(model) is type(tiny.hf_model(family)) and model.dtype == torch.float32
    return model.eval()


@pytest.mark.parametrize(
    ("family", "how"),
    [
        *((family, how) for family in WITH_BIAS for how in (Mean(), Shift(1, by=-2.0))),
        *((family, Scale(0.5)) for family in [*WITH_BIAS, "qwen2", "gemma3"]),
        ("qwen2", Zero()),
        ("gemma3", Keep(Zero())),
        ("gpt2", Keep(Mean())),
        ("phi3", Scale(2.0)),
        ("granite", Mean()),
    ],
)
def test_plain_transformers_reads_what_the_hooks_do(family, how, tmp_path):
    model = booted(family)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    state = torch.get_rng_state()
    values = reference() if how.needs else None
    hooks = skn.ablate(skn.NeuronSet.from_pairs(NEURONS).of_model(model), how=how, values=values)
    baked = bake(model, NEURONS, how, values=values)
    folder = skn.models.export_model(baked, tmp_path / "baked")
    assert torch.equal(state, torch.get_rng_state()) and [p.name for p in tmp_path.iterdir()] == ["baked"]
    again = read_by_transformers(folder, family) if family in tiny.CONFIGS else None
    with torch.no_grad():
        plain, expected = model(IDS), model.run_with_hooks(IDS, fwd_hooks=hooks)
        torch.testing.assert_close(baked(IDS), expected, rtol=0, atol=1e-5)
        if again is not None:
            torch.testing.assert_close(again(IDS).logits, expected, rtol=0, atol=1e-5)
    assert (expected - plain).abs().max() > 1e-3
    after = model.state_dict()
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)
    assert all(not p.requires_grad for p in baked.parameters()) and not baked.training


def test_the_folder_has_the_models_own_tokenizer_configuration_and_generation_settings(tmp_path):
    whole = tiny.hf_model("llama")
    whole.generation_config.eos_token_id = [2, 7]
    whole.save_pretrained(tmp_path / "own")
    tiny.tokenizer("llama").save_pretrained(tmp_path / "own")
    model = skn.load_model(tmp_path / "own", device="cpu", verbose=False)
    folder = skn.models.export_model(bake(model, NEURONS, "zero"), tmp_path / "baked")
    own, baked = (hf.AutoTokenizer.from_pretrained(tmp_path / name) for name in ("own", "baked"))
    text = "the film was good"
    assert own(text)["input_ids"] == baked(text)["input_ids"]
    model.tokenizer.chat_template = "{{ messages[0].content }}"
    model.tokenizer.add_tokens(["superb"])
    more = skn.models.export_model(model, tmp_path / "more")
    added = hf.AutoTokenizer.from_pretrained(more)
    assert "superb" in added.get_vocab() and added.chat_template == model.tokenizer.chat_template
    assert "superb" not in baked.get_vocab()
    assert hf.GenerationConfig.from_pretrained(folder).eos_token_id == [2, 7]
    kept = [hf.AutoConfig.from_pretrained(tmp_path / name).to_dict() for name in ("own", "baked")]
    assert all(config.pop("_name_or_path") for config in kept) and kept[0] == kept[1]


def test_an_intervention_of_ones_own_is_baked_where_it_is_linear_in_each_neuron():
    @dataclass(frozen=True)
    class Halfway(Intervention):
        uses = ("mean",)

        def edit(self, old, at):
            return (old + at.mean.to(old)) / 2

    @dataclass(frozen=True)
    class Square(Intervention):
        def edit(self, old, at):
            return old * old

    @dataclass(frozen=True)
    class AnotherNeuron(Intervention):
        def edit(self, old, at):
            return old.flip(-1)

    model = booted("gpt2")
    with torch.no_grad():
        expected = model.run_with_hooks(IDS, fwd_hooks=skn.ablate(NEURONS, how=Halfway(), values=reference()))
        found = bake(model, NEURONS, Halfway(), values=reference())(IDS)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    for how in (Square(), AnotherNeuron()):
        with pytest.raises(
            ValueError, match=r"no linear function of that neuron's own activation.*use its hooks"
        ):
            bake(model, NEURONS, how)


@pytest.mark.parametrize(
    ("family", "how", "options", "message"),
    [
        (
            "gpt2",
            Zero(),
            {"positions": "prompt"},
            r"can't hold 'zero': they act at all positions, .*'prompt'",
        ),
        ("gpt2", Zero(), {"positions": [0]}, r"act at all positions, and positions=\[0\] was asked for"),
        ("gpt2", ClassMean(), {}, "can't hold 'class_mean': it depends on the class of each example"),
        ("gpt2", Keep(ClassMean()), {}, "it depends on the class of each example"),
        ("gpt2", Resample(), {}, "can't hold 'resample': it gives each text the values of another example"),
        ("gpt2", Noise(0.1, absolute=True), {}, "it draws noise for each text"),
        ("gpt2", lambda act, hook: act, {}, "nobody knows what a function does"),
        ("gpt2", Mean(), {}, "how='mean' needs values to hold the neurons at"),
        (
            "qwen2",
            Mean(),
            {"values": reference()},
            r"can't be baked: a constant .* qwen2 has none and no mlp_bias",
        ),
        ("gemma3", Shift(1), {"values": reference()}, "gemma3_text has none and no mlp_bias"),
    ],
)
def test_what_weights_cannot_hold_is_refused_with_the_reason(family, how, options, message):
    with pytest.raises(ValueError, match=message):
        bake(booted(family), NEURONS, how, **options)


def test_neurons_of_no_or_of_another_model_are_refused():
    model = booted("gpt2")
    with pytest.raises(ValueError, match="at least one neuron, got none"):
        bake(model, skn.NeuronSet([], []), Zero())
    with pytest.raises(ValueError, match="48"):
        bake(model, [(0, 48)], Zero())
    with pytest.raises(ValueError, match="d_mlp"):
        bake(model, NEURONS, Mean(), values=torch.zeros(2, 47))


def test_an_adapter_on_the_output_projection_is_refused_by_its_class():
    class Adapter(torch.nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner, self.weight, self.bias = inner, inner.weight, inner.bias

        def forward(self, x):
            return self.inner(x)

    model = families.bridge("llama")
    out = model.blocks[0].mlp.out
    out.set_original_component(Adapter(out.original_component))
    with pytest.raises(ValueError, match=r"layer 0 .* output projection is a Adapter.*merge adapters first"):
        bake(model, NEURONS, Zero())


def test_a_folder_that_would_answer_otherwise_is_not_written(tmp_path):
    model = families.bridge("gpt2")
    model.hook_dict["blocks.0.hook_out"].add_hook(lambda act, hook: 2 * act, is_permanent=True)
    with pytest.raises(ValueError, match=r"reads its weights as a model with other logits, off by"):
        skn.models.export_model(model, tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_an_encoder_without_a_trained_head_is_written_without_one(tmp_path):
    model = families.bridge("bert")
    model.original_model.config.architectures = ["BertModel"]
    baked = bake(model, NEURONS, Scale(3.0))
    folder = skn.models.export_model(baked, tmp_path / "baked")
    encoder, info = hf.AutoModel.from_pretrained(folder, output_loading_info=True)
    assert all(key.startswith("pooler.") for key in info["missing_keys"]) and not info["unexpected_keys"]
    assert encoder.config.architectures == ["BertModel"]
    with torch.no_grad():
        _, cache = baked.run_with_cache(IDS, names_filter=["blocks.1.hook_out"])
        hidden = encoder.eval()(IDS).last_hidden_state
    torch.testing.assert_close(hidden, cache["blocks.1.hook_out"], rtol=0, atol=1e-5)
