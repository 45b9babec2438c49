"""A run's folder is a value: read back without a model it is what the run found."""

import json
import shutil

import planted
import pytest
import torch
from toy import QUIET


@pytest.fixture(scope="module")
def task():
    return planted.task(n_train=40, n_select=24, n_report=24)


@pytest.fixture(scope="module")
def found(skn, task, tmp_path_factory):
    return skn.find_skill_neurons(
        planted.model(),
        task,
        out=tmp_path_factory.mktemp("runs") / "run",
        n_virtual_tokens=2,
        n_prompts=2,
        n_steps=8,
        top=2,
        evidence=skn.find.Evidence(n_permutations=99, n_curve_examples=4, n_curve_random=1),
        training=skn.prompts.TrainingOptions(batch_size=8),
        run=QUIET,
    )


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
