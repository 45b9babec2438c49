"""Do the tests err as rarely as they promise, and do they find what is there? Simulated, and printed as one table.

    python tests/calibration/run.py            # 500 shuffles of each, some minutes on one core
    python tests/calibration/run.py --quick    # 20 of each
    python tests/calibration/run.py --real     # and movie reviews through MiniLM of random weights

Each row is one test in one setting: how often it erred where nothing is there, with the exact 95 % interval
(Clopper-Pearson), and how often it found something planted. An error whose whole interval lies above the nominal one is
measured again on four times as many fresh shuffles, which decide: of some fifty rows one or the other is out by chance.
The exit status is 1 if one still is. Of rows noted FAULT nothing is required: they
show what a test does that forgets what belongs together, repeats its controls, or leaves weights behind.

What is planted: a neuron that is right on 0.65 of the units; differences positive in 0.65 of them; 0.65 of the changed
answers lost; for equivalence, two runs that are equal but for 0.02 of the units; beside controls, neurons of accuracy
0.65; for a mean over prompts, 0.4 of a text's standard deviation; for a fraction, one of 0.4 beside noise as large as
the gap.
"""

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from calibration_tests import Row, all_rows

from tl_skillneurons.stats import clopper_pearson

HEAD = ("setting", "test", "unit", "nominal", "error", "95 % interval", "power", "note")
WIDTHS = (24, 24, 22, 7, 6, 16, 6, 0)


@dataclass(frozen=True)
class Result:
    """What one row measured."""

    row: Row
    n: int
    n_wrong: int
    n_found: int | None
    again: bool = False

    @property
    def interval(self) -> tuple[float, float]:
        return clopper_pearson(self.n_wrong, self.n)

    @property
    def too_high(self) -> bool:
        return not self.row.note and self.interval[0] > self.row.nominal

    def __str__(self) -> str:
        low, high = self.interval
        notes = [self.row.note, f"again, {self.n} shuffles" if self.again else ""]
        notes.append("TOO HIGH" if self.too_high else "")
        cells = (
            self.row.setting,
            self.row.test,
            self.row.unit,
            f"{self.row.nominal:.3f}",
            f"{self.n_wrong / self.n:.3f}",
            f"{low:.3f} to {high:.3f}",
            "" if self.n_found is None else f"{self.n_found / self.n:.2f}",
            "; ".join(note for note in notes if note),
        )
        return line(cells)


def line(cells: Sequence[str]) -> str:
    """One line of the table."""
    return "  ".join(cell.ljust(width) for cell, width in zip(cells, WIDTHS, strict=True)).rstrip()


def measured(row: Row, n: int, seed: int) -> Result:
    """The row on ``n`` shuffles, and on ``4 n`` others where its error is too high."""
    first = Result(row, n, *row.measure(n, seed))
    if not first.too_high:
        return first
    return replace(Result(row, 4 * n, *row.measure(4 * n, seed + 500_000)), again=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table; 1 if an error is too high, else 0."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="20 shuffles of each in place of 500")
    parser.add_argument("--real", action="store_true", help="also MiniLM of random weights, 100 shuffles")
    given = parser.parse_args(arguments)
    n, began = (20 if given.quick else 500), time.perf_counter()
    print(line(HEAD), flush=True)
    n_high = 0
    work = [(row, n) for row in all_rows()]
    if given.real:
        from calibration_real import real_rows  # loads a model

        work += [(row, 100) for row in real_rows()]
    for number, (row, shuffles) in enumerate(work):
        result = measured(row, shuffles, seed=1_000_000 * (number + 1))
        n_high += result.too_high
        print(result, flush=True)
    print(f"{n} shuffles of each row, {time.perf_counter() - began:.0f} s; {n_high} errors too high")
    return int(n_high > 0)


if __name__ == "__main__":
    torch.set_num_threads(1)
    sys.exit(main())
