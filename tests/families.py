"""Print what is checked of each family of models, on tiny random ones: ``python tests/families.py [name ...]``.

Each cell is "ok" or the reason for which what needs this is refused; below the table stands why.
"""

import sys
import warnings
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "support"))

import families
from transformers.utils import logging

import tl_skillneurons as skn
from tl_skillneurons.models.sites import config_refusal


def cells(family):
    """What came out for one family: each check with "ok" or why not, or why the family is refused."""
    refused = config_refusal(families.config_of(family))
    if refused is not None:
        return None, refused
    try:
        model = families.bridge(family)
    except Exception as error:  # a family that does not boot is refused as well, with the reason
        return None, f"TransformerLens does not boot it: {first_line(error)}"
    try:
        result = skn.models.verify(model)
    except Exception as error:
        return None, first_line(error)
    return {check.name: check.shown for check in result.checks}, None


def first_line(error):
    """What an error says, in one sentence."""
    return str(error).strip().partition("\n")[0].partition(". ")[0] or type(error).__name__


def table(families):
    """The rows to print: a family's cells, and the reasons below."""
    lines, reasons = [], []
    header = None
    for family in families:
        found, refused = cells(family)
        if found is None:
            lines.append(f"{family:<24} refused")
            reasons.append(f"{family}: {refused}")
            continue
        if header is None:
            header = f"{'family':<24} " + " ".join(f"{name:<13}" for name in found)
        short = {name: told if told == "ok" else told.partition(":")[0] for name, told in found.items()}
        lines.append(f"{family:<24} " + " ".join(f"{told:<13}" for told in short.values()))
        reasons += [f"{family}, {name}: {told}" for name, told in found.items() if told != "ok"]
    return "\n".join([header or "family", *lines, "", *reasons])


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    logging.set_verbosity_error()
    print(table(sys.argv[1:] or families.FAMILIES))
