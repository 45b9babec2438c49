"""Does turning neurons up or down steer what a model writes, and at what price? (with controls)

The model writes after each text while the neurons are scaled, or shifted towards a class, at every dose; then the same
with random neurons of the same layers, and with matched ones, alike in mean absolute activation and in output-weight
norm. What was written is measured by the untouched model and by judges of your own:

    change(dose) = mean over texts of measure(written while steered) - measure(written untouched)

Rivals are directions over all neurons of the same layers (``SteeringOptions(rivals="probe")``), added at the same
positions and as long as the change that the neurons make there; what each changes is compared at equal perplexity
(:mod:`~tl_skillneurons.studies.steering.equal_price`).

What it does not show: that a text is better, or about what it seems to be (judge it); that other neurons, or another
direction than those measured, would not steer more at the same perplexity; anything of doses that collapse. The
read-out is by the prompts that may have chosen the neurons: an independent judge says more. Each p-value stands alone:
of twenty doses one is at most 0.05 by luck.
"""

import math
import os
from collections.abc import Collection, Mapping, Sequence
from functools import partial
from typing import Any

import pandas as pd
from transformer_lens.model_bridge import TransformerBridge

from tl_skillneurons._checks import require_text
from tl_skillneurons._progress import progress_bar
from tl_skillneurons.interventions.ablation import ablate
from tl_skillneurons.interventions.controls import with_controls
from tl_skillneurons.interventions.kinds import Call, Intervention
from tl_skillneurons.interventions.references import Reference, measure_references
from tl_skillneurons.models.hooks import Hook, Hooks
from tl_skillneurons.models.records import model_label
from tl_skillneurons.models.sites import has_language_model_head, neuron_shape
from tl_skillneurons.models.tokenizing import special_token_ids
from tl_skillneurons.models.verification import require
from tl_skillneurons.neurons.choice import require_apart
from tl_skillneurons.neurons.neuron_set import Neurons, NeuronSet, as_neurons
from tl_skillneurons.prompts.prompted_model import PromptedModel
from tl_skillneurons.prompts.run import RunOptions
from tl_skillneurons.prompts.soft_prompt import SoftPrompt
from tl_skillneurons.stats.hypothesis_tests import require_draws
from tl_skillneurons.stats.intervals import FEWEST_UNITS
from tl_skillneurons.stats.units import Units
from tl_skillneurons.studies._common import settings_of, soft_prompts
from tl_skillneurons.studies.steering.curve import KINDS, Key, SteeringCurve, rows_of
from tl_skillneurons.studies.steering.kept import KeptAnswers, Written
from tl_skillneurons.studies.steering.measures import Judge, ReadOut, readers
from tl_skillneurons.studies.steering.options import SteeringOptions
from tl_skillneurons.studies.steering.rivals import RANDOM, Beside, Rivals, choice_of
from tl_skillneurons.studies.steering.writing import Said, change_norms, write
from tl_skillneurons.tasks.task import Task


def steer(
    model: TransformerBridge,
    prompts: SoftPrompt | Sequence[SoftPrompt],
    task: Task,
    neurons: Neurons | Mapping[str, Neurons],
    *,
    toward: int,
    texts: Sequence[str] | None = None,
    doses: Sequence[float | int] = (0.0, 0.5, 2.0, 4.0),
    measure: Mapping[str, ReadOut | Judge | Collection[str]] | None = None,
    n_random: int = 20,
    options: SteeringOptions = SteeringOptions(),
    path: str | os.PathLike[str] | None = None,
    run: RunOptions = RunOptions(),
) -> SteeringCurve:
    """What a model writes with ``neurons`` at each dose: how much of a class is in it and how fluent it is, beside
    ``n_random`` random and matched sets at the same dose.

    The model writes without a prompt; the prompts read what was written. It writes ``1 + doses * sets * (1 + 2 *
    n_random)`` times after all texts, and with rivals another ``doses * sets * (rivals + n_random)`` times.

    Args:
        prompts: Tuned on ``task``; they read the class of what was written, averaged over them.
        neurons: The neurons, or several sets by name, e.g. those of each prompt: with a :class:`ReadOut` of each prompt
            as a measure, every set is also read by prompts that didn't choose it.
        toward: The class whose probability is measured, an integer.
        texts: What the model writes after; by default the task's texts of "report". Equal ones are one unit.
        doses: Of :class:`SteeringOptions`' ``how``: factors by default.
        measure: Other measures by name: a function from an answer to a number (it may get ``""``, and each different
            answer once), a list of words (their share of an answer's words), or a :class:`ReadOut` of another task.
        n_random: Distinct draws of each control; 19 at least.
        path: A file that keeps what was written; the same call goes on where it stopped, with more doses, draws or
            other measures too.
        run: How to run.

    Returns:
        A curve; ``to_dataframe()`` has a row per set, dose and measure.

    Raises:
        ValueError: For a bidirectional model, neurons of another model, neurons or directions that these texts chose, a
            class that isn't there, doses or draws that make no sense, a judge's NaN, or a ``path`` of other settings.
        TypeError: For a measure that is none, or a judge that gives no number.

    Example:
        >>> friendly = {"words": ["good", "great", "love"], "length": len}
        >>> curve = skn.studies.steer(model, prompts, task, scores.top(0.01), toward=1, texts=texts, measure=friendly)
        >>> curve.plot()
        >>> sets = {f"{k}": skn.score_neurons(model, one, task).top(0.01) for k, one in enumerate(prompts)}
        >>> reads = {f"by prompt {k}": ReadOut(one, task, toward=1) for k, one in enumerate(prompts)}
        >>> beside = SteeringOptions(how="shift", rivals="probe")
        >>> curve = steer(model, prompts, task, sets, toward=1, doses=[2, 4], measure=reads, options=beside)
        >>> curve.verdicts, curve.plot(against="perplexity")
    """
    require_draws(n_random)
    writer = PromptedModel(model, None, chat=task.chat, run=run)
    if not (writer.causal and has_language_model_head(model)):
        raise ValueError(
            f"{model_label(model)} can't write one token after another (steering takes a causal language model); use "
            "measure_effects for what its answers lose"
        )
    require(model, "neurons")
    own = ReadOut(prompts, task, toward)
    measures = readers(measure or {}, own, model, run)
    what = options.interventions(doses, toward)
    if path is not None and any(isinstance(one, Call) for one in what):
        raise ValueError(
            "a file can't tell one function from another of the same name; make it a frozen class as in "
            "interventions/kinds.py, or leave path out"
        )
    asked, units = _texts(task, texts)
    sets = _sets(neurons, model)
    by = "SteeringOptions(on_chosen_texts=True)"
    where_chosen = {
        name: require_apart(one.choice, asked, insist=options.on_chosen_texts, by=by)
        for name, one in sets.items()
    }
    rivals = options.rival_names
    fitted = choice_of(task, options) if rivals else None
    where_fitted = require_apart(fitted, asked, insist=options.on_chosen_texts, what="directions", by=by)
    fixed = _fixed(model, task, options, asked, sets)
    amounts = [float(dose) for dose in doses]
    with KeptAnswers(path, fixed) as kept:
        reference = measure_references(writer, task, options.reference, options.n_reference, ["text"])["text"]
        drawn = with_controls(sets, model, reference.mean_absolute, n_random, options.seed)
        pushed = None
        if rivals:
            pushed = Rivals.of(model, task, sets, reference, amounts, toward, n_random, options)
        said = _write_all(writer, asked, what, drawn.sets, reference, pushed, options, kept)
    judged = said.judged(measures, special_token_ids(model.tokenizer))
    rows, draws = rows_of(judged.untouched, judged.neurons, amounts, units, options.seed)
    done = dict(zip(amounts, [one.name for one in what], strict=True))
    for row in rows:
        row |= {
            "intervention": done[row["dose"]],
            "n_neurons": len(sets[row["set"]]),
            "n_texts": len(asked),
            "n_units": len(units),
            "neurons_chosen": where_chosen[row["set"]],
        }
    notes = [
        "class: read by the prompts that were given; where they chose the neurons too, an independent judge says more",
        *(note for note in drawn.notes if not note.startswith("least")),
    ]
    beside = None
    if pushed is not None:
        of_neurons = {(row["set"], row["dose"]): row["collapse"] for row in rows}
        beside = Beside.of(judged, pushed, said.norms, of_neurons, amounts, units, options)
        for row in beside.rivals:
            row |= {"n_texts": len(asked), "n_units": len(units), "direction_fitted": where_fitted}
        draws += beside.draws
        notes += pushed.notes(options.reference, len(reference.labels))
    if len(units) < FEWEST_UNITS:
        notes.append(
            f"intervals: too narrow over {len(units)} units ({units.what}), it takes {FEWEST_UNITS} or more"
        )
    settings = settings_of(
        model,
        task,
        soft_prompts(prompts),
        **{name: value for name, value in fixed.items() if name not in ("model", "task")},
        toward=toward,
        doses=amounts,
        neutral=options.neutral,
        n_random=n_random,
        measures=list(measures),
        units=units.what,
        controls={name: {kind: one[kind] for kind in KINDS} for name, one in drawn.told.items()},
        notes=notes,
        **({} if beside is None else beside.settings),
    )
    return SteeringCurve(
        pd.DataFrame(rows),
        pd.DataFrame(draws),
        _answers(asked, said, amounts),
        settings,
        pd.DataFrame([] if beside is None else beside.rivals),
        pd.DataFrame([] if beside is None else beside.comparison),
    )


def _write_all(
    writer: PromptedModel,
    texts: list[str],
    what: Sequence[Intervention],
    sets: Mapping[tuple[str, str, int], NeuronSet],
    reference: Reference,
    rivals: Rivals | None,
    options: SteeringOptions,
    kept: KeptAnswers,
) -> Said:
    """What the model writes untouched, with every set at every dose, and along the rivals."""
    held: dict[Key, NeuronSet] = {
        (name, dose, kind, draw): one
        for dose in range(len(what))
        for (name, kind, draw), one in sets.items()
        if kind in ("chosen", *KINDS)
    }
    chosen = [key for key in held if key[2] == "chosen"]
    said = Said({}, {}, {}, {})
    n_written = 1 + len(held) + (0 if rivals is None else len(rivals) * len(chosen))
    with progress_bar("steering", n_written, show=writer.run.progress) as advance:

        def each(condition: str, hooks: Hooks) -> Written:
            done = kept.each(condition, partial(write, writer, texts, options, hooks))
            advance(1, note=condition)
            return done

        said.untouched.update(each("untouched", ()))
        for key, one in held.items():
            name, dose, kind, draw = key
            hooks = _hooks(one, what[dose], reference, options)
            said.neurons[key] = each(f"{what[dose]!r}, {name}, {kind} {draw}", hooks)
        for key in chosen if rivals is not None else ():
            assert rivals is not None  # for type checkers
            name, dose = key[:2]
            hooks = _hooks(held[key], what[dose], reference, options)
            ids = said.neurons[key]["token_ids"]
            said.norms[name, dose] = far = change_norms(writer, texts, ids, hooks, options.positions)
            for of_rival, condition, pushed in rivals.hooks(name, dose, far):
                same = not pushed  # of length 0
                said.rivals[of_rival] = (
                    said.untouched if same else each(f"{what[dose]!r}, {condition}", pushed)
                )
    return said


def _texts(task: Task, texts: Sequence[str] | None) -> tuple[list[str], Units]:
    if texts is None:
        return list(task.split("report")["text"]), task.units("report")
    if isinstance(texts, str):
        raise TypeError(f"texts must be a list of strings, got one string {texts!r}; put it in a list")
    asked = [require_text(text, "a text") for text in texts]
    if not asked:
        raise ValueError("texts must not be empty")
    return asked, Units.of([asked])


def _sets(neurons: Neurons | Mapping[str, Neurons], model: TransformerBridge) -> dict[str, NeuronSet]:
    """The sets by name, each knowing the model's shape."""
    given = neurons if isinstance(neurons, Mapping) else {"whole": neurons}
    if not given:
        raise ValueError("neurons must hold at least one set, got none")
    shape = neuron_shape(model)
    sets = {}
    for name, some in given.items():
        one = as_neurons(some)
        one.require_fits(*shape)
        if not len(one):
            raise ValueError(f"neurons must hold at least one neuron, got none in {name!r}")
        sets[name] = NeuronSet(one.layer, one.index, *shape, one.model, one.choice)
    return sets


def _fixed(
    model: TransformerBridge,
    task: Task,
    options: SteeringOptions,
    texts: list[str],
    sets: Mapping[str, NeuronSet],
) -> dict[str, Any]:
    """What one file of answers is of; doses, draws and measures may differ."""
    of = settings_of(model, task)
    return {
        "model": of["model"],
        "task": of["task"],
        "neurons": {name: [list(pair) for pair in one] for name, one in sorted(sets.items())},
        "texts": texts,
        "positions": options.positions,
        "max_new_tokens": options.max_new_tokens,
        "temperature": options.temperature,
        "seed": options.seed,
        "reference": [options.reference, options.n_reference],
    }


def _hooks(held: NeuronSet, what: Intervention, reference: Reference, options: SteeringOptions) -> list[Hook]:
    values = reference if what.needs else None
    return ablate(held, how=what, values=values, positions=options.positions, seed=options.seed)


def _answers(texts: list[str], said: Said, doses: Sequence[float]) -> pd.DataFrame:
    """What was written after each text: untouched, and with the chosen neurons, or a rival, at each dose."""
    rows = [
        ("untouched", math.nan, *pair, "untouched")
        for pair in zip(texts, said.untouched["answers"], strict=True)
    ]
    written = {**said.neurons, **said.rivals}
    for (name, dose, kind, _), one in written.items():
        if kind in (*KINDS, RANDOM):
            continue
        by = "neurons" if kind == "chosen" else kind
        rows += [(name, doses[dose], *pair, by) for pair in zip(texts, one["answers"], strict=True)]
    return pd.DataFrame(rows, columns=["set", "dose", "text", "answer", "by"])
