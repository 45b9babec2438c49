"""A section for each of the best neurons: what drives it, word by word, and how it tells the labels apart."""

from collections.abc import Mapping, Sequence
from typing import Any

from tl_skillneurons.plots.look import fraction
from tl_skillneurons.report.page_parts import label_name, meaning
from tl_skillneurons.report.small_svg import densities
from tl_skillneurons.report.tables import bracketed, digits
from tl_skillneurons.studies.profiles.driving import MEASURES
from tl_skillneurons.studies.profiles.one_neuron import DrivingText, NeuronProfile, Piece
from tl_skillneurons.studies.profiles.result import NeuronProfiles
from tl_skillneurons.tasks.task import Task

_N_CORRELATED = 4
_N_HEADS = 3
_LEAST_ACTIVE = 0.2
_LEAST_SHOWN = 0.04  # of the largest part: below it a word keeps the page's colour


def profile_sections(profiles: NeuronProfiles, task: Task) -> dict[str, Any]:
    """The sections, their anchors by neuron, and the sentences above them."""
    anchors = {pair: f"#{_anchor(*pair)}" for pair in profiles.neurons}
    each = [_section(one, number, profiles, task, anchors) for number, one in enumerate(profiles)]
    told = profiles.settings
    words = (
        f"The {len(profiles)} best neurons on {told['role']}, under prompt {profiles.shown}: texts that drive each "
        "highest and lowest at the prompt. Not shown: what a neuron means. Extremes are few, and among thousands of "
        "neurons many have texts that look like a pattern; its rule on report is the test."
    )
    legend = ""
    if profiles.words is not None:
        legend = f"How much a word moved {told['measure']}: attention from the prompt times value, in its own units."
        legend += " The line above a word: what the neuron itself does there (dotted below 0), where no label is asked."
        if told["measure"] == MEASURES["pre"]:
            legend += " A very low pre-activation may give an activation near zero, as GELU has it."
    left = "; ".join(f"{part} left out: {why}" for part, why in profiles.left_out.items())
    return {
        "each": each,
        "anchors": anchors,
        "columns": columns_of(profiles),
        "words": f"{words} {left}" if left else words,
        "legend": legend,
    }


def _section(
    one: NeuronProfile,
    number: int,
    profiles: NeuronProfiles,
    task: Task,
    anchors: Mapping[tuple[int, int], str],
) -> dict[str, Any]:
    rule, shown = one.rule, profiles.shown
    what = "pre-activation" if profiles.settings["measure"] == MEASURES["pre"] else "activation"
    sides = {"Highest": one.highest, "Lowest": one.lowest}
    pieces = [piece for texts in sides.values() for text in texts for piece in text.pieces]
    most = (
        max((abs(piece.moved or 0.0) for piece in pieces), default=0.0),
        max((abs(piece.activation or 0.0) for piece in pieces), default=0.0),
    )
    names = (label_name(task, 0), label_name(task, 1))
    high = meaning(task, int(rule["direction"]))
    between = f"{digits(rule['low'])} to {digits(rule['high'])}"
    return {
        "anchor": _anchor(one.layer, one.index),
        "first": number == 0,
        "name": f"{one.layer}.{one.index}",
        "summary": f"its rule is right on {digits(rule['accuracy'])} ({between}) of {profiles.settings['role']}; "
        f"high means {high}",
        "density": densities(
            one.activations[shown].double().numpy(), one.labels.numpy(), float(one.baseline[shown]), names
        ),
        "facts": [
            ("High activation means", high),
            ("Rule on select", f"{digits(rule['on_select'])}, which chose it: too good"),
            (f"Rule on {profiles.settings['role']}", f"{digits(rule['accuracy'])} ({between})"),
            ("Position of the prompt", str(int(one.position[shown]))),
            *_further_facts(one),
        ],
        "correlated": [
            {"text": f"{layer}.{index} ({r:+.2f})", "link": anchors[layer, index]}
            for layer, index, r in one.correlated[:_N_CORRELATED]
        ],
        "sides": [
            {"title": f"{side} at the prompt", "texts": [_text(text, most, task, what) for text in texts]}
            for side, texts in sides.items()
        ],
    }


def _further_facts(one: NeuronProfile) -> list[tuple[str, str]]:
    """What it writes, what holding it alone does, and who writes into it; of the parts that were made."""
    facts = []
    if one.output_null is not None:
        null = one.output_null
        facts.append(("Raises the words", _scored(one.raised)))
        facts.append(("Lowers the words", _scored(one.lowered)))
        beside = f"its furthest either way {digits(null['largest'])}, random neurons of its layer "
        beside += f"{digits(null['random_median'])} (95 % below {digits(null['random_high'])}), p {fraction(null['p'])}"
        facts.append(("In standard deviations over the vocabulary", beside))
    if one.effects is not None:
        for name, words in (
            ("total", "Held alone at its mean: logit diff, to first order"),
            ("direct", "of which straight to the answer"),
        ):
            value, low, high = (one.effects[f"{name}{end}"] for end in ("", "_low", "_high"))
            facts.append((words, f"{value:+.3f} ({digits(low)} to {digits(high)})"))
    if one.heads is not None and len(one.heads):
        rows = one.heads.head(_N_HEADS).to_dict("records")
        said = [
            f"{row['head_layer']}.{row['head']} {row['difference']:+.3f}, p {fraction(row['p_family'])}"
            for row in rows
        ]
        first = rows[0]
        beside = f"{digits(abs(first['in_sd']))} standard deviations, a random neuron's strongest "
        beside += f"{digits(abs(first['random_in_sd']))} (p {fraction(first['random_p_family'])})"
        facts.append(("Heads that write the label", f"{'; '.join(said)}. The first: {beside}"))
    return facts


def _scored(words: Sequence[tuple[str, float]]) -> str:
    return ", ".join(f"{word} ({score:.1f})" for word, score in words)


def columns_of(profiles: NeuronProfiles) -> dict[tuple[int, int], dict[str, Any]]:
    """What the table of the best neurons tells of those that have a section, by neuron."""
    found: dict[tuple[int, int], dict[str, Any]] = {}
    for one in profiles:
        row: dict[str, Any] = {}
        if one.effects is not None:
            value, low, high = (one.effects[f"total{end}"] for end in ("", "_low", "_high"))
            row["held alone (logits)"] = bracketed(value, low, high)
        if one.raised:
            row["raises most"] = one.raised[0][0]
        found[one.layer, one.index] = row
    return found


def _text(text: DrivingText, most: tuple[float, float], task: Task, what: str) -> dict[str, Any]:
    pieces = [_piece(piece, most) for piece in text.pieces] or [{"text": text.text, "kind": ""}]
    rest = ""
    if text.parts:
        words, mlps, total = (text.parts[name] for name in ("from_words", "from_mlps", "total"))
        rest = f"{what} {digits(total)}, of which words {words:+.3f} and MLPs {mlps:+.3f}"
    return {
        "activation": digits(text.activation),
        "label": label_name(task, text.label),
        "label_class": "one" if text.label == 1 else "zero",
        "answer": "" if text.answer is None else label_name(task, text.answer),
        "right": text.answer == text.label,
        "pieces": pieces,
        "rest": rest,
    }


def _piece(piece: Piece, most: tuple[float, float]) -> dict[str, str]:
    """A word as the page shows it: by how much it moved the neuron, and by what the neuron itself does there, each
    beside the most of all its texts; what is next to nothing is left as it is."""
    if piece.moved is None or piece.activation is None:
        return {"text": piece.text, "kind": ""}
    moved, acts = (
        value / whole if whole else 0.0
        for value, whole in zip((piece.moved, piece.activation), most, strict=True)
    )
    kinds, style = [], []
    if abs(moved) >= _LEAST_SHOWN:
        kinds.append("up" if moved > 0 else "down")
        style.append(f"--a:{abs(moved):.2f}")
    if abs(acts) >= _LEAST_ACTIVE:
        kinds.append("on" if acts > 0 else "off")
        style.append(f"--b:{abs(acts):.1f}")
    return {
        "text": piece.text,
        "kind": " ".join(kinds),
        "style": ";".join(style),
        "said": f"{piece.moved:+.3f}, here {piece.activation:+.3f}",
    }


def _anchor(layer: int, index: int) -> str:
    return f"n-{layer}.{index}"
