"""Which files of plain text are held out whole, where their documents are pieces of one text.

Files are taken in the order of a hash of their names until they make up `dataset.eval_fraction` of all bytes; one that would
exceed that share by more than a quarter is passed over. With few files, or one long one, no such choice comes near the share:
then the pieces are split, each by its own text.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Protocol, TypeVar

MOST = 1.25  # times the share that is asked for
LEAST = 0.5


def held_out_files(sizes: Mapping[str, int], fraction: float, seed: int) -> frozenset[str] | None:
    """The files that are held out; None: they are too few, or too long, and their pieces are split.

    Args:
        sizes: bytes of each file, by its name inside the data set.
        fraction: `dataset.eval_fraction`.
        seed: `dataset.split_seed`.
    """
    asked = fraction * sum(sizes.values())
    held: set[str] = set()
    size = 0
    for name in sorted(sizes, key=lambda name: hashlib.sha256(f"{seed}:{name}".encode()).digest()):
        if size < asked and size + sizes[name] <= MOST * asked:
            held.add(name)
            size += sizes[name]
    return frozenset(held) if size >= LEAST * asked and len(held) < len(sizes) else None


class Named(Protocol):
    """A file, by its name inside the data set."""

    @property
    def name(self) -> str: ...


T = TypeVar("T", bound=Named)


def spread(files: Sequence[T], held: frozenset[str]) -> list[T]:
    """`files` with the held-out ones at even distances, the first in front, so that what is read first has both kinds.

    Args:
        files: in any order, which those of either kind keep among themselves.
        held: names of those held out.
    """
    kinds = [file for file in files if file.name in held], [file for file in files if file.name not in held]
    places = [(at / len(own), kind, file) for kind, own in enumerate(kinds) for at, file in enumerate(own)]
    return [file for _, _, file in sorted(places, key=lambda place: place[:2])]
