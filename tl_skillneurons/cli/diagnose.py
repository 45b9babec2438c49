"""``tl-skillneurons diagnose``: would another prompt, other examples or a neighbour have done as well?"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tl_skillneurons.cli._again import answered, model_again
from tl_skillneurons.cli._app import command
from tl_skillneurons.cli._early import require_model_there
from tl_skillneurons.cli._options import Shown, Where

if TYPE_CHECKING:
    from tl_skillneurons.report.further import Answer


@dataclass(frozen=True)
class Asked:
    """How it is looked at"""

    bootstrap: Annotated[int, typer.Option(min=1, help="Bootstrap samples of role select.")] = 200
    permutations: Annotated[
        int, typer.Option(min=19, help="Permutations of the labels that agreement is compared with.")
    ] = 99
    seed: Annotated[int, typer.Option(min=0, help="Everything random follows from it.")] = 0


@command("diagnose", {"n_bootstrap": "--bootstrap", "n_permutations": "--permutations"})
def diagnose(where: Where, asked: Asked, shown: Shown) -> None:
    """How stable the skill neurons are: other prompts, other examples, neurons outside that say the same."""
    require_model_there(where.model, where.revision)
    settings = {"bootstrap": asked.bootstrap, "permutations": asked.permutations, "seed": asked.seed}

    def ask(path: Path) -> "Answer":
        from tl_skillneurons.find.folder import load_run
        from tl_skillneurons.report.further import Answer, rows_of, span
        from tl_skillneurons.studies.diagnosis import diagnose as look

        findings = load_run(where.run)
        found = look(
            model_again(findings, where),
            findings.prompts,
            findings.task,
            findings.skill,
            scores=findings.scores,
            n_bootstrap=asked.bootstrap,
            n_permutations=asked.permutations,
            seed=asked.seed,
        )
        found.save(path.with_suffix(".diagnosis.json"))
        frame = found.to_dataframe()
        rows = [
            {
                "": row["quantity"],
                "value": row["value"],
                "range": span(row["low"], row["high"]),
                "control": row["control"],
                "p": row["p_value"] if row["p_value"] == row["p_value"] else None,
            }
            for row in frame.to_dict("records")
        ]
        notes = [
            f"On {found.n_examples} examples of select. Range: of pairs of prompts; 95 % of bootstrap samples; "
            f"quartiles of neurons. Control: what {len(found.null)} permutations of labels choose; of random neurons "
            f"the correlation outside is {frame.random.iloc[-1]:.3f}.",
            "Stability is not truth: a set can be found again each time and matter nowhere.",
        ]
        if len(findings.prompts) == 1:
            notes.insert(1, "One prompt has no other to agree with; a run with --prompts 2 has.")
        return Answer(
            "diagnose", "Would it be the same again?", {"Stability of the skill neurons": rows}, notes,
            {"diagnosis": rows_of(frame), "prompts": rows_of(found.prompts)},
        )  # fmt: skip

    answered(where.run, shown, "diagnose", settings, ask)
