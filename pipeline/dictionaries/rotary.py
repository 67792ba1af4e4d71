"""Rotary position embedding of queries and keys (SPEC 1.3), in both pairings, with NTK-by-parts.

Sources: Su et al. 2021; GPT-J (adjacent pairs) and GPT-NeoX (halves); Llama 3.1 (frequencies scaled by parts).
"""

from __future__ import annotations

import dataclasses
import math

import torch
from torch import Tensor


@dataclasses.dataclass(frozen=True)
class Rotary:
    """What a rotation depends on.

    Attributes:
        dim: the first so many dimensions of a head are rotated; even.
        base: theta of the frequencies theta^(-2 i / dim).
        adjacent_pairs: dimensions 2 i and 2 i + 1 are a pair (GPT-J), else i and i + dim / 2 (GPT-NeoX, Llama).
        scale: positions are divided by it.
        by_parts: low frequencies are divided by `factor`, high ones stay, and those between are blended (Llama 3.1).
        factor, low_freq_factor, high_freq_factor, old_context_len: of that.
    """

    dim: int
    base: float = 10000.0
    adjacent_pairs: bool = True
    scale: float = 1.0
    by_parts: bool = False
    factor: float = 8.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    old_context_len: int = 8192

    def frequencies(self) -> Tensor:
        """float64 [dim / 2], radians per position."""
        inverse = self.base ** (-torch.arange(0, self.dim, 2, dtype=torch.float64) / self.dim)
        if not self.by_parts:
            return inverse / self.scale
        turns = self.old_context_len * inverse / (2 * math.pi)  # over the old context
        share = ((turns - self.low_freq_factor) / (self.high_freq_factor - self.low_freq_factor)).clamp(0.0, 1.0)
        return ((1 - share) * inverse / self.factor + share * inverse) / self.scale

    def tables(self, n: int, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """cos and sin [n, dim] of positions 0 .. n - 1, laid out as the pairs are."""
        angles = torch.arange(n, dtype=torch.float64)[:, None] * self.frequencies()
        angles = angles.repeat_interleave(2, dim=-1) if self.adjacent_pairs else angles.repeat(1, 2)
        return angles.cos().to(device, dtype), angles.sin().to(device, dtype)

    def rotate(self, x: Tensor) -> Tensor:
        """x [..., S, d] with its first `dim` dimensions rotated by the position in S."""
        cos, sin = self.tables(x.shape[-2], x.device, x.dtype)
        turned, rest = x[..., : self.dim], x[..., self.dim :]
        if self.adjacent_pairs:
            other = torch.stack([-turned[..., 1::2], turned[..., 0::2]], dim=-1).flatten(-2)
        else:
            half = self.dim // 2
            other = torch.cat([-turned[..., half:], turned[..., :half]], dim=-1)
        return torch.cat([turned * cos + other * sin, rest], dim=-1)
