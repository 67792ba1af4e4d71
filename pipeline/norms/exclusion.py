"""Which tokens are left out because their activation is massive.

Language models put out a few tokens, the first position and delimiters above all, whose activations are hundreds of times
longer than all others (Sun et al. 2024). They hold nearly all of the variance, so that a dictionary trained on them learns
little else, and figures that count them say little else. The rule is of the norm alone:

    a token is massive at a hook point if its norm exceeds max_norm_factor x the median norm there
    it is excluded if it is massive at any hook point that a dictionary reads or writes

The median is that of the first MEDIAN_TOKENS tokens (rows are shuffled) and is kept in data/norms.json and in config.json,
so that norms, initialisation, training, calibration, evaluation and analysis leave out the same tokens. What is excluded
keeps its place: it is masked, as padding is, and when a reconstruction is spliced in it keeps its own activation.

activations.max_norm_factor null excludes none. Means, the start of the weights, revival and thresholds go without massive
tokens all the same (MASSIVE_FACTOR), and a training step takes such a token as if it were three medians long: it learns the
direction without letting one token outweigh thousands of others, open every feature or fill a batch-wide budget by itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from pipeline.norms.hook_norm import HookNorm

MASSIVE_FACTOR = 10.0  # times the median, where activations.max_norm_factor states no other
MEDIAN_TOKENS = 32768


def lengths(x: Tensor) -> Tensor:
    """L2 norm of each token [...] of activations [..., d], in float32 (float64 for float64)."""
    return torch.linalg.vector_norm(x, dim=-1, dtype=torch.float64 if x.dtype == torch.float64 else torch.float32)


def median_norm(x: Tensor, mask: Tensor | None = None) -> float | None:
    """Median norm of the kept finite tokens of activations [..., d]; None where it is 0 or there is no such token.

    Args:
        x: any float dtype.
        mask: bool [...], True for a kept token; None: all.
    """
    norms = lengths(x)
    norms = norms.flatten() if mask is None else norms[mask.to(norms.device)]
    norms = norms[norms.isfinite()]
    median = float(norms.median()) if len(norms) else 0.0
    return median if median > 0 else None


@dataclass(frozen=True)
class NormLimits:
    """Largest norm of a token at each hook point; a token above any of them is left out.

    Attributes:
        limits: {hook point: norm}; hook points that are not in it have none.
    """

    limits: Mapping[str, float] = field(default_factory=dict)

    @classmethod
    def excluded(cls, norms: Mapping[str, HookNorm]) -> NormLimits:
        """What the rule of these norms excludes; nothing without a rule."""
        return cls({hook: norm.max_norm for hook, norm in norms.items() if norm.max_norm is not None})

    @classmethod
    def massive(cls, norms: Mapping[str, HookNorm]) -> NormLimits:
        """Massive tokens, also where no rule excludes them."""
        return cls({hook: norm.massive_norm for hook, norm in norms.items() if norm.massive_norm is not None})

    def shortened(self, hook: str, x: Tensor, length: float) -> Tensor:
        """`x` [..., d] of a hook point, rows above its limit scaled to the norm `length`; `x` itself without a limit."""
        if hook not in self.limits:
            return x
        norms = lengths(x)
        factor = torch.where(norms > self.limits[hook], length / norms, 1.0)
        return x * factor[..., None].to(x.dtype)

    def above(self, activations: Mapping[str, Tensor]) -> Tensor | None:
        """True for a token above a limit, bool [...]; None where no hook point has one. {hook point: raw [..., d]}."""
        found: Tensor | None = None
        for hook, limit in self.limits.items():
            if hook in activations:
                above = lengths(activations[hook]) > limit
                found = above if found is None else found | above.to(found.device)
        return found

    def kept(self, activations: Mapping[str, Tensor], mask: Tensor | None = None) -> Tensor | None:
        """`mask` (None: all True) without the tokens above a limit; `mask` itself where there is none.

        Args:
            activations: {hook point: raw [..., d]}.
            mask: bool [...], True for a kept token.
        """
        above = self.above(activations)
        if above is None or not bool(above.any()):
            return mask
        return ~above if mask is None else mask & ~above.to(mask.device)
