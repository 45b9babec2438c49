"""``tl-skillneurons steer``: the skill neurons turned up and down while the model writes."""

import hashlib
import json
import math
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from tl_skillneurons._checks import listed, require_option
from tl_skillneurons.cli._again import answered, model_again
from tl_skillneurons.cli._app import command
from tl_skillneurons.cli._early import require_model_there, require_writes, run_task
from tl_skillneurons.cli._options import Shown, Where

if TYPE_CHECKING:
    from tl_skillneurons.find.findings import Findings
    from tl_skillneurons.report.further import Answer
    from tl_skillneurons.studies.steering.curve import SteeringCurve
    from tl_skillneurons.tasks.task import Task

DOSES = {"shift": "-4,-2,2,4", "scale": "0,0.5,2,4"}
"""By each way to steer, its doses where none are given."""
POSITIONS = ("generated", "text", "all")
_N_TEXTS, _N_WORDS = 8, 6
_N_SHOWN, _LONGEST = 2, 66
T = TypeVar("T")


@dataclass(frozen=True)
class Asked:
    """How it is steered"""

    toward: Annotated[
        str | None,
        typer.Option(help="The class: its label, its label word, or its number from 0 (default: the last)."),
    ] = None
    how: Annotated[
        str,
        typer.Option(help="shift: standard deviations toward the class; scale: factors of the activations."),
    ] = "shift"
    doses: Annotated[
        str | None,
        typer.Option(help="How far, with commas (default: -4,-2,2,4 to shift, 0,0.5,2,4 to scale)."),
    ] = None
    positions: Annotated[
        str, typer.Option(help="Where: generated (what it writes), text (what it writes after), all.")
    ] = "generated"
    texts: Annotated[
        Path | None,
        typer.Option(
            help="A file of texts to write after, one a line (default: the first words of the run's texts of report; "
            "of a run with --chat what its user wrote, in whole)."
        ),
    ] = None
    n_texts: Annotated[
        int | None,
        typer.Option(min=1, help="At most so many of them, drawn evenly (default: 8, all of --texts)."),
    ] = None
    tokens: Annotated[int, typer.Option(min=1, help="Most tokens that are written after a text.")] = 12
    words: Annotated[
        str | None,
        typer.Option(
            help="Words whose share of what is written is measured too, as a judge that knows nothing of the prompts: "
            "with commas, or a file with one a line."
        ),
    ] = None
    controls: Annotated[
        int, typer.Option(min=19, help="Sets of random neurons, and as many matched ones, at each dose.")
    ] = 20
    seed: Annotated[int, typer.Option(min=0, help="Of the controls.")] = 0


@command("steer", {"n_random": "--controls", "max_new_tokens": "--tokens"})
def steer(where: Where, asked: Asked, shown: Shown) -> None:
    """What the model writes with the skill neurons turned toward a class or away from it, and what that costs, beside
    random and matched neurons at the same dose.

    Without options it takes SmolLM2 a few minutes on two processor cores; --doses 4 is a quarter of that. Interrupted,
    the same command goes on where it stopped.
    """
    require_model_there(where.model, where.revision)
    require_option(asked.how, "--how", DOSES)
    require_option(asked.positions, "--positions", POSITIONS)
    doses = _doses(DOSES[asked.how] if asked.doses is None else asked.doses)
    words = None if asked.words is None else _words(asked.words)
    given = None if asked.texts is None else _evenly(_lines(asked.texts), asked.n_texts)
    require_writes(where.run)
    toward = _class(asked.toward, run_task(where.run))
    settings: dict[str, Any] = {
        "toward": toward,
        "doses": doses,
        "texts": given,
        "n_texts": (asked.n_texts or _N_TEXTS) if given is None else len(given),
        "words": words,
        **{name: getattr(asked, name) for name in ("how", "positions", "tokens", "controls", "seed")},
    }

    def ask(path: Path) -> "Answer":
        from tl_skillneurons.find.folder import load_run
        from tl_skillneurons.studies.steering.options import SteeringOptions
        from tl_skillneurons.studies.steering.run import steer as turn

        findings = load_run(where.run)
        texts = _beginnings(findings, settings["n_texts"]) if given is None else _apart(findings, given)
        options = SteeringOptions(
            how=asked.how, positions=asked.positions, max_new_tokens=asked.tokens, seed=asked.seed
        )
        curve = turn(
            model_again(findings, where),
            findings.prompts,
            findings.task,
            findings.skill,
            toward=toward,
            texts=texts,
            doses=doses,
            measure=None if words is None else {"words": words},
            n_random=asked.controls,
            options=options,
            path=_written(path.parent, [texts, asked.positions, asked.tokens, asked.seed]),
        )
        curve.save(path.with_suffix(".steering.json"))
        return _answer(curve, findings.task, asked)

    answered(where.run, shown, "steer", settings, ask)


def _doses(given: str) -> list[float]:
    """Finite numbers in a list with commas, each once."""
    try:
        found = list(dict.fromkeys(float(part) + 0.0 for part in given.split(",") if part.strip()))
    except ValueError:
        found = []
    if not found or not all(map(math.isfinite, found)):
        raise ValueError(f"--doses must be one or several numbers with commas, such as -2,2, got {given!r}")
    if len({f"{dose:g}" for dose in found}) < len(found):
        raise ValueError(f"--doses must differ in their first six digits, got {given!r}")
    return found


def _words(given: str) -> list[str]:
    """The single words in a list with commas, or in a file."""
    from tl_skillneurons._words import words_of

    file = os.path.expanduser(given)
    if os.path.isfile(file):
        text = _read(Path(file), "--words")
    elif "," not in given and (given.startswith((".", "~", os.sep)) or given.endswith(".txt")):
        raise FileNotFoundError(f"there is no file {given} for --words; give one, or words with commas")
    else:
        text = given
    found = list(dict.fromkeys(part.strip() for part in re.split(r"[,\n]", text) if part.strip()))
    if not found:
        raise ValueError(f"--words must hold at least one word, got {given!r}")
    for word in found:
        if len(words_of(word)) > 1:
            raise ValueError(
                f"--words must hold single words, with commas or one a line, got {word!r}; give its parts"
            )
    return found


def _lines(path: Path) -> list[str]:
    """The texts in a file, without white space around them."""
    file = path.expanduser()
    if not file.exists():
        raise FileNotFoundError(f"there is no file {path} for --texts; give one with a text a line")
    found = [line.strip() for line in _read(file, "--texts").split("\n") if line.strip()]
    if not found:
        raise ValueError(f"--texts {path} must hold at least one text, a line each; it is empty")
    return found


def _read(file: Path, option: str) -> str:
    try:
        return file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{option} {file} can't be read ({error}); give a text file in UTF-8") from error


def _class(given: str | None, task: dict[str, Any]) -> int:
    """The number of the class that is called so; a label goes before a word, and a word before a number."""
    names = [str(name) for name in task["label_names"]]
    words = [word.strip() if isinstance(word, str) else None for word in task["label_words"]]
    if given is None:
        return len(names) - 1
    for known in (names, words, list(map(str, range(len(names))))):
        if known.count(given.strip()) == 1:
            return known.index(given.strip())
    spelled = [word for word in words if word is not None]
    by_word = f", its label word ({listed(spelled)})" if spelled else ""
    raise ValueError(
        f"--toward must be a label of the run ({listed(names)}){by_word} or its number, 0 to {len(names) - 1}, got "
        f"{given!r}"
    )


def _evenly(some: Sequence[T], n: int | None) -> list[T]:
    """At most ``n`` of them, over the whole length."""
    n = len(some) if n is None else min(n, len(some))
    return [some[k * len(some) // n] for k in range(n)]


def _beginnings(findings: "Findings", n: int) -> list[str]:
    """Different beginnings of the run's texts of report (in a chat the whole texts, which are questions), without those
    that are texts which chose the neurons."""
    from tl_skillneurons.neurons.choice import text_fingerprints

    texts = findings.task.split("report")["text"]
    begun = texts if findings.task.chat is not None else map(_beginning, texts)
    found = list(dict.fromkeys(filter(None, begun)))
    choice = findings.skill.choice
    chose = frozenset() if choice is None else choice.texts
    left = [text for text, of in zip(found, text_fingerprints(found), strict=True) if of not in chose]
    if not left:
        raise ValueError(
            "the run's texts of report have no beginning that isn't a text which chose the skill neurons; give --texts"
        )
    return _evenly(left, n)


def _beginning(text: str) -> str:
    """The first half of a text's words, six at most, without white space around it.

    Example:
        >>> _beginning("The plot, of course, was dull."), _beginning("Dull.")
        ('The plot, of', 'Dull')
    """
    from tl_skillneurons._words import word_spans

    ends = [end for start, end in word_spans(text) if any(map(str.isalnum, text[start:end]))]
    return text[: ends[min(_N_WORDS, max(1, len(ends) // 2)) - 1]].strip() if ends else text.strip()


def _apart(findings: "Findings", given: list[str]) -> list[str]:
    """The user's texts, refused where some of them chose the neurons."""
    from tl_skillneurons.neurons.choice import text_fingerprints

    choice = findings.skill.choice
    if choice is not None and (n := sum(one in choice.texts for one in text_fingerprints(given))):
        raise ValueError(
            f"{n} of the {len(given)} texts in --texts are among those of role {choice.role!r} that chose the skill "
            "neurons, on which they look better than they are; leave these out"
        )
    return given


def _written(folder: Path, of: list[Any]) -> Path:
    """Where what was written is kept, whatever the doses, the class, the number of controls and the words."""
    return folder / f"steer-{hashlib.sha256(json.dumps(of).encode()).hexdigest()[:8]}.written.json"


def _answer(curve: "SteeringCurve", task: "Task", asked: Asked) -> "Answer":
    from tl_skillneurons.find.said import label_said
    from tl_skillneurons.report.further import Answer, rows_of, span

    frame = curve.to_dataframe()
    of = {str(name): part.to_dict("records") for name, part in frame.groupby("measure", sort=False)}
    before = {name: float(rows[0]["untouched"]) for name, rows in of.items()}
    doses = dict(zip(curve.settings["doses"], _spelled(curve, asked.how), strict=True))
    toward = label_said(task, curve.settings["toward"])
    tables = {
        f"Probability of {toward} in what is written, by the prompts: {before['class']:.3f} untouched": [
            _beside(row, doses) for row in of["class"]
        ]
    }
    if "words" in of:
        title = f"Words of --words among 100 written ones: {100 * before['words']:.2f} untouched"
        tables[title] = [_beside(row, doses, 100) for row in of["words"]]
    price = (
        f"The price: perplexity {math.exp(before['cross_entropy']):.2f}, repeated {before['repeated']:.3f}, empty "
        f"{before['empty']:.3f} untouched"
    )
    tables[price] = [
        {
            "dose": doses[row["dose"]],
            "perplexity": row["perplexity"],
            "controls": span(row["perplexity_min"], row["perplexity_max"]),
            "collapse": bool(row["collapse"]),
            "repeated": repeated["value"],
            "empty": empty["value"],
        }
        for row, repeated, empty in zip(of["class"], of["repeated"], of["empty"], strict=True)
    ]
    answers = curve.answers.drop_duplicates(["dose", "text"])  # equal texts may have been given
    for text in answers.text.unique()[:_N_SHOWN]:
        written = answers[answers.text == text]
        tables[f'After "{_short(text, _LONGEST - 8)}"'] = [
            {"dose": doses.get(dose, "untouched"), "writes": _short(answer, _LONGEST)}
            for dose, answer in zip(written.dose, written.answer, strict=True)
        ]
    numbers = {"doses": frame, "draws": curve.draws, "answers": curve.answers}
    return Answer(
        "steer",
        "The skill neurons turned while the model writes",
        tables,
        [*_notes(curve, task, asked, int(frame.n_texts.iloc[0])), *curve.notes],
        {name: rows_of(rows) for name, rows in numbers.items()},
    )


def _notes(curve: "SteeringCurve", task: "Task", asked: Asked, n_texts: int) -> list[str]:
    """What a reader of the tables must know, and what they don't show."""
    own = (
        "beginnings of the run's texts of report" if task.chat is None else "of the run's questions of report"
    )
    source = f"lines of {asked.texts}" if asked.texts else own
    unit = "standard deviations toward the class" if asked.how == "shift" else "a factor of the activations"
    return [
        f"After {n_texts} {source}, up to {asked.tokens} tokens each; turned at positions: {asked.positions}. Dose: "
        f"{unit}. Change: 95 % over texts. Controls: range over {curve.settings['n_random']} draws at the same dose, "
        "two-sided rank p; random neurons of the same layers, matched ones also alike in activation and output norm.",
        "collapse: the perplexity of what is written, to the untouched model, leaves the range of all controls, "
        "upwards or downwards (what repeats itself is easily predicted).",
        "It doesn't show that a text is better, or that no other neurons or directions steer more at the same "
        "perplexity; each p stands alone.",
    ]


def _spelled(curve: "SteeringCurve", how: str) -> list[str]:
    return [f"{dose:+g}" if how == "shift" else f"{dose:g}" for dose in curve.settings["doses"]]


def _beside(row: dict[Any, Any], doses: dict[float, str], times: int = 1) -> dict[str, Any]:
    from tl_skillneurons.report.further import fraction, span
    from tl_skillneurons.studies.steering.curve import KINDS

    told = {"dose": doses[row["dose"]], "value": times * row["value"]}
    told["change, 95 %"] = span(times * row["change_low"], times * row["change_high"])
    for kind in KINDS:
        p = fraction(row[f"p_{kind}"], round(1 / row[f"smallest_p_{kind}"]) - 1)
        told[kind] = f"{span(times * row[f'{kind}_min'], times * row[f'{kind}_max'])}, p {p}"
    return told


def _short(text: str, longest: int) -> str:
    one_line = " ".join(text.split())
    return one_line if len(one_line) <= longest else f"{one_line[: longest - 3]}..."
