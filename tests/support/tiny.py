"""Tiny random models of every family, beside an untouched Hugging Face copy, and a small task they can read."""

import copy
from functools import cache

import torch
import transformers as hf
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformer_lens.model_bridge import TransformerBridge

torch.set_num_threads(1)  # on tensors this small a second thread costs many times what it saves

WORDS = (
    "the a film plot cast music scene was is good bad dull bright slow quick and but very not "
    "negative positive other"
).split()
SPECIAL = ["<pad>", "<s>", "</s>", "<unk>", "<mask>"]
VOCABULARY = {word: number for number, word in enumerate([*SPECIAL, *WORDS])}
D_VOCAB = 40  # more rows than words, as in real models

SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": D_VOCAB}
IDS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
LLAMA_LIKE = {
    **SIZES,
    **IDS,
    "num_key_value_heads": 2,
    "intermediate_size": 48,
    "max_position_embeddings": 48,
}
PLAIN = {**SIZES, **IDS, "intermediate_size": 48, "max_position_embeddings": 48}

CONFIGS = {
    "bert": hf.BertConfig(**{**PLAIN, "type_vocab_size": 2}),
    "roberta": hf.RobertaConfig(**{**PLAIN, "max_position_embeddings": 49}),
    "gpt2": hf.GPT2Config(
        vocab_size=D_VOCAB, n_embd=32, n_layer=2, n_head=4, n_positions=48, n_inner=48, **IDS
    ),
    "gpt_neox": hf.GPTNeoXConfig(**PLAIN),
    "llama": hf.LlamaConfig(**LLAMA_LIKE),
    "mistral": hf.MistralConfig(**LLAMA_LIKE, sliding_window=5, head_dim=8),
    "qwen2": hf.Qwen2Config(**LLAMA_LIKE),
    "qwen3": hf.Qwen3Config(**LLAMA_LIKE, head_dim=8),
    "gemma2": hf.Gemma2Config(**LLAMA_LIKE, head_dim=8, sliding_window=5, query_pre_attn_scalar=8),
    "gemma3": hf.Gemma3TextConfig(**LLAMA_LIKE, head_dim=8, sliding_window=5, query_pre_attn_scalar=8),
    "opt": hf.OPTConfig(**SIZES, **IDS, ffn_dim=48, max_position_embeddings=48, word_embed_proj_dim=32),
    "phi": hf.PhiConfig(**PLAIN),
    "phi3": hf.Phi3Config(**LLAMA_LIKE),
    "bloom": hf.BloomConfig(vocab_size=D_VOCAB, hidden_size=32, n_layer=2, n_head=4, **IDS),
    "gpt_neo": hf.GPTNeoConfig(
        vocab_size=D_VOCAB,
        hidden_size=32,
        num_layers=2,
        num_heads=4,
        intermediate_size=48,
        attention_types=[[["global", "local"], 1]],
        window_size=5,
        max_position_embeddings=48,
        **IDS,
    ),
    "stablelm": hf.StableLmConfig(**LLAMA_LIKE),
}
"""One small config per family; windows of 5 tokens where a family has sliding or local attention."""

BIDIRECTIONAL = ("bert", "roberta")
CAUSAL = tuple(name for name in CONFIGS if name not in BIDIRECTIONAL)


def tokenizer(family, special=SPECIAL):
    """A word-level tokenizer: BERT-like special tokens around the text, an EOS after it as T5's, or none of its own
    for causal models; ``special`` have the first ids."""
    ids = {word: number for number, word in enumerate([*special, *WORDS])}
    if family == "t5":
        ids |= {"<extra_id_0>": len(ids)}
    words = Tokenizer(models.WordLevel(ids, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    named = {"pad_token": "<pad>", "unk_token": "<unk>"}

    def around(single):
        used = [(token, ids[token]) for token in ("<s>", "</s>") if token in single.split()]
        return processors.TemplateProcessing(single=single, special_tokens=used)

    if family in BIDIRECTIONAL:
        words.post_processor = around("<s> $A </s>")
        return hf.PreTrainedTokenizerFast(
            tokenizer_object=words, **named, cls_token="<s>", sep_token="</s>", mask_token="<mask>"
        )
    if family == "t5":
        words.post_processor = around("$A </s>")
        return hf.PreTrainedTokenizerFast(
            tokenizer_object=words, **named, eos_token="</s>", extra_special_tokens=["<extra_id_0>"]
        )
    words.post_processor = around("<s> $A")
    return hf.PreTrainedTokenizerFast(
        tokenizer_object=words,
        **named,
        bos_token="<s>",
        eos_token="</s>",
        name_or_path="tiny",
        add_bos_token=True,
    )


def hf_model(family, seed=0, dtype=torch.float32):
    """A random Hugging Face model of the family, biases and norms included in the randomness, in eval mode."""
    kind = {"bert": hf.BertForMaskedLM, "roberta": hf.RobertaForMaskedLM}.get(family)
    kind = kind or hf.AutoModelForCausalLM._model_mapping[type(CONFIGS[family])]
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        config = copy.deepcopy(CONFIGS[family])
        config._attn_implementation = "eager"
        model = kind(config).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
    model.config.architectures = [kind.__name__]
    return model.to(dtype)


def bridge(family, seed=0, dtype=torch.float32):
    """The same model, booted and frozen."""
    with torch.random.fork_rng():
        model = TransformerBridge.boot_transformers(
            "tiny",
            hf_model=hf_model(family, seed, dtype),
            tokenizer=tokenizer(family),
            device="cpu",
            dtype=dtype,
        )
    model.requires_grad_(False)
    return model.eval()


@cache
def kept(family, seed=0, dtype=torch.float32):
    """The same, booted once in a process, for tests that leave it as it was."""
    return bridge(family, seed, dtype)


def sentences(n, seed=0):
    """Labelled word sequences of different lengths, each with one word that tells its label."""
    generator = torch.Generator().manual_seed(seed)
    rows, seen = [], set()
    plain = WORDS[:19]
    while len(rows) < n:
        length = int(torch.randint(2, 9, (), generator=generator))
        words = [plain[int(torch.randint(len(plain), (), generator=generator))] for _ in range(length)]
        label = int(len(rows) % 2)
        words[int(torch.randint(length, (), generator=generator))] = ("bad", "good")[label]
        text = " ".join(words)
        if text not in seen:
            seen.add(text)
            rows.append({"text": text, "label": label})
    return rows


def task(n_train=24, n_select=16, n_report=16, seed=0):
    """A task over :func:`sentences`; imported here because the shape checker must be on first."""
    from tl_skillneurons import Task

    rows = sentences(n_train + n_select + n_report, seed)
    data = {
        "train": rows[:n_train],
        "validation": rows[n_train : n_train + n_select],
        "test": rows[n_train + n_select :],
    }
    return Task.from_datasets(
        data, template="{text}", label="label", label_words={0: "negative", 1: "positive"}, name="tiny"
    )
