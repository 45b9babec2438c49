"""The command itself, and what it knows without a command."""

from typing import Annotated

import typer

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)


def _version(asked: bool) -> bool:
    if asked:
        from importlib.metadata import version

        print(version("tl_skillneurons"))
        raise typer.Exit
    return asked


@app.callback()
def main(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_version, is_eager=True, help="Print the version, and leave."),
    ] = False,
) -> None:
    """Find skill neurons of language models with TransformerLens, beside their chance level and controls."""
