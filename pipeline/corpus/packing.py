"""Packing documents into contexts of one length, every token keeping its document and character range.

Rule: documents are laid end to end, each followed by the end-of-text token where the tokenizer has one; the stream is cut
into contexts. With `prepend_bos` every context starts with the beginning-of-text token and has one token less of the
stream. The last, incomplete context is dropped. A conversation has the beginning and the end that its chat template gives it:
no token is put after it, and none before a context that begins with the template's own.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

NO_CHARACTERS = -1
FIELDS = ("tokens", "document_ids", "char_starts", "char_ends")
COUNTED = "counted"


@dataclass
class PackedSplit:
    """Contexts in order; all arrays int32 [n_contexts, context_size].

    Attributes:
        tokens: token ids.
        document_ids: the document that the token stands in (special tokens: that they end or precede).
        char_starts, char_ends: the token's characters in that document; -1 for special tokens.
        counted: 1 where the token counts, as far as its document says; None: everywhere.
    """

    tokens: np.ndarray
    document_ids: np.ndarray
    char_starts: np.ndarray
    char_ends: np.ndarray
    counted: np.ndarray | None = None

    def rows(self) -> np.ndarray:
        """int32 [4, n_contexts, context_size] in the order of FIELDS; [5, ...] with `counted` behind them."""
        arrays = [self.tokens, self.document_ids, self.char_starts, self.char_ends]
        return np.stack(arrays if self.counted is None else [*arrays, self.counted])


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
        own_bos: whether documents may begin with `bos` themselves: a context that begins with one gets no other.
    """

    def __init__(self, context_size: int, bos: int | None, eos: int | None, own_bos: bool = False) -> None:
        self.context_size, self.bos, self.eos, self.own_bos = context_size, bos, eos, own_bos
        self._pending: list[np.ndarray] = []
        self._length = 0

    def add(
        self, document_id: int, ids: np.ndarray, starts: np.ndarray, ends: np.ndarray, counted: np.ndarray | None = None
    ) -> None:
        """Lay one document behind the stream; `counted` is given of every document or of none."""
        own = [] if counted is None else [counted]
        block = np.stack([ids, np.full_like(ids, document_id), starts, ends, *own]).astype(np.int32)
        if self.eos is not None:
            end = np.array([self.eos, document_id, NO_CHARACTERS, NO_CHARACTERS, 1][: len(block)], dtype=np.int32)
            block = np.concatenate([block, end[:, None]], axis=1)
        self._pending.append(block)
        self._length += block.shape[1]

    def contexts(self, at_least: int = 1) -> Iterator[PackedSplit]:
        """Yield the whole contexts that are ready, all at once, if there are `at_least` so many."""
        per_context = self.context_size - (self.bos is not None)
        n = self._length // per_context
        if n < at_least or n == 0:
            return
        stream = np.concatenate(self._pending, axis=1)
        if self.bos is None:
            rows, used = stream[:, : n * per_context].reshape(len(stream), n, per_context), n * per_context
        elif self.own_bos:
            rows, used = _cut_by_own_bos(stream, self.bos, self.context_size)
        else:
            body = stream[:, : n * per_context].reshape(len(stream), n, per_context)
            rows, used = np.concatenate([_beginning(self.bos, body[1, :, :1], len(body)), body], axis=2), n * per_context
        self._pending, self._length = [stream[:, used:]], stream.shape[1] - used
        if rows.shape[1]:
            yield PackedSplit(*np.ascontiguousarray(rows))


def _beginning(bos: int, documents: np.ndarray, n_fields: int) -> np.ndarray:
    """int32 [fields, n, 1]: the beginning-of-text token before contexts whose first tokens are of `documents` [n, 1]."""
    first = np.full((n_fields, *documents.shape), NO_CHARACTERS, dtype=np.int32)
    first[0], first[1], first[4:] = bos, documents, 1
    return first


def _cut_by_own_bos(stream: np.ndarray, bos: int, context_size: int) -> tuple[np.ndarray, int]:
    """(int32 [fields, n, context_size] of the whole contexts, tokens of the stream in them).

    A context that begins with the stream's own `bos` holds one token more of the stream than another, which gets one.
    """
    contexts: list[np.ndarray] = []
    at = 0
    while at < stream.shape[1]:
        own = stream[0, at] == bos
        body = stream[:, at : at + context_size - (not own)]
        if body.shape[1] + (not own) < context_size:
            break
        contexts.append(body if own else np.concatenate([_beginning(bos, body[1, :1], len(body)), body], axis=1))
        at += body.shape[1]
    return (np.stack(contexts, axis=1) if contexts else np.empty((len(stream), 0, context_size), np.int32)), at
