"""Does turning neurons up or down steer what a model writes, and at what price? (with controls)

The model writes after each text while the neurons are scaled, or shifted towards a class, at every dose; then the same
with random neurons of the same layers, and with matched ones, alike in mean absolute activation and in output-weight
norm. What was written is measured by the untouched model and by judges of your own:

    change(dose) = mean over texts of measure(written while steered) - measure(written untouched)

What it does not show: that a text is better, or about what it seems to be (judge it); that other neurons, or a
direction that is no set of neurons, would not steer more at the same perplexity; anything of doses that collapse. The
read-out is by the prompts that may have chosen the neurons: an independent judge says more. Each p-value stands alone:
of twenty doses one is at most 0.05 by luck.
"""

import math
import os
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from tl_skillneurons._checks import require_int, require_option, require_seed, require_text
from tl_skillneurons._progress import progress_bar
from tl_skillneurons.interventions.ablation import ablate
from tl_skillneurons.interventions.controls import with_controls
from tl_skillneurons.interventions.kinds import Call, How, Intervention, Scale, Shift, as_intervention
from tl_skillneurons.interventions.references import Reference, measure_references
from tl_skillneurons.models.batches import run_batches
from tl_skillneurons.models.hooks import Hooks
from tl_skillneurons.models.records import model_label
from tl_skillneurons.models.sites import has_language_model_head, neuron_shape
from tl_skillneurons.models.tokenizing import special_token_ids
from tl_skillneurons.models.verification import require
from tl_skillneurons.neurons.choice import require_apart
from tl_skillneurons.neurons.neuron_set import Neurons, NeuronSet, as_neurons
from tl_skillneurons.prompts._cut import ANSWER
from tl_skillneurons.prompts.prompted_model import PromptedModel
from tl_skillneurons.prompts.run import RunOptions
from tl_skillneurons.prompts.soft_prompt import SoftPrompt
from tl_skillneurons.stats.hypothesis_tests import require_draws
from tl_skillneurons.stats.intervals import FEWEST_UNITS
from tl_skillneurons.stats.units import Units
from tl_skillneurons.studies._common import settings_of, soft_prompts
from tl_skillneurons.studies.steering.curve import KINDS, Key, SteeringCurve, Values, rows_of
from tl_skillneurons.studies.steering.kept import KeptAnswers, Written
from tl_skillneurons.studies.steering.measures import Judge, ReadOut, readers
from tl_skillneurons.studies.steering.numbers import answer_losses, is_empty, repeated_share
from tl_skillneurons.tasks.task import Task

_PLACES = ("generated", "text", "all")
_SHORT = ("scale", "shift")


@dataclass(frozen=True)
class SteeringOptions:
    """How neurons are steered, and how the model writes.

    Attributes:
        how: What a dose is: "scale" (a factor, 1 changes nothing), "shift" (standard deviations towards the class, 0
            changes nothing), or a function from a dose to an intervention.
        positions: Where: "generated" (what the model writes, from the second token on, since the first is read off the
            text), "text", or "all".
        max_new_tokens: Most tokens of an answer.
        temperature: Draws tokens, at this temperature; ``None`` takes the likeliest one.
        seed: Of the controls and of what is drawn, the same at every dose.
        reference: Whose examples say what neurons do at text, for shifts and to match controls.
        n_reference: Up to how many of them, evenly from the classes; ``None`` for all.
        on_chosen_texts: Write after texts that chose the neurons all the same; every row says so.

    Example:
        >>> shifted = skn.studies.SteeringOptions(how="shift", positions="all")
        >>> skn.studies.steer(model, prompts, task, skill, toward=1, doses=[-2.0, 2.0, 4.0], options=shifted)
    """

    how: str | Callable[[float], How] = "scale"
    positions: str = "generated"
    max_new_tokens: int = 24
    temperature: float | int | None = None
    seed: int = 0
    reference: str = "baseline"
    n_reference: int | None = 256
    on_chosen_texts: bool = False

    def __post_init__(self) -> None:
        if isinstance(self.how, str):
            require_option(self.how, "how", _SHORT)
        elif not callable(self.how):
            raise TypeError(
                f"how must be 'scale', 'shift' or a function from a dose to an intervention, got {self.how!r}"
            )
        require_option(self.positions, "positions", _PLACES)
        require_int(self.max_new_tokens, "max_new_tokens")
        require_seed(self.seed)
        if self.n_reference is not None:
            require_int(self.n_reference, "n_reference")

    def interventions(self, doses: Sequence[float | int], toward: int) -> list[Intervention]:
        """What is done at each dose.

        Raises:
            ValueError: For no dose, one that is not finite or given twice, or what goes by an example's class.
        """
        if not len(doses):
            raise ValueError("doses must hold at least one dose, got none")
        for dose in doses:
            if isinstance(dose, bool) or not isinstance(dose, int | float) or not math.isfinite(dose):
                raise ValueError(f"doses must be finite numbers, got {dose!r}")
        found: list[Intervention] = []
        for dose in map(float, doses):
            if self.how == "scale":
                found.append(Scale(dose))
            elif self.how == "shift":
                found.append(Shift(toward, dose))
            else:
                assert callable(self.how)  # for type checkers
                found.append(as_intervention(self.how(dose), "what how(dose) gives"))
        if by_class := [one.name for one in found if one.needs_labels]:
            raise ValueError(
                f"intervention {by_class[0]!r} goes by the class of an example, and texts to write after have none; "
                "give Scale or Shift"
            )
        names = [one.name for one in found]
        if twice := [name for name in names if names.count(name) > 1]:
            raise ValueError(
                f"two doses are {twice[0]!r}; give each dose once, and interventions their own names"
            )
        return found


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
    n_random)`` times after all texts.

    Args:
        prompts: Tuned on ``task``; they read the class of what was written, averaged over them.
        neurons: The neurons, or several sets by name, e.g. those of each prompt.
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
        ValueError: For a bidirectional model, neurons of another model or that these texts chose, a class that isn't
            there, doses or draws that make no sense, a judge's NaN, or a ``path`` of other settings.
        TypeError: For a measure that is none, or a judge that gives no number.

    Example:
        >>> friendly = {"words": ["good", "great", "love"], "length": len}
        >>> curve = skn.studies.steer(model, prompts, task, scores.top(0.01), toward=1, texts=texts, measure=friendly)
        >>> curve.plot()
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
    fixed = _fixed(model, task, options, asked, sets)
    with KeptAnswers(path, fixed) as kept:
        seed, role = options.seed, options.reference
        reference = measure_references(writer, task, role, options.n_reference, ["text"])["text"]
        drawn = with_controls(sets, model, reference.mean_absolute, n_random, seed)
        conditions = [
            ((name, dose, kind, draw), held, one)
            for dose, one in enumerate(what)
            for (name, kind, draw), held in drawn.sets.items()
            if kind in ("chosen", *KINDS)
        ]
        with progress_bar("steering", 1 + len(conditions), show=run.progress) as advance:
            begin = kept.each("untouched", partial(_write, writer, asked, options, ()))
            advance(1, note="untouched")
            written: dict[Key, Written] = {}
            for key, held, one in conditions:
                hooks = _hooks(held, one, reference, options)
                name, _, kind, draw = key
                condition = f"{one!r}, {name}, {kind} {draw}"
                written[key] = kept.each(condition, partial(_write, writer, asked, options, hooks))
                advance(1, note=condition)
    special = special_token_ids(model.tokenizer)
    said = list(dict.fromkeys(answer for one in (begin, *written.values()) for answer in one["answers"]))
    judged = {name: dict(zip(said, read(said).tolist(), strict=True)) for name, read in measures.items()}
    untouched = _measured(begin, judged, special)
    steered = {key: _measured(one, judged, special) for key, one in written.items()}
    amounts = [float(dose) for dose in doses]
    rows, draws = rows_of(untouched, steered, amounts, units, options.seed)
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
    if len(units) < FEWEST_UNITS:
        notes.append(
            f"intervals: too narrow over {len(units)} units ({units.what}), it takes {FEWEST_UNITS} or more"
        )
    told = {name: {kind: one[kind] for kind in KINDS} for name, one in drawn.told.items()}
    settings = settings_of(
        model,
        task,
        soft_prompts(prompts),
        **{name: value for name, value in fixed.items() if name not in ("model", "task")},
        toward=toward,
        doses=amounts,
        n_random=n_random,
        measures=list(measures),
        units=units.what,
        controls=told,
        notes=notes,
    )
    return SteeringCurve(
        pd.DataFrame(rows), pd.DataFrame(draws), _answers(asked, begin, written, amounts), settings
    )


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


def _hooks(held: NeuronSet, what: Intervention, reference: Reference, options: SteeringOptions) -> Hooks:
    values = reference if what.needs else None
    return ablate(held, how=what, values=values, positions=options.positions, seed=options.seed)


def _write(writer: PromptedModel, texts: list[str], options: SteeringOptions, hooks: Hooks) -> Written:
    """What the model writes with these hooks, and its cross-entropy without them."""
    done = writer.generate(
        texts,
        options.max_new_tokens,
        interventions=list(hooks),
        temperature=options.temperature,
        seed=options.seed,
    )
    losses = written_losses(writer, texts, done.token_ids)
    return {
        "answers": list(done.answers),
        "token_ids": [list(ids) for ids in done.token_ids],
        "cross_entropy": losses.tolist(),
    }


def written_losses(
    writer: PromptedModel, texts: Sequence[str], token_ids: Sequence[Sequence[int]]
) -> Float[Tensor, " text"]:
    """Cross-entropy of what was written after each text, its end token included, under the untouched model: nats per
    token, float64.

    Args:
        writer: Without a prompt.
        token_ids: As :class:`~tl_skillneurons.prompts.Completions` has them.

    Example:
        >>> done = plain.generate(texts)
        >>> written_losses(plain, texts, done.token_ids)
    """
    asked = writer.encode(texts)
    ids = [text + [ANSWER + i for i in answer] for text, answer in zip(asked, token_ids, strict=True)]
    found = torch.empty(len(ids), dtype=torch.float64)
    with writer.attached() as virtual, torch.no_grad():

        def read(batch: list[int]) -> None:
            tokens = writer.assemble([ids[i] for i in batch], batch)
            assert tokens.is_generated is not None  # for type checkers: every answer has a token
            logits = writer.forward(tokens, virtual)
            found[batch] = answer_losses(logits, tokens.ids, tokens.is_generated)

        run_batches(writer.batches(ids), read)
    return found


def _measured(written: Written, judged: Mapping[str, Mapping[str, float]], special: frozenset[int]) -> Values:
    """Every measure of every answer; what was judged is known of each different answer."""
    answers = written["answers"]
    own = [[i for i in ids if i not in special] for ids in written["token_ids"]]
    found = {
        name: torch.tensor([of[answer] for answer in answers], dtype=torch.float64)
        for name, of in judged.items()
    }
    found["cross_entropy"] = torch.tensor(written["cross_entropy"], dtype=torch.float64)
    found["repeated"] = torch.tensor([repeated_share(ids) for ids in own], dtype=torch.float64)
    found["empty"] = torch.tensor([float(is_empty(one)) for one in answers], dtype=torch.float64)
    return found


def _answers(
    texts: list[str], untouched: Written, written: Mapping[Key, Written], doses: Sequence[float]
) -> pd.DataFrame:
    """What was written after each text: untouched, and with the chosen neurons at each dose."""
    rows = [("untouched", math.nan, *pair) for pair in zip(texts, untouched["answers"], strict=True)]
    for (name, dose, kind, _), one in written.items():
        if kind == "chosen":
            rows += [(name, doses[dose], *pair) for pair in zip(texts, one["answers"], strict=True)]
    return pd.DataFrame(rows, columns=["set", "dose", "text", "answer"])
