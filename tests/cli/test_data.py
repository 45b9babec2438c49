"""Data as people have it, from the command: odd columns, several classes, mistakes that are seen before any work."""

import csv
import json
import re
import shlex
import subprocess
import sys

import pytest
from commands import QUICK, ask, told

CLASSES = ("bad", "good", "so so")


@pytest.fixture(scope="module")
def tweets(tmp_path_factory):
    """A CSV file with three classes, columns with blanks and capitals, and an empty text."""
    path = tmp_path_factory.mktemp("tweets") / "My tweets.csv"
    with path.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["Id", "Tweet text", "Sentiment"])
        for k in range(90):
            rows.writerow(
                [k, "" if k == 89 else f"the film {k} was {CLASSES[k % 3]} and slow", CLASSES[k % 3]]
            )
    return path


def asked(path, *more):
    return ["find", "--model", "tiny", "--data", path, "--label", "Sentiment", *QUICK, *more]


@pytest.fixture
def tasks(monkeypatch, finished):
    """What is looked for, each in its folder, in the place of a run."""
    from tl_skillneurons.find import folder, phases

    seen = {}

    def look(model, task, *, out, **options):
        seen[str(out)] = task
        return folder.load_run(finished[0])

    monkeypatch.setattr(phases, "find_skill_neurons", look)
    monkeypatch.setattr(folder, "record", lambda *_, **__: None)
    return seen


def test_of_three_classes_each_stands_against_the_others_in_a_folder_of_its_own(
    cli, tweets, tasks, tmp_path, skn
):
    out = tmp_path / "run"
    words = "bad= bad,good= good,so so= slow".replace("= ", "=")
    given = asked(tweets, "--classes", "all", "--label-words", words, "--rest-word", "other", "--drop-empty")
    result = ask(cli, *given, "--out", out)
    assert result.exit_code == 0, result.output
    assert list(tasks) == [str(out / name) for name in ("bad", "good", "so-so")]
    assert [task.label_words[0] for task in tasks.values()] == ["other"] * 3
    for name, task in zip(CLASSES, tasks.values(), strict=True):
        split = task.split("report")
        for text, label in zip(split["text"], split["label"], strict=True):
            assert (name in text) == bool(label)
    assert "1 without a text" in told(result) and "each class against the others" in told(result)
    assert all(name in result.stdout for name in ("bad", "good", "so-so"))
    refused = ask(cli, "report", out)
    assert "holds a run for each class; give one of" in told(refused)
    as_json = json.loads(ask(cli, *given, "--out", out, "--json").stdout)
    assert [row["class"] for row in as_json["classes"]] == ["bad", "good", "so-so"]
    union = skn.NeuronSet.from_json(out / "neurons.json")
    assert as_json["neurons"] == {"file": str(out / "neurons.json"), "n": len(union)}
    assert f"together, {len(union)}, are in" in told(result) and len(union) > 0
    empty = ask(cli, *asked(tweets, "--classes", "all", "--out", tmp_path / "o"))
    assert "the text is empty; leave such examples out by --drop-empty" in told(empty)
    other = ask(cli, *asked(tweets, "--classes", "all", "--drop-empty", "--out", tmp_path / "o"))
    assert "answers with words, so each label needs one: give --label-words" in told(other)


def test_two_classes_stand_against_each_other_without_the_third(cli, tweets, tasks, tmp_path):
    given = asked(tweets, "--classes", "good,bad", "--label-words", "bad=bad,good=good", "--drop-empty")
    result = ask(cli, *given, "--out", tmp_path / "run", "--template", "{Tweet text}")
    assert result.exit_code == 0, result.output
    [task] = tasks.values()
    assert task.label_names == ("bad", "good") and task.name == "My tweets"
    assert not any("so so" in text for role in task.splits for text in task.split(role)["text"])


def test_an_encoder_without_a_head_needs_no_label_words(cli, tweets, tasks, tmp_path, monkeypatch):
    from tl_skillneurons.models import sites

    monkeypatch.setattr(sites, "has_language_model_head", lambda model: False)
    result = ask(cli, *asked(tweets, "--classes", "bad,good", "--drop-empty", "--out", tmp_path / "run"))
    assert result.exit_code == 0, result.output
    [task] = tasks.values()
    assert task.label_words == {} and task.label_names == ("bad", "good")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["--label", "label"], "--label 'label' is no column of"),
        (["--label", "label"], "try --label 'Sentiment' (3 values: bad, good, so so)"),
        (["--template", "{text}"], "try --template '{Tweet text}'"),
        (["--template", "{"], "--template '{' can't be read"),
        (["--template", "text"], "--template 'text' names no column"),
        ([], "the data has 3 (bad, good, so so); give --classes all"),
        (["--classes", "bad,ugly"], "--classes must be labels of the data"),
        (["--classes", "bad"], "--classes must be two or more labels with commas, or 'all'"),
        (["--classes", "bad,good", "--label-words", "bad=bad,ugly=x"], "has no word for 'good' of --classes"),
        (["--label-words", "bad=bad,good=good"], "the data has the label 'so so', and --label-words only"),
        (["--label-words", "bad=a,good=b,so so=c"], "two classes at a time, --label-words has 3"),
        (["--data", "movie_reviews", "--classes", "0,1"], "movie_reviews has two, leave it out"),
        (["--data", "./nowhere.csv"], "there is no file or folder ./nowhere.csv for --data"),
        (["--model", "./nowhere"], "there is no folder ./nowhere for --model"),
        (["--model", "minilm", "--revision", "v1"], "--revision chooses among those of a hub model"),
        (["--dtype", "float8"], "--dtype must be one of 'float32'"),
        (["--top", "0"], "--top must be a share such as 0.02, in (0, 1]"),
    ],
)
def test_a_mistake_in_the_data_is_told_before_a_model_is_looked_for(tweets, tmp_path, given, said):
    from tl_skillneurons import cli

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "tl_skillneurons.models.loading", None)
        result = ask(cli, *asked(tweets, "--out", tmp_path / "run", *given))
    assert result.exit_code == 2
    assert said in told(result)
    assert not (tmp_path / "run").exists()


def test_of_several_columns_that_may_be_the_text_one_must_be_named_and_the_advice_can_be_pasted(tmp_path):
    from tl_skillneurons import cli

    lines = [
        "when,words,count,blank,Sentiment",
        "2026-11-01,a fine film,7,,so so",
        "2026-11-02,dull,NA,,it's bad!",
    ]
    path = tmp_path / "two.csv"
    path.write_text("\n".join(lines))
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "tl_skillneurons.models.loading", None)
        refused = told(ask(cli, *asked(path)))
        path.write_text("\n".join([*lines, "2026-11-02,slow,1,,good"]))
        three = told(ask(cli, *asked(path, "--template", "{words}")))
    assert "hold text: 'when', 'words'; give --template '{when}' or --template '{words}'" in refused
    [advice] = re.findall(r"two of them: (.*)$", three)
    assert shlex.split(advice) == ["--classes", "so so,it's bad!"]


def test_mistakes_of_every_command_import_nothing_heavy(tweets, tmp_path):
    code = """
import contextlib, io, sys
from tl_skillneurons.cli import app
for given in map(str.split, sys.stdin.read().splitlines()):
    with contextlib.suppress(SystemExit), contextlib.redirect_stderr(io.StringIO()):
        with contextlib.redirect_stdout(io.StringIO()):
            app(given)
    assert not {"torch", "pandas", "numpy", "transformers"} & set(sys.modules), given
print("light")
"""
    encoder = {"model": {"name": "minilm", "architecture": "BertForMaskedLM"}, "task": {"template": "{text}"}}
    (tmp_path / "run.json").write_text(json.dumps({"finished": True, "settings": encoder}))
    lines = [
        "--help",
        "--version",
        "find --help",
        f"find --data {tweets.parent}/nowhere.csv",
        "find --label-words x",
        "find --dtype x",
        "effects nowhere",
        "effects nowhere --positions x",
        "neuron nowhere 14",
        "heads nowhere",
        "diagnose nowhere --help",
        "prune nowhere --keep x",
        "steer nowhere --doses x",
        "steer nowhere --words it's,good",
        f"steer {tmp_path}",
        "compare nowhere",
        "report nowhere",
    ]
    done = subprocess.run(
        [sys.executable, "-c", code], input="\n".join(lines), capture_output=True, text=True
    )
    assert done.stdout == "light\n", done.stderr


def test_a_file_in_the_place_of_the_folder_is_refused_before_the_work(cli, tweets, tmp_path):
    (tmp_path / "file").write_text("")
    result = ask(cli, *asked(tweets, "--classes", "all", "--out", tmp_path / "file" / "run"))
    assert result.exit_code == 2 and "--out must be a folder, and" in told(result)


def test_too_many_skill_neurons_for_their_controls_are_refused_before_tuning(cli, tweets, tmp_path):
    given = asked(tweets, "--classes", "bad,good", "--label-words", "bad=bad,good=good", "--drop-empty")
    result = ask(cli, *given, "--out", tmp_path / "run", "--top", "25")
    assert "--top must leave as many other neurons for the controls, at most 24 of the 48" in told(result)
    assert not (tmp_path / "run").exists()


def test_every_option_of_every_command_has_its_own_words(cli):
    import typer

    from tl_skillneurons.cli._errors import OWN_WORDS, in_own_words

    commands = typer.main.get_command(cli.app).commands
    assert set(commands) == set(OWN_WORDS)
    for name, command in commands.items():
        words = OWN_WORDS[name]
        for parameter in command.params:
            if parameter.name == "help":
                continue
            spelled = words[parameter.name]
            assert spelled in (*parameter.opts, parameter.metavar), (name, parameter.name)
            assert in_own_words(f"{parameter.name} must be", words) == f"{spelled} must be"
        known = {words[parameter.name] for parameter in command.params if parameter.name != "help"}
        assert all(any(option in said for option in known) for said in words.values()), name


def test_the_parameters_that_find_sets_are_told_as_its_options(cli, skn):
    import inspect

    from tl_skillneurons.cli._errors import OWN_WORDS

    own = {"model", "task", "out", "evidence", "training", "run", "positive", "top", "seed"}
    for parameter in inspect.signature(skn.find_skill_neurons).parameters:
        assert parameter in own or parameter in OWN_WORDS["find"], parameter
