"""``tl-skillneurons effects``: other interventions, positions and sizes of the set."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tl_skillneurons.cli._again import answered, model_again
from tl_skillneurons.cli._app import command
from tl_skillneurons.cli._early import require_model_there, require_run, run_task
from tl_skillneurons.cli._options import Shown, Where, amounts_of, several

if TYPE_CHECKING:
    from tl_skillneurons.find.findings import Findings
    from tl_skillneurons.interventions.effect_panel import EffectPanel
    from tl_skillneurons.report.further import Answer

INTERVENTIONS = ("zero", "mean", "class_mean", "other_class_mean", "resample", "noise", "scale", "keep")
POSITIONS = ("prompt", "text", "template", "all")
_CONTROLS = ("random", "matched", "least")


@dataclass(frozen=True)
class Asked:
    """What is done to the skill neurons"""

    interventions: Annotated[
        str, typer.Option(help=f"One or several, with commas: {', '.join(INTERVENTIONS)}.")
    ] = "mean,zero"
    positions: Annotated[
        str,
        typer.Option(
            help="Where, one or several: prompt, text, template (of a run with --chat), all. At all, any set harms "
            "the text."
        ),
    ] = "prompt"
    sizes: Annotated[
        str | None,
        typer.Option(help="Neurons per layer, shares or counts: 0.005,0.01,0.02 (default: the run's --top)."),
    ] = None
    controls: Annotated[
        int, typer.Option(min=19, help="Sets of random neurons, and as many of each other control.")
    ] = 20
    seed: Annotated[int, typer.Option(min=0, help="Of the controls, and of what interventions draw.")] = 0


@command("effects", {"n_random": "--controls", "amount": "--sizes"})
def effects(where: Where, asked: Asked, shown: Shown) -> None:
    """What other interventions, positions and sizes of the set do to the answers, beside the same controls."""
    require_model_there(where.model, where.revision)
    require_run(where.run)
    settings: dict[str, Any] = {
        "interventions": several(asked.interventions, "--interventions", INTERVENTIONS),
        "positions": several(asked.positions, "--positions", POSITIONS),
        "sizes": None if asked.sizes is None else amounts_of(asked.sizes, "--sizes"),
        "controls": asked.controls,
        "seed": asked.seed,
    }
    if "template" in settings["positions"] and "chat" not in run_task(where.run):
        raise ValueError(
            f"--positions template is around the texts of a chat, and those of the run in {where.run} stand alone; "
            "give prompt, text or all, or a run of find --chat"
        )

    def ask(path: Path) -> "Answer":
        from tl_skillneurons._checks import require_others
        from tl_skillneurons._widths import even
        from tl_skillneurons.find.folder import load_run
        from tl_skillneurons.interventions.effects import measure_effects

        findings = load_run(where.run)
        top = findings.settings["top"]
        sizes = settings["sizes"] or {str(top): top}
        for amount in sizes.values():
            require_others(amount, even(findings.scores.d_mlp, "this command"))
        panel = measure_effects(
            model_again(findings, where),
            findings.prompts,
            findings.task,
            {name: findings.scores.top(amount) for name, amount in sizes.items()},
            interventions=settings["interventions"],
            positions=settings["positions"],
            n_random=asked.controls,
            seed=asked.seed,
            path=path.with_suffix(".safetensors"),
        )
        return _answer(panel, findings)

    answered(where.run, shown, "effects", settings, ask)


def _answer(panel: "EffectPanel", findings: "Findings") -> "Answer":
    from tl_skillneurons.report.further import Answer, fraction, rows_of, span

    frame = panel.to_dataframe()
    last = "pooled" if len(findings.prompts) > 1 else frame.prompt.iloc[-1]
    tables = {}
    for metric, of_metric in frame[frame.prompt == last].groupby("metric", sort=False):
        rows = []
        for row in of_metric.to_dict("records"):
            kinds = [
                kind for kind in _CONTROLS if f"p_{kind}" in row and row[f"p_{kind}"] == row[f"p_{kind}"]
            ]
            shown = {"set": row["set"], "held by": row["intervention"], "at": row["positions"]}
            shown |= {"value": row["value"], "change, 95 %": span(row["change_low"], row["change_high"])}
            for kind in kinds:
                n = round(1 / row[f"smallest_p_{kind}"]) - 1
                shown[kind] = (
                    f"{span(row[f'{kind}_min'], row[f'{kind}_max'])}, p {fraction(row[f'p_{kind}'], n)}"
                )
            rows.append(shown)
        intact = of_metric.intact.iloc[0]
        about = "mean over prompts" if last == "pooled" else "the prompt"
        tables[f"{str(metric).replace('_', ' ')}, {about}: {intact:.3f} intact"] = rows
    n = int(frame.n_examples.iloc[0])
    notes = [
        f"{n} examples of {panel.role}. Controls: range over their draws and two-sided rank p; random neurons of the "
        "same layers, matched ones also alike in activation and output norm, least predictive ones of the lower half."
    ]
    return Answer(
        "effects",
        "What holding the skill neurons does",
        tables,
        [*notes, *panel.notes],
        {"effects": rows_of(frame)},
    )
