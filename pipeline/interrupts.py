"""SIGINT and SIGTERM as a request: the step ends, the state is saved, then the run stops."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType

from pipeline.errors import Interrupted


class StopWaiting(Exception):
    """The user asked to stop while the run was waiting for something."""


class StopRequest:
    """Whether the user asked to stop."""

    def __init__(self) -> None:
        self.received: str | None = None
        self._waiting = False

    def __bool__(self) -> bool:
        return self.received is not None

    def receive(self, name: str) -> None:
        """Set the request; what waits at this moment is left.

        Raises:
            StopWaiting: within :meth:`waiting`.
        """
        self.received = name
        if self._waiting:
            raise StopWaiting

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Around waiting that may be long and changes no state: a request does not wait for its end.

        Raises:
            StopWaiting: the request is there, or comes.
        """
        self._waiting = True
        try:
            if self:
                raise StopWaiting
            yield
        finally:
            self._waiting = False


@contextlib.contextmanager
def interruption(message: str) -> Iterator[None]:
    """Within the block, or the function that it decorates, Ctrl-C is :class:`Interrupted` with this message: for work that no
    later command goes on with."""
    try:
        yield
    except KeyboardInterrupt:
        raise Interrupted(message) from None


@contextlib.contextmanager
def stop_on_signals() -> Iterator[StopRequest]:
    """Within the block the first SIGINT or SIGTERM sets the request; a second one acts as before the block.

    Outside the main thread, where Python allows no handlers, the request is never set.
    """
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)

    def receive(number: int, frame: FrameType | None) -> None:
        restore()
        request.receive(signal.Signals(number).name)

    for number in before:
        signal.signal(number, receive)
    try:
        yield request
    finally:
        restore()
