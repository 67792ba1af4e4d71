"""Contexts of a split of the token store, batch by batch, the same ones at every pass: what is evaluated and analysed."""

from __future__ import annotations

import functools
import hashlib
import math
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from pipeline.corpus.contexts import CHUNK_CONTEXTS, read_contexts
from pipeline.corpus.tokens import WHOLE
from pipeline.errors import DataError
from pipeline.extent import Extent


class Contexts(Protocol):
    """A split of a token store: what is needed of it."""

    n_contexts: int
    context_size: int

    @property
    def file_ids(self) -> np.ndarray | None:
        """int32, of each of the store's documents the text file that it is a piece of, -1: it is whole; None: all are."""
        ...

    def read(self, start: int = 0, stop: int | None = None, field: str = "tokens") -> np.ndarray:
        """int32 [n, T] of contexts start..stop: tokens, or document_ids."""
        ...


def contexts_asked_for(n_contexts: int, context_size: int, tokens: int | None) -> int:
    """How many contexts of a split hold so many tokens, rounded up; all of them for None.

    Raises:
        DataError: the split is empty, or has fewer tokens than asked for.
    """
    if n_contexts == 0:
        raise DataError("the held-out split has no context; raise dataset.eval_fraction or give more text, then `dvc repro`")
    wanted = n_contexts if tokens is None else math.ceil(tokens / context_size)
    if wanted > n_contexts:
        raise DataError(
            f"evaluation.tokens asks for {tokens:,} held-out tokens, there are {n_contexts * context_size:,}; ask for "
            "fewer, or raise dataset.eval_fraction"
        )
    return wanted


@dataclass(frozen=True)
class SplitBatch:
    """Contexts of a split.

    Attributes:
        contexts: int64 [b], their numbers in the split.
        tokens: int64 [b, T].
        mask: bool [b, T], True where the token is kept.
        documents: int64 [b, T], numbers of the documents that the tokens are of: pieces of a text file have that of their file.
        label: "held-out contexts 32 to 63", for messages.
    """

    contexts: Tensor
    tokens: Tensor
    mask: Tensor
    documents: Tensor
    label: str


class SplitTokens:
    """All contexts of a split, or as many as hold the tokens asked for, spread evenly over the split.

    Args:
        split: where the contexts are.
        mask_of: numbers of contexts, their tokens -> bool, True where a token is kept (not a special token).
        tokens: how many tokens to evaluate, masked ones included, rounded up to whole contexts; None: all.
        batch_contexts: contexts per batch.
        name: of the split, for messages.

    Raises:
        DataError: the split is empty, or has fewer tokens than asked for.
    """

    def __init__(
        self,
        split: Contexts,
        mask_of: Callable[[np.ndarray, np.ndarray], np.ndarray],
        tokens: int | None,
        batch_contexts: int,
        name: str = "held-out",
    ) -> None:
        self._split, self._mask_of, self.batch_contexts, self._name = split, mask_of, batch_contexts, name
        n_all = split.n_contexts
        wanted = contexts_asked_for(n_all, split.context_size, tokens)
        self.contexts = np.arange(wanted, dtype=np.int64) * n_all // wanted
        self.n_contexts, self.n_tokens = wanted, wanted * split.context_size
        self._wholes = None if split.file_ids is None else whole_documents(split.file_ids)

    def __iter__(self) -> Iterator[SplitBatch]:
        return map(self.batch, range(self.n_batches))

    @property
    def n_batches(self) -> int:
        """How many batches there are."""
        return -(-self.n_contexts // self.batch_contexts)

    def batch(self, number: int) -> SplitBatch:
        """One of the batches."""
        start = number * self.batch_contexts
        chosen = self.contexts[start : start + self.batch_contexts]
        tokens = read_contexts(self._split, chosen, "tokens")
        return SplitBatch(
            torch.from_numpy(chosen),
            torch.from_numpy(tokens.astype(np.int64)),
            torch.from_numpy(np.ascontiguousarray(self._mask_of(chosen, tokens))),
            torch.from_numpy(self._documents(chosen)),
            f"{self._name} contexts {chosen[0]} to {chosen[-1]}",
        )

    def _documents(self, chosen: np.ndarray) -> np.ndarray:
        ids = read_contexts(self._split, chosen, "document_ids").astype(np.int64)
        return ids if self._wholes is None else self._wholes[ids]

    @functools.cached_property
    def digest(self) -> str:
        """sha256 of the chosen contexts, their tokens, which of these are kept, and their documents, however batched."""
        digest = hashlib.sha256()
        for batch in self:
            columns = (batch.contexts[:, None], batch.tokens, batch.mask.long(), batch.documents)
            digest.update(torch.cat(columns, dim=1).numpy().astype("<i8").tobytes())
        return digest.hexdigest()

    def extent(self, documents: Collection[int]) -> Extent:
        """How many documents these are, by their numbers in `SplitBatch.documents`."""
        files, numbers = self._split.file_ids, np.fromiter(documents, dtype=np.int64)
        return Extent(len(numbers), 0 if files is None else int((files[numbers] != WHOLE).sum()))

    def whole_extent(self) -> Extent:
        """The documents of all chosen contexts, a part of them at a time; masked tokens too."""
        found: set[int] = set()
        for start in range(0, self.n_contexts, CHUNK_CONTEXTS):
            found.update(np.unique(self._documents(self.contexts[start : start + CHUNK_CONTEXTS])).tolist())
        return self.extent(found)


def whole_documents(file_ids: np.ndarray) -> np.ndarray:
    """int64 [n], of each of the store's documents the number of the whole one: of a piece the first piece of its file.

    Args:
        file_ids: int32 [n], of each the text file that it is a piece of, -1: it is whole.
    """
    wholes = np.arange(len(file_ids), dtype=np.int64)
    pieces = file_ids != WHOLE
    _, first, file = np.unique(file_ids[pieces], return_index=True, return_inverse=True)
    wholes[pieces] = wholes[pieces][first][file]
    return wholes
