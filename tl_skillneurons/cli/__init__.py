"""The command line, ``tl-skillneurons``; its commands stand in the modules of this room, one each.

Until a command runs, nothing but typer is imported, so help and mistakes take no time.
"""

from tl_skillneurons.cli import find as find
from tl_skillneurons.cli._app import app as app
