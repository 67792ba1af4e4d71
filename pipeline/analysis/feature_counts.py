"""How often and how strongly each feature is active: exact counts over tokens."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from pipeline.analysis.active import ActiveFeatures

LOW, HIGH, PER_OCTAVE = -24, 24, 4  # log2 of the smallest and the largest edge; bins of a factor 2^(1/4) between them
BINS = (HIGH - LOW) * PER_OCTAVE


def histogram_edges() -> list[float]:
    """BINS + 1 edges, the same for every feature."""
    return [2.0 ** (LOW + i / PER_OCTAVE) for i in range(BINS + 1)]


class FeatureCounts:
    """Counts of F features.

    Attributes:
        tokens: kept tokens.
        active: int64 [F], tokens with f > 0.
        largest: float32 [F].
        sums, squares: float64 [F], of f and f^2.
        histogram: int32 [F, BINS], tokens by activation; the first and the last bin also hold what is beyond.
    """

    def __init__(self, n_features: int, device: torch.device | str = "cpu") -> None:
        self.tokens = 0
        self.active = torch.zeros(n_features, dtype=torch.int64, device=device)
        self.largest = torch.zeros(n_features, device=device)
        self.sums, self.squares = (torch.zeros(n_features, dtype=torch.float64, device=device) for _ in range(2))
        self.histogram = torch.zeros(n_features, BINS, dtype=torch.int32, device=device)

    def update(self, active: ActiveFeatures, tokens: int) -> None:
        """Add the active features of contexts; `tokens` is how many of their tokens are kept."""
        self.tokens += tokens
        feature, values, n = active.feature, active.values.float(), len(self.active)
        self.active += torch.bincount(feature, minlength=n)
        self.largest.scatter_reduce_(0, feature, values, "amax")
        wide = values.double()
        self.sums += torch.bincount(feature, wide, minlength=n)
        self.squares += torch.bincount(feature, wide.square(), minlength=n)
        place = ((values.log2() - LOW) * PER_OCTAVE).floor().long().clamp(0, BINS - 1)
        one = torch.ones_like(feature, dtype=torch.int32)
        self.histogram.view(-1).index_add_(0, feature * BINS + place, one)

    def state(self) -> dict[str, Tensor]:
        """Tensors that `load` takes."""
        tensors = {name: getattr(self, name) for name in ("active", "largest", "sums", "squares", "histogram")}
        return {**tensors, "tokens": torch.tensor(self.tokens)}

    def load(self, state: dict[str, Tensor]) -> None:
        """Go on from a state."""
        self.tokens = int(state["tokens"])
        for name in ("active", "largest", "sums", "squares", "histogram"):
            getattr(self, name).copy_(state[name])
