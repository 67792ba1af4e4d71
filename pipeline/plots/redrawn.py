"""Runs that were evaluated on the same documents, with these drawn again: the losses of each draw, and its knee.

Each draw has the same documents for all runs. How hard a document is then adds to all of them alike, and drops out of what
is compared.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from pipeline.documents import Documents

Array = NDArray[np.float64]
# How near a run's loss is to that of its documents; one that is farther away is of another evaluation, as where git has taken
# metrics/evaluation.json back and DVC the plots not yet.
RELATIVE, ABSOLUTE = 1e-6, 1e-9


def redrawn_losses(documents: Sequence[Documents], loss: str, figures: Sequence[float]) -> Array | None:
    """The losses of some runs in each draw, [draws, runs]; None: they are not known document by document, or of others.

    Args:
        documents: of each run.
        loss: "fvu" or "delta_ce".
        figures: the loss of each run.
    """
    found = _redrawn(tuple(documents), loss)
    if found is None:
        return None
    whole, losses = found
    near = (math.isclose(a, b, rel_tol=RELATIVE, abs_tol=ABSOLUTE) for a, b in zip(whole.tolist(), figures, strict=True))
    return losses if all(near) else None


@functools.lru_cache(maxsize=32)
def _redrawn(documents: tuple[Documents, ...], loss: str) -> tuple[Array, Array] | None:
    """(losses of all documents [runs], of those of each draw [draws, runs])."""
    pairs = [pair for each in documents if (pair := each.of(loss)) is not None]
    if len(pairs) < len(documents) or len({each.digest for each in documents}) > 1 or len({len(a) for a, _ in pairs}) > 1:
        return None
    over, under = (np.array([pair[i] for pair in pairs], dtype=np.float64).T for i in (0, 1))
    there = (under != 0).any(1)
    if there.sum() < 2:
        return None
    import torch

    from pipeline.redraws import redrawn_sums

    # Equal columns once: a product may round them differently, and equal runs are to stay equal.
    columns, place = np.unique(np.hstack([over[there], under[there]]), axis=1, return_inverse=True)
    above, below = np.split(redrawn_sums(torch.from_numpy(columns)).numpy()[:, place.ravel()], 2, axis=1)
    return (over.sum(0) / under.sum(0), above / below) if (below > 0).all() else None


def knees(losses: Array, l0: Sequence[float], alive: Sequence[bool], fewest: int, least_bow: float) -> NDArray[np.bool_]:
    """Which runs are the knee in each draw, bool [draws, runs], by the rule of pipeline/plots/knee.py; in a row without any
    there is none.

    Args:
        losses: [draws, runs].
        l0, alive: of each run; one that is not alive is no knee.
        fewest: L0s that no other run beats, of a draw that may have a knee.
        least_bow: share of the whole fall by which a knee lies below the straight line.
    """
    values, of = np.unique(np.asarray(l0, dtype=np.float64), return_inverse=True)
    if len(values) < fewest or values[0] <= 0:
        return np.zeros(losses.shape, dtype=np.bool_)
    x, living = np.log2(values), np.asarray(alive, dtype=np.bool_)
    best = np.stack([losses[:, of == i].min(1) for i in range(len(values))], axis=1)  # [draws, L0s]
    smallest = np.minimum.accumulate(best, axis=1)
    unbeaten = np.concatenate([np.ones_like(best[:, :1], np.bool_), best[:, 1:] < smallest[:, :-1]], axis=1)
    first, fall = best[:, :1], best[:, :1] - smallest[:, -1:]
    way = np.where(unbeaten, x - x[0], 0.0).max(1, keepdims=True)
    with np.errstate(divide="ignore", invalid="ignore"):  # of draws in which the first run is unbeaten alone
        bow = (first - fall * (x - x[0]) / way - best) / fall
    candidates = (losses == best[:, of]) & living
    may = unbeaten & np.stack([candidates[:, of == i].any(1) for i in range(len(values))], axis=1)
    bow = np.where(may, bow, -np.inf)
    has = (unbeaten.sum(1) >= fewest) & (bow.max(1) >= least_bow)
    return candidates & (of == bow.argmax(1)[:, None]) & has[:, None]
