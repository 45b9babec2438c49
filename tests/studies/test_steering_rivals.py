"""Directions beside steered neurons: fitted, as long as the neurons' change, and compared at equal perplexity."""

import math

import numpy as np
import pytest
import tiny
import torch
from toy import QUIET
from transformer_lens.tools.analysis.sparse_probing import fit_sparse_probe

import tl_skillneurons as skn
from tl_skillneurons.cli.steer import RIVALS
from tl_skillneurons.interventions import Keep, Scale
from tl_skillneurons.interventions.references import Reference
from tl_skillneurons.stats.units import Units
from tl_skillneurons.studies import SteeringOptions
from tl_skillneurons.studies.steering.directions import (
    DIRECTIONS,
    directions_in,
    mean_difference,
    probe_direction,
    random_directions,
)
from tl_skillneurons.studies.steering.equal_price import (
    N_DRAWS,
    Path,
    compare_paths,
    first_at,
    value_at,
    verdict,
)
from tl_skillneurons.studies.steering.rivals import pushes
from tl_skillneurons.studies.steering.writing import change_norms

TEXTS = ["the film was good", "quick", "a dull plot"]


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_a_probe_of_more_neurons_than_examples_is_that_of_all_neurons_together():
    acts = drawn(40, 60)
    is_class = acts[:, 3] + 0.3 * drawn(40, seed=1) > 0
    found, auc = probe_direction(acts, is_class, seed=5)
    centred = acts - acts.mean(0)
    scaled = centred / centred.square().sum(1).mean().sqrt()
    fits = [
        fit_sparse_probe(scaled, is_class.long(), k=60, test_fraction=0.2, l2_strength=penalty, seed=5)
        for penalty in (1.0, 0.1, 0.01, 0.001)
    ]
    best = max(fits, key=lambda fit: fit.metrics.roc_auc)
    weights = torch.zeros(60, dtype=torch.float64)
    weights[best.selected_features] = best.coefficients
    torch.testing.assert_close(found, weights / weights.norm(), rtol=1e-5, atol=1e-6)
    assert auc == best.metrics.roc_auc and int(found.argmax()) == 3
    author = torch.arange(40) // 4  # what belongs together is held out together
    units, labels = Units.of([author.tolist()]), author % 2 == 0
    noise = drawn(10, 60, seed=2)[author]
    assert probe_direction(noise, labels, units=units)[1] < 0.9 < probe_direction(noise, labels)[1]


def test_directions_point_to_the_class_where_layers_have_neurons_and_labels_tell():
    labels = torch.tensor([0, 1, 2] * 8)
    acts = torch.full((24, 2, 4), torch.nan)
    acts[:, 0] = drawn(24, 4).float()
    acts[:, 1, :2] = 0.5  # the narrower layer says nothing
    acts[labels == 2, 0, 1] += 9
    reference = Reference(acts, labels)
    for rival in ("probe", "mean_difference"):
        found = directions_in(reference, Units.single(24), (4, 2), [0, 1], rival, toward=2)
        assert found.vectors[0][1] > 0.8 and float(found.vectors[0].norm()) == pytest.approx(1)
        assert found.vectors[1].tolist() == [0, 0]
        assert found.auc == ({0: 1.0, 1: 0.5} if rival == "probe" else {})
    means = [acts[labels == c, 0].double().numpy().mean(0) for c in range(3)]
    expected = means[2] - (means[0] + means[1]) / 2
    np.testing.assert_allclose(
        mean_difference(acts[:, 0], labels, 2), expected / np.linalg.norm(expected), rtol=1e-6
    )
    few, more = (random_directions([0, 2], (4, 3, 3), n, seed=1) for n in (2, 5))
    assert all(torch.equal(few[k][2], more[k][2]) for k in range(2)) and len(more[4][0]) == 4
    with pytest.raises(ValueError, match=r"takes 5 reference examples or more .* got 4 of 4; raise"):
        probe_direction(acts[:12, 0], labels[:12] == 2)
    with pytest.raises(ValueError, match=r"of 2 units \(author\) or more, .* got 8 of 1; raise"):
        probe_direction(acts[:, 0], labels == 2, units=Units.of([labels.tolist()], what="author"))
    with pytest.raises(ValueError, match=r"of that class and of another, got those of \[0, 1, 2\]"):
        directions_in(reference, Units.single(24), (4, 2), [0], "probe", toward=3)


def test_a_change_is_as_long_as_it_is_in_the_hugging_face_model_and_a_push_does_what_it_says():
    bridge, plain = tiny.bridge("gpt2"), tiny.hf_model("gpt2")
    prompted = skn.PromptedModel(bridge, None, run=QUIET)
    neurons, answers = skn.NeuronSet([0, 0, 1], [3, 7, 5]), [[7, 9, 2], [8], [5, 5, 5, 11]]
    vectors = {0: drawn(48), 1: drawn(48, seed=1)}
    asked = prompted.encode(TEXTS)
    norms: dict[int, list[float]] = {0: [], 1: []}
    start, pushed = 0, False

    def edit(layer):
        index = neurons.by_layer()[layer]

        def change(module, given):
            old = given[0]
            new = old.clone()
            if pushed:
                new[:, start:] += 2.0 * vectors[layer].float()
            else:
                new[:, start:, index] *= 3
                norms[layer] += (new - old)[0, start:].norm(dim=-1).tolist()
            return (new,)

        return change

    for layer in (0, 1):
        plain.transformer.h[layer].mlp.c_proj.register_forward_pre_hook(edit(layer))
    with torch.no_grad():
        for text, answer in zip(asked, answers, strict=True):
            start = len(text)
            plain(torch.tensor([text + answer[:-1]]))  # a model never reads the last token that it writes
        pushed, written = True, []
        for text in asked:
            start, ids = len(text), list(text)
            for _ in range(4):
                ids.append(int(plain(torch.tensor([ids])).logits[0, -1].argmax()))
                if ids[-1] == tiny.IDS["eos_token_id"]:
                    break
            written.append(tuple(ids[start:]))
    hooks = skn.ablate(neurons, how=Scale(3.0), positions="generated")
    found = change_norms(prompted, TEXTS, answers, hooks, "generated")
    assert found == pytest.approx({k: sum(of) / len(of) for k, of in norms.items()}, rel=1e-5)
    assert len(norms[0]) == 2 + 3
    assert change_norms(prompted, TEXTS, [[1]] * 3, hooks, "generated") == {0: 0, 1: 0}
    everywhere = skn.ablate(neurons, how=Scale(3.0), positions="text")
    one = change_norms(prompted, TEXTS[:1], [[1]], everywhere, "text")
    undeclared = [(name, lambda act, hook, f=f: f(act, hook)) for name, f in everywhere]
    assert one == change_norms(prompted, TEXTS[:1], [[1]], undeclared, "text") and one[0] > 0
    done = prompted.generate(TEXTS, 4, interventions=pushes(vectors, {0: 2.0, 1: 2.0}, 1, "generated"))
    assert done.token_ids == tuple(written)
    assert prompted.generate(TEXTS, 4).token_ids != tuple(written)
    assert done.settings["interventions"][0]["digest"] != done.settings["interventions"][1]["digest"]
    assert pushes(vectors, {0: 0.0, 1: 0.0}, 1, "all") == []


def test_the_first_place_of_a_price_is_that_of_interpolation():
    price, value = torch.tensor([1.0, 1.5, 4.0, 6.0]), torch.tensor([0.0, 1.0, -1.0, 2.0])
    levels = torch.tensor([1.0, 1.2, 1.5, 3.0, 6.0])
    rows = price.expand(5, -1), value.expand(5, -1)
    found = value_at(rows[1], *first_at(rows[0], levels))
    np.testing.assert_allclose(found, np.interp(levels, price, value), rtol=1e-6)
    back = torch.tensor([[1.0, 3.0, 2.0, 5.0], [2.0, 2.0, 1.0, 1.0]])  # of several places the first
    before, share = first_at(back, torch.tensor([2.5, 1.5]))
    assert before.tolist() == [0, 1] and share.tolist() == [0.75, 0.5]
    before, share = first_at(back, torch.tensor([0.5, 2.1]))
    assert before.tolist() == [-1, -1] and share.isnan().all()


def way(price, value, doses=(1.0, 2.0), fell=(False, False), spread=0.1):
    """A path whose means are these, with texts that scatter around them."""
    noise = spread * drawn(30, seed=7)
    noise -= noise.mean()
    points = [{"cross_entropy": p + noise, "class": v + noise} for p, v in zip(price, value, strict=True)]
    return Path(doses, points, fell)


def compared(neurons, direction, wanted=1):
    rows = compare_paths(neurons, direction, {"class": wanted}, Units.single(30))
    return {(row["at"], row["dose"]): row for row in rows if row["at"] != "mean"}, rows[-1]


def test_what_steers_more_at_the_same_perplexity_is_said_where_both_come_to_it():
    neurons, direction = way([1, 2, 3], [0.2, 0.6, 1.0]), way([1, 1.5, 2.5], [0.2, 0.3, 0.5])
    rows, mean = compared(neurons, direction)
    at_two = rows["neurons", 1.0]
    assert (at_two["neurons"], at_two["direction"]) == pytest.approx((0.4, 0.2))
    assert at_two["difference"] == pytest.approx(0.2) and at_two["perplexity"] == pytest.approx(math.exp(2))
    assert at_two["verdict"] == mean["verdict"] == "the neurons steer more"
    said = rows["neurons", 2.0]
    assert math.isnan(said["difference"]) and said["neurons"] == pytest.approx(0.8)
    assert said["verdict"] == "not comparable: the direction stays at perplexities of 2.718 to 12.18"
    assert rows["direction", 2.0]["neurons"] == pytest.approx(0.6)  # halfway between its doses
    assert mean["difference"] == pytest.approx((0.2 + 0.1 + 0.3) / 3)
    rows, mean = compared(direction, neurons)
    assert mean["verdict"] == "the direction steers more" and mean["difference"] == pytest.approx(-0.2)
    fell = way([1, 2, 3], [0.2, 0.6, 1.0], fell=(True, False))
    assert compared(fell, direction)[1]["verdict"] == (
        "the neurons steer more (the neurons leave the controls' range of perplexity)"
    )
    away, less = way([1, 2, 3], [0.9, 0.5, 0.1]), way([1, 2, 3], [0.9, 0.8, 0.7])
    assert compared(away, less, wanted=-1)[1]["verdict"] == "the neurons steer more"
    assert compared(away, less, wanted=1)[1]["verdict"] == "neither is seen to steer"
    assert compared(away, less, wanted=0)[1]["verdict"] == "higher with the direction"
    same = way([1, 1, 1], [0.2, 0.2, 0.2])
    rows, mean = compared(same, same)
    assert not rows and mean["verdict"] == "not comparable: they come to no perplexity in common"


def test_intervals_at_equal_perplexity_are_those_of_a_slow_loop_over_the_same_draws():
    values = {
        name: [
            {
                "cross_entropy": (1 + k + 0.4 * drawn(30, seed=k + s)).abs(),
                "class": k + drawn(30, seed=9 * k + s),
            }
            for k in range(3)
        ]
        for name, s in (("neurons", 0), ("direction", 50))
    }
    values["direction"][0] = values["neurons"][0]
    neurons, direction = (Path((1.0, 2.0), values[name], (False, False)) for name in values)
    row = compared(neurons, direction)[0]["neurons", 1.0]
    generator, differences = torch.Generator().manual_seed(0), []
    for drawn_texts in torch.randint(30, (N_DRAWS, 30), generator=generator):
        price, value = (
            {name: [float(one[of][drawn_texts].mean()) for one in values[name]] for name in values}
            for of in ("cross_entropy", "class")
        )
        other = np.interp(price["neurons"][1], price["direction"], value["direction"])
        differences.append(value["neurons"][1] - value["neurons"][0] - (other - value["direction"][0]))
    from tl_skillneurons.stats.intervals import bootstrap_ends

    low, high = bootstrap_ends(torch.tensor(differences)[None].double(), 0.95, Units.single(30))
    assert (row["difference_low"], row["difference_high"]) == pytest.approx(
        (float(low), float(high)), rel=1e-6
    )
    edge = [*values["neurons"][:1], {k: v.clone() for k, v in values["neurons"][1].items()}]
    short = [
        values["neurons"][0],
        {**edge[1], "cross_entropy": edge[1]["cross_entropy"] + 0.3 * drawn(30, seed=3)},
    ]
    said = compared(Path((1.0,), edge, (False,)), Path((1.0,), short, (False,)))[0]
    assert any("of the draws of texts one doesn't come to" in row["verdict"] for row in said.values())


@pytest.mark.parametrize(
    ("difference", "neurons", "direction", "wanted", "said"),
    [
        ((0.1, 0.2), (0.1, 0.3), (-0.1, 0.1), 1, "the neurons steer more"),
        ((-0.2, -0.1), (-0.1, 0.1), (0.1, 0.3), 1, "the direction steers more"),
        ((-0.1, 0.1), (0.1, 0.3), (0.1, 0.3), 1, "can't be told apart"),
        ((0.1, 0.2), (-0.1, 0.3), (0.1, 0.3), 1, "can't be told apart"),
        ((0.1, 0.2), (-0.1, 0.3), (-0.4, -0.1), 1, "neither is seen to steer"),
        ((0.1, 0.2), (-0.1, 0.3), (-0.4, -0.1), -1, "the direction steers more"),
        ((0.1, 0.2), (-0.1, 0.3), (-0.4, -0.1), 0, "higher with the neurons"),
        ((0.0, 0.2), (-0.1, 0.3), (-0.4, -0.1), 0, "can't be told apart"),
    ],
)
def test_a_verdict_says_no_more_than_its_intervals(difference, neurons, direction, wanted, said):
    ends = {"difference": difference, "neurons": neurons, "direction": direction}
    told = {
        f"{name}_{end}": v
        for name, pair in ends.items()
        for end, v in zip(("low", "high"), pair, strict=True)
    }
    assert verdict(told, wanted) == said


def test_rivals_that_make_no_sense_are_refused():
    assert tuple(DIRECTIONS) == RIVALS  # the command says no to others before it loads anything
    with pytest.raises(ValueError, match="a rival must be one of 'probe', 'mean_difference', got 'prob'"):
        SteeringOptions(rivals=["prob"])
    keep = SteeringOptions(how=lambda dose: Keep(Scale(dose)), rivals="probe")
    with pytest.raises(ValueError, match="Keep changes all others"):
        keep.interventions([2.0], 1)
