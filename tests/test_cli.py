import json

import pytest
from tiny import bridge, sentences
from typer.testing import CliRunner

WORDS = "0=negative,1=positive"
QUICK = ["--virtual-tokens", "2", "--prompts", "2", "--steps", "4", "--batch-size", "4", "--top", "2"]


@pytest.fixture
def cli(monkeypatch):
    """The command with a tiny model behind ``--model``, whatever it is given."""
    from tl_skillneurons import cli

    monkeypatch.setattr(cli, "load_model", lambda name, **options: bridge("llama"))
    return cli


@pytest.fixture
def data(tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    rows = sentences(60)
    for split, part in (("train", rows[:30]), ("validation", rows[30:45]), ("test", rows[45:])):
        (folder / f"{split}.jsonl").write_text("\n".join(json.dumps(row) for row in part))
    return folder


def run(cli, *options):
    return CliRunner().invoke(cli.app, ["find", *map(str, options)])


def quick(data, out):
    return ["--model", "tiny", "--data", data, "--label-words", WORDS, "--out", out, *QUICK]


def test_find_writes_a_run_folder_whose_json_holds_every_number_it_prints(cli, data, tmp_path):
    out = tmp_path / "run"
    result = run(cli, *quick(data, out))
    assert result.exit_code == 0, result.output
    recorded = json.loads((out / "run.json").read_text())
    assert recorded["finished"] and recorded["settings"]["seeds"] == [0, 1]
    assert recorded["settings"]["task"]["n_examples"] == {
        "train": 30,
        "baseline": 30,
        "select": 15,
        "report": 15,
    }
    names = sorted(path.name for path in out.rglob("*") if path.is_file())
    assert names == [
        "ablation.json",
        "neurons.json",
        "predictivity.html",
        "prompt-seed0.safetensors",
        "prompt-seed1.safetensors",
        "rules_on_report.safetensors",
        "run.json",
        "scores.safetensors",
    ]
    said = recorded["numbers"]
    printed = result.stdout.replace("\n", " ")
    for row in said["prompts"]:
        assert f"{row['accuracy_on_report']:.3f}" in printed
    for row in said["layers"]:
        assert f"{row['best_predictivity_on_select']:.3f}" in printed
        assert f"{row['chance_expects']:.3f}" in printed
    for row in said["skill_neurons"]["best"]:
        assert f"{row['accuracy_on_report']:.3f}" in printed
    ablation = said["ablation"]
    for key in ("intact", "skill_neurons_ablated", "random_median", "random_lowest", "random_highest"):
        assert f"{ablation[key]:.3f}" in printed
    assert len(ablation["each_prompt"][0]["random"]) == ablation["n_random"] == 5
    assert said["skill_neurons"]["n"] == 4


def test_the_printed_numbers_are_those_of_the_plain_python_calls(cli, data, tmp_path, skn):
    from tl_skillneurons.tasks.sources import load_splits

    out = tmp_path / "run"
    assert run(cli, *quick(data, out)).exit_code == 0
    said = json.loads((out / "run.json").read_text())["numbers"]
    task = skn.Task.from_datasets(
        load_splits(data), template="{text}", label_words={0: "negative", 1: "positive"}, name="data"
    )
    model = bridge("llama")
    prompts = skn.fit_soft_prompts(
        model, task, n_virtual_tokens=2, seeds=range(2), n_steps=4, batch_size=4, progress=False
    )
    scores = skn.score_neurons(model, prompts, task, batch_size=8, progress=False)
    skill = scores.top(2)
    rules = skn.scores.rule_accuracy(model, prompts, task, scores, batch_size=8, progress=False)
    best = said["skill_neurons"]["best"]
    assert [(row["layer"], row["index"]) for row in best] == list(skill)
    assert [row["accuracy_on_report"] for row in best] == pytest.approx(
        scores.rule_accuracy(skill, rules).tolist()
    )
    values = [scores.mean_baseline(k) for k in range(2)]
    effect = skn.interventions.ablation_effect(
        model, prompts, task, skill, values=values, batch_size=8, progress=False
    )
    assert said["ablation"]["skill_neurons_ablated"] == pytest.approx(float(effect.ablated.mean()))
    assert said["ablation"]["random_median"] == pytest.approx(float(effect.random.mean(0).median()))


def test_a_finished_run_is_not_computed_again(cli, data, tmp_path, monkeypatch):
    from tl_skillneurons import find
    from tl_skillneurons.interventions import effects
    from tl_skillneurons.prompts.tuning import fit as tuning

    out = tmp_path / "run"
    first = run(cli, *quick(data, out))
    for module, name in (
        (tuning, "_train"),
        (find, "score_neurons"),
        (find, "rule_accuracy"),
        (effects, "accuracy"),
    ):
        monkeypatch.setattr(module, name, lambda *_, **__: pytest.fail("computed again"))
    again = run(cli, *quick(data, out))
    assert again.exit_code == 0
    assert again.stdout == first.stdout


@pytest.mark.parametrize("broken", ["score_neurons", "rule_accuracy", "ablation_effect"])
def test_an_interrupted_run_says_so_and_goes_on_to_the_same_numbers(cli, data, tmp_path, monkeypatch, broken):
    from tl_skillneurons import find

    whole = run(cli, *quick(data, tmp_path / "whole"))
    calls = []
    real = getattr(find, broken)

    def interrupted(*args, **options):
        calls.append(broken)
        if len(calls) == (2 if broken == "score_neurons" else 1):
            raise KeyboardInterrupt
        return real(*args, **options)

    monkeypatch.setattr(find, broken, interrupted)
    stopped = run(cli, *quick(data, tmp_path / "run"))
    assert stopped.exit_code == 130
    monkeypatch.setattr(find, broken, lambda *args, **options: calls.append("more") or real(*args, **options))
    resumed = run(cli, *quick(data, tmp_path / "run"))
    assert resumed.exit_code == 0, resumed.output
    assert calls.count("more") == 1  # of two prompts, the first was scored before the interrupt
    assert whole.exit_code == 0
    one, two = (json.loads((tmp_path / name / "run.json").read_text()) for name in ("whole", "run"))
    assert one == two


def test_another_setting_in_the_same_folder_is_refused_by_name_and_changes_nothing(cli, data, tmp_path):
    out = tmp_path / "run"
    run(cli, *quick(data, out))
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    result = run(cli, *quick(data, out), "--steps", "5")
    assert result.exit_code == 2
    assert "n_steps: 4 there, 5 now" in result.output.replace("\n", "")
    assert before == {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--label-words", "negative"], "must be 'label=word,label=word'"),
        (["--label-words", "0=negative,2=positive"], "label"),
        (["--label-words", "0=negative,1=unheard-of"], "is not in the vocabulary"),
        (["--top", "many"], "--top must be a share such as 0.02"),
        (["--top", "0.0001"], "amount must give 1 to 48 neurons per layer"),
        (["--template", "{sentence}"], "sentence"),
        (["--label", "sentiment"], "sentiment"),
        (["--data", "nowhere/at/all.jsonl"], "nowhere/at/all.jsonl"),
    ],
)
def test_what_a_user_gets_wrong_is_one_clear_line_and_nothing_is_written(
    cli, data, tmp_path, options, message
):
    out = tmp_path / "run"
    result = run(cli, *quick(data, out), *options)
    assert result.exit_code == 2
    assert "Error:" in result.output and "Traceback" not in result.output
    assert message in result.output.replace("\n", " ")
    assert not out.exists()


def test_help_names_every_option_with_its_default(cli):
    result = CliRunner().invoke(cli.app, ["find", "--help"], env={"COLUMNS": "200", "NO_COLOR": "1"})
    options = "model data template label label-words virtual-tokens prompts steps batch-size top seed device dtype out"
    for option in options.split():
        assert f"--{option}" in result.output
    assert result.output.count("default:") >= len(options.split())


@pytest.mark.parametrize(
    ("ablated", "said"),
    [
        (0.60, "more harm than each of 5"),
        (0.79, "more harm than most, but not than each"),
        (0.85, "no more harm"),
    ],
)
def test_the_verdict_says_plainly_what_the_control_allows(ablated, said):
    from tl_skillneurons.report import verdict

    row = {
        "intact": 0.87,
        "skill_neurons_ablated": ablated,
        "random_median": 0.84,
        "random_lowest": 0.78,
        "n_random": 5,
    }
    sentence = verdict(row)
    assert said in sentence
    assert f"accuracy lost: {0.87 - ablated:.3f}, random controls 0.030 at their median" in sentence
