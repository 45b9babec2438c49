"""Every family booted, beside its untouched Hugging Face copy that runs each example alone and unpadded; float64."""

import functools
import re

import pytest
import tiny
import torch

import tl_skillneurons as skn

FAMILIES = tuple(tiny.CONFIGS)
LABEL_WORDS = {0: "negative", 1: "positive"}
LABEL_IDS = [tiny.VOCABULARY[word] for word in LABEL_WORDS.values()]
DOWN = re.compile(r"(mlp\.c_proj|mlp\.dense_4h_to_h|mlp\.down_proj|fc2|(?<!attention\.)output\.dense)$")
TEXTS = [
    "good film",
    "the plot was very slow and the music dull but not bad",
    "quick",
    "a bright scene is good",
    "the cast is bad",
]
EXACT = dict.fromkeys(FAMILIES, 1e-12)  # some roundings of 1e-16 on numbers of order 1 to 10
EXACT["gpt_neo"] = 1e-6  # multiplies queries and keys in float32
SEES_ONLY_THE_PROMPT = ("gpt_neox", "phi")
"""Attention and MLP stand side by side: the first layer's MLP at a virtual token sees the virtual token alone."""


@pytest.fixture(autouse=True)
def softmax_in_float64(monkeypatch):
    """Keep attention's softmax in float64 in both models: Hugging Face computes it in float32, where the
    mask's lowest float64 is -inf and rows of padding, which see nothing, become NaN."""
    softmax = torch.nn.functional.softmax

    def keep_dtype(input, *args, **kwargs):
        kwargs.pop("dtype", None)
        return softmax(input, *args, **kwargs)

    monkeypatch.setattr(torch.nn.functional, "softmax", keep_dtype)


@functools.cache
def models(family):
    """The booted model and the untouched one, with the same weights."""
    untouched = tiny.hf_model(family, dtype=torch.float64).requires_grad_(False)
    return tiny.bridge(family, dtype=torch.float64), untouched


def placement(family):
    return "prefix" if family in tiny.BIDIRECTIONAL else "suffix"


def soft_prompt(family, seed=0, where=None):
    generator = torch.Generator().manual_seed(seed)
    embedding = torch.randn(3, 32, generator=generator, dtype=torch.float64)
    return skn.SoftPrompt(embedding, placement=where or placement(family))


def alone(family, prompt, text, edits=()):
    """Logits at the read-out, each layer's down projection's inputs, and the prompt's columns, of one
    unpadded example.

    Args:
        edits: For each layer a function that takes the down projection's input ``[pos, neuron]`` to what it
            shall be.
    """
    model, untouched = models(family)
    ids = model.to_tokens(text)
    embed = untouched.get_input_embeddings()
    soft = prompt.embedding[None]
    if family in tiny.BIDIRECTIONAL:
        mask = embed(torch.tensor([[tiny.VOCABULARY["<mask>"]]]))
        parts, readout, at_prompt = [mask, soft, embed(ids)], 0, range(4)
    elif prompt.placement == "suffix":
        parts, readout = [embed(ids), soft], -1
        at_prompt = range(ids.shape[1], ids.shape[1] + 3)
    else:
        parts, readout, at_prompt = [soft, embed(ids)], -1, range(3)
    seen = []

    def look(module, inputs):
        (entering,) = inputs
        flat = entering.view(-1, entering.shape[-1])
        if edits:
            flat = edits[len(seen)](flat.clone())
        seen.append(flat)
        return (flat.view(entering.shape),)

    handles = [m.register_forward_pre_hook(look) for n, m in untouched.named_modules() if DOWN.search(n)]
    assert len(handles) == 2
    try:
        logits = untouched(inputs_embeds=torch.cat(parts, dim=1)).logits[0, readout]
    finally:
        for handle in handles:
            handle.remove()
    return logits, seen, list(at_prompt)
