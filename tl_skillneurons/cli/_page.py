"""The page of a run, written again whenever something was added to the run."""

import os
from importlib.util import find_spec
from typing import TYPE_CHECKING

from tl_skillneurons.cli._errors import tell

if TYPE_CHECKING:
    from rich.text import Text

    from tl_skillneurons.find.findings import Findings

_NEEDED = 'the page of a run needs plotly; install it with pip install "tl_skillneurons[plots]"'


def note_if_no_page() -> None:
    """Say before the work that there will be no page, and what it needs."""
    if find_spec("plotly") is None:
        tell("Note:", "yellow", f"no page will be written: {_NEEDED}")


def page_of_run(findings: "Findings") -> "Text | None":
    """Write the run's page, and say where it is or why there is none; nothing of a folder that can't be written."""
    from tl_skillneurons._terminal import shown
    from tl_skillneurons.report.page import PAGE, write_page

    path = findings.folder / PAGE
    if not os.access(findings.folder, os.W_OK):
        return shown("The page is ") + shown(path, "bold") + shown(".") if path.exists() else None
    try:
        return shown("The page to look at is ") + shown(write_page(findings, path), "bold") + shown(".")
    except ImportError as error:
        return shown(f"No page: {error}.")
