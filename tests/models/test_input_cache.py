"""Keys and values of texts, computed once: the same numbers as the whole run, within a budget, never stale."""

import functools
from dataclasses import replace

import pandas as pd
import pytest
import tiny
import torch
from toy import QUIET
from untouched import EXACT, LABEL_WORDS, soft_prompt, softmax_in_float64  # noqa: F401 (a fixture)
from untouched import TEXTS as SOME_TEXTS

import tl_skillneurons as skn
from tl_skillneurons.interventions import Noise
from tl_skillneurons.models import input_cache
from tl_skillneurons.models.sites import neuron_hooks
from tl_skillneurons.prompts import TrainingOptions

TEXTS = [*SOME_TEXTS, "good film"]  # one stands there twice
TASK = tiny.task()
UNTRAINED = pytest.mark.filterwarnings("ignore:the prompt of seed .* not below chance")


@functools.cache
def model_in_float64(family):
    return tiny.bridge(family, dtype=torch.float64)


@pytest.fixture(scope="module")
def llama():
    return tiny.bridge("llama")


def prompt(seed=0, n=3):
    return skn.SoftPrompt(
        torch.randn(n, 32, generator=torch.Generator().manual_seed(seed)), placement="suffix"
    )


@pytest.mark.parametrize("family", tiny.CAUSAL)
def test_logits_gradients_and_neurons_equal_those_of_the_whole_run(family):
    model, soft = model_in_float64(family), soft_prompt(family)
    whole = skn.PromptedModel(model, soft, LABEL_WORDS)
    apart = skn.PromptedModel(model, soft, LABEL_WORDS, run=skn.RunOptions(cache=skn.InputCache(model)))
    apart.class_logits(TEXTS[:2])  # so that some texts are kept and others are not
    results = []
    for prompted in (whole, apart):
        neurons = {}
        tokens = prompted.tokens(TEXTS)
        with prompted.attached() as virtual:
            past = prompted.past(tokens) if prompted is apart else None

            def keep(act, hook, neurons=neurons):
                neurons[hook.name] = act[:, -3:].detach()

            logits = prompted.read_out(tokens, virtual, past=past)
            prompted.forward(tokens, virtual, [(name, keep) for name in neuron_hooks(model).values()], past)
        (gradient,) = torch.autograd.grad(logits.log_softmax(1)[:, 1].sum(), soft.embedding)
        results.append([logits, gradient, *neurons.values()])
    assert len(results[0]) == 4 and results[0][1].abs().min() > 1e-6
    for expected, found in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, atol=10 * EXACT[family], rtol=0)


@pytest.mark.parametrize("batch_size", [1, 4])
def test_results_do_not_depend_on_what_is_kept(llama, batch_size):
    expected = skn.PromptedModel(llama, prompt(), LABEL_WORDS).class_logits(TEXTS)
    for budget in (0, 3000, 0.1):
        cache = skn.InputCache(llama, budget)
        run = skn.RunOptions(cache=cache, batch_size=batch_size)
        prompted = skn.PromptedModel(llama, prompt(), LABEL_WORDS, run=run)
        for order in (TEXTS, TEXTS[::-1]):
            logits = prompted.class_logits(order)
            found = logits if order is TEXTS else logits.flip(0)
            torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
        assert cache.n_bytes <= cache.budget


def test_each_text_runs_once_and_takes_the_memory_of_its_keys_and_values(llama):
    cache = skn.InputCache(llama)
    for seed in range(3):
        skn.PromptedModel(llama, prompt(seed), LABEL_WORDS, run=skn.RunOptions(cache=cache)).class_logits(
            TEXTS
        )
    ids = {tuple(row) for row in skn.PromptedModel(llama, prompt()).encode(TEXTS)}
    # 2 layers, keys and values, 2 heads of 8, float32
    assert (len(cache), cache.n_bytes) == (5, sum(map(len, ids)) * 2 * 2 * 2 * 8 * 4)
    assert cache.n_runs == 6  # the double stands in the first batch twice


def test_many_runs_of_the_same_texts_put_each_batch_together_once_within_the_budget(llama, monkeypatch):
    run = skn.RunOptions(cache=skn.InputCache(llama), batch_size=2)
    prompted = skn.PromptedModel(llama, prompt(), LABEL_WORDS, run=run)
    expected, n_bytes = prompted.class_logits(TEXTS), run.cache.n_bytes
    joins = []
    join = skn.InputCache._join
    monkeypatch.setattr(skn.InputCache, "_join", lambda *given: joins.append(len(given[1])) or join(*given))
    with prompted.answering(TEXTS) as logits:
        for _ in range(3):
            torch.testing.assert_close(logits([]), expected, rtol=0, atol=1e-5)
        assert joins == [2, 2, 2] and n_bytes < run.cache.n_bytes <= run.cache.budget
    assert run.cache.n_bytes == n_bytes
    run.cache.budget = n_bytes  # no room beside the texts
    with prompted.answering(TEXTS) as logits:
        torch.testing.assert_close(logits([]), logits([]), rtol=0, atol=0)
        assert joins == [2] * 9 and run.cache.n_bytes == n_bytes


def test_batches_that_are_kept_are_forgotten_with_the_weights_that_made_them(llama):
    run = skn.RunOptions(cache=skn.InputCache(llama))
    prompted = skn.PromptedModel(llama, prompt(), LABEL_WORDS, run=run)
    weight = llama.blocks[0].attn.v.weight
    with prompted.answering(TEXTS) as logits:
        before = logits([])
        with torch.no_grad():
            weight.mul_(2)
        after = logits([])
        with torch.no_grad():
            weight.div_(2)
        assert not torch.allclose(before, after)
        torch.testing.assert_close(logits([]), before, rtol=0, atol=1e-5)


def test_a_batch_of_virtual_tokens_alone_is_as_full_as_one_of_whole_texts(llama):
    prompted = skn.PromptedModel(llama, prompt(), LABEL_WORDS)
    n = prompted.layout.n_virtual_tokens
    ids = [[5] * 20] * 600
    whole, suffix = (prompted.batches(ids, suffix_alone=alone) for alone in (False, True))
    assert len(whole[0]) == 1024 // (20 + n) and len(suffix[0]) == min(1024 // n, 4096 // (20 + n))
    limited = skn.PromptedModel(llama, prompt(), LABEL_WORDS, run=skn.RunOptions(batch_size=3))
    assert len(limited.batches(ids, suffix_alone=True)[0]) == 3


def test_what_does_not_fit_the_budget_runs_again(llama):
    cache = skn.InputCache(llama, 5000)
    prompted = skn.PromptedModel(llama, prompt(), LABEL_WORDS, run=skn.RunOptions(cache=cache))
    prompted.class_logits(TEXTS)
    kept, first = len(cache), cache.n_runs
    prompted.class_logits(TEXTS)
    assert 0 < kept < 5 and first < cache.n_runs < 2 * first and len(cache) == kept


def test_planned_texts_give_the_same_bits_whichever_is_needed_first(llama):
    ids = skn.PromptedModel(llama, prompt()).encode(TEXTS)
    found = []
    for order in (TEXTS, TEXTS[::-1]):
        cache = skn.InputCache(llama)
        cache.plan(ids)
        prompted = skn.PromptedModel(llama, prompt(), LABEL_WORDS, run=skn.RunOptions(cache=cache))
        found.append({text: prompted.class_logits([text])[0] for text in order})
    assert all(torch.equal(found[0][text], found[1][text]) for text in TEXTS)


def test_a_changed_weight_empties_it():
    model = tiny.bridge("llama")
    cache = skn.InputCache(model)
    prompted = skn.PromptedModel(model, prompt(), LABEL_WORDS, run=skn.RunOptions(cache=cache))
    before = prompted.class_logits(TEXTS)
    with torch.no_grad():
        model.blocks[0].mlp.W_out.mul_(2.0)
    after = prompted.class_logits(TEXTS)
    expected = skn.PromptedModel(model, prompt(), LABEL_WORDS).class_logits(TEXTS)
    torch.testing.assert_close(after, expected, atol=1e-5, rtol=0)
    assert (after - before).abs().max() > 1e-2


@pytest.mark.parametrize("positions", ["all", "text", [0], slice(0, 2), "prompt"])
@pytest.mark.parametrize("how", ["zero", "resample", "noise"])
def test_an_ablation_takes_effect_with_the_cache_as_without_and_bypasses_it_at_the_text(
    llama, monkeypatch, how, positions
):
    neurons = skn.NeuronSet.from_pairs([(0, k) for k in range(24)] + [(1, k) for k in range(24)])
    values = {"resample": torch.randn(5, 2, 48, generator=torch.Generator().manual_seed(0))}.get(how)
    what = Noise(1.0, absolute=True) if how == "noise" else how
    hooks = skn.ablate(neurons, how=what, values=values, positions=positions)
    cache = skn.InputCache(llama)
    intact = skn.PromptedModel(llama, prompt(), LABEL_WORDS, run=skn.RunOptions(cache=cache)).class_logits(
        TEXTS
    )
    kept = cache.n_runs
    cached = skn.PromptedModel(llama, prompt(), LABEL_WORDS, run=skn.RunOptions(cache=cache)).class_logits(
        TEXTS, hooks
    )
    whole = skn.PromptedModel(llama, prompt(), LABEL_WORDS).class_logits(TEXTS, hooks)
    torch.testing.assert_close(cached, whole, atol=1e-5, rtol=0)
    assert (cached - intact).abs().max() > 1e-3  # a run on kept texts would have missed it, or there was none
    reads, real = [], cache.past
    monkeypatch.setattr(cache, "past", lambda *args: reads.append(args) or real(*args))
    skn.PromptedModel(llama, prompt(), LABEL_WORDS, run=skn.RunOptions(cache=cache)).class_logits(
        TEXTS, hooks
    )
    assert cache.n_runs == kept and bool(reads) == (positions == "prompt")


def test_other_hooks_on_the_model_or_given_by_hand_bypass_it(llama, monkeypatch):
    cache = skn.InputCache(llama)
    prompted = skn.PromptedModel(llama, prompt(), LABEL_WORDS, run=skn.RunOptions(cache=cache))
    intact = prompted.class_logits(TEXTS)

    def halve(act, hook):
        return act / 2

    hooks = [("blocks.0.mlp.hook_post", halve)]
    expected = skn.PromptedModel(llama, prompt(), LABEL_WORDS).class_logits(TEXTS, hooks)
    torch.testing.assert_close(prompted.class_logits(TEXTS, hooks), expected, atol=1e-5, rtol=0)
    with llama.hooks(fwd_hooks=hooks):
        torch.testing.assert_close(prompted.class_logits(TEXTS), expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(prompted.class_logits(TEXTS), intact, atol=0, rtol=0)
    assert (expected - intact).abs().max() > 1e-3


@UNTRAINED
def test_tuning_with_any_budget_and_scoring_after_it_agree_and_run_each_text_once(llama):
    training = TrainingOptions(batch_size=4)
    options = {"n_virtual_tokens": 2, "n_steps": 6, "training": training, "seeds": (0, 1)}
    budgets = (replace(QUIET, cache=skn.InputCache(llama, budget)) for budget in (0, 0.1))
    none, some = (skn.fit_soft_prompts(llama, TASK, **options, run=run) for run in budgets)
    for a, b in zip(none, some, strict=True):
        torch.testing.assert_close(a.embedding, b.embedding, atol=1e-3, rtol=0)  # Adam spreads the rounding
    cache = skn.InputCache(llama)
    shared = skn.fit_soft_prompts(llama, TASK, **options, run=replace(QUIET, cache=cache))
    assert all(torch.equal(a.embedding, b.embedding) for a, b in zip(shared, some, strict=True))
    n_train = len(set(TASK.split("train")["text"]))
    assert len(cache) == cache.n_runs == n_train
    scores = skn.score_neurons(llama, shared, TASK, run=replace(QUIET, cache=cache))
    assert cache.n_runs == n_train + TASK.n_examples["select"]
    apart = skn.score_neurons(llama, shared, TASK, run=QUIET)
    torch.testing.assert_close(scores.baseline, apart.baseline, atol=1e-6, rtol=0)


@UNTRAINED
def test_prompts_tuned_together_are_the_bits_of_each_alone(llama):
    options = {"n_virtual_tokens": 2, "n_steps": 4, "training": TrainingOptions(batch_size=4), "run": QUIET}
    together = skn.fit_soft_prompts(llama, TASK, seeds=(0, 1), **options)
    for seed, prompt in enumerate(together):
        (alone,) = skn.fit_soft_prompts(llama, TASK, seeds=(seed,), **options)
        assert torch.equal(prompt.embedding, alone.embedding)


def test_several_prompts_are_scored_on_one_run_of_each_text(llama, monkeypatch):
    from tl_skillneurons.prompts import prompted_model as module

    sizes, real = [], module.prefill
    monkeypatch.setattr(
        module, "prefill", lambda model, ids, mask: sizes.append(len(ids)) or real(model, ids, mask)
    )
    prompts = [prompt(seed) for seed in range(3)]
    together = skn.score_neurons(llama, prompts, TASK, run=QUIET)
    assert sum(sizes) == TASK.n_examples["baseline"] + TASK.n_examples["select"]
    for number, one in enumerate(prompts):
        alone = skn.score_neurons(llama, one, TASK, run=QUIET)
        assert torch.equal(alone.correct[0], together.correct[number])
        assert torch.equal(alone.baseline[0], together.baseline[number])


def test_ablating_at_the_prompt_runs_each_text_once(llama):
    cache = skn.InputCache(llama)
    neurons = skn.NeuronSet.from_pairs([(0, 1), (1, 2)])
    prompts = [prompt(0), prompt(1)]
    examples = skn.interventions.Examples(reference=None)

    def panel(cache):
        options = {"interventions": ["zero"], "examples": examples, "run": replace(QUIET, cache=cache)}
        return skn.measure_effects(llama, prompts, TASK, neurons, **options)

    with_cache = panel(cache)
    assert cache.n_runs == TASK.n_examples["report"]
    pd.testing.assert_frame_equal(with_cache.draws(), panel(skn.InputCache(llama, 0)).draws(), atol=1e-5)


@pytest.mark.parametrize("budget", [-1, 1.5, True, float("nan")])
def test_a_budget_that_is_none_is_refused(llama, budget):
    with pytest.raises(ValueError, match="cache_budget"):
        input_cache.budget_in_bytes(budget, "cpu")


def test_a_share_of_the_memory_is_that_of_what_is_free(monkeypatch):
    monkeypatch.setattr(input_cache, "_free_memory", lambda device: 1000)
    assert input_cache.budget_in_bytes(0.25, "cpu") == 250
    assert input_cache.budget_in_bytes(7, "cpu") == 7


def test_models_and_caches_that_do_not_go_together_are_refused(llama):
    with pytest.raises(ValueError, match=r"can't be run apart from the prompt in .* sees the prompt"):
        skn.InputCache(tiny.bridge("bert"))
    with pytest.raises(ValueError, match="the input cache is of another model"):
        skn.PromptedModel(
            tiny.bridge("llama"), prompt(), LABEL_WORDS, run=skn.RunOptions(cache=skn.InputCache(llama))
        )


def test_nothing_of_a_text_runs_after_the_last_keys_and_values(llama):
    fired = []
    names = ["blocks.1.attn.hook_z", "blocks.1.mlp.hook_post", "unembed.hook_in", "blocks.0.mlp.hook_post"]
    ids = torch.full((2, 3), 7)
    with llama.hooks(fwd_hooks=[(name, lambda act, hook: fired.append(hook.name)) for name in names]):
        past = input_cache.prefill(llama, ids, torch.ones_like(ids))
    assert "blocks.0.mlp.out.hook_in" in fired and not any(
        "blocks.1.mlp" in n or "unembed" in n for n in fired
    )
    assert past.layers[1].keys.shape == (2, 2, 3, 8)
