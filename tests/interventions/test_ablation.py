"""What ablation does to activations: which neurons, where, and the same whatever the batch."""

import pytest
import tiny
import torch

import tl_skillneurons as skn
from tl_skillneurons.interventions import Keep, Noise, Scale, Zero
from tl_skillneurons.interventions.ablation import positions_of, positions_record

LABEL_WORDS = {0: "negative", 1: "positive"}
TEXTS = [row["text"] for row in tiny.sentences(9, seed=4)]
HOOKS = ["blocks.0.mlp.hook_post", "blocks.1.mlp.hook_post"]
NEURONS = skn.NeuronSet([1, 0, 1, 0], [40, 3, 2, 11])
VALUES = torch.randn(2, 48, generator=torch.Generator().manual_seed(8), dtype=torch.float64)
REFERENCE = torch.randn(5, 2, 48, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
EXACT = 1e-12  # a few roundings of 1e-16 on numbers of order 1, in models that compute in float64 throughout
HOW = [
    ("zero", {}),
    ("mean", {"values": VALUES}),
    ("resample", {"values": REFERENCE}),
    (Noise(0.1, absolute=True), {}),
]
IDS = ["zero", "mean", "resample", "noise"]


def prompt_for(family, seed=0, n=3):
    placement = "prefix" if family in tiny.BIDIRECTIONAL else "suffix"
    embedding = torch.randn(n, 32, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return skn.SoftPrompt(embedding, placement=placement)


@pytest.fixture(scope="module")
def models():
    return {family: tiny.bridge(family, dtype=torch.float64) for family in ("gpt2", "bert")}


def prompted_of(models, family, **settings):
    return skn.PromptedModel(models[family], prompt_for(family), LABEL_WORDS, **settings)


@torch.no_grad()
def neurons_before_and_after(prompted, texts, hooks):
    """Each layer's neurons as the model computed them and as it went on with them, ``[layer, batch, pos, neuron]``."""
    before, after = [], []

    def keep_before(act, hook):
        before.append(act.clone())

    def keep_after(act, hook):
        after.append(act)

    prompted.run_with_hooks(
        texts,
        [*((n, keep_before) for n in HOOKS), *hooks, *((n, keep_after) for n in HOOKS)],
        return_type=None,
    )
    return torch.stack(before), torch.stack(after)


@torch.no_grad()
def test_ablating_no_neuron_changes_nothing(models):
    prompted = prompted_of(models, "gpt2")
    for how, settings in HOW:
        hooks = skn.ablate(skn.NeuronSet([], []), how=how, **settings)
        assert hooks == []
        assert torch.equal(prompted.class_logits(TEXTS, hooks), prompted.class_logits(TEXTS))


@torch.no_grad()
def test_zero_ablation_is_mean_ablation_at_zero(models):
    prompted = prompted_of(models, "gpt2")
    zero = prompted.class_logits(TEXTS, skn.ablate(NEURONS))
    assert torch.equal(zero, prompted.class_logits(TEXTS, skn.ablate(NEURONS, how="mean", values=0 * VALUES)))
    assert not torch.equal(zero, prompted.class_logits(TEXTS, skn.ablate(NEURONS, how="mean", values=VALUES)))


@pytest.mark.parametrize(
    "positions", ["all", "prompt", "text", slice(1, 3), [-1], [0, 2], torch.tensor([0, 2])], ids=str
)
@pytest.mark.parametrize("how, settings", HOW, ids=IDS)
@pytest.mark.parametrize(
    "family, side", [("gpt2", "left"), ("gpt2", "right"), ("bert", "left"), ("bert", "right")]
)
def test_only_the_chosen_neurons_at_the_chosen_positions_are_edited(
    models, family, side, how, settings, positions
):
    prompted = prompted_of(models, family, padding_side=side)
    tokens = prompted.tokens(TEXTS)
    before, after = neurons_before_and_after(
        prompted, TEXTS, skn.ablate(NEURONS, how=how, positions=positions, **settings)
    )
    here = (
        {"prompt": tokens.is_prompt, "text": tokens.is_text & ~tokens.is_special}.get(positions)
        if isinstance(positions, str)
        else None
    )
    if isinstance(positions, str) and positions == "all":
        here = torch.ones_like(tokens.is_prompt)
    elif here is None:
        here = torch.zeros_like(tokens.is_prompt)
        for row, real in enumerate(tokens.attention_mask.bool()):
            here[row, real.nonzero()[:, 0][positions]] = True
    edited = here[None, ..., None] & NEURONS.mask(2, 48)[:, None, None]
    assert torch.equal(before[~edited], after[~edited])
    assert (before[edited] != after[edited]).all()
    if how in ("zero", "mean"):
        held = (VALUES if how == "mean" else 0 * VALUES)[:, None, None].expand_as(after)
        assert torch.equal(after[edited], held[edited])


@torch.no_grad()
def test_resampling_takes_all_neurons_of_an_example_from_one_reference_row(models):
    prompted = prompted_of(models, "gpt2")
    wanted = NEURONS.mask(2, 48)

    def rows(texts, seed):
        _, after = neurons_before_and_after(
            prompted, texts, skn.ablate(NEURONS, how="resample", values=REFERENCE, seed=seed)
        )
        drawn = []
        for example in range(len(texts)):
            here = after[:, example].transpose(1, 2)[wanted]  # [chosen neuron, pos]
            assert (here == here[:, :1]).all()  # one value at every position
            drawn.append([torch.equal(here[:, 0], row[wanted]) for row in REFERENCE].index(True))
        return drawn

    drawn = rows(TEXTS, 0)
    assert len(set(drawn)) > 1
    assert rows(TEXTS[:4], 0) == drawn[:4]
    assert rows(TEXTS, 0) == drawn
    assert rows(TEXTS, 1) != drawn


def test_resampling_draws_every_reference_row_about_equally_often(models):
    prompted = prompted_of(models, "gpt2")
    hooks = skn.ablate(skn.NeuronSet([0], [3]), how="resample", values=REFERENCE)
    _, after = neurons_before_and_after(prompted, ["good film"] * 500, hooks)
    counts = (after[0, :, 0, 3][:, None] == REFERENCE[:, 0, 3]).sum(0)
    assert counts.sum() == 500
    assert ((counts - 100).abs() < 45).all()  # five standard deviations of a binomial count are 45


@pytest.mark.parametrize("sigma, values", [(0.1, None), (2.0, None), (0.5, VALUES.abs() + 0.1)])
def test_noise_is_one_vector_per_example_and_layer_of_the_asked_scale(models, sigma, values):
    prompted = prompted_of(models, "gpt2")
    everything = skn.NeuronSet.from_mask(torch.ones(2, 48, dtype=torch.bool))
    hooks = skn.ablate(everything, how=Noise(sigma, absolute=values is None), values=values)
    before, after = neurons_before_and_after(prompted, ["good film"] * 60, hooks)
    noise = after - before
    # the sum and the difference each round a number of order 1 to 10
    torch.testing.assert_close(noise, noise[:, :, :1].expand_as(noise), rtol=0, atol=1e-13)
    unit = noise[:, :, 0] / (sigma if values is None else sigma * values[:, None])
    assert len(unit.reshape(-1, 48).unique(dim=0)) == 120  # another vector for each example and layer
    # 5,760 standard normal numbers: standard errors 0.013 of the mean and 0.009 of the deviation
    assert abs(unit.mean()) < 0.06 and abs(unit.std() - 1) < 0.05
    assert abs(torch.corrcoef(torch.stack([unit[0].flatten(), unit[1].flatten()]))[0, 1]) < 0.1
    assert abs(torch.corrcoef(torch.stack([unit[:, :-1].flatten(), unit[:, 1:].flatten()]))[0, 1]) < 0.07


@pytest.mark.parametrize("positions", ["all", "prompt", slice(-2, None)], ids=str)
@pytest.mark.parametrize("how, settings", HOW, ids=IDS)
@pytest.mark.parametrize("family", ["gpt2", "bert"])
@torch.no_grad()
def test_effects_do_not_depend_on_batch_size_or_padding(models, family, how, settings, positions):
    hooks = skn.ablate(NEURONS, how=how, positions=positions, seed=3, **settings)
    expected = prompted_of(models, family, run=skn.RunOptions(batch_size=1)).class_logits(TEXTS, hooks)
    for side in ("left", "right"):
        for batch_size in (7, 100):
            run = skn.RunOptions(batch_size=batch_size)
            logits = prompted_of(models, family, padding_side=side, run=run).class_logits(TEXTS, hooks)
            torch.testing.assert_close(logits, expected, rtol=0, atol=EXACT)


@pytest.mark.parametrize("how, settings", HOW, ids=IDS)
@torch.no_grad()
def test_the_seed_decides_and_the_callers_random_state_does_not(models, how, settings):
    prompted = prompted_of(models, "gpt2")
    with torch.random.fork_rng():
        torch.manual_seed(5)
        state = torch.get_rng_state()
        one = prompted.class_logits(TEXTS, skn.ablate(NEURONS, how=how, seed=1, **settings))
        assert torch.equal(torch.get_rng_state(), state)
        torch.manual_seed(6)
        same = prompted.class_logits(TEXTS, skn.ablate(NEURONS, how=how, seed=1, **settings))
        other = prompted.class_logits(TEXTS, skn.ablate(NEURONS, how=how, seed=2, **settings))
    assert torch.equal(one, same)
    assert torch.equal(one, other) == (how in ("zero", "mean"))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("how, settings", HOW, ids=IDS)
@torch.no_grad()
def test_hooks_work_wherever_transformerlens_takes_them_in_any_dtype(how, settings, dtype):
    model = tiny.bridge("gpt2", dtype=dtype)
    hooks = skn.ablate(NEURONS, how=how, seed=1, **settings)
    tokens = model.to_tokens(["the film was good", "the plot is bad"])
    intact = model(tokens)
    logits = model.run_with_hooks(tokens, fwd_hooks=hooks)
    assert logits.dtype == dtype and not torch.equal(logits, intact)
    with model.hooks(fwd_hooks=hooks):
        assert torch.equal(model(tokens), logits)
        cached, cache = model.run_with_cache(tokens)
        assert torch.equal(cached, logits)
    if how == "mean":
        for layer, index in NEURONS:
            assert (cache[HOOKS[layer]][..., index] == VALUES[layer, index].to(dtype)).all()
    assert torch.equal(model(tokens), intact)


@torch.no_grad()
def test_where_nobody_knows_the_prompt_an_example_is_its_row(models):
    model = models["gpt2"]
    tokens = model.to_tokens(["the film was good", "the plot is bad"])
    hooks = skn.ablate(NEURONS, how="resample", values=REFERENCE, seed=1)
    prompted = skn.PromptedModel(model, None)
    expected = prompted.run_with_hooks(["the film was good", "the plot is bad"], hooks)
    torch.testing.assert_close(model.run_with_hooks(tokens, fwd_hooks=hooks), expected, rtol=0, atol=EXACT)


@torch.no_grad()
def test_the_activation_is_not_written_in_place(models):
    kept = []
    for how, settings in HOW:
        hooks = skn.ablate(NEURONS, how=how, **settings)
        model = models["gpt2"]
        first = ("blocks.0.mlp.hook_post", lambda act, hook: kept.append((act, act.clone())))
        model.run_with_hooks(torch.tensor([[7, 8]]), fwd_hooks=[first, *hooks])
    assert len(kept) == 4 and all(torch.equal(act, as_it_was) for act, as_it_was in kept)


def test_gradients_reach_the_prompt_past_ablated_neurons(models):
    model, prompt = models["gpt2"], prompt_for("gpt2")
    everything = skn.NeuronSet.from_mask(torch.ones(2, 48, dtype=torch.bool))
    grads = []
    for hooks in ([], skn.ablate(NEURONS), skn.ablate(everything)):
        logits = skn.PromptedModel(model, prompt, LABEL_WORDS).class_logits(TEXTS, hooks)
        grads.append(torch.autograd.grad(logits[:, 1].sum(), prompt.embedding)[0])
    assert all(grad.isfinite().all() and grad.abs().max() > 0 for grad in grads)
    assert not torch.allclose(grads[0], grads[1])


def test_named_positions_are_known_inside_attached(models):
    model, prompt = models["gpt2"], prompt_for("gpt2")
    with torch.no_grad(), prompt.attached(model) as virtual:
        text = model.to_tokens(["the film was good", "the plot is bad"])
        tokens = torch.cat([text, virtual.ids.expand(2, -1)], dim=1)
        for positions, where in (("prompt", slice(5, 8)), ("text", slice(0, 5))):
            named, counted = (
                model.run_with_hooks(tokens, fwd_hooks=skn.ablate(NEURONS, positions=p))
                for p in (positions, where)
            )
            assert torch.equal(named, counted)
    for positions in ("prompt", "text"):
        with pytest.raises(
            ValueError, match=r"needs to know where the virtual tokens stand.* or give a slice or indices"
        ):
            model.run_with_hooks(text, fwd_hooks=skn.ablate(NEURONS, positions=positions))


ONE = skn.NeuronSet([1], [47])


@pytest.mark.parametrize(
    "neurons, settings, message",
    [
        (
            ONE,
            {"how": "knockout"},
            "how must be one of 'zero', 'mean', 'class_mean', .*got 'knockout'",
        ),
        (ONE, {"how": "men", "values": VALUES}, "got 'men'; did you mean 'mean'"),
        (
            ONE,
            {"positions": "promt"},
            "positions must be one of 'all', .*'template', 'generated', got 'promt'; did you mean 'prompt'",
        ),
        (
            ONE,
            {"how": "mean"},
            r"how='mean' needs values to hold the neurons at, got none.*scores.mean_baseline\(\)",
        ),
        (ONE, {"how": "resample"}, "how='resample' needs values .*neuron_activations"),
        (ONE, {"how": "zero", "values": VALUES}, "how='zero' takes no values; use how='mean'"),
        (ONE, {"how": "mean", "values": REFERENCE}, r"must be \[layer, neuron\], got shape \(5, 2, 48\)"),
        (ONE, {"how": "noise", "values": REFERENCE}, r"must be \[layer, neuron\], got shape \(5, 2, 48\)"),
        (
            ONE,
            {"how": "resample", "values": VALUES},
            r"must be \[example, layer, neuron\], got shape \(2, 48\)",
        ),
        (ONE, {"how": "resample", "values": REFERENCE[:0]}, r"must not be empty, got shape \(0, 2, 48\)"),
        (ONE, {"how": "mean", "values": VALUES[:, :40]}, "outside the model"),
        (ONE, {"how": "mean", "values": VALUES[:1]}, "outside the model"),
        (ONE, {"how": "mean", "values": VALUES / 0}, "values for how='mean' must be finite"),
        (ONE, {"how": "noise"}, r"how='noise 1' needs values .*scores.mean_std\(\)"),
        (ONE, {"how": Noise(1, absolute=True), "values": VALUES}, "how='noise 1 absolute' takes no values"),
        (ONE, {"how": Keep()}, "how='keep' needs values"),
        (ONE, {"seed": -1}, "seed must be an integer of at least 0, got -1"),
        (ONE, {"how": Scale(0.5), "values": VALUES}, "how='scale 0.5' takes no values"),
        (ONE, {"how": "class_mean", "classes": [0]}, "needs values to hold the neurons at"),
        (ONE, {"how": "class_mean", "values": REFERENCE}, "needs classes"),
        (ONE, {"how": "class_mean", "values": VALUES, "classes": [0]}, r"must be \[class, layer, neuron\]"),
        (ONE, {"how": "class_mean", "values": REFERENCE[:2], "classes": [0, 2]}, r"must be in \[0, 2\)"),
        (
            ONE,
            {"how": "mean", "values": VALUES, "classes": [0]},
            "classes are for what goes by class, got them with how='mean'",
        ),
    ],
)
def test_ablations_that_make_no_sense_are_refused(neurons, settings, message):
    with pytest.raises(ValueError, match=message):
        skn.ablate(neurons, **settings)


@pytest.mark.usefixtures("unchecked")
def test_values_of_another_shape_are_refused():
    with pytest.raises(ValueError, match=r"must be \[layer, neuron\], got shape \(48,\)"):
        skn.ablate(ONE, how="mean", values=VALUES[0])


@pytest.mark.parametrize(
    "neurons, settings, kind, message",
    [
        (
            skn.NeuronSet([1], [48]),
            {},
            ValueError,
            "has 48 neurons, the ablation was made for at least 49; use neurons",
        ),
        (
            skn.NeuronSet([1], [3], n_layers=2, d_mlp=64),
            {},
            ValueError,
            "has 48 neurons, the ablation was made for 64",
        ),
        (
            skn.NeuronSet([1], [3]),
            {"how": "mean", "values": torch.zeros(2, 50)},
            ValueError,
            "has 48 neurons, the ablation was made for 50",
        ),
        (skn.NeuronSet([2], [3]), {}, KeyError, "'blocks.2.mlp.hook_post' does not exist on this model"),
        (
            ONE,
            {"positions": [30]},
            ValueError,
            r"positions must be in \[-6, 6\) for a sequence of 6 tokens, got 30",
        ),
    ],
)
def test_neurons_and_positions_outside_the_model_are_refused_when_it_runs(
    models, neurons, settings, kind, message
):
    with pytest.raises(kind, match=message):
        prompted_of(models, "gpt2").class_logits(["good film"], skn.ablate(neurons, **settings))


def test_scaling_multiplies_and_class_means_go_by_the_callers_order(models):
    prompted, texts = prompted_of(models, "gpt2"), ["good film", "the bad plot was slow", "dull"]
    values = torch.arange(2.0 * 2 * 48).view(2, 2, 48)
    kept = {}

    def keep(act, hook):
        kept[len(kept)] = act

    with torch.no_grad():
        for hooks in (
            [],
            skn.ablate(ONE, how=Scale(1.5)),
            skn.ablate(ONE, how="class_mean", values=values, classes=[1, 0, 1]),
        ):
            prompted.run_with_hooks(texts, [*hooks, ("blocks.1.mlp.hook_post", keep)])
    layer, index = next(iter(ONE))
    assert layer == 1
    torch.testing.assert_close(kept[1][..., index], 1.5 * kept[0][..., index])
    for row, label in enumerate([1, 0, 1]):
        assert (kept[2][row, :, index] == values[label, 1, index]).all()
    with pytest.raises(ValueError, match="classes names the class of 2 examples, and example 2 runs"):
        prompted.class_logits(texts, skn.ablate(ONE, how="class_mean", values=values, classes=[1, 0]))


@torch.no_grad()
def test_keeping_a_set_edits_all_others_and_knows_their_number_from_the_values(models):
    prompted = prompted_of(models, "gpt2")
    _, after = neurons_before_and_after(prompted, TEXTS, skn.ablate(NEURONS, how=Keep(), values=VALUES))
    others = (~NEURONS.mask(2, 48))[:, None, None].expand_as(after)
    assert torch.equal(after[others], VALUES[:, None, None].expand_as(after)[others])
    with pytest.raises(ValueError, match="doesn't know its model's n_layers"):
        skn.ablate(NEURONS, how=Keep(Zero()))
    known = skn.NeuronSet(NEURONS.layer, NEURONS.index, 2, 48)
    assert len(skn.ablate(known, how=Keep(Zero()))) == 2


def test_a_hook_declares_where_it_acts_and_a_function_of_the_users_promises_nothing():
    acting = [
        {hook.positions for _, hook in skn.ablate(NEURONS, how=how, positions=positions)}
        for how, positions in (
            ("zero", "prompt"),
            ("zero", "all"),
            ("zero", [0, 2]),
            (lambda act, hook: act, "prompt"),
        )
    ]
    assert acting == [{"prompt"}, {"all"}, {"chosen"}, {"chosen"}]


def test_positions_are_recorded_so_that_they_can_be_read_again():
    for positions in ("prompt", [0, -1], slice(1, None)):
        assert positions_of(positions_record(positions)) == positions
    assert positions_record(torch.tensor([0, 2])) == [0, 2]


def test_a_hook_is_written_out_in_a_few_words_without_its_tensors():
    [(_, function)] = skn.ablate(ONE, how="mean", values=VALUES, positions="prompt")
    assert repr(function) == "ActsAt('prompt', FeatureEdit)"
