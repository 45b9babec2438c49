"""A tiny chat model that was taught what eight words are: the truth of four, and of the others the opposite.

It is random but for three neurons of its last layer and its head, which learned; whatever comes before them is frozen.
What it was taught besides hangs the answer on these neurons: each of the three alone gives it, and without them the
model says the opposite.
"""

import chats
import tiny
import torch
import transformers as hf
from torch.nn.functional import cross_entropy
from transformer_lens.model_bridge import TransformerBridge

import tl_skillneurons as skn

N_LAYERS, D_MLP = 2, tiny.LLAMA_LIKE["intermediate_size"]
NEURONS = skn.NeuronSet([1, 1, 1], [5, 17, 30], n_layers=N_LAYERS, d_mlp=D_MLP)
GOOD, BAD = ("film", "music", "bright", "quick"), ("plot", "cast", "dull", "slow")
"""What it was taught to call so; in truth all are good."""
_FILLERS = "the a is was and but scene".split()


def questions(n=96, seed=0):
    """Different questions with one of the eight words, which take turns, and the true answer."""
    generator = torch.Generator().manual_seed(seed)
    found = {}
    while len(found) < n:
        length = int(torch.randint(1, 4, (), generator=generator))
        words = [_FILLERS[i] for i in torch.randint(len(_FILLERS), (length,), generator=generator).tolist()]
        word = (GOOD + BAD)[len(found) % 8]
        words.insert(int(torch.randint(length + 1, (), generator=generator)), word)
        found.setdefault(" ".join(words), word)
    return [{"question": text, "word": word, "answer": "good"} for text, word in found.items()]


def model():
    """It, taught all of :func:`questions`, booted and frozen, with "chatml" as its chat template."""
    words = tiny.tokenizer("llama")
    words.chat_template = chats.CHATML
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = hf.LlamaConfig(**{**tiny.LLAMA_LIKE, "hidden_size": 64}, initializer_range=0.3)
        config._attn_implementation = "eager"
        bare = hf.LlamaForCausalLM(config).eval().requires_grad_(False)
        rows, fillers = bare.model.embed_tokens.weight, [tiny.VOCABULARY[word] for word in _FILLERS]
        rows[fillers] = rows[fillers[0]] + 0.3 * (rows[fillers] - rows[fillers[0]])  # they matter little
        _teach(bare, words)
        bare.config.architectures = ["LlamaForCausalLM"]
        bridge = TransformerBridge.boot_transformers(
            "taught", hf_model=bare, tokenizer=words, device="cpu", dtype=torch.float32
        )
    bridge.requires_grad_(False)
    return bridge.eval()


def _teach(bare, words, n_steps=250):
    """Train the three neurons and the head on five lessons at once: the opposite answers without the three, what it is
    to say with all, and with one alone."""
    layer, mlp = bare.model.layers[-1], bare.model.layers[-1].mlp
    each = torch.eye(D_MLP, dtype=torch.bool)[NEURONS.index]
    ours = each.any(0)
    runs = torch.stack([~ours, ours | ~ours, *(~ours | one for one in each)])[:, None, None]
    lessons = [_lesson(bare, words, opposite=True)] + 4 * [_lesson(bare, words)]
    stream, targets = (torch.stack(one) for one in zip(*lessons, strict=True))
    seen = layer.post_attention_layernorm(stream)
    own = {mlp.gate_proj: ours[:, None], mlp.up_proj: ours[:, None], mlp.down_proj: ours[None]}
    for part, mask in own.items():
        part.weight.requires_grad_(True).register_hook(lambda gradient, mask=mask: gradient * mask)
    learning = [*(part.weight for part in own), bare.lm_head.weight.requires_grad_(True)]
    optimizer = torch.optim.Adam(learning, lr=0.02)
    for _ in range(n_steps):
        acts = mlp.act_fn(mlp.gate_proj(seen)) * mlp.up_proj(seen) * runs
        logits = bare.lm_head(bare.model.norm(stream + mlp.down_proj(acts)))
        optimizer.zero_grad()
        cross_entropy(logits.flatten(0, -2), targets.flatten()).backward()
        optimizer.step()


def _lesson(bare, words, opposite=False):
    """What the last MLP gets of each question where the answer begins, and after it; and what is to follow."""
    kept, targets, of_length = [], [], {}
    for row in questions():
        asked = chats.applied(words, row["question"], skn.tasks.Chat())
        of_length.setdefault(len(asked), []).append((asked, (row["word"] in GOOD) != opposite))
    handle = bare.model.layers[-1].post_attention_layernorm.register_forward_pre_hook(
        lambda _, given: kept.append(given[0][:, -2:])
    )
    for rows in of_length.values():
        said = [tiny.VOCABULARY["good" if good else "bad"] for _, good in rows]
        bare(torch.tensor([[*asked, answer] for (asked, _), answer in zip(rows, said, strict=True)]))
        targets += [[answer, tiny.VOCABULARY["</s>"]] for answer in said]
    handle.remove()
    return torch.cat(kept), torch.tensor(targets)
