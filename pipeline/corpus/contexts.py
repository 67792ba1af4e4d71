"""Chosen contexts of a split of the token store."""

from __future__ import annotations

from typing import Protocol

import numpy as np

CHUNK_CONTEXTS = 4096  # contexts in a chunk of the token store


class Split(Protocol):
    """What is asked of a split."""

    def read(self, start: int = 0, stop: int | None = None, field: str = "tokens") -> np.ndarray:
        """[n, T] of contexts start..stop of one of its arrays."""
        ...


def read_contexts(split: Split, chosen: np.ndarray, field: str) -> np.ndarray:
    """[n, T] of some contexts. What is read at once spans at most a chunk's number of contexts, however far apart they are.

    Args:
        split: where they are.
        chosen: int64 [n], their numbers, ascending.
        field: the array, as of TokenSplit.read.
    """
    parts = []
    for some in np.split(chosen, np.flatnonzero(np.diff(chosen // CHUNK_CONTEXTS)) + 1):
        first, last = int(some[0]), int(some[-1])
        parts.append(split.read(first, last + 1, field)[some - first])
    return np.concatenate(parts)
