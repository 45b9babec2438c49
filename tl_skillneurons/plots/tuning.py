"""How prompts were tuned, and how predictivity came about over steps and over checkpoints."""

from collections.abc import Sequence
from html import escape
from typing import Any

import pandas as pd

from tl_skillneurons.plots.look import COLOURS, DASHES, SERIES, SYMBOLS, figure_of, told
from tl_skillneurons.prompts.soft_prompt import SoftPrompt
from tl_skillneurons.studies.checkpoints.comparison import CheckpointComparison
from tl_skillneurons.studies.trajectory import PromptTrajectory


def plot_tuning(prompts: SoftPrompt | Sequence[SoftPrompt]) -> Any:
    """Loss and accuracy of each prompt at each evaluation of its tuning.

    Args:
        prompts: Tuned ones; a prompt without a history (of another library) is left out.

    Returns:
        A plotly ``Figure``; the step whose prompt was kept is marked with a star.

    Raises:
        ValueError: When no prompt has a history.
        ImportError: Without plotly.

    Example:
        >>> skn.plots.plot_tuning(skn.fit_soft_prompts(model, task, seeds=range(2)))
    """
    several = [prompts] if isinstance(prompts, SoftPrompt) else list(prompts)
    known = [(number, prompt) for number, prompt in enumerate(several) if prompt.history]
    if not known:
        raise ValueError("plot_tuning draws histories of tuning, and none of these prompts has one")
    figure = figure_of(1, 2, horizontal_spacing=0.1)
    for number, prompt in known:
        look = _look(number)
        history = pd.DataFrame(prompt.history)
        seed = "" if prompt.seed is None else f", seed {prompt.seed}"
        name = f"prompt {number}{seed}"
        kept = history[history.step == prompt.provenance.get("best_step")]
        for column, what in enumerate(("loss", "accuracy"), start=1):
            at = {"row": 1, "col": column, "legendgroup": name}
            figure.add_scatter(
                x=history.step.tolist(),
                y=history[what].tolist(),
                mode="lines+markers",
                name=name,
                showlegend=column == 1,
                hovertemplate=f"step %{{x}}: {what} %{{y:.3f}}",
                **look,
                **at,
            )
            figure.add_scatter(
                x=kept.step.tolist(),
                y=kept[what].tolist(),
                mode="markers",
                marker={"symbol": "star", "size": 15, "color": look["line"]["color"]},
                name=f"kept ({name})",
                showlegend=False,
                hovertemplate="kept: step %{x}, %{y:.3f}",
                **at,
            )
    figure.update_xaxes(title_text="step")
    figure.update_yaxes(title_text="held-back loss (nats)", row=1, col=1)
    figure.update_yaxes(title_text="held-back accuracy", row=1, col=2)
    return told(
        figure,
        "How the prompts were tuned",
        "Loss and accuracy on the part of train that was held back, at each evaluation; the star is the prompt that "
        "was kept.",
        "Not shown: accuracy on examples that chose nothing. The best of several evaluations flatters itself.",
        height=320,
    )


def plot_trajectory(trajectory: PromptTrajectory) -> Any:
    """Best predictivity beside its level of luck, the final top on ``report`` beside random neurons, and the prompt's
    accuracy, at each kept step.

    Args:
        trajectory: What :func:`~tl_skillneurons.studies.prompt_trajectory` gave.

    Returns:
        A plotly ``Figure`` of three panels with a line per prompt.

    Raises:
        ImportError: Without plotly.

    Example:
        >>> skn.studies.prompt_trajectory(model, prompts, task).plot()
    """
    panels = (
        ("on select", (("best", "best neuron", "skill"), ("level", "best by luck, 5 %", None))),
        (
            "on report",
            (("top_on_report", "final top", "skill"), ("random_on_report", "random neurons", "random")),
        ),
        ("the prompt", (("accuracy", "prompt", "label 1"),)),
    )
    figure = figure_of(
        1, 3, shared_yaxes=True, column_titles=[words for words, _ in panels], horizontal_spacing=0.03
    )
    for column, (_, lines) in enumerate(panels, start=1):
        for number, (prompt, own) in enumerate(trajectory.to_dataframe().groupby("prompt")):
            for name, words, colour in lines:
                figure.add_scatter(
                    x=own.step.tolist(),
                    y=own[name].tolist(),
                    mode="lines" if name == "level" else "lines+markers",
                    line={
                        "color": None if colour is None else COLOURS[colour],
                        "dash": "dash" if name == "level" else DASHES[number % len(DASHES)],
                        "width": 1 if name == "level" else 2,
                    },
                    marker={"symbol": SYMBOLS[number % len(SYMBOLS)], "size": 6},
                    name=words,
                    legendgroup=words,
                    showlegend=number == 0 and not any(trace.name == words for trace in figure.data),
                    hovertemplate=f"prompt {prompt}, step %{{x}}: %{{y:.3f}}",
                    row=1,
                    col=column,
                )
    figure.update_layout(legend_y=1.1)  # above the titles of the columns
    figure.update_xaxes(title_text="step")
    figure.update_yaxes(title_text="share right", row=1, col=1)
    n = trajectory.steps.prompt.nunique()
    return told(
        figure,
        f"How predictivity came about, {n} {'prompt' if n == 1 else 'prompts'}",
        "Every neuron scored with the prompt as it was at each step; symbols tell prompts apart.",
        "Not shown: that tuning made the neurons. Most of it may be there at step 0, with the initial prompt.",
        height=340,
    )


def plot_checkpoints(comparison: CheckpointComparison) -> Any:
    """The same discovery in several models: what is found in each beside its luck, and agreement with the last.

    Args:
        comparison: What :func:`~tl_skillneurons.studies.over_checkpoints` gave.

    Returns:
        A plotly ``Figure`` of two panels.

    Raises:
        ImportError: Without plotly.

    Example:
        >>> skn.studies.over_checkpoints(models, task).plot()
    """
    frame = comparison.to_dataframe()
    where = [escape(str(name)) for name in frame.checkpoint]
    figure = figure_of(1, 2, horizontal_spacing=0.1)
    lines = (
        ("accuracy", "prompts, report", "label 1", "solid", "square"),
        ("best", "best neuron, select", "skill", "solid", "diamond"),
        ("level", "best by luck, 5 %", None, "dash", "line-ew-open"),
        ("top_report", "its best, report", "skill", "dot", "circle"),
        ("random_report", "random neurons, report", "random", "dot", "circle-open"),
    )
    for name, words, colour, dash, symbol in lines:
        figure.add_scatter(
            x=where,
            y=frame[name].tolist(),
            mode="lines+markers",
            line={"dash": dash, "color": None if colour is None else COLOURS[colour]},
            marker={"symbol": symbol, "size": 8},
            name=words,
            hovertemplate=f"%{{x}}: {words} %{{y:.3f}}",
            row=1,
            col=1,
        )
    middle = (frame.null_low + frame.null_high) / 2
    figure.add_scatter(
        x=where,
        y=middle.tolist(),
        mode="markers",
        marker={"symbol": "line-ew-open", "size": 1, "color": COLOURS["random"]},
        error_y={"type": "data", "array": (frame.null_high - middle).tolist(), "thickness": 7, "width": 0,
                 "color": COLOURS["random"]},
        name="middle 95 % under permuted labels",
        hoverinfo="skip",
        row=1,
        col=2,
    )  # fmt: skip
    figure.add_scatter(
        x=where,
        y=frame.spearman.tolist(),
        mode="lines+markers",
        line={"color": SERIES[0]},
        marker={"symbol": "diamond", "size": 8},
        name="Spearman with the last",
        hovertemplate="%{x}: %{y:.3f}",
        row=1,
        col=2,
    )
    figure.update_xaxes(type="category", title_text="checkpoint")
    figure.update_yaxes(title_text="share right", row=1, col=1)
    figure.update_yaxes(title_text="Spearman's correlation", row=1, col=2)
    return told(
        figure,
        "Skill neurons by checkpoint",
        "Left: what each checkpoint's prompts and best neurons get right, beside luck and random neurons; right: how "
        "far its scores agree with the last one's.",
        "Not shown: that what is read is used; and the last checkpoint agrees with itself.",
        height=360,
    )


def _look(number: int) -> dict[str, Any]:
    return {
        "line": {"color": SERIES[number % len(SERIES)], "dash": DASHES[number % len(DASHES)]},
        "marker": {"symbol": SYMBOLS[number % len(SYMBOLS)], "size": 7},
    }
