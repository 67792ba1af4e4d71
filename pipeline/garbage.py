"""Python's search for cycles of garbage, left out where there is none to find."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def uncollected() -> Iterator[None]:
    """In the block nothing is searched. For what makes very many objects that all stay, as the import of a large library does:
    looking through them again and again takes a seventh of its time.
    """
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()
