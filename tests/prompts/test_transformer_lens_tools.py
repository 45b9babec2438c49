"""TransformerLens' own tools on the real model with a soft prompt attached, and what prepares their arguments."""

import planted
import pytest
import tiny
import torch
from planted import DECOY, HEADS, NEURONS
from transformer_lens import patching
from transformer_lens.tools.analysis import (
    attribution_patch,
    direct_logit_attribution,
    fit_sparse_probe,
    logit_lens,
)
from transformer_lens.tools.analysis.attribution_patching import (
    EdgeAttributionConfig,
    cache_activation_and_gradient,
)
from transformer_lens.tools.analysis.interchange import (
    NormMatchedPlacebo,
    SubspaceInterchange,
    collect_activations,
    fit_das,
    intervened_logits,
    neuron_basis,
    random_neuron_basis,
)

from tl_skillneurons import NeuronSet, PromptedModel, RunOptions, SoftPrompt, ablate
from tl_skillneurons.interop import neuron_index, patch_neuron, patching_index, token_rows, with_gradients
from tl_skillneurons.models.hooks import has_foreign_hooks
from tl_skillneurons.prompts import neuron_activations
from tl_skillneurons.prompts.activations import set_activations

RANDOM = (NEURONS | DECOY).random_like(0)
PAIRS = [pair for pair in planted.twins(80) if len(pair[0].split()) == 5][:10]
CLEAN, CORRUPTED = ([pair[side] for pair in PAIRS] for side in (0, 1))
LABELS = torch.tensor([planted.label_of(text) for text in CLEAN])


class Run:
    """The planted model with its prompt, and the twins as token rows."""

    def __init__(self, dtype=torch.float32):
        self.model = planted.model(dtype)
        self.prompt = planted.prompt().requires_grad_(False)
        self.prompted = PromptedModel(self.model, self.prompt, planted.LABEL_WORDS)
        self.ids = self.prompted.label_ids
        self.clean, self.corrupted = (token_rows(self.prompted, texts) for texts in (CLEAN, CORRUPTED))
        with self.prompt.attached(self.model), torch.no_grad():
            self.logits, self.cache = self.model.run_with_cache(self.clean)
            self.corrupted_logits = self.model(self.corrupted)

    def per_example(self, logits):
        """Logit difference towards the clean text's label, one per row."""
        return (logits[:, -1, self.ids[1]] - logits[:, -1, self.ids[0]]) * (2 * LABELS - 1)

    def metric(self, logits):
        return self.per_example(logits).mean()

    def task_logits(self, rows):
        return self.model(rows)[:, -1, self.ids]

    def recovered(self, values):
        """Fraction of the logit difference between the two runs."""
        low, high = self.metric(self.corrupted_logits), self.metric(self.logits)
        return (values - low) / (high - low)


@pytest.fixture(scope="module")
def run():
    return Run()


@pytest.fixture(autouse=True)
def _no_trace(run):
    yield
    assert not has_foreign_hooks(run.model)
    assert not any(p.requires_grad or p.grad is not None for p in run.model.parameters())
    assert run.prompt.embedding.grad is None


# Tools that run forward


def test_run_with_cache_sees_the_prompt_and_the_planted_neurons(run):
    logits, cache = run.prompted.run_with_cache(CLEAN)
    torch.testing.assert_close(run.logits, logits)
    torch.testing.assert_close(run.cache["blocks.2.mlp.hook_post"], cache["blocks.2.mlp.hook_post"])
    acts = run.cache["blocks.2.mlp.hook_post"][:, -1, neuron_index(NEURONS, 2)]
    assert ((acts > 0) == (LABELS == 1)[:, None]).all()


def test_patching_heads_names_the_two_that_move_the_label(run):
    with run.prompt.attached(run.model), torch.no_grad():
        found = patching.get_act_patch_attn_head_out_all_pos(run.model, run.corrupted, run.cache, run.metric)
    found = run.recovered(found)
    best = found.flatten().topk(2).indices.tolist()
    assert {divmod(i, planted.N_HEADS) for i in best} == set(HEADS)
    for layer, head in HEADS:
        assert found[layer, head] > 0.2
        found[layer, head] = 0
    assert found.abs().max() < 1e-5


def test_patching_mlps_by_position_finds_the_last_virtual_token(run):
    with run.prompt.attached(run.model), torch.no_grad():
        found = patching.get_act_patch_mlp_out(run.model, run.corrupted, run.cache, run.metric)
        resid = patching.get_act_patch_resid_pre(
            run.model, run.corrupted, run.cache, run.per_example, reduce="none", baseline=True
        )
    found = run.recovered(found)
    assert found[1, -1] > 0.2 and found[2, -1] > 0.2
    assert found[0].abs().max() < 1e-5 and found[:, :-1].abs().max() < 1e-5
    effect = resid.effect()[0] if resid.has_metric_axis else resid.effect()
    assert effect[0, -3:].abs().max() < 1e-5  # the virtual tokens are the same in both runs


def test_patching_neurons_recovers_by_the_planted_ones_alone(run):
    neurons = NEURONS | DECOY | RANDOM
    index = patching_index(neurons, [-1])
    with run.prompt.attached(run.model), torch.no_grad():
        found = patching.generic_activation_patch(
            run.model, run.corrupted, run.cache, run.metric, patch_neuron, "post", index_df=index
        )
    rows = zip(index["layer"], index["neuron"], strict=True)
    recovered = dict(zip(rows, run.recovered(found).tolist(), strict=True))
    for pair in NEURONS:
        assert recovered.pop(pair) > 0.15
    assert abs(recovered.pop(next(iter(DECOY)))) < 1e-5
    assert max(map(abs, recovered.values())) < 0.01


def test_a_patched_neuron_is_the_one_a_hook_would_set(run):
    def by_hand(act, hook):
        act = act.clone()
        act[:, 7, 3] = run.cache["blocks.2.mlp.hook_post"][:, 7, 3]
        return act

    index = patching_index(NeuronSet([2], [3]), [7, -1])
    assert index.values.tolist() == [[2, 7, 3], [2, -1, 3]]
    with run.prompt.attached(run.model), torch.no_grad():
        found = patching.generic_activation_patch(
            run.model,
            run.corrupted,
            run.cache,
            lambda x: x.double().std(),
            patch_neuron,
            "post",
            index_df=index,
        )
        logits = run.model.run_with_hooks(run.corrupted, fwd_hooks=[("blocks.2.mlp.hook_post", by_hand)])
    assert float(found[0]) == pytest.approx(float(logits.double().std()), abs=1e-6)
    before = run.cache["blocks.2.mlp.hook_post"].clone()
    patched = patch_neuron(torch.zeros_like(before), (2, 7, 3), before)
    assert patched.count_nonzero() == len(before)


# Interchange


def at_last(rows):
    return torch.full((len(rows),), rows.shape[1] - 1)


def test_interchanging_the_planted_neurons_moves_the_answer_and_random_ones_do_not(run):
    hook = "blocks.2.mlp.hook_post"
    index = neuron_index(NEURONS, 2)
    assert index.tolist() == [3, 11]
    interchange = SubspaceInterchange(neuron_basis(planted.D_MLP, index))
    random = random_neuron_basis(planted.D_MLP, len(index), seed=0, exclude=index)
    placebos = [SubspaceInterchange(random), NormMatchedPlacebo(interchange, random)]
    places = {"positions": at_last(run.clean)}
    moved = []
    with run.prompt.attached(run.model):
        source = collect_activations(run.model, hook, run.clean, run.task_logits, **places)
        for intervention in (interchange, *placebos):
            logits = intervened_logits(
                run.model, hook, intervention, run.corrupted, source, run.task_logits, **places
            )
            diff = ((logits[:, 1] - logits[:, 0]) * (2 * LABELS - 1)).mean()
            moved.append(float(run.recovered(diff)))
    assert moved[0] > 0.4
    assert abs(moved[1]) < 0.01 and abs(moved[2]) < 0.2 * moved[0]


def test_zero_ablation_is_an_interchange_with_zeros(run):
    hook, places = "blocks.2.mlp.hook_post", {"positions": at_last(run.clean)}
    interchange = SubspaceInterchange(neuron_basis(planted.D_MLP, neuron_index(NEURONS, 2)))
    with run.prompt.attached(run.model):
        logits = intervened_logits(
            run.model, hook, interchange, run.clean, torch.zeros(10, planted.D_MLP), run.task_logits, **places
        )
        with run.model.hooks(fwd_hooks=ablate(NeuronSet([2, 2], [3, 11]), positions=[-1])):
            expected = run.task_logits(run.clean)
    torch.testing.assert_close(logits, expected)


def test_a_learned_subspace_finds_the_direction_that_carries_the_label(run):
    hook = "blocks.1.hook_resid_post"
    places = {"base_positions": at_last(run.clean), "source_positions": at_last(run.clean)}
    with run.prompt.attached(run.model):
        found = fit_das(
            run.model,
            hook,
            run.corrupted,
            run.clean,
            LABELS,
            run.task_logits,
            rank=1,
            epochs=60,
            lr=0.1,
            **places,
        )
        places = {"positions": at_last(run.clean)}
        source = collect_activations(run.model, hook, run.clean, run.task_logits, **places)
        logits = intervened_logits(
            run.model,
            hook,
            SubspaceInterchange(found.subspace.basis.detach()),
            run.corrupted,
            source,
            run.task_logits,
            **places,
        )
    assert (logits.argmax(1) == LABELS).all()
    assert (run.corrupted_logits[:, -1, run.ids].argmax(1) != LABELS).all()


# Tools that take gradients


def test_attribution_patching_needs_a_graph_and_gets_one(run):
    clean, corrupted = run.clean[LABELS == 1], run.corrupted[LABELS == 1]

    def metric(logits):  # the tool runs row by row, so no label per row
        return (logits[:, -1, run.ids[1]] - logits[:, -1, run.ids[0]]).mean()

    with run.prompt.attached(run.model):
        with pytest.raises(RuntimeError, match="does not require grad"):
            attribution_patch(run.model, clean, corrupted, metric)
        with with_gradients(run.model):
            found = attribution_patch(run.model, clean, corrupted, metric).node_scores
    heads = {(n.layer, n.head, n.position): s for n, s in found.items() if n.kind == "attn_head_out"}
    last = clean.shape[1] - 1
    best = sorted(heads, key=heads.get, reverse=True)[:2]
    assert set(best) == {(*head, last) for head in HEADS}
    others = [abs(score) for place, score in heads.items() if place not in best]
    assert max(others) < 0.05 * heads[best[1]]


def test_attribution_to_neurons_takes_two_forwards_and_a_backward(run):
    names = [f"blocks.{layer}.mlp.hook_post" for layer in range(planted.N_LAYERS)]
    with run.prompt.attached(run.model), with_gradients(run.model):
        found = cache_activation_and_gradient(run.model, run.corrupted, run.metric, names_filter=names)
    effect = torch.stack(
        [((run.cache[n] - found.activations[n]) * found.gradients[n])[:, -1].sum(0) for n in names]
    )
    best = effect.flatten().topk(3).indices.tolist()
    assert {divmod(i, planted.D_MLP) for i in best} == set(NEURONS)
    [decoy] = effect[DECOY.layer, DECOY.index].tolist()
    assert abs(decoy) < 0.2 * effect.flatten()[best[-1]]


def test_the_graph_is_the_one_that_the_soft_prompt_itself_would_give(run):
    names = [f"blocks.{layer}.mlp.hook_post" for layer in range(planted.N_LAYERS)]
    tunable = planted.prompt()
    found = {}
    with run.prompt.attached(run.model), with_gradients(run.model):
        found = cache_activation_and_gradient(run.model, run.corrupted, run.metric, names_filter=names)
    kept = {}

    def keep(act, hook):
        kept[len(kept)] = act

    with tunable.attached(run.model):
        logits = run.model.run_with_hooks(run.corrupted, fwd_hooks=[(name, keep) for name in names])
    own = torch.autograd.grad(run.metric(logits), list(kept.values()))
    for name, gradient in zip(names, own, strict=True):
        # text positions of layer 0 have no path from the prompt, so only its own positions are compared
        torch.testing.assert_close(found.gradients[name][:, -3:], gradient[:, -3:])
    assert found.gradients[names[2]][:, -1, neuron_index(NEURONS, 2)].abs().min() > 1e-3
    assert tunable.embedding.grad is None


def test_a_tunable_prompt_gets_no_gradient_through_the_context(run):
    tunable = planted.prompt()
    with tunable.attached(run.model), with_gradients(run.model):
        run.metric(run.model(run.corrupted)).backward()
        with torch.no_grad():
            assert not run.model(run.corrupted).requires_grad
    assert tunable.embedding.grad is None


def test_the_context_leaves_no_hook_after_an_exception(run):
    with pytest.raises(KeyError), with_gradients(run.model):
        raise KeyError("stop")
    assert not has_foreign_hooks(run.model)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("off", [torch.no_grad, torch.inference_mode])
def test_where_there_can_be_no_graph_the_context_says_so(run, off):
    with (
        off(),
        pytest.raises(
            ValueError, match=rf"no graph inside torch\.{off.__name__}\(\); call gradient tools outside"
        ),
        with_gradients(run.model),
    ):
        pass
    with (
        pytest.raises(TypeError, match="model must be a TransformerBridge"),
        with_gradients(torch.nn.Linear(2, 2)),
    ):
        pass


# Reading out


def test_the_logit_lens_sees_the_label_after_the_planted_neurons(run):
    with run.prompt.attached(run.model):
        lens = logit_lens(run.model, run.clean, vocab=run.ids.tolist())
    diff = (lens.values[..., 1] - lens.values[..., 0]) * (2 * LABELS - 1)  # [layer, example]
    assert lens.labels == ["0_pre", "1_pre", "2_pre", "final_post"]
    assert diff[:2].abs().max() < 1e-5 and diff[2].min() > 0.1
    torch.testing.assert_close(diff[3], run.per_example(run.logits))


def test_direct_logit_attribution_sums_to_the_logit_difference_and_names_the_two_mlps():
    own = Run()  # compatibility mode rewrites the weights
    with own.prompt.attached(own.model), pytest.raises(ValueError, match="requires compatibility mode"):
        direct_logit_attribution(own.model, own.clean, *own.ids.flip(0).tolist())
    own.model.enable_compatibility_mode()
    own.model.requires_grad_(False)
    with own.prompt.attached(own.model):
        found = direct_logit_attribution(own.model, own.clean, *own.ids.flip(0).tolist())
    torch.testing.assert_close(
        found.attribution.sum(0), own.per_example(own.logits) * (2 * LABELS - 1), rtol=1e-4, atol=1e-5
    )
    size = dict(zip(found.labels, found.attribution.abs().mean(1).tolist(), strict=True))
    assert set(sorted(size, key=size.get)[-2:]) == {"1_mlp_out", "2_mlp_out"}


def test_neuron_results_of_the_set_are_what_the_mlp_adds_for_the_answer(run):
    direction = run.model.W_U[:, run.ids[1]] - run.model.W_U[:, run.ids[0]]
    index = neuron_index(NEURONS, 2)
    results = run.cache.get_neuron_results(2, neuron_slice=index, pos_slice=-1)
    assert results.shape == (len(CLEAN), 2, planted.D_MODEL)
    acts = run.cache["blocks.2.mlp.hook_post"][:, -1, index]
    torch.testing.assert_close(results, acts[..., None] * run.model.blocks[2].mlp.W_out[index])
    whole = run.cache["blocks.2.hook_mlp_out"][:, -1] @ direction
    torch.testing.assert_close((results @ direction).sum(1), whole, rtol=1e-4, atol=1e-5)


def test_head_results_of_the_two_heads_are_the_label_in_the_residual_stream(run):
    stack, labels = run.cache.stack_head_results(layer=-1, pos_slice=-1, return_labels=True)
    assert len(labels) == planted.N_LAYERS * planted.N_HEADS
    read = run.model.blocks[2].mlp.W_in[:, 3]  # what a planted neuron reads
    sizes = dict(zip(labels, (stack @ read).abs().mean(1).tolist(), strict=True))
    best = {f"L{layer}H{head}" for layer, head in HEADS}
    assert min(sizes[label] for label in best) > 0.05
    assert max(size for label, size in sizes.items() if label not in best) < 1e-5


# Activations of a set


def test_a_sparse_probe_on_our_activations_chooses_a_neuron_that_knows_the_label(run):
    rows = planted.sentences(120, seed=5)
    texts, labels = [row["text"] for row in rows], torch.tensor([row["label"] for row in rows])
    neurons = RANDOM | NEURONS
    found = fit_sparse_probe(set_activations(run.model, run.prompt, texts, neurons), labels, k=1)
    assert list(neurons)[int(found.selected_features[0])] in set(NEURONS)
    assert found.metrics.accuracy == 1.0
    control = fit_sparse_probe(set_activations(run.model, run.prompt, texts, RANDOM), labels, k=1)
    assert control.metrics.accuracy < 0.8


@pytest.mark.parametrize("positions", ["prompt", "last", "mean", "max"])
@pytest.mark.parametrize("size", [{}, {"batch_size": 1}, {"batch_tokens": 40}])
def test_the_activations_of_a_set_are_those_of_all_neurons_in_its_order(run, positions, size):
    texts = [row["text"] for row in planted.sentences(9, seed=6)]
    neurons = NeuronSet([2, 0, 2], [11, 5, 3])
    every = neuron_activations(run.model, run.prompt, texts, positions=positions)
    found = set_activations(
        run.model, run.prompt, texts, neurons, positions=positions, run=RunOptions(**size)
    )
    assert found.shape == (9, 3)
    torch.testing.assert_close(found, every[:, neurons.layer, neurons.index], rtol=1e-5, atol=1e-5)


# Other families


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma3", "bert"])
def test_the_tools_run_on_other_families(family):
    model = tiny.bridge(family)
    rows = 0.1 * torch.randn(3, 32, generator=torch.Generator().manual_seed(0))
    prompt = SoftPrompt(rows, placement="prefix" if family == "bert" else "suffix").requires_grad_(False)
    prompted = PromptedModel(model, prompt, planted.LABEL_WORDS)
    clean, corrupted = (token_rows(prompted, [text]) for text in ("the film was good", "the film was bad"))
    at = int(prompted.tokens(["the film was good"]).readout[0])
    one, zero = prompted.label_ids[[1, 0]].tolist()
    last = at if family == "bert" else -1

    def metric(logits):
        return logits[:, last, one].mean() - logits[:, last, zero].mean()

    neurons = NeuronSet([0, 1], [2, 3])
    with prompt.attached(model), torch.no_grad():
        logits, cache = model.run_with_cache(clean)
        assert float(metric(logits)) == pytest.approx(
            float(prompted.class_logits(["the film was good"]).diff()), abs=1e-5
        )
        found = patching.generic_activation_patch(
            model, corrupted, cache, metric, patch_neuron, "post", index_df=patching_index(neurons, [last])
        )
        assert found.isfinite().all() and found.shape == (2,)
        resid = patching.get_act_patch_resid_pre(model, corrupted, cache, metric)
        assert resid.shape == (2, clean.shape[1])
        stack = cache.stack_head_results(pos_slice=last)
        assert stack.shape[0] == 8
        neuron_results = cache.get_neuron_results(1, neuron_slice=neuron_index(neurons, 1), pos_slice=last)
        assert neuron_results.shape == (1, 1, 32)
    with prompt.attached(model), with_gradients(model):
        scores = attribution_patch(model, clean, corrupted, metric).node_scores
    assert scores and all(score == score for score in scores.values())


@pytest.mark.parametrize(
    ("tool", "error", "message"),
    [
        (
            lambda model, rows: logit_lens(model, rows, vocab=[3]),
            ValueError,
            "mounts .'mlm_head'. on its readout",
        ),
        (
            lambda model, rows: direct_logit_attribution(model, rows, 3),
            ValueError,
            "mounts .'mlm_head'. on its",
        ),
        (
            lambda model, rows: model.set_use_attn_result(True),
            NotImplementedError,
            "use_attn_result: none of",
        ),
    ],
)
def test_what_cannot_work_on_an_encoder_is_refused_with_the_reason(tool, error, message):
    model = tiny.bridge("bert")
    prompt = SoftPrompt(torch.ones(3, 32), placement="prefix")
    rows = token_rows(PromptedModel(model, prompt), ["the film was good", "the film was bad"])
    with prompt.attached(model), pytest.raises(error, match=message):
        tool(model, rows)


@pytest.mark.parametrize(
    ("family", "message"),
    [
        ("gpt2", None),
        ("llama", "n_key_value_heads=2 for n_heads=4"),
        ("gemma3", "not a head's residual contribution"),
        ("bert", "Per-head result computation is unavailable"),
    ],
)
def test_attribution_to_edges_works_where_heads_write_apart_and_is_refused_elsewhere(family, message):
    model = tiny.bridge(family)
    prompt = SoftPrompt(torch.eye(3, 32), placement="prefix" if family == "bert" else "suffix")
    prompted = PromptedModel(model, prompt.requires_grad_(False))
    clean, corrupted = (token_rows(prompted, [text]) for text in ("the film was good", "the film was bad"))
    edges = EdgeAttributionConfig(granularity="edge")

    def patch():
        with prompt.attached(model), with_gradients(model):
            return attribution_patch(model, clean, corrupted, lambda logits: logits[:, -1, 3].sum(), edges)

    if message is None:
        assert patch().edge_scores
        return
    with pytest.raises((ValueError, NotImplementedError), match=message):
        patch()


def test_virtual_tokens_are_no_labels_of_a_next_token_loss(run):
    with run.prompt.attached(run.model), pytest.raises(RuntimeError, match="index 40 is out of bounds"):
        run.model(run.clean, return_type="loss")


# Refusals


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda run: neuron_index(NEURONS, 0), r"no neuron in layer 0; its layers are \[1, 2\]"),
        (lambda run: neuron_index(NEURONS, -1), "layer must be an integer of at least 0"),
        (lambda run: patching_index(NeuronSet([], []), [0]), "got 0 neurons and 1 positions"),
        (lambda run: patching_index(NEURONS, []), "got 3 neurons and 0 positions"),
        (
            lambda run: token_rows(run.prompted, ["the film was good", "good film"]),
            "text 1 has 6 and the longest 8, prompt included; group texts by length",
        ),
        (
            lambda run: set_activations(run.model, run.prompt, CLEAN, NeuronSet([], [])),
            "nothing to read of an empty set",
        ),
        (
            lambda run: set_activations(run.model, run.prompt, CLEAN, NeuronSet([2], [48])),
            "48",
        ),
        (
            lambda run: set_activations(run.model, run.prompt, CLEAN, NEURONS, positions="promt"),
            "did you mean 'prompt'",
        ),
        (
            lambda run: set_activations(run.model, None, CLEAN, NEURONS),
            "without a prompt there are no prompt",
        ),
    ],
)
def test_arguments_that_make_no_sense_are_refused(run, call, message):
    with pytest.raises(ValueError, match=message):
        call(run)
