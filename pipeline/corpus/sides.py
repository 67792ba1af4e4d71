"""Which side of the split each document of a text is on; equal documents are on one side."""

from __future__ import annotations

from pipeline.corpus.document import Document
from pipeline.corpus.near_duplicates import NearDuplicates
from pipeline.corpus.tokens import SPLITS


class Sides:
    """The sides of documents in the order in which they are read, and how many were like an earlier one.

    Args:
        eval_fraction, split_seed: of `dataset`; see :func:`pipeline.corpus.document.held_out`.
        near_duplicate_similarity: from which on documents stay on one side, or None: only equal ones.

    Attributes:
        equal, alike: documents that equalled an earlier one, or resembled one. left_out: of these, that could be on no side.

    Raises:
        DataError: near duplicates are asked for, and datasketch is not installed.
    """

    def __init__(self, eval_fraction: float, split_seed: int, near_duplicate_similarity: float | None) -> None:
        self.fraction, self.seed = eval_fraction, split_seed
        self.near = None if near_duplicate_similarity is None else NearDuplicates(near_duplicate_similarity)
        self.seen: dict[str, set[bytes]] = {split: set() for split in SPLITS}
        self.equal = self.alike = self.left_out = 0

    def of(self, document: Document) -> str | None:
        """The split of the next document, or None: it is left out, as one that equals it is on the other side."""
        held = document.is_held_out(self.fraction, self.seed)
        drawn, other = SPLITS[::-1] if held else SPLITS
        split: str | None = drawn
        digest = document.content_digest()
        equal = any(digest in seen for seen in self.seen.values())
        self.equal += equal
        if self.near is not None:
            split, alike = self.near.side(document, drawn, fixed=document.held is not None)
            self.alike += alike and not equal
        elif digest in self.seen[other]:
            split = None
        if split is None:
            self.left_out += 1
        else:
            self.seen[split].add(digest)
        return split
