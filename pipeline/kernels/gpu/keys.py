"""Order-preserving integer keys of floating-point blocks, and the k-th largest of a block by binary search over them."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

KEY_BITS = {torch.float32: 32, torch.float16: 32, torch.bfloat16: 16}


@triton.jit
def ordered_keys(values, BITS: tl.constexpr):
    """uint32 keys of a float32 block, larger for larger values; not a number is the largest, -0 equals 0.

    With BITS 16 only the upper half of the key is kept: all that a bfloat16 value has.
    """
    bits = tl.where(values == 0.0, 0.0, values).to(tl.int32, bitcast=True)
    bits = tl.where(values != values, 0x7FFFFFFF, bits)
    keys = (bits ^ ((bits >> 31) & 0x7FFFFFFF)).to(tl.uint32, bitcast=True) ^ 0x80000000
    return keys >> (32 - BITS)


@triton.jit
def kth_largest(keys, k, BITS: tl.constexpr):
    """The largest key of which at least k keys of the block are no smaller; entries that do not count have key 0."""
    threshold = tl.full((), 0, tl.uint32)
    bit = tl.full((), 1 << (BITS - 1), tl.uint32)
    for _ in range(BITS):
        candidate = threshold | bit
        enough = tl.sum((keys >= candidate).to(tl.int32), 0) >= k
        threshold = tl.where(enough, candidate, threshold)
        bit = bit >> 1
    return threshold
