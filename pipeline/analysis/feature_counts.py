"""How often and how strongly each feature is active: exact counts over tokens."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

if TYPE_CHECKING:
    from pipeline.analysis.active import ActiveFeatures

LOW, HIGH, PER_OCTAVE = -24, 24, 4  # log2 of the smallest and the largest edge; bins of a factor 2^(1/4) between them
BINS = (HIGH - LOW) * PER_OCTAVE


def histogram_edges() -> list[float]:
    """BINS + 1 edges, the same for every feature."""
    return [2.0 ** (LOW + i / PER_OCTAVE) for i in range(BINS + 1)]


class Sums(NamedTuple):
    """Sums of f and f^2 over some tokens, of the features that are active on one.

    Attributes:
        feature: int64 [n].
        sums, squares: float64 [n].
    """

    feature: Tensor
    sums: Tensor
    squares: Tensor


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

    def update(self, active: ActiveFeatures, tokens: int) -> Sums:
        """Count the active features of contexts, of which so many tokens are kept. The sums, whose order matters, are returned,
        on the CPU, for :meth:`add_sums`."""
        self.tokens += tokens
        feature, values, n = active.feature, active.values.float(), len(self.active)
        number = torch.bincount(feature, minlength=n)
        self.active += number
        self.largest.scatter_reduce_(0, feature, values, "amax")
        place = ((values.log2() - LOW) * PER_OCTAVE).floor().long().clamp(0, BINS - 1)
        one = torch.ones_like(feature, dtype=torch.int32)
        self.histogram.view(-1).index_add_(0, feature * BINS + place, one)
        wide, there = values.double(), number.nonzero()[:, 0]
        sums, squares = (torch.bincount(feature, x, minlength=n)[there].cpu() for x in (wide, wide.square()))
        return Sums(there.cpu(), sums, squares)

    def add_sums(self, found: Sums) -> None:
        """Add the sums of some tokens."""
        feature = found.feature.to(self.sums.device)
        self.sums[feature] += found.sums.to(self.sums)
        self.squares[feature] += found.squares.to(self.squares)

    def take_over(self, state: dict[str, Tensor], features: slice) -> None:
        """Add what another one has counted of some features, `state`, without the sums; its tokens with the first features."""
        for name in ("active", "histogram"):
            getattr(self, name)[features] += state[name].to(self.active.device)
        torch.maximum(self.largest[features], state["largest"].to(self.largest), out=self.largest[features])
        if features.start == 0:
            self.tokens += int(state["tokens"])

    def state(self) -> dict[str, Tensor]:
        """Tensors that `load` takes."""
        tensors = {name: getattr(self, name) for name in ("active", "largest", "sums", "squares", "histogram")}
        return {**tensors, "tokens": torch.tensor(self.tokens)}

    def load(self, state: dict[str, Tensor]) -> None:
        """Go on from a state."""
        self.tokens = int(state["tokens"])
        for name in ("active", "largest", "sums", "squares", "histogram"):
            getattr(self, name).copy_(state[name])
