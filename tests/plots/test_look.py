"""Every picture says what is seen and what isn't, carries units, and holds whatever names it is given as text."""

import re
import sys
from types import SimpleNamespace

import pandas as pd
import pytest
import torch

import tl_skillneurons as skn
from tl_skillneurons import plots
from tl_skillneurons.interventions import Condition, Measured, NeuronAttribution
from tl_skillneurons.stats import Units
from tl_skillneurons.studies.steering.curve import rows_of

HOSTILE = "<script>alert(1)</script> <b>&amp; [/red] 🎬 \u202eabc"
SHAPE = (2, 3, 4, 30)  # prompts, layers, positions, neurons


@pytest.fixture(scope="module")
def scores():
    generator = torch.Generator().manual_seed(0)
    correct = torch.randint(4, 17, SHAPE, generator=generator)
    zeros = torch.zeros(SHAPE, dtype=torch.float64)
    return skn.NeuronScores(zeros, zeros, zeros, correct, 20, 20, (10, 10))


@pytest.fixture(scope="module")
def panel():
    """Two sizes of a set, with two draws of two controls, for two prompts."""
    generator = torch.Generator().manual_seed(1)
    kinds = [("chosen", 0), ("random", 0), ("random", 1), ("matched", 0), ("matched", 1)]
    conditions = tuple(
        Condition(HOSTILE, "prompt", f"{n}", kind, draw, n) for n in (3, 9) for kind, draw in kinds
    )
    answers = torch.randn(len(conditions) + 1, 2, 12, 2, generator=generator)
    outputs = {one.key: answers[k] for k, one in enumerate(conditions)}
    measured = Measured("task", "total", torch.arange(12) % 2, answers[-1], outputs)
    return skn.EffectPanel(conditions, (measured,), "report", {"n_random": 2})


@pytest.fixture(scope="module")
def tuned():
    history = [
        {"step": k, "loss": 0.7 - k / 100, "accuracy": 0.5 + k / 100, "train_loss": None} for k in (0, 10)
    ]
    told = {"best_step": 10}
    rows = torch.zeros(2, 4)
    return [
        skn.SoftPrompt(rows, placement="suffix", history=history, provenance=told, seed=seed)
        for seed in (0, 1)
    ]


@pytest.fixture(scope="module")
def trajectory():
    columns = "accuracy best level top_on_report random_on_report".split()
    rows = [
        {"prompt": p, "step": s, "kept": s == 10, **dict.fromkeys(columns, 0.6)}
        for p in (0, 1)
        for s in (0, 10)
    ]
    return skn.studies.PromptTrajectory(pd.DataFrame(rows))


@pytest.fixture(scope="module")
def checkpoints():
    columns = "accuracy best level top_report random_report null_low null_high spearman".split()
    rows = [{"checkpoint": name, **dict.fromkeys(columns, 0.6)} for name in ("step 0", HOSTILE)]
    return skn.studies.CheckpointComparison(pd.DataFrame(rows), pd.DataFrame(), {})


def agreement():
    return skn.scores.Agreement(
        torch.rand(4).double(),
        torch.rand(19, 4).double(),
        torch.tensor([1, 2, 0, 3]),
        torch.ones(19, 4, dtype=torch.int64),
        n_top=3,
    )


def writers():
    difference = torch.rand(5, 3, 4)
    found = SimpleNamespace(difference=difference, p_family=1 - difference)
    return SimpleNamespace(separation=found, neurons=range(5), labels=range(8), role="select")


def steering():
    """Two sets at two doses, with two draws of each control."""
    generator = torch.Generator().manual_seed(2)
    measures = ("class", HOSTILE, "cross_entropy")
    kinds = [("chosen", 0), ("random", 0), ("random", 1), ("matched", 0), ("matched", 1)]

    def values():
        return {name: torch.rand(9, generator=generator).double() for name in measures}

    steered = {(name, k, *kind): values() for name in ("a", HOSTILE) for k in (0, 1) for kind in kinds}
    rows, draws = rows_of(values(), steered, [0.0, 2.0], Units.single(9), 0)
    doses = pd.DataFrame(rows).assign(n_texts=9)
    settings = {"toward": 1, "positions": "text"}
    return skn.studies.SteeringCurve(doses, pd.DataFrame(draws), pd.DataFrame(), settings)


def every_figure(scores, panel, tuned, trajectory, checkpoints):
    attribution = NeuronAttribution(torch.rand(3, 30), torch.ones(4), {"direction": "denoise"})
    return {
        "plot_scores": scores.plot(),
        "plot_histogram": plots.plot_histogram(scores, scores.top(2)),
        "plot_positions": plots.plot_positions(scores, scores.top(5, per="model")),
        "plot_prompts": plots.plot_prompts(scores),
        "plot_read_and_drive": attribution.plot(scores),
        "plot_agreement": agreement().plot(),
        "plot_sizes": plots.plot_sizes(panel),
        "plot_effects": panel.plot(),
        "plot_heads": plots.plot_heads(writers()),
        "plot_tuning": plots.plot_tuning(tuned),
        "plot_steering": steering().plot(),
        "plot_trajectory": trajectory.plot(),
        "plot_checkpoints": checkpoints.plot(),
    }


def test_a_p_value_of_counted_draws_is_their_fraction_wherever_it_is_printed():
    from tl_skillneurons.plots.look import fraction
    from tl_skillneurons.report.further import spelled
    from tl_skillneurons.report.tables import table_of

    counted = {1 / 21: "1/21", 1 / 1001: "1/1001", 43 / 1001: "43/1001", 1 / 10_000: "1/10000", 1.0: "1"}
    for p_value, words in counted.items():
        assert fraction(p_value) == spelled(p_value, "p shared") == words
        assert table_of([{"p, family-wise": p_value}]).rows[0][0].text == words
    assert fraction(0.0312345) == "0.0312" and fraction(1e-9) == "1e-09"
    assert spelled(1 / 21, "share") == "0.048"


@pytest.fixture(scope="module")
def figures(scores, panel, tuned, trajectory, checkpoints):
    return every_figure(scores, panel, tuned, trajectory, checkpoints)


def test_there_is_a_figure_of_every_picture_that_the_room_offers(figures):
    assert set(figures) == {name for name in plots.__all__ if name.startswith("plot_")}


def test_every_picture_has_a_title_what_is_seen_what_is_not_and_names_on_its_axes(figures):
    for name, figure in figures.items():
        meta = figure.layout.meta
        assert set(meta) == {"title", "seen", "not_shown", "height"}, name
        assert meta["not_shown"].startswith("Not shown: ") and meta["seen"].endswith("."), name
        below = [one for one in figure.layout.annotations if one.name == "not shown"]
        assert len(below) == 1 and "Not shown" in below[0].text, name
        assert any(axis.title.text for axis in figure.select_yaxes()) or name == "plot_effects", name
        assert any(axis.title.text for axis in figure.select_xaxes()), name


def test_no_name_that_a_picture_is_given_is_read_as_a_tag(figures):
    """plotly reads tags in whatever it writes; only its own breaks, bold and small letters are there."""
    for name, figure in figures.items():
        written = figure.update_layout(meta=None).to_json()
        tags = set(re.findall(r"<[^>]*>", written.encode().decode("unicode_escape", "replace")))
        assert tags <= {"<br>", "<b>", "</b>", "<sup>", "</sup>", "<extra></extra>", "<extra>", "</extra>"}, (
            name
        )


def test_kinds_of_lines_and_dots_are_told_apart_without_their_colour(figures):
    for name in ("plot_sizes", "plot_effects", "plot_prompts", "plot_tuning", "plot_steering"):
        shown = [
            trace for trace in figures[name].data if trace.type == "scatter" and trace.showlegend is not False
        ]
        assert len({(trace.marker.symbol, trace.line.dash, trace.mode) for trace in shown}) == len(shown), (
            name
        )


def test_the_curve_stands_inside_the_draws_of_its_controls(panel):
    figure = plots.plot_sizes(panel, metrics=["logit_diff"])
    rows = panel.to_dataframe()
    pooled = rows[(rows.metric == "logit_diff") & (rows.prompt == "pooled")]
    line = next(trace for trace in figure.data if trace.name == "skill neurons")
    assert list(line.x) == [3, 9] and list(line.y) == pooled.value.tolist()
    assert [y + up for y, up in zip(line.y, line.error_y.array, strict=True)] == pytest.approx(
        (pooled.intact + pooled.change_high).tolist()
    )
    draws = panel.draws()
    dots = next(trace for trace in figure.data if trace.name == "random neurons")
    own = draws[(draws.metric == "logit_diff") & (draws.prompt == "pooled") & (draws.neurons == "random")]
    assert list(dots.y) == own.value.tolist() and len(dots.y) == 4
    assert "1/3" in figure.layout.meta["not_shown"]


def test_the_histogram_counts_every_neuron_once_and_the_chosen_among_them(scores):
    figure = plots.plot_histogram(scores, scores.top(2))
    every, chosen = figure.data
    assert sum(count or 0 for count in every.y) == 90 and sum(count or 0 for count in chosen.y) == 6


def test_a_cell_is_the_best_neuron_of_its_layer_at_one_position(scores):
    figure = plots.plot_positions(scores)
    accuracy = scores.accuracy[:, 1, 2]
    best = torch.maximum(accuracy, 1 - accuracy).mean(0)
    assert figure.data[0].z[1][2] == pytest.approx(float(best.max()))
    assert figure.data[0].customdata[1][2] == int(best.argmax())


def test_neurons_that_turn_their_sign_are_counted(scores):
    chosen = scores.top(4)
    figure = plots.plot_prompts(scores, chosen)
    first, second = scores.direction_by_prompt[:, chosen.layer, chosen.index]
    turned = int((first != second).sum())
    assert (
        len(figure.data[3].x) == turned and f"{turned} ({turned / 12:.0%}) turn" in figure.layout.meta["seen"]
    )


def test_the_dark_theme_changes_the_ink_of_what_has_no_colour_of_its_own():
    light, dark = plots.theme(), plots.theme(dark=True)
    assert light.layout.font.color != dark.layout.font.color
    assert list(dark.layout.colorway) == [dark.layout.font.color]


@pytest.mark.parametrize(
    ("draw", "message"),
    [
        (lambda scores: plots.plot_prompts(scores, one=2), r"one must be in \[0, 2\), got 2"),
        (lambda scores: plots.plot_sizes([]), "at least one panel, got none"),
        (
            lambda scores: plots.plot_tuning(skn.SoftPrompt(torch.zeros(1, 2), placement="suffix")),
            "none of these prompts has one",
        ),
        (
            lambda scores: plots.plot_read_and_drive(
                scores, NeuronAttribution(torch.rand(2, 3), torch.ones(2), {})
            ),
            r"of one model, got \[layer, neuron\] = \[3, 30\] and \[2, 3\]",
        ),
        (
            lambda scores: plots.plot_read_and_drive(
                scores, SimpleNamespace(driving=None, left_out={"effects": "no head"})
            ),
            r"these profiles know of no effects \(no head\)",
        ),
    ],
)
def test_what_can_not_be_drawn_is_refused(scores, draw, message):
    with pytest.raises(ValueError, match=message):
        draw(scores)


def test_one_prompt_has_no_other_to_be_compared_with(scores):
    alone = skn.NeuronScores(
        *(getattr(scores, n)[:1] for n in ("baseline", "std", "mean_abs", "correct")), 20, 20, (10, 10)
    )
    with pytest.raises(ValueError, match="these scores are of one; score several"):
        plots.plot_prompts(alone)


def test_a_missing_plotly_is_named_with_what_to_install(scores, monkeypatch):
    monkeypatch.setitem(sys.modules, "plotly", None)
    with pytest.raises(ImportError, match=r"pip install \"tl_skillneurons\[plots\]\""):
        scores.plot()
