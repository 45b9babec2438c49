import json
import logging
import warnings

import numpy as np
import pytest
import torch
import transformers as hf
from huggingface_hub.errors import GatedRepoError, LocalEntryNotFoundError, RepositoryNotFoundError
from huggingface_hub.utils import are_progress_bars_disabled
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers.utils import logging as transformers_logging

WORDS = ["good", "bad", "film", "a", "the", "was", "great", "terrible"]
SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 40}
NARROW = {**SIZES, "intermediate_size": 48}
POSITIONS = {"max_position_embeddings": 40}
GPT2 = hf.GPT2Config(vocab_size=40, n_embd=32, n_layer=2, n_head=4, n_positions=40)
LLAMA = hf.LlamaConfig(**NARROW)
BERT = hf.BertConfig(**NARROW, **POSITIONS)
ROBERTA = hf.RobertaConfig(**NARROW, **POSITIONS, pad_token_id=1)
BART = hf.BartConfig(
    vocab_size=40,
    d_model=32,
    encoder_layers=1,
    decoder_layers=1,
    encoder_ffn_dim=48,
    decoder_ffn_dim=48,
    encoder_attention_heads=4,
    decoder_attention_heads=4,
    max_position_embeddings=40,
)
XLM_ROBERTA = hf.XLMRobertaConfig(**NARROW, **POSITIONS, pad_token_id=1)


def tokenizer(bidirectional):
    special = (
        ["<cls>", "<pad>", "<sep>", "<unk>", "<mask>"]
        if bidirectional
        else ["<bos>", "<pad>", "<eos>", "<unk>"]
    )
    vocabulary = {word: number for number, word in enumerate([*special, *WORDS])}
    fast = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    fast.pre_tokenizer = pre_tokenizers.Whitespace()
    named = {f"{word.strip('<>')}_token": word for word in special}
    if bidirectional:
        fast.post_processor = processors.BertProcessing(("<sep>", 2), ("<cls>", 0))
    return hf.PreTrainedTokenizerFast(tokenizer_object=fast, **named)


def save(folder, kind, config, **options):
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = kind(config, **options).eval()
    model.save_pretrained(folder)
    tokenizer("bert" in config.model_type).save_pretrained(folder)
    return model


@pytest.fixture(scope="module")
def loading():
    from tl_skillneurons.models import loading

    return loading


@pytest.fixture(scope="module")
def sites():
    from tl_skillneurons.models import sites

    return sites


KINDS = {
    "gpt2": (hf.GPT2LMHeadModel, GPT2),
    "llama": (hf.LlamaForCausalLM, LLAMA),
    "bert": (hf.BertForMaskedLM, BERT),
    "roberta": (hf.RobertaForMaskedLM, ROBERTA),
    "xlm-roberta": (hf.XLMRobertaForMaskedLM, XLM_ROBERTA),
}


@pytest.mark.parametrize("name", KINDS)
def test_a_language_model_is_loaded_frozen_and_evaluating_and_gives_hugging_faces_logits(
    loading, sites, tmp_path, capfd, name
):
    kind, config = KINDS[name]
    reference = save(tmp_path, kind, config)
    capfd.readouterr()
    model = loading.load_model(tmp_path, device="cpu")
    assert not any(parameter.requires_grad for parameter in model.parameters())
    sites.require_eval(model)
    assert sites.has_language_model_head(model)
    assert sites.is_causal(model) is (name in ("gpt2", "llama"))
    ids = torch.tensor([[5, 6, 7, 8]])
    with torch.no_grad():
        torch.testing.assert_close(model(ids), reference(ids).logits, atol=1e-5, rtol=1e-5)
    assert model.tokenizer.encode(
        "good film", add_special_tokens=False
    ) == model.tokenizer.convert_tokens_to_ids(["good", "film"])
    told = capfd.readouterr()
    width = 128 if name == "gpt2" else 48
    assert told.out == ""
    assert (
        told.err
        == f"{tmp_path}: {kind.__name__.replace('XLM', '') if 0 else kind.__name__}, 2 layers x {width} "
        + ("neurons, float32 on cpu, language-model head\n")
    )


@pytest.mark.parametrize(
    ("kind", "config", "options"),
    [
        (hf.BertModel, BERT, {}),
        (hf.BertModel, BERT, {"add_pooling_layer": False}),
        (hf.BertForSequenceClassification, BERT, {}),
        (hf.RobertaModel, ROBERTA, {}),
        (hf.XLMRobertaModel, XLM_ROBERTA, {}),
    ],
    ids=["bert", "bert without pooler", "bert classifier", "roberta", "xlm-roberta"],
)
def test_a_bare_encoder_has_its_own_hidden_states_and_says_that_it_has_no_head(
    loading, sites, tmp_path, capfd, kind, config, options
):
    save(tmp_path, kind, config, **options)
    capfd.readouterr()
    model = loading.load_model(tmp_path, device="cpu")
    assert not sites.has_language_model_head(model)
    told = capfd.readouterr().err
    assert "(bare encoder; the masked-LM head it is booted with is random and never read)" in told
    assert told.count("\n") == 1
    ids, mask = torch.tensor([[5, 6, 7, 8], [5, 6, 1, 1]]), torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])
    reference = hf.AutoModel.from_pretrained(tmp_path).eval()
    hidden = []
    with torch.no_grad():
        model.run_with_hooks(
            ids, attention_mask=mask, fwd_hooks=[("mlm_head.hook_in", lambda act, hook: hidden.append(act))]
        )
        expected = reference(ids, attention_mask=mask).last_hidden_state
    torch.testing.assert_close(hidden[0], expected, atol=1e-5, rtol=1e-5)


def test_the_random_head_of_a_bare_encoder_is_the_same_in_every_load(loading, tmp_path):
    save(tmp_path, hf.BertModel, BERT)
    ids = torch.tensor([[5, 6, 7]])
    logits = []
    for seed in (3, 4):
        torch.manual_seed(seed)
        logits.append(loading.load_model(tmp_path, device="cpu", verbose=False)(ids))
    assert torch.equal(*logits)


@pytest.mark.parametrize("name", ["gpt2", "bert", "bare"])
def test_loading_leaves_random_state_and_logging_settings_alone_and_is_silent_on_request(
    loading, tmp_path, capfd, name
):
    save(tmp_path, *KINDS.get(name, (hf.BertModel, BERT)))

    def settings():
        return (
            torch.get_rng_state().tolist(),
            np.random.get_state()[1].tolist(),
            transformers_logging.get_verbosity(),
            transformers_logging.is_progress_bar_enabled(),
            are_progress_bars_disabled(),
            logging.getLogger("huggingface_hub").level,
            list(warnings.filters),
            torch.get_default_dtype(),
        )

    capfd.readouterr()
    before = settings()
    loading.load_model(tmp_path, device="cpu", verbose=False)
    assert settings() == before
    told = capfd.readouterr()
    assert told.out + told.err == ""


@pytest.mark.parametrize("dtype", [torch.bfloat16, "bfloat16", "torch.bfloat16"])
def test_dtypes_are_given_as_such_or_by_name(loading, tmp_path, dtype):
    for name in ("llama", "bert"):
        save(tmp_path / name, *KINDS[name])
        model = loading.load_model(tmp_path / name, device="cpu", dtype=dtype, verbose=False)
        assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
        assert model.cfg.dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dtype": "float23"}, "dtype must be one of 'float32'.*got 'float23'; did you mean 'float32'"),
        ({"dtype": torch.int64}, "dtype must be one of .*got 'int64'"),
        ({"device": "gpu"}, "device must be 'cpu', 'cuda'.*got 'gpu'"),
        ({"device": "cuda:99"}, "device 'cuda:99' is not there: . CUDA devices"),
        ({"device": "meta"}, "device 'meta' holds no weights; use 'cpu'"),
        ({"device": "cpu", "device_map": "auto"}, "device or device_map, not both, got device='cpu'.*'auto'"),
        ({"device_map": "atuo"}, "device_map must be one of 'auto'.*did you mean 'auto'"),
        ({"device_map": {"": "disk"}}, "device must be 'cpu', 'cuda'.*got 'disk'"),
        ({"device_map": {"model": "cpu", "lm_head": 99}}, "device 99 is not there: . CUDA devices"),
        ({"device_map": {}}, "device_map must name devices of one kind, got none"),
    ],
)
def test_unknown_devices_and_dtypes_are_refused_before_anything_is_loaded(loading, options, message):
    with pytest.raises(ValueError, match=message):
        loading.load_model("/nowhere", **options)


def test_a_device_map_that_mixes_gpus_and_the_cpu_is_refused_before_anything_is_loaded(loading, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(ValueError, match="devices of one kind, got 'cpu', 'cuda'; use GPUs alone"):
        loading.load_model("/nowhere", device_map={"model": 1, "lm_head": "cpu"})


@pytest.mark.parametrize(
    ("n_devices", "rank", "device"),
    [(0, None, "cpu"), (0, "1", "cpu"), (2, None, "cuda"), (2, "0", "cuda:0"), (2, "1", "cuda:1")],
)
def test_the_default_device_is_the_gpu_of_this_process(loading, monkeypatch, n_devices, rank, device):
    see_gpus(monkeypatch, n_devices, rank)
    assert loading._as_placement(None, None) == {"device": device}
    assert loading._as_placement("cpu", None) == {"device": "cpu"}
    assert loading._as_placement(None, "auto") == {"device_map": "auto"}


@pytest.mark.parametrize("rank", ["2", "-1", "", "first"])
def test_a_process_without_a_gpu_of_its_own_is_told_so(loading, monkeypatch, rank):
    see_gpus(monkeypatch, 2, rank)
    with pytest.raises(
        ValueError, match=rf"LOCAL_RANK must be in \[0, 2\), .*got '{rank}'; start one process per GPU"
    ):
        loading.load_model("/nowhere")
    assert loading._as_placement("cuda:1", None) == {"device": "cuda:1"}


def see_gpus(monkeypatch, n_devices, rank):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: n_devices > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: n_devices)
    if rank is None:
        monkeypatch.delenv("LOCAL_RANK", raising=False)
    else:
        monkeypatch.setenv("LOCAL_RANK", rank)


@pytest.mark.parametrize("name", ["gpt2", "llama", "bert", "bare"])
def test_a_soft_prompt_gives_the_same_logits_with_a_device_map(loading, sites, tmp_path, name):
    from tl_skillneurons import PromptedModel, SoftPrompt

    save(tmp_path, *KINDS.get(name, (hf.BertModel, BERT)))
    generator = torch.Generator().manual_seed(0)
    prompt = SoftPrompt(
        torch.randn(3, 32, generator=generator),
        placement="suffix" if name in ("gpt2", "llama") else "prefix",
        readout=torch.randn(2, 32, generator=generator) if name == "bare" else None,
    )
    kinds, logits = set(), []
    maps = ({"": "cpu"}, {"": torch.device("cpu")}, "auto")
    for where in ({"device": "cpu"}, *({"device_map": each} for each in maps)):
        model = loading.load_model(tmp_path, **where, verbose=False)
        assert not any(parameter.requires_grad for parameter in model.parameters())
        sites.require_eval(model)
        kinds.add((str(model.cfg.device), sites.has_language_model_head(model)))
        prompted = PromptedModel(model, prompt, {0: "good", 1: "bad"})
        logits.append(prompted.class_logits(["a great film", "the film was terrible"]).detach().cpu())
    assert ("cpu", name != "bare") in kinds
    for other in logits[1:]:
        torch.testing.assert_close(
            other, logits[0], atol=1e-4, rtol=1e-4
        )  # "auto" takes a GPU if there is one


def test_the_random_head_of_a_bare_encoder_is_the_same_with_a_device_map(loading, tmp_path):
    save(tmp_path, hf.BertModel, BERT)
    before = torch.get_rng_state()
    placements = ({"device": "cpu"}, {"device_map": {"": "cpu"}})
    heads = [loading.load_model(tmp_path, **where, verbose=False).state_dict() for where in placements]
    assert torch.equal(torch.get_rng_state(), before)
    assert heads[0].keys() == heads[1].keys()
    assert all(torch.equal(heads[0][key], heads[1][key]) for key in heads[0])


def test_a_device_map_that_can_not_be_followed_is_no_corrupt_file(loading, tmp_path, monkeypatch):
    save(tmp_path, *KINDS["llama"])

    def boot(*args, **options):
        raise ValueError("device_map entries were not honored: lm_head")

    monkeypatch.setattr(loading.TransformerBridge, "boot_transformers", staticmethod(boot))
    with pytest.raises(
        ValueError, match=r"can't spread .* over several devices: device_map entries were not"
    ):
        loading.load_model(tmp_path, device_map="auto")


def test_a_model_of_which_a_part_was_put_on_disk_is_refused(loading, tmp_path, monkeypatch):
    save(tmp_path, *KINDS["llama"])
    boot = loading.TransformerBridge.boot_transformers

    def boot_on_disk(source, device_map, **options):  # what "auto" does when memory is short
        return boot(source, device_map={"": "disk"}, **options)

    monkeypatch.setattr(loading.TransformerBridge, "boot_transformers", staticmethod(boot_on_disk))
    with pytest.raises(ValueError, match=r"does not fit: device_map puts part of it on disk.*more devices"):
        loading.load_model(tmp_path, device_map="auto")


REFUSED = {
    "bart": (
        hf.BartForConditionalGeneration,
        BART,
        "BartForConditionalGeneration.*encoder-decoder model, with two stacks.*or a T5's encoder alone",
    ),
    "mixtral": (
        hf.MixtralForCausalLM,
        hf.MixtralConfig(**NARROW, num_key_value_heads=2, num_local_experts=2),
        "MixtralForCausalLM.*mixture of experts in every layer.*the block's output",
    ),
    "mamba": (
        hf.MambaForCausalLM,
        hf.MambaConfig(vocab_size=40, hidden_size=32, num_hidden_layers=2, state_size=4),
        "MambaForCausalLM.*state-space.*no MLP neurons",
    ),
    "squeezebert": (
        hf.SqueezeBertForMaskedLM,
        hf.SqueezeBertConfig(**NARROW, embedding_size=32, **POSITIONS),
        "TransformerLens has no adapter for SqueezeBertForMaskedLM .model type 'squeezebert'.*use a causal",
    ),
    "headless llama": (
        hf.LlamaModel,
        LLAMA,
        "LlamaModel comes without the output embedding.*would be random",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_models_that_cannot_be_used_are_refused_with_the_reason_before_their_weights_are_read(
    loading, tmp_path, name
):
    kind, config, message = REFUSED[name]
    save(tmp_path, kind, config)
    (tmp_path / "model.safetensors").write_bytes(b"not weights")
    with pytest.raises(ValueError, match=message):
        loading.load_model(tmp_path, device="cpu")


@pytest.mark.parametrize("name", ["bart", "mixtral", "mamba"])
def test_a_kind_that_shows_only_once_booted_is_refused_as_well(loading, tmp_path, monkeypatch, name):
    kind, config, _ = REFUSED[name]
    save(tmp_path, kind, config)
    monkeypatch.setattr(loading, "config_refusal", lambda config: None)
    with pytest.raises(ValueError, match="can't find neurons in"):
        loading.load_model(tmp_path, device="cpu")


def test_a_model_with_code_of_its_own_is_refused_without_asking_to_run_it(loading, tmp_path, monkeypatch):
    save(tmp_path, hf.LlamaForCausalLM, LLAMA)
    own = {"AutoConfig": "own.OpenELMConfig", "AutoModelForCausalLM": "own.OpenELMForCausalLM"}
    stated = {"model_type": "openelm", "architectures": ["OpenELMForCausalLM"], "auto_map": own}
    (tmp_path / "config.json").write_text(json.dumps(stated))
    monkeypatch.setattr("builtins.input", lambda *args: pytest.fail("asked"))
    with pytest.raises(
        ValueError, match=r"it comes with code of its own, which is not run from here; .*hf_model="
    ):
        loading.load_model(tmp_path)


def test_whatever_the_boot_dies_of_is_one_sentence_with_the_models_name(loading, tmp_path):
    save(tmp_path, hf.GPTNeoXForCausalLM, hf.GPTNeoXConfig(**NARROW, attention_bias=False))
    with pytest.raises(
        ValueError, match=f"TransformerLens can't boot {tmp_path}: AssertionError; use another"
    ):
        loading.load_model(tmp_path)


@pytest.mark.parametrize(
    ("gone", "message"),
    [
        (["config.json"], "has no config.json; give a local folder with config.json"),
        (["model.safetensors"], r"has no weights .\*\.safetensors"),
        (["tokenizer.json", "tokenizer_config.json"], "has no tokenizer files .tokenizer.json"),
    ],
)
def test_an_incomplete_folder_is_refused_with_what_is_missing(loading, tmp_path, gone, message):
    save(tmp_path, *KINDS["gpt2"])
    for file in gone:
        (tmp_path / file).unlink()
    with pytest.raises(FileNotFoundError, match=message):
        loading.load_model(tmp_path)


def test_a_peft_folder_is_refused_with_where_it_belongs(loading, tmp_path):
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(FileNotFoundError, match=r"PEFT adapter, .*SoftPrompt\.from_peft"):
        loading.load_model(tmp_path)


@pytest.mark.parametrize("path", ["./nowhere", "/no/where", "~/no-such-folder-here"])
def test_a_folder_that_is_not_there_is_not_looked_for_on_the_hub(loading, monkeypatch, path):
    monkeypatch.setattr(hf.AutoConfig, "from_pretrained", None)
    with pytest.raises(FileNotFoundError, match=r"there is no folder .*'smollm2' or 'minilm'"):
        loading.load_model(path)


def test_a_file_in_place_of_a_folder_is_refused(loading, tmp_path):
    (tmp_path / "model.gguf").touch()
    with pytest.raises(ValueError, match=r"model.gguf is a file; give a local folder"):
        loading.load_model(tmp_path / "model.gguf")


@pytest.mark.parametrize("name", ["gpt2", "bert"])
@pytest.mark.parametrize("file", ["config.json", "model.safetensors"])
def test_a_corrupt_file_is_one_clear_error(loading, tmp_path, name, file):
    save(tmp_path, *KINDS[name])
    (tmp_path / file).write_bytes(b"not what it should be")
    with pytest.raises(ValueError, match=r"can't load the model in .*a file is corrupt or of another kind"):
        loading.load_model(tmp_path)


def test_an_encoder_with_weights_missing_is_refused_by_their_names(loading, tmp_path):
    from safetensors.torch import load_file, save_file

    save(tmp_path, *KINDS["bert"])
    weights = load_file(tmp_path / "model.safetensors")
    gone = "bert.encoder.layer.1.output.dense.weight"
    del weights[gone]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=f"incomplete: {gone} .*missing"):
        loading.load_model(tmp_path)


def refuse(cause):
    def from_pretrained(*args, **kwargs):
        raise OSError("transformers says it in many words\nand lines") from cause

    return from_pretrained


def answered(kind):
    error = kind.__new__(kind)
    error.args = ("said the hub",)
    return error


@pytest.mark.parametrize(
    ("cause", "error", "message"),
    [
        (LocalEntryNotFoundError("no net"), ConnectionError, "hub can't be reached.*local folder.*'smollm2'"),
        (ConnectionResetError("gone"), ConnectionError, "hub can't be reached"),
        (answered(RepositoryNotFoundError), ValueError, "neither a local folder nor a model on the hub"),
        (answered(GatedRepoError), PermissionError, "is gated: accept its terms"),
        (None, ValueError, "can't load smolm2 from the hub: transformers says it in many words; did you"),
    ],
    ids=["unreachable", "broken off", "unknown", "gated", "other"],
)
def test_what_the_hub_answers_is_one_error_of_its_own_kind(loading, monkeypatch, cause, error, message):
    monkeypatch.setattr(hf.AutoConfig, "from_pretrained", refuse(cause))
    with pytest.raises(error, match=message) as caught:
        loading.load_model("smolm2")
    assert "\n" not in str(caught.value)
    if error is not PermissionError:
        assert "did you mean 'smollm2'?" in str(caught.value)


def test_a_revision_reaches_config_and_weights_and_is_part_of_the_name(loading, tmp_path, monkeypatch):
    save(tmp_path / "step1000", *KINDS["llama"])
    asked = []
    config, boot = loading.read_config, loading.TransformerBridge.boot_transformers

    def read_from_hub(name, source, revision):
        asked.append((source, revision))
        return config(name, str(tmp_path / revision))

    def boot_from_hub(source, revision, **options):
        asked.append((source, revision))
        return boot(str(tmp_path / revision), **options)

    monkeypatch.setattr(loading, "read_config", read_from_hub)
    monkeypatch.setattr(loading.TransformerBridge, "boot_transformers", staticmethod(boot_from_hub))

    model = loading.load_model("maker/model", revision="step1000", verbose=False)
    assert asked == [("maker/model", "step1000")] * 2
    assert model.cfg.model_name == "maker/model@step1000"


def test_a_revision_of_a_local_model_is_refused(loading, tmp_path):
    save(tmp_path, *KINDS["llama"])
    with pytest.raises(ValueError, match="only models on the hub have revisions"):
        loading.load_model(tmp_path, revision="step1000", verbose=False)


def test_a_name_unlike_the_packaged_ones_gets_no_suggestion(loading, monkeypatch):
    monkeypatch.setattr(hf.AutoConfig, "from_pretrained", refuse(LocalEntryNotFoundError("no net")))
    with pytest.raises(ConnectionError, match=r"some-lab/xyz. is no local folder") as caught:
        loading.load_model("some-lab/xyz")
    assert "did you mean" not in str(caught.value)


def test_a_hub_that_fails_after_the_config_is_still_one_connection_error(loading, tmp_path, monkeypatch):
    config = save(tmp_path, *KINDS["gpt2"]).config
    monkeypatch.setattr(hf.AutoConfig, "from_pretrained", lambda *args, **kwargs: config)
    monkeypatch.setattr(
        loading.TransformerBridge, "boot_transformers", staticmethod(refuse(LocalEntryNotFoundError("gone")))
    )
    with pytest.raises(ConnectionError, match=r"hub can't be reached"):
        loading.load_model("gpt2")


@pytest.mark.real
@pytest.mark.parametrize(
    ("name", "shape", "head"), [("smollm2", (30, 1536), True), ("minilm", (6, 1536), False)]
)
def test_the_packaged_models_load_by_name(loading, sites, capfd, name, shape, head):
    try:
        model = loading.load_model(name, device="cpu")
    except ConnectionError as error:
        pytest.skip(str(error))
    assert sites.neuron_shape(model) == shape
    assert sites.has_language_model_head(model) is head
    assert sites.is_causal(model) is head
    assert model.cfg.model_name == name
    assert f"{name}: " in capfd.readouterr().err
    if head:
        ids = model.tokenizer("The capital of France is", return_tensors="pt").input_ids
        with torch.no_grad():
            assert model.tokenizer.decode(model(ids)[0, -1].argmax()) == " Paris"
