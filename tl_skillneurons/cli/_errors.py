"""What a user can get wrong, told in the command's own words."""

import re
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

_OPTION_OF = {
    "label_words": "--label-words",
    "n_virtual_tokens": "--virtual-tokens",
    "n_prompts": "--prompts",
    "n_steps": "--steps",
    "batch_size": "--batch-size",
    "n_random": "--controls",
    "amount": "--top",
}
"""What a parameter of the Python functions is called here."""


def in_own_words(message: str) -> str:
    """The message with the command's options in the place of Python's parameters."""
    names = "|".join(_OPTION_OF)
    return re.sub(rf"(?<![\w.-])({names})\b(?!\()", lambda found: _OPTION_OF[found[1]], message)


@contextmanager
def errors_in_one_line() -> Iterator[None]:
    """What a user can get wrong ends in one clear sentence and exit code 2; an interrupt says how to go on."""
    try:
        with warnings.catch_warnings():
            warnings.showwarning = lambda message, *_, **__: tell("Note:", "yellow", message)
            yield
    except KeyboardInterrupt:
        print("Interrupted. The same command goes on where it stopped.", file=sys.stderr)
        sys.exit(130)
    except (ValueError, TypeError, OSError, ImportError, RuntimeError) as error:
        tell("Error:", "red", error)
        sys.exit(2)


def tell(what: str, colour: str, message: object) -> None:
    from rich.console import Console

    from tl_skillneurons._terminal import shown

    said = shown(what, colour) + shown(f" {in_own_words(str(message))}")
    Console(stderr=True).print(said, soft_wrap=True)
