"""What differs from the Hugging Face model is found, named, and refused for what it would spoil."""

import re

import families
import pytest
import tiny
import torch

import tl_skillneurons as skn
from tl_skillneurons.models import _verify_subject as subject
from tl_skillneurons.models import verification

FEW = (
    "bert",
    "roberta",
    "gpt2",
    "gpt_neox",
    "llama",
    "qwen3",
    "gemma3",
    "opt",
    "phi3",
    "bloom",
    "gpt_neo",
    "stablelm",
)


@pytest.mark.parametrize("family", FEW)
def test_a_family_agrees_with_the_model_inside_it(family):
    result = skn.models.verify(tiny.bridge(family))
    assert not result.surprises
    assert result.causal is (family not in tiny.BIDIRECTIONAL)
    assert result["kept texts"].ok is result.causal
    assert result.embedding_scale == 1
    assert list(result.to_dataframe()["check"]) == [check.name for check in result.checks]
    assert re.search(r"^  neurons +ok$", repr(result), re.MULTILINE)


@pytest.mark.parametrize(("family", "most"), [("bert", 4), ("llama", 6)])
def test_all_comparisons_together_read_the_weights_a_few_times(family, most, monkeypatch):
    model, ran = tiny.bridge(family), []
    kind = type(model.original_model)
    forward = kind.forward
    monkeypatch.setattr(kind, "forward", lambda *args, **kwargs: ran.append(1) or forward(*args, **kwargs))
    assert not skn.models.verify(model).surprises
    assert 0 < len(ran) <= most


def test_paddings_that_can_not_stand_in_one_batch_are_looked_at_apart(monkeypatch):
    model = tiny.bridge("llama")
    monkeypatch.setattr(subject.Subject, "off_in_batch", lambda self, row: 1.0)
    result = skn.models.verify(model)
    assert not result.surprises
    assert result["padding right"].difference < 1e-5


@pytest.fixture
def llama():
    return tiny.bridge("llama")


def of_the_host(function):
    """A hook as TransformerLens itself puts it on: what it does is part of what the bridge is."""
    function.__module__ = "transformer_lens.somewhere"
    return function


def break_attention(model):
    model.blocks[0].attn.o.hook_out.add_hook(of_the_host(lambda act, hook: 1.1 * act), is_permanent=True)


def test_a_bridge_whose_logits_are_others_is_refused_with_the_difference(llama):
    break_attention(llama)
    assert re.match(r"differs by 0\.\d+ of the largest value", skn.models.verify(llama)["logits"].told)
    with pytest.raises(
        ValueError, match=r"tiny .* can't be used for this: logits differs by 0\.\d+ .*verify\(model\)"
    ):
        skn.PromptedModel(llama, None)


def test_a_hook_that_shows_something_else_than_the_neurons_is_refused_for_neurons_alone(llama, monkeypatch):
    task, prompt = tiny.task(), skn.SoftPrompt(torch.randn(2, 32), placement="suffix")
    monkeypatch.setattr(
        subject, "neuron_hooks", lambda model: {k: f"blocks.{k}.mlp.hook_pre" for k in range(2)}
    )
    result = skn.models.verify(llama)
    assert [check.name for check in result.surprises] == ["neurons"]
    with pytest.raises(ValueError, match="neurons differs by"):
        skn.score_neurons(llama, prompt, task)
    skn.PromptedModel(llama, prompt, task.label_words).class_logits(["good film"])  # needs no neurons


def test_hooks_of_others_run_in_no_comparison_and_are_there_afterwards(llama):
    seen = []
    llama.add_hook("blocks.0.mlp.hook_post", lambda act, hook: seen.append(hook.name) or 3 * act)
    handle = llama.original_model.lm_head.register_forward_hook(lambda *args: seen.append("head"))
    assert not skn.models.verify(llama).surprises and not seen
    llama(torch.tensor([[5, 6]]))
    assert len(seen) == 2
    handle.remove()


def test_texts_of_different_lengths_stand_apart_where_padding_spoils_them(monkeypatch):
    model = tiny.bridge("gpt2")
    prompted = skn.PromptedModel(model, None)
    expected = prompted.run_with_hooks(["good film"])
    monkeypatch.setitem(verification._CHECKS, "padding left", lambda subject: 1.0)
    skn.models.verify(model)
    apart = skn.PromptedModel(model, None)
    ids = apart.encode(["good film", "a bad film", "bad film"])
    assert apart.batches(ids) == [[1], [0, 2]]
    with pytest.raises(ValueError, match="padding left differs by 1"):
        apart.tokens(["good film", "a bad film"])
    assert torch.equal(apart.run_with_hooks(["good film"]), expected)


def test_a_changed_weight_is_looked_at_again_and_an_unchanged_model_is_not(llama, monkeypatch):
    first = verification.verified(llama)
    assert verification.verified(llama) is first
    with torch.no_grad():
        llama.original_model.lm_head.weight.add_(1)
    assert verification.verified(llama) is not first


def test_switched_off_nothing_is_compared_or_refused(llama, monkeypatch):
    monkeypatch.setenv(verification.SWITCH, "off")
    break_attention(llama)
    skn.PromptedModel(llama, None)
    assert llama not in verification._DONE


def test_the_model_and_the_random_state_are_as_before(llama):
    state = torch.random.get_rng_state()
    flags = [p.requires_grad for p in llama.parameters()]
    modes = [m.training for m in llama.modules()]
    weights = [p.clone() for p in llama.parameters()]
    llama(torch.tensor([[5]]))  # Hugging Face puts hooks of its own on at the first run
    hooks = [len(m._forward_pre_hooks) + len(m._forward_hooks) for m in llama.modules()]
    skn.models.verify(llama)
    assert torch.equal(state, torch.random.get_rng_state())
    assert flags == [p.requires_grad for p in llama.parameters()]
    assert modes == [m.training for m in llama.modules()]
    assert all(map(torch.equal, weights, llama.parameters()))
    assert hooks == [len(m._forward_pre_hooks) + len(m._forward_hooks) for m in llama.modules()]


@pytest.mark.parametrize(
    ("family", "change", "causal"),
    [("gemma3", {"use_bidirectional_attention": True}, False), ("llama", {}, True), ("bert", {}, False)],
)
def test_which_way_attention_looks_is_measured(family, change, causal, monkeypatch):
    from tl_skillneurons.models.sites import is_causal

    for name, value in change.items():
        monkeypatch.setattr(tiny.CONFIGS[family], name, value, raising=False)
    model = tiny.bridge(family)
    assert is_causal(model) is causal
    if not causal and family not in tiny.BIDIRECTIONAL:
        assert model.cfg.attention_dir == "causal"  # what the configuration of the bridge says
        with pytest.raises(ValueError, match="bidirectional"):
            skn.InputCache(model)
        with pytest.raises(ValueError, match="bidirectional"):
            skn.SoftPrompt(torch.randn(2, 32), placement="suffix").require_fits(model)


def test_gpt1_is_refused_a_prompt_since_its_bridge_is_off_with_any_mask():
    model = families.bridge("gpt1")
    assert skn.models.verify(model)["logits"].ok
    with pytest.raises(ValueError, match=r"prompt refused: differs by 0\.\d+ .* given an attention mask"):
        skn.PromptedModel(model, skn.SoftPrompt(torch.randn(3, 32), placement="suffix"))


@pytest.mark.parametrize(
    ("family", "reason"),
    [
        ("falcon_new", "new_decoder_architecture"),
        ("umt5_encoder", "each layer of a UMT5"),
        ("bert_in_chunks", "chunk_size_feed_forward"),
        ("gpt2_cross_attention", "add_cross_attention"),
        ("gemma4_double_wide", "num_kv_shared_layers"),
    ],
)
def test_what_cannot_be_used_is_refused_by_its_config_before_its_weights_are_read(family, reason):
    from tl_skillneurons.models.sites import config_refusal

    assert reason in config_refusal(families.config_of(family))


def test_a_model_whose_bridge_runs_no_text_is_refused_in_one_sentence(llama, monkeypatch):
    attention = type(llama.original_model.model.layers[0].self_attn)
    monkeypatch.setattr(attention, "__call__", lambda *args, **kwargs: {}["position_bias"])
    with pytest.raises(
        ValueError, match=r"tiny \(LlamaForCausalLM\) can't be used, since its bridge runs no text"
    ):
        skn.models.verify(llama)


def test_neurons_that_are_seen_in_pieces_are_refused(monkeypatch):
    monkeypatch.setattr(tiny.CONFIGS["bert"], "chunk_size_feed_forward", 1)
    model = tiny.bridge("bert")
    monkeypatch.setattr(model.original_model.config, "chunk_size_feed_forward", 0)
    result = skn.models.verify(model)
    assert "on a whole text" in result["neurons"].told
    assert result["logits"].ok and result["heads"].ok


def test_an_encoder_that_is_no_t5_is_refused_as_one():
    with pytest.raises(ValueError, match="a UMT5EncoderModel is no T5"):
        skn.models.T5EncoderToRead(families.hf_model("umt5_encoder"))
