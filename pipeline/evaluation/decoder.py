"""What can be said of a dictionary from its weights alone: decoder directions, norms, thresholds.

Processes that hold features of their own are all given what is of all features; rows travel a block at a time.
"""

from __future__ import annotations

import itertools
import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from pipeline.dictionaries.sharding import features_of_all
from pipeline.evaluation.sparsity import quantiles
from pipeline.processes import ONE_PROCESS, Reductions

if TYPE_CHECKING:
    from pipeline.dictionaries.base import Dictionary

EXCLUSIVE = 0.9  # share of what a feature writes from which it belongs to one hook point
SHARE_BINS = 20
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


def max_cosine_similarity(rows_FD: Tensor, group: Reductions = ONE_PROCESS) -> Tensor:
    """For each decoder row the largest cosine similarity with any other row, [F]; also with those of the group's others.

    max_{j != i} <d_i, d_j> / (||d_i|| ||d_j||), computed block by block, so that [F, F] never exists. A zero row has
    similarity 0 with every other; a lone row 0. Unless the rows are float64, products run in float32.
    """
    n_features = len(rows_FD)
    rows_FD = rows_FD.detach()
    rows_FD = rows_FD if rows_FD.dtype == torch.float64 else rows_FD.float()
    unit_FD = rows_FD / rows_FD.norm(dim=-1, keepdim=True).clamp_min(1e-12)
    largest_F = torch.zeros(n_features, dtype=unit_FD.dtype, device=unit_FD.device)
    if n_features * group.size < 2:
        return largest_F
    if group.size > 1:
        return _largest_beside_others(unit_FD, group)
    step = max(1, BLOCK_ENTRIES // n_features)
    for start in range(0, n_features, step):
        stop = min(start + step, n_features)
        similarity = unit_FD[start:stop] @ unit_FD.T
        similarity[torch.arange(stop - start), torch.arange(start, stop)] = -torch.inf
        largest_F[start:stop] = similarity.amax(dim=1)
    return largest_F


def _largest_beside_others(unit_FD: Tensor, group: Reductions) -> Tensor:
    """The same of rows of unit length that are this process's, of as many in each."""
    n_own = len(unit_FD)
    largest_F = torch.full((n_own,), -torch.inf, dtype=unit_FD.dtype, device=unit_FD.device)
    step = max(1, BLOCK_ENTRIES // n_own)
    for start in range(0, n_own, step):
        stop = min(start + step, n_own)
        for rank, others in enumerate(group.gathered(unit_FD[start:stop])):
            similarity = unit_FD @ others.T
            if rank == group.rank:
                similarity[torch.arange(start, stop), torch.arange(stop - start)] = -torch.inf
            largest_F = torch.maximum(largest_F, similarity.amax(dim=1))
    return largest_F


def _activation_lengths(dictionary: Dictionary) -> Tensor:
    """Mean activation norm of each written hook point in the dictionary's own units, [P], float64.

    In an unfolded dictionary activations are normalised to one length, so that it is 1 for all; a folded one is in raw units.
    """
    norms = dictionary.config.norms if dictionary.config.folded else None
    return torch.tensor([norms[hook]["mean_norm"] if norms else 1.0 for hook in dictionary.hooks_out], dtype=torch.float64)


@torch.no_grad()
def written_shares(dictionary: Dictionary) -> Tensor:
    """Where each feature writes, [P, F] (features of all layers in one row), float64: r_p / sum_q r_q, in [0, 1].

    r_p = ||row of hook point p|| / mean activation norm at p: without the division, the hook point with the longest
    activations would seem to own every feature. A feature that writes nowhere has 0 everywhere.
    Source: relative decoder norm of Lindsey et al. 2024, which is this one for two hook points.
    """
    own = _own_shares(dictionary).unflatten(-1, dictionary.feature_shape)
    return features_of_all(own, dictionary.feature_group).flatten(1)


def _own_shares(dictionary: Dictionary) -> Tensor:
    """The same of this process's features."""
    rows = (dictionary.written_rows(p) for p in range(len(dictionary.hooks_out)))
    norms = torch.stack([torch.linalg.vector_norm(row.double(), dim=-1).flatten() for row in rows])
    norms /= _activation_lengths(dictionary).to(norms.device)[:, None]
    return norms / norms.sum(0).clamp_min(torch.finfo(torch.float64).tiny)


def share_histogram(shares_PF: Tensor) -> list[list[int]]:
    """For each hook point the number of features in SHARE_BINS equal bins of the share, 0 to 1."""
    place = (shares_PF * SHARE_BINS).long().clamp(0, SHARE_BINS - 1).cpu()
    return [torch.bincount(row, minlength=SHARE_BINS).tolist() for row in place]


@torch.no_grad()
def written_metrics(dictionary: Dictionary) -> dict[str, float]:
    """Of a dictionary that writes several hook points, for each of them:

    written_norm_q*.<hook>: norms of what the features write there, as stored; written_share_q*.<hook>: their shares (see
    `written_shares`); exclusive_fraction.<hook>: features whose share here is above EXCLUSIVE; shared_fraction: all others that
    write. written_cosine_q*.<hook>.<later hook>: cosine similarity of what a feature writes at two hook points (features
    that write at both), for each pair.
    """
    results: dict[str, float] = {}
    shares, own, group = written_shares(dictionary), _own_shares(dictionary), dictionary.feature_group
    for p, hook in enumerate(dictionary.hooks_out):
        lengths = features_of_all(dictionary.written_rows(p).detach().norm(dim=-1), group)
        results |= {f"{name}.{hook}": value for name, value in quantiles(lengths, "written_norm").items()}
        results |= {f"{name}.{hook}": value for name, value in quantiles(shares[p], "written_share").items()}
        results[f"exclusive_fraction.{hook}"] = float((shares[p] > EXCLUSIVE).double().mean())
    results["shared_fraction"] = float(((shares > 0).any(0) & ~(shares > EXCLUSIVE).any(0)).double().mean())
    for p, q in itertools.combinations(range(len(dictionary.hooks_out)), 2):
        if bool(((shares[p] > 0) & (shares[q] > 0)).any()):
            both = (own[p] > 0) & (own[q] > 0)
            one, two = (dictionary.written_rows(at).detach().flatten(0, -2)[both] for at in (p, q))
            cosine = features_of_all(torch.nn.functional.cosine_similarity(one, two, dim=-1), group)
            pair = f"{dictionary.hooks_out[p]}.{dictionary.hooks_out[q]}"
            results |= {f"{name}.{pair}": value for name, value in quantiles(cosine, "written_cosine").items()}
    return results


@torch.no_grad()
def decoder_metrics(dictionary: Dictionary) -> dict[str, float]:
    """Quantiles over features (5, 25, 50, 75, 95 %), no data needed.

    decoder_max_cosine_q* and decoder_max_cosine_mean: largest cosine similarity of a decoder row with any other, and its mean;
    encoder_max_cosine_mean: that of encoder columns, of a dictionary with one encoder matrix; decoder_norm_q*: norms of decoder
    rows (concatenated over written hook points), as stored; threshold_q*: JumpReLU thresholds, if there are any; of several
    written hook points also those of `written_metrics`.
    """
    group, shape = dictionary.feature_group, dictionary.feature_shape

    def of_all(own: Tensor) -> Tensor:
        return features_of_all(own.detach().reshape(shape), group)

    largest = of_all(max_cosine_similarity(decoder_rows(dictionary), group))
    results = {**quantiles(largest, "decoder_max_cosine"), "decoder_max_cosine_mean": float(largest.double().mean())}
    parts = dictionary.parts()
    if len(parts) == 1:
        largest = of_all(max_cosine_similarity(parts[0].W_E.T, group))
        results["encoder_max_cosine_mean"] = float(largest.double().mean())
    results.update(quantiles(of_all(dictionary.decoder_norms()), "decoder_norm"))
    if len(dictionary.hooks_out) > 1:
        results.update(written_metrics(dictionary))
    thresholds = dictionary.thresholds()
    if thresholds is not None:
        results.update(quantiles(of_all(thresholds), "threshold"))
    return results
