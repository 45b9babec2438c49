"""Planted skill neurons that are there from a known checkpoint on; resuming; models that can't be compared."""

import dataclasses

import pandas as pd
import planted
import pytest
import tiny
import torch
from toy import LABEL_WORDS, QUIET

import tl_skillneurons as skn
from tl_skillneurons.neurons.choice import text_fingerprints
from tl_skillneurons.scores.evaluated_rules import AllRules
from tl_skillneurons.stats.intervals import bootstrap_mean, two_level_bootstrap
from tl_skillneurons.stats.units import Units
from tl_skillneurons.studies._common import file_name
from tl_skillneurons.studies.checkpoints.comparison import Measures, _of_prompts, compare_checkpoints
from tl_skillneurons.studies.checkpoints.places import stated_shape

TASK = planted.task(n_train=40, n_select=60, n_report=40)
QUICK = {"n_permutations": 99, "amount": 2, "run": QUIET}
TUNING = {
    "n_virtual_tokens": 2,
    "n_steps": 2,
    "seeds": [0],
    "training": skn.prompts.TrainingOptions(batch_size=4),
}


def blank(seed):
    """The planted model before its neurons read the label."""
    model = planted.model(seed=seed)
    with torch.no_grad():
        for layer, index in [*planted.NEURONS, *planted.DECOY]:
            getattr(model.blocks[layer].mlp, "in").original_component.weight[index] = 0
    return model


@pytest.fixture(scope="module")
def trained():
    return planted.model()


@pytest.fixture(scope="module")
def found(trained):
    checkpoints = {"0": blank(1), "10": blank(0), "20": planted.model(), "30": trained}
    return skn.studies.over_checkpoints(checkpoints, TASK, prompts=planted.prompt(), n_top=4, **QUICK)


def test_skill_neurons_appear_at_the_checkpoint_from_which_they_are_there(found):
    frame = found.to_dataframe().set_index("checkpoint")
    assert (frame.n_significant[["0", "10"]] == 0).all() and (frame.n_significant[["20", "30"]] >= 4).all()
    assert found.appears() == "20"
    assert (frame.best[["0", "10"]] <= frame.level[["0", "10"]]).all() and frame.best["20"] == 1
    assert (frame.last_top_report[["20", "30"]] == 1).all() and (
        frame.last_top_report[["0", "10"]] < 0.7
    ).all()
    assert frame.p_random["20"] == pytest.approx(1 / 21) and frame.p_random["10"] > 0.05
    assert (frame.accuracy[["20", "30"]] == 1).all() and (frame.accuracy[["0", "10"]] < 0.8).all()
    assert (frame.accuracy_low <= frame.accuracy).all() and (frame.accuracy <= frame.accuracy_high).all()
    assert frame.spearman["30"] == pytest.approx(1) and frame.jaccard["30"] == 1
    assert set(frame.role_of_scores) == {"select"} and set(frame.role_of_accuracy) == {"report"}
    last = found.layers[found.layers.checkpoint == "30"]
    assert last.n_significant.tolist()[1:] == [2, 2] and last.n_shared.tolist() == [2, 2, 2]
    assert set(frame.permuted) == {"labels"}
    assert (
        frame.p_shared["20"] == 1
    )  # the same weights as the last, which share their tops whatever the labels are
    assert frame.p_shared["0"] > 0.05
    assert frame.p_value["20"] == 1 and frame.p_value["0"] > 0.05
    assert found.to_table().row_count == 4


def test_the_unit_and_what_the_random_draws_allow_are_told(found):
    told = {"unit": "text", "n_units": 40, "smallest_p": 1 / 21, "warnings": []}
    told["about"] = "this prompt alone (3 or more would speak for others) and other examples (40 units: text)"
    assert {name: found.settings[name] for name in told} == told == found.to_dataframe().attrs
    again = compare_checkpoints(
        {name: measures(found.scores[name], torch.ones(1, 40)) for name in ("20", "30")},
        TASK,
        amount=2,
        n_top=1,
        n_random=60,
        n_permutations=99,
    )
    there_are = found.scores["30"].d_mlp - 1
    assert again.settings["smallest_p"] == 1 / (1 + min(60, there_are)) and again.checkpoints.p_random[0] > 0
    assert f"only {there_are} distinct controls" in again.settings["warnings"][0] and "warnings=" in repr(
        again
    )


def measures(scores, right):
    """Of one model, with rules that are right as often as on ``select``."""
    position, direction = scores.rules()
    texts = frozenset(text_fingerprints(TASK.split("report")["text"]))
    rules = AllRules(scores.accuracy, position, direction, "report", right.shape[1], texts=texts)
    return Measures(scores, rules, right.double(), "carried")


def test_best_neurons_that_texts_of_report_chose_are_compared_by_insistence_alone(found):
    scores = found.scores["30"]
    chose = {**scores.provenance["chose"], "texts": text_fingerprints(TASK.split("report")["text"])}
    other = dataclasses.replace(scores, provenance={**scores.provenance, "chose": chose})
    right = torch.ones(1, 40)
    settings = {"amount": 2, "n_permutations": 99}
    of_report = {"20": measures(found.scores["20"], right), "30": measures(other, right)}
    with pytest.raises(ValueError, match="on_chosen_examples=True"):
        compare_checkpoints(of_report, TASK, **settings)
    frame = compare_checkpoints(of_report, TASK, on_chosen_examples=True, **settings).checkpoints
    assert set(frame.neurons_chosen) == {"on these examples"}
    assert set(found.checkpoints.neurons_chosen) == {"on other examples"}


def test_an_accuracy_over_several_prompts_has_their_scatter_in_its_interval():
    units = Units.of([(torch.arange(60) // 3).tolist()], what="group")
    shares = torch.tensor([0.55, 0.75, 0.95])[:, None]
    right = (torch.rand(3, 60, generator=torch.Generator().manual_seed(0)) < shares).double()
    row = _of_prompts(right, units, 4)
    low, high = two_level_bootstrap(right, seed=4, units=units)
    assert (row["accuracy_low"], row["accuracy_high"]) == (float(low), float(high))
    alone = bootstrap_mean(right.mean(0), seed=4, units=units)
    assert high - low > 1.5 * (alone[1] - alone[0])
    all_right = _of_prompts(torch.ones(1, 60).double(), units, 4)
    assert all_right["accuracy_low"] == pytest.approx(0.025 ** (1 / 20))  # of 20 groups none was wrong


def test_copies_of_an_answer_narrow_no_interval(found):
    rows = [{"text": f"a b {k}", "label": k % 2, "author": k // 8} for k in range(96)]
    right = (torch.arange(96) // 8 % 3 > 0)[None]
    width = {}
    for group in (None, "author"):
        data = {"train": tiny.sentences(10), "validation": tiny.sentences(10, seed=1), "test": rows}
        data = {
            role: [{"author": f"{role} {k}", **row} for k, row in enumerate(own)]
            for role, own in data.items()
        }
        named = {"template": "{text}", "label": "label", "label_words": LABEL_WORDS, "name": "copies"}
        task = skn.Task.from_datasets(data, **named, group=group)
        frame = compare_checkpoints(
            {name: measures(found.scores[name], right) for name in ("20", "30")},
            task,
            amount=2,
            n_permutations=99,
        ).to_dataframe()
        assert frame.accuracy.tolist() == pytest.approx([2 / 3] * 2)
        assert frame.attrs["n_units"] == (96 if group is None else 12)
        width[group] = float(frame.accuracy_high[0] - frame.accuracy_low[0])
    assert width["author"] > 2 * width[None]


def test_a_model_that_forgets_has_no_point_of_appearance_before_that(found):
    def appears(**named):
        of_models = {name: measures(found.scores[one], torch.ones(1, 40)) for name, one in named.items()}
        return compare_checkpoints(of_models, TASK, amount=2, n_permutations=19).appears()

    assert appears(first="20", forgot="10", last="30") == "last"
    assert appears(a="10", b="0") is None


def test_each_row_is_what_the_same_discovery_alone_gives():
    model, other = tiny.bridge("gpt2"), tiny.bridge("gpt2", seed=1)
    task = tiny.task(n_train=30, n_select=20, n_report=20)
    state = torch.get_rng_state()
    found = skn.studies.over_checkpoints({"other": other, "model": model}, task, **QUICK, **TUNING)
    assert torch.equal(state, torch.get_rng_state())
    with pytest.warns(UserWarning, match="not below chance"):
        prompts = skn.fit_soft_prompts(other, task, run=QUIET, **TUNING)
    scores = skn.score_neurons(other, prompts, task, n_permutations=99, run=QUIET)
    row = found.checkpoints.iloc[0]
    assert torch.equal(found.scores["other"].correct, scores.correct)
    assert (row.best, row.level) == (float(scores.predictivity.max()), scores.null.level())
    rules = skn.scores.evaluate_rules(other, prompts, task, scores, scores.top(10, per="model"))
    assert row.top_report == pytest.approx(rules.mean)
    assert row["median"] == float(scores.predictivity.flatten().quantile(0.5))
    assert row.accuracy == skn.PromptedModel(other, prompts[0], task.label_words).accuracy(task)


def test_an_interrupted_comparison_goes_on_and_loads_nothing_that_is_measured(tmp_path):
    task = tiny.task(n_train=30, n_select=20, n_report=20)
    booted = []

    def maker(name, seed, fails=False):
        def make():
            booted.append(name)
            if fails:
                raise KeyboardInterrupt
            return tiny.bridge("gpt2", seed=seed)

        return make

    options = {**QUICK, **TUNING, "prompts": "last", "n_permutations": 19}
    with pytest.raises(KeyboardInterrupt):
        skn.studies.over_checkpoints(
            {"a": maker("a", 0), "b": maker("b", 1, fails=True), "c": maker("c", 2)},
            task,
            folder=tmp_path,
            **options,
        )
    assert booted == ["c", "a", "b"]
    checkpoints = {name: maker(name, seed) for seed, name in enumerate("abc")}
    booted.clear()
    found = skn.studies.over_checkpoints(checkpoints, task, folder=tmp_path, **options)
    assert booted == ["c", "b", "c"]
    booted.clear()
    again = skn.studies.over_checkpoints(checkpoints, task, folder=tmp_path, **options)
    assert not booted and again.checkpoints.equals(found.checkpoints) and again.layers.equals(found.layers)
    at_once = skn.studies.over_checkpoints(checkpoints, task, **options)
    assert at_once.checkpoints.equals(found.checkpoints)
    with pytest.raises(ValueError, match=r"measures of another run \(tuning.n_steps: 2 there, 3 now\)"):
        skn.studies.over_checkpoints(checkpoints, task, folder=tmp_path, **{**options, "n_steps": 3})
    less = {name: value for name, value in options.items() if name != "training"}
    with pytest.raises(ValueError, match=r"tuning.training.batch_size: 4 there, None now"):
        skn.studies.over_checkpoints(checkpoints, task, folder=tmp_path, **less)
    read = skn.studies.CheckpointComparison.load(found.save(tmp_path / "comparison"))
    pd.testing.assert_frame_equal(read.checkpoints, found.checkpoints)
    pd.testing.assert_frame_equal(read.layers, found.layers)
    assert read.settings == found.settings and list(read.scores) == ["a", "b", "c"]
    assert all(torch.equal(read.scores[name].correct, found.scores[name].correct) for name in "abc")
    assert repr(read).startswith("CheckpointComparison(checkpoints=['a', 'b', 'c'], appears=")
    assert "<table" in read._repr_html_() and read.to_dataframe() is not read.checkpoints


def test_the_length_that_prompts_are_tuned_with_is_the_length_everything_is_measured_with():
    task = tiny.task(n_train=30, n_select=20, n_report=20)
    models = {"other": tiny.bridge("gpt2", seed=1), "model": tiny.bridge("gpt2")}
    found = skn.studies.over_checkpoints(models, task, **QUICK, **TUNING, max_length=7)
    assert {scores.provenance["max_length"] for scores in found.scores.values()} == {7}
    assert found.settings["tuning"]["max_length"] == 7


def test_folders_are_loaded_as_checkpoints(tmp_path):
    task = tiny.task(n_train=30, n_select=20, n_report=20)
    for seed in (0, 1):
        tiny.hf_model("llama", seed).save_pretrained(tmp_path / str(seed))
        tiny.tokenizer("llama").save_pretrained(tmp_path / str(seed))
    places = {"first": tmp_path / "0", "last": str(tmp_path / "1")}
    prompt = skn.SoftPrompt(
        torch.randn(3, 32, generator=torch.Generator().manual_seed(0)), placement="suffix"
    )
    found = skn.studies.over_checkpoints(places, task, prompts=prompt, **{**QUICK, "n_permutations": 19})
    for name, place in places.items():
        model = skn.load_model(place, verbose=False)
        scores = skn.score_neurons(model, prompt, task, run=QUIET)
        assert torch.equal(found.scores[name].correct, scores.correct)


def test_checkpoints_of_other_shapes_are_named_before_anything_is_measured(tmp_path):
    task = tiny.task(n_train=30, n_select=20, n_report=20)
    for name in ("llama", "stablelm"):
        config = tiny.hf_model(name).config
        config.num_hidden_layers = 2 if name == "llama" else 3
        config.architectures = [{"llama": "LlamaForCausalLM", "stablelm": "StableLmForCausalLM"}[name]]
        config.save_pretrained(tmp_path / name)
        for file in ("model.safetensors", "tokenizer.json"):  # never read, since the configs differ
            (tmp_path / name / file).touch()
    message = r"one shape: 'a' has \[n_layers, d_mlp, d_model\] = \[2, 48, 32\], 'b' has \[3, 48, 32\]"
    with pytest.raises(ValueError, match=message):
        skn.studies.over_checkpoints(
            {"a": tmp_path / "llama", "b": tmp_path / "stablelm"}, task, folder=tmp_path / "out", **QUICK
        )
    assert not (tmp_path / "out").exists()
    with pytest.raises(ValueError, match=r"'one' has .* \[2, 48, 32\], 'other' has \[2, 128, 32\]"):
        skn.studies.over_checkpoints(
            {"one": tiny.bridge("gpt2"), "other": tiny.bridge("bloom")}, task, **QUICK
        )
    late = {"one": lambda: tiny.bridge("gpt2"), "other": lambda: tiny.bridge("bloom")}
    with pytest.raises(ValueError, match="checkpoints must have one shape"):
        skn.studies.over_checkpoints(late, task, folder=tmp_path / "late", **QUICK, **TUNING)
    assert (tmp_path / "late" / "one" / "measures.safetensors").exists()


@pytest.mark.parametrize(
    ("names", "options", "message"),
    [
        ("a", {}, "at least two checkpoints by name"),
        ("ab", {"prompts": "first"}, "prompts must be one of 'each', 'last', got 'first'"),
        ("ab", {"prompts": []}, "at least one soft prompt to carry over, got none"),
        (
            "ab",
            {"prompts": [planted.prompt()], "n_steps": 3},
            r"tuned already, got settings of tuning as well \(n_steps\)",
        ),
        ("ab", {"n_permutations": 5}, "n_permutations must be at least 19"),
        ("ab", {"n_random": 5}, "n_random must be at least 19"),
        (["a/b", "a:b"], {}, "would be kept in one folder"),
        ("ab", {"amount": 0.01}, r"amount must give 1 to 48 neurons per layer, got 0.01 \(0 neurons\)"),
        ("ab", {"n_top": 1000}, "1 to 96 neurons"),
        ("", {}, "at least two checkpoints by name to compare, got"),
    ],
)
def test_what_cannot_be_compared_is_refused(names, options, message):
    model = tiny.bridge("llama")
    with pytest.raises(ValueError, match=message):
        skn.studies.over_checkpoints(dict.fromkeys(names, model), tiny.task(), **{**QUICK, **options})


def test_hub_names_with_a_revision_become_names_of_folders_and_places():
    assert file_name("EleutherAI/pythia-70m@step1000") == "EleutherAI-pythia-70m-step1000"
    assert stated_shape(lambda: None) is None and stated_shape("minilm") is None
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        stated_shape("./nowhere/at/all")
    with pytest.raises(FileNotFoundError, match=r"there is no folder nowhere/at/all;"):
        stated_shape("./nowhere/at/all@step1000")


def test_a_name_that_is_none_is_refused():
    with pytest.raises(TypeError, match="checkpoints must go by names that are strings, got ''"):
        skn.studies.over_checkpoints(dict.fromkeys(["", "a"], tiny.bridge("llama")), tiny.task())
