"""Scores as a result: selection, directions, chance levels and files, against loops over hand-made counts."""

import json

import jaxtyping
import pytest
import torch
from drawn import N_SELECT, scores

import tl_skillneurons as skn
from tl_skillneurons._files import load_tensors, save_tensors
from tl_skillneurons.scores.tallies import best_positions


def of_one_position(counts, n_select=N_SELECT, **changes):
    """Scores of one prompt and one position with ``counts[layer][neuron]`` right answers."""
    return scores(correct=torch.tensor(counts)[None, :, None], n_select=n_select, **changes)


@pytest.mark.parametrize("aggregate", ["mean", "min"])
def test_predictivity_is_the_best_position_of_either_direction_combined_over_prompts(aggregate):
    made = scores(n_prompts=3, aggregate=aggregate)
    for layer in range(2):
        for neuron in range(7):
            best = []
            for prompt in range(3):
                counts = [int(made.correct[prompt, layer, p, neuron]) for p in range(3)]
                best.append(max(max(c / N_SELECT, 1 - c / N_SELECT) for c in counts))
            expected = min(best) if aggregate == "min" else sum(best) / 3
            assert float(made.predictivity[layer, neuron]) == pytest.approx(expected, abs=1e-15)  # last bit


def test_direction_follows_the_counts_at_each_prompts_best_position():
    made = scores(n_prompts=3, seed=3)
    for layer in range(2):
        for neuron in range(7):
            signs = set()
            for prompt in range(3):
                counts = made.correct[prompt, layer, :, neuron].tolist()
                best = max(counts, key=lambda c: max(c, N_SELECT - c))  # the first among equals, as max does
                signs.add(1 if 2 * best >= N_SELECT else -1)
            assert int(made.direction[layer, neuron]) == (signs.pop() if len(signs) == 1 else 0)
    assert set(made.direction.flatten().tolist()) == {1, 0, -1}
    assert of_one_position([[6, 5, 7]]).direction.tolist() == [
        [1, -1, 1]
    ]  # half of 12 counts as speaking for label 1


def test_the_first_of_equally_good_positions_counts():
    best, where, sign = best_positions(torch.tensor([[[[3, 6], [9, 6], [9, 6]]]]), 12)
    assert best.tolist() == [[[9, 6]]]
    assert where.tolist() == [[[0, 0]]]  # 3 of 12 is as good as 9 of 12
    assert sign.tolist() == [[[-1, 1]]]


def test_neurons_of_equal_counts_are_equals_whatever_their_direction_and_the_order_of_prompts():
    # in floating point 1 - 1/3 > 2/3, and (0.6 + 0.7) + 0.8 differs from 0.6 + (0.7 + 0.8)
    assert of_one_position([[2, 1]], n_select=3).top(1).index.tolist() == [0]
    for counts in ([[6, 8], [7, 7], [8, 6]], [[8, 6], [7, 7], [6, 8]], [[6, 7], [8, 8], [7, 6]]):
        made = scores(correct=torch.tensor(counts)[:, None, None], n_select=10)
        assert made.predictivity[0, 0] == made.predictivity[0, 1]
        assert made.top(1).index.tolist() == [0]


COUNTS = [[6, 9, 12, 3, 6, 0, 9], [9, 6, 7, 2, 10, 3, 6]]  # predictive by 6 9 12 9 6 12 9 and 9 6 7 10 10 9 6


@pytest.mark.parametrize(
    "amount, per, expected",
    [
        (1, "layer", [(0, 2), (1, 3)]),
        (2, "layer", [(0, 2), (0, 5), (1, 3), (1, 4)]),
        (4, "layer", [(0, 2), (0, 5), (1, 3), (1, 4), (0, 1), (0, 3), (1, 0), (1, 5)]),
        (3, "model", [(0, 2), (0, 5), (1, 3)]),
        (6, "model", [(0, 2), (0, 5), (1, 3), (1, 4), (0, 1), (0, 3)]),
        (0.3, "layer", [(0, 2), (0, 5), (1, 3), (1, 4)]),  # int(2.1) of 7
        (0.3, "model", [(0, 2), (0, 5), (1, 3), (1, 4)]),  # int(4.2) of 14
        (0.15, "layer", [(0, 2), (1, 3)]),
        (0.15, "model", [(0, 2), (0, 5)]),
    ],
)
def test_top_takes_the_best_first_and_the_lowest_layer_and_index_among_equals(amount, per, expected):
    chosen = of_one_position(COUNTS).top(amount, per=per)
    assert list(chosen) == expected
    assert (chosen.n_layers, chosen.d_mlp, chosen.model) == (2, 7, "tiny")


@pytest.mark.parametrize("d_mlp, count", [(99, 1), (100, 2), (149, 2), (150, 3), (3072, 61)])
def test_two_percent_of_a_layer_is_rounded_down(d_mlp, count):
    made = scores(n_prompts=1, n_positions=1, d_mlp=d_mlp)
    assert made.top(0.02).counts_per_layer() == {0: count, 1: count}
    assert len(made.top(0.02, per="model")) == int(0.02 * 2 * d_mlp)


def test_top_of_everything_is_everything():
    made = scores()
    assert len(made.top(1.0)) == len(made.top(7)) == len(made.top(14, per="model")) == 14


def test_two_hundred_equal_scores_are_taken_from_the_lowest_index_up():
    made = of_one_position([[6] * 200])
    assert made.top(150).index.tolist() == list(range(150))
    assert made.top(150, per="model").index.tolist() == list(range(150))


@pytest.mark.parametrize(
    "amount, per, message",
    [
        (0.1, "layer", r"amount must give 1 to 7 neurons per layer, got 0.1 \(0 neurons\)"),
        (8, "layer", "1 to 7 neurons per layer, got 8"),
        (15, "model", "1 to 14 neurons per model, got 15"),
        (0.0, "layer", r"share must be in \(0, 1\], got 0.0"),
        (1.5, "layer", "give an integer for a count"),
        (float("nan"), "layer", "share must be in"),
        (0, "layer", "amount must be an integer of at least 1"),
        (True, "layer", "amount must be an integer of at least 1, got True"),
        (1, "layers", "per must be one of 'layer', 'model', got 'layers'; did you mean 'layer'"),
    ],
)
def test_amounts_that_make_no_sense_are_refused(amount, per, message):
    with pytest.raises(ValueError, match=message):
        scores().top(amount, per=per)


def test_the_chance_level_counts_every_score_that_the_best_is_chosen_from():
    made = scores(n_prompts=2, n_layers=3, n_positions=4, d_mlp=5)
    level, in_layer = made.chance_level(0.1), made.chance_level(0.1, per="layer")
    assert (level.n_scores, in_layer.n_scores) == (2 * 3 * 4 * 5, 2 * 4 * 5)
    assert level == skn.stats.best_of_chance(N_SELECT, 120, alpha=0.1, largest_class_share=7 / 12)
    assert in_layer.expected < level.expected
    with pytest.raises(ValueError, match="per must be one of"):
        made.chance_level(per="position")


def test_means_over_positions_are_those_of_one_prompt():
    made = scores()
    for name, values in (
        ("mean_baseline", made.baseline),
        ("mean_absolute", made.mean_abs),
        ("mean_std", made.std),
    ):
        for prompt in range(2):
            assert torch.equal(getattr(made, name)(prompt), values[prompt].mean(1))
        assert torch.equal(getattr(made, name)(), values[0].mean(1))
        for outside in (2, -1):
            with pytest.raises(ValueError, match="prompt must be"):
                getattr(made, name)(outside)


def test_the_table_has_a_row_per_neuron():
    made = scores()
    frame = made.to_dataframe()
    assert len(frame) == 14
    for row in frame.itertuples():
        assert row.predictivity == made.predictivity[row.layer, row.index]
        assert row.direction == made.direction[row.layer, row.index]
    assert sorted(zip(frame["layer"], frame["index"], strict=True)) == [
        (a, b) for a in range(2) for b in range(7)
    ]
    assert frame["best_position"].tolist() == best_positions(made.correct, N_SELECT)[1][0].flatten().tolist()


def test_saved_scores_come_back_whole(tmp_path):
    made = scores(aggregate="min", positions="last")
    path = made.save(tmp_path / "deep" / "scores.safetensors")
    back = skn.NeuronScores.load(path)
    for name in ("baseline", "std", "mean_abs", "correct"):
        assert torch.equal(getattr(back, name), getattr(made, name))
        assert getattr(back, name).dtype == getattr(made, name).dtype
    for name in ("n_baseline", "n_select", "class_counts", "positions", "site", "aggregate", "provenance"):
        assert getattr(back, name) == getattr(made, name)
    assert repr(back) == repr(made) and "2 layers x 7 neurons" in repr(made)
    assert [p.name for p in path.parent.iterdir()] == ["scores.safetensors"]


def _foreign(path):
    save_tensors(path, "SoftPrompt", {"embedding": torch.ones(1, 2)}, {})


def _elsewhere(path):
    scores().save(path)
    tensors, header = load_tensors(path, "NeuronScores")
    save_tensors(path, "NeuronScores", tensors, {**header, "site": "mlp.hook_pre"})


@pytest.mark.parametrize(
    "write, kind, message",
    [
        (lambda path: path.write_bytes(b"half a file"), ValueError, "corrupt or not a safetensors file"),
        (lambda path: path.write_text(json.dumps({"kind": "NeuronScores"})), ValueError, "corrupt or not"),
        (_foreign, ValueError, "holds a SoftPrompt, expected a NeuronScores"),
        (_elsewhere, ValueError, "was measured at mlp.hook_pre, this package measures at mlp.hook_post"),
        (lambda path: None, FileNotFoundError, "there is no file"),
    ],
)
def test_files_that_hold_no_scores_are_refused(write, kind, message, tmp_path):
    path = tmp_path / "scores.safetensors"
    write(path)
    with pytest.raises(kind, match=message):
        skn.NeuronScores.load(path)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"correct": torch.full((2, 2, 3, 7), 13)}, "correct must count examples of select, 0 to 12"),
        ({"outcomes_above": torch.zeros(2, 11, 2, 3, 1, dtype=torch.uint8)}, "outcomes must have the shape"),
        ({"outcomes_above": torch.zeros(2, 12, 2, 3, 1, dtype=torch.uint8)}, "and 12 labels, got .* and 11"),
        ({"std": torch.zeros(1, 2, 3, 7)}, "std must have the shape of baseline"),
    ],
)
def test_a_file_that_contradicts_itself_is_refused(change, message, tmp_path, monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # as users have it
    path = scores().save(tmp_path / "scores.safetensors")
    tensors, header = load_tensors(path, "NeuronScores")
    labels = {"outcomes_labels": torch.zeros(11, dtype=torch.int64)} if "outcomes_above" in change else {}
    save_tensors(path, "NeuronScores", tensors | labels | change, header)
    with pytest.raises(ValueError, match=f"is not a sound NeuronScores file: .*{message}"):
        skn.NeuronScores.load(path)


def test_scores_show_themselves_on_one_screen():
    made = scores()
    assert len(repr(made)) < 200 and "2 prompts, 2 layers x 7 neurons, 3 positions (prompt)" in repr(made)
    assert "<table" in made._repr_html_() and "4 more rows" in made._repr_html_()


def test_half_of_a_file_is_refused(tmp_path):
    path = scores().save(tmp_path / "scores.safetensors")
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(ValueError, match="corrupt"):
        skn.NeuronScores.load(path)


def test_scores_of_several_prompts_stand_in_the_order_given():
    first, second = scores(n_prompts=1, seed=1), scores(n_prompts=2, seed=2)
    joined = skn.NeuronScores.of_prompts([second, first])
    for name in ("baseline", "std", "mean_abs", "correct"):
        assert torch.equal(getattr(joined, name), torch.cat([getattr(second, name), getattr(first, name)]))
    assert joined.provenance["prompts"] == [{"seed": 2}, {"seed": 2}, {"seed": 1}]
    assert joined.provenance["model"] == {"name": "tiny"}


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"n_select": 13}, "measured alike; they differ in n_select: 12 there, 13 now"),
        ({"n_baseline": 31}, "differ in n_baseline: "),
        ({"class_counts": (7, 5)}, "differ in class_counts: "),
        ({"positions": "last"}, "differ in positions: "),
        ({"aggregate": "min"}, "differ in aggregate: "),
        ({"provenance": {"model": {"name": "other"}}}, "differ in model.name: 'tiny' there, 'other' now"),
        ({"n_positions": 4}, "prompts of one set need equally many virtual tokens"),
    ],
)
def test_scores_that_do_not_go_together_are_not_joined(changes, message):
    with pytest.raises(ValueError, match=message):
        skn.NeuronScores.of_prompts([scores(), scores(**changes)])


def test_no_scores_are_no_set():
    with pytest.raises(ValueError, match="at least one prompt"):
        skn.NeuronScores.of_prompts([])


@pytest.mark.parametrize(
    "changes, message",
    [
        (
            {"std": torch.ones(2, 2, 3, 6)},
            r"std must have the shape of baseline, \(2, 2, 3, 7\), got \(2, 2, 3, 6\)",
        ),
        ({"aggregate": "max"}, "aggregate must be one of 'mean', 'min', got 'max'"),
    ],
)
def test_scores_that_contradict_themselves_are_refused(changes, message, monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # as users have it
    with pytest.raises(ValueError, match=message):
        scores(**changes)


def test_one_direction_is_stated_only_where_all_prompts_agree():
    made = scores(n_prompts=3, seed=4)
    frame = made.to_dataframe()
    _, each = made.rules()
    for row in frame.itertuples():
        own = each[:, row.layer, row.index].tolist()
        assert [row.direction_0, row.direction_1, row.direction_2] == own
        assert row.direction == (own[0] if len(set(own)) == 1 else 0)
        assert row.direction_agreement == max(own.count(1), own.count(-1)) / 3
    assert set(frame.direction) == {-1, 0, 1}
    alone = scores(n_prompts=1, seed=4).to_dataframe()
    assert set(alone.direction) == {-1, 1} and "direction_0" not in alone
