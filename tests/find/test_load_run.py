"""A run's folder is a value: read back without a model it is what the run found."""

import json
import shutil

import planted
import pytest
import scipy.stats
import torch
from runs import quick_run
from toy import QUIET


@pytest.fixture(scope="module")
def task():
    return planted.task(n_train=40, n_select=24, n_report=24)


@pytest.fixture(scope="module")
def found(task, tmp_path_factory):
    return quick_run(planted.model(), task, tmp_path_factory.mktemp("runs") / "run")


@pytest.fixture
def folder(found, tmp_path):
    return shutil.copytree(found.folder, tmp_path / "run")


def test_a_run_read_from_a_folder_that_nobody_may_write_is_what_was_found(skn, task, found, folder):
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    for path in [*folder.rglob("*"), folder]:
        path.chmod(0o555 if path.is_dir() else 0o444)
    again = skn.load_run(folder)
    assert again.task.fingerprint == task.fingerprint and again.task.n_examples == task.n_examples
    assert list(again.skill) == list(found.skill) and again.settings == found.settings
    assert torch.equal(again.on_report, found.on_report)
    assert torch.equal(again.prompts[1].embedding, found.prompts[1].embedding)
    one, two = (run.effects.to_dataframe(each_prompt=False) for run in (again, found))
    assert one.equals(two)
    assert before == {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_scores_of_a_run_know_their_answers_so_that_a_diagnosis_needs_no_second_run(skn, found, folder):
    kept = skn.load_run(folder)
    assert torch.equal(kept.scores.outcomes.above, found.scores.outcomes.above)
    assert list(kept.scores.significant()) == list(found.scores.significant())
    model = planted.model()
    told = skn.studies.diagnose(
        model,
        kept.prompts,
        kept.task,
        kept.skill,
        scores=kept.scores,
        n_bootstrap=3,
        n_permutations=19,
        run=QUIET,
    )
    assert len(told.to_dataframe())


def test_the_skill_neurons_of_a_run_read_back_know_what_chose_them(skn, found, folder):
    kept = skn.load_run(folder).skill
    assert kept.choice.texts == found.skill.choice.texts and torch.equal(
        kept.choice.score, found.skill.choice.score
    )


def test_roles_that_were_the_same_examples_are_so_again(skn, folder):
    kept = skn.load_run(folder).task
    assert kept.split("train") is kept.split("baseline")


@pytest.mark.parametrize("name", ["task.json", "scores.safetensors", "prompts/prompt-seed1.safetensors"])
def test_a_run_that_lacks_a_file_says_which(skn, folder, name):
    (folder / name).unlink()
    with pytest.raises(FileNotFoundError, match=name.rsplit("/")[-1].replace(".", r"\.")):
        skn.load_run(folder)


def test_a_folder_without_a_run_is_refused(skn, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"there is no run in .* \(no run.json\)"):
        skn.load_run(tmp_path)


def test_a_run_that_was_interrupted_is_refused(skn, folder):
    from tl_skillneurons.find.folder import record

    record(folder, finished=False)
    with pytest.raises(ValueError, match="is not finished; the same call or command that began it goes on"):
        skn.load_run(folder)


def test_another_task_or_other_neurons_in_the_folder_are_refused(skn, task, found, folder):
    from tl_skillneurons.find.folder import save_task

    found.skill.random_like(0).to_json(folder / "neurons.json")
    with pytest.raises(ValueError, match=r"neurons.json holds others than the skill neurons of this run"):
        skn.load_run(folder)
    save_task(folder / "task.json", task.limit(report=4))
    with pytest.raises(ValueError, match=r"task.json is of another task than the run"):
        skn.load_run(folder)


def test_a_changed_byte_is_noticed(skn, folder):
    path = folder / "task.json"
    path.write_text(path.read_text().replace('"label": [', '"label": [ ', 1))
    with pytest.raises(ValueError, match="checksum does not fit"):
        skn.load_run(folder)
    assert json.loads(path.read_text())["kind"] == "Task"


def test_of_a_planted_model_the_label_is_readable_and_the_model_uses_the_neurons(found):
    answers = {verdict.question: verdict.answer for verdict in found.verdicts}
    assert answers["Can the task be done?"] == "YES"
    assert answers["Is the label readable?"] == "YES"
    assert answers["Does the model use them?"].startswith("YES")
    assert set(list(found.skill)[:4]) >= set(planted.NEURONS)


def test_a_run_says_what_each_phase_took(found):
    assert list(found.seconds)[:2] == ["tuning prompts", "asking prompts"] and len(found.seconds) == 10
    assert all(took["wall"] >= 0 and took["cpu"] >= 0 for took in found.seconds.values())


def test_the_sizes_of_the_curve_are_sets_of_one_panel(found):
    frame = found.curve.to_dataframe(each_prompt=False)
    sizes = frame[frame.metric == "logit_diff"].set_index("set").n_neurons
    assert sizes.to_dict() == {"1 per layer": 3, "2 per layer": 6, "5 per layer": 15}


def test_readability_stands_beside_random_neurons_probes_prompts_and_luck(found):
    table = found.readability.to_dataframe().set_index("who")
    assert table.accuracy["rules of the 2 best neurons"] > table.accuracy["rules of 2 random neurons"]
    assert {"linear probe over the 2 best", "linear probe over 2 random neurons"} <= set(table.index)
    assert table.accuracy["the prompts themselves"] == 1.0
    assert table.high["best of all neurons by luck"] == found.scores.null.level()
    own = found.rules.accuracy_of(found.scores.top(2, per="model")).mean()
    assert table.accuracy["rules of the 2 best neurons"] == pytest.approx(float(own))


def test_stability_counts_the_neurons_that_turn_their_sign(found):
    one, other = found.scores.direction_by_prompt[:, found.skill.layer, found.skill.index]
    assert found.stability.share_turned == pytest.approx(float((one != other).double().mean()))
    [row] = found.stability.to_dataframe().to_dict("records")
    assert row["turned"] == found.stability.share_turned
    each = found.scores.predictivity_by_prompt.flatten(1)
    assert row["spearman"] == pytest.approx(scipy.stats.spearmanr(*each.numpy()).statistic)
    tops = [set(one.argsort(descending=True, stable=True)[:2].tolist()) for one in each.view(6, 48)]
    assert row["n_shared"] == sum(len(tops[layer] & tops[3 + layer]) for layer in range(3))
    assert 0 < row["null_shared"] < row["n_shared"] and row["p_jaccard"] <= 0.05


def test_the_price_is_the_perplexity_that_plain_calls_give(skn, found):
    from tl_skillneurons.find.plain_sentences import SENTENCES
    from tl_skillneurons.interventions import cross_entropy

    model = planted.model()
    intact = cross_entropy(skn.PromptedModel(model, None), list(SENTENCES))
    assert found.price.to_dataframe().intact[0] == pytest.approx(float(intact.mean().exp()))
    assert {kind: len(drawn) for kind, drawn in found.price.controls.items()} == {
        "random": 20,
        "matched": 20,
        "least": 20,
    }
