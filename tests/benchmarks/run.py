"""How fast the package is, and how much memory it takes, beside what a competent user would run instead.

    pip install -e ".[bench]" && python tests/benchmarks/run.py

Each row is measured in a fresh process. Its two sides take turns in that process on the same threads, in
float32, on the same texts in the same batches; the ratio is taken pair by pair, and the table gives the median
with the lowest and the highest. Peak memory is the kernel's high-water mark during a side, less what was
resident before it (the models and the data), the largest of all pairs; the rows about memory tell a whole
process instead. Against PEFT, some typical steps of a run are timed and the rest extrapolated; the JSON says
how many, and holds every time measured.

What the numbers don't show: any machine but this one, a GPU, other dtypes, other lengths of text, or how good the
prompts are. The peer of ``scoring`` and ``scoring-prompts`` reads nothing: no tool that gives scores can be
faster by more than that ratio. PEFT puts its virtual tokens before the text, where no text can be cached; that
it trains something else is the point of the comparison, not noise in it.
"""

import json
import os
import platform
import statistics
import sys
from dataclasses import asdict
from datetime import datetime, timezone
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

import psutil
import torch
import typer
from measure import middle, say
from rich.console import Console
from rich.table import Table
from rows import ROWS, Row, in_own_process
from setups import QUICK, Setting, Sizes, default_data

PACKAGES = ("torch", "transformers", "transformer-lens", "peft", "datasets", "hprobes")
CAPTION = (
    "ratio: >= rows, peer / ours (how many times faster); <= rows, ours / peer (what is left to pay). Median of the "
    "pairs, lowest to highest. Peak memory: above what stood before, except in the rows about memory."
)


def main(
    only: Annotated[
        list[str] | None, typer.Option(help=f"A row; give it again for more. {', '.join(ROWS)}.")
    ] = None,
    pairs: Annotated[int, typer.Option(min=1, help="Pairs of each row.")] = 3,
    quick: Annotated[bool, typer.Option(help="Tiny sizes, to see whether it runs; no measurement.")] = False,
    threads: Annotated[int | None, typer.Option(min=1, help="Threads of both sides.")] = None,
    sst2: Annotated[str | None, typer.Option(help="SST-2: a folder, or a data set of the hub.")] = None,
    imdb: Annotated[str | None, typer.Option(help="IMDB: a folder, or a data set of the hub.")] = None,
    ag_news: Annotated[str | None, typer.Option(help="AG News: a folder, or a data set of the hub.")] = None,
    json_path: Annotated[Path, typer.Option("--json", help="Where to write it all.")] = Path(
        "benchmark.json"
    ),
) -> None:
    """Measure the rows, print one table, and write everything as JSON."""
    names = [name for given in only or ROWS for name in given.split(",")]
    unknown = [name for name in names if name not in ROWS]
    if unknown:
        raise typer.BadParameter(f"there is no row {unknown[0]!r}; the rows are {', '.join(ROWS)}")
    setting = Setting(
        sst2=sst2 or default_data("sst2"),
        imdb=imdb or default_data("imdb"),
        ag_news=ag_news or default_data("ag_news"),
        n_pairs=pairs,
        n_threads=threads or torch.get_num_threads(),
        sizes=QUICK if quick else Sizes(),
    )
    report = {"machine": machine(setting.n_threads), "setting": describe(setting, quick), "rows": {}}
    if os.getloadavg()[0] > 0.5:
        say(f"other processes are running (load average {os.getloadavg()[0]:.1f}): the ratios will scatter")
    for number, name in enumerate(names, start=1):
        say(f"{name} ({number} of {len(names)}): {ROWS[name].what} / {ROWS[name].peer}")
        report["rows"][name] = measured(ROWS[name], name, setting, quick)
        json_path.write_text(json.dumps(report, indent=1) + "\n")  # a long run that is stopped keeps its rows
    Console(width=None if sys.stdout.isatty() else 150).print(table(report["rows"], quick))
    say(f"everything measured is in {json_path}")
    if any("error" in row for row in report["rows"].values()):
        raise typer.Exit(1)


def measured(row: Row, name: str, setting: Setting, quick: bool) -> dict[str, Any]:
    """One row as it stands in the JSON; a row that fails says so and leaves the others alone."""
    described = {"what": row.what, "peer is": row.peer, "aim": f"{'>=' if row.faster else '<='} {row.aim}"}
    if row.needs is not None and find_spec(row.needs) is None:
        return {
            **described,
            "skipped": f"{row.needs} is not installed: pip install {row.needs}, on Python 3.11",
        }
    start = datetime.now(timezone.utc)
    load = os.getloadavg()
    try:
        result = in_own_process(name, setting)
    except RuntimeError as error:
        return {**described, "error": str(error)}
    ratio = statistics.median(result["ratios"])
    return {
        **described,
        "ratio": ratio,
        "ratio_is": "peer / ours" if row.faster else "ours / peer",
        "ratio_range": [min(result["ratios"]), max(result["ratios"])],
        "met": None if quick else (ratio >= row.aim if row.faster else ratio <= row.aim),
        **result,
        "load_average": {"before": load, "after": os.getloadavg()},
        "started": start.isoformat(timespec="seconds"),
        "minutes": (datetime.now(timezone.utc) - start).total_seconds() / 60,
    }


def machine(n_threads: int) -> dict[str, Any]:
    """What it ran on."""
    return {
        "cpu": cpu_model(),
        "cores": {"physical": psutil.cpu_count(logical=False), "logical": psutil.cpu_count()},
        "threads": n_threads,
        "ram_gb": round(psutil.virtual_memory().total / 1e9, 1),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        **{package: version(package) for package in PACKAGES if find_spec(package.replace("-", "_"))},
        "dtype": "float32",
        "load_average": os.getloadavg(),
    }


def cpu_model() -> str:
    """The processor's name where the system tells it."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def describe(setting: Setting, quick: bool) -> dict[str, Any]:
    """The setting as it stands in the JSON: the data by name, wherever it lies."""
    data = {name: Path(getattr(setting, name)).name for name in ("sst2", "imdb", "ag_news")}
    return {**asdict(setting), **data, "quick": quick}


def table(rows: dict[str, dict[str, Any]], quick: bool) -> Table:
    """The rows as people read them."""
    title = "quick: shows that it runs, measures nothing" if quick else None
    shown = Table(title=title, caption=CAPTION, caption_justify="left")
    for column in ("what", "ours", "peer", "ratio", "peak memory", "aim", "met?"):
        shown.add_column(column, justify="left" if column == "what" else "right")
    for row in rows.values():
        what = f"{row['what']}\n  / {row['peer is']}"
        if "skipped" in row:
            shown.add_row(f"{what}\n  {row['skipped']}", "", "", "skipped", "", row["aim"], "-")
            continue
        if "error" in row:
            shown.add_row(what, "", "", "failed", "", row["aim"], "no")
            continue
        low, high = row["ratio_range"]
        sides = [amount(middle(row[side]["values"]), row["unit"]) for side in ("ours", "peer")]
        if row["extrapolated"]:
            sides[1] += " *"
        peaks = [amount(most(row[side]["peak_bytes"]), "bytes") for side in ("ours", "peer")]
        if row["unit"] == "bytes":
            peaks = sides
        met = "-" if row["met"] is None else ("yes" if row["met"] else "no")
        ratio = f"{row['ratio']:.3g} ({low:.3g} to {high:.3g})"
        shown.add_row(what, *sides, ratio, " / ".join(peaks), row["aim"], met)
    if any(row.get("extrapolated") for row in rows.values()):
        shown.caption = f"{CAPTION} *: extrapolated from some steps."
    return shown


def most(values: list[int | None]) -> int | None:
    """The largest, ``None`` where something was not measured."""
    return None if not values or None in values else max(values)


def amount(value: float | None, unit: str) -> str:
    """A time or a size, short."""
    if value is None:
        return "-"
    if unit == "bytes":
        return f"{value / 1e9:.2f} GB" if value >= 1e9 else f"{value / 1e6:.0f} MB"
    if value >= 120:
        return f"{value / 60:.1f} min"
    return f"{value:.2f} s" if value >= 1 else f"{1000 * value:.0f} ms"


if __name__ == "__main__":
    typer.run(main)
