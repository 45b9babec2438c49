"""A prompted model: batches, padding, read-outs, what is refused, and what is left as it was."""

import copy
from contextlib import nullcontext

import jaxtyping
import pytest
import tiny
import torch
from toy import QUIET
from transformer_lens import patching
from transformer_lens.model_bridge.sources._bridge_builder import build_bridge_from_module

import tl_skillneurons as skn
from tl_skillneurons.interventions import Noise
from tl_skillneurons.prompts.positions import current_tokens
from tl_skillneurons.prompts.run import RunOptions

LABEL_WORDS = {0: "negative", 1: "positive"}
LABEL_IDS = [tiny.VOCABULARY["negative"], tiny.VOCABULARY["positive"]]
TEXTS = [row["text"] for row in tiny.sentences(9, seed=4)]
EXACT = 1e-12  # a few roundings of 1e-16 on numbers of order 1, in models that compute in float64 throughout


def prompt_for(family, seed=0, n=3, width=32, dtype=torch.float64, **more):
    generator = torch.Generator().manual_seed(seed)
    placement = "prefix" if family in tiny.BIDIRECTIONAL else "suffix"
    embedding = torch.randn(n, width, generator=generator, dtype=torch.float64).to(dtype)
    return skn.SoftPrompt(embedding, **{"placement": placement, **more})


@pytest.fixture(scope="module")
def gpt2():
    return tiny.bridge("gpt2", dtype=torch.float64)


@pytest.fixture(scope="module")
def bert():
    return tiny.bridge("bert", dtype=torch.float64)


@pytest.fixture(scope="module")
def models(gpt2, bert):
    return {"gpt2": gpt2, "bert": bert}


@pytest.fixture(scope="module")
def bare_encoder():
    """A BERT whose checkpoint had no language-model head, as ``load_model`` marks it."""
    model = tiny.bridge("bert", dtype=torch.float64)
    model.original_model.config.architectures = ["BertModel"]
    return model


@pytest.mark.parametrize("family", ["gpt2", "bert"])
@torch.no_grad()
def test_rows_come_in_the_callers_order_whatever_the_batch_size_and_padding_side(models, family):
    prompt = prompt_for(family)
    alone = skn.PromptedModel(models[family], prompt, LABEL_WORDS)
    expected = torch.cat([alone.class_logits([text]) for text in TEXTS])
    assert len(expected.unique(dim=0)) == len(TEXTS)  # no two rows could be exchanged unseen
    for side in ("left", "right"):
        for batch_size in (1, 7, 100):
            run = RunOptions(batch_size=batch_size)
            prompted = skn.PromptedModel(models[family], prompt, LABEL_WORDS, padding_side=side, run=run)
            logits = prompted.class_logits(TEXTS)
            torch.testing.assert_close(logits, expected, rtol=0, atol=EXACT)


@pytest.mark.parametrize("family", ["gpt2", "bert"])
@torch.no_grad()
def test_class_logits_are_the_label_words_columns_in_the_order_of_the_class_ids(models, family):
    prompt = prompt_for(family)
    words = {2: "positive", 0: LABEL_IDS[0], 1: "bad"}
    prompted = skn.PromptedModel(models[family], prompt, words)
    assert prompted.n_classes == 3
    tokens = prompted.tokens(TEXTS)
    full = prompted.run_with_hooks(TEXTS)
    assert full.shape == (*tokens.ids.shape, tiny.D_VOCAB)
    columns = [LABEL_IDS[0], tiny.VOCABULARY["bad"], LABEL_IDS[1]]
    expected = full[torch.arange(len(TEXTS)), tokens.readout][:, columns]
    torch.testing.assert_close(prompted.class_logits(TEXTS), expected, rtol=0, atol=EXACT)


@torch.no_grad()
def test_the_final_softcap_of_gemma2_is_applied():
    model = tiny.bridge("gemma2")
    model.original_model.config.final_logit_softcapping = 0.5
    model.cfg.output_logits_soft_cap = 0.5
    prompted = skn.PromptedModel(model, prompt_for("gemma2"), LABEL_WORDS)
    tokens = prompted.tokens(TEXTS)
    full = prompted.run_with_hooks(TEXTS)[torch.arange(len(TEXTS)), tokens.readout][:, LABEL_IDS]
    assert 0.4 < full.abs().max() < 0.5  # the cap bites
    torch.testing.assert_close(prompted.class_logits(TEXTS), full, rtol=0, atol=1e-6)  # float32


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@torch.no_grad()
def test_half_precision_gives_float32_logits_near_those_of_float32(dtype):
    expected = skn.PromptedModel(tiny.bridge("llama"), prompt_for("llama"), LABEL_WORDS).class_logits(TEXTS)
    model = tiny.bridge("llama", dtype=dtype)
    logits = skn.PromptedModel(
        model, prompt_for("llama"), LABEL_WORDS, run=RunOptions(batch_size=4)
    ).class_logits(TEXTS)
    assert logits.dtype == torch.float32
    torch.testing.assert_close(logits, expected, rtol=0, atol=0.1)  # 2 layers of roundings of 2 ** -8


@torch.no_grad()
def test_a_bare_encoder_is_read_out_at_the_mask_by_the_prompts_own_readout(bare_encoder):
    readout = torch.randn(3, 32, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    prompt = prompt_for("bert", readout=readout)
    prompted = skn.PromptedModel(bare_encoder, prompt, run=RunOptions(batch_size=4))
    assert prompted.n_classes == 3
    untouched = tiny.hf_model("bert", dtype=torch.float64)
    embed = untouched.get_input_embeddings()
    expected = []
    for text in TEXTS:
        ids = torch.tensor([tiny.tokenizer("bert")(text)["input_ids"]])
        mask = torch.tensor([[tiny.VOCABULARY["<mask>"]]])
        embeds = torch.cat([embed(mask), prompt.embedding[None], embed(ids)], dim=1)
        expected.append(untouched.bert(inputs_embeds=embeds).last_hidden_state[0, 0] @ readout.T)
    logits = prompted.class_logits(TEXTS)
    torch.testing.assert_close(logits, torch.stack(expected), rtol=0, atol=EXACT)


@torch.no_grad()
def test_a_prompt_with_a_readout_of_its_own_needs_no_label_words_on_a_causal_model_either(gpt2):
    readout = torch.randn(2, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    prompted = skn.PromptedModel(gpt2, prompt_for("gpt2", readout=readout))
    tokens = prompted.tokens(TEXTS)
    _, cache = prompted.run_with_cache(TEXTS, names_filter=["unembed.hook_in"])
    hidden = cache["unembed.hook_in"][torch.arange(len(TEXTS)), tokens.readout]
    torch.testing.assert_close(prompted.class_logits(TEXTS), hidden @ readout.T, rtol=0, atol=EXACT)


@pytest.mark.parametrize("family", ["gpt2", "bert"])
@torch.no_grad()
def test_cached_activations_stand_where_tokens_says(models, family):
    prompted = skn.PromptedModel(models[family], prompt_for(family), LABEL_WORDS)
    tokens = prompted.tokens(TEXTS)
    logits, cache = prompted.run_with_cache(TEXTS)
    assert torch.equal(logits, prompted.run_with_hooks(TEXTS))
    assert cache["blocks.1.mlp.hook_post"].shape == (*tokens.ids.shape, 48)
    embedded = cache["embed.hook_out"]
    virtual = tokens.prompt_columns()[:, -3:]
    rows = torch.arange(len(TEXTS))[:, None]
    assert torch.equal(embedded[rows, virtual], prompted.prompt.embedding.expand(len(TEXTS), -1, -1))
    own = tokens.is_text
    assert torch.equal(embedded[own], models[family].embed.W_E[tokens.ids[own]])


@torch.no_grad()
def test_hooks_given_to_class_logits_run_in_every_batch_and_take_effect(gpt2):
    prompted = skn.PromptedModel(gpt2, prompt_for("gpt2"), LABEL_WORDS, run=RunOptions(batch_size=4))
    shapes = []

    def zero(act, hook):
        shapes.append(len(act))
        return torch.zeros_like(act)

    hooks = [("blocks.1.mlp.hook_post", zero)]
    logits = prompted.class_logits(TEXTS, hooks)
    assert shapes == [4, 4, 1]
    tokens = prompted.tokens(TEXTS)
    full = prompted.run_with_hooks(TEXTS, hooks)[torch.arange(len(TEXTS)), tokens.readout][:, LABEL_IDS]
    torch.testing.assert_close(logits, full, rtol=0, atol=EXACT)
    assert not torch.allclose(logits, prompted.class_logits(TEXTS))


@pytest.mark.parametrize("family", tiny.CONFIGS)
def test_texts_are_tokenized_as_transformerlens_does(family):
    model = tiny.bridge(family)
    asked = [None] if family in tiny.BIDIRECTIONAL else [None, False, True]
    for prepend_bos in asked:
        prompted = skn.PromptedModel(model, prompt_for(family), prepend_bos=prepend_bos)
        encoded = prompted.encode(TEXTS)
        for text, ids in zip(TEXTS, encoded, strict=True):
            assert ids == model.to_tokens(text, prepend_bos=prepend_bos)[0].tolist()
    if len(asked) > 1:
        assert ids[0] == tiny.VOCABULARY["<s>"] and ids[1:] == tiny.tokenizer(family)(text)["input_ids"][1:]


def test_a_tokenizer_that_adds_no_bos_gets_one_by_hand_where_asked():
    words = tiny.tokenizer("bert").backend_tokenizer
    words.post_processor = None
    kind = type(tiny.tokenizer("bert"))
    named = {"pad_token": "<pad>", "unk_token": "<unk>", "eos_token": "</s>", "bos_token": "<s>"}
    model = tiny.bridge("llama")
    model.tokenizer = kind(tokenizer_object=words, **named, name_or_path="tiny", add_bos_token=True)
    plain = [[tiny.VOCABULARY[word] for word in text.split()] for text in TEXTS]
    for prepend_bos in (True, False):
        encoded = skn.PromptedModel(model, None, prepend_bos=prepend_bos).encode(TEXTS)
        assert encoded == [[tiny.VOCABULARY["<s>"]] * prepend_bos + ids for ids in plain]
        assert encoded == [model.to_tokens(text, prepend_bos=prepend_bos)[0].tolist() for text in TEXTS]


def test_the_bos_convention_that_a_prompt_was_trained_under_is_obeyed(gpt2):
    with_bos = skn.PromptedModel(gpt2, prompt_for("gpt2"), LABEL_WORDS)
    without = skn.PromptedModel(gpt2, prompt_for("gpt2", prepend_bos=False), LABEL_WORDS)
    overridden = skn.PromptedModel(gpt2, prompt_for("gpt2", prepend_bos=False), LABEL_WORDS, prepend_bos=True)
    assert gpt2.cfg.default_prepend_bos
    assert without.encode(TEXTS) == [ids[1:] for ids in with_bos.encode(TEXTS)]
    assert overridden.encode(TEXTS) == with_bos.encode(TEXTS)


def test_an_end_token_that_is_also_the_unknown_token_is_special_and_a_mere_unknown_word_is_not(gpt2, bert):
    own = skn.PromptedModel(gpt2, prompt_for("gpt2")).tokens(["unheard of words"])
    assert own.is_special.sum() == 1  # BOS
    own = skn.PromptedModel(bert, prompt_for("bert")).tokens(["unheard of words"])
    assert own.is_special.sum() == 2  # [CLS] and [SEP]
    model = tiny.bridge("gpt2")
    model.tokenizer.unk_token = model.tokenizer.bos_token  # as GPT-2's tokenizer has it
    prompted = skn.PromptedModel(model, prompt_for("gpt2"))
    tokens = prompted.tokens(["a film"])
    assert tokens.is_special.tolist() == [[True, False, False, False, False, False]]
    with pytest.raises(ValueError, match="text 0 has no token of its own"):
        prompted.tokens([""])


def test_texts_over_the_limit_lose_their_end_and_are_counted(gpt2, bert):
    long = " ".join(["good"] * 60)
    for model, family in ((gpt2, "gpt2"), (bert, "bert")):
        tokens = skn.PromptedModel(model, prompt_for(family)).tokens([long, "bad"])
        assert tokens.ids.shape == (2, 48) and tokens.n_truncated == 1
        short = skn.PromptedModel(model, prompt_for(family), max_length=10).tokens([long, "bad"])
        assert short.ids.shape == (2, 10) and short.is_prompt.sum(1).unique().numel() == 1
    assert short.ids[0, -1] == tiny.VOCABULARY["</s>"]
    with torch.no_grad():
        assert skn.PromptedModel(gpt2, prompt_for("gpt2"), LABEL_WORDS).class_logits([long]).isfinite().all()


LABELS = [
    (
        {0: "good bad", 1: "good"},
        r"'good bad' \(\[\d+, \d+\]\) begins with all the tokens of 'good' \(\[\d+\]\)",
    ),
    ({0: "good bad", 1: "good  bad"}, "each label needs a word of its own"),
    (
        {0: "good Bad", 1: "positive"},
        r"'good Bad' holds what is not in the vocabulary \(\['good', '<unk>'\]\); try",
    ),
    ({0: "Good", 1: "positive"}, "'Good' is not in the vocabulary.*try ' good'"),
    (
        {0: "unheard", 1: "positive"},
        "'unheard' is not in the vocabulary.*choose another word, or give a token id",
    ),
    ({0: "good", 1: " good"}, r"each label needs a word of its own, got .* with token ids \[(\d+), \1\]"),
    ({0: "good", 1: 40}, r"the token id of label 1 must be in \[0, 40\), got 40"),
    ({0: "good", 1: -1}, r"must be in \[0, 40\), got -1"),
    ({0: "good"}, "a word for each of at least two classes, got {0: 'good'}"),
    ({}, "answers with words, and the task has none for its labels: give label_words"),
]


@pytest.mark.parametrize("word", [None, 1.5, True, ["good"]])
def test_a_label_word_that_is_no_word_and_no_id_is_refused(unchecked, gpt2, word):
    with pytest.raises(TypeError, match="label word of label 1 must be a string or a token id, got"):
        skn.PromptedModel(gpt2, prompt_for("gpt2"), {0: "good", 1: word})


@pytest.mark.parametrize("label_words, message", LABELS)
def test_label_words_that_cannot_be_read_are_refused(gpt2, label_words, message):
    with pytest.raises(ValueError, match=message):
        skn.PromptedModel(gpt2, prompt_for("gpt2"), label_words)


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"prompt": prompt_for("gpt2", width=16)}, "the prompt's embeddings are 16 wide .* are 32"),
        ({"max_length": 49}, "max_length must be at most 48 for tiny, got 49"),
        ({"max_length": 0}, "max_length must be an integer of at least 1, got 0"),
        (
            {"padding_side": "lift"},
            "padding_side must be one of 'left', 'right', got 'lift'; did you mean 'left'",
        ),
    ],
)
def test_settings_that_do_not_go_together_are_refused(gpt2, settings, message):
    with pytest.raises(ValueError, match=message):
        skn.PromptedModel(**{"model": gpt2, "prompt": prompt_for("gpt2"), **settings})


@pytest.mark.parametrize(
    "call, kind, message",
    [
        (lambda p: p.class_logits([]), ValueError, "texts must not be empty"),
        (lambda p: p.tokens([]), ValueError, "texts must not be empty"),
        (lambda p: p.run_with_cache([]), ValueError, "texts must not be empty"),
        (lambda p: p.class_logits(["good", ""]), ValueError, "has no token of its own"),
        (lambda p: p.tokens(["good", " "]), ValueError, "text 1 has no token of its own"),
        (
            lambda p: p.class_logits("good"),
            TypeError,
            "a list of strings, got one string 'good'; put it in a list",
        ),
        (
            lambda p: RunOptions(batch_size=0),
            ValueError,
            "batch_size must be an integer of at least 1",
        ),
        (
            lambda p: p.class_logits(["good"], [("unembed.hook_out", lambda act, hook: act)]),
            ValueError,
            "a hook at 'unembed.hook_out' would never fire",
        ),
        (lambda p: p.class_logits(["good"], [("blocks.9.mlp.hook_post", print)]), KeyError, "blocks.9"),
    ],
)
def test_what_cannot_run_is_refused(gpt2, call, kind, message):
    with pytest.raises(kind, match=message):
        call(skn.PromptedModel(gpt2, prompt_for("gpt2"), LABEL_WORDS))


def _no_tokenizer():
    untouched = tiny.hf_model("gpt2")
    return build_bridge_from_module(untouched, "GPT2LMHeadModel", hf_config=untouched.config).eval()


def _no_mask():
    model = tiny.bridge("bert")
    model.tokenizer.mask_token = None
    return model


@pytest.mark.parametrize(
    "make, prompt, label_words, message",
    [
        (lambda: tiny.bridge("gpt2").train(), None, None, "needs the model in eval mode"),
        (_no_tokenizer, None, None, "has no tokenizer; boot it with tokenizer="),
        (_no_mask, prompt_for("bert"), LABEL_WORDS, "the tokenizer of tiny has no mask token to read out at"),
        (lambda: tiny.bridge("bert"), None, LABEL_WORDS, "is read out at the mask of its prompt; give"),
        (lambda: tiny.bridge("gpt2"), prompt_for("gpt2"), None, "class logits need label words"),
        (
            lambda: tiny.bridge("bert"),
            prompt_for("gpt2"),
            LABEL_WORDS,
            "is bidirectional and takes its prompt as a prefix",
        ),
    ],
)
def test_models_that_cannot_answer_are_refused(make, prompt, label_words, message):
    with pytest.raises(ValueError, match=message):
        skn.PromptedModel(make(), prompt, label_words).class_logits(["good film"])


@pytest.mark.parametrize("name", ["mlm_head.hook_out", "unembed.hook_in", "unembed.hook_out"])
def test_hooks_beyond_a_linear_readout_are_refused(bare_encoder, name):
    prompted = skn.PromptedModel(bare_encoder, prompt_for("bert", readout=torch.zeros(2, 32).double()))
    with pytest.raises(ValueError, match=f"a hook at '{name}' would never fire"):
        prompted.class_logits(["good"], [(name, lambda act, hook: act)])


def test_class_logits_that_are_not_finite_name_the_text(gpt2):
    prompted = skn.PromptedModel(gpt2, prompt_for("gpt2"), LABEL_WORDS, run=RunOptions(batch_size=1))
    length = len(prompted.tokens(["good"]).ids[0])
    spoil = [("ln_final.hook_out", lambda act, hook: act if act.shape[1] > length else act / 0)]
    with pytest.raises(ValueError, match=r"not finite for text 1 \('good'\).* float32"):
        prompted.class_logits(["the plot was", "good", "a film"], spoil)


def test_label_words_on_an_encoder_without_a_head_are_refused(bare_encoder):
    with pytest.raises(
        ValueError, match=r"no language-model head, so label words can't be read; use a prompt with a linear"
    ):
        skn.PromptedModel(bare_encoder, prompt_for("bert"), LABEL_WORDS)


def state(model):
    """All that a borrowed model must have back: hooks, contexts, flags, modes, weights; and the random state."""
    points = {
        name: (len(point.fwd_hooks), len(point.bwd_hooks), len(point._forward_hooks), dict(point.ctx))
        for name, point in model.hook_dict.items()
    }
    parameters = [(p.requires_grad, p.grad is None, p.sum().item()) for p in model.parameters()]
    modes = [part.training for part in model.modules()]
    return points, parameters, modes, torch.get_rng_state().tolist(), model.context_level


def boom(act, hook):
    raise RuntimeError("on purpose")


@pytest.mark.parametrize("fails", [False, True], ids=["success", "exception"])
@pytest.mark.parametrize("family", ["gpt2", "bert"])
def test_the_model_comes_back_as_it_was(family, fails):
    model = tiny.bridge(family)
    next(iter(model.parameters())).requires_grad_(True)
    model.add_hook("blocks.0.hook_in", lambda act, hook: None)
    prompt, task = prompt_for(family), tiny.task()
    prompted = skn.PromptedModel(model, prompt, LABEL_WORDS)
    hooks = [("blocks.1.mlp.hook_post", boom)] if fails else []
    neurons = skn.NeuronSet([0], [1])
    noise = skn.ablate(neurons, how=Noise(0.1, absolute=True), seed=3)
    before = state(model)
    for call in (
        lambda: prompted.class_logits(TEXTS, [*noise, *hooks]),
        lambda: prompted.run_with_hooks(TEXTS, [*noise, *hooks]),
        lambda: prompted.run_with_cache(TEXTS) if not fails else prompted.run_with_hooks(TEXTS, hooks),
        lambda: skn.score_neurons(model, prompt, task, fwd_hooks=[*noise, *hooks], run=QUIET),
    ):
        with pytest.raises(RuntimeError, match="on purpose") if fails else nullcontext():
            call()
        assert state(model) == before
    with (
        pytest.raises(RuntimeError, match="on purpose") if fails else nullcontext(),
        prompt.attached(model) as virtual,
    ):
        model.run_with_hooks(virtual.ids[None], fwd_hooks=hooks)
    assert state(model) == before


@torch.no_grad()
def test_inside_attached_the_real_models_tools_see_the_prompted_model(gpt2):
    prompt = prompt_for("gpt2")
    prompted = skn.PromptedModel(gpt2, prompt, LABEL_WORDS)
    texts = ["the film was good", "the plot is bad"]
    expected_logits, expected_cache = prompted.run_with_cache(texts)
    with prompt.attached(gpt2) as virtual:
        text = gpt2.to_tokens(texts)
        tokens = torch.cat([text, virtual.ids.expand(len(text), -1)], dim=1)
        logits, cache = gpt2.run_with_cache(tokens)
        assert torch.equal(logits, expected_logits)
        for name in (
            "embed.hook_out",
            "blocks.0.hook_resid_post",
            "blocks.1.mlp.hook_post",
            "blocks.1.attn.hook_pattern",
        ):
            assert torch.equal(cache[name], expected_cache[name])
        gpt2.reset_hooks()
        assert torch.equal(gpt2(tokens), expected_logits)

        def metric(logits):
            return logits[:, -1, LABEL_IDS[1]].sum() - logits[:, -1, LABEL_IDS[0]].sum()

        patched = patching.get_act_patch_resid_pre(
            gpt2, tokens[1:], gpt2.run_with_cache(tokens[:1])[1], metric
        )
    assert patched.shape == (2, tokens.shape[1])
    torch.testing.assert_close(patched[0, -3:], metric(logits[1:]).float().expand(3))  # the rows are the same


def test_gradients_reach_the_prompt_inside_attached(gpt2):
    prompt = prompt_for("gpt2")
    with prompt.attached(gpt2) as virtual:
        gpt2(torch.cat([gpt2.to_tokens("good film"), virtual.ids[None]], dim=1))[0, -1, 5].backward()
    assert prompt.embedding.grad.abs().amin() > 0
    assert all(p.grad is None for p in gpt2.parameters())


@torch.no_grad()
def test_a_prompt_attached_inside_another_gives_way_to_it_afterwards(gpt2):
    outer, inner = prompt_for("gpt2", seed=0), prompt_for("gpt2", seed=1, n=2)
    with outer.attached(gpt2) as virtual:
        tokens = torch.cat([gpt2.to_tokens("good film"), virtual.ids[None]], dim=1)
        before = gpt2(tokens)
        with inner.attached(gpt2) as other:
            assert other.ids.tolist() == [40, 41]
            inside = gpt2(torch.cat([gpt2.to_tokens("good film"), other.ids[None]], dim=1))
        prompted = skn.PromptedModel(gpt2, inner, LABEL_WORDS)
        nested = prompted.class_logits(["good film"])
        assert torch.equal(gpt2(tokens), before)
        point = gpt2.hook_dict["blocks.0.mlp.hook_post"]
        assert current_tokens(point).is_prompt.tolist() == [[False] * 3 + [True] * 3]
    assert torch.equal(prompted.run_with_hooks(["good film"]), inside)
    # nested, every position ran; alone, only what is read
    torch.testing.assert_close(prompted.class_logits(["good film"]), nested, rtol=0, atol=EXACT)


@torch.no_grad()
def test_ids_beyond_the_virtual_tokens_are_refused_and_virtual_ones_do_not_run_unattached(gpt2):
    prompt = prompt_for("gpt2")
    with prompt.attached(gpt2) as virtual:
        with pytest.raises(
            ValueError, match=r"token ids must be below 43 \(40 of the vocabulary and 3 virtual"
        ):
            gpt2(torch.tensor([[7, 43]]))
        assert gpt2(torch.tensor([[7, 42]])).isfinite().all()
        with pytest.raises(RuntimeError, match="soft prompts need token input"):
            gpt2.hook_dict["embed.hook_out"](torch.zeros(1, 1, 32))
    with pytest.raises(IndexError):
        gpt2(virtual.ids[None])


COMPATIBLE = ["gpt2", "llama", "bert"]


@pytest.mark.filterwarnings("ignore:.*does not support fold_ln")  # TransformerLens tells so of BERT
@pytest.mark.parametrize("family", COMPATIBLE)
@torch.no_grad()
def test_compatibility_mode_changes_neither_scores_nor_class_logit_differences(family):
    model = tiny.bridge(family, dtype=torch.float64)
    prompt, task = prompt_for(family), tiny.task()
    neurons = skn.NeuronSet([0, 0, 1], [1, 5, 7])
    hooks = [[], skn.ablate(neurons, how=Noise(3.0, absolute=True)), skn.ablate(neurons, positions="prompt")]

    def measured():
        run = RunOptions(batch_size=1, progress=False)
        prompted = skn.PromptedModel(model, prompt, LABEL_WORDS, run=run)
        logits = [prompted.class_logits(TEXTS, edits) for edits in hooks]
        return [row[:, 1] - row[:, 0] for row in logits], skn.score_neurons(model, prompt, task, run=run)

    differences, scores = measured()
    assert (differences[0] - differences[1]).abs().max() > 1e-2  # noise twice would be seen
    model.enable_compatibility_mode()
    model.requires_grad_(False)
    after, after_scores = measured()
    for one, other in zip(differences, after, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-5)  # it folds weights in float32
    torch.testing.assert_close(scores.baseline, after_scores.baseline, rtol=0, atol=1e-5)
    varies = scores.std > 1e-4
    assert torch.equal(scores.correct[varies], after_scores.correct[varies])


def test_without_the_shape_checker_the_errors_are_ordinary_ones(gpt2, monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # as users have it
    prompted = skn.PromptedModel(gpt2, prompt_for("gpt2"), LABEL_WORDS)
    with pytest.raises(TypeError, match="a list of strings"):
        prompted.tokens("good")
    with pytest.raises(TypeError, match="model must be a TransformerBridge, got"):
        skn.PromptedModel(copy, None)
