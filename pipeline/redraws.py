"""Documents drawn again (bootstrap): as many as there are, with replacement, always the same draws for the same number of them.

Source: Efron and Tibshirani 1993, percentile method, with documents as clusters.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from pipeline.seeding import generator

if TYPE_CHECKING:
    from torch import Tensor

DRAWS = 2000
TAIL = 0.025
BLOCK = 2**22  # drawn documents held at once


def redraws(n: int, seed: int = 0) -> Iterator[Tensor]:
    """Numbers of the drawn ones of n documents, int64 [d, n], d of the DRAWS draws at a time."""
    import torch

    draw, step = generator(seed, "bootstrap", "documents"), max(1, BLOCK // n)
    for start in range(0, DRAWS, step):
        yield torch.randint(n, (min(step, DRAWS - start), n), generator=draw)


def redrawn_sums(values: Tensor, seed: int = 0) -> Tensor:
    """Sums of values float64 [n, m] of documents over each draw's documents, [DRAWS, m].

    A draw says how often it has each document, and all sums of it are one product: many columns cost little more than one.
    """
    import torch

    found = []
    for rows in redraws(len(values), seed):
        times = torch.zeros(rows.shape, dtype=torch.float64)
        found.append(times.scatter_add_(1, rows, torch.ones_like(times)) @ values)
    return torch.cat(found)
