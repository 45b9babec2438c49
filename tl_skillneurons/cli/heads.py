"""``tl-skillneurons heads``: which heads bring the label to the skill neurons, and whether they matter."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tl_skillneurons.cli._again import answered, first_of, model_again
from tl_skillneurons.cli._app import command
from tl_skillneurons.cli._early import require_model_there, require_run
from tl_skillneurons.cli._options import Shown, Where

if TYPE_CHECKING:
    from tl_skillneurons.report.further import Answer

_CONTROLS = ("random", "matched", "all_layers")
_N_SHOWN = 10


@dataclass(frozen=True)
class Asked:
    """Heads and neurons"""

    heads: Annotated[int, typer.Option(min=1, help="How many of the best heads are held at their mean.")] = 5
    neurons: Annotated[int, typer.Option(min=1, help="How many of the best skill neurons are looked at.")] = (
        20
    )
    prompt: Annotated[int, typer.Option(min=0, help="Which of the run's prompts, from 0.")] = 0
    controls: Annotated[int, typer.Option(min=19, help="Sets of other heads beside the effect.")] = 20
    seed: Annotated[int, typer.Option(min=0, help="Of permutations and controls.")] = 0


@command("heads", {"n_random": "--controls", "n": "--heads"})
def heads(where: Where, asked: Asked, shown: Shown) -> None:
    """Which heads write the label into the best skill neurons, and what holding them does to neurons and answers."""
    n_prompts = len(require_run(where.run)["settings"]["seeds"])
    if asked.prompt >= n_prompts:
        raise ValueError(f"--prompt must be in [0, {n_prompts}), the prompts of the run, got {asked.prompt}")
    require_model_there(where.model, where.revision)
    settings = {name: getattr(asked, name) for name in ("heads", "neurons", "prompt", "controls", "seed")}

    def ask(path: Path) -> "Answer":
        from tl_skillneurons.attention.effects import head_effects
        from tl_skillneurons.attention.writers import HeadWriters, head_writers
        from tl_skillneurons.find.folder import load_run
        from tl_skillneurons.report.further import Answer, rows_of, span
        from tl_skillneurons.studies.profiles.driving import MEASURES

        findings = load_run(where.run)
        best = first_of(findings.skill, asked.neurons)
        model, prompt = model_again(findings, where), findings.prompts[asked.prompt]
        there_are = len(model.blocks) * int(model.cfg.n_heads)
        if asked.heads >= there_are:
            raise ValueError(
                f"--heads must leave others for the controls, the model has {there_are}, got {asked.heads}"
            )
        kept = path.with_suffix(".writers.safetensors")
        if not kept.exists():
            head_writers(model, prompt, findings.task, best, seed=asked.seed).save(kept)
        writers = HeadWriters.load(kept)
        measure = MEASURES[writers.settings["projection"]]
        found = head_effects(
            model, prompt, findings.task, writers.top_heads(asked.heads), best,
            n_random=asked.controls, seed=asked.seed,
        )  # fmt: skip
        frame = writers.to_dataframe()
        rows = [
            {
                "head": f"{row['layer']}.{row['head']}",
                "difference": row["difference"],
                "share": row["share"],
                "significant": f"{row['n_significant']} of {len(best)}",
                "most at": f"{row['neuron_layer']}.{row['neuron_index']}",
                "there": row["at_most"],
                "95 %": span(row["low"], row["high"]),
                "p": row["p_family"],
            }
            for row in frame.head(max(asked.heads, _N_SHOWN)).to_dict("records")
        ]
        effects, n = found.to_dataframe(), len(found.labels)
        held = [_beside(row) for row in effects.to_dict("records")]
        notes = [
            "difference: of the classes' means of what a head writes into the neurons, averaged over them, on select; "
            f"p family-wise over all heads and neurons (of {measure}). What is written need not be used, "
            "so heads are held as well:",
            f"at their mean at the prompt, on {n} examples of report, beside other heads of the same layers, and such "
            "as write as much (range over draws, two-sided rank p).",
            *found.notes,
        ]
        named = ", ".join(f"{layer}.{head}" for layer, head in found.heads)
        return Answer(
            "heads",
            "Which heads write into the skill neurons",
            {f"Heads that write into the best {len(best)} skill neurons": rows, f"Heads {named} held": held},
            notes,
            {"writers": rows_of(frame), "effects": rows_of(effects)},
        )

    answered(where.run, shown, "heads", settings, ask)


def _beside(row: Mapping[Any, Any]) -> dict[str, Any]:
    from tl_skillneurons.report.further import fraction, span

    told = {"": str(row["measure"]).replace("_", " "), "intact": row["intact"], "held": row["ablated"]}
    for kind in _CONTROLS:
        if row.get(f"p_{kind}", float("nan")) == row.get(f"p_{kind}"):
            n = round(1 / row[f"smallest_p_{kind}"]) - 1
            p = fraction(row[f"p_{kind}"], n)
            told[kind.replace("_", " ")] = f"{span(row[f'{kind}_min'], row[f'{kind}_max'])}, p {p}"
    return told
