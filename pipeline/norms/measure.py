"""The pass over activations that measures its hook points' norms."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from pipeline.errors import NumericsError
from pipeline.norms.exclusion import MEDIAN_TOKENS, median_norm
from pipeline.norms.statistics import ActivationStatistics

if TYPE_CHECKING:
    from pipeline.activations.interface import Activations


def first_median(store: Activations, hook_point: str) -> float | None:
    """Median norm of the first MEDIAN_TOKENS tokens of a store (kept ones; rows are shuffled); None where it is 0."""
    flat = store.target == "activations-1d"
    stop = min(-(-MEDIAN_TOKENS // (1 if flat else store.context_size)), store.n_rows)
    return median_norm(store.read(hook_point, 0, stop), None if flat else store.read("mask", 0, stop))


def compute_norms(
    store: Activations,
    tokens: int | None = None,
    *,
    max_norm_factor: float | None = None,
    hook_points: Sequence[str] | None = None,
    device: str | torch.device = "cpu",
    done: Callable[[int], None] = lambda n: None,
    massive: Callable[[str, int, Tensor], None] = lambda hook_point, start, rows: None,
) -> dict[str, ActivationStatistics]:
    """Statistics of the first rows of a store (they are shuffled, so a fair sample).

    Args:
        store: open activations.
        tokens: how many tokens to read, rounded up to whole contexts in 2-D; None: all.
        max_norm_factor: activations.max_norm_factor.
        hook_points: which; None: all that are open.
        device: where the sums are computed.
        done: called with every number of tokens that were read at all hook points.
        massive: called with a hook point, a row of the store and a bool tensor of its shape [n] or [n, T] for the rows from
            there on: True for a massive token.

    Raises:
        NumericsError: a non-finite activation, with hook point and store row; or no kept token at all.
    """
    flat = store.target == "activations-1d"
    per_row = 1 if flat else store.context_size
    rows = store.n_rows if tokens is None else min(-(-tokens // per_row), store.n_rows)
    names = list(hook_points if hook_points is not None else store.hook_points)
    found = {
        name: ActivationStatistics(store.width(name), device, first_median(store, name), max_norm_factor) for name in names
    }
    for start in range(0, rows, store.chunk_rows):
        stop = min(start + store.chunk_rows, rows)
        mask = None if flat else store.read("mask", start, stop)
        for name, values in store.read_together(names, start, stop).items():
            above = found[name].update(values, mask)
            if above is not None:
                massive(name, start, above)
            if found[name].nonfinite:
                bad = ~torch.isfinite(values).all(dim=-1) & (mask if mask is not None else torch.tensor(True))
                index = tuple(int(i) for i in bad.nonzero()[0])
                where = f"row {start + index[0]}" + ("" if flat else f", position {index[1]}")
                raise NumericsError(
                    f"{store.path}: hook point {name}: {found[name].nonfinite} of {stop:,} rows hold non-finite "
                    f"activations, the first at {where}; generate with another model.dtype or storage_dtype"
                )
        done((stop - start) * per_row)
    for name, statistics in found.items():
        if statistics.n == 0 or statistics.sum_norm == 0.0:
            what = "no token is kept by the mask" if statistics.n == 0 else "every activation is zero"
            raise NumericsError(f"{store.path}: hook point {name}: {what}; there is no norm to normalise by")
    return found
