"""Steering while a model writes: planted neurons steer and matched ones don't; numbers against slow loops."""

import math
from dataclasses import replace

import pandas as pd
import planted
import pytest
import tiny
import torch
from toy import QUIET, TASK, prompt_for

import tl_skillneurons as skn
from tl_skillneurons.interventions import Scale, Shift
from tl_skillneurons.interventions.references import Reference
from tl_skillneurons.neurons.choice import Choice, text_fingerprints
from tl_skillneurons.stats import bootstrap_mean, rank_p_value
from tl_skillneurons.studies import ReadOut, SteeringCurve, SteeringOptions, steer
from tl_skillneurons.studies.steering import numbers
from tl_skillneurons.studies.steering.directions import probe_direction
from tl_skillneurons.studies.steering.measures import readers, word_share
from tl_skillneurons.studies.steering.rivals import pushes
from tl_skillneurons.studies.steering.writing import change_norms, written_losses

TEXTS = ["the film was good", "a good plot and a cast", "quick but good", "good"]
DOSES = [1.0, 60.0]
SHORT = SteeringOptions(positions="all", max_new_tokens=2)
BESIDE = replace(SHORT, rivals="probe")
SETTINGS = {"toward": 1, "texts": TEXTS, "n_random": 19, "options": SHORT, "run": QUIET}
MEAN = "measure == 'class' and at == 'mean'"
MEASURE = {"good words": ["good"], "length": len}


@pytest.fixture(scope="module")
def writes():
    """The planted model, made to write a word of the class where its neurons say so, and its task and prompt."""
    model, task, prompt = planted.model(), planted.task(), planted.prompt()
    word = planted.VOCABULARY
    rows = model.original_model.lm_head.weight
    with torch.no_grad():
        rows[word["good"]] = 1.5 * rows[word["positive"]]
        rows[word["bad"]] = 1.5 * rows[word["negative"]]
    return model, prompt, task


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("steering")


@pytest.fixture(scope="module")
def curve(writes, folder):
    measure = {**MEASURE, "other class": ReadOut(*writes[1:], toward=0)}
    settings = {**SETTINGS, "options": BESIDE}
    return steer(
        *writes, planted.NEURONS, doses=DOSES, measure=measure, path=folder / "written.json", **settings
    )


def row_of(curve, dose, measure):
    frame = curve.to_dataframe()
    [row] = frame[(frame.dose == dose) & (frame.measure == measure)].to_dict("records")
    return row


def test_planted_neurons_steer_what_is_written_and_matched_ones_do_not(curve):
    for measure in ("class", "good words"):
        row = row_of(curve, 60.0, measure)
        assert row["change_low"] > 0.2
        assert row["p_random"] == row["p_matched"] == row["smallest_p_matched"] == 1 / 20
        assert row["matched_max"] < row["value"] - 0.2
    assert row["value"] == 1 and row["untouched"] == row["matched_max"] == 0
    assert row["collapse"] and row["perplexity"] > row["perplexity_max"]  # one word, again and again
    still = row_of(curve, 1.0, "class")
    assert still["change"] == 0 and still["p_matched"] == 1 and not still["collapse"]


def test_every_number_is_what_a_slow_loop_makes_of_the_answers(curve, writes):
    model, prompt, task = writes
    own = curve.answers[curve.answers.by != "probe"]
    texts = own.groupby(["set", "dose"], dropna=False).answer.apply(list)
    before, after = texts["untouched"].iloc[0], texts["whole", 60.0]
    plain = skn.PromptedModel(model, None, run=QUIET)
    assert tuple(before) == plain.generate(TEXTS, 2).answers
    hooks = skn.ablate(planted.NEURONS, how=Scale(60.0), positions="all")
    assert tuple(after) == plain.generate(TEXTS, 2, interventions=hooks).answers
    read = skn.PromptedModel(model, prompt, task.label_words, run=QUIET)
    chance = torch.tensor([0.5])

    def probability(answer):
        return read.class_logits([answer]).detach().softmax(1)[:, 1] if answer else chance

    changes = torch.cat(
        [probability(one) - probability(other) for one, other in zip(after, before, strict=True)]
    )
    row = row_of(curve, 60.0, "class")
    assert row["change"] == pytest.approx(float(changes.mean()), abs=1e-6)
    low, high = bootstrap_mean(changes.double())
    assert (row["change_low"], row["change_high"]) == pytest.approx((float(low), float(high)), abs=1e-6)
    assert row["value"] + row_of(curve, 60.0, "other class")["value"] == pytest.approx(1)
    assert row_of(curve, 60.0, "length")["value"] == sum(map(len, after)) / len(after)
    draws = curve.draws[(curve.draws.dose == 60.0) & (curve.draws.measure == "class")]
    for kind in ("random", "matched"):
        drawn = draws[draws.neurons == kind].value
        assert (
            len(drawn) == 19 and row[f"{kind}_max"] == drawn.max() and row[f"{kind}_median"] == drawn.median()
        )
        assert row[f"p_{kind}"] == rank_p_value(row["value"], drawn.tolist(), "two-sided")
    price = curve.draws[(curve.draws.dose == 60.0) & (curve.draws.measure == "cross_entropy")]
    spread = price[price.neurons.isin(["random", "matched"])].value.map(math.exp)
    assert (row["perplexity_min"], row["perplexity_max"]) == pytest.approx((spread.min(), spread.max()))


def test_a_probe_goes_as_far_as_the_neurons_in_their_place_beside_random_directions(curve, writes):
    model, _, task = writes
    plain = skn.PromptedModel(model, None, run=QUIET)
    split = task.split("baseline")
    acts = skn.prompts.neuron_activations(model, None, list(split["text"]), positions="mean", run=QUIET)
    labels = torch.tensor(split["label"])
    vectors = {layer: probe_direction(acts[:, layer], labels == 1)[0] for layer in (1, 2)}
    hooks = skn.ablate(planted.NEURONS, how=Scale(60.0), positions="all")
    ids = plain.generate(TEXTS, 2, interventions=hooks).token_ids
    far = change_norms(plain, TEXTS, ids, hooks, "all")
    assert curve.settings["norms"]["whole"] == {
        "1": {"1": 0.0, "2": 0.0},
        "60": {str(layer): pytest.approx(norm) for layer, norm in far.items()},
    }
    written = {
        dose: tuple(curve.answers[(curve.answers.by == "probe") & (curve.answers.dose == dose)].answer)
        for dose in DOSES
    }
    steered = plain.generate(TEXTS, 2, interventions=pushes(vectors, far, 1, "all"))
    assert steered.answers == ("good good",) * 4
    assert written == {1.0: plain.generate(TEXTS, 2).answers, 60.0: steered.answers}
    [row] = curve.rivals[(curve.rivals.dose == 60.0) & (curve.rivals.measure == "length")].to_dict("records")
    assert row["value"] == sum(map(len, steered.answers)) / 4 and row["norm"] == pytest.approx(
        (far[1] + far[2]) / 2
    )
    assert row["direction_fitted"] == "on other examples" and "matched_min" not in row
    draws = curve.draws[(curve.draws.dose == 60.0) & (curve.draws.measure == "length")]
    random = draws[draws.neurons == "random direction"].value
    assert len(random) == 19 and (row["random_min"], row["random_max"]) == (random.min(), random.max())
    assert row["p_random"] == rank_p_value(row["value"], random.tolist(), "two-sided")
    assert all(fit > 0.8 for fit in curve.settings["rivals"]["probe"]["auc"].values())
    compared = curve.comparison.query("measure == 'class' and at == 'neurons'")
    assert compared.dose.tolist() == [60.0] and compared.neurons.tolist() == [
        row_of(curve, 60.0, "class")["change"]
    ]
    assert set(curve.comparison.measure) == set(curve.doses.measure) - {"cross_entropy"}
    assert curve.verdicts == (f"whole, probe, toward: {curve.comparison.query(MEAN).verdict.item()}",)


def test_cross_entropy_of_answers_is_that_of_the_untouched_hugging_face_model():
    bridge, plain = tiny.bridge("gpt2"), tiny.hf_model("gpt2")
    prompted = skn.PromptedModel(bridge, None, run=QUIET)
    ids, texts = [[7, 9, 2], [8], [5, 5, 5, 11]], ["the film was good", "quick", "a dull plot"]
    found = written_losses(prompted, texts, ids)
    for text, answer, loss in zip(prompted.encode(texts), ids, found.tolist(), strict=True):
        total = 0.0
        for k, token in enumerate(answer):
            with torch.no_grad():
                logits = plain(torch.tensor([[*text, *answer[:k]]])).logits[0, -1]
            total -= float(logits.log_softmax(0)[token])
        assert loss == pytest.approx(total / len(answer), rel=1e-5)


def test_repetition_and_the_range_of_controls_are_counted():
    ids = [1, 2, 3, 1, 2, 3, 1, 2, 3]  # 7 runs of three, 3 different ones
    assert numbers.repeated_share(ids) == 1 - 3 / 7
    assert numbers.repeated_share(ids[:2]) == 0
    assert numbers.outside(math.nan, [1.0, 2.0]) and numbers.outside(2.1, [1.0, 2.0])
    assert not numbers.outside(1.0, [1.0, 2.0])
    assert word_share("A dull, DULL film", {"dull"}) == 0.5 and word_share(" ", {"dull"}) == 0


def test_it_goes_on_where_it_stopped_shows_itself_and_survives_a_file(curve, writes, folder, monkeypatch):
    path = folder / "written.json"
    monkeypatch.setattr(skn.PromptedModel, "generate", lambda *a, **k: pytest.fail("it wrote"))
    again = steer(*writes, planted.NEURONS, doses=DOSES[1:], measure=MEASURE, path=path, **SETTINGS)
    kept = curve.doses[(curve.doses.dose == 60.0) & (curve.doses.measure != "other class")]
    kept = kept.reset_index(drop=True)
    pd.testing.assert_frame_equal(again.doses, kept)
    assert again.rivals.empty and again.comparison.empty and not again.verdicts
    settings = {**SETTINGS, "options": BESIDE}
    again = steer(*writes, planted.NEURONS, doses=DOSES[1:], measure=MEASURE, path=path, **settings)
    kept = curve.rivals[(curve.rivals.dose == 60.0) & (curve.rivals.measure != "other class")]
    pd.testing.assert_frame_equal(again.rivals, kept.reset_index(drop=True))
    with pytest.raises(ValueError, match=r"is from another run \(texts:"):
        steer(*writes, planted.NEURONS, path=path, **{**SETTINGS, "texts": TEXTS[1:]})
    assert repr(curve).startswith("SteeringCurve(toward=1, doses=[1.0, 60.0], largest_change=0.")
    assert "<table" in curve._repr_html_() and len(curve.notes) == 4
    assert curve.notes[2].startswith("probe: over all neurons of a layer, fitted on 24 texts of 'baseline'")
    assert curve.notes[3] == "intervals: too narrow over 4 units (text), it takes 8 or more"
    read = SteeringCurve.load(curve.save(folder / "curve.json"))
    for name in ("doses", "draws", "answers", "rivals", "comparison"):
        pd.testing.assert_frame_equal(getattr(read, name), getattr(curve, name))
    assert read.settings == curve.settings


def test_the_picture_has_the_doses_and_the_range_of_the_controls(curve):
    pytest.importorskip("plotly")
    figure = curve.plot(measures=["class", "cross_entropy"])
    line = next(one for one in figure.data if one.name == "chosen neurons")
    rows = curve.doses[curve.doses.measure == "class"]
    assert list(line.x) == DOSES and list(line.y) == rows.value.tolist()
    assert list(line.marker.symbol) == ["diamond", "x"]
    band = next(one for one in figure.data if one.name == "matched neurons")
    assert list(band.y) == [*rows.matched_min, *reversed(rows.matched_max.tolist())]
    assert "1/20" in figure.layout.meta["not_shown"]
    rival = next(one for one in figure.data if one.name == "direction: probe")
    assert list(rival.y) == curve.rivals[curve.rivals.measure == "class"].value.tolist()
    assert "go as far as the chosen ones do" in figure.layout.meta["seen"]
    figure = curve.plot(measures=["class"], against="perplexity")
    line, rival = (next(one for one in figure.data if one.name == n) for n in ("chosen neurons", rival.name))
    assert list(line.x) == pytest.approx([*rows.perplexity]) and list(line.y) == rows.value.tolist()
    assert rival.x[0] == line.x[0] and rival.y[1] == curve.rivals.query("measure == 'class'").value.iloc[1]
    dots = [one for one in figure.data if one.mode == "markers"]
    assert [(one.name, len(one.x)) for one in dots] == [
        (name, 38) for name in ("random neurons", "matched neurons", "random direction")
    ]
    with pytest.raises(ValueError, match="measure must be one of"):
        curve.plot(measures=["clas"])


def test_shifts_are_along_what_the_neurons_do_at_text(writes):
    model, prompt, task = writes
    options = SteeringOptions(how="shift", positions="generated", max_new_tokens=3)
    settings = {"toward": 1, "texts": TEXTS[:2], "doses": [40.0], "n_random": 19, "run": QUIET}
    prompts = [prompt, planted.prompt(1)]
    reads = {f"by prompt {k}": ReadOut(one, task, 1) for k, one in enumerate(prompts)}
    found = steer(model, prompts, task, {"a": planted.NEURONS}, measure=reads, options=options, **settings)
    split = task.split("baseline")
    plain = skn.PromptedModel(model, None, run=QUIET)
    acts = skn.prompts.neuron_activations(model, None, list(split["text"]), positions="mean", run=QUIET)
    values = Reference(acts, torch.tensor(split["label"]))
    hooks = skn.ablate(planted.NEURONS, how=Shift(1, 40.0), values=values, positions="generated")
    written = plain.generate(TEXTS[:2], 3, interventions=hooks).answers
    assert tuple(found.answers[found.answers.set == "a"].answer) == written
    assert set(found.doses.intervention) == {"shift to 1 by 40"}
    value = found.doses.set_index("measure").value
    assert value["class"] == pytest.approx((value["by prompt 0"] + value["by prompt 1"]) / 2)
    assert value["by prompt 0"] != value["by prompt 1"] and {"p_random", "p_matched"} < {*found.doses}


def test_neurons_that_the_texts_chose_are_refused_unless_insisted(writes):
    chosen = Choice("select", frozenset(text_fingerprints(TEXTS[:1])))
    skill = skn.NeuronSet([1], [7], **planted.PLACE, choice=chosen)
    with pytest.raises(ValueError, match=r"1 of the 4 examples .* insist with SteeringOptions"):
        steer(*writes, skill, **SETTINGS)
    fitted = {**SETTINGS, "options": BESIDE, "texts": [writes[2].split("baseline")["text"][0]]}
    with pytest.raises(ValueError, match=r"of role 'baseline' that chose these directions"):
        steer(*writes, planted.NEURONS, **fitted)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n_random": 5}, "n_random must be at least 19"),
        ({"toward": 2}, r"toward must be a class of 'planted', an integer in \[0, 2\), got 2"),
        ({"doses": []}, "doses must hold at least one"),
        ({"doses": [math.nan]}, "doses must be finite"),
        ({"doses": [2, 2.0]}, "two doses are 'scale 2'"),
        ({"doses": [-1.0]}, "factor must be at least 0"),
        ({"texts": []}, "texts must not be empty"),
        ({"neurons": {}}, "neurons must hold at least one set"),
        ({"neurons": skn.NeuronSet([], [])}, "neurons must hold at least one neuron"),
        ({"measure": {"class": len}}, "a measure can't be called 'class'"),
        ({"measure": {"w": []}}, "must hold at least one word"),
        ({"measure": {"w": ["very good"]}}, "must hold single words, got 'very good'"),
        ({"options": SteeringOptions(how=lambda dose: "class_mean")}, "texts to write after have none"),
        (
            {"options": SteeringOptions(how=lambda dose: lambda act, hook: act), "path": "x"},
            "a file can't tell",
        ),
    ],
)
def test_what_makes_no_sense_is_refused_before_anything_is_written(writes, changes, message, monkeypatch):
    monkeypatch.setattr(skn.PromptedModel, "generate", lambda *a, **k: pytest.fail("it wrote"))
    given = {"neurons": planted.NEURONS, "doses": [2.0], **SETTINGS, **changes}
    with pytest.raises(ValueError, match=message):
        steer(*writes, **given)


def test_judges_that_give_no_number_and_models_that_can_not_write_are_refused(writes):
    model, prompt, task = writes
    own = ReadOut(prompt, task, 1)
    for judge, error, message in [
        (lambda answer: "fine", TypeError, "judge 'j' must give a number"),
        (lambda answer: math.nan, ValueError, "judge 'j' must give a finite number"),
    ]:
        with pytest.raises(error, match=message):
            readers({"j": judge}, own, model, QUIET)["j"](["a film"])
    with pytest.raises(TypeError, match="must be a ReadOut, a function"):
        readers({"j": 3}, own, model, QUIET)
    with pytest.raises(ValueError, match="can't write one token after another"):
        steer(tiny.bridge("bert"), prompt_for("bert"), TASK, [(0, 3)], toward=1, run=QUIET)
    for wrong, message in [
        ({"how": "scal"}, "how must be one of"),
        ({"positions": "prompt"}, "positions must be"),
    ]:
        with pytest.raises(ValueError, match=message):
            SteeringOptions(**wrong)
    several = skn.Task.from_datasets(
        {"train": [{"a": f"the {w}", "b": w, "label": k % 2} for k, w in enumerate(tiny.WORDS[:12])]},
        template="{a} {b}",
        label_words=planted.LABEL_WORDS,
        name="pairs",
    )
    with pytest.raises(ValueError, match="which has several columns"):
        ReadOut(prompt, several, 1).reader(model, QUIET)
