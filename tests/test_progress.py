"""What a reader of a log file, a notebook or a terminal sees of a phase."""

import io
import logging

import pytest
from rich.console import Console

from tl_skillneurons import _progress
from tl_skillneurons._progress import progress_bar


def seen(capsys, *, steps=4, total=4, show=True):
    with progress_bar("scoring [x]", total, show=show) as advance:
        for _ in range(steps):
            advance(note="loss 0.5")
    return capsys.readouterr()


def test_a_log_file_gets_one_plain_line_of_a_short_phase(capsys):
    out, err = seen(capsys)
    assert out == "" and err == "scoring [x]: 4/4 in 0:00 (loss 0.5)\n"


def test_a_log_file_gets_a_line_now_and_then_without_control_characters(capsys, monkeypatch):
    monkeypatch.setattr(_progress, "EVERY", 0.0)
    lines = seen(capsys).err.splitlines()
    assert {f"scoring [x]: {done}/4" for done in (1, 2, 3)} <= {line.split(" in ")[0] for line in lines}
    assert lines[-1].startswith("scoring [x]: 4/4") and any("about 0:00 left" in line for line in lines)
    assert all(character.isprintable() for line in lines for character in line)


def test_a_step_that_takes_long_is_not_silent(capsys, monkeypatch):
    monkeypatch.setattr(_progress, "EVERY", 0.0)
    told = _progress.threading.Event()
    monkeypatch.setattr("builtins.print", lambda *args, **kwargs: told.set())
    with progress_bar("one long step", 1):
        assert told.wait(timeout=10)  # from the watcher: no step has ended


def test_what_is_waited_for_is_said_at_once_and_again_while_it_lasts(monkeypatch):
    lines, again = [], _progress.threading.Event()
    monkeypatch.setattr(_progress, "EVERY", 0.0)
    monkeypatch.setattr(
        "builtins.print", lambda line, **_: (lines.append(line), len(lines) > 2 and again.set())
    )
    with _progress.waiting("loading tiny"):
        assert lines[0] == "loading tiny ..." and again.wait(timeout=10)
    assert lines[1] == "loading tiny: 0:00"


def test_a_phase_that_stops_says_so_and_lets_the_error_through(capsys):
    with pytest.raises(KeyboardInterrupt), progress_bar("tuning", 3) as advance:
        advance()
        raise KeyboardInterrupt
    assert capsys.readouterr().err == "tuning: 1/3 in 0:00, stopped\n"


def test_a_phase_that_is_not_shown_is_only_logged(capsys, caplog):
    with caplog.at_level(logging.INFO, "tl_skillneurons"):
        assert seen(capsys, show=False) == ("", "")
    assert caplog.messages == ["scoring [x]: 4 steps in 0.0 s"]


@pytest.mark.parametrize("kind", ["terminal", "jupyter"])
def test_a_terminal_and_a_notebook_get_a_bar(kind, monkeypatch, capsys):
    shown = io.StringIO()
    consoles = {
        "terminal": lambda **_: Console(file=shown, force_terminal=True, width=100),
        "jupyter": lambda **_: Console(file=shown, force_jupyter=True),
    }
    monkeypatch.setattr(_progress, "Console", consoles[kind])
    if kind == "jupyter":
        monkeypatch.setattr("tqdm.auto.tqdm", __import__("tqdm").tqdm)
    err = seen(capsys).err
    assert "scoring [x]" in shown.getvalue() + err and "4/4" in shown.getvalue() + err
