"""Random numbers that depend on names only, not on an order: what is drawn with them is the same however the data is cut."""

from __future__ import annotations

from torch import Tensor

_GOLDEN, _FIRST, _SECOND = -7046029254386353131, -4658895280553007687, -7723592293110705685  # of splitmix64, as int64
BITS = 53  # so that a float64 holds every number


def _shifted(x: Tensor, by: int) -> Tensor:
    """Logical right shift of int64."""
    return (x >> by) & ((1 << (64 - by)) - 1)


def _mixed(x: Tensor) -> Tensor:
    x = (x ^ _shifted(x, 30)) * _FIRST
    x = (x ^ _shifted(x, 27)) * _SECOND
    return x ^ _shifted(x, 31)


def hashed(a: Tensor, b: Tensor, seed: int) -> Tensor:
    """Uniform int64 in [0, 2^53) for each pair of int64 a and b (broadcast); int64 arithmetic wraps. Source: splitmix64."""
    return _shifted(_mixed(_mixed(a * _GOLDEN + seed) + b * _GOLDEN), 64 - BITS)
