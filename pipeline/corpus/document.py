"""One text with where it came from."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Document:
    """A document of a corpus.

    Attributes:
        key: stable name inside its corpus; the split is drawn from it.
        text: the text itself.
        origin: where to find the text again, JSON-able; a data set of the hub gives its row and field here, and then the
            token store keeps this instead of the text.
        keep_text: whether the token store keeps the text.
    """

    key: str
    text: str
    origin: dict[str, str | int] = field(default_factory=dict)
    keep_text: bool = True


def held_out(key: str, fraction: float, seed: int) -> bool:
    """Whether the document `key` belongs to the held-out split: a hash of the key, so it never depends on other documents.

    Args:
        key: the document's key.
        fraction: expected share of documents held out, in (0, 1).
        seed: `dataset.split_seed`.
    """
    digest = hashlib.sha256(f"{seed}:{key}".encode()).digest()
    return int.from_bytes(digest[:8], "big") < fraction * 2**64
