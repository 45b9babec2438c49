"""The panel on planted truth: it must name the neurons that answer, and find nothing at a decoy or at controls."""

import planted
import pytest
import tiny
import torch

from tl_skillneurons import InputCache, NeuronSet, PromptedModel, SoftPrompt, ablate
from tl_skillneurons.interventions import measure_effects as measuring
from tl_skillneurons.interventions.measure_effects import measure_effects, output_norms

QUICK = {"n_random": 19, "n_reference": 16, "progress": False}


@pytest.fixture(scope="module")
def model():
    return planted.model()


@pytest.fixture(scope="module")
def task():
    return planted.task()


def run(model, task, neurons, **changes):
    return measure_effects(model, planted.prompt(), task, neurons, **(QUICK | changes))


def at(frame, metric="accuracy", **wanted):
    for name, value in {"metric": metric, "effect": "total", **wanted}.items():
        frame = frame[frame[name] == value]
    assert len(frame) == 1
    return frame.iloc[0]


@pytest.mark.parametrize("positions", ["prompt", "all"])
def test_the_panel_names_the_neurons_that_answer_and_controls_show_nothing(model, task, positions):
    names = ("mean", "other_class_mean", "class_mean", "keep", "resample")
    panel = run(model, task, planted.NEURONS, interventions=names, positions=[positions])
    frame = panel.to_dataframe()
    for name in ("mean", "resample"):
        found = at(frame, intervention=name)
        assert found.intact == 1 and found.value <= 0.8
        assert found.random_min == found.matched_min == 1
        assert found.p_random == found.p_matched == 1 / 20 and found.p_mcnemar < 0.05
    assert at(frame, intervention="other_class_mean").value <= 0.2  # says the other label
    assert at(frame, intervention="class_mean").value == 1  # all but the class is gone, and nothing is lost
    kept = at(frame, intervention="keep")
    assert kept.value == 1 and kept.random_max <= 0.8 and kept.p_random == 1 / 20


def test_a_decoy_is_predictive_and_causally_inert(model, task):
    panel = run(model, task, planted.DECOY, interventions=("zero", "mean", "other_class_mean"), direct=True)
    frame = panel.to_dataframe()
    accuracies = frame[frame.metric == "accuracy"]
    assert (accuracies.value == 1).all() and (accuracies.p_random == 1).all()
    diffs = frame[frame.metric == "logit_diff"]
    assert (diffs.change.abs() < 0.05 * diffs.intact).all()  # what it writes is seen by the norms' scales


def test_direct_and_total_effects_stand_side_by_side(model, task):
    frame = run(model, task, planted.NEURONS, interventions=("other_class_mean",), direct=True).to_dataframe()
    total, direct = (at(frame, "logit_diff", effect=e) for e in ("total", "direct"))
    assert total.intact == direct.intact and total.change < 0 and direct.change < 0


def test_a_dose_response_curve_goes_through_the_intact_model_at_one(model, task):
    frame = run(
        model, task, planted.NEURONS, interventions=("scale", "zero"), factors=(0, 0.5, 1, 2)
    ).to_dataframe()
    diffs = [at(frame, "logit_diff", intervention=f"scale {f:g}") for f in (0, 0.5, 1, 2)]
    assert diffs[2].change == 0 and diffs[0].value == at(frame, "logit_diff", intervention="zero").value
    assert diffs[0].value < diffs[1].value < diffs[2].value


def test_sizes_are_the_first_of_each_layer(model, task):
    pairs = [*planted.NEURONS, *planted.DECOY]
    both = NeuronSet.from_pairs(pairs, n_layers=planted.NEURONS.n_layers, d_mlp=planted.NEURONS.d_mlp)
    least = min(both.counts_per_layer().values())
    panel = run(model, task, both, interventions=("zero",), sizes=(least,))
    frame = panel.to_dataframe()
    assert set(frame["size"]) == {str(least)} and set(frame.n_neurons) == {least * len(both.by_layer())}


def test_a_conditions_logits_are_those_of_the_run_one_would_do_by_hand(model, task):
    panel = run(model, task, planted.NEURONS, interventions=("zero",), positions=("text", "prompt", "all"))
    texts = list(task.split("report")["text"])
    prompted = PromptedModel(model, planted.prompt(), task.label_words)
    [measured] = panel.measured
    for condition in panel.conditions:
        if condition.neurons == "chosen":
            hooks = ablate(planted.NEURONS, positions=condition.positions)
            with torch.no_grad():
                expected = prompted.class_logits(texts, hooks)
            torch.testing.assert_close(measured.outputs[condition.key], expected, rtol=1e-4, atol=1e-4)


def test_controls_are_matched_on_activation_and_on_what_neurons_write(model, task):
    norms = output_norms(model)
    assert torch.allclose(norms[1], model.blocks[1].mlp.W_out.norm(dim=1), atol=1e-6)
    panel = run(model, task, planted.NEURONS)
    assert panel.settings["matched_on"] == ["output-weight norm", "mean absolute activation"]
    bare = run(model, task, planted.NEURONS, interventions=("zero",), reference=None)
    assert bare.settings["matched_on"] == ["output-weight norm"]


def test_other_tasks_and_plain_text_show_damage_elsewhere(model, task):
    frame_of = run(
        model,
        task,
        planted.NEURONS,
        positions=("prompt", "all"),
        interventions=("mean", "class_mean"),
        other_tasks=[(tiny.task(seed=5), planted.prompt())],
        plain_texts=list(task.split("report")["text"][:6]),
    )
    frame = frame_of.to_dataframe()
    assert list(frame.task.unique()) == [task.name, "tiny", "plain text"]
    plain = frame[frame.task == "plain text"]
    assert set(plain.positions) == {"all"} and set(plain.intervention) == {"mean"}
    assert set(plain.metric) == {"cross_entropy"} and (plain.n_examples == 6).all()
    assert frame_of.specificity()["drop"].notna().all()


def test_an_interrupted_panel_goes_on_where_it_stopped(model, task, tmp_path, monkeypatch):
    path = tmp_path / "panel.safetensors"
    whole = run(model, task, planted.NEURONS, interventions=("zero",), direct=True)
    real, calls = PromptedModel.class_logits, []

    def interrupted(self, *args, **kwargs):
        calls.append(1)
        if len(calls) == 12:
            raise KeyboardInterrupt
        return real(self, *args, **kwargs)

    monkeypatch.setattr(PromptedModel, "class_logits", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(model, task, planted.NEURONS, interventions=("zero",), direct=True, path=path)
    again = run(model, task, planted.NEURONS, interventions=("zero",), direct=True, path=path)
    assert len(calls) == 12 + (40 - 11)
    assert again.to_dataframe().equals(whole.to_dataframe())
    calls.clear()
    run(model, task, planted.NEURONS, interventions=("zero",), direct=True, path=path)
    assert not calls
    with pytest.raises(ValueError, match=r"from another run \(seed differ\)"):
        run(model, task, planted.NEURONS, interventions=("zero",), direct=True, path=path, seed=1)


def test_texts_are_run_once_where_only_the_prompt_is_touched(model, task, monkeypatch):
    cache = InputCache(model)
    run(model, task, planted.NEURONS, interventions=("zero",), cache=cache)
    filled = []
    real = measuring.PromptedModel.past

    def watched(self, tokens):
        filled.append(len(tokens))
        return real(self, tokens)

    monkeypatch.setattr(measuring.PromptedModel, "past", watched)
    run(model, task, planted.NEURONS, interventions=("zero",), cache=cache)
    assert sum(filled) >= 40 * len(task.split("report"))  # each condition took the keys and values


@pytest.mark.parametrize("family", ["bert", "gpt2"])
def test_it_runs_on_other_families_and_leaves_the_model_as_it_was(family):
    model, own = tiny.bridge(family), tiny.task()
    rows = 0.1 * torch.randn(3, 32, generator=torch.Generator().manual_seed(0))
    prompt = SoftPrompt(rows, placement="prefix" if family == "bert" else "suffix")
    flags = [p.requires_grad for p in model.parameters()]
    state = torch.random.get_rng_state()
    neurons = NeuronSet([0, 1, 1], [3, 7, 9])
    options = {"interventions": ("mean", "keep"), "positions": ("prompt", "all"), "direct": True}
    panel = measure_effects(model, prompt, own, neurons, **options, **QUICK)
    assert len(panel.to_dataframe()) == 2 * 2 * 4 * 2
    assert torch.equal(state, torch.random.get_rng_state())
    assert flags == [p.requires_grad for p in model.parameters()]
    assert not any(h for point in model.hook_dict.values() for h in point.fwd_hooks if not h.is_permanent)


OTHER_MODEL = NeuronSet([0], [0], n_layers=7, d_mlp=48)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"neurons": OTHER_MODEL}, "must belong to one model"),
        ({"neurons": NeuronSet([], [])}, "at least one neuron"),
        ({"n_random": 5}, "n_random"),
        ({"reference": None}, "'mean' holds neurons at what they do on reference examples"),
        ({"positions": "prompt"}, "must be a list"),
        ({"positions": ["prompts"]}, "did you mean 'prompt'"),
        ({"sizes": []}, "at least one size"),
        ({"plain_texts": ["the film is good"]}, "plain texts have no prompt positions"),
    ],
)
def test_what_makes_no_sense_is_refused_before_anything_runs(model, task, changes, message):
    changes = dict(changes)
    with pytest.raises(ValueError, match=message):
        run(model, task, changes.pop("neurons", planted.NEURONS), **changes)
