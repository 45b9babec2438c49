"""``tl-skillneurons report``: what a finished run found, again."""

from tl_skillneurons.cli._again import print_json
from tl_skillneurons.cli._app import command
from tl_skillneurons.cli._early import require_run
from tl_skillneurons.cli._options import ARun, Shown
from tl_skillneurons.cli._page import page_of_run


@command("report", {})
def report(where: ARun, shown: Shown) -> None:
    """Print what a finished run found; the folder may be read-only, and no model is loaded."""
    require_run(where.run)

    from tl_skillneurons.find.folder import load_run
    from tl_skillneurons.report.further import answers_in, show_answer
    from tl_skillneurons.report.terminal import numbers, show

    findings = load_run(where.run)
    answers = answers_in(where.run)
    if shown.json:
        asked = [
            {"command": one.command, "settings": one.settings, "numbers": one.numbers} for one in answers
        ]
        print_json({"run": str(where.run), **numbers(findings), "asked": asked})
        return

    from rich.console import Console

    console = Console()
    show(findings, console)
    for answer in answers:
        show_answer(answer, console)
    if (said := page_of_run(findings)) is not None:
        console.print(said, soft_wrap=True)
