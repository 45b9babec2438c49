"""A run's folder: what is written there, and the run read back from it.

Every phase leaves a file when it is finished; ``run.json`` holds the settings, the versions and what was found in
numbers, ``task.json`` the labelled text. Reading needs no model and writes nothing, so a folder may be read-only.
"""

import json
import os
import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from tl_skillneurons._checks import differing
from tl_skillneurons._files import package_version, read_json, sound, write_json
from tl_skillneurons.find.answers import PromptAnswers
from tl_skillneurons.find.evidence import examples_of
from tl_skillneurons.find.findings import Findings, Neurons
from tl_skillneurons.find.price import Price
from tl_skillneurons.find.readability import load_readability
from tl_skillneurons.find.stability import load_stability
from tl_skillneurons.interventions.effect_panel import EffectPanel
from tl_skillneurons.neurons.neuron_set import NeuronSet
from tl_skillneurons.prompts.run import prompt_record
from tl_skillneurons.prompts.soft_prompt import SoftPrompt
from tl_skillneurons.scores.evaluated_rules import AllRules
from tl_skillneurons.scores.neuron_scores import NeuronScores
from tl_skillneurons.studies.profiles.result import NeuronProfiles
from tl_skillneurons.tasks.chat import Chat
from tl_skillneurons.tasks.columns import as_dataset, columns_of
from tl_skillneurons.tasks.roles import ROLES
from tl_skillneurons.tasks.task import Task

RUN, TASK, PROMPTS, ANSWERS, SCORES, NEURONS, RULES, READABLE, EFFECTS, CURVE, AGREEMENT, PRICE, PROFILES = (
    "run.json",
    "task.json",
    "prompts",
    "answers.safetensors",
    "scores.safetensors",
    "neurons.json",
    "rules_on_report.safetensors",
    "readability",
    "effects.safetensors",
    "curve.safetensors",
    "stability.safetensors",
    "price.safetensors",
    "profiles.safetensors",
)
KIND, TASK_KIND = "run", "Task"
_RECORDED = ("transformer-lens", "torch", "transformers", "datasets", "safetensors", "numpy")


def load_run(folder: str | os.PathLike[str]) -> Findings:
    """What the finished run in ``folder`` found; no model is needed, and nothing is written.

    Raises:
        FileNotFoundError: When there is no run, or a file of it is missing.
        ValueError: When the run is not finished, or a file is corrupt, or of other prompts or another task.

    Example:
        >>> found = skn.load_run("skill-neurons-smollm2-movie_reviews")
        >>> found.scores.significant(), found.skill, found.effects
    """
    folder = Path(folder)
    if not (folder / RUN).is_file():
        raise FileNotFoundError(
            f"there is no run in {folder} (no {RUN}); give the folder that a run was kept in"
        )
    run = read_json(folder / RUN, KIND)
    if not run["finished"]:
        raise ValueError(
            f"the run in {folder} is not finished; the same call or command that began it goes on where it stopped"
        )
    with sound(folder / RUN, KIND):
        settings = run["settings"]
        model, seeds = settings["model"], settings["seeds"]
        fingerprint = settings["task"]["fingerprint"]
    task = load_task(folder / TASK)
    if task.fingerprint != fingerprint:
        raise ValueError(f"{folder / TASK} is of another task than the run; take it from a backup")
    fitted = [SoftPrompt.load(folder / PROMPTS / f"prompt-seed{seed}.safetensors") for seed in seeds]
    answers = PromptAnswers.load(folder / ANSWERS)
    require_of(folder / ANSWERS, answered_by(answers), [prompt_record(one) for one in fitted], task)
    used = [fitted[number] for number in answers.beating]
    return Findings(
        task=task,
        model=model,
        fitted=fitted,
        answers=answers,
        neurons=_neurons(folder, task, used, settings) if used else None,
        settings=settings,
        seconds=run.get("seconds", {}),
        folder=folder,
    )


def _neurons(folder: Path, task: Task, prompts: list[SoftPrompt], settings: dict[str, Any]) -> Neurons:
    """What the folder knows about neurons."""
    described = [prompt_record(prompt) for prompt in prompts]
    scores = NeuronScores.load(folder / SCORES)
    require_of(folder / SCORES, scores.provenance, described, task)
    rules = AllRules.load(folder / RULES)
    require_of(folder / RULES, rules.provenance, described, task)
    panels = {}
    for name, n in ((EFFECTS, settings["n_examples"]), (CURVE, settings["n_curve_examples"])):
        panels[name] = EffectPanel.load(folder / name)
        on = examples_of(task, n, settings["seeds"][0])
        require_of(folder / name, measured_with(panels[name]), described, on)
    skill = scores.top(settings["top"])
    if NeuronSet.from_json(folder / NEURONS) != skill:
        raise ValueError(
            f"{folder / NEURONS} holds others than the skill neurons of this run; take it from a backup"
        )
    price = None
    if (folder / PRICE).exists():
        price = Price.load(folder / PRICE)
        require_of(folder / PRICE, price.settings, described[:1], task)
    profiles = NeuronProfiles.load(folder / PROFILES)
    require_of(folder / PROFILES, profiles.settings, described, task)
    return Neurons(
        scores=scores,
        skill=skill,
        rules=rules,
        readability=load_readability(folder / READABLE, scores),
        effects=panels[EFFECTS],
        curve=panels[CURVE],
        stability=load_stability(folder / AGREEMENT, scores, skill),
        price=price,
        profiles=profiles,
    )


def begin(folder: Path, settings: dict[str, Any], task: Task) -> None:
    """Start a run in ``folder``, or see that the one there is the same.

    Raises:
        ValueError: When it is another.
    """
    if (folder / RUN).exists():
        differs = differing(read_json(folder / RUN, KIND)["settings"], settings)
        if differs:  # what made the task another says more than its fingerprint
            differs = [one for one in differs if not one.startswith("task.fingerprint: ")] or [
                "other texts or labels"
            ]
            raise ValueError(
                f"{folder} holds a run of other settings ({'; '.join(differs)}); choose another folder for this one"
            )
    else:
        content = {"kind": KIND, "format": 1, "versions": versions(), "settings": settings, "finished": False}
        write_json(folder / RUN, content)
    if not (folder / TASK).exists():
        save_task(folder / TASK, task)


def is_finished(folder: Path) -> bool:
    """Whether the run in ``folder`` went through all its phases."""
    return bool(read_json(folder / RUN, KIND)["finished"])


def record(folder: str | os.PathLike[str], **found: Any) -> Path:
    """Add ``found``, plain JSON values, to the run in ``folder``; what is there already is not written again."""
    path = Path(folder) / RUN
    found = json.loads(json.dumps(found))  # as it is read back
    was = read_json(path, KIND)
    return path if {**was, **found} == was else write_json(path, {**was, **found})


def describe_task(task: Task) -> dict[str, Any]:
    """What a run records of its task: enough to know the data again."""
    described = {
        "name": task.name,
        "fingerprint": task.fingerprint,
        "template": task.template,
        "label_words": {str(k): v for k, v in task.label_words.items()},
        "n_examples": task.n_examples,
        "dropped_as_also_in_a_later_role": task.dropped,
        "notes": list(task.notes),
    }
    return {**described, **_unusual(task)}


def save_task(path: Path, task: Task) -> Path:
    """Write a task with its texts as JSON, whole or not at all; a role with the examples of an earlier one names it."""
    columns = {role: columns_of(task.split(role)) for role in ROLES}
    roles: dict[str, Any] = {}
    for role in ROLES:
        same = [other for other in roles if columns[other] == columns[role]]
        roles[role] = same[0] if same else columns[role]
    content = {
        "kind": TASK_KIND,
        "format": 1,
        "name": task.name,
        "template": task.template,
        "label_words": [task.label_words[k] for k in sorted(task.label_words)],
        "label_names": list(task.label_names),
        "dropped": task.dropped,
        "notes": list(task.notes),
        "roles": roles,
    }
    return write_json(path, {**content, **_unusual(task)})


def _unusual(task: Task) -> dict[str, Any]:
    """What is recorded of a task where it is not the ordinary: its chat, and how its words are scored."""
    chat = {} if task.chat is None else {"chat": task.chat.record}
    return chat if task.word_score == "sum" else {**chat, "word_score": task.word_score}


def load_task(path: Path) -> Task:
    """The task that :func:`save_task` wrote.

    Raises:
        FileNotFoundError: When there is no such file.
        ValueError: When it is corrupt, or holds something else.
    """
    content = read_json(path, TASK_KIND)
    with sound(path, TASK_KIND):
        splits: dict[str, Any] = {}
        for role, columns in content["roles"].items():
            splits[role] = splits[columns] if isinstance(columns, str) else as_dataset(columns)
        return Task(
            name=content["name"],
            label_words=dict(enumerate(content["label_words"])),
            splits=splits,
            label_names=tuple(content["label_names"]),
            template=content["template"],
            dropped=content["dropped"],
            notes=tuple(content["notes"]),
            chat=Chat(**content["chat"]) if "chat" in content else None,
            word_score=content.get("word_score", "sum"),
        )


def measured_with(panel: EffectPanel) -> dict[str, Any]:
    """Prompts and task of a panel, as scores record theirs."""
    return {"prompts": panel.settings["prompts"][0], "task": {"fingerprint": panel.settings["tasks"][0][1]}}


def answered_by(answers: PromptAnswers) -> dict[str, Any]:
    """Prompts and task of answers, as scores record theirs."""
    names = ("seed", "n_virtual_tokens", "placement", "prepend_bos", "sha256")
    prompts = [{name: one[name] for name in names} for one in answers.settings["prompts"]]
    return {"prompts": prompts, "task": answers.settings["task"]}


def require_of(path: Path, was: Mapping[str, Any], prompts: Sequence[dict[str, Any]], task: Task) -> None:
    """Refuse a file of other prompts or another task.

    Raises:
        ValueError: Then.
    """
    if was["prompts"] != prompts or was["task"]["fingerprint"] != task.fingerprint:
        raise ValueError(
            f"{path} was measured with other prompts or another task; delete it, or choose another folder"
        )


def versions() -> dict[str, str]:
    """Of this package, of Python and of the libraries that numbers come from."""
    found = {"tl_skillneurons": package_version(), "python": platform.python_version()}
    for name in _RECORDED:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
