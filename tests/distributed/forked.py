"""Groups of processes for tests, forked from one that has imported torch, so that none of them costs a start of it."""

from __future__ import annotations

import os
import signal
import socket
import sys
import traceback
from collections.abc import Callable


def group(size: int, work: Callable[[int], None], **environment: str) -> list[int]:
    """Call `work(rank)` in so many processes, started as a launcher starts them; their exit codes, in order."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    children = []
    sys.stderr.flush()
    for rank in range(size):
        child = os.fork()
        if child == 0:
            os.environ.update(WORLD_SIZE=str(size), RANK=str(rank), LOCAL_RANK=str(rank), **environment)
            os.environ.update(MASTER_ADDR="localhost", MASTER_PORT=str(port))
            code = 1
            try:
                work(rank)
                code = 0
            except BaseException:
                traceback.print_exc()
            sys.stderr.flush()
            os._exit(code)
        children.append(child)
    return _ended(children)


def _ended(children: list[int]) -> list[int]:
    """Their exit codes; those that have stopped themselves are killed when the others are at their end."""
    codes: dict[int, int] = {}
    stopped: set[int] = set()
    while len(codes) < len(children):
        child, status = os.waitpid(-1, os.WUNTRACED)
        if os.WIFSTOPPED(status):
            stopped.add(child)
        else:
            codes[child] = os.waitstatus_to_exitcode(status)
        if stopped and len(codes) + len(stopped) == len(children):
            for each in stopped:
                os.kill(each, signal.SIGKILL)
            stopped.clear()
    return [codes[child] for child in children]
