"""The notebooks as they are kept: run to their end, light, of no one's machine. CI runs them anew in small mode."""

import json
import re
from pathlib import Path

import pytest

NOTEBOOKS = sorted((Path(__file__).parents[1] / "examples").glob("*.ipynb"))
PRIVATE = re.compile(
    r"(?<![\w.:/])/(?:home|root|tmp|usr|opt|work|Users|var|mnt|private)/\w|[A-Z]:\\\\|file://"
)
BARS = re.compile(r"\d+%\||it/s|\\r|\\u001b")


def cells_of(path, kind):
    return [
        cell for cell in json.loads(path.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == kind
    ]


def test_there_are_four_notebooks():
    assert [path.stem for path in NOTEBOOKS] == [
        "chat",
        "first_skill_neurons",
        "is_it_real",
        "with_your_tools",
    ]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_keeps_the_outputs_of_one_run_without_an_error(path):
    cells = cells_of(path, "code")
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell["outputs"]]
    assert len(outputs) >= 8
    assert not [output for output in outputs if output["output_type"] == "error"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_light_and_shows_no_ones_folders_and_no_progress_bars(path):
    text = path.read_text(encoding="utf-8")
    assert len(text) < 500_000
    assert not PRIVATE.search(text), PRIVATE.search(text)
    assert not BARS.search(text), BARS.search(text)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_of_short_cells_with_words_between_and_has_a_small_mode(path):
    code = ["".join(cell["source"]) for cell in cells_of(path, "code")]
    words = " ".join("".join(cell["source"]) for cell in cells_of(path, "markdown"))
    assert max(len(cell.splitlines()) for cell in code) <= 32
    assert len(words.split()) >= 500
    assert any("SKILLNEURONS_SMALL" in cell for cell in code)
