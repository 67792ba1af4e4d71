"""Which features write the same: the cosine similarity of (concatenated) decoder rows, a block of features at a time; and how
alike is what one feature writes at several hook points."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from pipeline.dictionaries.base import Dictionary
    from pipeline.progress import Progress


def decoder_rows(dictionary: Dictionary) -> list[Tensor]:
    """What all features write at each written hook point: [F, D] each, layers one after another."""
    places = range(len(dictionary.hooks_out))
    return [dictionary.written_rows(place).detach().flatten(0, -2).float() for place in places]


@torch.no_grad()
def written_cosines(rows: list[Tensor]) -> Tensor | None:
    """Cosine similarity of what each feature writes at two hook points, [F, pairs], on the CPU; None of one hook point.

    Args:
        rows: [F, D] at each written hook point. Pairs are (0, 1), (0, 2), ..., (1, 2), ...; nan where a feature writes nothing
            at one of the two.
    """
    if len(rows) < 2:
        return None
    unit = [part / part.norm(dim=1, keepdim=True) for part in rows]  # 0 / 0 is nan
    return torch.stack([(one * two).sum(1) for one, two in itertools.combinations(unit, 2)], dim=1).cpu()


@torch.no_grad()
def decoder_neighbours(
    rows: list[Tensor], n: int, block: int = 1024, progress: Progress | None = None
) -> tuple[Tensor, Tensor]:
    """The n features of the most similar decoder rows, itself left out.

    Args:
        rows: [F, D] at each written hook point; the similarity is that of the rows put together.
        block: features compared with all others at a time.
        progress: counts features.

    Returns: features int64 [F, n] (-1: there are fewer), cosine similarities float32 [F, n], on the CPU.
    """
    total = len(rows[0])
    found, cosine = torch.full((total, n), -1, dtype=torch.int64), torch.zeros(total, n)
    if n == 0:
        return found, cosine
    norms = sum((part.square().sum(1) for part in rows), torch.zeros_like(rows[0][:, 0])).sqrt().clamp_min(1e-12)
    for start in range(0, total, block):
        some = slice(start, min(start + block, total))
        similarity = rows[0][some] @ rows[0].T
        for part in rows[1:]:
            similarity.addmm_(part[some], part.T)
        similarity /= norms[some, None] * norms
        similarity[torch.arange(some.stop - start), torch.arange(start, some.stop)] = -torch.inf
        values, which = similarity.topk(min(n, total), dim=1)
        real = values > -torch.inf
        cosine[some, : values.shape[1]] = torch.where(real, values, 0.0).cpu()
        found[some, : values.shape[1]] = torch.where(real, which, -1).cpu()
        if progress is not None:
            progress.update(some.stop - start)
    return found, cosine
