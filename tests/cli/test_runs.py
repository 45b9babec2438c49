"""Commands on a finished run: each prints what Python gives, keeps it in the folder, and doesn't compute it again."""

import json
import shutil
import sys

import pytest
from commands import ask, told
from planted import HEADS
from planted import model as planted_model
from toy import QUIET

ASKED = {
    "effects": ["--interventions", "zero", "--sizes", "1", "--controls", "19"],
    "heads": ["--heads", "1", "--neurons", "3", "--controls", "19"],
    "diagnose": ["--bootstrap", "9", "--permutations", "19"],
    "prune": ["--keep", "2,10", "--controls", "2"],
    "neuron": ["0.5", "1.7"],
    "steer": "--toward positive --doses 4 --n-texts 3 --tokens 2 --controls 19 --words good --rivals probe".split(),
}
"""A quick question of each command that loads the model."""


def effects_are_those_of_the_plain_python_call(rows, found, skn):
    panel = skn.measure_effects(
        planted_model(),
        found.prompts[0],
        found.task,
        {"1": found.scores.top(1)},
        interventions="zero",
        n_random=19,
        run=skn.RunOptions(progress=False),
    )
    expected = panel.to_dataframe().set_index("metric")
    own = [row for row in rows["effects"] if row["prompt"] == 0]
    assert len(own) == len(expected)
    for row in own:
        assert row["value"] == pytest.approx(expected.value[row["metric"]])
        assert row["p_random"] == expected.p_random[row["metric"]]


def accuracies_are_those_of_the_pruned_models(rows, found, skn):
    values = sum(found.scores.mean_baseline(k) for k in range(len(found.prompts))) / len(found.prompts)
    small = skn.prune(planted_model(), found.scores.top(2), values)
    right = [skn.PromptedModel.for_task(small, one, found.task).accuracy(found.task) for one in found.prompts]
    [own] = [row for row in rows["models"] if row["kept"] == "2" and row["neurons"] == "skill"]
    assert own["accuracy"] == pytest.approx(sum(right) / len(right))


def the_heads_are_those_that_were_planted(rows, found, skn):
    strongest = sorted(rows["writers"], key=lambda row: -row["difference"])[:2]
    assert sorted((row["layer"], row["head"]) for row in strongest) == HEADS
    assert all(row["difference"] > 0.1 for row in strongest)


def what_is_written_is_that_of_the_plain_python_call(rows, found, skn):
    model, whole = planted_model(), found.task.split("report")["text"]
    texts = list(dict.fromkeys(row["text"] for row in rows["answers"]))
    assert len(texts) == 3 and all(any(one.startswith(f"{text} ") for one in whole) for text in texts)
    untouched = [row["answer"] for row in rows["answers"] if row["dose"] is None]
    assert tuple(untouched) == skn.PromptedModel(model, None, run=QUIET).generate(texts, 2).answers
    [kept] = (found.folder / "asked").glob("*.written.json")
    written = kept.read_bytes()
    curve = skn.studies.steer(
        model,
        found.prompts,
        found.task,
        found.skill,
        toward=1,
        texts=texts,
        doses=[4.0],
        measure={"words": ["good"]},
        n_random=19,
        options=skn.studies.SteeringOptions(how="shift", max_new_tokens=2, rivals="probe"),
        path=kept,
        run=QUIET,
    )
    assert kept.read_bytes() == written  # the same neurons, doses and controls: nothing was left to write
    expected = curve.to_dataframe().set_index("measure")
    assert [row["measure"] for row in rows["doses"]] == list(expected.index)
    for row in rows["doses"]:
        for name in ("value", "change_low", "matched_median", "perplexity"):
            assert row[name] == pytest.approx(expected[name][row["measure"]])
        assert row["p_random"] == expected.p_random[row["measure"]]
    assert [row["verdict"] for row in rows["comparison"]] == curve.comparison.verdict.tolist()
    assert [row["norm"] for row in rows["rivals"]] == pytest.approx(curve.rivals.norm.tolist())


CHECKED = {
    "heads": the_heads_are_those_that_were_planted,
    "effects": effects_are_those_of_the_plain_python_call,
    "prune": accuracies_are_those_of_the_pruned_models,
    "steer": what_is_written_is_that_of_the_plain_python_call,
}


@pytest.mark.parametrize("command", ASKED)
def test_an_answer_is_printed_kept_and_not_computed_again(cli, folder, monkeypatch, command, skn):
    from tl_skillneurons.models import loading

    first = ask(cli, command, folder, *ASKED[command])
    assert first.exit_code == 0, first.output
    [kept] = (folder / "asked").glob(f"{command}-????????.json")
    assert str(kept) in "".join(first.stdout.split())
    monkeypatch.setattr(loading, "load_model", lambda *_, **__: pytest.fail("loaded again"))
    again = ask(cli, command, folder, *ASKED[command])
    assert again.exit_code == 0 and again.stdout == first.stdout
    as_json = json.loads(ask(cli, command, folder, *ASKED[command], "--json").stdout)
    assert as_json["command"] == command and as_json["file"] == str(kept)
    assert all(rows for rows in as_json["numbers"].values())
    if command in CHECKED:
        CHECKED[command](as_json["numbers"], skn.find.load_run(folder), skn)
    shown = ask(cli, "report", folder)
    assert shown.exit_code == 0, shown.output
    for line in first.stdout.splitlines()[:4]:
        assert line.strip() in shown.stdout
    assert (folder / "report.html").exists()


def test_a_profiled_neuron_is_shown_from_a_read_only_folder_without_its_model(cli, folder, monkeypatch, skn):
    from tl_skillneurons.cli import _again
    from tl_skillneurons.models import loading

    def refuse(*_, **__):
        raise PermissionError("read-only")

    monkeypatch.setattr(loading, "load_model", lambda *_, **__: pytest.fail("loaded"))
    monkeypatch.setattr(_again, "require_can_write", refuse)
    profiles = skn.find.load_run(folder).profiles
    layer, index = next(iter(profiles.neurons))
    result = ask(cli, "neuron", folder, f"{layer}.{index}")
    assert result.exit_code == 0, result.output
    profile, name = profiles.of(layer, index), f"{layer}.{index}"
    assert f"{profile.rule['accuracy']:.3f}" in result.stdout
    for title in (
        "Words in the output weights of",
        "Effects of holding",
        "Heads that write the label into",
    ):
        assert f"{title} {name}" in result.stdout
    assert profile.raised[0][0].strip() in result.stdout
    assert not (folder / "asked").exists()


def test_a_pruned_model_is_saved_on_request(cli, folder, tmp_path):
    file = tmp_path / "small.safetensors"
    given = ["prune", folder, "--keep", "2", "--controls", "1", "--save", file]
    result = ask(cli, *given)
    assert result.exit_code == 0, result.output
    assert file.exists() and f"load_pruned('{file}', base) reads it" in "".join(told(result)).replace(
        "\n", ""
    )
    refused = ask(cli, *given)
    assert refused.exit_code == 2 and "is there already" in told(refused)


def test_runs_are_compared_beside_permuted_labels_and_unlike_models_are_refused(cli, folder, tmp_path):
    other = shutil.copytree(folder, tmp_path / "other")
    given = ["compare", folder, other, "--permutations", "39"]
    result = ask(cli, *given, "--json")
    assert result.exit_code == 0, result.output
    [row] = [row for row in json.loads(result.stdout)["numbers"]["pairs"] if row["layer"] == -1]
    assert row["spearman"] == pytest.approx(1) and row["jaccard"] == 1 and row["permuted"] == "labels"
    assert "run, other" in told(ask(cli, *given))
    assert "two or more different runs" in told(ask(cli, "compare", folder, folder))
    record = json.loads((other / "run.json").read_text())
    record["settings"]["model"]["n_layers"] = 7
    (other / "run.json").write_text(json.dumps(record))
    refused = ask(cli, *given)
    assert refused.exit_code == 2 and "different models (n_layers 3 and 7)" in told(refused)


def test_the_model_of_a_run_must_be_the_same(cli, folder, monkeypatch):
    from tl_skillneurons.models import loading

    monkeypatch.setattr(loading, "load_model", lambda name, **options: planted_model(seed=1))
    refused = ask(cli, "diagnose", folder)
    assert refused.exit_code == 2 and "tiny has other weights than the model of the run" in told(refused)
    record = json.loads((folder / "run.json").read_text())
    assert record["model_source"]["name"] == "tiny" and record["model_source"]["dtype"] == "float32"


def test_the_model_may_be_elsewhere_and_called_otherwise(cli, folder, monkeypatch):
    from tl_skillneurons.models import loading

    asked = []

    def elsewhere(name, **options):
        asked.append((name, options["revision"], options["dtype"]))
        model = planted_model()
        model.cfg.model_name = "moved"
        return model

    monkeypatch.setattr(loading, "load_model", elsewhere)
    result = ask(cli, "diagnose", folder, *ASKED["diagnose"], "--model", "org/moved", "--revision", "v2")
    assert result.exit_code == 0, result.output
    assert asked == [("org/moved", "v2", "float32")]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["effects", "{run}", "--interventions", "means"], "--interventions must be one of 'zero', 'mean'"),
        (["effects", "{run}", "--positions", "here"], "--positions must be one of"),
        (
            ["effects", "{run}", "--positions", "template"],
            "--positions template is around the texts of a chat",
        ),
        (["effects", "{run}", "--sizes", "0.7"], "--sizes must leave as many other neurons for the controls"),
        (["effects", "{run}", "--sizes", "x"], "--sizes must be a share such as 0.02, in (0, 1]"),
        (["heads", "{run}", "--prompt", "2"], "--prompt must be in [0, 2)"),
        (["heads", "{run}", "--heads", "12"], "--heads must leave others for the controls, the model has 12"),
        (["prune", "{run}", "--held-at", "mean"], "--held-at must be one of 'prompt', 'text'"),
        (["prune", "{run}", "--keep", "49"], "--keep must give 1 to 48 neurons per layer"),
        (["diagnose", "nowhere"], "there is no folder nowhere; give the folder of a run of find"),
        (["diagnose", "{run}/prompts"], "there is no run in {run}/prompts (no run.json)"),
        (["diagnose", "{run}", "--model", "./nowhere"], "there is no folder ./nowhere for --model"),
        (["neuron", "{run}", "14"], "a neuron is LAYER.INDEX, such as 14.371, got '14'"),
        (["neuron", "{run}", "3.1"], "there is no neuron 3.1: layers are 0 to 2, neurons of a layer 0 to 47"),
        (
            ["steer", "{run}", "--toward", "2"],
            "--toward must be a label of the run ('0', '1'), its label word",
        ),
        (["steer", "{run}", "--doses", "1,x"], "--doses must be one or several numbers with commas"),
        (["steer", "{run}", "--doses", "nan"], "--doses must be one or several numbers with commas"),
        (
            ["steer", "{run}", "--rivals", "probe,sae"],
            "--rivals must be one of 'probe', 'mean_difference', got 'sae'",
        ),
        (["steer", "{run}", "--how", "push"], "--how must be one of 'shift', 'scale', got 'push'"),
        (
            ["steer", "{run}", "--positions", "prompt"],
            "--positions must be one of 'generated', 'text', 'all'",
        ),
        (["steer", "{run}", "--texts", "no.txt"], "there is no file no.txt for --texts"),
        (["steer", "{run}", "--texts", "{run}"], "--texts {run} can't be read"),
        (["steer", "{run}", "--words", "no.txt"], "there is no file no.txt for --words"),
        (
            ["steer", "{run}", "--words", "good,so so"],
            "--words must hold single words, with commas or one a line",
        ),
        (["steer", "{run}", "--words", " ,"], "--words must hold at least one word"),
        (["steer", "{run}", "--tokens", "99"], "give --tokens of at most"),
        (["compare", "{run}"], "compare takes two or more different runs"),
    ],
)
def test_what_a_user_gets_wrong_is_told_in_the_words_of_the_command(cli, finished, given, said):
    run = str(finished[0])
    refused = ask(cli, *(one.format(run=run) for one in given))
    assert refused.exit_code == 2
    assert "".join(said.format(run=run).split()) in "".join(refused.output.split())
    assert not (finished[0] / "asked").exists()


def test_a_run_that_nothing_can_be_written_with_is_refused_before_anything_is_loaded(
    cli, folder, monkeypatch
):
    monkeypatch.setitem(sys.modules, "tl_skillneurons.find.folder", None)
    whole = json.loads((folder / "run.json").read_text())
    whole["settings"]["task"]["template"] = "{title}: {body}"
    (folder / "run.json").write_text(json.dumps(whole))
    assert "'{title}: {body}' of the run in" in told(ask(cli, "steer", folder))
    whole["settings"]["model"]["architecture"] = "BertForMaskedLM"
    (folder / "run.json").write_text(json.dumps(whole))
    assert "which has several columns" in told(ask(cli, "steer", folder))  # a BERT that is a decoder writes
    (folder / "price.safetensors").unlink()
    refused = ask(cli, "steer", folder)
    assert refused.exit_code == 2 and "is an encoder and can't write one token after another" in told(refused)


def test_what_was_written_is_judged_by_other_words_without_writing_it_again(
    cli, folder, tmp_path, monkeypatch
):
    from tl_skillneurons.studies.steering import run

    words, texts = tmp_path / "words.txt", tmp_path / "texts.txt"
    words.write_text("dull\nslow, was\n")
    texts.write_text("the film\n\n a plot and \n")
    given = ["steer", folder, "--doses", "2", "--texts", texts]
    n_written = []

    def write(writer, texts, *_):
        n_written.append(len(texts))
        return {"answers": ["slow"] * 2, "token_ids": [[7]] * 2, "cross_entropy": [1.0] * 2}

    monkeypatch.setattr(run, "write", write)
    assert ask(cli, *given).exit_code == 0 and n_written == [2] * (1 + 1 + 2 * 20)
    again = json.loads(ask(cli, *given, "--toward", "1", "--words", words, "--json").stdout)
    assert {row["text"] for row in again["numbers"]["answers"]} == {"the film", "a plot and"}
    assert again["settings"]["words"] == ["dull", "slow", "was"] and len(n_written) == 42
    assert len([*(folder / "asked").glob("steer-????????.json")]) == 2


def test_texts_that_chose_the_neurons_are_refused(cli, folder, tmp_path, skn):
    chose = skn.find.load_run(folder).task.split("select")["text"][0]
    texts = tmp_path / "texts.txt"
    texts.write_text(f"something else\n{chose}\n")
    refused = ask(cli, "steer", folder, "--texts", texts)
    assert refused.exit_code == 2
    assert "1 of the 2 texts in --texts are among those of role 'select' that chose" in told(refused)


@pytest.mark.parametrize(
    ("text", "beginning"),
    [
        ("The plot, of course, was dull.", "The plot, of"),
        ("a b c d e f g h i j k l m n o p q r s t", "a b c d e f"),
        ("Dull!", "Dull"),
        ("\u6211\u559c\u6b61\u96fb\u5f71", "\u6211\u559c"),
        (" \U0001f44d ", "\U0001f44d"),
    ],
)
def test_a_text_begins_with_the_first_half_of_its_words_six_at_most(text, beginning):
    from tl_skillneurons.cli.steer import _beginning

    assert _beginning(text) == beginning


def test_an_unfinished_run_and_a_broken_record_are_refused_before_anything_is_loaded(cli, folder):
    whole = (folder / "run.json").read_text()
    (folder / "run.json").write_text(whole.replace('"finished": true', '"finished": false'))
    assert "is not finished; the command that began it, repeated" in told(ask(cli, "report", folder))
    (folder / "run.json").write_text("{")
    assert "is not JSON" in told(ask(cli, "diagnose", folder))
