"""Neurons remember what chose them, through their algebra and their files."""

import json
from dataclasses import replace

import pytest
import torch

from tl_skillneurons import NeuronSet
from tl_skillneurons._files import write_json
from tl_skillneurons.neurons.choice import (
    APART,
    THESE,
    UNKNOWN,
    Choice,
    joint,
    require_apart,
    text_fingerprints,
)
from tl_skillneurons.neurons.controls import less_predictive

SCORE = torch.arange(8.0).reshape(2, 4)
CHOICE = Choice("select", frozenset(text_fingerprints(["a film", "a plot"])), SCORE)
SKILL = NeuronSet([1, 0, 1], [3, 3, 2], n_layers=2, d_mlp=4, choice=CHOICE)


def test_parts_of_a_set_were_chosen_as_it_was_and_controls_by_nothing():
    for part in (
        SKILL.first_per_layer(1),
        SKILL.nested([1])["1"],
        SKILL - NeuronSet([1], [3], n_layers=2, d_mlp=4),
    ):
        assert part.choice is CHOICE
    assert SKILL.random_like(0).choice is None and SKILL.complement().choice is None


def test_two_sets_together_were_chosen_by_all_that_chose_either():
    other = Choice("report", frozenset(text_fingerprints(["an end"])), SCORE.flip(1))
    for both in (SKILL | NeuronSet([0], [0], choice=other), SKILL & NeuronSet([1], [2], choice=other)):
        assert both.choice.role == "select and report" and both.choice.texts == CHOICE.texts | other.texts
        assert both.choice.score.equal(torch.maximum(SCORE, SCORE.flip(1))) and both.choice.whole
    known = (SKILL | NeuronSet([0], [0])).choice
    assert known.texts == CHOICE.texts and not known.whole and known.score is None
    assert joint(None, None) is None


def test_a_file_keeps_the_examples_and_the_score_that_chose(tmp_path):
    score = torch.rand(2, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        skill = NeuronSet([1, 0], [3, 2], 2, 4, choice=replace(CHOICE, score=score.to(dtype)))
        again = NeuronSet.from_json(skill.to_json(tmp_path / "skill.json"))
        assert again == skill and list(again) == list(skill)
        assert (again.choice.role, again.choice.texts) == ("select", CHOICE.texts)
        assert again.choice.score.equal(score.to(dtype).double())
        assert less_predictive(again.choice.score).equal(less_predictive(skill.choice.score))
    unknown = NeuronSet([0], [1], 2, 4, choice=replace(CHOICE, score=None))
    assert NeuronSet.from_json(unknown.to_json(tmp_path / "unknown.json")).choice.score is None
    assert NeuronSet.from_json(NeuronSet([0], [0]).to_json(tmp_path / "hand.json")).choice is None


@pytest.mark.parametrize(
    "change, message",
    [
        ({"shape": [4, 2]}, r"score is of \[4, 2\], its neurons of \[2, 4\]"),
        ({"shape": [2, 5]}, r"got \[2, 5\] in 64 bytes"),
        ({"shape": [2, 3]}, r"got \[2, 3\] in 49 bytes"),
        ({"content": "AAAA"}, "its score can't be read"),
        ({"content": "no base64!"}, "its score can't be read"),
    ],
)
def test_a_score_that_does_not_fit_its_set_is_refused(tmp_path, change, message):
    path = SKILL.to_json(tmp_path / "skill.json")
    content = json.loads(path.read_text())
    del content["checksum"]
    write_json(path, {**content, "score": {**content["score"], **change}})
    with pytest.raises(ValueError, match=message):
        NeuronSet.from_json(path)


def test_examples_that_chose_are_known_again_up_to_white_space():
    assert require_apart(CHOICE, ["an end"], insist=False, by="") == APART
    assert require_apart(None, ["a film"], insist=False, by="") == UNKNOWN
    assert require_apart((SKILL | NeuronSet([0], [0])).choice, ["an end"], insist=False, by="") == UNKNOWN
    assert require_apart(CHOICE, ["a  film "], insist=True, by="") == THESE
    with pytest.raises(
        ValueError, match=r"1 of the 2 examples .* role 'select' that chose these neurons, .* with x=1"
    ):
        require_apart(CHOICE, ["a  film ", "an end"], insist=False, by="x=1")
