"""Confidence intervals of ratios of sums over tokens, from drawing whole documents again (bootstrap).

Tokens of one document are alike: an interval that takes them for independent is too narrow. Drawn are as many documents as
there are, with replacement (pipeline/redraws.py); the interval holds the middle 95 % of the ratios. A text file whose pieces
are stored by themselves is one document (split_tokens.py).
"""

from __future__ import annotations

import torch
from torch import Tensor

from pipeline.redraws import TAIL, redraws


class DocumentSums:
    """Sums over each document's tokens, float64, of several quantities by name.

    Kept are the sums of each batch, in order: what is added up at the end does not depend on who has made them.
    """

    def __init__(self) -> None:
        self._parts: dict[str, list[tuple[Tensor, Tensor]]] = {}

    def add(self, name: str, values: Tensor, documents: Tensor) -> None:
        """Add values [n] of tokens of documents int64 [n]."""
        there, place = documents.cpu().unique(return_inverse=True)
        sums = torch.zeros(len(there), dtype=torch.float64).index_add_(0, place, values.detach().to("cpu", torch.float64))
        self._parts.setdefault(name, []).append((there, sums))

    def add_all(self, other: DocumentSums) -> None:
        """Add the sums of another one, of the same documents."""
        for name, parts in other._parts.items():
            self._parts.setdefault(name, []).extend(parts)

    def of(self, *names: str) -> tuple[Tensor, ...]:
        """The sums of each name, float64, of equal lengths; a document without tokens has 0."""
        parts = [self._parts.get(name, []) for name in names]
        size = max((int(there[-1]) + 1 for each in parts for there, _ in each if len(there)), default=0)
        found = [torch.zeros(size, dtype=torch.float64) for _ in names]
        for sums, each in zip(found, parts, strict=True):
            for there, added in each:
                sums[there] += added
        return tuple(found)

    def at(self, documents: Tensor, *names: str) -> tuple[Tensor, ...]:
        """The sums of each name at some documents int64 [n], float64 [n]."""
        short = self.of(*names)
        missing = max(0, int(documents.max()) + 1 - len(short[0])) if len(documents) else 0
        return tuple(torch.nn.functional.pad(sums, (0, missing))[documents] for sums in short)


def ratio_interval(numerators: Tensor, denominators: Tensor, seed: int = 0) -> tuple[float, float] | None:
    """Interval of sum(numerators) / sum(denominators).

    Args:
        numerators, denominators: float64 [n], of each document; those with denominator 0 are left out.
        seed: of the draws.

    Returns: low and high; None where there are fewer than two documents.
    """
    there = denominators != 0
    a, b = numerators[there], denominators[there]
    if len(a) < 2:
        return None
    ratios = [a[rows].sum(1) / b[rows].sum(1) for rows in redraws(len(a), seed)]
    low, high = torch.cat(ratios).quantile(torch.tensor([TAIL, 1 - TAIL], dtype=torch.float64)).tolist()
    return low, high


def with_interval(name: str, interval: tuple[float, float] | None) -> dict[str, float]:
    """{name_low, name_high}; nothing without an interval."""
    return {} if interval is None else {f"{name}_low": interval[0], f"{name}_high": interval[1]}
