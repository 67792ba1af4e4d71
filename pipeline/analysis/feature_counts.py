"""How often and how strongly each feature is active: exact counts over tokens."""

from __future__ import annotations

import torch
from torch import Tensor

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

    def update(self, f_NF: Tensor, tokens: int) -> None:
        """Add rows of features; `tokens` is how many of the rows are kept tokens (the others are zero)."""
        self.tokens += tokens
        index = (f_NF > 0).nonzero()
        feature, values = index[:, 1], f_NF[index[:, 0], index[:, 1]].float()
        n = len(self.active)
        self.active += torch.bincount(feature, minlength=n)
        self.largest = torch.maximum(self.largest, f_NF.amax(0).float())
        wide = values.double()
        self.sums += torch.bincount(feature, wide, minlength=n)
        self.squares += torch.bincount(feature, wide.square(), minlength=n)
        place = ((values.log2() - LOW) * PER_OCTAVE).floor().long().clamp(0, BINS - 1)
        where, counts = (feature * BINS + place).unique(return_counts=True)
        self.histogram.view(-1)[where] += counts.int()

    def state(self) -> dict[str, Tensor]:
        """Tensors that `load` takes."""
        tensors = {name: getattr(self, name) for name in ("active", "largest", "sums", "squares", "histogram")}
        return {**tensors, "tokens": torch.tensor(self.tokens)}

    def load(self, state: dict[str, Tensor]) -> None:
        """Go on from a state."""
        self.tokens = int(state["tokens"])
        for name in ("active", "largest", "sums", "squares", "histogram"):
            getattr(self, name).copy_(state[name])
