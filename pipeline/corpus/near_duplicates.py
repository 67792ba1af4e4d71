"""Documents that resemble one another stay on one side of the split (`dataset.near_duplicate_similarity`).

Sequences of five words of each document are hashed (MinHash, by datasketch); documents of about that Jaccard similarity or
more are found among those read before. The tables lean to finding too many: one more on the side of its like costs nothing.
"""

from __future__ import annotations

from typing import Any

from pipeline.corpus.document import Document
from pipeline.errors import DataError

_WORDS = 5
_PERMUTATIONS = 128
_STRICTEST = 0.99  # similarity that so many permutations can ask for; with a higher one more is found than wanted, too
_WEIGHTS = (0.2, 0.8)  # of finding too many and of finding too few


class NearDuplicates:
    """Which side resembling documents are on.

    Args:
        similarity: of the sets of five-word sequences, from which on documents count as alike.

    Raises:
        DataError: datasketch is not installed.
    """

    def __init__(self, similarity: float) -> None:
        try:
            import datasketch
        except ImportError:
            raise DataError(
                "dataset.near_duplicate_similarity needs the package datasketch: `pip install datasketch`, or set it to null"
            ) from None
        self._minhash = datasketch.MinHash
        self._tables: Any = datasketch.MinHashLSH(
            threshold=min(similarity, _STRICTEST), num_perm=_PERMUTATIONS, weights=_WEIGHTS
        )
        self._sides: list[str] = []

    def side(self, document: Document, drawn: str, fixed: bool = False) -> tuple[str | None, bool]:
        """(split of the document, whether it resembles an earlier one).

        Args:
            document: the next one.
            drawn: the split that it has where it resembles none.
            fixed: whether it can have no other, as its file has none.

        Returns: as split that of the documents that it resembles; None where that cannot be, or they are on both sides: it is
            left out.
        """
        hashed = self._minhash(num_perm=_PERMUTATIONS, seed=0)
        hashed.update_batch(_sequences(document.text))
        sides = {self._sides[number] for number in self._tables.query(hashed)}
        if len(sides) > 1 or (fixed and sides - {drawn}):
            return None, True
        side = next(iter(sides), drawn)
        self._tables.insert(len(self._sides), hashed)
        self._sides.append(side)
        return side, bool(sides)


def _sequences(text: str) -> list[bytes]:
    words = text.lower().split()
    return [" ".join(words[at : at + _WORDS]).encode() for at in range(max(1, len(words) - _WORDS + 1))]
