"""Sparse decoding on the device: reconstructions from the chosen entries, and the gradient of their values."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from pipeline.kernels.gpu.accumulate import program_width

ENTRIES = 8  # decoder rows in flight
LANES = 256  # of a row, for one warp
WIDTH, WARPS = 256, 1  # of a row in one pass of the values' gradient


@triton.jit
def _decode(
    values, index, offsets, weight, bias, label, out, squares, factor, d,
    HAS_BIAS: tl.constexpr, HAS_LABEL: tl.constexpr, ENTRIES: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    token = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1) * WIDTH + tl.arange(0, WIDTH)
    inside = at < d
    total = tl.zeros((WIDTH,), tl.float32)
    if HAS_BIAS:
        total += tl.load(bias + at, mask=inside, other=0.0).to(tl.float32)
    start, end = tl.load(offsets + token), tl.load(offsets + token + 1)
    for first in range(start, end, ENTRIES):
        entry = first + tl.arange(0, ENTRIES)
        live = entry < end
        feature = tl.load(index + entry, mask=live, other=0).to(tl.int64)
        value = tl.load(values + entry, mask=live, other=0.0).to(tl.float32)
        rows = tl.load(weight + feature[:, None] * d + at[None, :], mask=live[:, None] & inside[None, :], other=0.0)
        total += tl.sum(rows.to(tl.float32) * value[:, None], 0)
    if HAS_LABEL:
        total = tl.where(inside, total - tl.load(label + token * d + at, mask=inside, other=0.0).to(tl.float32), 0.0)
        tl.store(squares + token * tl.num_programs(1) + tl.program_id(1), tl.sum(total * total, 0))
        total = total * factor
    tl.store(out + token * d + at, total.to(out.dtype.element_ty), mask=inside)


@triton.jit
def _values_gradient(
    gradient, index, offsets, weight, out, d, ENTRIES: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    token = tl.program_id(0).to(tl.int64)
    start, end = tl.load(offsets + token), tl.load(offsets + token + 1)
    for first in range(start, end, ENTRIES):
        entry = first + tl.arange(0, ENTRIES)
        live = entry < end
        feature = tl.load(index + entry, mask=live, other=0).to(tl.int64)
        total = tl.zeros((ENTRIES,), tl.float32)
        for left in range(0, d, WIDTH):
            at = left + tl.arange(0, WIDTH)
            inside = at < d
            g = tl.load(gradient + token * d + at, mask=inside, other=0.0).to(tl.float32)
            rows = tl.load(weight + feature[:, None] * d + at[None, :], mask=live[:, None] & inside[None, :], other=0.0)
            total += tl.sum(rows.to(tl.float32) * g[None, :], 1)
        tl.store(out + entry, total, mask=live)


def sparse_decode(
    values: Tensor, index: Tensor, offsets: Tensor, W_FD: Tensor, bias: Tensor | None = None, dtype: torch.dtype | None = None
) -> Tensor:
    """x_hat[b] = sum_j values[j] W[index[j]] + bias over the entries j of token b, added up in float32.

    Args:
        values: [N]; index: int32 or int64 [N], features; both by token.
        offsets: int32 or int64 [B + 1], where each token's entries begin, and N.
        W_FD: [F, D] contiguous; bias: [D] or None.
        dtype: of the result; None: that of W.

    Returns: [B, D].
    """
    d, n_tokens = W_FD.shape[1], len(offsets) - 1
    out = torch.empty(n_tokens, d, dtype=dtype or W_FD.dtype, device=W_FD.device)
    _launch(values, index, offsets, W_FD, bias, None, out, None, 1.0)
    return out


def decoding_error(
    values: Tensor, index: Tensor, offsets: Tensor, W_FD: Tensor, bias: Tensor | None, label: Tensor, factor: float
) -> tuple[Tensor, Tensor]:
    """factor * (x_hat - label), and sum (x_hat - label)^2 of each token, without writing x_hat.

    Args:
        label: [B, D]; factor: 2 / B gives the gradient of the mean squared error; the others as in :func:`sparse_decode`.

    Returns: [B, D] in the dtype of W, and float32 [B].
    """
    out = torch.empty(label.shape, dtype=W_FD.dtype, device=W_FD.device)
    squares = torch.empty(len(label), triton.cdiv(label.shape[1], program_width(label.shape[1])), device=W_FD.device)
    _launch(values, index, offsets, W_FD, bias, label, out, squares, factor)
    return out, squares.sum(1)


def _launch(
    values: Tensor, index: Tensor, offsets: Tensor, weight: Tensor, bias: Tensor | None, label: Tensor | None,
    out: Tensor, squares: Tensor | None, factor: float,
) -> None:  # fmt: skip
    d = out.shape[1]
    width = program_width(d)
    _decode[(len(out), triton.cdiv(d, width))](
        values, index, offsets, weight, bias, label, out, squares, factor, d,
        HAS_BIAS=bias is not None, HAS_LABEL=label is not None, ENTRIES=ENTRIES, WIDTH=width, num_warps=max(1, width // LANES),
    )  # fmt: skip


def values_gradient(gradient: Tensor, index: Tensor, offsets: Tensor, W_FD: Tensor) -> Tensor:
    """<gradient[b], W[index[j]]> for the entries j of each token b, float32 [N]; arguments as in :func:`sparse_decode`."""
    d, n_tokens = W_FD.shape[1], len(offsets) - 1
    out = torch.empty(len(index), dtype=torch.float32, device=W_FD.device)
    width = min(WIDTH, triton.next_power_of_2(d))
    _values_gradient[(n_tokens,)](gradient, index, offsets, W_FD, out, d, ENTRIES=ENTRIES, WIDTH=width, num_warps=WARPS)
    return out
