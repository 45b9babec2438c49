"""What a model writes: against Hugging Face's own generate, and against a slow loop of whole forwards with edits."""

import copy
import functools

import chats
import families
import pytest
import tiny
import torch
import untouched

import tl_skillneurons as skn
from tl_skillneurons.interventions import (
    ClassMean,
    GivenValues,
    Keep,
    Mean,
    Noise,
    Resample,
    Scale,
    Shift,
    Zero,
)
from tl_skillneurons.prompts import ActsAt, Completions, _ready
from tl_skillneurons.tasks.chat import Chat

TEXTS = [
    "the film was good",
    "a dull plot and a bad cast but not slow",
    "quick",
    "a bright scene is very slow",
]
NEURONS = [(layer, index) for layer in (0, 1) for index in (3, 7, 9, 20, 30)]
N = 6


@functools.cache
def booted(family):
    return families.bridge(family)


@functools.cache
def plain(family):
    return tiny.hf_model(family).requires_grad_(False)


def soft(n=3):
    return torch.randn(n, 32, generator=torch.Generator().manual_seed(0))


def prompted_model(family, placement="suffix", **options):
    return skn.PromptedModel(booted(family), skn.SoftPrompt(soft(), placement=placement), **options)


def values():
    draw = torch.Generator().manual_seed(1)
    return GivenValues(
        mean=torch.randn(2, 48, generator=draw),
        std=torch.rand(2, 48, generator=draw),
        class_mean=3 * torch.randn(2, 2, 48, generator=draw),
        activations=3 * torch.randn(6, 2, 48, generator=draw),
    )


@pytest.fixture
def routes(monkeypatch):
    """Whether each call ran on the model inside the bridge."""
    taken, inside = [], _ready._inside

    def spied(*args):
        taken.append((found := inside(*args)) is not None)
        return found

    monkeypatch.setattr(_ready, "_inside", spied)
    return taken


@pytest.mark.parametrize("family", ["llama", "gpt2", "gpt_neox", "qwen2", "gemma3"])
def test_without_interventions_it_is_what_the_untouched_model_writes(family, routes):
    prompted = skn.PromptedModel(booted(family), None)
    found = prompted.generate(TEXTS, 9)
    for ids, text in zip(found.token_ids, TEXTS, strict=True):
        asked = booted(family).to_tokens(text)
        options = {"attention_mask": torch.ones_like(asked), "pad_token_id": 0}
        alone = plain(family).generate(asked, max_new_tokens=9, do_sample=False, **options)
        assert list(ids) == alone[0, asked.shape[1] :].tolist()
    assert routes == [True] and prompted.generate(TEXTS, 9, use_past_kv_cache=False) == found
    assert len(set(found.token_ids)) > 1


def slow_loop(family, text, positions, placement):
    """Tokens of one text by whole forwards over embeddings, with ``NEURONS`` of all positions of a kind times 9."""
    model = plain(family)
    embed, ids = model.get_input_embeddings(), booted(family).to_tokens(text)[0].tolist()
    downs = [part for name, part in model.named_modules() if untouched.DOWN.search(name)]
    written = []
    while len(written) < N and tiny.IDS["eos_token_id"] not in written:
        n_bos = ids[:1].count(tiny.IDS["bos_token_id"])  # gpt_neox has none
        text = [(embed(torch.tensor(ids))[:n_bos], "special"), (embed(torch.tensor(ids))[n_bos:], "text")]
        prompt = [(soft(), "prompt")]
        parts = text + prompt if placement == "suffix" else prompt + text
        parts = [*parts, (embed(torch.tensor(written, dtype=torch.long)), "generated")]
        kinds = [kind for rows, kind in parts for _ in rows]
        here = [k for k, kind in enumerate(kinds) if positions in ("all", kind)]

        def edit(module, given, here=here):
            act = given[0].clone()
            rows = act.view(-1, act.shape[-1])
            for k in here:
                for layer, index in NEURONS:
                    if module is downs[layer]:
                        rows[k, index] *= 9
            return (act,)

        handles = [part.register_forward_pre_hook(edit) for part in downs]
        logits = model(inputs_embeds=torch.cat([rows for rows, _ in parts])[None]).logits[0, -1]
        for handle in handles:
            handle.remove()
        written.append(int(logits.argmax()))
    return tuple(written)


@pytest.mark.parametrize(
    ("family", "positions", "placement"),
    [
        *(("llama", positions, "suffix") for positions in ("all", "text", "special", "prompt", "generated")),
        ("gemma3", "text", "suffix"),
        ("gpt_neox", "generated", "suffix"),
        ("opt", "all", "suffix"),
        ("gpt2", "prompt", "prefix"),
    ],
)
def test_edits_act_where_they_say_as_in_a_slow_loop_of_whole_forwards(family, positions, placement, routes):
    prompted = prompted_model(family, placement)
    hooks = skn.ablate(NEURONS, how=Scale(9.0), positions=positions)
    found = prompted.generate(TEXTS, N, interventions=hooks)
    assert found.token_ids != prompted.generate(TEXTS, N).token_ids
    assert found.token_ids == tuple(slow_loop(family, text, positions, placement) for text in TEXTS)
    same = skn.ablate(NEURONS, how=Scale(9.0))
    assert prompted.generate(TEXTS, N, interventions=same, positions=positions).token_ids == found.token_ids
    assert routes == [True] * 3


def test_transformer_lens_own_generate_writes_the_same_after_virtual_tokens():
    prompted = prompted_model("gpt2")
    model, prompt = prompted.model, prompted.prompt
    found = prompted.generate(TEXTS[:1], N)
    with prompt.attached(model) as virtual:
        asked = torch.cat([model.to_tokens(TEXTS[0]), virtual.ids[None]], dim=1)
        ids = model.generate(asked, max_new_tokens=N, do_sample=False, verbose=False)
    assert ids[0, asked.shape[1] :].tolist() == list(found.token_ids[0])


def moving_average(act, hook):
    return act + act.cumsum(1)


KINDS = [
    *(Zero(), Mean(), ClassMean(), Resample(), Noise(2.0), Scale(2.0), Shift(1, by=4.0), Keep(Mean())),
    moving_average,
    lambda act, hook: 2 * act,
]


@pytest.mark.parametrize("how", KINDS, ids=lambda how: getattr(how, "name", how.__class__.__name__))
def test_no_kind_of_intervention_depends_on_kept_keys_batches_or_the_bridge(how, routes):
    known = not callable(how)
    hooks = skn.ablate(
        skn.NeuronSet.from_pairs(NEURONS, n_layers=2, d_mlp=48),
        how=how,
        values=values() if known and how.needs else None,
        classes=[0, 1, 1, 0] if known and how.needs_labels else None,
        positions="text" if isinstance(how, ClassMean) else "all",
        seed=4,
    )
    prompted = prompted_model("llama")
    found = prompted.generate(TEXTS, N, interventions=hooks)
    assert found.token_ids != prompted.generate(TEXTS, N).token_ids
    one_by_one = prompted_model("llama", run=skn.RunOptions(batch_size=1))
    assert one_by_one.generate(TEXTS, N, interventions=hooks).token_ids == found.token_ids
    whole = prompted.generate(TEXTS, N, interventions=hooks, use_past_kv_cache=False)
    assert whole.token_ids == found.token_ids
    nothing = ("blocks.1.hook_resid_pre", ActsAt("all", lambda act, hook: None))
    slower = prompted.generate(TEXTS, N, interventions=[*hooks, nothing])
    assert slower.token_ids == found.token_ids and routes == [True] * 4 + [False]


@pytest.mark.parametrize("family", ["granite", "gemma2", "phi3"])
def test_the_model_inside_and_the_bridge_write_the_same_after_virtual_tokens(family, routes):
    prompted = prompted_model(family)
    nothing = ("blocks.1.hook_resid_pre", ActsAt("all", lambda act, hook: None))
    with_bridge = prompted.generate(TEXTS, N, interventions=[nothing])
    assert prompted.generate(TEXTS, N).token_ids == with_bridge.token_ids and routes == [False, True]


def test_what_somebody_else_has_put_on_the_model_counts(routes):
    prompted = prompted_model("llama")
    model, hooks = prompted.model, skn.ablate(NEURONS, how=Scale(3.0))
    expected = prompted.generate(TEXTS, N, interventions=hooks).token_ids
    with model.hooks(fwd_hooks=hooks):
        assert prompted.generate(TEXTS, N).token_ids == expected
    own = copy.deepcopy(model.original_model.model.norm.weight.data)
    norm = model.original_model.model.norm
    inner = norm.original_component
    forward = inner.forward
    inner.forward = lambda x: forward(x).flip(-1)
    try:
        other = prompted.generate(TEXTS, N).token_ids
    finally:
        del inner.forward
    assert other != prompted.generate(TEXTS, N).token_ids and routes == [True, False, False, True]
    assert torch.equal(own, norm.weight.data)


def test_what_is_drawn_depends_on_the_seed_and_the_text_alone():
    prompted = prompted_model("llama")
    state = torch.get_rng_state()
    drawn = prompted.generate(TEXTS, N, temperature=2.0, seed=3)
    assert torch.equal(state, torch.get_rng_state())
    one_by_one = prompted_model("llama", run=skn.RunOptions(batch_size=1))
    again = one_by_one.generate(TEXTS, N, temperature=2.0, seed=3, use_past_kv_cache=False)
    assert again == drawn and prompted.generate(TEXTS, N, temperature=2.0, seed=4) != drawn
    other_order = prompted.generate([TEXTS[3], TEXTS[0], TEXTS[3]], N, temperature=2.0, seed=3).token_ids
    assert other_order[:2] == (drawn.token_ids[3], drawn.token_ids[0]) and other_order[2] != other_order[0]
    greedy = prompted.generate(TEXTS, N).token_ids
    assert drawn.token_ids != greedy
    assert prompted.generate(TEXTS, N, temperature=1.0, top_k=1).token_ids == greedy
    assert prompted.generate(TEXTS, N, temperature=1.0, top_p=1e-9).token_ids == greedy


def test_tokens_are_drawn_as_often_as_their_probabilities_say():
    prompted, n = skn.PromptedModel(booted("llama"), None), 4000
    drawn = prompted.generate(["quick"] * n, 1, temperature=0.7, seed=1)
    counts = torch.bincount(torch.tensor(drawn.token_ids)[:, 0], minlength=tiny.D_VOCAB).double()
    expected = n * (plain("llama")(booted("llama").to_tokens("quick")).logits[0, -1].double() / 0.7).softmax(
        0
    )
    often = expected > 5
    statistic = ((counts - expected)[often].square() / expected[often]).sum()
    assert statistic < often.sum() + 4 * (2 * often.sum()) ** 0.5  # four standard deviations of chi squared


def test_an_answer_stops_at_its_end_token_and_says_whether_it_did():
    prompted = prompted_model("gpt2")
    free = prompted.generate(TEXTS, N, end_ids=[])
    assert free.ended == (False,) * 4 and all(len(ids) == N for ids in free.token_ids)
    end = free.token_ids[1][2]
    found = prompted.generate(TEXTS, N, end_ids=[end])
    for whole, ids, ended in zip(free.token_ids, found.token_ids, found.ended, strict=True):
        assert ended == (end in whole)
        assert ids == (whole[: whole.index(end) + 1] if ended else whole)
    assert found.ended[1] and "ended" in found.to_dataframe()
    words = {number: word for word, number in tiny.VOCABULARY.items() if word not in tiny.SPECIAL[:3]}
    said = [" ".join(words[i] for i in ids if i in words) for ids in found.token_ids]
    assert [" ".join(answer.split()) for answer in found.answers] == said


def test_the_models_own_generation_settings_count():
    model = families.bridge("llama")
    model.original_model.generation_config.repetition_penalty = 5.0
    model.original_model.generation_config.eos_token_id = [2, 11]
    found = skn.PromptedModel(model, None).generate(TEXTS, N)
    judge = copy.deepcopy(plain("llama"))
    judge.generation_config.repetition_penalty, judge.generation_config.eos_token_id = 5.0, [2, 11]
    for ids, text in zip(found.token_ids, TEXTS, strict=True):
        asked = model.to_tokens(text)
        alone = judge.generate(asked, max_new_tokens=N, do_sample=False, pad_token_id=0)
        assert list(ids) == alone[0, asked.shape[1] :].tolist()
    assert found.token_ids != skn.PromptedModel(booted("llama"), None).generate(TEXTS, N).token_ids


def test_answers_are_kept_with_what_made_them(tmp_path):
    prompted = prompted_model("llama", max_length=20)
    hooks = skn.ablate(NEURONS, how=Scale(2.0), positions="generated")
    found = prompted.generate(TEXTS, N, interventions=hooks, temperature=1.0, seed=7)
    assert Completions.load(found.save(tmp_path / "answers.json")) == found
    assert found.settings["writing"]["seed"] == 7 and found.settings["max_length"] == 20
    told = dict(found.settings["interventions"][0])
    assert len(told.pop("digest")) == 64
    assert told == {"hook": "blocks.0.mlp.hook_post", "what": "scale 2 of 5", "positions": "generated"}
    assert repr(found).startswith("Completions(n=4, n_tokens=")
    assert list(found.to_dataframe()) == ["text", "answer", "n_tokens", "ended"]


@pytest.mark.parametrize(
    "other",
    [
        skn.ablate([(0, 3), (0, 9)], how="mean", values=torch.zeros(2, 48), positions="generated"),
        skn.ablate([(0, 3), (0, 7)], how="mean", values=torch.ones(2, 48), positions="generated"),
        skn.ablate([(0, 3), (0, 7)], how="zero", positions="generated"),
        skn.ablate([(0, 3), (0, 7)], how="mean", values=torch.zeros(2, 48), positions="text"),
        skn.ablate([(0, 3), (0, 7)], how=lambda act, hook: act, positions="generated"),
    ],
    ids=["neurons", "values", "what", "positions", "function"],
)
def test_what_is_recorded_tells_edits_of_other_neurons_values_and_positions_apart(other):
    prompted = prompted_model("llama")
    hooks = skn.ablate([(0, 3), (0, 7)], how="mean", values=torch.zeros(2, 48), positions="generated")

    def told(hooks, **where):
        return prompted.generate(TEXTS[:1], 1, interventions=hooks, **where).settings["interventions"]

    again = skn.ablate([(0, 3), (0, 7)], how="mean", values=torch.zeros(2, 48), positions="generated")
    assert told(hooks) == told(again) != told(other)
    everywhere = skn.ablate([(0, 3), (0, 7)], how="zero")
    assert told(everywhere, positions="text") != told(everywhere, positions="generated") != told(everywhere)


def n_hooks(model):
    """How many hooks stand on the model: TransformerLens' own among them."""
    parts = {id(part): part for root in (model, model.original_model) for part in root.modules()}.values()
    return sum(len(part._forward_hooks) + len(part._forward_pre_hooks) for part in parts)


def test_the_model_comes_back_as_it_was_after_an_exception_too():
    prompted = prompted_model("llama")
    model = prompted.model
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    hooks, settings = n_hooks(model), copy.deepcopy(model.original_model.generation_config)
    expected = prompted.generate(TEXTS, N)

    def fails(act, hook):
        raise KeyError("of the user's")

    for name in ("blocks.0.mlp.hook_post", "blocks.0.hook_out"):
        with pytest.raises(KeyError, match="of the user's"):
            prompted.generate(TEXTS, N, interventions=[(name, fails)])
    after = model.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert n_hooks(model) == hooks and model.original_model.generation_config == settings
    assert prompted.generate(TEXTS, N) == expected


def test_an_answer_follows_the_chat_template_and_edits_may_act_on_it():
    chat = Chat(system="quick", assistant="the film is")
    model = chats.chatting()
    prompted = skn.PromptedModel(model, None, chat=chat)
    found = prompted.generate(TEXTS, N)
    for ids, text in zip(found.token_ids, TEXTS, strict=True):
        asked = torch.tensor([chats.applied(model.tokenizer, text, chat)])
        alone = plain("gpt2").generate(asked, max_new_tokens=N, do_sample=False, pad_token_id=0)
        assert list(ids) == alone[0, asked.shape[1] :].tolist()
    hooks = skn.ablate(NEURONS, how=Scale(9.0), positions="template")
    edited = prompted.generate(TEXTS, N, interventions=hooks)
    assert edited.token_ids != found.token_ids and "quick" in found.settings["chat"]
    whole = prompted.generate(TEXTS, N, interventions=hooks, use_past_kv_cache=False)
    assert whole.token_ids == edited.token_ids
    with pytest.raises(ValueError, match="'template' needs texts in a chat template"):
        skn.PromptedModel(model, None).generate(TEXTS, N, interventions=hooks)


LONG = " ".join(["film"] * 44)


@pytest.mark.parametrize(
    ("family", "texts", "options", "message"),
    [
        ("bert", TEXTS, {}, r"is bidirectional: .* can't write .* use a causal language model"),
        ("llama", [], {}, "texts must not be empty"),
        ("llama", TEXTS, {"max_new_tokens": 0}, "max_new_tokens must be an integer of at least 1, got 0"),
        ("llama", TEXTS, {"top_k": 3}, r"top_k and top_p are of what is drawn; give temperature=1\.0"),
        ("llama", TEXTS, {"temperature": 0}, "temperature must be positive and finite, or None .* got 0"),
        ("llama", TEXTS, {"temperature": 1.0, "top_p": 1.5}, r"top_p must be in \(0, 1\], got 1.5"),
        ("llama", TEXTS, {"temperature": 1.0, "seed": -1}, "seed must be an integer of at least 0"),
        ("llama", TEXTS, {"end_ids": [40]}, r"end_ids must be token ids in \[0, 40\), got 40"),
        (
            "llama",
            [LONG],
            {"max_new_tokens": 5},
            r"text 0 has 45 tokens .* give max_new_tokens of at most 3, or cut",
        ),
        ("llama", [LONG], {"max_new_tokens": 50}, r"text 0 has 45 .* give max_new_tokens of at most 3$"),
        ("llama_dynamic_rope", ["quick film"], {"max_new_tokens": 20}, "takes; give|change their meaning"),
        (
            "llama",
            TEXTS,
            {"interventions": [("blocks.9.hook_out", print)]},
            "no hook point 'blocks.9.hook_out'",
        ),
        ("llama", TEXTS, {"positions": "generatde", "interventions": []}, "did you mean 'generated'"),
        (
            "llama",
            TEXTS,
            {"positions": "text", "interventions": skn.ablate(NEURONS, positions="prompt")},
            "positions='text' was asked for, and a hook acts at 'prompt'; say where once",
        ),
    ],
)
def test_what_makes_no_sense_is_refused(family, texts, options, message):
    with pytest.raises(ValueError, match=message):
        skn.PromptedModel(booted(family), None).generate(texts, **options)


@pytest.mark.usefixtures("unchecked")
def test_an_intervention_without_its_neurons_is_refused():
    for given in (Scale(2.0), [Scale(2.0)], ["zero"], NEURONS):
        with pytest.raises(
            TypeError, match=r"interventions must be hooks, .* ablate\(neurons, how=Scale\(2.0\)\) gives"
        ):
            prompted_model("llama").generate(TEXTS, N, interventions=given)


def test_generated_positions_are_refused_where_nothing_is_written():
    hooks = skn.ablate(NEURONS, positions="generated")
    prompted = prompted_model("llama", label_words={0: "bad", 1: "good"})
    with pytest.raises(
        ValueError, match=r"'generated' are those that the model writes, .* PromptedModel.generate"
    ):
        prompted.class_logits(TEXTS, hooks)
    with pytest.raises(ValueError, match="needs to know where the virtual tokens stand"):
        booted("llama").run_with_hooks(torch.tensor([[1, 6]]), fwd_hooks=hooks)


def test_logits_that_are_no_numbers_are_refused_with_the_text():
    broken = lambda act, hook: torch.full_like(act, float("nan"))  # noqa: E731
    with pytest.raises(ValueError, match="logits are not finite after text 0; load the model in float32"):
        hooks = [("blocks.1.mlp.hook_post", ActsAt("all", broken))]
        prompted_model("llama", run=skn.RunOptions(batch_size=1)).generate(TEXTS[:1], N, interventions=hooks)


@pytest.mark.parametrize("end_ids", ["</s>", [2.0], ["</s>"], [True]])
def test_end_tokens_that_are_no_ids_are_refused(unchecked, end_ids):
    with pytest.raises(TypeError, match="end_ids must be token ids, integers, got"):
        prompted_model("llama").generate(TEXTS, N, end_ids=end_ids)
