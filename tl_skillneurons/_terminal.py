"""Names and texts as the terminal shows them: as they are, whatever brackets, colons or controls they hold."""

from rich.text import Text


def shown(text: object, style: str = "") -> Text:
    """``text`` for rich to print as it is: ``[red]`` is no colour, ``:heart:`` no emoji; a control is spelled out.

    Example:
        >>> shown("[/] is a label").plain
        '[/] is a label'
        >>> shown("a\\x1b[2Jb").plain
        'a\\\\x1b[2Jb'
    """
    written = str(text).encode("utf-8", "backslashreplace").decode()
    spelled = "".join(
        one if one.isprintable() or one in "\n\t" or ord(one) > 0x9F else repr(one)[1:-1] for one in written
    )
    return Text(spelled, style=style)
