"""Progress of a long loop: a bar on a terminal, a line every few seconds elsewhere.

A stage is watched while it works: where a loop is for some seconds in its first batch, it says so; where nothing has been shown
for a minute, as in a long batch or between two loops, a line says that it is still at work.
"""

from __future__ import annotations

import contextlib
import shutil
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from typing import TextIO

SILENCE = 60.0  # seconds after which a stage says that it is still at work
LOOK = 0.5  # seconds between two looks at a loop that is in its first batch


def _duration(seconds: float) -> str:
    seconds = int(seconds + 0.5)
    hours, rest = divmod(seconds, 3600)
    minutes, seconds = divmod(rest, 60)
    return f"{hours}h{minutes:02d}m" if hours else f"{minutes}m{seconds:02d}s" if minutes else f"{seconds}s"


class Progress:
    """Counts done units against a total and shows `label done/total unit rate/s left time figures`.

    Args:
        label: what is being done.
        total: number of units in all.
        unit: what is counted, plural.
        every_seconds: least time between two lines where the stream is not a terminal.
        done: units that an earlier, interrupted run has done; they do not count for the rate.
        first: what is worked on until the first units are done, in words ("32 contexts"); None: the unit says enough.
    """

    def __init__(
        self,
        label: str,
        total: int,
        unit: str = "tokens",
        every_seconds: float = 5.0,
        *,
        done: int = 0,
        first: str | None = None,
        stream: TextIO | None = None,
    ) -> None:
        self.label, self.total, self.unit = f"{label}{_latest.part}", int(total), unit
        self.stream = stream if stream is not None else sys.stderr
        self.terminal = self.stream.isatty()
        self.every_seconds = 0.2 if self.terminal else every_seconds
        self.done, self._before, self._first = int(done), int(done), first
        self._started = self._shown = time.monotonic()
        self._figures: dict[str, float | str] = {}
        self._last: tuple[int, dict[str, float | str]] | None = None  # what the line said that was shown last
        _latest.progress = weakref.ref(self)

    def update(self, n: int, **figures: float | str) -> None:
        """Add `n` done units; `figures` are shown with the next line."""
        self.done += int(n)
        self._figures.update(figures)
        now = time.monotonic()
        if now - self._shown >= self.every_seconds:
            self._shown = now
            self._show()

    def line(self) -> str:
        """The present line, without its end."""
        head = f"{self.label} {self.done / self.total if self.total else 1.0:4.0%}  {self.done:,}/{self.total:,} {self.unit}"
        if self.done == self._before < self.total:  # no rate is known
            which = "first" if self.done == 0 else "next"
            what = f"{self.unit} are" if self._first is None else "batch is"
            return f"{head}  the {which} {what} at work" + ("" if self._first is None else f": {self._first}")
        elapsed = max(time.monotonic() - self._started, 1e-9)
        rate = (self.done - self._before) / elapsed
        left = (self.total - self.done) / rate if rate > 0 else float("inf")
        figures = "".join(
            f"  {name} {value:.4g}" if isinstance(value, float) else f"  {name} {value}"
            for name, value in self._figures.items()
        )
        remaining = "?" if left == float("inf") else _duration(max(left, 0.0))
        return f"{head}  {rate:,.0f}/s  {remaining} left{figures}"

    def _show(self, end: str | None = None) -> None:
        if _latest.elsewhere:
            return
        start, stop = (_CLEAR, "") if self.terminal else ("", "\n")
        line = self.line()
        if self.terminal:  # a line that wraps cannot be overwritten
            line = line[: max(shutil.get_terminal_size().columns - 1, 20)]
        with _latest.lock:
            self.stream.write(start + line + (end if end is not None else stop))
            self.stream.flush()
            _latest.bar = self.terminal and end is None
            _latest.spoken = time.monotonic()
        self._last = (self.done, dict(self._figures))

    def show_first(self, now: float) -> bool:
        """Show the line where some seconds have passed, the first units are still not done and nothing has been shown."""
        waits = self._shown == self._started and self.done == self._before < self.total
        if not waits or now - self._started < self.every_seconds:
            return False
        self._shown = now
        self._show()
        return True

    def close(self) -> None:
        """Show the last line, once."""
        if self.terminal or self._last != (self.done, self._figures):
            self._show(end="\n")
        _latest.progress = _nothing

    def close_if_shown(self) -> None:
        """`close` where a line has been shown; nothing of a loop that was over before."""
        if self._shown > self._started:
            self.close()
        _latest.progress = _nothing


_CLEAR = "\r\x1b[K"


def _nothing() -> Progress | None:
    """In the place of a reference to the loop that is going on: there is none."""
    return None


class _Latest:
    """When a line of progress was shown last, the loop that is going on, whether another process shows it, and what is said
    behind the names of loops."""

    def __init__(self) -> None:
        self.spoken = time.monotonic()
        self.progress: Callable[[], Progress | None] = _nothing
        self.elsewhere = False
        self.part = ""
        self.bar = False  # whether a terminal's line is that of a loop, which the next one overwrites
        self.lock = threading.Lock()


_latest = _Latest()


@contextlib.contextmanager
def shown_elsewhere() -> Iterator[None]:
    """Within the block this process shows no progress: another one of its stage does."""
    _latest.elsewhere = True
    try:
        yield
    finally:
        _latest.elsewhere, _latest.spoken = False, time.monotonic()


@contextlib.contextmanager
def part(name: str, number: int, n_parts: int) -> Iterator[None]:
    """Within the block loops are named with the part of the work that they are of: `analyze, k16 (1 of 4)`.

    Args:
        name: of the part, as a member of a sweep; "": the work has no parts.
        number: of the part, from 1.
        n_parts: that there are.
    """
    before, _latest.part = _latest.part, f", {name} ({number} of {n_parts})" if name else ""
    try:
        yield
    finally:
        _latest.part = before


def say(line: str) -> None:
    """Write a line to standard error before something that takes long and shows no progress of its own."""
    if not _latest.elsewhere:
        tell(line)


def tell(line: str) -> None:
    """Write a line to standard error; on a terminal in the place of a loop's, which comes again below it."""
    with _latest.lock:
        sys.stderr.write(f"{_CLEAR if _latest.bar and sys.stderr.isatty() else ''}{line}\n")
        sys.stderr.flush()
        _latest.bar, _latest.spoken = False, time.monotonic()


def still_line(label: str, began: float, now: float) -> str:
    """What a stage says that has shown nothing for a while: how long it works, and how far the present loop has come."""
    progress = _latest.progress()
    where = "" if progress is None else f"; {progress.line()}"
    return f"{label}: still at work, after {_duration(now - began)}{where}"


@contextlib.contextmanager
def watched(label: str, silence: float = SILENCE) -> Iterator[None]:
    """Within the block a line comes to standard error whenever no progress has been shown for so many seconds.

    Args:
        label: of the stage.
        silence: seconds.
    """
    ended, began = threading.Event(), time.monotonic()
    _latest.spoken, _latest.progress = began, _nothing

    def watch() -> None:
        while not ended.wait(min(LOOK, max(0.05, _latest.spoken + silence - time.monotonic()))):
            now, progress = time.monotonic(), _latest.progress()
            if progress is not None and progress.show_first(now):
                continue
            if now - _latest.spoken >= silence:
                _latest.spoken = now
                say(still_line(label, began, now))

    thread = threading.Thread(target=watch, name="watch", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
