"""Exchanging neurons between twins: the planted ones carry the whole answer, a decoy and controls none of it."""

import json
from dataclasses import replace

import pandas as pd
import planted
import pytest
import tiny
import torch
from toy import QUIET

from tl_skillneurons import NeuronSet, PromptedModel, RunOptions, SoftPrompt, Task, minimal_pairs
from tl_skillneurons._files import load_tensors, save_tensors
from tl_skillneurons.interventions import NeuronPatching, Twins, patch_neurons
from tl_skillneurons.interventions._exchange import conditions_of
from tl_skillneurons.interventions.patching import _result
from tl_skillneurons.interventions.twins import twins_recorded
from tl_skillneurons.neurons.choice import Choice, text_fingerprints
from tl_skillneurons.stats import ratio_interval
from tl_skillneurons.stats.units import Units

QUICK = {"n_random": 19, "run": QUIET}
PAIRS = planted.twins()
TWINS = Twins(PAIRS, [planted.label_of(clean) for clean, _ in PAIRS])


@pytest.fixture(scope="module")
def model():
    return planted.model()


def run(model, neurons=planted.NEURONS, **changes):
    options = {"twins": TWINS, **QUICK, **changes}
    return patch_neurons(model, planted.prompt(), planted.task(), neurons, **options)


def rows(found, **wanted):
    frame = found if isinstance(found, pd.DataFrame) else found.to_dataframe()
    for name, value in wanted.items():
        frame = frame[frame[name] == value]
    return frame


@pytest.mark.parametrize("positions", ["prompt", "all"])
def test_the_planted_neurons_recover_all_and_random_neurons_and_the_placebo_nothing(model, positions):
    curves = ("layer", "cumulative", "neuron") if positions == "prompt" else ()
    found = run(model, positions=positions, curves=curves).to_dataframe()
    for direction in ("denoise", "noise"):
        [whole] = rows(found, direction=direction, curve="whole").to_dict("records")
        assert whole["recovered"] == pytest.approx(1, abs=0.02)
        assert abs(whole["random_max"]) < 0.05 and whole["placebo_max"] < 0.3
        assert whole["p_random"] == whole["p_placebo"] == 1 / 20 and whole["p_zero"] < 0.05
        assert whole["low"] <= whole["recovered"] <= whole["high"]
        if not curves:
            continue
        single = rows(found, direction=direction, curve="neuron")
        assert single.recovered.is_monotonic_decreasing and (single.recovered > 0.1).all()  # as planted
        assert single.recovered.sum() == pytest.approx(1, abs=0.1)
        grows = rows(found, direction=direction, curve="cumulative")
        assert grows.n_neurons.tolist() == [1, 2, 3] and grows.recovered.is_monotonic_increasing
        layers = rows(found, direction=direction, curve="layer")
        assert layers.layer.tolist() == [1, 2] and layers.n_neurons.tolist() == [1, 2]


def test_a_decoy_carries_nothing(model):
    frame = run(model, planted.DECOY, curves=()).to_dataframe()
    assert (frame.recovered.abs() < 0.02).all()


@pytest.mark.parametrize(
    ("family", "positions"),
    [("llama", "prompt"), ("bert", "prompt"), ("gpt2", "all"), ("bert", "all"), ("llama", "text")],
)
def test_a_patched_run_is_the_one_a_loop_over_neurons_would_do(family, positions):
    model, task = tiny.kept(family), tiny.task()
    data = 0.1 * torch.randn(3, 32, generator=torch.Generator().manual_seed(0))
    prompt = SoftPrompt(data, placement="prefix" if family == "bert" else "suffix")
    twins = [("the film was good", "the film was bad"), ("good plot", "bad plot")]
    neurons = NeuronSet([0, 1, 1], [3, 7, 9])
    found = patch_neurons(
        model, prompt, task, neurons, twins=Twins(twins, [1, 1]), positions=positions, curves=(), **QUICK
    )
    prompted = PromptedModel(model, prompt, task.label_words)
    for number, (clean, corrupted) in enumerate(twins):
        kept = {}

        def keep(layer, kept=kept):
            return f"blocks.{layer}.mlp.hook_post", lambda act, hook: kept.update({layer: act})

        look = [keep(layer) for layer in (0, 1)]
        with torch.no_grad():
            prompted.run_with_hooks([clean], look)
        tokens = prompted.tokens([clean])
        own = tokens.is_text & ~tokens.is_special
        where = {"prompt": tokens.is_prompt, "text": own}.get(positions, tokens.attention_mask > 0)

        def put(act, hook, layer, where=where, kept=kept):
            new = act.clone()
            for at, index in neurons:
                for column in where[0].nonzero().flatten().tolist():
                    if at == layer:
                        new[0, column, index] = kept[layer][0, column, index]
            return new

        hooks = [
            (f"blocks.{layer}.mlp.hook_post", lambda act, hook, at=layer, put=put: put(act, hook, at))
            for layer in (0, 1)
        ]
        with torch.no_grad():
            logits = prompted.class_logits([corrupted], hooks)[0]
        value = found.results["denoise"].values[0, number]
        assert float(value) == pytest.approx(float(logits[1] - logits[0]), abs=1e-5)


def test_of_more_classes_the_margin_to_the_best_other_one_is_moved():
    model = tiny.kept("gpt2")
    pairs = [("good film", "bad film"), ("dull plot", "good plot"), ("bad cast", "dull cast")]
    kinds = {"bad": 0, "good": 1, "dull": 2}
    rows = [
        {"text": text, "label": kinds[text.split()[0]], "pair": number}
        for number, (one, other) in enumerate(pairs)
        for text in (one, other)
    ]
    splits = {
        role: [{**row, "text": f"{row['text']} {word}", "pair": f"{role} {row['pair']}"} for row in rows]
        for role, word in (("train", "slow"), ("validation", "quick"), ("test", "bright"))
    }
    task = Task.from_datasets(splits, label_words={0: "negative", 1: "positive", 2: "other"})
    data = 0.1 * torch.randn(3, 32, generator=torch.Generator().manual_seed(0))
    prompt = SoftPrompt(data, placement="suffix")
    found = patch_neurons(model, prompt, task, NeuronSet([0, 1], [3, 7]), curves=(), **QUICK)
    twins = Twins.of(task, "report")
    assert [clean.split()[0] for clean, _ in twins.pairs] == [
        "good",
        "dull",
        "dull",
    ]  # the later class is the clean one
    assert twins.clean_labels == [1, 2, 2]
    with torch.no_grad():
        logits = PromptedModel(model, prompt, task.label_words).class_logits(
            [clean for clean, _ in twins.pairs]
        )
    margins = [
        float(z[k] - max(z[:k].tolist() + z[k + 1 :].tolist()))
        for z, k in zip(logits, (1, 2, 2), strict=True)
    ]
    assert found.source["denoise"].tolist() == pytest.approx(margins, abs=1e-5)
    change = found.results["denoise"].effect()[0].tolist()
    with pytest.warns(UserWarning, match="recovered is NaN"):
        each = found.each_class()
    each = each[each.direction == "denoise"].set_index("class")
    assert each.index.tolist() == [1, 2] and each.n_pairs.tolist() == each.n_units.tolist() == [1, 2]
    assert each.change.tolist() == pytest.approx([change[0], sum(change[1:]) / 2])
    assert each.rest_change.tolist() == pytest.approx(each.change.tolist()[::-1])
    with pytest.raises(ValueError, match=r"clean_labels must be classes of .*, 0 to 2, got 3"):
        patch_neurons(model, prompt, task, NeuronSet([0], [3]), twins=Twins(pairs, [1, 2, 3]), **QUICK)


def test_the_twins_of_one_class_are_told_apart_from_all_others():
    index, _, notes = conditions_of(planted.NEURONS, [], 19, 0)
    values = torch.rand(len(index) + 2, 14, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    base, source, labels = values[0] - 3, values[1], torch.tensor([0, 1] * 7)
    settings = {"clean_labels": labels.tolist(), "notes": notes}
    found = NeuronPatching({"denoise": _result(values[2:] - 1, base, index)}, {"denoise": source}, settings)
    each = found.each_class().set_index("class")
    for label in (0, 1):
        own = labels == label
        change = float((values[2] - 1 - base)[own].mean())
        share = change / float((source - base)[own].mean())
        assert (each.change[label], each.recovered[label]) == pytest.approx((change, share))
        assert (each.rest_change[1 - label], each.rest_recovered[1 - label]) == pytest.approx((change, share))
        assert (
            each.n_pairs[label] == each.n_units[label] == 7 and each.low[label] <= share <= each.high[label]
        )
    old = replace(found, settings={})
    with pytest.raises(ValueError, match="kept by an earlier version"):
        old.each_class()


def test_it_takes_the_twins_of_a_task_and_any_batch_gives_the_same():
    model = tiny.kept("llama")
    words = {0: "negative", 1: "positive"}
    task = minimal_pairs("movie_reviews", n_pairs=24, tokenizer=model.tokenizer, label_words=words)
    data = 0.1 * torch.randn(3, 32, generator=torch.Generator().manual_seed(0))
    args = (model, SoftPrompt(data, placement="suffix"), task, NeuronSet([0, 1], [3, 7]))
    one, many = (
        patch_neurons(
            *args,
            curves=(),
            directions=("denoise",),
            n_random=19,
            run=RunOptions(batch_size=n, progress=False),
        )
        for n in (1, 4)
    )
    torch.testing.assert_close(
        one.results["denoise"].values, many.results["denoise"].values, rtol=1e-4, atol=1e-5
    )
    assert one.settings["twins"] == "report" and len(one.source["denoise"]) == len(task.pairs("report"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"twins": Twins([("the good film", "bad film")], [1])}, "pair 0 has 4 and 3"),
        ({"twins": "report"}, "have no twins"),
        ({"twins": "test"}, "role must be one of"),
        ({"n_random": 3}, "n_random must be at least 19"),
        ({"neurons": NeuronSet([0], [0], n_layers=9, d_mlp=48)}, "must belong to one model"),
        ({"neurons": NeuronSet([], [])}, "at least one neuron"),
        ({"directions": ["denoising"]}, "directions must be one of"),
        ({"curves": ["layers"]}, "did you mean 'layer'"),
    ],
)
def test_what_makes_no_sense_is_refused(model, changes, message):
    with pytest.raises(ValueError, match=message):
        run(model, **changes)


def test_twins_that_answer_alike_leave_nothing_to_recover(model):
    same = Twins([(clean, clean) for clean, _ in PAIRS[:2]], TWINS.clean_labels[:2])
    found = run(model, twins=same, curves=())
    require_no_fraction(found)


def require_no_fraction(found):
    """What is refused, and what is told all the same."""
    assert "'denoise': None" in repr(found)
    with pytest.raises(ValueError, match=r"the gap is .*holds zero.*nothing to recover"):
        found.recovered("denoise")
    with pytest.warns(UserWarning, match=r"noise: the gap is .*read change, in logits"):
        frame = found.to_dataframe()
    assert frame[["recovered", "low", "high", "random_max", "p_random", "placebo_min"]].isna().all(axis=None)
    for row, (direction, result) in zip(frame.itertuples(), found.results.items(), strict=True):
        assert row.direction == direction and row.change == float(result.effect()[0].mean())
        assert 0 < row.p_zero <= 1


def test_of_a_gap_whose_interval_holds_zero_there_is_no_fraction(model):
    """Twins turned around, one after the other: half of the gaps are as large the other way."""
    labels = [label if n % 2 else 1 - label for n, label in enumerate(TWINS.clean_labels)]
    require_no_fraction(run(model, twins=Twins(PAIRS, labels), curves=()))


def test_the_interval_of_a_fraction_holds_what_the_gap_itself_varies(model):
    found = run(model, curves=("neuron",))
    for direction, result in found.results.items():
        gap = found.source[direction] - result.baseline
        frame = rows(found, direction=direction, curve="neuron")
        chosen = frame.change.tolist()
        assert frame.recovered.tolist() == pytest.approx([one / float(gap.mean()) for one in chosen])
        at = result.index_df.query("kind == 'chosen' and curve == 'neuron'").index.tolist()
        low, high = ratio_interval(result.effect()[at], gap)
        assert frame.low.tolist() == low.tolist() and frame.high.tolist() == high.tolist()


@pytest.mark.parametrize("labels", [[], [-1] * 8, [1]])
def test_twins_without_a_class_for_each_clean_text_are_refused(labels):
    with pytest.raises(ValueError, match="clean_labels"):
        Twins(PAIRS, labels)
    with pytest.raises(ValueError, match="at least one pair"):
        Twins([], [])


def test_the_median_of_an_even_number_of_draws_is_the_mean_of_the_middle_two(model):
    found = run(model, curves=(), n_random=20, directions=("noise",))
    frame = found.results["noise"].index_df
    drawn = found.recovered("noise")[frame.index[frame.kind == "random"].tolist()].sort().values
    assert rows(found).random_median.item() == pytest.approx(float(drawn[9:11].mean()), abs=1e-12)


def test_its_file_gives_it_back_and_it_shows_itself_on_one_line(model, tmp_path):
    found = run(model, curves=("layer", "neuron"))
    again = NeuronPatching.load(found.save(tmp_path / "new" / "patching.safetensors"))
    pd.testing.assert_frame_equal(again.to_dataframe(), found.to_dataframe())
    assert again.settings == found.settings
    for direction, result in found.results.items():
        pd.testing.assert_frame_equal(again.results[direction].index_df, result.index_df)
    assert repr(found).startswith(
        "NeuronPatching(task='planted', recovered={'denoise': "
    ) and "\n" not in repr(found)
    assert "<table" in found._repr_html_()


def test_a_file_that_is_not_sound_is_refused(model, tmp_path):
    found = run(model, curves=(), directions=("noise",))
    path = found.save(tmp_path / "patching.safetensors")
    tensors, header = load_tensors(path, "NeuronPatching")
    tensors["noise, source"] = tensors["noise, source"][:2]
    with pytest.raises(ValueError, match="differ in their shapes"):
        NeuronPatching.load(save_tensors(path, "NeuronPatching", tensors, header))
    with pytest.raises(ValueError, match="'directions' is missing"):
        NeuronPatching.load(save_tensors(path, "NeuronPatching", tensors, {"index": header["index"]}))


# Units, cutting, and what chose


def test_a_built_in_tasks_pairs_of_one_word_pair_are_one_unit():
    task = minimal_pairs("movie_reviews", n_pairs=40)
    pairs = Twins.of(task, "report")
    of_task = task.units("report")
    rows = {text: row for row, text in enumerate(task.split("report")["text"])}
    member = [of_task.member[rows[clean]].item() for clean, _ in pairs.pairs]
    assert pairs.together.what == "word pair" and len(pairs.together) == len(of_task) < len(pairs.pairs)
    own = pairs.together.member.tolist()
    assert all(
        (own[i] == own[j]) == (member[i] == member[j]) for i in range(len(own)) for j in range(len(own))
    )


def test_pairs_that_share_a_text_on_either_side_are_one_unit_and_a_file_keeps_them():
    pairs = [("a b", "c d"), ("e f", "a b"), ("g h", "i j"), ("g h", "k l"), ("m n", "o p")]
    twins = Twins(pairs, [1, 0, 1, 1, 1])
    assert twins.together.member.tolist() == [0, 0, 1, 1, 2] and twins.together.what == "pair of twins"
    again = twins_recorded(json.loads(json.dumps(twins.record)))
    assert again.together.member.tolist() == [0, 0, 1, 1, 2] and list(again.pairs) == pairs
    with pytest.raises(ValueError, match="units must be of the 5 examples, got those of 4"):
        Twins(pairs, [1, 0, 1, 1, 1], Units.single(4))


def test_signs_and_fractions_go_by_units(model, tmp_path):
    units = Units.of([[0, 0, 1, 1, 2, 3, 4, 5]], what="author")
    found = run(model, twins=Twins(PAIRS, TWINS.clean_labels, units), curves=())
    assert "units='6 (author)'" in repr(found)
    for one in (found, NeuronPatching.load(found.save(tmp_path / "p.safetensors"))):
        frame = one.to_dataframe()
        assert set(frame.unit) == {"author"} and set(frame.n_units) == {6} and set(frame.n_cut) == {0}
        for row, (direction, result) in zip(frame.itertuples(), one.results.items(), strict=True):
            assert row.p_zero == 2 / 2**6  # all six turn one way: two of all signs
            gap = one.source[direction] - result.baseline
            low, high = ratio_interval(result.effect()[0], gap, units=units)
            assert (row.low, row.high) == (low.item(), high.item())


def test_a_gap_of_copies_of_one_pair_is_as_sure_as_that_pair(model):
    """Six copies of one pair whose answer turns and two of one where it turns the other way: two units."""
    labels = [TWINS.clean_labels[0]] * 6 + [1 - TWINS.clean_labels[1]] * 2
    copies = Twins([PAIRS[0]] * 6 + [PAIRS[1]] * 2, labels)
    assert len(copies.together) == 2
    require_no_fraction(run(model, twins=copies, curves=()))


def test_twins_that_cutting_makes_the_same_are_refused_with_their_number(model):
    ends = [("the plot was good", "the plot was bad"), ("the good plot was", "the bad plot was")]
    room = planted.prompt().n_virtual_tokens
    with pytest.raises(ValueError, match=rf"1 of 2 pairs .* cut to {3 + room} tokens, pair 0 first"):
        run(model, twins=Twins(ends, [1, 1]), curves=(), max_length=3 + room)
    found = run(model, twins=Twins(ends[1:], [1]), curves=(), max_length=3 + room)
    assert found.settings["n_cut"] == 2
    assert run(model, twins=Twins(ends, [1, 1]), curves=()).settings["n_cut"] == 0


def test_neurons_are_not_patched_between_the_twins_that_chose_them_unless_by_insistence(model):
    texts = frozenset(text_fingerprints(TWINS.texts))
    skill = NeuronSet(planted.NEURONS.layer, planted.NEURONS.index, choice=Choice("select", texts))
    with pytest.raises(ValueError, match=r"that chose these neurons, .*Twins.of\(task, role, on_chosen"):
        run(model, skill, curves=())
    insisted = run(model, skill, curves=(), twins=replace(TWINS, on_chosen_examples=True))
    assert set(insisted.to_dataframe().neurons_chosen) == {"on these examples"}
    assert "neurons_chosen='on these examples'" in repr(insisted)
    assert set(run(model, curves=()).to_dataframe().neurons_chosen) == {"unknown"}


# Controls


def test_no_control_of_a_set_or_of_a_part_of_it_is_drawn_twice():
    neurons = NeuronSet([0, 0], [1, 2], n_layers=1, d_mlp=9)
    frame, interventions, notes = conditions_of(neurons, ("layer", "cumulative", "neuron"), 20, 0)
    moved = [
        tuple(layers[0](torch.zeros(1, 9), torch.ones(1, 9))[0].nonzero().flatten().tolist())
        for layers in interventions
    ]
    random = frame[frame.kind == "random"].groupby(["curve", "point"])
    drawn = {point: [moved[row] for row in rows.index] for point, rows in random}
    n_drawn = {point: len(sets) for point, sets in drawn.items()}
    assert n_drawn == {
        ("whole", 0): 20,
        ("layer", 0): 20,
        ("cumulative", 1): 7,  # of nine neurons seven are not of the set
        ("cumulative", 2): 20,
        ("neuron", 0): 7,  # both neurons' control
    }
    for sets in drawn.values():
        assert len(set(sets)) == len(sets) and not any({1, 2} & set(one) for one in sets)
    assert sorted(drawn["neuron", 0]) == [(index,) for index in (0, 3, 4, 5, 6, 7, 8)]
    assert [note.split(":")[0] for note in notes] == ["cumulative 1", "neuron, layer 0"]
    assert all("only 7 distinct controls (20 were asked for): p > 0.12" in note for note in notes)


def test_a_single_neuron_is_ranked_among_single_neurons_of_its_own_layer(model, tmp_path):
    """19 of them, where the neurons of the first random set, of all layers, were the control: three at most."""
    found = run(model, curves=("neuron",))
    for one in (found, NeuronPatching.load(found.save(tmp_path / "p.safetensors"))):
        frame = one.to_dataframe()
        single = frame[frame.curve == "neuron"]
        assert (single.p_random == 1 / 20).all() and (single.smallest_p_random == 1 / 20).all()
        assert single.p_placebo.isna().all() and frame.p_placebo.notna().sum() == 2
        assert frame.attrs["notes"] == []
        for direction, result in one.results.items():
            index = result.index_df
            for row in single[single.direction == direction].itertuples():
                own = index[(index.curve == "neuron") & (index.layer == row.layer)]
                drawn = own[own.kind == "random"]
                chosen = set(single[single.layer == row.layer]["index"])
                assert drawn["index"].nunique() == 19 and not set(drawn["index"]) & chosen
                best = max(one.recovered(direction)[drawn.index.tolist()].tolist())
                assert row.random_max == best < row.recovered


def test_the_table_tells_the_smallest_p_that_the_draws_allow():
    """Of 21 neurons two are the set: any part of one has 19 alternatives, of 15 it has 13."""
    for d_mlp, told in ((21, 1 / 20), (15, 1 / 14)):
        neurons = NeuronSet([0, 0], [1, 2], n_layers=1, d_mlp=d_mlp)
        frame, conditions, notes = conditions_of(neurons, ("neuron",), 19, 0)
        pairs = torch.linspace(1, 2, 8, dtype=torch.float64)
        values = torch.rand(len(conditions), 8, generator=torch.Generator().manual_seed(0)).double() * pairs
        found = NeuronPatching(
            {"denoise": _result(values, 0 * pairs, frame)}, {"denoise": pairs}, {"notes": notes}
        )
        rows = found.to_dataframe()
        single = rows[rows.curve == "neuron"]
        assert (single.smallest_p_random == told).all() and (rows.p_random >= rows.smallest_p_random).all()
        assert (len(rows.attrs["notes"]) == 0) == (d_mlp == 21)
