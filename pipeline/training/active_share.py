"""The measured share of active features, by which a gate without budget chooses between entries and dense products.

Where asking for it waits for the device it is read once in EVERY steps, so that a run that has become sparse goes over to
entries within as many, and back.
"""

from __future__ import annotations

import torch
from torch import Tensor

EVERY = 50
UNKNOWN = -1.0


class ActiveShare:
    """The last measured share.

    Args:
        wanted: whether anything is measured: the gate has no budget, and its kernels do not count freely.
        n_features: of a token, over all its layers.
    """

    def __init__(self, wanted: bool, n_features: int) -> None:
        self.wanted, self._n_features = wanted, n_features
        self._share = torch.full((), UNKNOWN, dtype=torch.float64)

    @property
    def known(self) -> float | None:
        """None: it has not been measured."""
        return float(self._share) if self._share >= 0 else None

    def due(self, step: int) -> bool:
        """Whether to measure at this step."""
        return self.wanted and step % EVERY == 0

    def measure_(self, n_active: Tensor, n_tokens: int | Tensor) -> None:
        """Take a step's measure.

        Args:
            n_active: active features, summed over tokens; of each layer.
            n_tokens: kept tokens; without any nothing is measured.
        """
        n = float(n_tokens)
        if n > 0:
            self._share.fill_(float(n_active.sum()) / (n * self._n_features))

    def state(self) -> dict[str, Tensor]:
        """What a resume needs."""
        return {"share": self._share} if self.wanted else {}
