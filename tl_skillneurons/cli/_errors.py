"""What a user can get wrong, told in the command's own words."""

import re
import sys
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

OWN_WORDS: dict[str, dict[str, str]] = {}
"""Of each command: what a parameter of the Python functions is called there."""

_SAID_OF = r" must | can't | field '| column '"
"""What follows a parameter in a message, where its name is a word of its own as well ("model", "data", "label")."""


def in_own_words(message: str, words: Mapping[str, str]) -> str:
    """The message with a command's options in the place of Python's parameters.

    A name with an underscore is a parameter wherever it stands by itself; a plain word where something is said of it,
    or where it is given something.

    Example:
        >>> in_own_words("label_words must be ...; no label word", {"label_words": "--label-words"})
        '--label-words must be ...; no label word'
        >>> in_own_words("seed must be 0; give seed=0, no seed", {"seed": "--seed"})
        '--seed must be 0; give --seed 0, no seed'
    """
    if not words:
        return message
    for phrase in words:
        if "'" in phrase or "=" in phrase:  # not a name, but what is said
            message = message.replace(phrase, words[phrase])
    names = "|".join(sorted(map(re.escape, words), key=len, reverse=True))
    free = rf"(?<![\w.\-/'\",])({names})\b"
    message = re.sub(rf"{free}=(?=[\d'\"{{\[(])", lambda found: f"{words[found[1]]} ", message)
    message = re.sub(rf"{free}=(?= )", lambda found: words[found[1]], message)
    message = re.sub(rf"{free}(?={_SAID_OF})", lambda found: words[found[1]], message)
    spelled = "|".join(re.escape(name) for name in words if "_" in name or " " in name)
    if not spelled:
        return message
    return re.sub(rf"(?<![\w.\-])({spelled})\b(?!\()", lambda found: words[found[1]], message)


@contextmanager
def errors_in_one_line(words: Mapping[str, str]) -> Iterator[None]:
    """What a user can get wrong ends in one clear sentence and exit code 2; an interrupt says how to go on."""
    try:
        with warnings.catch_warnings():
            warnings.showwarning = lambda message, *_, **__: tell("Note:", "yellow", message, words)
            yield
    except KeyboardInterrupt:
        print("Interrupted. The same command goes on where it stopped.", file=sys.stderr)
        sys.exit(130)
    except (ValueError, TypeError, OSError, ImportError, RuntimeError) as error:
        tell("Error:", "red", error, words)
        sys.exit(2)


def tell(what: str, colour: str, message: object, words: Mapping[str, str] | None = None) -> None:
    """One line on stderr, as it is."""
    from rich.console import Console

    from tl_skillneurons._terminal import shown

    said = shown(what, colour) + shown(f" {in_own_words(str(message), words or {})}")
    Console(stderr=True).print(said, soft_wrap=True)
