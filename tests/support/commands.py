"""The command as tests call it, in this process."""

from typer.testing import CliRunner

WORDS = "0=negative,1=positive"
QUICK = ["--virtual-tokens", "2", "--prompts", "2", "--steps", "8", "--batch-size", "8", "--top", "2"]


def ask(cli, *given):
    """What a command gives for these arguments."""
    return CliRunner().invoke(cli.app, [str(one) for one in given])


def told(result):
    """What it printed, however lines broke."""
    return " ".join(result.output.split())
