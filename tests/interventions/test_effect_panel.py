"""What a panel says of class logits: closed forms, the control's rank, and its file."""

import json
import math
from dataclasses import replace

import jaxtyping
import pandas as pd
import pytest
import torch

from tl_skillneurons import EffectPanel
from tl_skillneurons._files import load_tensors, save_tensors
from tl_skillneurons.interventions import Condition, Measured

LABELS = torch.tensor([0, 1, 1, 0])
INTACT = torch.tensor([[2.0, 0.0], [0.0, 1.0], [0.0, 3.0], [1.0, 0.0]])  # all right
HARMED = torch.tensor([[0.0, 2.0], [1.0, 0.0], [0.0, 3.0], [1.0, 0.0]])  # two wrong


def panel(chosen, controls, what="mean", labels=LABELS, intact=INTACT, n=20):
    """A panel of one prompt, or of several where the outputs have three axes."""
    chosen, controls, intact = (x if x.ndim == 3 else x[None] for x in (chosen, controls, intact))
    conditions, outputs = [], {}
    for kind, output in [("chosen", chosen), *(("random", controls),) * n, *(("matched", controls),) * n]:
        draw = sum(c.neurons == kind for c in conditions)
        conditions.append(Condition(what, "prompt", "whole", kind, draw, 3))
        outputs[conditions[-1].key] = output.expand_as(intact)
    measured = Measured("toy" if labels is not None else "plain text", "total", labels, intact, outputs)
    return EffectPanel(tuple(conditions), (measured,), "report", {"seed": 0})


def row(frame, metric):
    return frame[frame.metric == metric].iloc[0]


def test_harm_beyond_every_control_has_the_smallest_p_value_and_harmless_controls_show_no_change():
    frame = panel(HARMED, INTACT).to_dataframe()
    for metric in ("accuracy", "logit_diff", "probability"):
        found = row(frame, metric)
        assert found.p_random == found.p_matched == 1 / 21
        assert found.change < 0 and found.random_median == found.intact
    found = row(frame, "accuracy")
    assert (found.intact, found.value, found.change) == (1, 0.5, -0.5)
    assert (found.prompt, found.n_examples, found.role) == (0, 4, "report")
    assert found.p_mcnemar == 0.5  # two lost of two
    assert found.value_low < 0.5 < found.value_high
    assert found.change_low <= -0.5 <= found.change_high
    assert row(frame, "logit_diff").value == pytest.approx((-2 - 1 + 3 + 1) / 4)
    p = [1 / (1 + math.exp(-d)) for d in (-2.0, -1.0, 3.0, 1.0)]
    assert row(frame, "probability").value == pytest.approx(sum(p) / 4)


def test_good_that_no_control_does_is_as_unusual_as_harm_and_both_ways_can_be_counted_in_the_draws():
    one = panel(INTACT, HARMED)
    assert row(one.to_dataframe(), "accuracy").p_random == 1 / 21
    draws = one.draws()
    drawn = draws[(draws.metric == "accuracy") & (draws.neurons == "random")].value
    assert (drawn <= 1.0).all() and not (drawn >= 1.0).any()


def test_harm_that_every_control_does_too_is_no_finding():
    frame = panel(HARMED, HARMED).to_dataframe()
    assert (frame.p_random == 1).all() and (frame.p_matched == 1).all()


def test_the_median_of_an_even_number_of_controls_is_the_mean_of_the_middle_two():
    one = panel(HARMED, INTACT, n=2)
    [measured] = one.measured
    second = [c.key for c in one.conditions if c.neurons == "random"][1]
    measured.outputs[second] = HARMED[None]
    assert row(one.to_dataframe(), "accuracy").random_median == 0.75


def test_plain_text_is_read_as_cross_entropy_of_no_prompt():
    worse = panel(torch.full((4, 1), 2.0), torch.ones(4, 1), labels=None, intact=torch.ones(4, 1))
    found = row(worse.to_dataframe(), "cross_entropy")
    assert (found.change, found.p_random, found.prompt) == (1, 1 / 21, "none")


def test_the_draws_frame_has_every_control_and_the_intervals_come_with_a_seed():
    one = panel(HARMED, INTACT)
    draws = one.draws()
    assert len(draws) == 4 * 41 and set(draws.neurons) == {"chosen", "random", "matched"}
    assert one.to_dataframe(seed=1).equals(one.to_dataframe(seed=1))
    narrow, wide = (row(one.to_dataframe(confidence=c), "logit_diff") for c in (0.5, 0.95))
    assert wide.change_low <= narrow.change_low <= narrow.change_high <= wide.change_high


def test_several_prompts_are_told_apart_and_pooled():
    one = panel(torch.stack([HARMED, INTACT]), INTACT, intact=torch.stack([INTACT, INTACT]))
    frame = one.to_dataframe()
    accuracy = frame[frame.metric == "accuracy"]
    assert accuracy.prompt.tolist() == [0, 1, "pooled"] and accuracy.value.tolist() == [0.5, 1, 0.75]
    assert accuracy.p_random.tolist() == [1 / 21, 1, 1 / 21]
    assert (
        one.to_dataframe(each_prompt=False).value.tolist() == frame[frame.prompt == "pooled"].value.tolist()
    )
    draws = one.draws()
    assert len(draws) == 3 * 4 * 41


def test_specificity_compares_the_drop_with_that_on_other_tasks():
    labels, intact = LABELS.repeat(10), INTACT.repeat(10, 1)
    one = panel(HARMED.repeat(10, 1), intact, labels=labels, intact=intact)
    [first] = one.measured
    half = HARMED.clone()
    half[0] = INTACT[0]  # one of four wrong
    key = one.conditions[0].key
    outputs = {**first.outputs, key: half.repeat(10, 1)[None]}
    other = Measured("other", "total", labels, intact[None], outputs)
    plain = Measured("plain text", "total", None, torch.ones(1, 2, 1), {key: torch.full((1, 2, 1), 1.5)})
    found = EffectPanel(one.conditions, (first, other, plain), "report", {}).specificity().iloc[0]
    assert (found["drop"], found["other_drop"], found["ratio"]) == (0.5, 0.25, 2.0)
    assert (found["random_drop"], found["random_other_drop"], found["cross_entropy_increase"]) == (0, 0, 0.5)
    with pytest.raises(ValueError, match="needs another task"):
        one.specificity()
    with pytest.raises(ValueError, match="did you mean 'accuracy'"):
        EffectPanel(one.conditions, (first, other), "report", {}).specificity("acuracy")


@pytest.mark.parametrize("other", [401, 460, 523, 599])
def test_equal_numbers_of_right_answers_are_a_tie_however_they_are_spread_over_prompts(other):
    def outputs(*right):
        rows = [torch.arange(600) < n for n in right]
        return torch.stack([torch.stack([r.float(), 1 - r.float()], dim=1) for r in rows])

    labels = torch.zeros(600, dtype=torch.long)
    one = panel(outputs(503, 451), outputs(other, 954 - other), labels=labels, intact=outputs(522, 518))
    found = row(one.to_dataframe(each_prompt=False), "accuracy")
    assert found.value == found.random_median and found.p_random == 1
    one = panel(outputs(503, 451), outputs(520, 510), labels=labels, intact=outputs(522, 518))
    assert row(one.to_dataframe(each_prompt=False), "accuracy").p_random == 1 / 21


# How it shows itself, and its file


def whole():
    """Two tasks with two and one prompts, a direct effect, plain text."""
    one = panel(torch.stack([HARMED, INTACT]), INTACT, intact=torch.stack([INTACT, INTACT]), n=2)
    [first] = one.measured
    direct = Measured("toy", "direct", LABELS, first.intact, first.outputs)
    other = Measured("toy", "total", LABELS, INTACT[None], {k: v[:1] for k, v in first.outputs.items()})
    losses = {key: torch.full((1, 2, 1), 1.5) for key in first.outputs}
    plain = Measured("plain text", "total", None, torch.ones(1, 2, 1), losses)
    return EffectPanel(one.conditions, (first, direct, other, plain), "report", {"seed": 0})


def test_it_shows_itself_on_one_line_and_as_a_table():
    one = whole()
    assert repr(one) == (
        "EffectPanel(task='toy', role='report', n_examples=4, n_prompts=2, interventions=['mean'], "
        "positions=['prompt'], n_neurons={'whole': 3}, n_random=2)"
    )
    html = panel(HARMED, INTACT)._repr_html_()
    assert "<table" in html and "EffectPanel(task=" in html


def test_its_file_gives_it_back(tmp_path):
    one = whole()
    again = EffectPanel.load(one.save(tmp_path / "new" / "panel.safetensors"))
    for was, now in zip(one.measured, again.measured, strict=True):
        assert (now.task, now.effect, list(now.outputs)) == (was.task, was.effect, list(was.outputs))
        assert all(torch.equal(now.output(key), was.output(key)) for key in (None, *was.outputs))
        assert was.labels is None or torch.equal(now.labels, was.labels)
    pd.testing.assert_frame_equal(again.draws(), one.draws())
    assert again.conditions == one.conditions and (again.role, again.settings) == (one.role, one.settings)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tensors, header: tensors.pop("0, prompt 1, intact"), "intact' is missing"),
        (lambda tensors, header: tensors.pop("0, labels"), "labels' is missing"),
        (lambda tensors, header: tensors.update({"0, labels": LABELS[:2]}), "must all be"),
        (lambda tensors, header: header["measured"][0].update(n_prompts=3), "is missing"),
        (lambda tensors, header: header["conditions"].pop(0), "conditions that are not told"),
        (lambda tensors, header: header["conditions"][0].update(extra=1), "extra"),
        (lambda tensors, header: header.pop("role"), "'role' is missing"),
        (lambda tensors, header: header.update(finished=False), "interrupted"),
    ],
)
def test_a_file_that_is_not_sound_is_refused(tmp_path, monkeypatch, change, message):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # as users have it
    one = whole()
    tensors, header = load_tensors(one.save(tmp_path / "panel.safetensors"), "EffectPanel")
    header = json.loads(json.dumps(header))
    change(tensors, header)
    path = save_tensors(tmp_path / "other.safetensors", "EffectPanel", tensors, header)
    with pytest.raises(ValueError, match=message):
        EffectPanel.load(path)


def test_another_file_or_none_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError):
        EffectPanel.load(tmp_path / "none")
    with pytest.raises(ValueError, match="holds a SoftPrompt"):
        EffectPanel.load(save_tensors(tmp_path / "a", "SoftPrompt", {"x": torch.ones(1)}, {}))


THREE = torch.arange(24) % 3
SAID = 4.0 * torch.nn.functional.one_hot(THREE, 3) + torch.rand(
    24, 3, generator=torch.Generator().manual_seed(0)
)


def less_of(*classes):
    """The right word's logit is lowered on the examples of these classes."""
    lost = torch.isin(THREE, torch.tensor(classes)) * (1 + torch.arange(24) / 24)
    return SAID - lost[:, None] * torch.nn.functional.one_hot(THREE, 3)


def test_of_several_classes_the_effect_on_each_alone_stands_beside_that_on_all_others():
    found = panel(less_of(0, 2), SAID, labels=THREE, intact=SAID)
    each = found.each_class()
    assert set(each.metric) == {"accuracy", "logit_diff", "probability"}
    rows = each[each.metric == "logit_diff"].set_index("class")
    changes = []
    for x, z, label in zip(SAID.tolist(), less_of(0, 2).tolist(), THREE.tolist(), strict=True):
        margins = [one[label] - max(v for k, v in enumerate(one) if k != label) for one in (x, z)]
        changes.append(margins[1] - margins[0])
    whole = row(found.to_dataframe(), "logit_diff")
    for label, of_class in rows.iterrows():
        own = [c for c, k in zip(changes, THREE.tolist(), strict=True) if k == label]
        rest = [c for c, k in zip(changes, THREE.tolist(), strict=True) if k != label]
        assert of_class.n_examples == len(own) == 8
        assert of_class.change == pytest.approx(sum(own) / 8, abs=1e-6)
        assert of_class.rest_change == pytest.approx(sum(rest) / 16, abs=1e-6)
        assert of_class.share == pytest.approx(sum(own) / sum(changes), abs=1e-6)
        assert of_class.change_low <= of_class.change <= of_class.change_high
        assert of_class.p_random == (1 if label == 1 else 1 / 21)
    assert rows.share.sum() == pytest.approx(1) and not rows.alone.any()
    largest = rows.share.idxmax()
    assert whole.largest_class == largest
    assert whole.change_without == pytest.approx(rows.rest_change[largest])


def test_an_effect_that_one_class_alone_gives_is_told():
    found = panel(less_of(2), SAID, labels=THREE, intact=SAID, n=1)
    whole = row(found.to_dataframe(), "logit_diff")
    assert whole.change < -0.4 and (whole.largest_class, whole.change_without) == (2, 0)
    rows = found.each_class()
    rows = rows[rows.metric == "logit_diff"].set_index("class")
    assert rows.alone.tolist() == [False, False, True] and rows.share.tolist() == pytest.approx([0, 0, 1])
    against = less_of(2) + 0.8 * torch.nn.functional.one_hot(THREE, 3) * (THREE == 0)[:, None]
    rows = panel(against, SAID, labels=THREE, intact=SAID, n=1).each_class()
    rows = rows[rows.metric == "logit_diff"].set_index("class")
    assert (
        rows.change[0] > 0 > rows.change[2] and not rows.alone.any()
    )  # two classes move, against each other
    both = torch.stack([less_of(2), less_of(0, 1, 2)])
    pooled = panel(both, torch.stack([SAID] * 2), labels=THREE, intact=torch.stack([SAID] * 2), n=1)
    rows = pooled.each_class(each_prompt=True)
    rows = rows[rows.metric == "logit_diff"].set_index(["prompt", "class"])
    assert rows.alone[0].tolist() == [False, False, True] and not rows.alone[1].any()
    assert rows.change["pooled", 2] == pytest.approx((rows.change[0, 2] + rows.change[1, 2]) / 2)
    still = panel(SAID, SAID, labels=THREE, intact=SAID, n=1)
    assert math.isnan(row(still.to_dataframe(), "logit_diff").largest_class)
    assert still.each_class().share.isna().all() and not still.each_class().alone.any()


def test_examples_that_belong_together_stay_together_within_a_class():
    member = torch.arange(24) // 6
    settings = {"units": {"toy": {"what": "group", "n": 4, "member": member.tolist()}}}
    found = replace(panel(less_of(2), SAID, labels=THREE, intact=SAID), settings=settings)
    rows = found.each_class()
    assert (rows.n_units == 4).all() and set(rows.unit) == {"group"}
    lost = rows[(rows.metric == "logit_diff") & (rows["class"] == 2)].iloc[0]
    assert lost.change_high < 0 and not lost.alone  # four units establish nothing


def test_two_classes_have_their_rows_and_no_more_columns_in_the_table():
    found = panel(HARMED, INTACT)
    assert "largest_class" not in found.to_dataframe()
    rows = found.each_class()
    rows = rows[rows.metric == "accuracy"].set_index("class")
    assert (rows.change[0], rows.change[1], rows.rest_change[0]) == (-0.5, -0.5, -0.5)
