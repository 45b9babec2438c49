"""The engine on planted truth: it must name the neurons that answer, and find nothing at a decoy or at controls."""

from dataclasses import replace

import pandas as pd
import planted
import pytest
import tiny
import torch
from toy import QUIET

import tl_skillneurons as skn
from tl_skillneurons import InputCache, NeuronSet, PromptedModel, RunOptions, SoftPrompt, ablate
from tl_skillneurons.interventions import (
    Beyond,
    Examples,
    Keep,
    Mean,
    Scale,
    Zero,
    effects,
    measure_effects,
)
from tl_skillneurons.interventions.controls import output_norms, with_controls
from tl_skillneurons.neurons.choice import Choice, text_fingerprints

FEW = Examples(n_reference=16)


@pytest.fixture(scope="module")
def model():
    return planted.model()


@pytest.fixture(scope="module")
def task():
    return planted.task()


def run(model, task, neurons=planted.NEURONS, prompts=None, **changes):
    options = {"n_random": 19, "examples": FEW, "run": QUIET, **changes}
    return measure_effects(model, prompts or planted.prompt(), task, neurons, **options)


def at(frame, metric="accuracy", **wanted):
    for name, value in {"metric": metric, "effect": "total", **wanted}.items():
        frame = frame[frame[name] == value]
    assert len(frame) == 1
    return frame.iloc[0]


# What it finds


@pytest.mark.parametrize(
    ("positions", "names"),
    [
        ("prompt", ("mean", "resample", "other_class_mean", "class_mean", "keep")),
        ("all", ("mean", "other_class_mean")),
    ],
)
def test_the_panel_names_the_neurons_that_answer_and_controls_show_nothing(model, task, positions, names):
    frame = run(model, task, interventions=names, positions=[positions]).to_dataframe()
    for name in {"mean", "resample"} & set(names):
        found = at(frame, intervention=name)
        assert found.intact == 1 and found.value <= 0.8
        assert found.random_min == found.matched_min == 1
        assert found.p_random == found.p_matched == 1 / 20 and found.p_mcnemar < 0.05
    assert at(frame, intervention="other_class_mean").value <= 0.2  # says the other label
    if "keep" not in names:
        return
    assert at(frame, intervention="class_mean").value == 1  # all but the class is gone, and nothing is lost
    kept = at(frame, intervention="keep")
    assert kept.value == 1 and kept.random_max <= 0.8 and kept.p_random == 1 / 20


def test_a_decoy_is_predictive_and_causally_inert(model, task):
    panel = run(
        model,
        task,
        planted.DECOY,
        interventions=("zero", "mean", "other_class_mean"),
        beyond=Beyond(direct=True),
    )
    frame = panel.to_dataframe()
    accuracies = frame[frame.metric == "accuracy"]
    assert (accuracies.value == 1).all() and (accuracies.p_random == 1).all()
    diffs = frame[frame.metric == "logit_diff"]
    assert (diffs.change.abs() < 0.05 * diffs.intact).all()  # what it writes is seen by the norms' scales


def test_direct_and_total_effects_stand_side_by_side(model, task):
    panel = run(model, task, interventions="other_class_mean", beyond=Beyond(direct=True))
    total, direct = (at(panel.to_dataframe(), "logit_diff", effect=e) for e in ("total", "direct"))
    assert total.intact == direct.intact and total.change < 0 and direct.change < 0


def test_a_dose_response_curve_goes_through_the_intact_model_at_one(model, task):
    doses = [Scale(factor) for factor in (0, 0.5, 1)]
    frame = run(model, task, interventions=[*doses, Zero()]).to_dataframe()
    diffs = [at(frame, "logit_diff", intervention=dose.name) for dose in doses]
    assert diffs[2].change == 0 and diffs[0].value == at(frame, "logit_diff", intervention="zero").value
    assert diffs[0].value < diffs[1].value < diffs[2].value


def test_several_sets_go_by_their_names_each_beside_its_own_controls(model, task):
    sets = {"that answer": planted.NEURONS, "decoy": planted.DECOY}
    frame = run(model, task, sets, interventions="mean").to_dataframe()
    assert at(frame, set="that answer").n_neurons == 3 and at(frame, set="decoy").n_neurons == 1
    assert at(frame, set="that answer").p_random == 1 / 20 and at(frame, set="decoy").p_random == 1
    alone = run(model, task, planted.NEURONS, interventions="mean").to_dataframe()
    shared = frame[frame.set == "that answer"].drop(columns="set").reset_index(drop=True)
    # a product of matrices of another size rounds differently
    pd.testing.assert_frame_equal(shared, alone.drop(columns="set"), rtol=1e-12, atol=1e-12)


def test_other_tasks_and_plain_text_show_damage_elsewhere(model, task):
    panel = run(
        model,
        task,
        positions=("prompt", "all"),
        interventions=("mean", "class_mean"),
        beyond=Beyond(
            other_tasks=[(tiny.task(seed=5), planted.prompt())],
            plain_texts=list(task.split("report")["text"][:6]),
        ),
    )
    frame = panel.to_dataframe()
    assert list(frame.task.unique()) == [task.name, "tiny", "plain text"]
    plain = frame[frame.task == "plain text"]
    assert set(plain.positions) == {"all"} and set(plain.intervention) == {"mean"}
    assert set(plain.metric) == {"cross_entropy"} and (plain.n_examples == 6).all()
    with pytest.warns(
        UserWarning, match="the interval of other_drop holds zero"
    ):  # the other task is no task of theirs
        assert set(plain.prompt) == {"none"} and panel.specificity()["drop"].notna().all()


def test_a_function_stands_beside_the_values_with_the_numbers_of_the_one_it_repeats(model, task):
    def nothing_left(act, hook):
        return torch.zeros_like(act)

    frame = run(model, task, interventions=[Zero(), nothing_left], positions="all").to_dataframe()
    first, second = (
        frame[frame.intervention == name].drop(columns="intervention").reset_index(drop=True)
        for name in ("zero", "nothing_left")
    )
    # a function may look at other positions, so the last MLP is not cut to the read-out for it: rounding differs
    numbers = [c for c in first if first[c].dtype == float]
    torch.testing.assert_close(
        torch.tensor(first[numbers].values),
        torch.tensor(second[numbers].values),
        rtol=1e-4,
        atol=1e-5,
        equal_nan=True,
    )


# What it runs


@pytest.mark.parametrize(("role", "places"), [("select", ["prompt"]), ("report", ["text", "all"])])
def test_a_conditions_logits_are_those_of_the_run_one_would_do_by_hand(model, task, role, places):
    panel = run(model, task, interventions="zero", positions=places, examples=Examples(role=role))
    split = task.split(role)
    prompted = PromptedModel(model, planted.prompt(), task.label_words)
    [measured] = panel.measured
    assert (panel.role, measured.labels.tolist()) == (role, split["label"][:])
    for condition in panel.conditions:
        if condition.neurons == "chosen":
            hooks = ablate(planted.NEURONS, positions=condition.positions)
            with torch.no_grad():
                expected = prompted.class_logits(list(split["text"]), hooks)
            torch.testing.assert_close(measured.outputs[condition.key][0], expected, rtol=1e-4, atol=1e-4)
            found = at(panel.to_dataframe(), positions=condition.positions)
            answers = measured.outputs[condition.key][0].argmax(1)
            assert found.value == (answers == measured.labels).double().mean()
            assert found.intact == prompted.accuracy(task, role) and found.n_examples == len(split)


def watched(monkeypatch):
    """The neurons that each condition held, in order."""
    asked = []
    real = effects.ablate_where_known

    def ablate_where_known(neurons, *args, **kwargs):
        asked.append(neurons)
        return real(neurons, *args, **kwargs)

    monkeypatch.setattr(effects, "ablate_where_known", ablate_where_known)
    return asked


@pytest.mark.parametrize("reference", [None, "baseline"])
def test_controls_are_other_neurons_equally_many_per_layer_the_same_for_every_prompt(
    model, task, monkeypatch, reference
):
    asked = watched(monkeypatch)
    skill = NeuronSet([0, 0, 1, 1, 1], [2, 9, 7, 0, 47], 3, 48)
    examples = Examples(reference=reference, n_reference=16)
    run(
        model,
        task,
        skill,
        [planted.prompt(0), planted.prompt(1)],
        interventions="zero",
        seed=5,
        examples=examples,
    )
    assert asked[:39] == asked[39:] and asked[0] == skill
    random, matched = asked[1:20], asked[20:39]
    for controls in (random, matched):
        assert len({tuple(control) for control in controls}) == 19
        for control in controls:
            assert len(control & skill) == 0
            assert {layer: len(index) for layer, index in control.by_layer().items()} == {0: 2, 1: 3}
    assert [list(one) for one in random] == [list(skill.random_like(5 + draw)) for draw in range(19)]
    norms = output_norms(model)
    if reference is None:
        assert [list(one) for one in matched] == [
            list(skill.random_like(5 + k, match=norms)) for k in range(19)
        ]


def test_controls_are_matched_on_activation_and_on_what_neurons_write(model, task):
    norms = output_norms(model)
    assert torch.allclose(norms[1], model.blocks[1].mlp.W_out.norm(dim=1), atol=1e-6)
    panel = run(model, task)
    assert panel.settings["matched_on"] == ["output-weight norm", "mean absolute activation"]
    bare = run(model, task, interventions=("zero",), examples=Examples(reference=None))
    assert bare.settings["matched_on"] == ["output-weight norm"]


def test_longer_texts_are_cut_where_answers_and_reference_values_come_from(model, task, monkeypatch):
    lengths = []
    real = PromptedModel.assemble

    def assemble(self, *args):
        tokens = real(self, *args)
        lengths.append(tokens.ids.shape[1])
        return tokens

    monkeypatch.setattr(PromptedModel, "assemble", assemble)
    panel = run(model, task, interventions="mean", examples=Examples(n_reference=16, max_length=7))
    assert max(lengths) == 7 and panel.settings["max_length"] == [[7]]
    lengths.clear()
    run(model, task, interventions="mean")
    assert max(lengths) > 7


def test_texts_are_run_once_where_only_the_prompt_is_touched(model, task, monkeypatch):
    cache = RunOptions(cache=InputCache(model), progress=False)
    run(model, task, interventions=("zero",), run=cache)
    filled = []
    real = PromptedModel.past

    def past(self, tokens):
        filled.append(len(tokens))
        return real(self, tokens)

    monkeypatch.setattr(PromptedModel, "past", past)
    run(model, task, interventions=("zero",), run=cache)
    assert sum(filled) >= 40 * len(task.split("report"))  # each condition took the keys and values


@pytest.mark.parametrize("family", ["bert", "gpt2"])
def test_it_runs_on_other_families_and_leaves_the_model_as_it_was(family):
    model, own = tiny.bridge(family), tiny.task()
    rows = 0.1 * torch.randn(3, 32, generator=torch.Generator().manual_seed(0))
    prompt = SoftPrompt(rows, placement="prefix" if family == "bert" else "suffix")
    flags = [p.requires_grad for p in model.parameters()]
    state = torch.random.get_rng_state()
    neurons = NeuronSet([0, 1, 1], [3, 7, 9])
    options = {"interventions": (Mean(), Keep()), "positions": "all"}
    panel = run(model, own, neurons, prompt, beyond=Beyond(direct=True), **options)
    assert len(panel.to_dataframe()) == 2 * 4 * 2
    assert torch.equal(state, torch.random.get_rng_state())
    assert flags == [p.requires_grad for p in model.parameters()]
    assert not any(h for point in model.hook_dict.values() for h in point.fwd_hooks if not h.is_permanent)


# Several prompts


def test_each_prompt_has_the_numbers_it_has_alone_and_its_own_reference_values(model, task):
    both = [planted.prompt(0), planted.prompt(1)]
    options = {"interventions": Mean(), "positions": "all", "beyond": Beyond(direct=True)}
    together = run(model, task, prompts=both, **options)
    for number, prompt in enumerate(both):
        alone = run(model, task, prompts=prompt, **options)
        for whole, one in zip(together.measured, alone.measured, strict=True):
            assert torch.equal(whole.intact[number], one.intact[0])
            for condition in alone.conditions:
                # matched controls are matched on the mean over prompts, so they may be other neurons
                if condition.neurons != "matched" and condition.key in one.outputs:
                    assert torch.equal(whole.outputs[condition.key][number], one.outputs[condition.key][0])
        own = together.to_dataframe()
        own = own[own.prompt == number].reset_index(drop=True)
        unmatched = [c for c in own if "matched" not in c and c != "prompt"]
        assert own[unmatched].equals(alone.to_dataframe()[unmatched])


def test_pooled_rows_are_means_over_prompts_among_the_controls_means(model, task):
    panel = run(model, task, prompts=[planted.prompt(k) for k in range(3)], interventions="mean")
    frame, draws = panel.to_dataframe(), panel.draws()
    pooled = frame[frame.prompt == "pooled"].reset_index(drop=True)
    assert list(frame.prompt.unique()) == [0, 1, 2, "pooled"]
    pd.testing.assert_frame_equal(panel.to_dataframe(each_prompt=False), pooled, check_dtype=False)
    for name in ("intact", "value", "change"):
        each = frame[frame.prompt != "pooled"].groupby(["intervention", "metric"], sort=False)[name].mean()
        assert pooled[name].tolist() == pytest.approx(each.tolist())
    assert (pooled.change_low <= pooled.change).all() and (pooled.change <= pooled.change_high).all()
    assert pooled.value_low.isna().all() and pooled.p_mcnemar.isna().all()
    found = at(pooled, "logit_diff", intervention="mean")
    drawn = draws[
        (draws.metric == "logit_diff") & (draws.intervention == "mean") & (draws.neurons == "random")
    ]
    means = drawn[drawn.prompt != "pooled"].groupby("draw").value.mean()
    assert drawn[drawn.prompt == "pooled"].value.tolist() == pytest.approx(means.tolist())
    assert found.random_median == pytest.approx(means.median()) and found.p_random == 1 / 20
    assert at(pooled, "accuracy", intervention="mean").p_random == 1 / 20


def test_other_tasks_may_have_several_prompts_too(model, task):
    other = tiny.task(seed=5)
    beyond = Beyond(other_tasks=[(other, [planted.prompt(2), planted.prompt(3)])])
    panel = run(model, task, interventions="mean", beyond=beyond)
    frame = panel.to_dataframe()
    assert frame[frame.task == task.name].prompt.unique().tolist() == [0]
    assert frame[frame.task == "tiny"].prompt.unique().tolist() == [0, 1, "pooled"]
    dropped = frame[(frame.task == "tiny") & (frame.prompt == "pooled") & (frame.metric == "accuracy")].change
    assert panel.specificity().other_drop.tolist() == pytest.approx((-dropped).tolist())


# Refusals


def tiny_width():
    return SoftPrompt(torch.ones(3, 16), placement="suffix")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"neurons": NeuronSet([0], [0], n_layers=7, d_mlp=48)}, "must belong to one model"),
        ({"neurons": NeuronSet([3], [0])}, "outside the model"),
        ({"neurons": NeuronSet([], [])}, "at least one neuron"),
        ({"neurons": {}}, "at least one set"),
        (
            {"neurons": {"a": planted.DECOY, "none": NeuronSet([], [])}},
            "at least one neuron, got none in 'none'",
        ),
        ({"neurons": NeuronSet.from_mask(torch.ones(3, 48, dtype=torch.bool))}, "layer 0 has 0 neurons"),
        ({"n_random": 5}, "n_random must be at least 19"),
        ({"n_random": 0}, "n_random must be an integer of at least 1, got 0"),
        ({"seed": -1}, "seed must be an integer of at least 0"),
        (
            {"examples": Examples(reference=None)},
            "'mean' holds neurons at what they do on reference examples",
        ),
        ({"examples": Examples(role="test")}, "role must be one of"),
        ({"examples": Examples(n_reference=0)}, "n_reference must be an integer of at least 1"),
        ({"interventions": ["men"]}, "did you mean 'mean'"),
        ({"interventions": []}, "at least one, got none"),
        ({"positions": []}, "at least one of 'all', 'prompt'"),
        ({"positions": ["prompts"]}, "did you mean 'prompt'"),
        ({"prompts": [planted.prompt(), tiny_width()]}, "embeddings are 16 wide"),
        ({"beyond": Beyond(plain_texts=["the film is good"])}, "plain texts have no prompt positions"),
        (
            {"beyond": Beyond(other_tasks=[(planted.task(), planted.prompt())])},
            "tasks must have different names, by which their rows go, got 'planted' twice",
        ),
        ({"interventions": lambda act, hook: act}, "can't tell one function from another"),
    ],
)
def test_what_makes_no_sense_is_refused_and_nothing_is_written(model, task, tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        run(model, task, path=tmp_path / "panel.safetensors", **changes)
    assert list(tmp_path.iterdir()) == []


def test_no_prompt_at_all_is_refused(model, task):
    with pytest.raises(ValueError, match="prompts must hold at least one soft prompt, got none"):
        measure_effects(model, [], task, planted.NEURONS, run=QUIET)


# What chose the neurons


def chosen_by(task, role="select", neurons=planted.NEURONS):
    """The neurons as a score on ``role`` chooses them: they and the decoy score high, the others by their number."""
    score = torch.arange(planted.D_MLP).repeat(planted.N_LAYERS, 1) / 1000
    for layer, index in [*planted.NEURONS, *planted.DECOY]:
        score[layer, index] = 1
    texts = frozenset(text_fingerprints(task.split(role)["text"]))
    shape = (planted.N_LAYERS, planted.D_MLP)
    return NeuronSet(neurons.layer, neurons.index, *shape, choice=Choice(role, texts, score))


def test_the_least_predictive_as_active_stand_beside_them_and_the_file_keeps_them(model, task, tmp_path):
    path = tmp_path / "effects.safetensors"
    panel = run(model, task, chosen_by(task), interventions="mean", path=path, n_random=19)
    frame = panel.to_dataframe()
    found = at(frame)
    assert found.least_median == found.least_min == found.intact == 1 and found.p_least == 1 / 20
    assert found.smallest_p_least == found.smallest_p_random == 1 / 20
    assert set(frame.neurons_chosen) == {"on other examples"}
    told = panel.settings["controls"]["whole"]
    assert [told[kind]["distinct"] for kind in ("random", "matched", "least")] == [19, 19, 19]
    assert len(told["least"]["differ"]) == 2 and told["random"]["differ"] == []
    drawn = panel.draws()
    assert (drawn.neurons == "least").sum() == 19 * drawn.metric.nunique()
    pd.testing.assert_frame_equal(skn.EffectPanel.load(path).to_dataframe(), frame)
    assert "least_median" in panel._repr_html_()


def test_every_one_of_the_least_is_of_the_less_predictive_half_of_its_layer(model, task):
    drawn = with_controls({"whole": chosen_by(task)}, model, None, 19, 0)
    least = [one for (_, kind, _), one in drawn.sets.items() if kind == "least"]
    assert len(least) == 19
    for one in least:
        assert (one.index <= planted.D_MLP / 2 + len(planted.NEURONS) + 1).all()
        assert one.layer.equal(planted.NEURONS.layer)


def test_a_set_from_its_file_has_the_third_control_too(model, task, tmp_path):
    skill = chosen_by(task)
    again = NeuronSet.from_json(skill.to_json(tmp_path / "skill.json"))
    one, other = (with_controls({"whole": some}, model, None, 19, 0) for some in (skill, again))
    assert other.told["whole"]["least"]["distinct"] == 19 and one.sets.keys() == other.sets.keys()
    assert all(list(one.sets[key]) == list(other.sets[key]) for key in one.sets)


@pytest.mark.filterwarnings("default")
def test_of_a_models_most_active_neurons_no_others_are_like_and_a_warning_says_so():
    """The 0.5 % of each layer that are most active on 15 texts, real activations of a model of random weights."""
    bert, texts = tiny.bridge("bert"), tiny.task()
    rows = 0.1 * torch.randn(3, 32, generator=torch.Generator().manual_seed(0))
    prompt = SoftPrompt(rows, placement="prefix")
    scores = skn.score_neurons(bert, prompt, texts, run=QUIET)
    active = scores.mean_absolute()
    n = max(1, int(0.005 * scores.d_mlp))
    index = active.argsort(dim=1, descending=True)[:, :n]
    most = NeuronSet(torch.arange(len(index)).repeat_interleave(n), index.flatten(), *active.shape)
    with pytest.warns(
        UserWarning, match=r"controls differ .* more than 0.1 .*matched by -\d.*no others are like"
    ):
        drawn = with_controls({"whole": most}, bert, active, 19, 0)
    matched = torch.stack(
        [active[o.layer, o.index] for (_, kind, _), o in drawn.sets.items() if kind == "matched"]
    )
    own = active[most.layer, most.index]
    apart = ((matched.mean(0) - own) / active.double().std(1).float()[most.layer]).mean()
    assert (
        drawn.told["whole"]["matched"]["differ"][0] == pytest.approx(float(apart), rel=1e-4) and apart < -0.1
    )
    assert any(note.startswith("matched: matched controls differ") for note in drawn.notes)


def test_without_a_score_the_panel_says_why_there_is_no_third_control(model, task):
    panel = run(model, task, interventions="zero")
    assert "least_median" not in panel.to_dataframe()
    [note] = [one for one in panel.notes if one.startswith("least")]
    assert note.startswith("least: not drawn, for the set doesn't know by which score") and note in repr(
        panel
    )
    assert panel.to_dataframe().attrs["notes"] == list(panel.notes)
    most = NeuronSet(
        [0] * 20, range(20), choice=Choice("select", frozenset(), torch.arange(48.0).repeat(3, 1))
    )
    [note] = [one for one in run(model, task, most, interventions="zero").notes if one.startswith("least")]
    assert "for in the less predictive half layer 0 has 4 neurons to draw 20" in note


def test_neurons_are_not_measured_on_the_examples_that_chose_them_unless_by_insistence(model, task):
    skill, how = chosen_by(task, "report"), {"interventions": "zero"}
    with pytest.raises(
        ValueError, match=r"16 of the 16 .*chose these neurons.*Examples\(on_chosen_examples=True\)"
    ):
        run(model, task, skill, **how)
    insist = Examples(n_reference=16, on_chosen_examples=True)
    panel = run(model, task, {"top": skill, "hand": planted.NEURONS}, examples=insist, **how)
    by_set = panel.to_dataframe().groupby("set").neurons_chosen.unique()
    assert by_set["top"] == ["on these examples"] and by_set["hand"] == ["unknown"]
    assert "neurons_chosen='on these examples'" in repr(panel)
    assert set(run(model, task, chosen_by(task), **how).to_dataframe().neurons_chosen) == {
        "on other examples"
    }


def test_matched_controls_that_differ_too_much_can_be_refused(model, task):
    with pytest.raises(ValueError, match="matched controls may differ by 1e-09 standard deviations, and"):
        run(model, task, interventions="zero", beyond=Beyond(most_difference=1e-9))


def test_the_panel_says_how_many_texts_were_cut_and_what_its_intervals_speak_for(model, task):
    prompt = planted.prompt()
    lengths = [len(model.tokenizer(text).input_ids) for text in task.split("report")["text"]]
    longest = max(lengths)
    cut = Examples(reference=None, max_length=longest + prompt.n_virtual_tokens - 1)
    panel = run(model, task, interventions="zero", examples=cut)
    n_cut = lengths.count(longest)
    frame = panel.to_dataframe()
    assert n_cut and set(frame.n_cut) == {n_cut} and f"n_cut={n_cut}" in repr(panel)
    assert frame.about.str.startswith("this prompt alone (3 or more would speak for others)").all()


def test_a_ratio_to_what_other_tasks_lose_is_told_only_where_they_lose(model, task):
    other = replace(planted.task(seed=5), name="other")
    panel = run(model, task, interventions="mean", beyond=Beyond(other_tasks=[(other, planted.prompt())]))
    row = panel.specificity().iloc[0]
    assert row.other_drop_low <= row.other_drop <= row.other_drop_high
    assert row.ratio == pytest.approx(row["drop"] / row.other_drop) and row.other_drop_low > 0
    none = run(
        model,
        task,
        planted.DECOY,
        interventions="mean",
        beyond=Beyond(other_tasks=[(other, planted.prompt())]),
    )
    with pytest.warns(UserWarning, match="the interval of other_drop holds zero"):
        row = none.specificity().iloc[0]
    assert pd.isna(row.ratio) and row.other_drop_low <= 0 <= row.other_drop_high
