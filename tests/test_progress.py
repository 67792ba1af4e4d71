"""Progress: what a line says, how often it comes, and that a terminal's line is one line."""

from __future__ import annotations

import io
import os
import threading
from types import SimpleNamespace

import pytest

from pipeline import progress as module
from pipeline.progress import Progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def clock(monkeypatch):
    now = SimpleNamespace(seconds=100.0)
    monkeypatch.setattr(module.time, "monotonic", lambda: now.seconds)
    return now


def test_a_line(clock):
    progress = Progress("train", 2_000_000, stream=io.StringIO())
    clock.seconds += 10
    progress.update(500_000, loss=1.23456789, wait="1.5%")
    assert progress.line() == "train  25%  500,000/2,000,000 tokens  50,000/s  30s left  loss 1.235  wait 1.5%"


def test_what_an_earlier_run_did_does_not_count_for_the_rate(clock):
    progress = Progress("train", 1000, done=500, stream=io.StringIO())
    clock.seconds += 10
    progress.update(100)
    assert progress.line() == "train  60%  600/1,000 tokens  10/s  40s left"


@pytest.mark.parametrize(
    ("left", "text"),
    [
        (0, "0s"),
        (0.4, "0s"),
        (59, "59s"),
        (59.6, "1m00s"),
        (61, "1m01s"),
        (3599.6, "1h00m"),
        (3661, "1h01m"),
        (90_000, "25h00m"),
    ],
)
def test_time_left(clock, left, text):
    progress = Progress("x", 1_000_000, stream=io.StringIO())
    clock.seconds += 1_000_000 - left
    progress.update(0)
    progress.done = 1_000_000 - left
    assert f"  {text} left" in progress.line()


def test_before_anything_is_done(clock):
    progress = Progress("x", 10, unit="rows", stream=io.StringIO())
    assert progress.line() == "x   0%  0/10 rows  the first rows are at work"
    progress = Progress("x", 10, done=4, first="32 contexts", stream=io.StringIO())
    assert progress.line() == "x  40%  4/10 tokens  the next batch is at work: 32 contexts"


def test_nothing_to_do_and_more_than_was_to_do(clock):
    assert Progress("x", 0, stream=io.StringIO()).line().startswith("x 100%  0/0 tokens")
    progress = Progress("x", 10, stream=io.StringIO())
    clock.seconds += 1
    progress.update(15)
    assert "15/10" in progress.line()
    assert "0s left" in progress.line()


def test_a_line_every_so_many_seconds_elsewhere(clock):
    stream = io.StringIO()
    progress = Progress("x", 100, every_seconds=5, stream=stream)
    for _ in range(21):
        clock.seconds += 1
        progress.update(1)
    assert stream.getvalue().count("\n") == 4
    progress.close()
    lines = stream.getvalue().splitlines()
    assert len(lines) == 5
    assert "\r" not in stream.getvalue()
    assert "\x1b" not in stream.getvalue()
    assert lines[-1].startswith("x  21%  21/100")


def test_the_last_line_comes_once(clock):
    stream = io.StringIO()
    progress = Progress("x", 10, stream=stream)
    for _ in range(2):
        clock.seconds += 6
        progress.update(5)
    progress.close()
    assert [line[:6] for line in stream.getvalue().splitlines()] == ["x  50%", "x 100%"]
    progress = Progress("x", 10, stream=stream)
    clock.seconds += 6
    progress.update(10)
    progress.update(0, loss=1.0)  # which the line has not shown
    progress.close()
    assert [line[:6] for line in stream.getvalue().splitlines()[2:]] == ["x 100%", "x 100%"]


def test_a_message_takes_the_place_of_a_terminals_line(clock, monkeypatch):
    stream = Terminal()
    monkeypatch.setattr(module.sys, "stderr", stream)
    progress = Progress("x", 10)
    clock.seconds += 1
    progress.update(5)
    module.tell("x: something")
    module.tell("x: more")
    assert stream.getvalue().endswith("left\r\x1b[Kx: something\nx: more\n")
    progress.close()
    module.tell("x: at last")
    assert stream.getvalue().endswith("left\nx: at last\n")


def test_figures_stay_until_they_change(clock):
    progress = Progress("x", 10, stream=io.StringIO())
    progress.update(1, l0=24.0)
    progress.update(1, loss=2.0)
    progress.update(1, loss=3.0)
    assert progress.line().endswith("l0 24  loss 3")


@pytest.mark.parametrize("columns", [40, 80, 200])
def test_a_terminal_has_one_line_that_fits(clock, monkeypatch, columns):
    """A line that wraps would leave its first part on the screen at every update."""
    monkeypatch.setattr(module.shutil, "get_terminal_size", lambda: os.terminal_size((columns, 24)))
    stream = Terminal()
    progress = Progress("train", 10_000_000, stream=stream)
    for _ in range(10):
        clock.seconds += 0.25
        progress.update(10_000, loss=1.23456789, explained_variance=0.987654, l0=24.0, wait="1.5%")
    progress.close()
    assert stream.getvalue().count("\n") == 1
    assert stream.getvalue().endswith("\n")
    shown = stream.getvalue().strip("\n").split("\r\x1b[K")[1:]
    assert len(shown) == 11
    assert max(map(len, shown)) < columns


def test_default_stream_is_standard_error(clock, capsys):
    Progress("x", 1).close()
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("x ")


def test_a_stage_that_shows_nothing_for_a_while_says_so(capsys):
    """As in a long batch of a loop, or between two loops."""
    with module.watched("evaluate", silence=0.1):
        threading.Event().wait(0.35)
        progress = Progress("evaluate", 1000, unit="tokens in 6 runs", every_seconds=1000)
        progress.update(250)
        threading.Event().wait(0.35)
        progress.close()
    lines = capsys.readouterr().err.splitlines()
    between = [line for line in lines if line.startswith("evaluate: still at work, after ")]
    inside = [line for line in between if "; evaluate  25%  250/1,000 tokens in 6 runs" in line]
    assert len(inside) >= 2
    assert len(between) - len(inside) >= 2
    threading.Event().wait(0.2)
    assert capsys.readouterr().err == ""


def test_a_loop_says_that_its_first_batch_is_at_work(capsys, monkeypatch):
    monkeypatch.setattr(module, "LOOK", 0.02)
    with module.watched("generate", silence=100.0):
        progress = Progress("generate", 1000, every_seconds=0.1, first="32 contexts of 128 tokens")
        threading.Event().wait(0.5)
        progress.done = 1000
        progress.close()
    first, last = capsys.readouterr().err.splitlines()
    assert first == "generate   0%  0/1,000 tokens  the first batch is at work: 32 contexts of 128 tokens"
    assert last.startswith("generate 100%")


def test_a_stage_that_shows_lines_says_nothing_more(capsys):
    progress = Progress("x", 100, every_seconds=0.0)
    with module.watched("train", silence=0.5):
        for _ in range(8):
            progress.update(1)
            threading.Event().wait(0.1)
    assert "still at work" not in capsys.readouterr().err


def test_what_another_process_shows_is_not_shown(capsys):
    with module.watched("evaluate", silence=0.05):
        with module.shown_elsewhere():
            progress = Progress("evaluate", 100, every_seconds=0.0)
            progress.update(50)
            threading.Event().wait(0.2)
            progress.close()
        assert capsys.readouterr().err == ""
        threading.Event().wait(0.2)
    assert "evaluate: still at work" in capsys.readouterr().err
    assert progress.done == 50


def test_the_part_of_the_work_is_named(clock):
    with module.part("k16", 1, 4):
        progress = Progress("analyze", 1000, stream=io.StringIO())
    clock.seconds += 10
    progress.update(100)
    assert progress.line().startswith("analyze, k16 (1 of 4)  10%  100/1,000 tokens")
    with module.part("", 1, 1):
        assert Progress("analyze", 1000, stream=io.StringIO()).label == "analyze"
    assert Progress("train", 1000, stream=io.StringIO()).label == "train"
