"""How well a dictionary finds features that are known: directions, matched one to one, and when each is active (SPEC 9)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


def cosines(directions: Tensor, rows: Tensor) -> Tensor:
    """Cosine similarities [n, F] of [n, D] and [F, D]; a row of length 0 has cosine 0."""
    return torch.nn.functional.normalize(directions, dim=-1) @ torch.nn.functional.normalize(rows, dim=-1).T


def recovery(directions: Tensor, decoder_rows: Tensor) -> Tensor:
    """For each known direction its largest cosine similarity with a decoder row; the mean is the share recovered.

    Every direction counts alike, however rarely it is used.

    Args:
        directions: [n, D].
        decoder_rows: [F, D], of any length; a row of length 0 has cosine 0.

    Returns: [n], in [-1, 1].
    """
    return cosines(directions, decoder_rows).amax(1)


class Matching(NamedTuple):
    """Directions and rows, one to one.

    Attributes:
        directions, rows: int64 [min(n, F)], the pairs.
        similarity: |cosine| of each pair.
    """

    directions: Tensor
    rows: Tensor
    similarity: Tensor

    @property
    def mean(self) -> float:
        """Mean correlation coefficient, MCC."""
        return float(self.similarity.mean())


def matching(directions: Tensor, decoder_rows: Tensor) -> Matching:
    """The pairs with the largest sum of |cosine| (Hungarian algorithm); of unequal numbers some stay without a partner.

    Args:
        directions: [n, D].
        decoder_rows: [F, D].
    """
    from scipy.optimize import linear_sum_assignment

    similarity = cosines(directions, decoder_rows).abs()
    first, second = (torch.from_numpy(each) for each in linear_sum_assignment(similarity.numpy(), maximize=True))
    return Matching(first, second, similarity[first, second])


def uniqueness(directions: Tensor, decoder_rows: Tensor) -> float:
    """Number of directions that are the most similar one (by |cosine|) of some decoder row, over the number of rows."""
    return len(best_direction(directions, decoder_rows).unique()) / len(decoder_rows)


def best_direction(directions: Tensor, decoder_rows: Tensor) -> Tensor:
    """For each decoder row the direction of the largest |cosine|, int64 [F]."""
    return cosines(directions, decoder_rows).abs().argmax(0)


class DetectionCounts:
    """Each feature of a dictionary as a detector of one known feature.

    Args:
        known: int64 [F], the known feature that each is compared with.

    Attributes:
        both, fired, true: [F], rows on which both are active, the dictionary's feature, and the known one.
    """

    def __init__(self, known: Tensor) -> None:
        self.known = known
        self.both, self.fired, self.true = (torch.zeros(len(known), dtype=torch.int64) for _ in range(3))

    def update(self, f: Tensor, a: Tensor) -> None:
        """Add rows: features f [n, F], and the coefficients of known features a [n, G]."""
        fires, true = f != 0, (a > 0)[:, self.known]
        self.both += (fires & true).sum(0)
        self.fired += fires.sum(0)
        self.true += true.sum(0)

    def results(self) -> dict[str, float]:
        """`precision`, `recall` and `f1`, each a mean over all features; 0 where it is undefined, as of a dead feature."""
        both, fired, true = (each.double() for each in (self.both, self.fired, self.true))
        precision, recall = both / fired.clamp_min(1), both / true.clamp_min(1)
        f1 = 2 * both / (fired + true).clamp_min(1)
        return {name: float(x.mean()) for name, x in (("precision", precision), ("recall", recall), ("f1", f1))}
