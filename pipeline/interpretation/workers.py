"""Work on several items at a time, by threads that nobody has to wait for: a request may stay open for minutes."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from queue import Empty, SimpleQueue
from typing import Any, TypeVar

Item = TypeVar("Item")


def each_result(
    work: Callable[[Item], Any], items: Sequence[Item], threads: int, stop: threading.Event
) -> Iterator[tuple[Item, Any]]:
    """(item, work(item)) as they are finished; with one thread in order, in the thread of the caller.

    After an error of the work, or Ctrl-C, results that are there are given still, then it is raised: threads that are at work
    are left behind (daemons, which do not hold up the end of the process).

    Args:
        work: what to do with an item; it should look at `stop` now and then.
        items: in the order in which they are begun.
        threads: how many at a time.
        stop: set when no more is wanted.
    """
    if threads == 1:
        for item in items:
            yield item, work(item)
        return
    waiting: SimpleQueue[Item] = SimpleQueue()
    done: SimpleQueue[tuple[Item | None, Any]] = SimpleQueue()
    for item in items:
        waiting.put(item)

    def run() -> None:
        try:
            while not stop.is_set():
                item = waiting.get_nowait()
                done.put((item, work(item)))
        except Empty:
            return
        except BaseException as error:
            done.put((None, error))

    for _ in range(min(threads, len(items))):
        threading.Thread(target=run, daemon=True).start()
    try:
        for _ in items:
            item_done, result = done.get()
            if item_done is None:
                raise result
            yield item_done, result
    except GeneratorExit:
        raise
    except BaseException:
        stop.set()
        while not done.empty():
            item_done, result = done.get()
            if item_done is not None:
                yield item_done, result
        raise
    finally:
        stop.set()
