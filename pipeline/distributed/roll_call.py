"""Who does not answer: when processes have waited in vain for one another, those that still run find out which ones do not.

Each writes down in the group's store that it is there. Who has not done so some seconds later hangs, or has ended. The store is
kept by the launcher, or without one by process 0.
"""

from __future__ import annotations

import contextlib
import datetime
import threading
import time
from collections.abc import Iterator, Sequence

import torch.distributed as dist

from pipeline.errors import DataError

SECONDS = 10.0  # to come to the roll call
TIMEOUT = "distributed.timeout_minutes"
AGAIN = "; run the same command again to go on"


def part(store: dist.Store, rank: int, ranks: Sequence[int], seconds: float = SECONDS) -> None:
    """Leave the store, for good: process 0, which may keep it, stays until the others have left it too, so long at most.

    Args:
        store: that all of them reach.
        rank: of this process.
        ranks: of the processes that are still there.
        seconds: to wait.
    """
    store = dist.PrefixStore("left", store)
    with contextlib.suppress(RuntimeError):
        store.set(str(rank), "left")
        if rank == 0:
            store.wait([str(each) for each in ranks], datetime.timedelta(seconds=seconds))


class Unanswered(DataError):
    """A process hangs: worth another try, which the launcher makes."""

    exit_code = 75  # EX_TEMPFAIL of sysexits.h


class RollCall:
    """Of the processes of a group.

    Args:
        store: that all of them reach.
        rank: of this process.
        size: number of processes.
        minutes: that they wait for one another.
    """

    def __init__(self, store: dist.Store, rank: int, size: int, minutes: float) -> None:
        self.store, self.rank, self.size, self.minutes = dist.PrefixStore("roll call", store), rank, size, minutes

    def missing(self, seconds: float = SECONDS) -> list[int] | None:
        """The processes that do not come within so many seconds; None: the store itself does not answer."""
        found: list[int] | None = None

        def look() -> None:
            nonlocal found
            deadline = time.monotonic() + seconds
            with contextlib.suppress(RuntimeError):  # the store's connection is lost
                self.store.set(str(self.rank), "here")
                while True:
                    missing = [rank for rank in range(self.size) if not self.store.check([str(rank)])]
                    if not missing or time.monotonic() > deadline:
                        break
                    time.sleep(0.1)
                found = missing
                part(self.store, self.rank, [rank for rank in range(self.size) if rank not in missing])

        thread = threading.Thread(target=look, daemon=True)  # a store that hangs is not waited for
        thread.start()
        thread.join(seconds + 2 * SECONDS)
        return found

    @contextlib.contextmanager
    def answered(self, began: float | None = None) -> Iterator[None]:
        """Around an exchange: where the others do not answer, say who.

        Args:
            began: when it began (of time.monotonic), where it goes on beside other work; None: now.

        Raises:
            Unanswered: one of them did not come in time; it is named.
            DataError: one of them has ended.
        """
        began = time.monotonic() if began is None else began
        try:
            yield
        except RuntimeError as error:
            said = str(error).strip().split("\n")[0]
            here = f"process {self.rank} of {self.size}"
            if time.monotonic() - began < 0.9 * 60 * self.minutes:
                raise DataError(f"{here}: another process has ended ({said}){AGAIN}") from None
            raise Unanswered(f"{self._who()} within {TIMEOUT} ({self.minutes:g}), says {here}{AGAIN}") from None

    def _who(self) -> str:
        missing = self.missing()
        if missing is None:
            return "process 0, or the launcher that keeps the group's store, did not answer"
        if not missing:
            return "all processes are there, and one of them did not answer"
        return f"{named(missing)} did not answer"


def named(ranks: Sequence[int]) -> str:
    """`process 1`, or `processes 1, 2, 3`."""
    return f"process{'es' if len(ranks) > 1 else ''} {', '.join(map(str, ranks))}"
