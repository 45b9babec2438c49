"""What ablating heads does: the planted ones take label and answer from the planted neurons, others don't."""

from dataclasses import replace

import planted
import pytest
import tiny
import torch
from datasets import Dataset
from toy import QUIET, prompt_for

from tl_skillneurons import NeuronSet, PromptedModel, RunOptions
from tl_skillneurons.attention import (
    HeadEffects,
    HeadWriters,
    PathPatching,
    ablate_heads,
    head_effects,
    head_writers,
    mean_head_outputs,
)
from tl_skillneurons.attention.effects import output_weight_norms
from tl_skillneurons.interventions import ClassMean, Examples, Keep, Noise, OtherClassMean, Scale

QUICK = {"n_random": 19, "run": QUIET}


@pytest.fixture(scope="module")
def model():
    return planted.model()


@pytest.mark.parametrize(("how", "positions"), [("mean", "prompt"), ("zero", "prompt"), ("mean", "all")])
def test_without_the_planted_heads_label_and_answer_are_gone_and_random_heads_change_nothing(
    model, how, positions
):
    found = head_effects(
        model,
        planted.prompt(),
        planted.task(),
        planted.HEADS,
        planted.NEURONS,
        how=how,
        positions=positions,
        **QUICK,
    )
    frame = found.to_dataframe().set_index("measure")
    assert frame.intact["accuracy"] == 1 and frame.ablated["accuracy"] <= 0.75
    for control, n_distinct in (("random", 9), ("matched", 9), ("all_layers", 19)):
        assert frame[f"{control}_min"]["accuracy"] == 1
        assert (frame[f"p_{control}"] == 1 / (n_distinct + 1)).all()
        assert (frame[f"smallest_p_{control}"] == 1 / (n_distinct + 1)).all()
    assert frame.intact["separation"] > 1.5 > 0.3 > frame.ablated["separation"]
    assert frame.random_min["separation"] > 1.5
    assert {name: len(draws) for name, draws in found.controls.items()} == {
        "random": 9,
        "matched": 9,
        "all_layers": 19,
    }
    for draws in found.controls.values():
        assert len({frozenset(drawn) for drawn in draws}) == len(draws) and not any(
            set(drawn) & set(planted.HEADS) for drawn in draws
        )
    assert (found.role, found.settings["positions"]) == ("report", positions)


def test_other_heads_are_no_finding(model):
    found = head_effects(model, planted.prompt(), planted.task(), [(0, 0), (1, 0)], planted.NEURONS, **QUICK)
    frame = found.to_dataframe().set_index("measure")
    assert frame.ablated["accuracy"] == 1 and frame.p_random["accuracy"] == 1


def test_logits_and_activations_are_those_of_the_run_one_would_do_by_hand(model):
    task = planted.task()
    neurons = NeuronSet([2, 1], [3, 20])
    found = head_effects(model, planted.prompt(), task, planted.HEADS, neurons, how="zero", **QUICK)
    prompted = PromptedModel(model, planted.prompt(), task.label_words)
    kept = {}
    for row, text in list(enumerate(task.split("report")["text"]))[:4]:
        hooks = ablate_heads(planted.HEADS, positions="prompt")
        look = [
            (f"blocks.{layer}.mlp.hook_post", lambda act, hook, at=layer: kept.update({at: act}))
            for layer in (1, 2)
        ]
        with torch.no_grad():
            prompted.run_with_hooks([text], [*hooks, *look])
            torch.testing.assert_close(
                found.logits[1, row], prompted.class_logits([text], hooks)[0], rtol=1e-4, atol=1e-5
            )
        expected = torch.stack([kept[2][0, -3:, 3].mean(), kept[1][0, -3:, 20].mean()])
        torch.testing.assert_close(found.activations[1, row], expected, rtol=1e-4, atol=1e-5)


@pytest.fixture(scope="module")
def found(model):
    heads = planted.HEADS
    return head_effects(model, planted.prompt(), planted.task(), heads, planted.NEURONS, **QUICK)


def test_heads_take_any_intervention_class_means_keep_the_answer_and_those_of_the_other_class_turn_it(model):
    def accuracy(how):
        args = (model, planted.prompt(), planted.task(), planted.HEADS, planted.NEURONS)
        frame = head_effects(*args, how=how, **QUICK).to_dataframe().set_index("measure")
        return frame.ablated["accuracy"]

    assert accuracy(ClassMean()) == accuracy(Keep()) == accuracy(Scale(1.0)) == 1
    assert accuracy(OtherClassMean()) == 0
    assert accuracy(lambda act, hook: 0 * act) <= 0.75


def test_matched_heads_write_about_as_much_where_they_can(model):
    """By its weights alone, head (2, 0) has one nearest neighbour in its layer, and draws it first or second."""
    norms = output_weight_norms(model)
    by_hand = torch.stack([block.attn.W_O.double().flatten(1).norm(dim=1) for block in model.blocks])
    torch.testing.assert_close(norms, by_hand)
    args = (model, planted.prompt(), planted.task(), [(2, 0)], planted.NEURONS)
    found = head_effects(*args, how="zero", examples=Examples(reference=None), **QUICK)
    assert found.settings["matched_on"] == ["output-weight norm"]
    assert found.settings["reference"] == [None, 256]
    assert {layer for drawn in found.controls["matched"] for layer, _ in drawn} == {2}
    frame = found.to_dataframe()
    assert (
        frame.p_matched.between(1 / 4, 1).all()
        and (frame.smallest_p_matched == 1 / 4).all()
        and (frame.matched_min <= frame.matched_median).all()
    )


def test_too_few_other_heads_are_told_with_what_would_do(model):
    """One of four heads has three others in its layer, drawn once each; those of all layers are eleven."""
    args = (model, planted.prompt(), planted.task(), [(2, 0)], planted.NEURONS)
    found = head_effects(*args, how="zero", n_random=20, run=QUIET)
    assert {name: len(draws) for name, draws in found.controls.items()} == {
        "random": 3,
        "matched": 3,
        "all_layers": 11,
    }
    random, *_ = found.notes
    assert random == (
        "random: only 3 distinct controls (20 were asked for): p > 0.25; "
        "0.05 takes 19, so a larger set or pool of heads"
    )
    assert random in found.to_dataframe().attrs["notes"] and random in repr(found)


def test_reference_means_are_of_all_classes_evenly_where_texts_are_sorted_by_label(model):
    task = planted.task()
    rows = sorted(task.split("baseline"), key=lambda row: row["label"])
    by_label = Dataset.from_list([{key: row[key] for key in ("text", "label")} for row in rows])
    by_label = replace(task, splits={**task.splits, "baseline": by_label})
    args = (model, planted.prompt(), by_label, planted.HEADS, planted.NEURONS)
    found = head_effects(*args, examples=Examples(n_reference=6), **QUICK)
    prompted = PromptedModel(model, planted.prompt(), task.label_words, run=QUIET)
    texts = [row["text"] for label in (0, 1) for row in [row for row in rows if row["label"] == label][:3]]
    values = mean_head_outputs(model, planted.prompt(), texts, run=QUIET)
    hooks = ablate_heads(planted.HEADS, how="mean", values=values, positions="prompt")
    by_hand = prompted.class_logits(list(task.split("report")["text"]), hooks)
    torch.testing.assert_close(found.logits[1], by_hand, rtol=1e-4, atol=1e-5)


def test_both_controls_are_told_with_median_range_and_two_sided_p(found):
    frame = found.to_dataframe().set_index("measure")
    values = found.separation.abs().mean(1)
    for start, stop, control in ((2, 11, "random"), (11, 20, "matched"), (20, 39, "all_layers")):
        drawn = values[start:stop]
        assert frame[f"{control}_median"]["separation"] == pytest.approx(float(drawn.quantile(0.5)))
        assert frame[f"{control}_max"]["separation"] == pytest.approx(float(drawn.max()))
    assert len(values) == 39


def test_a_neuron_that_is_constant_in_the_intact_run_is_left_out_of_the_separation_and_counted(found):
    """However it moves when heads are ablated: by how many of its standard deviations nobody can say."""
    silent = torch.full_like(found.activations[..., :1], 0.3)
    silent[1:] += found.activations[1:, :, :1]
    more = replace(found, activations=torch.cat([found.activations, silent], dim=2))
    assert more.separation[:, -1].isnan().all() and torch.equal(more.separation[:, :-1], found.separation)
    note = "separation: 1 of 4 neurons are constant in the intact run and left out of it"
    frame = more.to_dataframe()
    assert note in more.notes and note in frame.attrs["notes"] and note in repr(more)
    assert frame.drop(columns="neurons_chosen").equals(found.to_dataframe().drop(columns="neurons_chosen"))
    alone = replace(found, activations=silent).to_dataframe().set_index("measure")
    nothing = ["intact", "ablated", "random_median", "random_max", "p_random", "p_matched"]
    assert alone.loc["separation", nothing].isna().all() and alone.loc["accuracy", nothing].notna().all()


def test_whose_answers_count_and_whose_means_are_taken_can_be_chosen(model):
    examples = Examples(role="select", reference="train", n_reference=4, max_length=9)
    args = (model, planted.prompt(), planted.task(), planted.HEADS, planted.NEURONS)
    found = head_effects(*args, examples=examples, **QUICK)
    assert found.role == "select" and found.settings["max_length"] == 9
    assert found.settings["reference"] == ["train", 4]
    task = planted.task()
    prompted = PromptedModel(model, planted.prompt(), task.label_words, max_length=9, run=QUIET)
    with torch.no_grad():
        expected = prompted.class_logits(list(task.split("select")["text"]))
    torch.testing.assert_close(found.logits[0], expected, rtol=0, atol=1e-5)


def test_it_comes_back_from_its_file_and_shows_itself_in_a_line(found, tmp_path):
    again = HeadEffects.load(found.save(tmp_path / "heads.safetensors"))
    assert (again.heads, again.controls, again.settings) == (found.heads, found.controls, found.settings)
    assert again.to_dataframe().equals(found.to_dataframe())
    assert repr(found).startswith(
        "HeadEffects(heads=((0, 1), (1, 2)), how='mean', positions='prompt', n_neurons=3"
    )
    assert "separation" in found._repr_html_()
    with pytest.raises(ValueError, match="holds a HeadEffects, expected a PathPatching"):
        PathPatching.load(tmp_path / "heads.safetensors")


def test_a_file_that_tells_other_conditions_than_it_holds_is_refused(found, tmp_path):
    fewer = replace(found, logits=found.logits[:5], activations=found.activations[:5])
    with pytest.raises(ValueError, match="not a sound HeadEffects file: it tells 39 conditions, and holds 5"):
        HeadEffects.load(fewer.save(tmp_path / "heads.safetensors"))


def test_a_random_models_heads_in_any_batch_give_the_same():
    model, heads = tiny.bridge("gpt2"), [(0, 1), (1, 2)]
    args = (model, prompt_for("gpt2"), tiny.task(), heads, NeuronSet([0, 1], [3, 7]))
    few, many = (
        head_effects(*args, how=Noise(0.5), n_random=19, run=RunOptions(batch_size=n, progress=False))
        for n in (5, 16)
    )
    torch.testing.assert_close(few.logits, many.logits, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(few.activations, many.activations, rtol=1e-4, atol=1e-5)


def test_heads_are_not_measured_on_the_examples_that_chose_them_unless_by_insistence(model, tmp_path):
    task, how = planted.task(), {"how": "zero", **QUICK}
    args = (model, planted.prompt(), task)
    writers = head_writers(*args, planted.NEURONS, projection="up", n_permutations=19, run=QUIET)
    for heads in (
        writers.top_heads(2),
        HeadWriters.load(writers.save(tmp_path / "w.safetensors")).top_heads(2),
    ):
        with pytest.raises(
            ValueError, match="16 of the 16 examples to measure on are among those of role 'select'"
        ):
            head_effects(*args, heads, planted.NEURONS, examples=Examples(role="select"), **how)
    apart = head_effects(*args, heads, planted.NEURONS, **how)
    assert set(apart.to_dataframe().heads_chosen) == {"on other examples"}
    some = task.limit(select=6)  # some of those that chose
    args = (model, planted.prompt(), some)
    with pytest.raises(ValueError, match="6 of the 6 examples"):
        head_effects(*args, heads[:1], planted.NEURONS, examples=Examples(role="select"), **how)
    insist = Examples(role="select", on_chosen_examples=True)
    insisted = head_effects(*args, heads, planted.NEURONS, examples=insist, **how)
    assert set(insisted.to_dataframe().heads_chosen) == {"on these examples"}
    assert "heads_chosen='on these examples'" in repr(insisted)
    by_hand = head_effects(*args, list(heads), planted.NEURONS, **how)
    assert set(by_hand.to_dataframe().heads_chosen) == {"unknown"}


REFUSED = [
    ({"heads": []}, "at least one"),
    ({"heads": [(0, 1), (0, 1)]}, r"got \(0, 1\) twice"),
    ({"heads": [(0, 9)]}, r"head in \[0, 4\), got \(0, 9\)"),
    ({"heads": [(-1, 0)]}, "integers from 0"),
    ({"n_random": 5}, "n_random must be at least 19"),
    ({"neurons": NeuronSet([0], [0], n_layers=9, d_mlp=48)}, "must belong to one model"),
    ({"neurons": NeuronSet([], [])}, "at least one neuron"),
    ({"how": "noises"}, "how must be one of"),
    ({"positions": "last"}, "positions must be one of"),
    ({"examples": Examples(reference=None)}, "'mean' holds heads at what they do on reference examples"),
    ({"examples": Examples(n_reference=0)}, "n_reference must be an integer of at least 1"),
    ({"seed": -1}, "seed must be an integer of at least 0"),
]


@pytest.mark.parametrize(("changes", "message"), REFUSED)
def test_what_makes_no_sense_is_refused(model, changes, message):
    options = {"heads": planted.HEADS, "neurons": planted.NEURONS, **QUICK, **changes}
    with pytest.raises(ValueError, match=message):
        head_effects(model, planted.prompt(), planted.task(), **options)
