"""Path patching from heads to neurons: the planted heads carry the label straight into the planted neurons."""

from dataclasses import replace

import planted
import pytest
import tiny
import torch
from toy import QUIET

from tl_skillneurons import NeuronSet, RunOptions, SoftPrompt
from tl_skillneurons.attention import ChosenHeads, PathPatching, patch_heads_to_neurons
from tl_skillneurons.interventions import Twins
from tl_skillneurons.neurons.choice import Choice, text_fingerprints
from tl_skillneurons.stats import ratio_interval

PAIRS = planted.twins(6)
TWINS = Twins(PAIRS, [planted.label_of(clean) for clean, _ in PAIRS])
QUICK = {"n_random": 19, "run": QUIET}
WORDS = Twins([("the film was good", "the film was bad"), ("good plot", "bad plot")], [1, 0])


SIZES = [RunOptions(batch_size=n, progress=False) for n in (1, 2)]


def run(heads, neurons=planted.NEURONS, **changes):
    options = {"twins": TWINS, **QUICK, **changes}
    return patch_heads_to_neurons(
        planted.model(), planted.prompt(), planted.task(), heads, neurons, **options
    )


def test_the_planted_heads_carry_the_whole_answer_straight_into_the_neurons_and_random_heads_none():
    found = run(planted.HEADS)
    assert found.settings["clean_labels"] == TWINS.clean_labels
    frame = found.to_dataframe().set_index("measure")
    assert (frame.recovered > 0.9).all() and (frame.recovered < 1.1).all()
    assert (frame.random_max.abs() < 0.05).all() and (frame.p_random == 1 / 20).all()
    assert (frame.smallest_p == 1 / 20).all() and set(frame.drawn_from) == {"all layers"}


def test_twins_that_answer_alike_leave_no_fraction_of_the_answer():
    found = run(planted.HEADS)
    found = replace(found, logit_diff=torch.zeros_like(found.logit_diff))
    assert "recovered_answer=None" in repr(found)
    with pytest.raises(ValueError, match=r"the gap is 0, .*read logit_diff"):
        found.recovered_answer  # noqa: B018
    with pytest.warns(UserWarning, match="what the answer recovered is NaN"):
        frame = found.to_dataframe().set_index("measure")
    assert frame.loc["activation"].notna().all()
    assert frame.loc["answer", ["recovered", "random_median", "p_random"]].isna().all()


def test_the_twins_of_one_class_are_told_apart_from_all_others():
    numbers = torch.Generator().manual_seed(0)
    diffs = torch.rand(3, 14, dtype=torch.float64, generator=numbers) + torch.tensor([[0], [3], [1]])
    acts = torch.rand(3, 14, 2, dtype=torch.float64, generator=numbers) + torch.tensor([[[0]], [[3]], [[1]]])
    diffs, acts = (torch.cat([one, one[2:].expand(19, *one.shape[1:])]) for one in (diffs, acts))
    labels, heads = torch.tensor([0, 1] * 7), tuple(((0, head),) for head in range(20))
    told = dict.fromkeys(("drawn_from", "heads_chosen", "neurons_chosen"), "unknown")
    found = PathPatching(heads, diffs, acts, {"clean_labels": labels.tolist(), **told})
    each = found.each_class().set_index(["class", "measure"])
    own = labels == 1
    base, source, patched = diffs[:3, own].mean(1).tolist()
    assert each.recovered[1, "answer"] == pytest.approx((patched - base) / (source - base))
    base, source, patched = acts[:3, own]
    way = source - base
    assert each.recovered[1, "activation"] == pytest.approx(
        float(((patched - base) * way).sum() / way.square().sum())
    )
    assert each.rest_recovered[0].tolist() == each.recovered[1].tolist()


def test_one_head_alone_carries_a_part_and_the_two_parts_add_up():
    shares = [float(run([head]).recovered_activation[0]) for head in planted.HEADS]
    both = float(run(planted.HEADS).recovered_activation[0])
    assert all(share > 0.1 for share in shares) and sum(shares) == pytest.approx(both, abs=0.1)


def tiny_run(family, heads, neurons, **changes):
    rows = 0.1 * torch.randn(3, 32, generator=torch.Generator().manual_seed(0))
    prompt = SoftPrompt(rows, placement="prefix" if family == "bert" else "suffix")
    options = {"twins": WORDS, **QUICK, **changes}
    return patch_heads_to_neurons(tiny.kept(family), prompt, tiny.task(), heads, neurons, **options)


@pytest.mark.parametrize("family", ["llama", "gpt2", "bert", "gemma3", "opt"])
def test_a_later_head_reaches_no_earlier_neuron_and_batches_change_nothing(family):
    neurons = NeuronSet([0, 0], [3, 7])
    found = tiny_run(family, [(1, 0), (1, 2)], neurons)
    torch.testing.assert_close(found.activations[2], found.activations[0], rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(found.logit_diff[2], found.logit_diff[0], rtol=1e-4, atol=1e-5)
    one, many = (tiny_run(family, [(0, 1)], NeuronSet([1], [5]), run=sized) for sized in SIZES)
    torch.testing.assert_close(one.activations, many.activations, rtol=1e-4, atol=1e-5)
    assert (one.activations[2] != one.activations[0]).any()  # the path is there


@pytest.mark.parametrize("family", ["llama", "gpt2", "bert", "opt"])
def test_all_heads_of_the_first_layer_bring_its_neurons_all_that_the_text_tells_them(family):
    """In layer 0 nothing else differs at the prompt positions between twins of one length."""
    found = tiny_run(family, [(0, h) for h in range(4)], NeuronSet([0, 0], [3, 30]), n_random=19, seed=1)
    torch.testing.assert_close(found.activations[2], found.activations[1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"heads": [(0, 9)]}, r"got \(0, 9\)"),
        ({"heads": []}, "heads must hold at least one .*got none"),
        ({"n_random": 2}, "n_random must be at least 19"),
        ({"neurons": NeuronSet([0], [0], n_layers=9, d_mlp=48)}, "must belong to one model"),
        ({"neurons": NeuronSet([], [])}, "at least one neuron"),
        ({"twins": Twins([("the good film", "bad film")], [1])}, "pair 0 has 4 and 3"),
    ],
)
def test_what_makes_no_sense_is_refused(changes, message):
    options = {"heads": planted.HEADS, **changes}
    with pytest.raises(ValueError, match=message):
        run(**options)


def test_heads_are_not_patched_between_the_twins_that_chose_them_unless_by_insistence():
    _, bad = PAIRS[0]
    heads = ChosenHeads(tuple(planted.HEADS), "select", frozenset(text_fingerprints([bad, "another text"])))
    with pytest.raises(
        ValueError, match="1 of the 12 examples to measure on are among those of role 'select'"
    ):
        run(heads)
    insisted = run(heads, twins=replace(TWINS, on_chosen_examples=True)).to_dataframe()
    assert set(insisted.heads_chosen) == {"on these examples"} and set(insisted.neurons_chosen) == {"unknown"}
    skill = NeuronSet(planted.NEURONS.layer, planted.NEURONS.index, choice=Choice("select", heads.texts))
    with pytest.raises(ValueError, match=r"chose these neurons, .*insist with twins=Twins\.of"):
        run(list(heads), skill)
    apart = run(ChosenHeads(tuple(planted.HEADS), "select", frozenset(text_fingerprints(["another text"]))))
    assert set(apart.to_dataframe().heads_chosen) == {"on other examples"}


def test_the_interval_of_a_fraction_is_that_of_the_ratio_of_two_means_over_pairs():
    found = run(planted.HEADS[:1])
    frame = found.to_dataframe().set_index("measure")
    base, source, patched = found.activations[:3]
    way = source - base
    ends = {
        "answer": ratio_interval(*(found.logit_diff[at] - found.logit_diff[0] for at in (2, 1))),
        "activation": ratio_interval(((patched - base) * way).sum(1), way.square().sum(1)),
    }
    for name, (low, high) in ends.items():
        row = frame.loc[name]
        assert (row.low, row.high) == (low.item(), high.item()) and row.low <= row.recovered <= row.high


def test_it_comes_back_from_its_file_and_shows_itself_in_a_line(tmp_path):
    found = run(planted.HEADS)
    again = PathPatching.load(found.save(tmp_path / "paths.safetensors"))
    assert (again.heads, again.settings) == (found.heads, found.settings)
    assert again.to_dataframe().equals(found.to_dataframe())
    assert repr(found).startswith("PathPatching(heads=((0, 1), (1, 2)), n_neurons=3, n_random=19, n_pairs=6")
    assert "random_median" in found._repr_html_()
    fewer = replace(found, logit_diff=found.logit_diff[:5], activations=found.activations[:5])
    with pytest.raises(ValueError, match="it tells 20 conditions, and holds 3"):
        PathPatching.load(fewer.save(tmp_path / "paths.safetensors"))


def test_neurons_that_no_twin_moves_have_no_fraction_of_their_change():
    found = run(planted.HEADS)
    for broken, said in ((found.activations[:1].expand_as(found.activations), "are the same in base and source"),
                         (found.activations * torch.nan, "are not finite")):  # fmt: skip
        one = replace(found, activations=broken)
        assert "recovered_activation=None" in repr(one)
        with pytest.raises(ValueError, match=f"{said}.*read activations"):
            one.recovered_activation  # noqa: B018
        with pytest.warns(UserWarning, match="what the activation recovered is NaN"):
            frame = one.to_dataframe().set_index("measure")
        assert frame.loc["activation", ["recovered", "random_max", "p_random"]].isna().all()
        assert frame.loc["answer", "recovered"] > 0.9
