"""Groups of processes for tests, forked from one that has imported torch, so that none of them costs a start of it."""

from __future__ import annotations

import os
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
    return [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
