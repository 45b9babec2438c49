"""The command, with a tiny model behind it: what it prints is what Python gives, kept and resumed in a folder."""

import json
import re
import shutil
import sys
from collections import Counter
from importlib.metadata import version

import pytest
from commands import QUICK, WORDS, ask, told
from planted import model as planted_model
from toy import QUIET
from typer.testing import CliRunner


def run(cli, *options):
    return CliRunner().invoke(cli.app, ["find", *map(str, options)])


def quick(data, out):
    return ["--model", "tiny", "--data", data, "--label-words", WORDS, "--out", out, *QUICK]


def test_find_writes_a_run_folder_whose_json_holds_every_number_it_prints(finished):
    out, printed = finished
    recorded = json.loads((out / "run.json").read_text())
    assert recorded["finished"] and recorded["settings"]["seeds"] == [0, 1]
    assert recorded["finished"] and recorded["settings"]["seeds"] == [0, 1]
    assert recorded["settings"]["task"]["n_examples"] == {
        "train": 40,
        "baseline": 40,
        "select": 24,
        "report": 24,
    }
    names = sorted(str(path.relative_to(out)) for path in out.rglob("*") if path.is_file())
    assert names == [
        "answers.safetensors",
        "curve.safetensors",
        "effects.safetensors",
        "neurons.json",
        "price.safetensors",
        "profiles.safetensors",
        "prompts/prompt-seed0.safetensors",
        "prompts/prompt-seed1.safetensors",
        "readability/probe-0.safetensors",
        "readability/probe-1.safetensors",
        "readability/random_rules.safetensors",
        "readability/rules_of_the_best.json",
        "report.html",
        "rules_on_report.safetensors",
        "run.json",
        "scores.safetensors",
        "stability.safetensors",
        "task.json",
    ]
    said = recorded["numbers"]
    words = " ".join(printed.replace("│", " ").split())
    for verdict in said["verdicts"]:
        assert f"{verdict['question']} {verdict['answer']}" in words
        assert verdict["sentence"] in words
    for row in said["skill_neurons"]["best"]:
        assert f"{row['layer']}.{row['index']}" in printed and f"{row['accuracy_on_report']:.3f}" in printed
    assert said["skill_neurons"]["n"] == 6
    effects = [row for row in said["effects"] if row["prompt"] == "pooled"]
    assert {row["metric"] for row in effects} >= {"accuracy", "logit_diff"}
    assert all(row["smallest_p_random"] == 1 / 21 and row["positions"] == "prompt" for row in effects)
    assert max(map(len, printed.splitlines())) <= 80 + len(str(out))


def test_the_printed_numbers_are_those_of_the_plain_python_calls(data, finished, skn):
    from tl_skillneurons.tasks.sources import load_splits

    said = json.loads((finished[0] / "run.json").read_text())["numbers"]
    task = skn.Task.from_datasets(
        load_splits(data), template="{text}", label_words={0: "negative", 1: "positive"}, name="data"
    )
    model = planted_model()
    prompts = skn.fit_soft_prompts(
        model,
        task,
        n_virtual_tokens=2,
        seeds=range(2),
        n_steps=8,
        training=skn.prompts.TrainingOptions(batch_size=8),
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
    for one, other in zip(said["effects"], panel.to_dataframe().to_dict("records"), strict=True):
        for key in ("intact", "value", "random_median", "matched_max", "p_least"):
            assert one[key] == pytest.approx(other[key], abs=1e-5), key


def test_a_finished_run_is_not_computed_again(cli, data, finished, folder, monkeypatch):
    from tl_skillneurons.find import phases as find
    from tl_skillneurons.find import readability, stability
    from tl_skillneurons.prompts.tuning import fit as tuning

    for module, name in (
        (tuning, "training_steps"),
        (find, "measure_answers"),
        (find, "measure_price"),
        (readability, "evaluate_rules"),
        (readability, "vote_and_probe"),
        (stability, "permuted_stability"),
        (find, "score_neurons"),
        (find, "evaluate_rules"),
        (find, "measure_effects"),
    ):
        monkeypatch.setattr(module, name, lambda *_, **__: pytest.fail("computed again"))
    again = run(cli, *quick(data, folder))
    assert again.exit_code == 0, again.output
    without_times = (
        re.sub("Where the time went.*? in all.", "", said, flags=re.S) for said in (finished[1], again.stdout)
    )
    one, two = ("".join(said.split()) for said in without_times)  # however lines broke
    assert one.replace(str(finished[0]), "") == two.replace(str(folder), "")


def test_a_run_interrupted_in_one_phase_after_another_says_so_and_goes_on_to_the_same_numbers(
    cli, data, finished, tmp_path, monkeypatch
):
    from tl_skillneurons.find import phases as find

    calls = Counter()

    def interrupt(name, at):
        real = getattr(find, name)

        def one(*args, **options):
            calls[name] += 1
            if calls[name] == at:
                raise KeyboardInterrupt
            return real(*args, **options)

        monkeypatch.setattr(find, name, one)

    # of two prompts, the second while it is scored; of the effects, those of the set before those of several sizes
    for name, at in (("score_neurons", 2), ("evaluate_rules", 1), ("measure_effects", 1)):
        interrupt(name, at)
    for _ in range(3):
        assert run(cli, *quick(data, tmp_path / "run")).exit_code == 130
    resumed = run(cli, *quick(data, tmp_path / "run"))
    assert resumed.exit_code == 0, resumed.output
    assert calls == {"score_neurons": 3, "evaluate_rules": 2, "measure_effects": 3}  # none twice to its end
    one, two = (json.loads((where / "run.json").read_text()) for where in (finished[0], tmp_path / "run"))
    for run_ in (one, two):
        del run_["seconds"], run_["numbers"]["seconds"], run_["checksum"]
        for verdict in run_["numbers"]["verdicts"]:
            verdict.pop("command")  # it names the folder
    assert one == two


def test_another_setting_in_the_same_folder_is_refused_by_name_and_changes_nothing(cli, data, folder):
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    result = run(cli, *quick(data, folder), "--steps", "9")
    assert result.exit_code == 2
    assert "--steps: 8 there, 9 now" in result.output.replace("\n", "")
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


def test_without_plotly_a_run_says_what_its_page_needs(cli, data, folder, monkeypatch):
    from tl_skillneurons.report import page

    monkeypatch.setattr(page, "page_of", lambda findings: page.graph_objects())
    monkeypatch.setitem(sys.modules, "plotly", None)
    result = run(cli, *quick(data, folder))
    assert result.exit_code == 0, result.output
    assert 'No page: plots need plotly; install it with pip install "tl_skillneurons[plots]"' in " ".join(
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
    from tl_skillneurons.find import phases

    def far_enough(*_, **__):
        raise KeyboardInterrupt

    other = tmp_path / "other"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(phases, "measure_price", far_enough)
        assert run(cli, *quick(data, other), "--seed", "5", "--prompts", "1").exit_code == 130
    for name in ("scores.safetensors", "rules_on_report.safetensors", "effects.safetensors"):
        mixed = tmp_path / f"mixed-{name}"
        shutil.copytree(folder, mixed)
        shutil.copy(other / name, mixed / name)
        result = run(cli, *quick(data, mixed))
        assert result.exit_code == 2
        said = " ".join(result.output.split())
        assert f"{name} was measured with other prompts or another task; delete it" in said


def test_findings_show_themselves_as_a_line_and_a_table_of_their_neurons(data, finished, skn):
    from tl_skillneurons.find.evidence import Evidence
    from tl_skillneurons.tasks.sources import load_splits

    task = skn.Task.from_datasets(
        load_splits(data), template="{text}", label_words={0: "negative", 1: "positive"}, name="data"
    )
    found = skn.find_skill_neurons(
        planted_model(),
        task,
        out=finished[0],
        n_virtual_tokens=2,
        n_prompts=2,
        n_steps=8,
        top=2,
        training=skn.prompts.TrainingOptions(batch_size=8),
        evidence=Evidence(n_permutations=99, n_curve_examples=4, n_curve_random=1),
        run=QUIET,
    )
    frame = found.to_dataframe()
    assert list(frame.columns[:2]) == ["layer", "index"] and len(frame) == len(found.skill) == 6
    assert frame.on_report.tolist() == found.on_report.tolist()
    assert repr(found).startswith("Findings(task='data', n_prompts=2, n_skill_neurons=6, on_report=")
    assert "<table" in found._repr_html_() and "Findings(" in found._repr_html_()


def test_help_names_every_option_with_its_default(cli):
    result = CliRunner().invoke(cli.app, ["find", "--help"], env={"COLUMNS": "200", "NO_COLOR": "1"})
    options = "model data template label label-words virtual-tokens prompts steps batch-size top seed device dtype out"
    for option in options.split():
        assert f"--{option}" in result.output
    assert result.output.count("default:") >= len(options.split())


def test_the_version_is_the_installed_one(cli):
    assert CliRunner().invoke(cli.app, ["--version"]).output == f"{version('tl_skillneurons')}\n"


def test_messages_name_options_and_leave_other_words_alone(cli):
    from tl_skillneurons.cli._errors import OWN_WORDS, in_own_words

    def said(message):
        return in_own_words(message, OWN_WORDS["find"])

    assert (
        said("n_steps: 4 there; label_words must be; model.label_words, batch_size() and amounts")
        == "--steps: 4 there; --label-words must be; model.label_words, batch_size() and amounts"
    )
    assert said("say by label= which column") == "say by --label which column"
    assert said("give template='{a}', or 'label=word,label=word'") == (
        "give --template '{a}', or 'label=word,label=word'"
    )
    assert said("dtype must be one of; the data of a model, by its label") == (
        "--dtype must be one of; the data of a model, by its label"
    )


def test_a_finished_run_is_shown_again_from_a_folder_that_cannot_be_written(cli, data, folder, monkeypatch):
    import os

    from tl_skillneurons import _files

    def refuse(path, content):
        raise PermissionError(f"can't write {path}")

    monkeypatch.setattr(_files, "write_whole", refuse)
    monkeypatch.setattr(os, "access", lambda path, mode: mode != os.W_OK)
    again = run(cli, *quick(data, folder))
    assert again.exit_code == 0, again.output
    assert f"The page is {folder}/report.html" in " ".join(again.stdout.split())
    assert ask(cli, "report", folder).exit_code == 0


def test_a_prompt_that_leaves_no_room_for_texts_is_refused_before_it_is_tuned(cli, data, tmp_path):
    result = run(cli, *quick(data, tmp_path / "run"), "--virtual-tokens", "48")
    assert result.exit_code == 2
    assert "--virtual-tokens must leave room for text, planted takes sequences of at most 48" in told(result)
    assert not (tmp_path / "run").exists()
