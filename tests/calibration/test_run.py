"""The script runs, prints a row for each test, and tells an error that is too high."""

import runpy
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent


@pytest.fixture
def script(monkeypatch):
    """The names of ``run.py``, with what stands beside it."""
    monkeypatch.syspath_prepend(str(FOLDER))
    return runpy.run_path(str(FOLDER / "run.py"))


def test_no_error_is_higher_than_promised_and_forgotten_units_are_found_out(script, capsys):
    """20 shuffles of each, which find an error of 0.3 nearly always; the script itself takes 500."""
    assert script["main"](["--quick"]) == 0, capsys.readouterr().out
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) > 60 and "20 shuffles of each row" in lines[-1] and "0 errors too high" in lines[-1]
    for setting in ("groups of 8", "word pairs"):
        [fault] = [line for line in lines if line.startswith(setting) and line.endswith("FAULT")]
        low = float(fault.split(" to ")[0].split()[-1])
        assert low > 0.4  # of 20 shuffles that mean nothing


def test_an_error_above_the_nominal_one_is_measured_again_and_told(script):
    row = script["Row"]("always", "wrong", "1 text", lambda n, seed: (n, None))
    found = script["measured"](row, 30, 0)
    assert found.too_high and found.again and found.n == 120
    assert str(found).endswith("again, 120 shuffles; TOO HIGH")


def test_an_error_that_is_above_once_by_chance_is_none(script):
    row = script["Row"]("once", "wrong", "1 text", lambda n, seed: (n if n == 30 else n // 20, None))
    found = script["measured"](row, 30, 0)
    assert found.again and not found.too_high


def test_of_a_row_with_a_note_nothing_is_required(script):
    row = script["Row"]("always", "wrong", "1 text", lambda n, seed: (n, None), note="FAULT")
    assert not script["measured"](row, 30, 0).too_high
