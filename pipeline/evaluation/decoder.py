"""What can be said of a dictionary from its weights alone: decoder directions, norms, thresholds."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from pipeline.evaluation.sparsity import quantiles

if TYPE_CHECKING:
    from pipeline.dictionaries.base import Dictionary

BLOCK_ENTRIES = 2**22  # cosine similarities, or entries of one-hot features, held at once


@torch.no_grad()
def decoder_rows(dictionary: Dictionary) -> Tensor:
    """What each feature alone writes, [F, D]: decode_linear of one-hot features, block by block.

    With several written hook points their rows are concatenated, and features of several layers come layer by layer.
    """
    shape = dictionary.feature_shape
    n_features = math.prod(shape)
    parameter = next(dictionary.parameters())
    step = max(1, BLOCK_ENTRIES // n_features)
    rows = []
    for start in range(0, n_features, step):
        stop = min(start + step, n_features)
        one_hot = torch.zeros(stop - start, n_features, dtype=parameter.dtype, device=parameter.device)
        one_hot[torch.arange(stop - start), torch.arange(start, stop)] = 1.0
        rows.append(dictionary.decode_linear(one_hot.view(stop - start, *shape)).flatten(1))
    return torch.cat(rows)


def max_cosine_similarity(rows_FD: Tensor) -> Tensor:
    """For each decoder row the largest cosine similarity with any other row, [F].

    max_{j != i} <d_i, d_j> / (||d_i|| ||d_j||), computed block by block, so that [F, F] never exists. A zero row has
    similarity 0 with every other; a lone row 0. Unless the rows are float64, products run in float32.
    """
    n_features = len(rows_FD)
    rows_FD = rows_FD.detach()
    rows_FD = rows_FD if rows_FD.dtype == torch.float64 else rows_FD.float()
    unit_FD = rows_FD / rows_FD.norm(dim=-1, keepdim=True).clamp_min(1e-12)
    largest_F = torch.zeros(n_features, dtype=unit_FD.dtype, device=unit_FD.device)
    if n_features < 2:
        return largest_F
    step = max(1, BLOCK_ENTRIES // n_features)
    for start in range(0, n_features, step):
        stop = min(start + step, n_features)
        similarity = unit_FD[start:stop] @ unit_FD.T
        similarity[torch.arange(stop - start), torch.arange(start, stop)] = -torch.inf
        largest_F[start:stop] = similarity.amax(dim=1)
    return largest_F


@torch.no_grad()
def decoder_metrics(dictionary: Dictionary) -> dict[str, float]:
    """Quantiles over features (5, 25, 50, 75, 95 %), no data needed.

    decoder_max_cosine_q*: largest cosine similarity of a decoder row with any other; decoder_norm_q*: norms of decoder rows
    (concatenated over written hook points), as stored; threshold_q*: JumpReLU thresholds, if there are any.
    """
    results = quantiles(max_cosine_similarity(decoder_rows(dictionary)), "decoder_max_cosine")
    results.update(quantiles(dictionary.decoder_norms(), "decoder_norm"))
    thresholds = dictionary.thresholds()
    if thresholds is not None:
        results.update(quantiles(thresholds, "threshold"))
    return results
