"""Gradient scores against finite differences and a run of one step by hand; comparisons of scores."""

import pytest
import tiny
import torch
from toy import HOOKS, TASK, prompt_for, read

import tl_skillneurons as skn


@pytest.fixture(scope="module")
def models():
    return {family: tiny.bridge(family, dtype=torch.float64) for family in ("gpt2", "bert")}


def prompt_columns(prompted, text):
    ids = prompted.tokens([text]).ids[0].tolist()
    return [c for c, i in enumerate(ids) if i >= tiny.D_VOCAB or i == tiny.VOCABULARY["<mask>"]]


def logit_diff(prompted, text, hooks=()):
    with torch.no_grad():
        logits = prompted.class_logits([text], hooks)[0]
    return float(logits[1] - logits[0])


@pytest.mark.parametrize("family", ["gpt2", "bert"])
def test_the_gradient_is_that_of_finite_differences_and_batches_change_nothing(models, family):
    model, prompt = models[family], prompt_for(family)
    found = skn.scores.score_gradients(model, prompt, TASK, batch_size=4, progress=False)
    split = TASK.split("select")
    prompted = skn.PromptedModel(model, prompt, TASK.label_words)
    layer, position, neuron, step = 0, 1, 9, 1e-5
    expected = 0.0
    for text, label in zip(split["text"], split["label"], strict=True):
        at = prompt_columns(prompted, text)[position]
        act = float(read(model, prompt, [text])[0, layer, position, neuron])
        ends = []
        for change in (step, -step):

            def nudge(acts, hook, change=change, at=at):
                acts = acts.clone()
                acts[:, at, neuron] += change
                return acts

            ends.append(logit_diff(prompted, text, [(HOOKS[layer], nudge)]))
        expected += (2 * label - 1) * act * (ends[0] - ends[1]) / (2 * step)
    assert float(found.values[0, layer, position, neuron]) == pytest.approx(expected / len(split), rel=1e-6)
    alone = skn.scores.score_gradients(model, prompt, TASK, batch_size=1, progress=False)
    torch.testing.assert_close(found.values, alone.values)
    assert (found.name, found.role, found.n_examples) == ("gradient", "select", 15)


def test_one_step_of_conductance_is_the_midpoint_gradient_times_the_change(models):
    model, prompt = models["gpt2"], prompt_for("gpt2")
    found = skn.scores.score_gradients(model, prompt, TASK, "conductance", steps=1, progress=False)
    split = TASK.split("select")
    prompted = skn.PromptedModel(model, prompt, TASK.label_words)
    total = torch.zeros(2, 3, 48, dtype=torch.float64)
    for text, label in zip(split["text"], split["label"], strict=True):
        tokens = prompted.tokens([text])

        def run(share, tokens=tokens, text=text):
            live = {}

            def fade(act, hook):
                scaled = act.detach().clone()
                scaled[tokens.is_text] *= share
                return scaled.requires_grad_()

            hooks = [("embed.hook_out", fade)]
            hooks += [(name, lambda act, hook, name=name: live.__setitem__(name, act)) for name in HOOKS]
            logits = prompted.class_logits([text], hooks)[0]
            at = prompt_columns(prompted, text)
            gradients = torch.autograd.grad(logits[1] - logits[0], [live[name] for name in HOOKS])
            return [torch.stack([x[0, at].detach() for x in side]) for side in (live.values(), gradients)]

        (start, _), (_, gradient), (end, _) = run(0.0), run(0.5), run(1.0)
        total += (2 * label - 1) * gradient * (end - start)
    torch.testing.assert_close(found.values[0], total / len(split))


def test_gradients_have_the_null_of_permuted_labels(models):
    prompts = [prompt_for("bert"), prompt_for("bert", seed=1)]
    plain = skn.scores.score_gradients(models["bert"], prompts, TASK, progress=False)
    found = skn.scores.score_gradients(models["bert"], prompts, TASK, n_permutations=99, progress=False)
    torch.testing.assert_close(found.values, plain.values, rtol=1e-5, atol=1e-7)
    assert found.null.largest.shape == (3, 99) and found.null.p_family.min() >= 0.01
    assert float(found.null.p_value[-1].mean()) == pytest.approx(
        0.5, abs=0.2
    )  # this task is noise to a random model


def test_gradients_leave_the_model_as_it_was_and_need_a_graph(models):
    model, prompt = models["gpt2"], prompt_for("gpt2")
    before = [p.requires_grad for p in model.parameters()]
    skn.scores.score_gradients(model, prompt, TASK, progress=False)
    assert [p.requires_grad for p in model.parameters()] == before
    assert all(p.grad is None for p in model.parameters()) and prompt.embedding.grad is None
    with torch.no_grad(), pytest.raises(ValueError, match=r"outside torch.no_grad\(\)"):
        skn.scores.score_gradients(model, prompt, TASK)
    with pytest.raises(ValueError, match="prompts of one set must have equally many virtual tokens"):
        skn.scores.score_gradients(model, [prompt, prompt_for("gpt2", n=5)], TASK)
    with pytest.raises(ValueError, match="kind must be one of 'gradient', 'conductance'"):
        skn.scores.score_gradients(model, prompt, TASK, "saliency")


def test_scores_are_compared_on_all_neurons_and_on_their_tops(models):
    model, prompt = models["gpt2"], prompt_for("gpt2")
    scores = {"predictivity": skn.score_neurons(model, prompt, TASK, progress=False)}
    scores |= skn.scores.measure_scores(model, prompt, TASK, ["accuracy", "auc"], progress=False)
    frame = skn.studies.compare_scores(scores, amount=4).agreement
    assert list(zip(frame.one, frame.other, strict=True)) == [
        ("predictivity", "accuracy"),
        ("predictivity", "auc"),
        ("accuracy", "auc"),
    ]
    same = frame.iloc[0]
    assert same.spearman == pytest.approx(1) and same.n_shared == 8 and same.jaccard == 1
    assert frame.spearman[1] == pytest.approx(frame.spearman[2]) and 0 < frame.spearman[1] < 1
    assert (frame.chance_jaccard < 0.1).all()


def test_panels_tell_which_score_foretells_the_effect(models):
    model, prompt = models["gpt2"], prompt_for("gpt2")
    scores = {"predictivity": skn.score_neurons(model, prompt, TASK, progress=False)}
    scores |= skn.scores.measure_scores(model, prompt, TASK, ["auc"], progress=False)
    panels = {
        name: skn.measure_effects(
            model, prompt, TASK, score.top(2), interventions=("zero",), n_random=19, progress=False
        )
        for name, score in scores.items()
    }
    effects = skn.studies.compare_scores(scores, amount=2, panels=panels).effects
    assert set(effects.score) == {"predictivity", "auc"} and effects.change.is_monotonic_increasing
    for row in effects.itertuples():
        frame = panels[row.score].to_dataframe()
        own = frame[(frame.metric == "logit_diff") & (frame.intervention == row.intervention)].iloc[0]
        assert row.change == pytest.approx(own.value - own.intact) and row.random_median == own.random_median
    with pytest.raises(ValueError, match="panels must go by the names of the scores"):
        skn.studies.compare_scores(scores, amount=2, panels={"other": panels["auc"]})


def test_scores_that_cannot_be_compared_are_refused(models):
    score = skn.score_neurons(models["gpt2"], prompt_for("gpt2"), TASK, progress=False)
    with pytest.raises(ValueError, match="at least two scores"):
        skn.studies.compare_scores({"one": score})
    with pytest.raises(TypeError, match="must be a NeuronScores or a NeuronStatistic, got str"):
        skn.studies.compare_scores({"one": score, "two": "auc"})
