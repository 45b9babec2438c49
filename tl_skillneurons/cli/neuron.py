"""``tl-skillneurons neuron``: single neurons of a run, profiled there or now."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tl_skillneurons.cli._again import answered, model_again
from tl_skillneurons.cli._app import command
from tl_skillneurons.cli._early import require_model_there
from tl_skillneurons.cli._options import Shown, Where

if TYPE_CHECKING:
    from tl_skillneurons.find.findings import Findings
    from tl_skillneurons.report.further import Answer
    from tl_skillneurons.studies.profiles.one_neuron import DrivingText, NeuronProfile
    from tl_skillneurons.studies.profiles.result import NeuronProfiles
    from tl_skillneurons.tasks.task import Task

_N_TEXTS, _N_WORDS, _LONGEST = 4, 3, 44


@dataclass(frozen=True)
class Asked:
    """Which neurons"""

    neurons: Annotated[
        list[str], typer.Argument(metavar="LAYER.INDEX...", help="One or several, such as 14.371.")
    ]


@command("neuron", {"neurons": "LAYER.INDEX..."})
def neuron(where: Where, asked: Asked, shown: Shown) -> None:
    """One neuron or several: how well its rule does, the texts that drive it highest and lowest, and their words.

    Those that the run profiled are shown from its folder; for others its model is loaded.
    """
    require_model_there(where.model, where.revision)
    pairs = list(dict.fromkeys(map(_pair, asked.neurons)))

    def ask(path: Path) -> "Answer":
        from tl_skillneurons.find.folder import load_run
        from tl_skillneurons.report.further import Answer, rows_of

        findings = load_run(where.run)
        profiles = _profiles(findings, where, pairs)
        tables: dict[str, list[dict[str, Any]]] = {}
        for pair in pairs:
            profile = profiles.of(*pair)
            name = f"{pair[0]}.{pair[1]}"
            tables[f"Neuron {name}"] = [_rule(profile, findings.task)]
            for side, texts in (("highest", profile.highest), ("lowest", profile.lowest)):
                tables[f"Texts that drive {name} {side}"] = [
                    _text(one, findings.task) for one in texts[:_N_TEXTS]
                ]
            tables |= {f"{title} {name}": rows for title, rows in _parts(profile).items()}
        notes = [
            "Rule: high activation means that label; on select it chose its position and direction, so that figure is "
            "too good. Words: what moved the activation most, by attention alone, in its own units.",
            "Words raised and lowered: in standard deviations over the vocabulary, the furthest either way beside "
            "that of random neurons of the layer. Holding: it alone, at its mean; total is a first-order estimate, "
            "direct goes straight through the residual stream. Heads: chosen on select; in sd of all that the neuron "
            "reads.",
            *(f"Left out: {part}: {reason}." for part, reason in profiles.left_out.items()),
        ]
        parts = ("rules", "texts", "output_words", "output_null", "effects", "heads")
        found = {part: getattr(profiles, part) for part in parts}
        numbers = {part: rows_of(table) for part, table in found.items() if table is not None}
        chosen = {f"{layer}.{index}" for layer, index in pairs}
        kept = {
            part: [row for row in rows if f"{row['layer']}.{row['index']}" in chosen]
            for part, rows in numbers.items()
        }
        return Answer("neuron", "Neurons one by one", tables, notes, kept)

    settings = {"neurons": [list(pair) for pair in pairs]}
    answered(where.run, shown, "neuron", settings, ask, must_keep=False)


def _pair(given: str) -> tuple[int, int]:
    found = re.fullmatch(r"(\d+)\.(\d+)", given.strip(), re.ASCII)
    if found is None:
        raise ValueError(f"a neuron is LAYER.INDEX, such as 14.371, got {given!r}")
    return int(found[1]), int(found[2])


def _profiles(findings: "Findings", where: Where, pairs: list[tuple[int, int]]) -> "NeuronProfiles":
    """Those of the run where it has all of these neurons, else made anew."""
    from tl_skillneurons._widths import even

    scores, d_mlp = findings.scores, even(findings.scores.d_mlp, "this command")
    for layer, index in pairs:
        if layer >= scores.n_layers or index >= d_mlp:
            raise ValueError(
                f"there is no neuron {layer}.{index}: layers are 0 to {scores.n_layers - 1}, neurons of a layer 0 to "
                f"{d_mlp - 1}"
            )
    if set(pairs) <= set(findings.profiles.neurons):
        return findings.profiles

    from tl_skillneurons.neurons.neuron_set import NeuronSet
    from tl_skillneurons.studies.profiles.run import profile_neurons

    chosen = NeuronSet.from_pairs(pairs, n_layers=scores.n_layers, d_mlp=scores.d_mlp)
    model, seed = model_again(findings, where), findings.settings["seeds"][0]
    return profile_neurons(model, findings.prompts, findings.task, scores, chosen, seed=seed)


def _rule(profile: "NeuronProfile", task: "Task") -> dict[str, Any]:
    from tl_skillneurons.report.further import span

    rule = profile.rule
    direction = int(rule["direction"])
    means = "mixed" if direction == 0 else str(task.label_names[1 if direction > 0 else 0])
    return {
        "high means": means,
        "on select": rule["on_select"],
        "on report": rule["accuracy"],
        "95 %": span(rule["low"], rule["high"]),
        "most correlated": ", ".join(f"{a}.{b} ({r:+.2f})" for a, b, r in profile.correlated[:2]),
    }


def _parts(profile: "NeuronProfile") -> dict[str, list[dict[str, Any]]]:
    """What it writes, what it does alone and who writes into it: tables of the parts that were made."""
    from tl_skillneurons.report.further import span

    found: dict[str, list[dict[str, Any]]] = {}
    if (null := profile.output_null) is not None:
        raised, lowered = (
            ", ".join(f"{word.strip()} {score:+.1f}" for word, score in scored[:_N_WORDS])
            for scored in (profile.raised, profile.lowered)
        )
        beside = {"furthest": null["largest"], "random": null["random_median"], "p": null["p"]}
        found["Words in the output weights of"] = [{"raised": raised, "lowered": lowered, **beside}]
    if (effects := profile.effects) is not None:
        found["Effects of holding"] = [
            {
                "effect": name,
                "logit diff": effects[name],
                "95 %": span(effects[f"{name}_low"], effects[f"{name}_high"]),
            }
            for name in ("total", "direct")
        ]
    if profile.heads is not None:
        found["Heads that write the label into"] = [
            {
                "head": f"{int(row['head_layer'])}.{int(row['head'])}",
                "difference": row["difference"],
                "in sd": row["in_sd"],
                "p": row["p_family"],
                "a random neuron's, in sd": row["random_in_sd"],
            }
            for row in profile.heads.to_dict("records")
        ]
    return found


def _text(one: "DrivingText", task: "Task") -> dict[str, Any]:
    moved = sorted(
        (piece for piece in one.pieces if piece.moved is not None), key=lambda piece: -abs(piece.moved or 0)
    )
    text = " ".join(one.text.split())
    return {
        "activation": one.activation,
        "label": str(task.label_names[one.label]),
        "answer": "" if one.answer is None else str(task.label_names[one.answer]),
        "words": ", ".join(f"{piece.text.strip()} {piece.moved:+.2f}" for piece in moved[:_N_WORDS]),
        "text": text if len(text) <= _LONGEST else f"{text[: _LONGEST - 3]}...",
    }
