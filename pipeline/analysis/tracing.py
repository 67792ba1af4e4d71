"""Windows of contexts with their texts: tokens of one document around a token, and where they stand in it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from pipeline.corpus.contexts import read_contexts

if TYPE_CHECKING:
    from collections.abc import Callable

    import pyarrow as pa

    from pipeline.corpus.tokens import TokenSplit

FIELDS = ("tokens", "document_ids", "char_starts", "char_ends")


class Windows(NamedTuple):
    """Windows of contexts.

    Attributes:
        kept: bool [n, before + 1 + after], the tokens of each window.
        columns: those of contexts.parquet that follow from the place: document, characters, tokens, texts, peak.
    """

    kept: np.ndarray
    columns: dict[str, Any]


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
        self._texts: dict[int, str] = {}
        self._fields = {field: read_contexts(split, contexts, field) for field in FIELDS}

    def text(self, token: int) -> str:
        """A token's text."""
        found = self._texts.get(token)
        if found is None:
            found = self._texts[token] = self._text(token)
        return found

    def _document(self, number: int) -> str:
        found = self._keys.get(number)
        if found is None:
            found = self._keys[number] = str(self._split.document(number)["key"])
        return found

    def windows(self, context: np.ndarray, position: np.ndarray, before: int, after: int) -> Windows:
        """The windows of one document around n places.

        Args:
            context: [n], numbers of analysed contexts.
            position: [n], of the token in the context.
            before, after: tokens shown before and after it, where the document has them.
        """
        row, position = self._row(context), position.astype(np.int64)
        at = position[:, None] + np.arange(-before, after + 1)
        inside = (at >= 0) & (at < self._fields["tokens"].shape[1])
        places = (row[:, None], np.where(inside, at, position[:, None]))
        tokens, documents, starts, ends = (self._fields[field][places] for field in FIELDS)
        own = inside & (documents == documents[:, before, None])
        left = np.logical_and.accumulate(own[:, before::-1], axis=1)[:, :0:-1]
        kept = np.concatenate([left, np.logical_and.accumulate(own[:, before:], axis=1)], axis=1)
        real = kept & (starts >= 0)
        char_start = np.where(real, starts, np.iinfo(starts.dtype).max).min(1)
        n_kept = kept.sum(1)
        columns = {
            "document_id": documents[:, before],
            "document": _texts(documents[:, before], self._document),
            "token_start": starts[:, before],
            "token_end": ends[:, before],
            "char_start": np.where(real.any(1), char_start, -1),
            "char_end": np.where(real, ends, -1).max(1),
            "peak": left.sum(1).astype(np.int16),
            "tokens": lists(n_kept, tokens[kept]),
            "texts": lists(n_kept, _texts(tokens[kept], self.text)),
        }
        return Windows(kept, columns)

    def texts_at(self, context: np.ndarray, position: np.ndarray) -> pa.Array:
        """Texts of the tokens at n places."""
        return _texts(self._fields["tokens"][self._row(context), position], self.text)

    def _row(self, context: np.ndarray) -> np.ndarray:
        return np.searchsorted(self._contexts, context)


def _texts(numbers: np.ndarray, text: Callable[[int], str]) -> pa.Array:
    """The text of each number, each asked for once."""
    import pyarrow as pa

    found, place = np.unique(numbers, return_inverse=True)
    texts = pa.array([text(number) for number in found.tolist()], pa.string())
    return pa.DictionaryArray.from_arrays(pa.array(place.astype(np.int32)), texts).dictionary_decode()


def lists(lengths: np.ndarray, values: Any) -> pa.Array:
    """Lists of these lengths, one after the other, of all the values."""
    import pyarrow as pa

    ends = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    return pa.ListArray.from_arrays(pa.array(ends), values if isinstance(values, pa.Array) else pa.array(values))
