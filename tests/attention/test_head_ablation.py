"""Hooks on heads: what is held, where, at what, and which heads stand beside the chosen ones."""

import planted
import pytest
import tiny
import torch

from tl_skillneurons import PromptedModel, SoftPrompt
from tl_skillneurons.attention import ablate_heads, head_outputs, random_heads_like
from tl_skillneurons.attention._heads import by_head
from tl_skillneurons.attention.head_ablation import controls_of_heads
from tl_skillneurons.interventions import ClassMean, GivenValues, Keep, Mean, Noise, Resample, Scale, Zero
from tl_skillneurons.stats.hypothesis_tests import rank_p_value

TEXTS = ["the film was good", "a dull plot and a slow scene but not bad", "music"]


@pytest.fixture(scope="module")
def model():
    return planted.model()


def prompt(family="llama"):
    rows = 0.1 * torch.randn(3, 32, generator=torch.Generator().manual_seed(0))
    return SoftPrompt(rows, placement="prefix" if family in tiny.BIDIRECTIONAL else "suffix")


@pytest.mark.parametrize("family", tiny.CONFIGS)
def test_a_held_head_writes_what_it_is_held_at_at_its_positions_alone(family):
    prompted = PromptedModel(tiny.kept(family), prompt(family))
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


def test_random_heads_are_others_of_the_same_layers():
    heads = [(0, 1), (0, 2), (3, 5)]
    drawn = random_heads_like(heads, 0, n_heads=8)
    assert [layer for layer, _ in drawn] == [0, 0, 3] and not set(drawn) & set(heads)
    assert len(set(drawn)) == 3 and drawn == random_heads_like(heads[::-1], 0, n_heads=8)
    with pytest.raises(ValueError, match="layer 0 has 1 heads to draw 2 random ones from"):
        random_heads_like(heads, 0, n_heads=3)
    spread = random_heads_like([(0, 0), (0, 1), (0, 2)], 1, n_heads=4, n_layers=3)
    assert (0, 3) in spread and len(set(spread)) == 3 and not {(0, 0), (0, 1), (0, 2)} & set(spread)
    with pytest.raises(ValueError, match="the model has 4 heads, too few to draw 2 more at random beside 4"):
        random_heads_like([(0, 0), (0, 1), (0, 2)], 1, n_heads=4, n_layers=1)


def test_no_control_is_drawn_twice_and_few_alternatives_are_all_drawn():
    one = controls_of_heads([(4, 3)], 20, n_heads=9, n_layers=30)
    assert sorted(one) == [[(4, h)] for h in range(9) if h != 3]
    pairs = controls_of_heads([(0, 1), (0, 2)], 20, n_heads=5, n_layers=2)
    assert {frozenset(drawn) for drawn in pairs} == {
        frozenset([(0, a), (0, b)]) for a, b in [(0, 3), (0, 4), (3, 4)]
    } and len(pairs) == 3
    many = controls_of_heads([(0, 1), (1, 2)], 20, n_heads=9, n_layers=2, seed=3)
    assert len({frozenset(drawn) for drawn in many}) == 20
    assert many[0] == random_heads_like([(0, 1), (1, 2)], 3, n_heads=9)
    everywhere = controls_of_heads([(4, 3)], 20, n_heads=9, n_layers=30, all_layers=True)
    assert len({frozenset(drawn) for drawn in everywhere}) == 20 and [(4, 3)] not in everywhere
    assert len({layer for [(layer, _)] in everywhere}) > 5
    with pytest.raises(ValueError, match="all_layers=True needs n_layers"):
        random_heads_like([(4, 3)], 0, n_heads=9, all_layers=True)


def test_an_ordinary_heads_rank_p_is_below_its_level_no_more_often_than_it_says():
    """One head of nine whose effect is like any other's; drawn with repetition this was 0.11 at a level of 0.05."""
    generator = torch.Generator().manual_seed(0)
    found = []
    for trial in range(60):
        effect = torch.rand(9, generator=generator)
        drawn = controls_of_heads([(0, 4)], 20, n_heads=9, n_layers=1, seed=trial)
        found.append(rank_p_value(float(effect[4]), [float(effect[h]) for [(_, h)] in drawn]))
    assert min(found) >= 1 / 9 and sum(p <= 1 / 9 + 1e-9 for p in found) <= 15


def test_matched_heads_are_among_the_nearest_in_what_they_are_matched_on():
    match = torch.arange(24.0).view(2, 12).flip(1) ** 2
    drawn = {random_heads_like([(1, 6)], seed, n_heads=12, match=match, n_nearest=2)[0] for seed in range(30)}
    assert drawn == {(1, 5), (1, 7)}
    several = torch.stack([match, match.log1p()])
    ranked = {
        random_heads_like([(0, 0)], seed, n_heads=12, match=several, n_nearest=1)[0] for seed in range(9)
    }
    assert ranked == {(0, 1)}
    crowded = random_heads_like([(0, h) for h in range(8)], 0, n_heads=12, n_layers=2, match=match)
    assert len(set(crowded)) == 8 and {(0, h) for h in range(8, 12)} <= set(crowded)
    assert [layer for layer, _ in crowded].count(1) == 4


@pytest.mark.parametrize(
    ("match", "message"),
    [
        (torch.zeros(2, 9), "with 12 heads in a layer, got shape"),
        (torch.zeros(1, 12), "match must be"),
        (torch.full((2, 12), torch.nan), "match must be finite"),
    ],
)
def test_a_match_of_other_heads_is_refused(match, message):
    with pytest.raises(ValueError, match=message):
        random_heads_like([(1, 6)], 0, n_heads=12, match=match)


LABELS = [1, 0, 1]


@pytest.fixture(scope="module")
def prompted(model):
    return PromptedModel(model, planted.prompt(), planted.LABEL_WORDS)


@pytest.fixture(scope="module")
def outputs(prompted):
    return head_outputs(prompted, TEXTS, labels=LABELS)


def written(prompted, hooks, layer=1):
    """What stands at a layer's heads with these hooks."""
    seen = {}
    look = (f"blocks.{layer}.attn.o.hook_in", lambda act, hook: seen.update(act=act))
    with torch.no_grad():
        prompted.run_with_hooks(TEXTS, [*hooks, look])
    return seen["act"]


@pytest.mark.parametrize("how", [Zero(), Scale(2.0), Mean(), ClassMean(), Resample(), Noise(0.5)])
def test_each_intervention_does_to_a_head_what_it_says(prompted, outputs, how):
    classes = LABELS if how.needs_labels else None
    hooks = ablate_heads([(1, 3), (1, 0)], how=how, values=outputs, classes=classes, seed=4)
    before, after = written(prompted, []), written(prompted, hooks)
    assert torch.equal(after[:, :, [1, 2]], before[:, :, [1, 2]])
    old, new = before[:, :, [3, 0]], after[:, :, [3, 0]]
    acts = outputs.activations[:, 1].view(3, 4, 12)[:, [3, 0]].float()
    if how == Noise(0.5):
        moved = (new - old) / (0.5 * acts.std(0, correction=0)[None, None])
        assert (moved - moved[:, :1]).abs().max() < 1e-2 and 0.5 < moved.std() < 1.5
    elif how == Resample():
        rows = [[torch.allclose(new[row, 0], one, atol=1e-6) for one in acts] for row in range(3)]
        assert [sum(row) for row in rows] == [1, 1, 1]
    else:
        expected = {
            Zero(): 0 * old,
            Scale(2.0): 2 * old,
            Mean(): acts.mean(0).expand_as(old),
            ClassMean(): torch.stack([acts[[0, 2]].mean(0), acts[1], acts[[0, 2]].mean(0)])[
                :, None
            ].expand_as(old),
        }[how]
        torch.testing.assert_close(new, expected, rtol=1e-5, atol=1e-6)


def test_keep_edits_every_other_head_of_the_model(prompted, outputs):
    hooks = ablate_heads([(1, 3)], how=Keep(Zero()), values=outputs)
    assert len(hooks) == 3 and (written(prompted, hooks, layer=0) == 0).all()
    kept = written(prompted, hooks)
    assert (kept[:, :, :3] == 0).all() and kept[:, :, 3].abs().max() > 0
    with pytest.raises(ValueError, match="edits all other heads, and nobody said how many there are"):
        ablate_heads([(1, 3)], how=Keep(Zero()))


def test_a_function_gets_the_chosen_heads_as_one_axis_in_their_order(prompted):
    shapes = []

    def double(act, hook):
        shapes.append((hook.name, tuple(act.shape)))
        return 2 * act

    before, after = written(prompted, []), written(prompted, ablate_heads([(1, 3), (1, 0)], how=double))
    assert [name for name, _ in shapes] == ["blocks.1.attn.o.hook_in"] and shapes[0][1][2] == 24
    assert torch.equal(after[:, :, [0, 3]], 2 * before[:, :, [0, 3]])


def test_hooks_say_where_they_act_so_that_the_cache_is_used_or_not():
    for positions in ("all", "prompt", "text"):
        [(_, function)] = ablate_heads([(1, 2)], positions=positions)
        assert function.positions == positions
    for anywhere in (
        ablate_heads([(1, 2)], positions=[0]),
        ablate_heads([(1, 2)], how=lambda act, hook: act),
    ):
        assert anywhere[0][1].positions == "chosen"


def test_heads_as_one_axis_are_told_apart_where_their_number_is_known():
    values = torch.randn(2, 3, 12, generator=torch.Generator().manual_seed(0))
    assert torch.equal(by_head(values, 4), values.view(2, 3, 4, 3))
    assert torch.equal(by_head(by_head(values, 4), 4), values.view(2, 3, 4, 3))


def test_ablations_without_their_values_and_heads_outside_the_model_are_refused(model):
    with pytest.raises(ValueError, match="needs values to hold the heads at"):
        ablate_heads([(0, 1)], how="mean")
    with pytest.raises(ValueError, match="takes no values"):
        ablate_heads([(0, 1)], values=torch.zeros(3, 4, 12))
    with pytest.raises(ValueError, match=r"finite, and \[layer, head, d_head\], got shape \(2, 3, 4, 12\)"):
        ablate_heads([(0, 1)], how="mean", values=torch.zeros(2, 3, 4, 12))
    with pytest.raises(ValueError, match=r"head in \[0, 4\), got \(0, 7\)"):
        ablate_heads([(0, 7)], how="mean", values=torch.zeros(3, 4, 12))
    with pytest.raises(ValueError, match="needs classes: the class of each example"):
        ablate_heads([(0, 1)], how="class_mean", values=torch.zeros(2, 3, 4, 12))
    with pytest.raises(ValueError, match="positions must be one of"):
        ablate_heads([(0, 1)], positions="last")
    prompted = PromptedModel(model, planted.prompt(), planted.LABEL_WORDS)
    with pytest.raises(ValueError, match="layer 0 has 4 heads, got head 7"):
        prompted.class_logits(TEXTS, ablate_heads([(0, 7)]))
    narrow = GivenValues(mean=torch.zeros(3, 32))
    with pytest.raises(
        ValueError, match="values are 32 wide, layer 0 has 4 heads of 12; use values of this model"
    ):
        prompted.class_logits(TEXTS, ablate_heads([(0, 1)], how="mean", values=narrow))


def test_files_tell_edits_of_heads_apart_and_know_equal_ones():
    values = torch.arange(2 * 2 * 4.0).view(2, 2, 4)
    other = values.clone()
    other[1] += 1

    def told(heads=((0, 1), (0, 0)), **how):
        [(_, hook)] = ablate_heads(heads, **how)
        return hook.function.told, hook.function.digest

    assert told() == told() and told()[0] == "zero of 2 heads"
    assert told(how="mean", values=values) == told(how="mean", values=other)  # layer 0 is the same in both
    assert told([(1, 0)], how="mean", values=values) != told([(1, 0)], how="mean", values=other)
    differing = [
        told(),
        told(how=Scale(0.5)),
        told([(0, 1)]),
        told([(1, 0)]),
        told(positions="text"),
        told(seed=1),
    ]
    assert len(set(differing)) == len(differing)
    assert told(how=lambda act, hook: act)[1] is None
