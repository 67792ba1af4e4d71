"""What an encoder makes of a batch, stage by stage; dense stages of a sparse step are made when they are first asked for."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from pipeline.kernels.entries import Places


class Entries(NamedTuple):
    """The entries of a batch's f that a budget has chosen; all others are 0.

    Attributes:
        values: [N], differentiable; 0 where a place of the budget is not filled.
        flat: int64 [N], where they are in the flattened f, ascending.
        places: the same in f as a matrix [n_tokens, F] ([n_tokens, L F]).
    """

    values: Tensor
    flat: Tensor
    places: Places

    def dense(self, shape: torch.Size) -> Tensor:
        """f of this shape, differentiable like the values."""
        with torch.set_grad_enabled(self.values.requires_grad):
            f = torch.zeros(shape.numel(), dtype=self.values.dtype, device=self.values.device)
            return f.scatter_(0, self.flat, self.values).reshape(shape)


class ThresholdSettings(NamedTuple):
    """What the gradient of the thresholds needs: t [F], the s of z = h s (None: 1), the window, and the mask over tokens."""

    log_threshold: Tensor
    scale: Tensor | None
    window: float
    mask: Tensor | None


class Codes:
    """The stages of an encoding.

    Args:
        h: pre-activations [..., F], or what makes them.
        z: gating values [..., F], or what makes them of h.
        f: feature activations [..., F], or their entries.
        norms: decoder norm n of each feature [F] (or [L, F]), differentiable.
        gating: what the gate has seen: z without gradient [..., F]; None: z.

    Attributes:
        entries: the active entries, where the encoder works on these only; else None.
        thresholds: of entries that were chosen by thresholds; their gradient is that of the reconstruction only.
    """

    def __init__(
        self,
        h: Tensor | Callable[[], Tensor],
        z: Tensor | Callable[[Tensor], Tensor],
        f: Tensor | Entries,
        norms: Tensor,
        gating: Tensor | None = None,
    ) -> None:
        self._h, self._z, self.norms, self._gating = h, z, norms, gating
        self.entries: Entries | None = f if isinstance(f, Entries) else None
        self._f: Tensor | None = None if isinstance(f, Entries) else f
        self.thresholds: ThresholdSettings | None = None

    @property
    def h(self) -> Tensor:
        """Pre-activations [..., F], differentiable."""
        if callable(self._h):
            self._h = self._h()
        return self._h

    @property
    def z(self) -> Tensor:
        """Gating values [..., F], differentiable."""
        if callable(self._z):
            self._z = self._z(self.h)
        return self._z

    @property
    def gating(self) -> Tensor:
        """What the gate has seen: z without gradient [..., F]."""
        return self.z.detach() if self._gating is None else self._gating.detach()

    @property
    def shape(self) -> torch.Size:
        """[..., F]."""
        return self.gating.shape

    @property
    def f(self) -> Tensor:
        """Feature activations [..., F], 0 at masked tokens."""
        if self._f is None:
            assert self.entries is not None
            self._f = self.entries.dense(self.shape)
        return self._f

    @torch.no_grad()
    def uses(self, feature_shape: tuple[int, ...]) -> Tensor:
        """On how many tokens each feature is active: int64 of `feature_shape`."""
        if self.entries is None:
            return (self.f.detach() > 0).reshape(-1, *feature_shape).sum(0)
        n = torch.Size(feature_shape).numel()
        counts = torch.zeros(n, dtype=torch.int64, device=self.gating.device)
        active = (self.entries.values.detach() > 0).long()
        return counts.index_add_(0, self.entries.flat % n, active).reshape(feature_shape)

    @torch.no_grad()
    def fired(self, feature_shape: tuple[int, ...]) -> Tensor:
        """Which features are active on any token: bool of `feature_shape`."""
        if self.entries is None:
            return self.f.detach().reshape(-1, *feature_shape).amax(0) > 0
        return self.uses(feature_shape) > 0

    @torch.no_grad()
    def smallest_active(self) -> Tensor:
        """The smallest gating value that is active of each token (and layer): [..., 1]; infinite where none is."""
        if self.entries is None:
            return torch.where(self.f.detach() > 0, self.gating, torch.inf).amin(-1, keepdim=True)
        shape, flat = self.shape, self.entries.flat
        active = torch.where(self.entries.values.detach() > 0, self.gating.reshape(-1).index_select(0, flat), torch.inf)
        smallest = torch.full((shape[:-1].numel(),), torch.inf, dtype=active.dtype, device=active.device)
        return smallest.scatter_reduce_(0, flat // shape[-1], active, "amin").reshape(*shape[:-1], 1)

    @torch.no_grad()
    def n_active(self) -> Tensor:
        """How many features are active: int64 [...], with layers [..., L]."""
        if self.entries is None:
            return (self.f.detach() > 0).sum(-1)
        shape = self.shape[:-1]
        counts = torch.zeros(shape.numel(), dtype=torch.int64, device=self.gating.device)
        active = (self.entries.values.detach() > 0).long()
        return counts.index_add_(0, self.entries.flat // self.shape[-1], active).reshape(shape)
