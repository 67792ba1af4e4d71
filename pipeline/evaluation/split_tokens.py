"""Contexts of a split of the token store, batch by batch, the same ones at every pass: what is evaluated and analysed."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from pipeline.corpus.contexts import read_contexts
from pipeline.errors import DataError


class Contexts(Protocol):
    """A split of a token store: what is needed of it."""

    n_contexts: int
    context_size: int

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
        documents: int64 [b, T], numbers of the documents that the tokens are of.
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
            torch.from_numpy(read_contexts(self._split, chosen, "document_ids").astype(np.int64)),
            f"{self._name} contexts {chosen[0]} to {chosen[-1]}",
        )
