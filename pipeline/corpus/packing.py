"""Packing documents into contexts of one length, every token keeping its document and character range.

Rule: documents are laid end to end, each followed by the end-of-text token where the tokenizer has one; the stream is cut
into contexts. With `prepend_bos` every context starts with the beginning-of-text token and has one token less of the
stream. The last, incomplete context is dropped.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

NO_CHARACTERS = -1
FIELDS = ("tokens", "document_ids", "char_starts", "char_ends")


@dataclass
class PackedSplit:
    """Contexts in order; all arrays int32 [n_contexts, context_size].

    Attributes:
        tokens: token ids.
        document_ids: the document that the token stands in (special tokens: that they end or precede).
        char_starts, char_ends: the token's characters in that document; -1 for special tokens.
    """

    tokens: np.ndarray
    document_ids: np.ndarray
    char_starts: np.ndarray
    char_ends: np.ndarray

    def rows(self) -> np.ndarray:
        """int32 [4, n_contexts, context_size] in the order of FIELDS."""
        return np.stack([self.tokens, self.document_ids, self.char_starts, self.char_ends])


def kept_tokens(tokens: np.ndarray, ignore_token_ids: Iterable[int], ignore_positions: int = 0) -> np.ndarray:
    """Which tokens are trained on and evaluated, whatever their activations are.

    Args:
        tokens: int [..., context_size], whole contexts.
        ignore_token_ids: ids that are left out.
        ignore_positions: first positions of each context that are left out.

    Returns: bool, shape of `tokens`.
    """
    kept = ~np.isin(tokens, np.asarray(sorted(ignore_token_ids), dtype=np.int64))
    kept[..., :ignore_positions] = False
    return kept


class Packer:
    """Cuts a growing stream of tokens into contexts.

    Args:
        context_size: tokens in a context.
        bos: id put first in every context, or None for no such token.
        eos: id put after every document, or None.
    """

    def __init__(self, context_size: int, bos: int | None, eos: int | None) -> None:
        self.context_size, self.bos, self.eos = context_size, bos, eos
        self._pending: list[np.ndarray] = []
        self._length = 0

    def add(self, document_id: int, ids: np.ndarray, starts: np.ndarray, ends: np.ndarray) -> None:
        """Lay one document behind the stream."""
        block = np.stack([ids, np.full_like(ids, document_id), starts, ends]).astype(np.int32)
        if self.eos is not None:
            end = np.array([[self.eos], [document_id], [NO_CHARACTERS], [NO_CHARACTERS]], dtype=np.int32)
            block = np.concatenate([block, end], axis=1)
        self._pending.append(block)
        self._length += block.shape[1]

    def contexts(self, at_least: int = 1) -> Iterator[PackedSplit]:
        """Yield the whole contexts that are ready, all at once, if there are `at_least` so many."""
        per_context = self.context_size - (self.bos is not None)
        n = self._length // per_context
        if n < at_least or n == 0:
            return
        stream = np.concatenate(self._pending, axis=1)
        body, rest = stream[:, : n * per_context], stream[:, n * per_context :]
        self._pending, self._length = [rest], rest.shape[1]
        rows = body.reshape(4, n, per_context)
        if self.bos is not None:
            first = np.full((4, n, 1), NO_CHARACTERS, dtype=np.int32)
            first[0], first[1] = self.bos, rows[1, :, :1]
            rows = np.concatenate([first, rows], axis=2)
        yield PackedSplit(*np.ascontiguousarray(rows))
