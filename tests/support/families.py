"""A small random model of every family that TransformerLens boots from a config, for the table family x check.

The sixteen of ``tiny`` are among them; the others are run by ``tests/families.py``, a dozen of them by unit tests.
"""

import copy
from unittest import mock

import tiny
import torch
import transformers as hf
from transformer_lens.model_bridge import TransformerBridge
from transformer_lens.model_bridge.sources.transformers import helpers

LLAMA, PLAIN, SIZES, IDS = tiny.LLAMA_LIKE, tiny.PLAIN, tiny.SIZES, tiny.IDS
HEADS = {"head_dim": 8}
WINDOW = {"sliding_window": 5}
LATENT = {
    "kv_lora_rank": 8,
    "q_lora_rank": 12,
    "qk_rope_head_dim": 4,
    "qk_nope_head_dim": 8,
    "v_head_dim": 6,  # its own, narrower than the keys'
}
EXPERTS = {"num_experts_per_tok": 2, "moe_intermediate_size": 24}
DEEPSEEK = {
    **LLAMA,
    "num_key_value_heads": 4,
    **LATENT,
    "n_routed_experts": 4,
    "n_group": 1,
    "topk_group": 1,
    **EXPERTS,
}
MAMBA = {"mamba_d_state": 8, "mamba_n_heads": 4, "mamba_d_head": 16, "mamba_n_groups": 1, "mamba_expand": 2}
VISION = {
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "image_size": 8,
    "patch_size": 4,
}
STACKS = {
    "vocab_size": tiny.D_VOCAB,
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48,
    "max_position_embeddings": 48,
    **IDS,
}
GPT_LIKE = {
    "vocab_size": tiny.D_VOCAB,
    "n_embd": 32,
    "n_layer": 2,
    "n_head": 4,
    "n_positions": 48,
    "n_inner": 48,
    **IDS,
}
T5_LIKE = {
    "vocab_size": tiny.D_VOCAB,
    "d_model": 32,
    "d_kv": 8,
    "d_ff": 48,
    "num_layers": 2,
    "num_decoder_layers": 2,
    "num_heads": 4,
    "pad_token_id": 0,
    "eos_token_id": 2,
    "decoder_start_token_id": 0,
}
DISENTANGLED = {
    "relative_attention": True,
    "pos_att_type": ["c2p", "p2c"],
    "max_relative_positions": 16,
    "type_vocab_size": 0,
}
LONG_ROPE = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "short_factor": [1.0] * 4,
    "long_factor": [4.0] * 4,
    "original_max_position_embeddings": 12,
    "factor": 4.0,
}

RECIPES = {
    # encoders
    "bert_cased_types": ("BertForMaskedLM", {**PLAIN, "type_vocab_size": 2, "hidden_act": "relu"}),
    "xlm_roberta": ("XLMRobertaForMaskedLM", {**PLAIN, "max_position_embeddings": 49}),
    "camembert": ("CamembertForMaskedLM", {**PLAIN, "max_position_embeddings": 49}),
    "distilbert": (
        "DistilBertForMaskedLM",
        {
            "vocab_size": tiny.D_VOCAB,
            "dim": 32,
            "n_layers": 2,
            "n_heads": 4,
            "hidden_dim": 48,
            "max_position_embeddings": 48,
            **IDS,
        },
    ),
    "electra": ("ElectraForMaskedLM", {**PLAIN, "embedding_size": 32}),
    "electra_projected": ("ElectraForMaskedLM", {**PLAIN, "embedding_size": 16}),
    "mpnet": (
        "MPNetForMaskedLM",
        {**PLAIN, "max_position_embeddings": 50, "bos_token_id": 0, "pad_token_id": 1},
    ),
    "deberta": ("DebertaForMaskedLM", {**PLAIN, **DISENTANGLED}),
    "deberta_absolute": ("DebertaForMaskedLM", {**PLAIN, "type_vocab_size": 2}),
    "deberta_not_legacy": ("DebertaForMaskedLM", {**PLAIN, **DISENTANGLED, "legacy": False}),
    "deberta_v2": ("DebertaV2ForMaskedLM", {**PLAIN, **DISENTANGLED, "conv_kernel_size": 3}),
    "deberta_v3": (
        "DebertaV2ForMaskedLM",
        {
            **PLAIN,
            **DISENTANGLED,
            "position_biased_input": False,
            "position_buckets": 4,
            "share_att_key": True,
            "norm_rel_ebd": "layer_norm",
        },
    ),
    "modernbert": (
        "ModernBertForMaskedLM",
        {**PLAIN, "num_hidden_layers": 3, "local_attention": 6, "global_attn_every_n_layers": 3},
    ),
    "albert": ("AlbertForMaskedLM", {**PLAIN, "embedding_size": 16}),
    "t5_encoder": ("T5EncoderModel", {**T5_LIKE, "d_kv": 6}),
    "t5_encoder_gated": ("T5EncoderModel", {**T5_LIKE, "feed_forward_proj": "gated-gelu"}),
    "mt5_encoder": ("MT5EncoderModel", {**T5_LIKE, "feed_forward_proj": "gated-gelu"}),
    "bert_in_chunks": ("BertForMaskedLM", {**PLAIN, "chunk_size_feed_forward": 3}),
    "umt5_encoder": ("UMT5EncoderModel", T5_LIKE),
    # causal, dense
    "bert_decoder": ("BertLMHeadModel", {**PLAIN, "is_decoder": True}),
    "gpt2_not_scaled": ("GPT2LMHeadModel", {**GPT_LIKE, "scale_attn_weights": False}),
    "gpt2_cross_attention": ("GPT2LMHeadModel", {**GPT_LIKE, "add_cross_attention": True}),
    "gpt1": (
        "OpenAIGPTLMHeadModel",
        {"vocab_size": tiny.D_VOCAB, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 48, **IDS},
    ),
    "gptj": (
        "GPTJForCausalLM",
        {
            "vocab_size": tiny.D_VOCAB,
            "n_embd": 32,
            "n_layer": 2,
            "n_head": 4,
            "n_positions": 48,
            "rotary_dim": 4,
            "n_inner": 48,
            **IDS,
        },
    ),
    "codegen": (
        "CodeGenForCausalLM",
        {
            "vocab_size": tiny.D_VOCAB,
            "n_embd": 32,
            "n_layer": 2,
            "n_head": 4,
            "n_positions": 48,
            "rotary_dim": 4,
            "n_inner": 48,
            **IDS,
        },
    ),
    "gpt_bigcode": (
        "GPTBigCodeForCausalLM",
        {
            "vocab_size": tiny.D_VOCAB,
            "n_embd": 32,
            "n_layer": 2,
            "n_head": 4,
            "n_positions": 48,
            "n_inner": 48,
            **IDS,
        },
    ),
    "gpt_neox_serial": ("GPTNeoXForCausalLM", {**PLAIN, "use_parallel_residual": False}),
    "mpt": (
        "MptForCausalLM",
        {
            "vocab_size": tiny.D_VOCAB,
            "d_model": 32,
            "n_layers": 2,
            "n_heads": 4,
            "expansion_ratio": 2,
            "max_seq_len": 48,
            **IDS,
        },
    ),
    "falcon": ("FalconForCausalLM", {**SIZES, **IDS, "ffn_hidden_size": 48, "max_position_embeddings": 48}),
    "falcon_new": (
        "FalconForCausalLM",
        {
            **SIZES,
            **IDS,
            "ffn_hidden_size": 48,
            "max_position_embeddings": 48,
            "new_decoder_architecture": True,
            "num_kv_heads": 2,
        },
    ),
    "falcon_alibi": (
        "FalconForCausalLM",
        {
            **SIZES,
            **IDS,
            "ffn_hidden_size": 48,
            "max_position_embeddings": 48,
            "alibi": True,
            "parallel_attn": False,
            "bias": True,
        },
    ),
    "opt_post_norm": (
        "OPTForCausalLM",
        {
            **SIZES,
            **IDS,
            "ffn_dim": 48,
            "max_position_embeddings": 48,
            "word_embed_proj_dim": 16,
            "do_layer_norm_before": False,
        },
    ),
    "xglm": (
        "XGLMForCausalLM",
        {
            "vocab_size": tiny.D_VOCAB,
            "d_model": 32,
            "num_layers": 2,
            "attention_heads": 4,
            "ffn_dim": 48,
            "max_position_embeddings": 48,
            **IDS,
        },
    ),
    "gemma": ("GemmaForCausalLM", {**LLAMA, **HEADS}),
    "gemma3_bidirectional": (
        "Gemma3ForCausalLM",
        {**LLAMA, **HEADS, **WINDOW, "query_pre_attn_scalar": 8, "use_bidirectional_attention": True},
    ),
    "gemma4": (
        "Gemma4ForCausalLM",
        {
            **LLAMA,
            **HEADS,
            **WINDOW,
            "hidden_size_per_layer_input": 0,
            "layer_types": ["sliding_attention", "full_attention"],
        },
    ),
    "gemma4_per_layer_input": (
        "Gemma4ForCausalLM",
        {
            **LLAMA,
            **HEADS,
            **WINDOW,
            "vocab_size_per_layer_input": tiny.D_VOCAB,
            "hidden_size_per_layer_input": 8,
            "layer_types": ["sliding_attention", "full_attention"],
        },
    ),
    "gemma4_keys_as_values": (
        "Gemma4ForCausalLM",
        {
            **LLAMA,
            **HEADS,
            **WINDOW,
            "hidden_size_per_layer_input": 0,
            "attention_k_eq_v": True,
            "layer_types": ["sliding_attention", "full_attention"],
        },
    ),
    "gemma4_double_wide": (
        "Gemma4ForCausalLM",
        {
            **LLAMA,
            **HEADS,
            **WINDOW,
            "num_hidden_layers": 4,
            "hidden_size_per_layer_input": 0,
            "num_kv_shared_layers": 2,
            "use_double_wide_mlp": True,
            "layer_types": ["sliding_attention", "full_attention"] * 2,
        },
    ),
    "gemma3n": ("Gemma3nForCausalLM", {**LLAMA, **HEADS}),
    "vaultgemma": ("VaultGemmaForCausalLM", {**LLAMA, **HEADS, **WINDOW, "query_pre_attn_scalar": 8}),
    "llama_bias": ("LlamaForCausalLM", {**LLAMA, "mlp_bias": True, "attention_bias": True}),
    "llama_not_causal": ("LlamaForCausalLM", {**LLAMA, "is_causal": False}),
    "llama_dynamic_rope": (
        "LlamaForCausalLM",
        {
            **LLAMA,
            "rope_parameters": {
                "rope_type": "dynamic",
                "rope_theta": 10000.0,
                "factor": 4.0,
                "original_max_position_embeddings": 12,
            },
            "max_position_embeddings": 12,
        },
    ),
    "llama_tied": ("LlamaForCausalLM", {**LLAMA, "tie_word_embeddings": True}),
    "phi3_longrope": (
        "Phi3ForCausalLM",
        {**LLAMA, "rope_parameters": LONG_ROPE, "original_max_position_embeddings": 12},
    ),
    "olmo": ("OlmoForCausalLM", LLAMA),
    "olmo2": ("Olmo2ForCausalLM", LLAMA),
    "olmo3": ("Olmo3ForCausalLM", {**LLAMA, **WINDOW}),
    "granite": (
        "GraniteForCausalLM",
        {
            **LLAMA,
            "embedding_multiplier": 3.0,
            "attention_multiplier": 0.3,
            "residual_multiplier": 0.5,
            "logits_scaling": 2.0,
        },
    ),
    "cohere": ("CohereForCausalLM", LLAMA),
    "cohere2": ("Cohere2ForCausalLM", {**LLAMA, **WINDOW}),
    "glm": ("GlmForCausalLM", {**LLAMA, **HEADS}),
    "glm4": ("Glm4ForCausalLM", {**LLAMA, **HEADS}),
    "exaone4": ("Exaone4ForCausalLM", {**LLAMA, **WINDOW, "sliding_window_pattern": 2}),
    "ernie4_5": ("Ernie4_5ForCausalLM", {**LLAMA, **HEADS}),
    "seed_oss": ("SeedOssForCausalLM", {**LLAMA, **HEADS}),
    "smollm3": ("SmolLM3ForCausalLM", LLAMA),
    "starcoder2": ("Starcoder2ForCausalLM", LLAMA),
    "nemotron": ("NemotronForCausalLM", {**LLAMA, **HEADS}),
    "apertus": ("ApertusForCausalLM", LLAMA),
    "arcee": ("ArceeForCausalLM", LLAMA),
    "bitnet": ("BitNetForCausalLM", LLAMA),
    "hunyuan": ("HunYuanDenseV1ForCausalLM", {**LLAMA, **HEADS}),
    "jais2": ("Jais2ForCausalLM", LLAMA),
    "nanochat": ("NanoChatForCausalLM", LLAMA),
    "ministral3": ("Ministral3ForCausalLM", {**LLAMA, **HEADS}),
    "modernbert_decoder": (
        "ModernBertDecoderForCausalLM",
        {**PLAIN, "cls_token_id": 1, "sep_token_id": 2, "local_attention": 6},
    ),
    "youtu": ("YoutuForCausalLM", {**LLAMA, "num_key_value_heads": 4, **LATENT}),
    "deepseek_v3_dense": ("DeepseekV3ForCausalLM", {**DEEPSEEK, "first_k_dense_replace": 2}),
    "deepseek_v2_dense": ("DeepseekV2ForCausalLM", {**DEEPSEEK, "first_k_dense_replace": 2}),
    "laguna": ("LagunaForCausalLM", {**LLAMA, **HEADS}),
    "lfm2": (
        "Lfm2ForCausalLM",
        {
            **LLAMA,
            "num_hidden_layers": 3,
            "layer_types": ["conv", "full_attention", "conv"],
            "block_auto_adjust_ff_dim": False,
        },
    ),
    "hrm_text": ("HrmTextForCausalLM", {**PLAIN, **HEADS, "num_hidden_layers": 4}),
    # mixtures of experts
    "llama4_dense": (
        "Llama4ForCausalLM",
        {**LLAMA, **HEADS, "intermediate_size_mlp": 48, "moe_layers": [], "num_local_experts": 2},
    ),
    "llama4": (
        "Llama4ForCausalLM",
        {**LLAMA, **HEADS, "intermediate_size_mlp": 48, "moe_layers": [1], "num_local_experts": 2},
    ),
    "mixtral": ("MixtralForCausalLM", {**LLAMA, "num_local_experts": 4, "num_experts_per_tok": 2}),
    "qwen2_moe": (
        "Qwen2MoeForCausalLM",
        {**LLAMA, "num_experts": 4, **EXPERTS, "shared_expert_intermediate_size": 24, "mlp_only_layers": [0]},
    ),
    "qwen3_moe": (
        "Qwen3MoeForCausalLM",
        {**LLAMA, **HEADS, "num_experts": 4, **EXPERTS, "mlp_only_layers": [0]},
    ),
    "deepseek_v3": ("DeepseekV3ForCausalLM", {**DEEPSEEK, "first_k_dense_replace": 1}),
    "deepseek_v2": ("DeepseekV2ForCausalLM", {**DEEPSEEK, "first_k_dense_replace": 1}),
    "glm4_moe": (
        "Glm4MoeForCausalLM",
        {**LLAMA, **HEADS, "n_routed_experts": 4, "n_group": 1, "topk_group": 1, **EXPERTS}
        | {"first_k_dense_replace": 1},
    ),
    "ernie4_5_moe": (
        "Ernie4_5_MoeForCausalLM",
        {**LLAMA, "moe_num_experts": 4, "moe_k": 2, "moe_intermediate_size": 24, "moe_layer_start_index": 1}
        | {"moe_layer_end_index": 1, "moe_num_shared_experts": 1},
    ),
    "lfm2_moe": (
        "Lfm2MoeForCausalLM",
        {
            **LLAMA,
            "num_hidden_layers": 3,
            "layer_types": ["conv", "full_attention", "conv"],
            "num_dense_layers": 2,
            "num_experts": 4,
            **EXPERTS,
        },
    ),
    "glm4_moe_lite": ("Glm4MoeLiteForCausalLM", {**DEEPSEEK, "mlp_layer_types": ["dense", "sparse"]}),
    "glm_moe_dsa": ("GlmMoeDsaForCausalLM", DEEPSEEK),
    "deepseek_v4": ("DeepseekV4ForCausalLM", LLAMA),
    "granite_hybrid": (
        "GraniteMoeHybridForCausalLM",
        {
            **LLAMA,
            "num_local_experts": 0,
            "shared_intermediate_size": 48,
            "layer_types": ["attention", "attention"],
            "mamba_n_heads": 4,
            "mamba_d_head": 16,
        },
    ),
    "jetmoe": ("JetMoeForCausalLM", {**LLAMA, "num_local_experts": 4}),
    "olmoe": ("OlmoeForCausalLM", {**LLAMA, "num_experts": 4, "num_experts_per_tok": 2}),
    "flex_olmo": ("FlexOlmoForCausalLM", {**LLAMA, "num_experts": 4, "num_experts_per_tok": 2}),
    "granite_moe": ("GraniteMoeForCausalLM", {**LLAMA, "num_local_experts": 4, "num_experts_per_tok": 2}),
    "phimoe": ("PhimoeForCausalLM", {**LLAMA, "num_local_experts": 4, "num_experts_per_tok": 2}),
    "gpt_oss": (
        "GptOssForCausalLM",
        {**LLAMA, **HEADS, **WINDOW, "num_local_experts": 4, "num_experts_per_tok": 2},
    ),
    "minimax_m2": (
        "MiniMaxM2ForCausalLM",
        {**LLAMA, **HEADS, "num_local_experts": 4, "num_experts_per_tok": 2, "rotary_dim": 4},
    ),
    "afmoe": (
        "AfmoeForCausalLM",
        {**LLAMA, **HEADS, **WINDOW, "num_dense_layers": 1, "num_experts": 4, **EXPERTS},
    ),
    # recurrent
    "mamba": ("MambaForCausalLM", {**SIZES, **IDS, "state_size": 8}),
    "mamba2": (
        "Mamba2ForCausalLM",
        {**SIZES, **IDS, "state_size": 8, "num_heads": 4, "head_dim": 16, "n_groups": 1},
    ),
    "rwkv": (
        "RwkvForCausalLM",
        {
            "vocab_size": tiny.D_VOCAB,
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "attention_hidden_size": 32,
            "intermediate_size": 48,
            "context_length": 48,
            **IDS,
        },
    ),
    "recurrent_gemma": (
        "RecurrentGemmaForCausalLM",
        {**LLAMA, **HEADS, "lru_width": 32, "attention_window_size": 8},
    ),
    "bamba": (
        "BambaForCausalLM",
        {**LLAMA, "mamba_d_state": 8, "mamba_n_heads": 4, "mamba_d_head": 16, "mamba_n_groups": 1}
        | {"attn_layer_indices": [1]},
    ),
    "falcon_mamba": ("FalconMambaForCausalLM", {**SIZES, **IDS, "state_size": 8}),
    "olmo_hybrid": ("OlmoHybridForCausalLM", LLAMA),
    "qwen3_5": ("Qwen3_5ForCausalLM", {**LLAMA, **HEADS}),
    "falcon_h1": ("FalconH1ForCausalLM", {**LLAMA, **MAMBA, "mamba_d_ssm": 64}),
    "qwen3_next": (
        "Qwen3NextForCausalLM",
        {
            **LLAMA,
            **HEADS,
            **EXPERTS,
            "num_experts": 4,
            "layer_types": ["linear_attention", "full_attention"],
            "linear_key_head_dim": 8,
            "linear_value_head_dim": 8,
            "linear_num_key_heads": 2,
            "linear_num_value_heads": 4,
            "shared_expert_intermediate_size": 24,
        },
    ),
    # two stacks
    "t5": ("T5ForConditionalGeneration", T5_LIKE),
    "t5_gated": ("T5ForConditionalGeneration", {**T5_LIKE, "feed_forward_proj": "gated-gelu"}),
    "umt5": ("UMT5ForConditionalGeneration", T5_LIKE),
    "mt5": ("MT5ForConditionalGeneration", {**T5_LIKE, "feed_forward_proj": "gated-gelu"}),
    "longt5": ("LongT5ForConditionalGeneration", T5_LIKE),
    "switch": ("SwitchTransformersForConditionalGeneration", {**T5_LIKE, "num_experts": 2}),
    "bart": ("BartForConditionalGeneration", STACKS),
    "mbart": ("MBartForConditionalGeneration", STACKS),
    "pegasus": ("PegasusForConditionalGeneration", STACKS),
    "marian": ("MarianMTModel", {**STACKS, "decoder_start_token_id": 0}),
    "m2m100": ("M2M100ForConditionalGeneration", STACKS),
    "blenderbot": ("BlenderbotForConditionalGeneration", STACKS),
    # with eyes and ears
    "llava": (
        "LlavaForConditionalGeneration",
        {
            "text_config": {"model_type": "llama", **LLAMA},
            "vision_config": {"model_type": "clip_vision_model", **VISION},
            "image_token_index": 39,
        },
    ),
    "gemma3_multimodal": (
        "Gemma3ForConditionalGeneration",
        {
            "text_config": {"model_type": "gemma3_text", **LLAMA, **HEADS},
            "vision_config": {"model_type": "siglip_vision_model", **VISION},
            "mm_tokens_per_image": 4,
            "image_token_index": 39,
        },
    ),
    "vit": ("ViTModel", VISION),
    "wav2vec2": (
        "Wav2Vec2ForCTC",
        {
            **SIZES,
            "intermediate_size": 48,
            "conv_dim": [8],
            "conv_stride": [2],
            "conv_kernel": [3],
            "num_feat_extract_layers": 1,
            "num_conv_pos_embeddings": 4,
            "num_conv_pos_embedding_groups": 2,
        },
    ),
}
"""By name: the Hugging Face class and the numbers of a small config."""

STATED = {"PhimoeForCausalLM": "PhiMoEForCausalLM"}
"""What published checkpoints call themselves, where it isn't the class."""

FAMILIES = (*tiny.CONFIGS, *RECIPES)


def config_of(family):
    """The family's small config."""
    if family in tiny.CONFIGS:
        return copy.deepcopy(tiny.CONFIGS[family])
    name, numbers = RECIPES[family]
    config = getattr(hf, name).config_class(**copy.deepcopy(numbers))
    if name.endswith("EncoderModel"):
        config.is_encoder_decoder = False
    return config


def tokenizer(family):
    """A tokenizer as the family's have it: MPNet pads with 1, a T5 has no BOS and no mask but its sentinels."""
    kind = RECIPES.get(family, ("",))[0]
    if family in tiny.BIDIRECTIONAL or kind.endswith("ForMaskedLM"):
        return tiny.tokenizer(
            "bert", ["<s>", "<pad>", "</s>", "<unk>", "<mask>"] if family == "mpnet" else tiny.SPECIAL
        )
    return tiny.tokenizer("t5" if kind.endswith("EncoderModel") else "gpt2")


def hf_model(family, seed=0, dtype=torch.float32):
    """A random Hugging Face model of the family, biases and norms included in the randomness, in eval mode."""
    if family in tiny.CONFIGS:
        return tiny.hf_model(family, seed, dtype)
    kind = getattr(hf, RECIPES[family][0])
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        config = config_of(family)
        config._attn_implementation = "eager"
        model = kind(config).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.nan_to_num_().add_(0.1 * torch.randn_like(parameter))
    model.config.architectures = [STATED.get(kind.__name__, kind.__name__)]
    return model.to(dtype)


def bridge(family, seed=0, dtype=torch.float32):
    """The same model, booted and frozen."""
    from tl_skillneurons.models import T5EncoderToRead, register_encoders  # after the shape checker is on

    register_encoders()
    model = hf_model(family, seed, dtype)
    if type(model).__name__.endswith("T5EncoderModel"):
        model = T5EncoderToRead(model)
    # booting a model with eyes asks the hub for a processor, and installs torchvision where that fails
    no_processors = mock.patch.object(helpers, "_MODALITY_PROCESSOR_LOADERS", [])
    with torch.random.fork_rng(), no_processors:
        model = TransformerBridge.boot_transformers(
            "tiny", hf_model=model, tokenizer=tokenizer(family), device="cpu", dtype=dtype
        )
    model.requires_grad_(False)
    return model.eval()
