"""A model in another state than it was booted in: seen, and what rested on the old state isn't used."""

import pytest
import tiny
import torch

import tl_skillneurons as skn
from tl_skillneurons.models import special_tokens
from tl_skillneurons.neurons.choice import text_fingerprints
from tl_skillneurons.tasks.columns import plain

TEXTS = ["good film", "a bad film"]


def test_an_adapter_of_peft_on_the_head_counts_in_class_logits():
    from peft import LoraConfig, inject_adapter_in_model

    model = tiny.bridge("llama")
    holder = torch.nn.ModuleDict({"head": model.unembed.original_component})
    inject_adapter_in_model(LoraConfig(r=2, target_modules=["head"], init_lora_weights=False), holder)
    before = skn.PromptedModel(model, None, {0: 5, 1: 6}).class_logits(TEXTS)
    model.unembed.set_original_component(holder["head"].eval())
    prompted = skn.PromptedModel(model, None, {0: 5, 1: 6})
    found = prompted.class_logits(TEXTS)
    for row, text in zip(found, TEXTS, strict=True):
        hidden = []
        handle = holder["head"].register_forward_pre_hook(
            lambda module, args, kept=hidden: kept.append(args[0])
        )
        prompted.run_with_hooks([text])
        handle.remove()
        own = holder["head"].base_layer.weight
        lora = holder["head"]
        up, down = lora.lora_B["default"].weight, lora.lora_A["default"].weight
        expected = hidden[-1][0, -1] @ (own + lora.scaling["default"] * up @ down).T
        torch.testing.assert_close(row, expected[[5, 6]])
    assert (found - before).abs().max() > 1e-3


def test_kept_texts_are_looked_at_once_in_a_call_and_again_in_the_next(monkeypatch):
    model, task = tiny.bridge("llama"), tiny.task(n_report=4)
    prompt = skn.SoftPrompt(
        torch.randn(2, 32, generator=torch.Generator().manual_seed(1)), placement="suffix"
    )
    cache = skn.InputCache(model)
    run = skn.RunOptions(cache=cache, progress=False)
    looks, real = [], type(cache)._runs_as_kept
    monkeypatch.setattr(type(cache), "_runs_as_kept", lambda self: looks.append(1) or real(self))
    options = {"interventions": ["zero"], "n_random": 19, "run": run}
    neurons = skn.NeuronSet([0], [3])
    first = skn.measure_effects(model, prompt, task, neurons, **options).to_dataframe()
    assert len(looks) == 0  # nothing was kept before
    skn.measure_effects(model, prompt, task, neurons, **options)
    assert len(looks) == 1
    model.original_model.model.layers[0].self_attn.k_proj.weight.data.mul_(3)  # which torch doesn't count
    changed = skn.measure_effects(model, prompt, task, neurons, **options).to_dataframe()
    afresh = {**options, "run": skn.RunOptions(progress=False)}
    expected = skn.measure_effects(model, prompt, task, neurons, **afresh).to_dataframe()
    assert changed.intact.tolist() == pytest.approx(expected.intact.tolist(), rel=1e-4)
    assert changed.intact.tolist() != first.intact.tolist()


def test_the_tokenizer_is_compared_with_that_of_the_models_own_revision(monkeypatch):
    import transformers

    model, asked = tiny.bridge("bert"), []
    model.original_model.config._commit_hash = "abc123"
    model.tokenizer.name_or_path = "somebody/some-bert"
    monkeypatch.setattr(
        transformers.AutoTokenizer, "from_pretrained", lambda *args, revision, **rest: asked.append(revision)
    )
    special_tokens.fresh_tokenizer(model)
    special_tokens.fresh_tokenizer(model, "step7")
    assert asked == ["abc123", "step7"]


def test_accents_in_one_character_or_two_are_one_text():
    one, two = "un caf\u00e9 noir", "un cafe\u0301  noir"
    assert len(set(text_fingerprints([one, two]))) == 1
    assert len(set(plain([one, two]))) == 1


def test_norms_are_looked_at_and_refused_for_what_rests_on_them(monkeypatch):
    model = tiny.bridge("llama")
    assert skn.models.verify(model)["norms"].ok
    norm = type(model.original_model.model.norm.original_component)
    forward = norm.forward
    monkeypatch.setattr(norm, "forward", lambda self, x: forward(self, x).tanh())
    result = skn.models.verify(model)
    assert "neither a LayerNorm nor an RMSNorm" in result["norms"].told
    prompt = skn.SoftPrompt(torch.randn(2, 32), placement="suffix")
    prompted = skn.PromptedModel(model, prompt, {0: 5, 1: 6})
    with pytest.raises(ValueError, match=r"norms refused: .* neither a LayerNorm nor an RMSNorm"):
        skn.interventions.direct_logits(prompted, TEXTS, prompted.class_logits(TEXTS).detach(), [])
