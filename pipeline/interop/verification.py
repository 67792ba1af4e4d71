"""Whether what was written computes what the dictionary computes: an independent pass of the format over real activations."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from pipeline.dictionaries.base import Dictionary
from pipeline.errors import NumericsError
from pipeline.interop.interface import Forward

ALLOWED = 1e-5  # relative, of features and reconstructions
EDGE = 1e-4  # share of active entries that may be active in one only: z at the threshold to rounding


class Difference(NamedTuple):
    """How much a format's own pass differs from the dictionary.

    Attributes:
        features: largest difference of an entry that is active in both, over the largest feature.
        reconstructions: norm of the difference over that of the reconstructions, of tokens without an edge.
        edges: entries that are active in one only.
        active: entries that are active.
        tokens: that were compared.
    """

    features: float
    reconstructions: float
    edges: int
    active: int
    tokens: int

    def words(self) -> str:
        """In a line."""
        edges = f", {self.edges:,} of {self.active:,} active entries on the threshold's edge" if self.edges else ""
        both = f"features {self.features:.1e}, reconstructions {self.reconstructions:.1e}"
        return f"{both} (relative, {self.tokens:,} tokens{edges})"


@torch.no_grad()
def difference(dictionary: Dictionary, forward: Forward, x: Tensor, units: Tensor | None = None) -> Difference:
    """Compare a dictionary with a format's pass on raw activations, in float64.

    Args:
        dictionary: folded.
        forward: of the format.
        x: as the dictionary takes it.
        units: what the format's features are times ours, of `feature_shape`.

    Raises:
        NumericsError: no feature is active on x, so that nothing would be compared.
    """
    wide, x = dictionary.rebuilt_as(torch.float64), x.double()
    f = wide.encode(x)
    y = wide.reconstruct(f, x)
    found_f, found_y = forward(x)
    f = f if units is None else f * units
    both = (f != 0) & (found_f != 0)
    edge = (f != 0) != (found_f != 0)
    active = int((f != 0).sum())
    if not active:
        raise NumericsError("export: no feature is active on the activations that it should be checked on; give others")
    n_dims = f.ndim - len(dictionary.feature_shape)
    whole = ~edge.flatten(n_dims).any(-1)
    target, other = y[whole].double(), found_y[whole]
    return Difference(
        float(((f - found_f).abs() * both).max() / f.abs().max()),
        float((other - target).norm() / target.norm().clamp_min(1e-300)),
        int(edge.sum()),
        active,
        whole.numel(),
    )


def check(found: Difference, what: str) -> Difference:
    """Refuse a difference that is more than rounding.

    Raises:
        NumericsError: it is.
    """
    small = found.features <= ALLOWED and found.reconstructions <= ALLOWED
    if not small or found.edges > max(1, EDGE * found.active):
        raise NumericsError(f"{what}: what was written differs from the dictionary: {found.words()}, allowed {ALLOWED:.0e}")
    return found
