"""One text with where it came from.

A text file that nothing cuts into documents is one, which comes in pieces, each of them a `Document` that says so (`piece_of`).
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import Self

from pipeline.corpus.chat import Content, Message


@dataclass(frozen=True)
class Document:
    """A document of a corpus.

    Attributes:
        key: stable name inside its corpus.
        text: the text itself.
        origin: where to find the text again, JSON-able; a data set of the hub gives its row and field here, and then the
            token store keeps this instead of the text.
        keep_text: whether the token store keeps the text.
        split_by_key: whether its side of the split is drawn from its key; else from its text, so that equal texts
            are on one side.
        held: whether it is held out, where its file says so; None: drawn.
        messages: of a chat, the text being what the chat template makes of them.
        counted: (start, end) of the characters whose tokens count; None: all.
        source: name of the source that it is of, where several are mixed; else empty.
        piece_of: name of the text file that it is a piece of, in its source; empty: it is whole.
    """

    key: str
    text: str
    origin: dict[str, str | int] = field(default_factory=dict)
    keep_text: bool = True
    split_by_key: bool = False
    held: bool | None = None
    messages: tuple[Message, ...] = ()
    counted: tuple[tuple[int, int], ...] | None = None
    source: str = ""
    piece_of: str = ""

    @classmethod
    def of(
        cls,
        content: Content,
        key: str,
        origin: dict[str, str | int],
        *,
        keep_text: bool = True,
        held: bool | None = None,
        piece_of: str = "",
    ) -> Self:
        """The document of what a row holds."""
        messages, counted = content.messages, content.counted
        return cls(key, content.text, origin, keep_text, held=held, messages=messages, counted=counted, piece_of=piece_of)

    @property
    def name(self) -> str:
        """What it is called among the documents of all sources."""
        return f"{self.source}:{self.key}" if self.source else self.key

    @property
    def split_name(self) -> str:
        """What its side of the split is drawn from (:func:`held_out`)."""
        return self.key if self.split_by_key else self.content_digest().hex()

    def is_held_out(self, fraction: float, seed: int) -> bool:
        """Whether it belongs to the held-out split.

        Args:
            fraction: `dataset.eval_fraction`.
            seed: `dataset.split_seed`.
        """
        return held_out(self.split_name, fraction, seed) if self.held is None else self.held

    def content_digest(self) -> bytes:
        """16 bytes, equal for equal texts, whatever blanks stand around them."""
        return hashlib.blake2b(self.text.strip().encode(), digest_size=16).digest()


def held_out(name: str, fraction: float, seed: int) -> bool:
    """Whether what is called `name` belongs to the held-out split: a hash of the name, so it never depends on other documents.

    Args:
        name: the document's :attr:`Document.split_name`.
        fraction: expected share of documents held out, in (0, 1).
        seed: `dataset.split_seed`.
    """
    digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    return int.from_bytes(digest[:8], "big") < fraction * 2**64
