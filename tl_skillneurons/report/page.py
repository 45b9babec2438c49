"""The page of a run: one self-contained file to look at, from the verdicts to every single neuron.

Nothing is loaded from anywhere: plotly's script stands in the file once, styles and numbers are in it, and its policy
forbids the rest. Every text, label and name is escaped by the template engine. Without scripts the verdicts and all
tables are there.
"""

import os
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from tl_skillneurons._files import package_version, write_whole
from tl_skillneurons.find.findings import Findings
from tl_skillneurons.plots.look import graph_objects, theme
from tl_skillneurons.report.page_parts import (
    about_run,
    asked_later,
    neuron_table,
    prompt_table,
    readable_table,
    settings_of_run,
    title_of,
    verdict_rows,
)
from tl_skillneurons.report.pictures import pictures_of
from tl_skillneurons.report.profile_sections import profile_sections

PAGE = "report.html"


def write_page(findings: Findings, path: str | os.PathLike[str]) -> Path:
    """Write the page of a run, whole or not at all.

    Args:
        findings: Of :func:`~tl_skillneurons.find_skill_neurons`, or read by :func:`~tl_skillneurons.find.load_run`.
        path: The file, such as ``run/report.html``; of a folder, ``report.html`` in it.

    Returns:
        The file's path.

    Raises:
        ImportError: Without plotly.

    Example:
        >>> skn.report.write_page(skn.find.load_run("run"), "report.html")
    """
    path = Path(path)
    path = path / PAGE if path.is_dir() else path
    return write_whole(path, page_of(findings))


def page_of(findings: Findings) -> str:
    """The page as text."""
    graph_objects()  # says what to install before anything is drawn
    stopped = findings.stopped
    pictures = [] if stopped else pictures_of(findings)
    profiles = None if stopped else profile_sections(findings.profiles, findings.task)
    return (
        _environment()
        .get_template("page.html.j2")
        .render(
            version=package_version(),
            title=title_of(findings),
            about=about_run(findings),
            css=_part("style.css"),
            script=_part("page.js"),
            plotly=_plotly() if pictures else "",
            themes={"light": _theme(False), "dark": _theme(True)},
            verdicts=verdict_rows(findings),
            majority=f"{findings.answers.majority:.3f} of the texts",
            prompts=prompt_table(findings),
            readable=None if stopped else readable_table(findings),
            significant="" if stopped else _significant(findings),
            pictures=pictures,
            figures={one.name: one.figure for one in pictures},
            neurons=None if profiles is None else neuron_table(findings, profiles),
            profiles=profiles,
            asked=asked_later(findings),
            settings=settings_of_run(findings),
        )
    )


def _significant(found: Findings) -> str:
    n, every = found.readability.n_significant, found.scores.predictivity.numel()
    return (
        f"{n:,} of {every:,} neurons are beyond what the best of all reaches by luck: a label can be read off each of "
        "them better than chance explains. Thousands usually can; that a label can be read does not say that the model "
        "reads it."
    )


def _theme(dark: bool) -> dict[str, Any]:
    """The theme on the page's own ground."""
    chosen = theme(dark=dark).to_plotly_json()
    clear = {"paper_bgcolor": "rgba(0,0,0,0)", "plot_bgcolor": "rgba(0,0,0,0)"}
    return {**chosen, "layout": {**chosen["layout"], **clear}}


@cache
def _environment() -> Environment:
    return Environment(
        loader=PackageLoader("tl_skillneurons.report", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def _part(name: str) -> Markup:
    """A file beside the templates, as it is."""
    return Markup((Path(__file__).parent / "templates" / name).read_text(encoding="utf-8"))


def _plotly() -> Markup:
    from plotly.offline import get_plotlyjs

    return Markup(get_plotlyjs())
