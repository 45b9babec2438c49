"""The command line, ``tl-skillneurons``; its commands stand in the modules of this room, one each.

Until a command runs, nothing but typer is imported, so help and mistakes take no time.
"""

from tl_skillneurons.cli import compare as compare
from tl_skillneurons.cli import diagnose as diagnose
from tl_skillneurons.cli import effects as effects
from tl_skillneurons.cli import find as find
from tl_skillneurons.cli import heads as heads
from tl_skillneurons.cli import neuron as neuron
from tl_skillneurons.cli import prune as prune
from tl_skillneurons.cli import report as report
from tl_skillneurons.cli import steer as steer
from tl_skillneurons.cli._app import app as app
