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
from tl_skillneurons.cli._steering_tables import steering_answer

if TYPE_CHECKING:
    from tl_skillneurons.find.findings import Findings
    from tl_skillneurons.report.further import Answer

DOSES = {"shift": "-4,-2,2,4", "scale": "0,0.5,2,4"}
"""By each way to steer, its doses where none are given."""
POSITIONS = ("generated", "text", "all")
RIVALS = ("probe", "mean_difference")
_N_TEXTS, _N_WORDS = 8, 6
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
    rivals: Annotated[
        str | None,
        typer.Option(
            help="Directions over all neurons of the same layers, which go as far at each dose, compared at equal "
            "perplexity: probe, mean_difference, or both with a comma."
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
    rivals = [] if asked.rivals is None else [one.strip() for one in asked.rivals.split(",")]
    for one in rivals:
        require_option(one, "--rivals", RIVALS)
    given = None if asked.texts is None else _evenly(_lines(asked.texts), asked.n_texts)
    require_writes(where.run)
    toward = _class(asked.toward, run_task(where.run))
    settings: dict[str, Any] = {
        "toward": toward,
        "doses": doses,
        "texts": given,
        "n_texts": (asked.n_texts or _N_TEXTS) if given is None else len(given),
        "words": words,
        "rivals": rivals,
        **{name: getattr(asked, name) for name in ("how", "positions", "tokens", "controls", "seed")},
    }

    def ask(path: Path) -> "Answer":
        from tl_skillneurons.find.folder import load_run
        from tl_skillneurons.studies.steering.options import SteeringOptions
        from tl_skillneurons.studies.steering.run import steer as turn

        findings = load_run(where.run)
        texts = _beginnings(findings, settings["n_texts"]) if given is None else _apart(findings, given)
        options = SteeringOptions(
            how=asked.how,
            positions=asked.positions,
            max_new_tokens=asked.tokens,
            seed=asked.seed,
            rivals=rivals,
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
        return steering_answer(curve, findings.task, asked)

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
