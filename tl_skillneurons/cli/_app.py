"""The command itself, what it knows without a command, and how a function becomes one of its commands."""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import MISSING, fields
from typing import Annotated, Any, get_type_hints

import typer
from typer.models import ArgumentInfo

from tl_skillneurons.cli._errors import OWN_WORDS, errors_in_one_line

app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False)

Command = Callable[..., None]


def command(name: str, called: Mapping[str, str]) -> Callable[[Command], Command]:
    """Make a command of a function that takes dataclasses, each field of which is an option.

    The dataclass's docstring heads its options in the help.

    Args:
        called: What parameters of Python functions are called here, beside those that have their option's own name.
    """

    def register(function: Command) -> Command:
        groups = get_type_hints(function)
        groups.pop("return", None)
        owner = {field.name: group for group, kind in groups.items() for field in fields(kind)}
        parameters = [_parameter(kind, field) for kind in groups.values() for field in fields(kind)]
        words = {one.name: _spelled(one) for one in parameters} | dict(called)
        OWN_WORDS[name] = words

        def run(**given: Any) -> None:
            values: dict[str, dict[str, Any]] = {group: {} for group in groups}
            for one, value in given.items():
                values[owner[one]][one] = value
            with errors_in_one_line(words):
                function(**{group: kind(**values[group]) for group, kind in groups.items()})

        run.__doc__ = function.__doc__
        run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]  # read by inspect
        run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
        app.command(name)(run)
        return function

    return register


def _parameter(kind: Any, field: Any) -> inspect.Parameter:
    annotated = get_type_hints(kind, include_extras=True)[field.name]
    annotated.__metadata__[0].rich_help_panel = kind.__doc__
    default = inspect.Parameter.empty if field.default is MISSING else field.default
    return inspect.Parameter(
        field.name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotated
    )


def _spelled(parameter: inspect.Parameter) -> str:
    """How a user writes a parameter: an option's own spelling, an argument's name in the help."""
    said = parameter.annotation.__metadata__[0]
    if isinstance(said, ArgumentInfo):
        return said.metavar or parameter.name.upper()
    return (said.param_decls or (f"--{parameter.name.replace('_', '-')}",))[0]


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
    """Find skill neurons of language models with TransformerLens, beside their chance level and controls.

    Every other command goes on with the folder of a run of find.
    """
