"""Scores say where they were measured, and are used there: same model and prompts, same task, same tokens.

A rule that was chosen on some examples looks better on them than it is, and with the labels in another order it says
the opposite. So scores remember which examples chose them, what the labels were called and in which order, how texts
were rendered and cut, and with which special tokens they were run.
"""

import hashlib
import json
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from transformer_lens.model_bridge import TransformerBridge

from tl_skillneurons._checks import differing
from tl_skillneurons._widths import said
from tl_skillneurons.models.records import model_differences, model_record
from tl_skillneurons.models.sites import neuron_shape
from tl_skillneurons.neurons.choice import Choice, text_fingerprints
from tl_skillneurons.prompts.prompted_model import PromptedModel
from tl_skillneurons.prompts.run import (
    RunOptions,
    as_list,
    prompt_record,
    require_sees_text,
    require_tuned_for,
    task_terms,
)
from tl_skillneurons.prompts.soft_prompt import SoftPrompt
from tl_skillneurons.prompts.streaming import stand_alike
from tl_skillneurons.scores.ranked import Scored
from tl_skillneurons.stats.units import Units
from tl_skillneurons.tasks.chat import Chat
from tl_skillneurons.tasks.task import Task


def prompted_set(
    model: TransformerBridge,
    prompts: SoftPrompt | Sequence[SoftPrompt] | None,
    positions: str,
    *,
    task: Task | None = None,
    chat: Chat | None = None,
    label_words: Mapping[int, str | int] | None = None,
    max_length: int | None = None,
    run: RunOptions = RunOptions(),
) -> list[PromptedModel]:
    """The model with each prompt of a set, which all see the text, and see it cut to one length.

    Args:
        task: What is measured: prompts that say that they were tuned on another are refused.
        chat: What stands around texts that are of no task; by default what each prompt was tuned in.

    Raises:
        ValueError: For prompts that don't see the text at these positions, that were tuned on another task, or with
            different lengths where ``max_length`` does not choose one.
    """
    if task is not None:
        for prompt in as_list(prompts):
            require_tuned_for(prompt, task)
    of_task = {"chat": chat} if task is None else {"chat": task.chat, "word_score": task.word_score}
    how: dict[str, Any] = {"max_length": max_length, "run": run, **of_task}
    prompted = [PromptedModel(model, prompt, label_words, **how) for prompt in as_list(prompts)]
    for one in prompted:
        require_sees_text(one, positions)
    lengths = {one.max_length for one in prompted}
    if len(lengths) > 1:
        raise ValueError(
            f"the prompts of one set must see texts cut to one length, these were tuned with max_length="
            f"{' and '.join(map(str, sorted(lengths, key=lambda n: (n is None, n))))}; give max_length"
        )
    return prompted


def require_alike(prompted: Sequence[PromptedModel]) -> None:
    """Refuse prompts that one run of a text can't serve.

    Raises:
        ValueError: For prompts that differ in their virtual tokens' number, their placement or their special tokens.
    """
    if len(stand_alike(prompted)) > 1:
        raise ValueError("prompts of one set must have equally many virtual tokens and one placement")


def provenance_of(prompted: Sequence[PromptedModel]) -> dict[str, Any]:
    """What scores record of where they were measured, as plain JSON values."""
    return {
        "model": model_record(prompted[0].model),
        "prompts": [None if one.prompt is None else prompt_record(one.prompt) for one in prompted],
        "max_length": prompted[0].max_length,
        "special_tokens": _special_tokens(prompted[0]),
    }


def task_provenance(prompted: PromptedModel, task: Task, roles: Sequence[str]) -> dict[str, Any]:
    """What scores record of the task that they were measured on, as plain JSON values: ``task``, with a fingerprint of
    the examples and of the tokens of each role used, ``n_cut``, how many texts of these were too long and lost their
    end, ``units`` of the role that chose, the last, and what ``chose``: that role and a fingerprint of each text."""
    ids = {role: prompted.encode(list(task.split(role)["text"])) for role in roles}
    return {
        "task": {**_task_record(task, roles), "tokens": {role: _digest(ids[role]) for role in roles}},
        "n_cut": {role: prompted.layout.n_cut(ids[role]) for role in roles},
        "units": unit_record(task.units(roles[-1])),
        "chose": chose_record(roles[-1], list(task.split(roles[-1])["text"])),
    }


def chose_record(role: str, texts: Sequence[str]) -> dict[str, Any]:
    """What scores record of the examples that choose by them, as plain JSON values."""
    return Choice(role, frozenset(text_fingerprints(texts))).record


def unit_record(units: Units) -> dict[str, Any]:
    """What scores record of the units whose labels a null permutes: what one is, how many there are, and how many of
    equal size would vary as much (Kish, 1965)."""
    n_effective = units.n_examples**2 // int(units.sizes.square().sum())
    return {"what": units.what, "n": len(units), "n_effective": n_effective}


def _task_record(task: Task, roles: Sequence[str]) -> dict[str, Any]:
    return {
        "name": task.name,
        "fingerprint": task.fingerprint,
        **task_terms(task),
        "roles": {role: _digest(_examples(task, role)) for role in roles},
    }


def _examples(task: Task, role: str) -> list[Any]:
    """The texts of a role and their labels; of ``baseline``, where labels don't count, the texts alone."""
    split = task.split(role)
    return [list(split["text"]), [] if role == "baseline" else list(split["label"])]


def _digest(values: list[Any]) -> str:
    return hashlib.sha256(json.dumps(values).encode()).hexdigest()


def _special_tokens(prompted: PromptedModel) -> dict[str, Any]:
    """The tokenizer's special tokens and their ids, what a chat template puts around texts, and whether a BOS is put
    before them."""
    tokenizer = prompted.model.tokenizer
    named = {
        name: [token, int(tokenizer.convert_tokens_to_ids(token))]
        for name, token in sorted(tokenizer.special_tokens_map.items())
        if isinstance(token, str)
    }
    chat = {} if prompted.layout.chat is None else {"chat": prompted.layout.chat.told}
    return {**named, **chat, "prepend_bos": prompted.prepend_bos}


def require_measured_here(
    scores: Scored,
    model: TransformerBridge,
    prompts: SoftPrompt | Sequence[SoftPrompt | None] | None,
    *,
    task: Task | None = None,
    max_length: int | None = None,
) -> None:
    """Refuse scores of another model, of other prompts, of another task, or of texts cut to another length or run with
    other special tokens than here.

    What scores don't record (those made by hand) is not compared.

    Args:
        task: Whose labels and examples the scores are used with: its labels must be named and ordered, its texts
            rendered and tokenized as those that were scored, and the roles that the scores used must hold the same
            examples. ``None`` compares no task.
        max_length: As it will be given to whatever uses the scores; ``None`` is what each prompt was tuned with.

    Raises:
        ValueError: In one sentence, what differs and what to give.
    """
    here, there = neuron_shape(model), (scores.n_layers, scores.d_mlp)
    if here != there:
        name = scores.provenance.get("model", {}).get("name", "another model")
        raise ValueError(
            f"the scores are of {name} with {there[0]} layers and {said(there[1])} neurons, {model.cfg.model_name} has "
            f"{here[0]} and {said(here[1])}; score this model"
        )
    differs = model_differences(scores.provenance.get("model", {}), model)
    if differs:
        warnings.warn(f"these scores are of another model ({differs})", stacklevel=3)
    chosen = [prompts] if prompts is None or isinstance(prompts, SoftPrompt) else list(prompts)
    measured = scores.provenance.get("prompts", [None] * scores.n_prompts)
    given = [None if prompt is None else prompt_record(prompt) for prompt in chosen]
    if len(given) != scores.n_prompts or any(m and g != m for m, g in zip(measured, given, strict=True)):
        raise ValueError(
            f"the scores are of {scores.n_prompts} prompts that are not the {len(given)} given; "
            "give the prompts that were scored, in the same order"
        )
    if task is not None:
        _require_task(scores, task)
    if chosen:
        prompted = PromptedModel(
            model, chosen[0], max_length=max_length, chat=None if task is None else task.chat
        )
        _require_tokens(scores, prompted, task)
    if "max_length" not in scores.provenance:
        return
    limit = scores.provenance["max_length"]
    for prompt in chosen:
        own = PromptedModel(model, prompt, max_length=max_length).max_length
        if own != limit:
            was, now = ("not cut" if n is None else f"cut to {n} tokens" for n in (limit, own))
            give = "" if limit is None else f"max_length={limit}, or "
            raise ValueError(
                f"the scores were measured on texts {was}, which here are {now}; "
                f"give {give}scores measured with max_length={own}"
            )


def _require_task(scores: Scored, task: Task) -> None:
    """Refuse scores of another task, or of other examples in the roles that they used.

    Raises:
        ValueError: Otherwise.
    """
    was = scores.provenance.get("task", {})
    if "roles" not in was:
        if was.get("fingerprint", task.fingerprint) != task.fingerprint:
            raise ValueError(
                f"the scores are of another task than {task.name!r} (its fingerprint differs); give the task that was "
                "scored, or score this one"
            )
        return
    now = _task_record(task, list(was["roles"]))
    terms = ("label_names", "template", "label_words", "chat")
    if apart := differing({k: was.get(k) for k in terms}, {k: now.get(k) for k in terms}):
        raise ValueError(
            f"the scores are of another task than {task.name!r} ({'; '.join(apart)}); give the task that was scored, "
            "or score this one"
        )
    if others := [role for role, digest in now["roles"].items() if was["roles"][role] != digest]:
        chose_in = was["roles"].get("select")
        hidden = [role for role in task.splits if _digest(_examples(task, role)) == chose_in]
        chose = f": the examples that chose are its {hidden[0]}" if hidden and "select" in others else ""
        raise ValueError(
            f"the scores used other examples than {task.name!r} has in {' and '.join(others)}{chose}; give the task "
            "that was scored, or score this one"
        )


def _require_tokens(scores: Scored, prompted: PromptedModel, task: Task | None) -> None:
    """Refuse scores of texts that were other tokens than they are here.

    Raises:
        ValueError: Otherwise.
    """
    was = scores.provenance.get("special_tokens")
    if was is not None and (apart := differing(was, _special_tokens(prompted))):
        raise ValueError(
            f"the scores were measured with other special tokens ({'; '.join(apart)}); score with these"
        )
    recorded = {} if task is None else scores.provenance.get("task", {}).get("tokens", {})
    for role, digest in recorded.items():
        if task is not None and _digest(prompted.encode(list(task.split(role)["text"]))) != digest:
            raise ValueError(
                f"the texts of {role} are other tokens here than those that were scored: the tokenizer differs; give "
                "the tokenizer that was scored with, or score with this one"
            )
