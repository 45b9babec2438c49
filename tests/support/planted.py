"""A small model with weights set by hand: two heads move the label to the prompt, three neurons answer with it.

What is true of it by construction::

    "good"/"bad" --HEADS--> LABEL at the virtual tokens --NEURONS--> ANSWER --unembedding--> positive/negative

``DECOY`` reads LABEL as well, so it predicts as well, and writes where nothing reads. All other heads and
neurons see the words and the prompt, vary from text to text, and write where nothing that answers reads. They
reach the answer only through the scale of the norms, which is the same for both labels of a twin.
"""

import torch
import transformers as hf
from tiny import LLAMA_LIKE, VOCABULARY, tokenizer
from transformer_lens.model_bridge import TransformerBridge

from tl_skillneurons import NeuronSet, SoftPrompt, Task

N_LAYERS, N_HEADS, D_MODEL, D_MLP, D_HEAD = 3, 4, 48, 48, 12
SHAPE = (N_LAYERS, D_MLP)
PLACE = {"n_layers": N_LAYERS, "d_mlp": D_MLP}
HEADS = [(0, 1), (1, 2)]
"""The two heads, (layer, head), that move the label from its word to the virtual tokens."""
NEURONS = NeuronSet([1, 2, 2], [7, 3, 11], **PLACE)
"""The three neurons that answer; the first writes the most, the last the least."""
DECOY = NeuronSet([1], [20], **PLACE)
"""As predictive as they are, and read by nothing."""

LABEL_WORDS = {0: "negative", 1: "positive"}
PLAIN_WORDS = "the a film plot cast music scene was is dull bright slow quick and but very not".split()
_OUTPUT = (0.05, 0.04, 0.03)
# Directions of the residual stream, before they are turned by one random rotation.
_WORD, _IS_WORD, _CONSTANT, VIRTUAL, _LABEL, _ANSWER, _SINK = range(7)
_SEEN, _MOVED, _UNREAD = slice(7, 27), slice(27, 39), slice(39, 48)
_SLOW = D_HEAD // 2 - 1  # the dimension of a head that rotary positions turn the least


def model(dtype=torch.float32, seed=0):
    """The model, booted and frozen; ``seed`` draws all that does not answer."""
    config = hf.LlamaConfig(
        **{
            **LLAMA_LIKE,
            "hidden_size": D_MODEL,
            "num_hidden_layers": N_LAYERS,
            "num_attention_heads": N_HEADS,
            "num_key_value_heads": N_HEADS,
            "intermediate_size": D_MLP,
        }
    )
    config._attn_implementation = "eager"
    with torch.random.fork_rng():
        bare = hf.LlamaForCausalLM(config).eval().to(torch.float64)
        bare.load_state_dict(_weights(bare.state_dict(), seed))
        bare.config.architectures = ["LlamaForCausalLM"]
        bridge = TransformerBridge.boot_transformers(
            "planted", hf_model=bare.to(dtype), tokenizer=tokenizer("llama"), device="cpu", dtype=dtype
        )
    bridge.requires_grad_(False)
    return bridge.eval()


def _weights(state, seed):
    generator = torch.Generator().manual_seed(seed)

    def noise(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    turn = rotation()
    state = {
        name: torch.ones_like(value) if "norm" in name else torch.zeros_like(value)
        for name, value in state.items()
    }
    embedding = state["model.embed_tokens.weight"]
    embedding[:, _CONSTANT] = 1
    embedding[:, _SEEN] = 0.3 * noise(len(embedding), 20)
    good, bad = VOCABULARY["good"], VOCABULARY["bad"]
    embedding[bad] = embedding[good]  # they differ in the label alone
    embedding[[good, bad], _IS_WORD] = 1
    embedding[[good, bad], _WORD] = torch.tensor([1.0, -1.0], dtype=torch.float64)

    for layer in range(N_LAYERS):
        for head in range(N_HEADS):
            q, k, v, o = (torch.zeros(D_HEAD, D_MODEL, dtype=torch.float64) for _ in range(4))
            if (layer, head) in HEADS:
                q[_SLOW, VIRTUAL] = k[_SLOW, _IS_WORD] = 2
                v[0, _WORD], o[0, _LABEL] = 1, 0.1
            else:
                q[:, _SEEN], k[:, _SEEN] = 0.1 * noise(D_HEAD, 20), 0.1 * noise(D_HEAD, 20)
                v[:, _SEEN], o[:, _MOVED] = 0.2 * noise(D_HEAD, 20), 0.05 * noise(D_HEAD, 12)
            rows = slice(head * D_HEAD, (head + 1) * D_HEAD)
            for name, weight in zip("qkv", (q, k, v), strict=True):
                state[f"model.layers.{layer}.self_attn.{name}_proj.weight"][rows] = weight
            state[f"model.layers.{layer}.self_attn.o_proj.weight"][:, rows] = o.T
        gate, up, down = (torch.zeros(D_MLP, D_MODEL, dtype=torch.float64) for _ in range(3))
        for part in (_SEEN, _MOVED):
            width = part.stop - part.start
            gate[:, part], up[:, part] = 0.3 * noise(D_MLP, width), 0.3 * noise(D_MLP, width)
        gate[:, _CONSTANT] = 0.3
        down[:, _UNREAD] = 0.02 * noise(D_MLP, 9)
        for number, (at, index) in enumerate([*NEURONS, *DECOY]):
            if at == layer:
                gate[index], up[index], down[index] = 0, 0, 0
                gate[index, _CONSTANT], up[index, _LABEL] = 1, 1
                if number < len(_OUTPUT):
                    down[index, _ANSWER] = _OUTPUT[number]
                else:
                    down[index, _SINK] = 0.02
        for name, weight in (("gate", gate), ("up", up), ("down", down.T)):
            state[f"model.layers.{layer}.mlp.{name}_proj.weight"] = weight

    unembedding = state["lm_head.weight"]
    unembedding[:, _SEEN], unembedding[:, _MOVED] = (
        0.2 * noise(len(unembedding), 20),
        0.2 * noise(len(unembedding), 12),
    )
    for word, sign in (("positive", 1), ("negative", -1)):
        unembedding[VOCABULARY[word]] = 0
        unembedding[VOCABULARY[word], _ANSWER] = 0.3 * sign
    # RMSNorm does not change when all directions turn together, so no neuron or head reads a single coordinate
    for name, value in state.items():
        if "norm" not in name and "rotary" not in name:
            writes = "o_proj" in name or "down_proj" in name
            state[name] = turn.T @ value if writes else value @ turn
    return state


def rotation():
    """The rotation all directions are turned by: row ``i`` is where direction ``i`` points."""
    generator = torch.Generator().manual_seed(99)
    return torch.linalg.qr(torch.randn(D_MODEL, D_MODEL, generator=generator, dtype=torch.float64)).Q


def prompt(seed=0):
    """Three virtual tokens after the text, from which the heads look for the label's word."""
    rows = torch.zeros(3, D_MODEL, dtype=torch.float64)
    rows[:, [_CONSTANT, VIRTUAL]] = 1
    generator = torch.Generator().manual_seed(seed)
    rows[:, _SEEN] = 0.1 * torch.randn(3, 20, generator=generator, dtype=torch.float64)
    return SoftPrompt((rows @ rotation()).float(), placement="suffix", provenance={}, seed=seed)


def sentences(n, seed=0):
    """Distinct labelled texts of 2 to 8 words, one of them "good" or "bad"; labels take turns."""
    generator = torch.Generator().manual_seed(seed)
    rows = {}
    while len(rows) < n:
        length = int(torch.randint(2, 9, (), generator=generator))
        words = [
            PLAIN_WORDS[i] for i in torch.randint(len(PLAIN_WORDS), (length,), generator=generator).tolist()
        ]
        label = len(rows) % 2
        words[int(torch.randint(length, (), generator=generator))] = ("bad", "good")[label]
        rows.setdefault(" ".join(words), label)
    return [{"text": text, "label": label} for text, label in rows.items()]


def label_of(text):
    """The label of a text of :func:`sentences` or :func:`twins`."""
    return int("good" in text.split())


def task(n_train=24, n_select=16, n_report=16, seed=0):
    """The task that the model solves without an error."""
    rows = sentences(n_train + n_select + n_report, seed)
    data = {
        "train": rows[:n_train],
        "validation": rows[n_train : n_train + n_select],
        "test": rows[n_train + n_select :],
    }
    return Task.from_datasets(data, template="{text}", label="label", label_words=LABEL_WORDS, name="planted")


def twins(n_pairs=8, seed=1):
    """(clean, corrupted) texts that differ in the label's word alone; clean is label 0 and 1 in turn."""
    swap = {"good": "bad", "bad": "good"}
    return [
        (row["text"], " ".join(swap.get(word, word) for word in row["text"].split()))
        for row in sentences(n_pairs, seed)
    ]
