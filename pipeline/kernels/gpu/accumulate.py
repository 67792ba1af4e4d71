"""Sums of weighted rows by feature on the device: the gradients of W_D, W_E and b_E from the chosen entries.

Entries are sorted by feature once. A feature's run of entries is cut into pieces of at most RUN; a program adds up one
piece, in order, and the pieces of the few long runs are added up, in order, by a second pass. So sums do not depend on
scheduling, no feature holds up the others, and nothing of size N D is made.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from pipeline.kernels.gpu.running import running

RUN = 256  # entries of a piece
ENTRIES = 4  # rows in flight
WIDTH = 1024  # of a row, in one program, at most
LANES = 256  # of a row, for one warp: 8 values of each thread


class FeatureRuns(NamedTuple):
    """Entries by feature, and how their runs are cut.

    Attributes:
        order: int64 [N], entries sorted by feature, those of one feature in their order.
        tokens: int32 [N], the token of each entry, in this order.
        starts: int32 [F + 1], where each feature's run begins, and N.
        pieces: int32 [F + 1], pieces before each feature's, and their number.
        partial: int32 [F + 1], the same counting only features of several pieces.
        feature_of: int32 [F + N // RUN], the feature of a piece, F for none.
        long: int32 [N // RUN], features of several pieces, F for none.
    """

    order: Tensor
    tokens: Tensor
    starts: Tensor
    pieces: Tensor
    partial: Tensor
    feature_of: Tensor
    long: Tensor


@triton.jit
def _add_pieces(
    weights, rows, tokens, starts, pieces, partial, feature_of, out, out_bias, sums, sums_bias, d, n_features,
    HAS_BIAS: tl.constexpr, RUN: tl.constexpr, ENTRIES: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    piece = tl.program_id(0)
    feature = tl.load(feature_of + piece).to(tl.int64)
    if feature < n_features:
        at = tl.program_id(1) * WIDTH + tl.arange(0, WIDTH)
        inside = at < d
        before, after = tl.load(pieces + feature), tl.load(pieces + feature + 1)
        start = tl.load(starts + feature) + (piece - before) * RUN
        end = tl.minimum(start + RUN, tl.load(starts + feature + 1))
        total = tl.zeros((WIDTH,), tl.float32)
        bias = tl.zeros((ENTRIES,), tl.float32)
        for first in range(start, end, ENTRIES):
            entry = first + tl.arange(0, ENTRIES)
            live = entry < end
            token = tl.load(tokens + entry, mask=live, other=0).to(tl.int64)
            weight = tl.load(weights + entry, mask=live, other=0.0).to(tl.float32)
            row = tl.load(rows + token[:, None] * d + at[None, :], mask=live[:, None] & inside[None, :], other=0.0)
            total += tl.sum(row.to(tl.float32) * weight[:, None], 0)
            bias += weight
        slot = feature
        to, to_bias = out, out_bias
        if after - before > 1:
            slot = (tl.load(partial + feature) + piece - before).to(tl.int64)
            to, to_bias = sums, sums_bias
        tl.store(to + slot * d + at, total, mask=inside)
        if HAS_BIAS:
            if tl.program_id(1) == 0:
                tl.store(to_bias + slot, tl.sum(bias, 0))


@triton.jit
def _add_long(
    long, partial, sums, sums_bias, out, out_bias, d, n_features, HAS_BIAS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    feature = tl.load(long + tl.program_id(0)).to(tl.int64)
    if feature < n_features:
        at = tl.program_id(1) * WIDTH + tl.arange(0, WIDTH)
        inside = at < d
        total = tl.zeros((WIDTH,), tl.float32)
        bias = tl.zeros((), tl.float32)
        for slot in range(tl.load(partial + feature), tl.load(partial + feature + 1)):
            total += tl.load(sums + (slot + tl.zeros((), tl.int64)) * d + at, mask=inside, other=0.0)
            if HAS_BIAS:
                bias += tl.load(sums_bias + slot)
        tl.store(out + feature * d + at, total, mask=inside)
        if HAS_BIAS:
            if tl.program_id(1) == 0:
                tl.store(out_bias + feature, bias)


def feature_runs(index: Tensor, tokens: Tensor, n_features: int) -> FeatureRuns:
    """Sort entries by feature and cut the runs.

    Args:
        index: int32 [N], the feature of each entry; tokens: int32 [N], its token.
    """
    n, device = len(index), index.device
    ordered, order = index.sort(stable=True)
    starts = torch.searchsorted(ordered, torch.arange(n_features + 1, device=device, dtype=index.dtype), out_int32=True)
    n_pieces = ((starts.diff() + RUN - 1) // RUN).clamp_min(1)
    several = n_pieces > 1
    pieces = running(n_pieces)
    partial = running(torch.where(several, n_pieces, 0))
    feature_of = torch.searchsorted(
        pieces[1:], torch.arange(n_features + n // RUN, device=device, dtype=torch.int32), right=True, out_int32=True
    )
    wanted = torch.arange(1, n // RUN + 1, device=device, dtype=torch.int32)
    long = torch.searchsorted(running(several)[1:], wanted, out_int32=True)
    return FeatureRuns(order, tokens[order], starts, pieces, partial, feature_of, long)


def program_width(d: int) -> int:
    """The part of a row that one program takes: a power of two that leaves few of its lanes empty."""
    widths = (w for w in (WIDTH, 512, 256) if w <= max(triton.next_power_of_2(d), 256))
    return min(widths, key=lambda w: (triton.cdiv(d, w) * w, -w))


def accumulate_rows(weights: Tensor, rows: Tensor, runs: FeatureRuns, with_bias: bool = False) -> tuple[Tensor, Tensor | None]:
    """out[f] = sum_j weights[j] rows[token of j] over the entries j of feature f; bias[f] = sum_j weights[j].

    Args:
        weights: [N], one for each entry, in the entries' own order.
        rows: [B, D] contiguous.
        runs: of these entries.

    Returns: float32 [F, D], and [F] if asked for.
    """
    n_features, d, device = len(runs.starts) - 1, rows.shape[1], rows.device
    n_long = len(runs.long)
    out = torch.empty(n_features, d, device=device)
    sums = torch.empty(2 * n_long, d, device=device)
    # Without a bias nothing is written there.
    bias = torch.empty(n_features, device=device) if with_bias else out
    sums_bias = torch.empty(2 * n_long, device=device) if with_bias else sums
    width = program_width(d)
    columns, warps = triton.cdiv(d, width), max(1, width // LANES)
    _add_pieces[(len(runs.feature_of), columns)](
        weights[runs.order], rows, runs.tokens, runs.starts, runs.pieces, runs.partial, runs.feature_of,
        out, bias, sums, sums_bias, d, n_features, HAS_BIAS=with_bias, RUN=RUN, ENTRIES=ENTRIES, WIDTH=width, num_warps=warps,
    )  # fmt: skip
    if n_long:
        _add_long[(n_long, columns)](
            runs.long, runs.partial, sums, sums_bias, out, bias, d, n_features,
            HAS_BIAS=with_bias, WIDTH=width, num_warps=warps,
        )  # fmt: skip
    return out, bias if with_bias else None
