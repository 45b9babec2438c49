"""Print what is checked of each family of models, on tiny random ones: ``python tests/families.py [name ...]``.

Each cell is "ok" or "refused"; below the table stands why. ``python tests/families.py --page`` writes the page of it,
``examples/models.md``, which README's list of families is held against.
"""

import sys
import warnings
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "support"))

import families
from transformers.utils import logging

import tl_skillneurons as skn
from tl_skillneurons.models.sites import config_refusal
from tl_skillneurons.models.verification import _CHECKS

CHECKS = (*_CHECKS, "special tokens")
PAGE = Path(__file__).parents[1] / "examples" / "models.md"
HEAD = """\
# Which models, and what is checked of them

Made by `python tests/families.py --page`: a tiny random model of each family, built from a config, compared with the
Hugging Face model inside it (`print(skn.models.verify(model))` shows the same of a model of yours). What is refused is
refused for what needs it, with the reason below the table; everything else can be used.
"""


def cells(family):
    """What came out for one family: each check with "ok" or why not, or why the family is refused."""
    refused = config_refusal(families.config_of(family))
    if refused is not None:
        return None, refused
    try:
        model = families.bridge(family)
    except Exception as error:  # a family that does not boot is refused as well, with the reason
        return None, f"it does not boot: {first_line(error)}"
    try:
        result = skn.models.verify(model)
    except Exception as error:
        return None, first_line(error)
    return {check.name: check.shown for check in result.checks}, None


def first_line(error):
    """What an error says, in one sentence."""
    return str(error).strip().partition("\n")[0].partition(". ")[0] or type(error).__name__


def rows_of(names):
    """Each family's cells, and the reasons for what is refused, each with those for which it is."""
    rows, reasons = {}, {}
    for family in names:
        found, refused = cells(family)
        if found is None:
            rows[family] = ["refused"] * len(CHECKS)
            reasons.setdefault(refused, []).append(family)
            continue
        rows[family] = ["ok" if told == "ok" else "refused" for told in found.values()]
        why = {}
        for check, told in found.items():
            if told != "ok":
                why.setdefault(told.removeprefix("refused: "), []).append(check)
        for reason, checks in why.items():
            reasons.setdefault(reason, []).append(f"{family} ({', '.join(checks)})")
    return rows, [f"{', '.join(those)}: {reason}" for reason, those in reasons.items()]


def table(names):
    """The rows to print, and the reasons below."""
    rows, reasons = rows_of(names)
    lines = [f"{family:<24} " + " ".join(f"{cell:<13}" for cell in row) for family, row in rows.items()]
    header = f"{'family':<24} " + " ".join(f"{name:<13}" for name in CHECKS)
    return "\n".join([header, *lines, "", *reasons])


def page(names):
    """The same as a page; a family that can't be used at all has its reason alone."""
    rows, reasons = rows_of(names)
    lines = [f"| {' | '.join(['family', *CHECKS])} |", "| --- " * (1 + len(CHECKS)) + "|"]
    lines += [f"| {' | '.join([f'`{family}`', *row])} |" for family, row in rows.items()]
    return "\n".join([HEAD, *lines, "", "Refused, and why:", "", *(f"- {one}" for one in reasons), ""])


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    logging.set_verbosity_error()
    if sys.argv[1:] == ["--page"]:
        PAGE.write_text(page(families.FAMILIES), encoding="utf-8")
    else:
        print(table(sys.argv[1:] or families.FAMILIES))
