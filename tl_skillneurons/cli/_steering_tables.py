"""What ``tl-skillneurons steer`` shows: tables of doses, rivals, prices and texts, and what they don't show."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tl_skillneurons.cli.steer import Asked
    from tl_skillneurons.report.further import Answer
    from tl_skillneurons.studies.steering.curve import SteeringCurve
    from tl_skillneurons.tasks.task import Task

_N_SHOWN, _LONGEST = 2, 66
_RIVAL_NOTES = (
    "Directions are fitted on what the neurons of each layer do at texts of baseline, and added at the same positions, "
    "each as long as the change that the neurons make there at the same dose; random: random directions as long. At "
    "equal perplexity: 95 % intervals of the changes, straight lines between doses, the texts drawn again for both.",
)


def steering_answer(curve: "SteeringCurve", task: "Task", asked: "Asked") -> "Answer":
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
    tables |= _against(curve, doses)
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
    own = curve.answers[curve.answers.by.isin(["untouched", "neurons"])]
    answers = own.drop_duplicates(["dose", "text"])  # equal texts may have been given
    for text in answers.text.unique()[:_N_SHOWN]:
        written = answers[answers.text == text]
        tables[f'After "{_short(text, _LONGEST - 8)}"'] = [
            {"dose": doses.get(dose, "untouched"), "writes": _short(answer, _LONGEST)}
            for dose, answer in zip(written.dose, written.answer, strict=True)
        ]
    numbers = {"doses": frame, "draws": curve.draws, "answers": curve.answers}
    numbers |= {"rivals": curve.rivals, "comparison": curve.comparison} if len(curve.rivals) else {}
    return Answer(
        "steer",
        "The skill neurons turned while the model writes",
        tables,
        [*_notes(curve, task, asked, int(frame.n_texts.iloc[0])), *curve.notes],
        {name: rows_of(rows) for name, rows in numbers.items()},
    )


def _against(curve: "SteeringCurve", doses: dict[float, str]) -> dict[str, list[dict[str, Any]]]:
    """What each rival does to the class, and what neurons and rivals do at equal perplexity."""
    tables: dict[str, list[dict[str, Any]]] = {}
    if not len(curve.rivals):
        return tables
    own = curve.rivals[curve.rivals.measure == "class"]
    for rival, rows in own.groupby("rival", sort=False):
        title = f"The same probability along the direction {rival} over all neurons of these layers, as far"
        tables[title] = [
            {
                **_beside(row, doses, kinds=("random",)),
                "perplexity": row["perplexity"],
                "collapse": row["collapse"],
            }
            for row in rows.to_dict("records")
        ]
    compared = curve.comparison[curve.comparison.measure == "class"]
    for rival, rows in compared.groupby("rival", sort=False):
        tables[f"Its change at equal perplexity, neurons and {rival}"] = [
            {
                "way": row["way"],
                "at": row["at"] if row["at"] == "mean" else f"{row['at']}, dose {doses[row['dose']]}",
                "perplexity": None if row["at"] == "mean" else row["perplexity"],
                **{
                    name: _span_or_none(row[f"{name}_low"], row[f"{name}_high"])
                    for name in ("neurons", "direction", "difference")
                },
                "verdict": row["verdict"],
            }
            for row in rows.to_dict("records")
        ]
    return tables


def _span_or_none(low: float, high: float) -> str:
    from tl_skillneurons.report.further import span

    return "" if math.isnan(low) else span(low, high)


def _notes(curve: "SteeringCurve", task: "Task", asked: "Asked", n_texts: int) -> list[str]:
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
        *(_RIVAL_NOTES if len(curve.rivals) else ()),
    ]


def _spelled(curve: "SteeringCurve", how: str) -> list[str]:
    return [f"{dose:+g}" if how == "shift" else f"{dose:g}" for dose in curve.settings["doses"]]


def _beside(
    row: dict[Any, Any], doses: dict[float, str], times: int = 1, kinds: Sequence[str] = ("random", "matched")
) -> dict[str, Any]:
    from tl_skillneurons.report.further import fraction, span

    told = {"dose": doses[row["dose"]], "value": times * row["value"]}
    told["change, 95 %"] = span(times * row["change_low"], times * row["change_high"])
    for kind in kinds:
        p = fraction(row[f"p_{kind}"], round(1 / row[f"smallest_p_{kind}"]) - 1)
        told[kind] = f"{span(times * row[f'{kind}_min'], times * row[f'{kind}_max'])}, p {p}"
    return told


def _short(text: str, longest: int) -> str:
    one_line = " ".join(text.split())
    return one_line if len(one_line) <= longest else f"{one_line[: longest - 3]}..."
