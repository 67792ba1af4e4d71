"""Sparse decoding on the device: reconstructions from the chosen entries, and the gradient of their values."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

ENTRIES = 8  # decoder rows in flight
WIDTH = 1024  # of a row, in one program


@triton.jit
def _decode(
    values, index, offsets, weight, bias, out, d, HAS_BIAS: tl.constexpr, ENTRIES: tl.constexpr, WIDTH: tl.constexpr,
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
    width = min(WIDTH, triton.next_power_of_2(d))
    _decode[(n_tokens, triton.cdiv(d, width))](
        values, index, offsets, W_FD, bias, out, d, HAS_BIAS=bias is not None, ENTRIES=ENTRIES, WIDTH=width
    )
    return out


def values_gradient(gradient: Tensor, index: Tensor, offsets: Tensor, W_FD: Tensor) -> Tensor:
    """<gradient[b], W[index[j]]> for the entries j of each token b, float32 [N]; arguments as in :func:`sparse_decode`."""
    d, n_tokens = W_FD.shape[1], len(offsets) - 1
    out = torch.empty(len(index), dtype=torch.float32, device=W_FD.device)
    width = min(WIDTH, triton.next_power_of_2(d))
    _values_gradient[(n_tokens,)](gradient, index, offsets, W_FD, out, d, ENTRIES=ENTRIES, WIDTH=width)
    return out
