"""The rows of the benchmark: what is measured, against what, and how good it should be.

Run as a script, it measures one row in a process of its own: ``python rows.py NAME SETTING.json RESULT.json``.
"""

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import measure
import torch
from hprobes_rows import foretelling
from measure import Measured
from scoring_rows import (
    ablation,
    peak_of_scoring,
    permutations,
    scoring_five_prompts,
    scoring_floor,
    scoring_stacked,
    scoring_verified,
)
from setups import Setting, Sizes, quiet
from tuning_rows import tuning_five_seeds, tuning_imdb, tuning_minilm, tuning_sst2
from writing_rows import writing


@dataclass(frozen=True)
class Row:
    """One row: ``faster`` rows tell peer / ours and want at least ``aim``, others ours / peer and at most it."""

    what: str
    peer: str
    aim: float
    faster: bool
    measure: Callable[[Setting], Measured]
    needs: str | None = None
    """A package that only this row needs."""


_IMPORT = "import time; start = time.perf_counter(); {}; print(time.perf_counter() - start)"
_HELP = """import sys
from tl_skillneurons.cli import app
sys.argv = ["tl-skillneurons", "find", "--help"]
from contextlib import redirect_stdout, suppress
with redirect_stdout(None), suppress(SystemExit):
    app()"""


def _seconds_of_import(statement: str) -> float:
    """As the program itself takes it, without the start of Python."""
    code = _IMPORT.format(statement)
    done = subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.PIPE, text=True)
    return float(done.stdout)


def _seconds_of_process(code: str) -> float:
    """A whole process, as somebody at a terminal waits for it."""
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start


def starting(
    ours: str, peer: str = "import transformer_lens", seconds: Callable[[str], float] = _seconds_of_import
) -> Callable[[Setting], Measured]:
    """What two pieces of code take, each in a Python of its own, after one of each that fills the disk's cache."""

    def run(setting: Setting) -> Measured:
        measured = Measured()
        sides = [(measured.ours, ours), (measured.peer, peer)]
        for _, code in sides:
            seconds(code)
        n_pairs = setting.n_pairs * setting.sizes.n_imports
        for number in range(n_pairs):
            for side, code in sides if number % 2 == 0 else sides[::-1]:
                side.values.append(seconds(code))
            measure.say_pair(measured, n_pairs)
        return measured

    return run


def memory(name: str) -> Callable[[Setting], Measured]:
    """Peak resident memory of a whole process that scores many examples, against one that scores few."""

    def run(setting: Setting) -> Measured:
        sizes = setting.sizes
        measured = Measured(unit="bytes")
        for _ in range(setting.n_pairs):
            for side, n in ((measured.ours, sizes.n_many), (measured.peer, sizes.n_few)):
                answer = in_own_process(f"score-{name}-{n}", setting)
                side.values.append(answer["peak"])
                side.peak_bytes.append(answer["peak above what stood before scoring"])
            measure.say_pair(measured, setting.n_pairs)
        measured.details = {"examples": [sizes.n_many, sizes.n_few]}
        return measured

    return run


ROWS = {
    "scoring": Row(
        "scoring, MiniLM, 16 virtual tokens", "bare encoder, same batches", 1.10, False, scoring_floor
    ),
    "scoring-stacked": Row(
        "scoring, MiniLM, 16 virtual tokens", "run_with_cache, stack, formula", 4, True, scoring_stacked
    ),
    "scoring-verified": Row(
        "scoring a verified model, MiniLM, 16 virtual tokens",
        "nothing verified",
        1.05,
        False,
        scoring_verified,
    ),
    "permutations": Row(
        "scoring with 1,000 label permutations, SmolLM2, 8 virtual tokens",
        "without",
        1.25,
        False,
        permutations,
    ),
    "scoring-prompts": Row(
        "scoring 5 prompts, SmolLM2, 8 virtual tokens",
        "bare decoder, KV cache of each text",
        1.15,
        False,
        scoring_five_prompts,
    ),
    "tuning": Row("tuning, SmolLM2, SST-2, 300 steps", "PEFT prompt tuning", 3, True, tuning_sst2),
    "tuning-imdb": Row(
        "tuning, SmolLM2, IMDB at 256 tokens, 300 steps", "PEFT prompt tuning", 12, True, tuning_imdb
    ),
    "tuning-seeds": Row(
        "tuning 5 seeds, SmolLM2, SST-2, 300 steps", "5 runs of PEFT", 5, True, tuning_five_seeds
    ),
    "tuning-minilm": Row(
        "tuning, MiniLM, SST-2, 300 steps", "inputs_embeds, BertForMaskedLM", 1.6, True, tuning_minilm
    ),
    "ablation-minilm": Row(
        "2% of neurons ablated, MiniLM, 32 texts", "no hooks", 1.05, False, ablation("minilm")
    ),
    "ablation-smollm2": Row(
        "2% of neurons ablated, SmolLM2, 32 texts", "no hooks", 1.05, False, ablation("smollm2")
    ),
    "writing": Row(
        "32 tokens after 8 texts, SmolLM2", "generate of Hugging Face", 1.15, False, writing(scaled=False)
    ),
    "writing-scaled": Row(
        "the same with 2% of neurons scaled", "generate of Hugging Face", 1.15, False, writing(scaled=True)
    ),
    "hprobes": Row(
        "neurons that foretell a wrong letter, SmolLM2, AG News",
        "hprobes as it comes",
        3,
        True,
        foretelling(shuffled=False, readout="both", ablate=True),
        needs="hprobes",
    ),
    "hprobes-shuffled": Row(
        "the same, choices shuffled",
        "hprobes that writes no answer",
        1,
        True,
        foretelling(shuffled=True, readout="logits", ablate=False),
        needs="hprobes",
    ),
    "import": Row(
        "import tl_skillneurons",
        "import transformer_lens",
        1.05,
        False,
        starting("import tl_skillneurons"),
    ),
    "import-names": Row(  # the package loads its modules when a name is first asked for
        "from tl_skillneurons import *",
        "import transformer_lens",
        1.05,
        False,
        starting("from tl_skillneurons import *"),
    ),
    "help": Row(
        "tl-skillneurons find --help",
        "the same after import torch",
        0.5,
        False,
        starting(_HELP, f"import torch\n{_HELP}", _seconds_of_process),
    ),
    "memory-minilm": Row("peak memory, scoring 5,000, MiniLM", "scoring 500", 1.05, False, memory("minilm")),
    "memory-smollm2": Row(
        "peak memory, scoring 5,000, SmolLM2", "scoring 500", 1.05, False, memory("smollm2")
    ),
}
"""The rows by name."""


def in_own_process(task: str, setting: Setting) -> dict:
    """What a fresh Python that runs :func:`main` on ``task`` hands back.

    Raises:
        RuntimeError: When it fails; its own message is on stderr.
    """
    with tempfile.TemporaryDirectory() as folder:
        given, answer = Path(folder) / "setting.json", Path(folder) / "answer.json"
        given.write_text(json.dumps(asdict(setting)))
        done = subprocess.run([sys.executable, __file__, task, given, answer], stdout=sys.stderr)
        if done.returncode or not answer.exists():
            raise RuntimeError(f"{task} ended with status {done.returncode}")
        return json.loads(answer.read_text())


def main(task: str, given: str, answer: str) -> None:
    """Measure one row, or one side of a memory row (``score-MODEL-EXAMPLES``)."""
    values = json.loads(Path(given).read_text())
    setting = Setting(**{**values, "sizes": Sizes(**values["sizes"])})
    torch.set_num_threads(setting.n_threads)
    with quiet():
        if task.startswith("score-"):
            _, name, n_examples = task.split("-")
            result = peak_of_scoring(name, int(n_examples), setting)
        else:
            row = ROWS[task]
            measured = row.measure(setting)
            result = {**asdict(measured), "ratios": measure.ratios(measured, faster=row.faster)}
    Path(answer).write_text(json.dumps(result))


if __name__ == "__main__":
    main(*sys.argv[1:])
