"""Ablating heads: the planted ones take the label from the planted neurons and the answers, others don't."""

import planted
import pytest
import tiny
import torch

from tl_skillneurons import NeuronSet, PromptedModel, SoftPrompt
from tl_skillneurons.attention.heads import ablate_heads, head_effects, mean_head_outputs, random_heads_like

QUICK = {"n_random": 19, "progress": False}
TEXTS = ["the film was good", "a dull plot and a slow scene but not bad", "music"]


@pytest.fixture(scope="module")
def model():
    return planted.model()


def prompt(family="llama"):
    rows = 0.1 * torch.randn(3, 32, generator=torch.Generator().manual_seed(0))
    return SoftPrompt(rows, placement="prefix" if family in tiny.BIDIRECTIONAL else "suffix")


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
    assert frame.random_min["accuracy"] == 1 and (frame.p_random == 1 / 20).all()
    assert frame.intact["separation"] > 1.5 > 0.3 > frame.ablated["separation"]
    assert frame.random_min["separation"] > 1.5
    assert all(not set(drawn) & set(planted.HEADS) for drawn in found.controls)
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


@pytest.mark.parametrize("family", tiny.CONFIGS)
def test_a_held_head_writes_what_it_is_held_at_at_its_positions_alone(family):
    prompted = PromptedModel(tiny.bridge(family), prompt(family))
    values = torch.randn(2, 4, 8, generator=torch.Generator().manual_seed(1))
    seen = {}
    hooks = ablate_heads([(1, 2)], how="mean", values=values, positions="prompt")
    look = ("blocks.1.attn.o.hook_in", lambda act, hook: seen.update(act=act))
    with torch.no_grad():
        prompted.run_with_hooks(TEXTS, [look])
        before = seen["act"]
        prompted.run_with_hooks(TEXTS, [*hooks, look])
    tokens = prompted.tokens(TEXTS)
    assert (seen["act"][tokens.is_prompt][:, 2] == values[1, 2]).all()
    others = [0, 1, 3]
    torch.testing.assert_close(seen["act"][:, :, others], before[:, :, others])
    torch.testing.assert_close(seen["act"][~tokens.is_prompt], before[~tokens.is_prompt])


@pytest.mark.parametrize("family", ["bert", "llama"])
@pytest.mark.parametrize("positions", ["prompt", "text", "all"])
def test_mean_outputs_are_those_of_a_slow_loop_without_padding(family, positions):
    model, own = tiny.bridge(family), prompt(family)
    found = mean_head_outputs(model, own, TEXTS, positions=positions)
    prompted = PromptedModel(model, own)
    rows, kept = [], {}
    for text in TEXTS:
        with torch.no_grad():
            look = ("blocks.1.attn.o.hook_in", lambda act, hook: kept.update(act=act[0]))
            prompted.run_with_hooks([text], [look])
        tokens = prompted.tokens([text])
        where = {"prompt": tokens.is_prompt[0], "text": tokens.is_text[0]}.get(positions, slice(None))
        rows.append(kept["act"][where])
    torch.testing.assert_close(found[1], torch.cat(rows).mean(0), rtol=1e-4, atol=1e-5)


def test_random_heads_are_others_of_the_same_layers():
    heads = [(0, 1), (0, 2), (3, 5)]
    drawn = random_heads_like(heads, 0, n_heads=8)
    assert [layer for layer, _ in drawn] == [0, 0, 3] and not set(drawn) & set(heads)
    assert len(set(drawn)) == 3 and drawn == random_heads_like(heads[::-1], 0, n_heads=8)
    with pytest.raises(ValueError, match="layer 0 has 1 heads to draw 2 random ones from"):
        random_heads_like(heads, 0, n_heads=3)
    spread = random_heads_like([(0, 0), (0, 1), (0, 2)], 1, n_heads=4, n_layers=3)
    assert (0, 3) in spread and len(set(spread)) == 3 and not {(0, 0), (0, 1), (0, 2)} & set(spread)
    with pytest.raises(ValueError, match="too few to draw 3 others"):
        random_heads_like([(0, 0), (0, 1), (0, 2)], 1, n_heads=4, n_layers=1)


REFUSED = [
    ({"heads": []}, "at least one"),
    ({"heads": [(0, 1), (0, 1)]}, r"got \(0, 1\) twice"),
    ({"heads": [(0, 9)]}, r"head in \[0, 4\), got \(0, 9\)"),
    ({"heads": [(-1, 0)]}, "integers from 0"),
    ({"n_random": 5}, "n_random must be at least 19"),
    ({"neurons": NeuronSet([0], [0], n_layers=9, d_mlp=48)}, "must belong to one model"),
    ({"how": "noise"}, "how must be one of"),
]


@pytest.mark.parametrize(("changes", "message"), REFUSED)
def test_what_makes_no_sense_is_refused(model, changes, message):
    options = {"heads": planted.HEADS, "neurons": planted.NEURONS, **QUICK, **changes}
    with pytest.raises(ValueError, match=message):
        head_effects(model, planted.prompt(), planted.task(), **options)


def test_ablations_without_their_values_and_heads_outside_the_model_are_refused(model):
    with pytest.raises(ValueError, match="needs values to hold the heads at"):
        ablate_heads([(0, 1)], how="mean")
    with pytest.raises(ValueError, match="takes no values"):
        ablate_heads([(0, 1)], values=torch.zeros(3, 4, 12))
    prompted = PromptedModel(model, planted.prompt(), planted.LABEL_WORDS)
    with pytest.raises(ValueError, match="layer 0 has 4 heads, got head 7"):
        prompted.class_logits(TEXTS, ablate_heads([(0, 7)]))
