import families
import pytest
import torch
import transformers as hf
from transformer_lens.config import TransformerBridgeConfig
from transformer_lens.model_bridge import TransformerBridge
from transformer_lens.model_bridge.sources._bridge_builder import build_bridge_from_module

from tl_skillneurons.models.hooks import frozen

SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 50}
GPT2 = hf.GPT2Config(vocab_size=50, n_embd=32, n_layer=2, n_head=4, n_positions=40)
LLAMA = hf.LlamaConfig(**SIZES, intermediate_size=48, max_position_embeddings=64)
BERT = hf.BertConfig(**SIZES, intermediate_size=64, max_position_embeddings=40)
ROBERTA = hf.RobertaConfig(**SIZES, intermediate_size=64, max_position_embeddings=40, pad_token_id=1)
OPT = hf.OPTConfig(**SIZES, ffn_dim=48, max_position_embeddings=40, word_embed_proj_dim=16)
FALCON = hf.FalconConfig(**SIZES, ffn_hidden_size=80, alibi=False)
MIXTRAL = hf.MixtralConfig(**SIZES, intermediate_size=48, num_key_value_heads=2, num_local_experts=2)
MAMBA = hf.MambaConfig(vocab_size=50, hidden_size=32, num_hidden_layers=2, state_size=4)
T5 = hf.T5Config(vocab_size=50, d_model=32, d_ff=48, num_layers=2, num_heads=4, d_kv=8)
BART = hf.BartConfig(
    vocab_size=50,
    d_model=32,
    encoder_ffn_dim=48,
    decoder_ffn_dim=48,
    encoder_layers=1,
    decoder_layers=1,
    encoder_attention_heads=4,
    decoder_attention_heads=4,
)


def boot(config):
    kind = {"BertConfig": hf.BertForMaskedLM, "RobertaConfig": hf.RobertaForMaskedLM}.get(
        type(config).__name__
    )
    if kind is None and config.is_encoder_decoder:
        kind = hf.AutoModelForSeq2SeqLM._model_mapping[type(config)]
    kind = kind or hf.AutoModelForCausalLM._model_mapping[type(config)]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = kind(config).eval()
        model.config.architectures = [kind.__name__]
        return build_bridge_from_module(model, kind.__name__, hf_config=model.config).eval()


def native(**settings):
    sizes = {"d_model": 32, "d_head": 8, "n_layers": 2, "n_ctx": 24, "n_heads": 4, "d_vocab": 50, "d_mlp": 64}
    config = TransformerBridgeConfig(**sizes, act_fn="gelu", architecture="TransformerLensNative", **settings)
    return TransformerBridge.boot_native(config).eval()


@pytest.fixture(scope="module")
def sites():
    from tl_skillneurons.models import sites

    return sites


def fired(model, names):
    calls = []
    hooks = [(name, lambda act, hook, name=name: calls.append((name, act.shape[-1]))) for name in names]
    with torch.no_grad():
        model.run_with_hooks(torch.tensor([[5, 6, 7]]), fwd_hooks=hooks)
        with model.hooks(fwd_hooks=hooks):
            model(torch.tensor([[5, 6, 7]]))
    return calls


@pytest.mark.filterwarnings(
    "ignore::UserWarning:transformer_lens"
)  # what compatibility mode leaves out for BERT
@pytest.mark.parametrize("config", [GPT2, LLAMA, BERT], ids=["gpt2", "llama", "bert"])
def test_neuron_hooks_fire_once_per_layer_with_and_without_compatibility_mode(sites, config):
    model = boot(config)
    n_layers, d_mlp = sites.neuron_shape(model)
    for compatible in (False, True):
        if compatible:
            model.enable_compatibility_mode()
        names = list(sites.neuron_hooks(model).values())
        assert len(set(names)) == n_layers == 2
        assert fired(model, names) == [(name, d_mlp) for name in names] * 2
        assert names == [model.hook_dict[f"blocks.{layer}.mlp.hook_post"].name for layer in range(2)]


def test_the_site_is_the_input_of_the_output_projection(sites):
    model = boot(LLAMA)
    seen, kept = [], []
    down = model.original_model.model.layers[1].mlp.down_proj
    handle = down.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    hooks = [(sites.neuron_hooks(model)[1], lambda act, hook: kept.append(act))]
    with torch.no_grad():
        model.run_with_hooks(torch.tensor([[5, 6, 7]]), fwd_hooks=hooks)
    handle.remove()
    assert sites.neuron_hooks(model)[1] == model.hook_dict[f"blocks.1.{sites.SITE}"].name
    assert torch.equal(seen[-1], kept[0])


@pytest.mark.parametrize(
    ("config", "shape", "width", "causal", "length"),
    [
        (GPT2, (2, 128), 32, True, 40),
        (LLAMA, (2, 48), 32, True, 64),
        (BERT, (2, 64), 32, False, 40),
        (ROBERTA, (2, 64), 32, False, 38),
        (OPT, (2, 48), 16, True, 40),
        (FALCON, (2, 80), 32, True, 2048),
    ],
    ids=["gpt2", "llama", "bert", "roberta", "opt", "falcon"],
)
def test_sizes_come_from_the_weights_not_from_what_cfg_guesses(sites, config, shape, width, causal, length):
    model = boot(config)
    sites.require_supported(model)
    assert sites.neuron_shape(model) == shape
    assert sites.embedding_width(model) == width
    assert sites.is_causal(model) is causal
    assert sites.max_length(model) == length
    assert sites.has_language_model_head(model)


def test_a_sequence_of_the_longest_length_runs_and_one_more_token_does_not(sites):
    for config in (GPT2, BERT, ROBERTA):
        model = boot(config)
        with torch.no_grad():
            model(torch.full((1, sites.max_length(model)), 5))
            with pytest.raises((IndexError, RuntimeError)):
                model(torch.full((1, sites.max_length(model) + 1), 5))


def test_a_model_built_without_hugging_face_is_supported(sites):
    model = native()
    sites.require_supported(model)
    assert (sites.neuron_shape(model), sites.embedding_width(model), sites.max_length(model)) == (
        (2, 64),
        32,
        24,
    )
    assert sites.is_causal(model) and sites.has_language_model_head(model)
    assert len(fired(model, sites.neuron_hooks(model).values())) == 4


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: boot(T5), "T5ForConditionalGeneration.*encoder-decoder.*two stacks"),
        (lambda: boot(BART), "encoder-decoder"),
        (lambda: boot(MIXTRAL), "mixture of experts.*the block's output"),
        (lambda: boot(MAMBA), "state-space.*no MLP neurons"),
        (lambda: native(attn_only=True), "no layer has neurons to name: layers 0 and 1: no MLP"),
    ],
    ids=["t5", "bart", "mixtral", "mamba", "attention-only"],
)
def test_models_without_neurons_are_refused_with_the_reason(sites, make, message):
    with pytest.raises(ValueError, match=message):
        sites.require_supported(make())


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (T5, "two stacks"),
        (MIXTRAL, "no layer has neurons to name: layers 0 and 1: a mixture of experts"),
        (MAMBA, "state-space"),
    ],
    ids=["t5", "mixtral", "mamba"],
)
def test_the_booted_model_itself_is_looked_at_when_its_config_says_nothing(sites, config, message):
    model = boot(config)
    model.original_model.config = hf.PretrainedConfig()
    with pytest.raises(ValueError, match=message):
        sites.require_supported(model)


def test_something_that_is_not_a_bridge_is_refused_with_how_to_boot_one(sites):
    with pytest.raises(
        TypeError, match=r"TransformerBridge, got .*GPT2LMHeadModel.*load_model.*hf_model=model"
    ):
        sites.require_supported(hf.GPT2LMHeadModel(GPT2))


def test_layers_of_different_widths_have_each_their_own(sites):
    model = native()
    model.blocks[1].mlp.out.original_component.weight = torch.nn.Parameter(torch.zeros(32, 60))
    assert sites.neuron_widths(model) == [64, 60]
    assert sites.neuron_shape(model) == (2, (64, 60))


def test_a_model_in_train_mode_is_refused_with_the_parts_that_train(sites):
    model = boot(GPT2)
    sites.require_eval(model)
    model.original_model.transformer.h[1].train()
    with pytest.raises(ValueError, match=r"scoring needs .*eval mode, got train mode in .*call model\.eval"):
        sites.require_eval(model, "scoring")


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["BertModel"], False),
        (["BertForSequenceClassification"], False),
        (["BertForMaskedLM"], True),
        (["BertForPreTraining"], True),
        (None, True),
    ],
)
def test_an_encoder_has_a_head_unless_its_checkpoint_was_of_another_kind(sites, names, expected):
    model = boot(BERT)
    model.original_model.config.architectures = names
    assert sites.has_language_model_head(model) is expected


def test_frozen_gives_every_flag_back_also_after_an_error():
    model = boot(GPT2)
    for number, parameter in enumerate(model.parameters()):
        parameter.requires_grad_(number % 2 == 0)
    flags = [parameter.requires_grad for parameter in model.parameters()]
    with pytest.raises(RuntimeError, match="inside"), frozen(model):
        assert not any(parameter.requires_grad for parameter in model.parameters())
        raise RuntimeError("inside")
    assert [parameter.requires_grad for parameter in model.parameters()] == flags
    assert True in flags and False in flags


def test_inside_frozen_no_weight_is_in_the_graph():
    model = boot(GPT2)
    with frozen(model):
        assert not model(torch.tensor([[5, 6, 7]])).requires_grad
    assert model(torch.tensor([[5, 6, 7]])).requires_grad


@pytest.mark.parametrize(
    ("family", "message"),
    [
        ("llava", "parts for images or sound"),
        ("gemma3_multimodal", "parts for images or sound"),
        ("gemma4_per_layer_input", "per-layer inputs"),
    ],
)
def test_models_with_eyes_or_per_layer_inputs_are_refused_from_their_config(sites, family, message):
    assert message in sites.config_refusal(families.config_of(family))
    assert sites.config_refusal(families.config_of("gemma4")) is None
