"""Progress: a line a step with its time; colour and a moving clock only for a person at a terminal."""

import io
import re
import time

import pytest

from lab import ui


class Terminal(io.StringIO):
    """Takes what a person would see."""

    def isatty(self):
        return True


def test_no_colour_without_a_terminal(capsys):
    progress = ui.Progress()
    with progress.step("build the image"):
        progress.say("a remark")
    out, err = capsys.readouterr()
    assert out == "", "standard output belongs to results"
    assert "\x1b" not in err
    assert "\r" not in err
    begun, remark, ended = err.splitlines()
    assert begun.strip(" .") == "build the image"
    assert remark == "a remark"
    assert re.fullmatch(r"  ok +build the image \(\d+\.\d s\)", ended)


def test_a_failed_step_says_so_and_the_error_goes_on(capsys):
    progress = ui.Progress()
    with pytest.raises(ValueError, match="reason"), progress.step("start hv1"):
        raise ValueError("reason")
    assert re.search(r"^  failed start hv1 \(\d+\.\d s\)$", capsys.readouterr().err, re.MULTILINE)
    assert list(progress.times) == ["start hv1"]


def test_an_interrupted_step_counts_as_failed(capsys):
    with pytest.raises(KeyboardInterrupt), ui.Progress().step("wait"):
        raise KeyboardInterrupt
    assert "  failed wait" in capsys.readouterr().err


def test_a_terminal_gets_colour_and_one_line_a_step(monkeypatch):
    monkeypatch.setattr("sys.stderr", terminal := Terminal())
    with ui.Progress().step("build"):
        pass
    assert "\x1b[32mok" in terminal.getvalue()
    assert terminal.getvalue().count("\n") == 1


def test_the_clock_moves_and_stops_with_its_step(monkeypatch):
    monkeypatch.setattr("sys.stderr", terminal := Terminal())
    with ui.Progress().step("long"):
        time.sleep(1.2)
    printed = terminal.getvalue()
    assert re.search(r"\r\x1b\[K +1 s long", printed)
    time.sleep(1.2)
    assert terminal.getvalue() == printed


def test_quiet_prints_nothing_and_keeps_times(monkeypatch):
    monkeypatch.setattr("sys.stderr", terminal := Terminal())
    progress = ui.Progress(quiet=True)
    with progress.step("one"), progress.step("two"):
        progress.say("never seen")
    assert terminal.getvalue() == ""
    assert list(progress.times) == ["two", "one"]
    assert all(seconds >= 0 for seconds in progress.times.values())
