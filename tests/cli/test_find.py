"""The command, with a tiny model behind it: what it prints is what Python gives, kept and resumed in a folder."""

import json
import re
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
from tiny import bridge, sentences
from toy import QUIET
from typer.testing import CliRunner

WORDS = "0=negative,1=positive"
QUICK = ["--virtual-tokens", "2", "--prompts", "2", "--steps", "4", "--batch-size", "4", "--top", "2"]


@pytest.fixture(scope="module")
def cli():
    """The command with a tiny model behind ``--model``, whatever it is given."""
    from tl_skillneurons import cli
    from tl_skillneurons.models import loading

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loading, "load_model", lambda name, **options: bridge("llama"))
        yield cli


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("labelled") / "data"
    folder.mkdir()
    rows = sentences(60)
    for split, part in (("train", rows[:30]), ("validation", rows[30:45]), ("test", rows[45:])):
        (folder / f"{split}.jsonl").write_text("\n".join(json.dumps(row) for row in part))
    return folder


@pytest.fixture(scope="module")
def finished(cli, data, tmp_path_factory):
    """The folder of a finished run, and what was printed; read-only."""
    out = tmp_path_factory.mktemp("finished") / "run"
    result = run(cli, *quick(data, out))
    assert result.exit_code == 0, result.output
    return out, result.stdout


@pytest.fixture
def folder(finished, tmp_path):
    """A copy of the finished run's folder."""
    return Path(shutil.copytree(finished[0], tmp_path / "run"))


def run(cli, *options):
    return CliRunner().invoke(cli.app, ["find", *map(str, options)])


def quick(data, out):
    return ["--model", "tiny", "--data", data, "--label-words", WORDS, "--out", out, *QUICK]


def test_find_writes_a_run_folder_whose_json_holds_every_number_it_prints(finished):
    out, printed = finished
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
        "effects.safetensors",
        "neurons.json",
        "predictivity.html",
        "prompt-seed0.safetensors",
        "prompt-seed1.safetensors",
        "rules_on_report.safetensors",
        "run.json",
        "scores.safetensors",
        "task.json",
    ]
    said = recorded["numbers"]
    printed = printed.replace("\n", " ")
    for row in said["prompts"]:
        assert f"{row['accuracy_on_report']:.3f}" in printed
    for row in said["layers"]:
        assert f"{row['best_predictivity_on_select']:.3f}" in printed
        assert f"{row['chance_expects']:.3f}" in printed
    for row in said["skill_neurons"]["best"]:
        assert f"{row['accuracy_on_report']:.3f}" in printed
    effects = said["effects"]
    assert effects["n_random"] == 20 and effects["positions"] == "prompt"
    for rows in effects["metrics"].values():
        assert len(rows["each_prompt"]) == 2
        for row in [rows["pooled"], *rows["each_prompt"]]:
            for key, value in row.items():
                assert f"{value:.3f}" in printed or key.startswith("change")
    assert said["skill_neurons"]["n"] == 4


def test_the_printed_numbers_are_those_of_the_plain_python_calls(data, finished, skn):
    from tl_skillneurons.tasks.sources import load_splits

    said = json.loads((finished[0] / "run.json").read_text())["numbers"]
    task = skn.Task.from_datasets(
        load_splits(data), template="{text}", label_words={0: "negative", 1: "positive"}, name="data"
    )
    model = bridge("llama")
    prompts = skn.fit_soft_prompts(
        model,
        task,
        n_virtual_tokens=2,
        seeds=range(2),
        n_steps=4,
        training=skn.prompts.TrainingOptions(batch_size=4),
        run=QUIET,
    )
    batches = skn.RunOptions(batch_size=8, progress=False)
    scores = skn.score_neurons(model, prompts, task, run=batches)
    skill = scores.top(2)
    rules = skn.scores.evaluate_rules(model, prompts, task, scores, run=batches)
    best = said["skill_neurons"]["best"]
    assert [(row["layer"], row["index"]) for row in best] == list(skill)
    assert [row["accuracy_on_report"] for row in best] == pytest.approx(rules.accuracy_of(skill).tolist())
    panel = skn.measure_effects(model, prompts, task, skill, interventions=["mean"], run=batches)
    pooled = panel.to_dataframe(each_prompt=False).set_index("metric")
    for metric, rows in said["effects"]["metrics"].items():
        for key, value in rows["pooled"].items():
            assert value == pytest.approx(pooled.loc[metric, key], abs=1e-6), key


def test_a_finished_run_is_not_computed_again(cli, data, finished, folder, monkeypatch):
    from tl_skillneurons.find import phases as find
    from tl_skillneurons.prompts.tuning import fit as tuning

    for module, name in (
        (tuning, "training_steps"),
        (find, "score_neurons"),
        (find, "evaluate_rules"),
        (find, "measure_effects"),
    ):
        monkeypatch.setattr(module, name, lambda *_, **__: pytest.fail("computed again"))
    again = run(cli, *quick(data, folder))
    assert again.exit_code == 0, again.output
    one, two = ("".join(said.split()) for said in (finished[1], again.stdout))  # however lines broke
    assert one.replace(str(finished[0]), "") == two.replace(str(folder), "")


@pytest.mark.parametrize("broken", ["score_neurons", "evaluate_rules", "measure_effects"])
def test_an_interrupted_run_says_so_and_goes_on_to_the_same_numbers(
    cli, data, finished, tmp_path, monkeypatch, broken
):
    from tl_skillneurons.find import phases as find

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
    one, two = (json.loads((where / "run.json").read_text()) for where in (finished[0], tmp_path / "run"))
    assert one == two


def test_another_setting_in_the_same_folder_is_refused_by_name_and_changes_nothing(cli, data, folder):
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    result = run(cli, *quick(data, folder), "--steps", "5")
    assert result.exit_code == 2
    assert "--steps: 4 there, 5 now" in result.output.replace("\n", "")
    assert before == {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--label-words", "negative"], "must be 'label=word,label=word'"),
        (["--label-words", "0=negative,2=positive"], "label"),
        (["--label-words", "0=negative,1=unheard-of"], "is not in the vocabulary"),
        (["--top", "many"], "--top must be a share such as 0.02"),
        (["--top", "0.0001"], "--top must give 1 to 48 neurons per layer"),
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


def test_without_plotly_a_run_says_what_its_picture_needs(cli, data, folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "plotly", None)
    result = run(cli, *quick(data, folder))
    assert result.exit_code == 0, result.output
    assert 'No picture: plots need plotly; install it with pip install "tl_skillneurons[plots]"' in " ".join(
        result.output.split()
    )


def test_brackets_in_names_are_shown_as_they_are(cli, data, folder):
    odd = folder.rename(folder.parent / "run [bold]")
    result = run(cli, *quick(data, odd))
    assert result.exit_code == 0, result.output
    assert "run[bold]" in "".join(result.output.split())


def test_a_run_finds_the_built_in_task_and_a_folder_of_its_own_where_none_is_named(
    cli, monkeypatch, tmp_path
):
    import tl_skillneurons

    asked = []
    monkeypatch.setattr(
        tl_skillneurons, "minimal_pairs", lambda *given, **options: asked.append((given, options))
    )
    monkeypatch.chdir(tmp_path)
    result = run(cli, "--model", "org/tiny model", "--seed", "3")
    assert result.exit_code == 1 and isinstance(
        result.exception, AttributeError
    )  # there is no task to go on with
    [(given, options)] = asked
    assert given == ("movie_reviews",) and options["seed"] == 3
    assert options["label_words"] == {0: " negative", 1: " positive"}
    refused = run(cli, "--label-words", "a=one,b=two")
    assert "movie_reviews has the labels 0 and 1, got ['a', 'b'] in --label-words" in refused.output


def test_files_of_another_run_in_the_folder_are_refused(cli, data, folder, tmp_path):
    """Each file knows the prompts and the task that it was measured with."""
    other = tmp_path / "other"
    assert run(cli, *quick(data, other), "--seed", "5", "--prompts", "1").exit_code == 0
    for name in ("scores.safetensors", "rules_on_report.safetensors", "effects.safetensors"):
        mixed = tmp_path / f"mixed-{name}"
        shutil.copytree(folder, mixed)
        shutil.copy(other / name, mixed / name)
        result = run(cli, *quick(data, mixed))
        assert result.exit_code == 2
        said = " ".join(result.output.split())
        assert f"{name} was measured with other prompts or another task; delete it" in said


def test_findings_show_themselves_as_a_line_and_a_table_of_their_neurons(data, finished, skn):
    from tl_skillneurons.tasks.sources import load_splits

    task = skn.Task.from_datasets(
        load_splits(data), template="{text}", label_words={0: "negative", 1: "positive"}, name="data"
    )
    found = skn.find_skill_neurons(
        bridge("llama"),
        task,
        out=finished[0],
        n_virtual_tokens=2,
        n_prompts=2,
        n_steps=4,
        top=2,
        training=skn.prompts.TrainingOptions(batch_size=4),
        run=QUIET,
    )
    frame = found.to_dataframe()
    assert list(frame.columns[:2]) == ["layer", "index"] and len(frame) == len(found.skill) == 4
    assert frame.on_report.tolist() == found.on_report.tolist()
    assert repr(found).startswith("Findings(task='data', n_prompts=2, n_skill_neurons=4, on_select=")
    assert "<table" in found._repr_html_() and "Findings(" in found._repr_html_()


def test_help_names_every_option_with_its_default(cli):
    result = CliRunner().invoke(cli.app, ["find", "--help"], env={"COLUMNS": "200", "NO_COLOR": "1"})
    options = "model data template label label-words virtual-tokens prompts steps batch-size top seed device dtype out"
    for option in options.split():
        assert f"--{option}" in result.output
    assert result.output.count("default:") >= len(options.split())


@pytest.mark.parametrize(
    "arguments", [["--help"], ["find", "--help"], ["--version"], ["find", "--top", "many"]]
)
def test_help_and_mistakes_load_nothing_heavy_and_take_less_than_a_second_and_a_half_of_work(arguments):
    code = (
        "import sys, time; start = time.process_time(); from tl_skillneurons.cli import app\n"
        f"try: app({arguments!r})\n"
        "except SystemExit: pass\n"
        "print(time.process_time() - start, 'torch' in sys.modules, 'pandas' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    seconds, torch, pandas = done.stdout.split()[-3:]
    assert float(seconds) < 1.5
    assert (torch, pandas) == ("False", "False")


def test_the_version_is_the_installed_one(cli):
    assert CliRunner().invoke(cli.app, ["--version"]).output == f"{version('tl_skillneurons')}\n"


def effects_with(values, p=1 / 21, matched_p=1 / 21):
    """What the report knows of an effect whose logit diff is ``values`` for each prompt, and 2 under any control."""
    rows = [
        {"intact": 3.0, "value": value}
        | {"random_median": 2.0, "matched_median": 2.0, "p_random": p, "p_matched": matched_p}
        for value in values
    ]
    pooled = {**rows[0], "value": sum(values) / len(values)}
    return {"metrics": {"logit_diff": {"pooled": pooled, "each_prompt": rows}}}


@pytest.mark.parametrize(
    ("effects", "said"),
    [
        (effects_with([1.0, 0.5]), "for each of 2 prompts at p <= 0.05 .*: the model uses what they carry."),
        (effects_with([1.0]), "for the prompt at p <= 0.05 .*: the model uses what they carry."),
        (
            effects_with([1.0, 1.0], p=0.051),
            "in 2 of 4 comparisons .*: that the model uses them is not established",
        ),
        (effects_with([1.0, 1.0], matched_p=0.051), "in 2 of 4 comparisons .* is not established"),
        (
            effects_with([1.0, 2.5]),
            "in 2 of 4 comparisons .* is not established",
        ),  # far from them, the other way
        (effects_with([2.5, 2.5]), "not seen to cost more .*, nothing here shows that the model uses them"),
        (effects_with([1.0, 1.0], p=0.1, matched_p=0.1), "not seen to cost more .*, nothing here shows"),
    ],
)
def test_the_verdict_says_that_the_model_uses_them_only_where_every_prompt_and_control_agree(effects, said):
    from tl_skillneurons.report.terminal import verdict

    sentence = verdict(effects)
    assert re.search(said, sentence)
    lost = 3.0 - effects["metrics"]["logit_diff"]["pooled"]["value"]
    assert f"logit diff lost: {lost:.3f}, random controls 1.000, matched controls 1.000" in sentence
    assert ("the model uses what they carry" in sentence) == ("for " in said and "p <=" in said)


def test_messages_name_options_and_leave_other_words_alone():
    from tl_skillneurons.cli._errors import in_own_words

    said = in_own_words("n_steps: 4 there; label_words must be; model.label_words, batch_size() and amounts")
    assert said == "--steps: 4 there; --label-words must be; model.label_words, batch_size() and amounts"
