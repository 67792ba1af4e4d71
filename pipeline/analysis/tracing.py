"""Windows of contexts with their texts: tokens of one document around a token, and where they stand in it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.evaluation.split_tokens import read_contexts

if TYPE_CHECKING:
    from collections.abc import Callable

    from pipeline.corpus.tokens import TokenSplit

FIELDS = ("tokens", "document_ids", "char_starts", "char_ends")


class AnalysedContexts:
    """The analysed contexts of a split, in memory: 16 B a token.

    Args:
        split: of the token store.
        contexts: int64 [n], their numbers, ascending.
        text: of the main model's tokens.
    """

    def __init__(self, split: TokenSplit, contexts: np.ndarray, text: Callable[[int], str]) -> None:
        self._split, self._text, self._contexts = split, text, contexts
        self._keys: dict[int, str] = {}
        self._fields = {field: read_contexts(split, contexts, field) for field in FIELDS}

    def text(self, token: int) -> str:
        """A token's text."""
        return self._text(token)

    def _document(self, number: int) -> str:
        found = self._keys.get(number)
        if found is None:
            found = self._keys[number] = str(self._split.document(number)["key"])
        return found

    def window(self, context: int, position: int, before: int, after: int) -> dict[str, Any]:
        """The columns of contexts.parquet that follow from the place: document, characters, tokens, texts, peak; and `first`,
        the position of the window's first token.
        """
        row = int(np.searchsorted(self._contexts, context))
        tokens, documents, starts, ends = (self._fields[field][row] for field in FIELDS)
        document = documents[position]
        first, last = max(0, position - before), min(len(tokens) - 1, position + after)
        other = np.flatnonzero(documents[first : last + 1] != document) + first
        first = int(max((i + 1 for i in other if i < position), default=first))
        last = int(min((i - 1 for i in other if i > position), default=last))
        own = slice(first, last + 1)
        real = starts[own] >= 0
        ids = [int(i) for i in tokens[own]]
        return {
            "document_id": int(document),
            "document": self._document(int(document)),
            "token_start": int(starts[position]),
            "token_end": int(ends[position]),
            "char_start": int(starts[own][real].min()) if real.any() else -1,
            "char_end": int(ends[own][real].max()) if real.any() else -1,
            "peak": position - first,
            "tokens": ids,
            "texts": [self.text(i) for i in ids],
            "first": first,
        }

    def token_at(self, context: int, position: int) -> str:
        """Text of the token at a place."""
        row = int(np.searchsorted(self._contexts, context))
        return self.text(int(self._fields["tokens"][row, position]))
