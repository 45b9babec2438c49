"""Encoders that TransformerLens has no adapter for, against plain Hugging Face, which runs each text alone."""

import functools
import json
import re

import families
import pytest
import tiny
import torch
import transformers as hf

import tl_skillneurons as skn
from tl_skillneurons.models import encoder_adapters, encoder_loading

FEW = (
    "xlm_roberta",
    "camembert",
    "distilbert",
    "electra_projected",
    "mpnet",
    "deberta",
    "deberta_v2",
    "deberta_v3",
    "modernbert",
    "t5_encoder",
    "mt5_encoder",
)
DOWN = re.compile(r"((?<!attention\.)output\.dense|ffn\.lin2|mlp\.Wo|DenseReluDense\.wo)$")
TEXTS = ["good film", "the plot was very slow and the music dull but not bad", "quick"]


@pytest.mark.parametrize("family", FEW)
def test_a_batch_with_a_prompt_gives_hugging_faces_numbers_of_each_text_alone(family):
    model, own = families.bridge(family), families.hf_model(family).requires_grad_(False)
    assert not skn.models.verify(model).surprises
    embed = own.get_input_embeddings()
    prompt = skn.SoftPrompt(embed.weight[5:8] + embed.weight[8:11], placement="prefix")
    mask = model.tokenizer.convert_tokens_to_ids("<extra_id_0>" if "t5" in family else "<mask>")
    alone = []
    for text in TEXTS:
        rows = embed(torch.tensor([mask, *model.tokenizer(text)["input_ids"]]))
        alone.append(run_alone(own, torch.cat([rows[:1], prompt.embedding.detach(), rows[1:]])))

    for side in ("left", "right"):
        prompted = skn.PromptedModel(model, prompt, padding_side=side)
        seen = {}

        def keep(act, hook, name, seen=seen):
            seen[name] = act

        sites = [f"blocks.{layer}.mlp.hook_post" for layer in range(len(model.blocks))]
        hooks = [(name, functools.partial(keep, name=name)) for name in [*sites, "mlm_head.hook_in"]]
        logits = prompted.run_with_hooks(TEXTS, hooks)
        read = seen["mlm_head.hook_in"] if "t5" in family else logits
        starts = prompted.tokens(TEXTS).readout.tolist()
        for row, (start, (expected, entered)) in enumerate(zip(starts, alone, strict=True)):
            there = slice(start, start + len(expected))
            torch.testing.assert_close(read[row, there], expected, rtol=1e-4, atol=1e-4)
            for name, neurons in zip(sites, entered, strict=True):
                torch.testing.assert_close(seen[name][row, there], neurons, rtol=1e-4, atol=1e-5)


def run_alone(own, rows):
    """Logits (a T5's hidden states) of one unpadded text, and what enters each down projection."""
    entered = []

    def look(module, given):
        entered.append(given[0][0])

    down = [part for name, part in own.named_modules() if DOWN.search(name)]
    handles = [part.register_forward_pre_hook(look) for part in down]
    out = own(inputs_embeds=rows[None])
    for handle in handles:
        handle.remove()
    return out[0][0], entered


def save(folder, family, tokenizer=None):
    own = families.hf_model(family)
    own.save_pretrained(folder)
    (tokenizer or families.tokenizer(family)).save_pretrained(folder)
    return own


@pytest.mark.parametrize("family", ["camembert", "distilbert", "electra", "modernbert"])
def test_a_masked_language_model_is_loaded_from_its_folder_and_read_by_label_words(family, tmp_path, capfd):
    own = save(tmp_path, family)
    capfd.readouterr()
    model = skn.load_model(tmp_path, device="cpu")
    n_layers = own.config.num_hidden_layers
    described = f"{type(own).__name__}, {n_layers} layers x 48 neurons, float32 on cpu, language-model head"
    assert capfd.readouterr().err == f"{tmp_path}: {described}\n"
    assert not any(parameter.requires_grad for parameter in model.parameters())
    ids = torch.tensor([[5, 6, 7, 8]])
    torch.testing.assert_close(model(ids), own(ids).logits.detach(), rtol=1e-5, atol=1e-5)
    prompted = skn.PromptedModel(
        model, skn.SoftPrompt(torch.ones(2, 32), placement="prefix"), {0: "bad", 1: "good"}
    )
    assert prompted.class_logits(["a film"]).shape == (1, 2)


@pytest.mark.parametrize(
    ("family", "kind"),
    [
        ("distilbert", hf.DistilBertModel),
        ("electra_projected", hf.ElectraForPreTraining),
        ("mpnet", hf.MPNetModel),
        ("deberta_v3", hf.DebertaV2ForSequenceClassification),
        ("modernbert", hf.ModernBertForSequenceClassification),
    ],
)
def test_an_encoder_without_the_whole_masked_lm_head_is_a_bare_one(family, kind, tmp_path, capfd):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        own = kind(families.config_of(family)).eval()
    own.save_pretrained(tmp_path)
    families.tokenizer(family).save_pretrained(tmp_path)
    model = skn.load_model(tmp_path, device="cpu")
    assert "Model, " in (told := capfd.readouterr().err) and "(bare encoder; the masked-LM head" in told
    seen = []
    ids = torch.tensor([[5, 6, 7, 8]])
    model.run_with_hooks(ids, fwd_hooks=[("mlm_head.hook_in", lambda act, hook: seen.append(act))])
    expected = own.base_model(ids)[0].detach()
    torch.testing.assert_close(seen[0], expected, rtol=1e-5, atol=1e-5)
    prompt = skn.SoftPrompt(torch.ones(2, model.W_E.shape[1]), placement="prefix")
    with pytest.raises(ValueError, match="has no language-model head, so label words can't be read"):
        skn.PromptedModel(model, prompt, {0: "bad", 1: "good"})


@pytest.mark.parametrize("family", ["t5", "t5_encoder"])
def test_of_a_t5_the_encoder_is_loaded_tuned_and_scored_at_its_sentinel(family, tmp_path, capfd):
    own = save(tmp_path, family, families.tokenizer("t5_encoder"))
    model = skn.load_model(tmp_path, device="cpu")
    assert (
        "T5EncoderModel, 2 layers x 48 neurons, float32 on cpu (T5's encoder alone" in capfd.readouterr().err
    )
    seen = []
    ids = torch.tensor([[5, 6, 7, 2]])
    model.run_with_hooks(ids, fwd_hooks=[("mlm_head.hook_in", lambda act, hook: seen.append(act))])
    expected = own.encoder(ids).last_hidden_state.detach()
    torch.testing.assert_close(seen[0], expected, rtol=1e-5, atol=1e-5)
    sentinel = model.tokenizer.convert_tokens_to_ids("<extra_id_0>")
    task = tiny.task()
    (prompt,) = skn.fit_soft_prompts(model, task, n_virtual_tokens=2, n_steps=2)
    assert prompt.readout.shape == (2, 32)
    tokens = skn.PromptedModel(model, prompt).tokens(["good film"])
    assert tokens.ids[0, int(tokens.readout[0])] == sentinel
    assert skn.score_neurons(model, [prompt], task).accuracy.shape == (1, 2, 3, 48)


def test_a_t5s_heads_have_the_width_that_its_config_says():
    model = families.bridge("t5_encoder")
    seen = []
    model.run_with_hooks(
        torch.tensor([[5, 6]]), fwd_hooks=[("blocks.0.attn.hook_z", lambda act, hook: seen.append(act.shape))]
    )
    assert seen == [(1, 2, 4, 6)]  # d_kv of 6, not d_model / n_heads


PIECES = [(f"▁{word}", -float(number)) for number, word in enumerate(tiny.WORDS)]
FAIRSEQ = [("<s>", 0.0), ("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), *PIECES, ("<mask>", 0.0)]
BERT = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
OWN = {
    "camembert": lambda: hf.CamembertTokenizer(vocab=FAIRSEQ),
    "electra": lambda: hf.ElectraTokenizer(vocab={word: n for n, word in enumerate([*BERT, *tiny.WORDS])}),
    "mpnet": lambda: hf.MPNetTokenizer(
        vocab={word: n for n, word in enumerate(["<s>", "<pad>", "</s>", "[UNK]", "<mask>", *tiny.WORDS])}
    ),
    "t5_encoder": lambda: hf.T5Tokenizer(
        vocab=[("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), *PIECES], extra_ids=2
    ),
}


@pytest.mark.parametrize("family", OWN)
def test_a_tokenizer_saved_under_the_generic_class_gives_what_it_gives_under_its_own(family, tmp_path):
    own = OWN[family]()
    generic = hf.PreTrainedTokenizerFast(tokenizer_object=own.backend_tokenizer, **own.special_tokens_map)
    found = []
    for name, tokenizer in (("own", own), ("generic", generic)):
        save(tmp_path / name, family, tokenizer)
        config = json.loads((tmp_path / name / "config.json").read_text())
        config["pad_token_id"] = own.pad_token_id  # by which CamemBERT counts its positions
        (tmp_path / name / "config.json").write_text(json.dumps(config))
        model = skn.load_model(tmp_path / name, device="cpu", verbose=False)
        assert skn.models.verify(model)["special tokens"].ok
        prompted = skn.PromptedModel(model, skn.SoftPrompt(torch.ones(2, 32), placement="prefix"))
        seen = []
        hooks = [("blocks.1.mlp.hook_post", lambda act, hook, seen=seen: seen.append(act))]
        prompted.run_with_hooks(["good film was dull", "bad"], hooks)
        found.append((prompted.encode(["good film was dull"]), seen[0]))
    assert found[0][0] == found[1][0] == [own("good film was dull")["input_ids"]]
    assert len(found[0][0][0]) == (5 if family == "t5_encoder" else 6)
    assert torch.equal(found[0][1], found[1][1])


def test_padding_that_a_model_counts_as_text_is_told(tmp_path):
    # the config says that padding is 0, the tokenizer pads with 1
    save(tmp_path, "xlm_roberta", hf.XLMRobertaTokenizer(vocab=FAIRSEQ))
    model = skn.load_model(tmp_path, device="cpu", verbose=False)
    assert skn.models.verify(model)["padding left"].told.startswith("differs by")


def test_what_counts_its_positions_from_padding_is_padded_by_its_config_where_the_tokenizer_has_no_padding():
    from tl_skillneurons.models.tokenizing import pad_id

    model = families.bridge("mpnet")
    model.tokenizer.pad_token = None
    assert pad_id(model) == 1
    assert skn.models.verify(model)["padding left"].ok


@pytest.mark.parametrize(
    ("family", "why"),
    [
        ("albert", "all its layers are one set of weights"),
        ("deberta_not_legacy", "the newer kind .legacy=False in its config. has no output projection"),
    ],
)
def test_what_can_not_be_made_right_is_refused_by_name_when_it_is_loaded(family, why, tmp_path):
    save(tmp_path, family)
    with pytest.raises(ValueError, match=why):
        skn.load_model(tmp_path, device="cpu")


def test_a_t5_encoder_as_it_is_has_no_place_to_read_out_at():
    from transformer_lens.model_bridge import TransformerBridge

    skn.models.register_encoders()
    with pytest.raises(
        ValueError, match="a T5EncoderModel has no place to read out at; boot T5EncoderToRead"
    ):
        TransformerBridge.boot_transformers("t5", hf_model=families.hf_model("t5_encoder"), device="cpu")


def test_registering_leaves_an_adapter_of_somebody_elses():
    from transformer_lens.factories import architecture_adapter_factory as factory

    encoder_adapters.register_encoders()
    known = factory.SUPPORTED_ARCHITECTURES
    own, known["MPNetForMaskedLM"] = known["MPNetForMaskedLM"], "somebody else's"
    try:
        encoder_adapters.register_encoders()
        assert known["MPNetForMaskedLM"] == "somebody else's"
    finally:
        known["MPNetForMaskedLM"] = own


@pytest.mark.parametrize("family", ["deberta", "t5_encoder_gated"])
def test_a_pruned_encoder_has_all_its_weights_after_saving_and_loading(family, tmp_path):
    save(tmp_path / "base", family)
    model = skn.load_model(tmp_path / "base", device="cpu", verbose=False)
    n = len(model.blocks)
    keep = skn.NeuronSet([layer for layer in range(n) for _ in range(5)], list(range(5)) * n)
    small = skn.prune(model, keep, torch.zeros(n, 48))
    path = skn.models.save_pruned(small, tmp_path / "pruned.safetensors")
    again = skn.models.load_pruned(path, tmp_path / "base")
    ids = torch.tensor([[5, 6, 7, 8]])
    assert torch.equal(again(ids), small(ids))


@pytest.mark.parametrize("family", ["distilbert", "deberta_v3"])
def test_a_pruned_encoder_is_exported_as_hugging_face_reads_it(family, tmp_path):
    model = families.bridge(family)
    keep = skn.NeuronSet([0] * 5 + [1] * 5, list(range(5)) * 2)
    small = skn.prune(model, keep, torch.full((2, 48), 0.1))
    skn.models.export_model(small, tmp_path / "pruned")
    again = hf.AutoModelForMaskedLM.from_pretrained(tmp_path / "pruned").eval()
    ids = torch.tensor([[5, 6, 7, 8]])
    torch.testing.assert_close(again(ids).logits.detach(), small(ids).detach(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("family", "dtype"), [("deberta", "bfloat16"), ("t5_encoder_gated", "float16")])
def test_a_dtype_in_which_a_model_does_not_run_is_refused_by_name(family, dtype, tmp_path):
    save(tmp_path, family)
    with pytest.raises(ValueError, match=rf"does not run in {dtype} \(.*load it with dtype='float32'"):
        skn.load_model(tmp_path, device="cpu", dtype=dtype)


def test_all_of_a_layer_moves_when_layers_are_shuffled():
    model = families.bridge("deberta")
    shuffled = skn.models.shuffle_layers(model)
    own, moved = (of.blocks[at].original_component for of, at in ((model, 1), (shuffled, 0)))
    assert dict(own.named_parameters()).keys() >= {"attention._original_component.self.q_bias"}
    for name, weight in moved.named_parameters():
        assert torch.equal(weight, own.get_parameter(name)), name


@pytest.mark.filterwarnings(
    "ignore:.*does not support"
)  # TransformerLens says which of its steps it leaves out
def test_compatibility_mode_changes_no_neuron_of_a_gated_t5_nor_of_an_encoder_without_absolute_positions():
    for family in ("t5_encoder_gated", "deberta_v3"):
        model = families.bridge(family)
        model.enable_compatibility_mode()
        model.requires_grad_(False)
        assert not skn.models.verify(model).surprises


@pytest.mark.parametrize("family", ["mpnet", "deberta_v3"])
def test_patterns_show_where_they_must_be_asked_for(family):
    model = families.bridge(family)
    prompt = skn.SoftPrompt(torch.ones(2, 32), placement="prefix")
    _, pattern = skn.attention.example_pattern(model, prompt, "good film")
    torch.testing.assert_close(pattern.sum(-1), torch.ones(pattern.shape[:-1]))


@pytest.mark.parametrize("family", ["deberta", "modernbert"])
def test_where_values_can_not_be_read_heads_are_told_apart_and_their_sources_refused_by_name(family):
    model = families.bridge(family)
    prompt, neurons = skn.SoftPrompt(torch.ones(2, 32), placement="prefix"), skn.NeuronSet([1], [0])
    with pytest.raises(
        ValueError, match=r"no values of each head to read .its queries, keys and values are one"
    ):
        skn.attention.decompose(model, prompt, ["good film"], neurons)
    parts = skn.attention.decompose(model, prompt, ["good film"], neurons, by_source=False)
    assert parts.unexplained < 1e-5 and parts.heads.abs().max() > 0


def test_every_masked_language_model_that_is_loaded_has_an_adapter():
    encoder_adapters.register_encoders()
    from transformer_lens.factories.architecture_adapter_factory import SUPPORTED_ARCHITECTURES

    for kind, (architecture, _) in encoder_adapters.MASKED_LM.items():
        assert architecture in SUPPORTED_ARCHITECTURES
        assert encoder_loading.is_encoder(hf.CONFIG_MAPPING[kind]())
