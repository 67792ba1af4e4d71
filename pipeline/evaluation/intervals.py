"""Confidence intervals of ratios of sums over tokens, from drawing whole documents again (bootstrap).

Tokens of one document are alike: an interval that takes them for independent is too narrow. Drawn are as many documents as
there are, with replacement; the interval holds the middle 95 % of the ratios. Source: Efron and Tibshirani 1993, percentile
method, with documents as clusters.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pipeline.seeding import generator

DRAWS = 2000
TAIL = 0.025
BLOCK = 2**22  # drawn documents held at once


class DocumentSums:
    """Sums over each document's tokens, float64, of several quantities by name."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}

    def add(self, name: str, values: Tensor, documents: Tensor) -> None:
        """Add values [n] of tokens of documents int64 [n]."""
        documents = documents.cpu()
        size = int(documents.max()) + 1 if len(documents) else 0
        sums = self._sums.setdefault(name, torch.zeros(size, dtype=torch.float64))
        if size > len(sums):
            sums = torch.cat([sums, sums.new_zeros(size - len(sums))])
        self._sums[name] = sums.index_add_(0, documents, values.detach().to("cpu", torch.float64))

    def add_all(self, other: DocumentSums) -> None:
        """Add the sums of another one, of the same documents."""
        for name, sums in other._sums.items():
            self.add(name, sums, torch.arange(len(sums)))

    def of(self, *names: str) -> tuple[Tensor, ...]:
        """The sums of each name, float64, of equal lengths; a document without tokens has 0."""
        found = [self._sums.get(name, torch.zeros(0, dtype=torch.float64)) for name in names]
        size = max(len(sums) for sums in found)
        return tuple(torch.cat([sums, sums.new_zeros(size - len(sums))]) for sums in found)


def ratio_interval(numerators: Tensor, denominators: Tensor, seed: int = 0) -> tuple[float, float] | None:
    """Interval of sum(numerators) / sum(denominators).

    Args:
        numerators, denominators: float64 [n], of each document; those with denominator 0 are left out.
        seed: of the draws.

    Returns: low and high; None where there are fewer than two documents.
    """
    there = denominators != 0
    a, b = numerators[there], denominators[there]
    n = len(a)
    if n < 2:
        return None
    draw = generator(seed, "bootstrap", "documents")
    step = max(1, BLOCK // n)
    ratios = []
    for start in range(0, DRAWS, step):
        rows = torch.randint(n, (min(step, DRAWS - start), n), generator=draw)
        ratios.append(a[rows].sum(1) / b[rows].sum(1))
    low, high = torch.cat(ratios).quantile(torch.tensor([TAIL, 1 - TAIL], dtype=torch.float64)).tolist()
    return low, high


def with_interval(name: str, interval: tuple[float, float] | None) -> dict[str, float]:
    """{name_low, name_high}; nothing without an interval."""
    return {} if interval is None else {f"{name}_low": interval[0], f"{name}_high": interval[1]}
