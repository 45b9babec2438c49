"""Layers without neurons to name, and layers that differ in how many they have: what isn't there never counts.

References come from the untouched Hugging Face model, by hooks on its own modules, and from slow loops.
"""

from functools import partial

import families
import pytest
import tiny
import torch

import tl_skillneurons as skn
from tl_skillneurons.interventions import Keep, Mean
from tl_skillneurons.models.layers import layers_left_out
from tl_skillneurons.models.pruning import widths
from tl_skillneurons.models.untouched import untouched

RUN = skn.RunOptions(batch_size=7, progress=False)
TASK = tiny.task()
TEXTS = list(TASK.split("report")["text"])[:3]
FEW = tiny.task(n_report=4)
MIXED = {
    "qwen2_moe": lambda own: own.model.layers[0].mlp.down_proj,
    "lfm2_moe": lambda own: own.model.layers[0].feed_forward.w2,
}
DENSE = ("llama4_dense", "llama4", "qwen3_moe", "deepseek_v3", "deepseek_v2", "glm4_moe", "ernie4_5_moe")


@pytest.fixture(scope="module")
def model():
    """Its first layer is dense, its second one is a mixture of experts."""
    return families.bridge("qwen2_moe")


@pytest.fixture(scope="module")
def prompt():
    random = torch.randn(2, 32, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    return skn.SoftPrompt(random, placement="suffix")


@pytest.fixture(scope="module")
def scores(model, prompt):
    return skn.score_neurons(model, prompt, TASK, n_permutations=39, keep_outcomes=True, run=RUN)


@pytest.fixture(scope="module")
def uneven():
    """A Llama-like model with 48 neurons in one layer and 20 in the other."""
    whole = tiny.bridge("llama", dtype=torch.float64)
    keep = skn.NeuronSet.from_mask(torch.arange(48).expand(2, 48) < torch.tensor([[48], [20]]))
    return skn.prune(whole, keep, torch.zeros(2, 48, dtype=torch.float64), layers=[1])


def alone(model, prompt, text, edit=None, own=None):
    """Plain Hugging Face: logits at the last virtual token, and what enters each plain down projection there."""
    own = untouched(model) if own is None else own
    kept, handles = [], []

    def look(module, inputs):
        act = inputs[0].clone().reshape(1, -1, inputs[0].shape[-1])
        kept.append(act[0, -2:].clone())
        return None if edit is None else (edit(act, len(kept) - 1).reshape(inputs[0].shape),)

    for layer in model.blocks:
        mlp = layer.mlp
        out = mlp._modules.get("dense_out", mlp._modules.get("out"))
        if out is not None:
            handles.append(own.part(out).register_forward_pre_hook(look))
    ids = torch.tensor(skn.PromptedModel(model, prompt).encode([text])[0])
    rows = own.model.get_input_embeddings()(ids)
    rows = torch.cat([rows, prompt.embedding.to(rows)])[None]
    with torch.no_grad():
        logits = own.model(inputs_embeds=rows, use_cache=False).logits[0, -1]
    for handle in handles:
        handle.remove()
    return logits, kept


@pytest.mark.parametrize("family", (*DENSE, "afmoe", *MIXED))
def test_dense_layers_beside_sparse_ones_are_those_of_the_model_inside(family):
    model = families.bridge(family)
    result = skn.models.verify(model)
    assert result["neurons"].ok and result["prompt"].ok
    sparse = set() if family == "llama4_dense" else {len(model.blocks) - 1}
    assert layers_left_out(model).keys() == sparse


def slow_scores(model, prompt):
    """Wang et al. (2022), section 3.2, for each neuron that there is: its predictivity by layer."""
    roles = ("baseline", "select")
    acts = {role: [alone(model, prompt, text)[1] for text in TASK.split(role)["text"]] for role in roles}
    labels = TASK.split("select")["label"]
    found = []
    for layer in range(len(acts["select"][0])):
        limit = torch.stack([one[layer] for one in acts["baseline"]]).double().mean(0)
        says = torch.stack([one[layer] > limit for one in acts["select"]])
        right = (says == torch.tensor(labels)[:, None, None].bool()).double().mean(0)
        found.append(torch.maximum(right, 1 - right).amax(0))
    return found


def test_scores_of_a_dense_layer_are_the_papers_and_a_sparse_one_has_none(model, prompt, scores):
    [expected] = slow_scores(model, prompt)
    torch.testing.assert_close(scores.predictivity[0], expected)
    assert scores.predictivity[1].isnan().all() and scores.accuracy[:, 1].isnan().all()
    assert scores.d_mlp == (48, 0)


def test_scores_of_layers_with_fewer_neurons_are_the_papers(uneven, prompt):
    found = skn.score_neurons(uneven, prompt, TASK, run=RUN)
    for layer, (expected, width) in enumerate(zip(slow_scores(uneven, prompt), (48, 20), strict=True)):
        torch.testing.assert_close(found.predictivity[layer, :width], expected)
        assert found.predictivity[layer, width:].isnan().all()
    top = found.top(0.1)
    assert top.counts_per_layer() == {0: 4, 1: 2} and top.d_mlp == (48, 20)
    by_hits = skn.scores.score_labels(uneven, prompt, TASK, ["accuracy", "auc"], run=RUN)
    torch.testing.assert_close(by_hits["accuracy"].score, found.predictivity - 0.5, equal_nan=True)
    assert by_hits["auc"].score[1, 20:].isnan().all() and by_hits["auc"].top(0.1).d_mlp == (48, 20)


def test_nothing_that_is_not_there_is_chosen_counted_or_listed(scores):
    assert scores.top(0.25).counts_per_layer() == {0: 12}
    assert scores.top(48, per="model").counts_per_layer() == {0: 48}
    with pytest.raises(ValueError, match="must give 1 to 48 neurons per model, got 49"):
        scores.top(49, per="model")
    assert len(scores.to_dataframe()) == 48 and not scores.to_dataframe().isna().any().any()
    assert scores.chance_level().n_scores == 2 * 48
    q_value = scores.null.q_value()
    assert q_value[0].isfinite().all() and q_value[1].isnan().all()
    assert len(scores.significant(0.99)) <= 48


def test_the_null_is_that_of_the_neurons_that_are_there(model, prompt, scores):
    labels = torch.tensor(TASK.split("select")["label"])
    drawn = TASK.units("select").permuted(labels, 39, seed=0).double()
    above = torch.stack([scores.outcomes.unpack(0, 0, slice(0, 48))])[0].double()
    right = torch.einsum("re,epn->rpn", drawn, above) + torch.einsum("re,epn->rpn", 1 - drawn, 1 - above)
    accuracy = right / len(labels)
    largest = torch.maximum(accuracy, 1 - accuracy).flatten(1).amax(1)
    torch.testing.assert_close(scores.null.largest[-1], largest)


def test_what_was_left_out_is_named_by_results_and_kept_in_files(model, prompt, scores, tmp_path):
    reason = "layer 1: a mixture of experts"
    panel = skn.measure_effects(
        model, prompt, FEW, scores.top(4), interventions=[Keep(Mean())], n_random=19, run=RUN
    )
    frame = panel.to_dataframe()
    assert frame[["value", "random_median", "matched_median"]].notna().all().all()
    assert (frame.n_neurons == 4).all()
    for result in (scores, skn.scores.evaluate_rules(model, prompt, TASK, scores, run=RUN), panel):
        assert reason in repr(result)
    loaded = skn.NeuronScores.load(scores.save(tmp_path / "scores.safetensors"))
    assert torch.equal(loaded.predictivity.nan_to_num(-1), scores.predictivity.nan_to_num(-1))
    assert reason in repr(loaded) and loaded.outcomes.d_mlp == (48, 0)
    skill = scores.top(3)
    assert skn.NeuronSet.from_json(skill.to_json(tmp_path / "skill.json")) == skill
    assert "48 in layer 0, 0 in layer 1" in repr(skill)


def test_controls_and_complements_are_of_neurons_that_are_there(uneven):
    few = skn.NeuronSet([1, 1], [3, 7]).of_model(uneven)
    match = torch.full((2, 48), torch.nan).masked_fill(
        skn.NeuronSet([], []).of_model(uneven).complement().mask(), 1.0
    )
    drawn = [few.random_like(seed, match=each) for seed in range(40) for each in (None, match)]
    assert max(int(one.index.max()) for one in drawn) < 20
    assert few.complement().counts_per_layer() == {0: 48, 1: 18}
    other = skn.NeuronSet([1, 1], [3, 9]).of_model(uneven)
    assert few.overlap(other).chance_shared == pytest.approx(2 * 2 / 20)
    with pytest.raises(ValueError, match=r"index 20\) is outside the model"):
        skn.NeuronSet([1], [20]).of_model(uneven)


@pytest.mark.parametrize("how", ["zero", "mean"])
def test_ablation_beside_sparse_layers_is_the_edit_of_the_model_inside(model, prompt, scores, how):
    neurons, values = scores.top(5), scores.mean_baseline()

    def edit(act, layer):
        act[:, :, neurons.index] = 0.0 if how == "zero" else values[0, neurons.index].float()
        return act

    expected = torch.stack([alone(model, prompt, text, edit)[0][[11, 12]] for text in TEXTS])
    hooks = skn.ablate(neurons, how=how, values=values if how == "mean" else None)
    found = skn.PromptedModel(model, prompt, {0: 11, 1: 12}).class_logits(TEXTS, hooks)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)


def test_gradients_score_the_neurons_that_are_there(model, prompt):
    found = skn.scores.score_gradients(model, prompt, TASK, run=RUN)
    assert found.score[0].isfinite().all() and found.score[1].isnan().all()


def test_pruning_cuts_dense_layers_and_leaves_sparse_ones(model, prompt, scores):
    keep, values = scores.top(30), scores.mean_baseline()
    small = skn.prune(model, keep, values)
    assert widths(small) == [30, 0]
    others = keep.complement()
    edit = partial(
        lambda act, layer: act.index_copy(
            2, others.index, values[0, others.index].float().expand(1, act.shape[1], -1)
        )
    )
    expected = alone(model, prompt, TEXTS[0], edit)[0]
    found = skn.PromptedModel(small, prompt).run_with_hooks(TEXTS[:1])[0, -1]
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)


TWINS = skn.interventions.Twins(
    [("the film was good", "the film was bad"), ("good plot", "bad plot")], [1, 0]
)
WORDS = [tiny.VOCABULARY["negative"], tiny.VOCABULARY["positive"]]
UNEVEN, DENSE_ALONE = [(0, 3), (1, 7), (1, 19)], [(0, 3), (0, 40)]


def margin(model, prompt, text, label, edit=None):
    """The logit of a label's word minus the other's, by plain Hugging Face."""
    logits = alone(model, prompt, text, edit)[0][WORDS]
    return float(logits[label] - logits[1 - label])


def exchanged(model, prompt, text, source, neurons, share=1.0):
    """An edit that moves neurons at the prompt by a share of the way to what they are for ``source``."""
    _, other = alone(model, prompt, source)

    def edit(act, layer):
        for at, index in neurons:
            if at == layer:
                act[0, -2:, index] += share * (other[layer][:, index] - act[0, -2:, index])
        return act

    return edit


@pytest.fixture(params=["uneven", "sparse"])
def differing(request, uneven, model):
    """A model whose layers differ, and neurons that it has."""
    return (uneven, UNEVEN) if request.param == "uneven" else (model, DENSE_ALONE)


def test_patching_in_layers_that_differ_is_the_exchange_in_the_model_inside(differing, prompt):
    model, neurons = differing
    options = {"twins": TWINS, "curves": (), "directions": ("denoise",), "n_random": 19, "run": RUN}
    found = skn.patch_neurons(model, prompt, TASK, skn.NeuronSet.from_pairs(neurons), **options)
    values = found.results["denoise"].values[0]
    for value, (clean, corrupted), label in zip(values, TWINS.pairs, TWINS.clean_labels, strict=True):
        edit = exchanged(model, prompt, corrupted, clean, neurons)
        assert float(value) == pytest.approx(margin(model, prompt, corrupted, label, edit), abs=1e-5)
        assert abs(float(value) - margin(model, prompt, corrupted, label)) > 1e-4


@pytest.mark.filterwarnings("ignore:.*the gap is .*2 units:UserWarning")
def test_attribution_in_layers_that_differ_is_the_slope_of_that_exchange(differing, prompt):
    model, neurons = differing
    found = skn.attribute_neurons(model, prompt, TASK, twins=TWINS, run=RUN)
    step = 0.1  # norms round in float32
    for layer, index in neurons:
        slopes = []
        for (clean, corrupted), label in zip(TWINS.pairs, TWINS.clean_labels, strict=True):
            up, down = (
                exchanged(model, prompt, corrupted, clean, [(layer, index)], sign * step) for sign in (1, -1)
            )
            above, below = (margin(model, prompt, corrupted, label, edit) for edit in (up, down))
            slopes.append((above - below) / (2 * step))
        assert float(found.effect[layer, index]) == pytest.approx(sum(slopes) / 2, rel=0.02, abs=2e-5)
    there = skn.NeuronSet([], []).of_model(model).complement().mask()
    assert torch.equal(found.effect.isfinite(), there)
    assert len(found.to_dataframe()) == int(there.sum())


def test_direct_effects_in_layers_that_differ_go_through_the_last_norm_of_the_model_inside(differing, prompt):
    model, neurons = differing
    plain, hidden = untouched(model), []
    own = plain.model
    own.model.norm.register_forward_pre_hook(lambda module, inputs: hidden.append(inputs[0][0, -1]))
    logits, acts = alone(model, prompt, TEXTS[0], own=plain)
    write = sum(
        -acts[layer][-1, index] * own.model.layers[layer].mlp.down_proj.weight[:, index]
        for layer, index in neurons
    )
    scale = (hidden[0].square().mean() + own.config.rms_norm_eps).sqrt()
    head = own.lm_head.weight[WORDS]
    expected = logits[WORDS] + head @ (own.model.norm.weight * write / scale)
    prompted = skn.PromptedModel(model, prompt, TASK.label_words)
    intact = prompted.class_logits(TEXTS[:1]).detach()
    hooks = skn.ablate(skn.NeuronSet.from_pairs(neurons), positions="prompt")
    [found] = skn.interventions.direct_logits(prompted, TEXTS[:1], intact, [hooks])
    torch.testing.assert_close(found[0], expected, rtol=0, atol=1e-4)
    assert (found - intact).abs().max() > 1e-3


@pytest.mark.parametrize(
    "study", ["a trajectory", "reading words off weights", "agreement of scores", "this picture"]
)
def test_what_takes_layers_of_one_width_says_so(study, uneven, prompt):
    scores = skn.score_neurons(uneven, prompt, TASK, run=RUN)
    calls = {
        "a trajectory": lambda: skn.studies.prompt_trajectory(uneven, [prompt], TASK, run=RUN),
        "reading words off weights": lambda: skn.studies.weight_words(uneven, scores.top(3)),
        "agreement of scores": lambda: skn.scores.score_agreement(scores, scores, 3),
        "this picture": lambda: skn.plot_scores(scores),
    }
    with pytest.raises(
        ValueError, match=f"^{study} needs equally many neurons .* 48 in layer 0, 20 in layer 1; score"
    ):
        calls[study]()


def test_patterns_of_a_model_with_layers_without_attention_are_refused_by_the_layer(prompt):
    with pytest.raises(ValueError, match=r"layer 0 of tiny \(Lfm2ForCausalLM\) has no attention heads"):
        skn.attention.attention_over_task(families.bridge("lfm2"), prompt, FEW, run=RUN)
