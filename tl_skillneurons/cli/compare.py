"""``tl-skillneurons compare``: do runs find the same neurons?"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tl_skillneurons.cli._again import answered, run_key
from tl_skillneurons.cli._app import command
from tl_skillneurons.cli._early import require_run
from tl_skillneurons.cli._options import Shown, amount_of

if TYPE_CHECKING:
    from tl_skillneurons.report.further import Answer


@dataclass(frozen=True)
class Runs:
    """The runs"""

    runs: Annotated[
        list[Path],
        typer.Argument(metavar="RUN RUN...", help="The folders of two or more runs, of one model."),
    ]
    top: Annotated[
        str | None,
        typer.Option(help="Best neurons per layer that are compared (default: the first run's --top)."),
    ] = None
    permutations: Annotated[
        int, typer.Option(min=39, help="Permutations of each run's labels that agreement is compared with.")
    ] = 200
    seed: Annotated[int, typer.Option(min=0, help="Of the permutations.")] = 0


@command("compare", {"n_permutations": "--permutations", "amount": "--top", "scores": "RUN RUN..."})
def compare(runs: Runs, shown: Shown) -> None:
    """How far runs agree on their neurons: overlap and rank correlation, beside those under permuted labels."""
    folders = list(dict.fromkeys(one.resolve() for one in runs.runs))
    if len(folders) < 2:
        raise ValueError(f"compare takes two or more different runs, got {', '.join(map(str, runs.runs))}")
    records = [require_run(folder) for folder in folders]
    names = _names(folders)
    first, *others = (record["settings"]["model"] for record in records)
    for folder, model in zip(folders[1:], others, strict=True):
        unlike = [
            f"{key} {first.get(key)!r} and {model.get(key)!r}"
            for key in first
            if model.get(key) != first[key]
        ]
        if unlike:
            raise ValueError(
                f"the runs in {folders[0]} and {folder} are of different models ({'; '.join(unlike)}), and a neuron of "
                "one is none of the other; compare runs of one model"
            )
    amount = records[0]["settings"]["top"] if runs.top is None else amount_of(runs.top)
    settings = {
        "runs": {name: run_key(folder) for name, folder in zip(names, folders, strict=True)},
        "top": amount,
        "permutations": runs.permutations,
        "seed": runs.seed,
    }

    def ask(path: Path) -> "Answer":
        from tl_skillneurons.find.folder import load_run
        from tl_skillneurons.report.further import Answer, rows_of, span
        from tl_skillneurons.studies.across_tasks.similarity import compare_tasks

        found = compare_tasks(
            {name: load_run(folder).scores for name, folder in zip(names, folders, strict=True)},
            amount=amount,
            n_permutations=runs.permutations,
            seed=runs.seed,
        )
        frame = found.to_dataframe()
        rows = [
            {
                "runs": f"{row['one']}, {row['other']}",
                "rank correlation": row["spearman"],
                "permuted": span(row["null_low"], row["null_high"]),
                "p": row["p_value"],
                "shared": row["n_shared"],
                "Jaccard": row["jaccard"],
                "by luck": row["chance_jaccard"],
                "p shared": row["p_shared"],
            }
            for row in frame[frame.layer == -1].to_dict("records")
        ]
        notes = [
            "Rank correlation (Spearman's) of all neurons' predictivity and what the tops share, beside the same under "
            f"{runs.permutations} permutations of each run's labels (the larger p of both sides); by luck: sets "
            "drawn at random, which skill neurons of labels without meaning exceed too.",
            "Shared neurons may do different things in different tasks.",
        ]
        return Answer(
            "compare", "Do the runs agree?", {"Agreement of runs": rows}, notes, {"pairs": rows_of(frame)}
        )

    answered(folders[0], shown, "compare", settings, ask, must_keep=False)


def _names(folders: list[Path]) -> list[str]:
    """What to call the runs: their folders' names, with as many parents as tell them apart."""
    depth = 1
    while len({folder.parts[-depth:] for folder in folders}) < len(folders):
        depth += 1
    return ["/".join(folder.parts[-depth:]) for folder in folders]
