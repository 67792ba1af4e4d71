"""Which features are dead: no activation for `dead_threshold` tokens (SPEC 5, AuxK).

The counters stay on the device; nothing here waits for it.
"""

from __future__ import annotations

import torch
from torch import Tensor


class DeadFeatures:
    """Tokens since each feature was last active.

    Args:
        feature_shape: (F,) or (L, F).
        dead_threshold: kept tokens without an activation after which a feature is dead.
        device: where the counters are.
    """

    def __init__(self, feature_shape: tuple[int, ...], dead_threshold: int, device: torch.device | str = "cpu") -> None:
        self.feature_shape, self.dead_threshold = feature_shape, int(dead_threshold)
        self.tokens_since = torch.zeros(feature_shape, dtype=torch.int64, device=device)

    @torch.no_grad()
    def update(self, fired: Tensor, n_tokens: int | Tensor) -> None:
        """Count a step's kept tokens for the features that did not fire in it; the others start again at zero.

        Args:
            fired: bool of `feature_shape`, active anywhere in the step's batch.
            n_tokens: kept tokens of the step, an int or a tensor on the device.
        """
        self.tokens_since.add_(n_tokens).masked_fill_(fired, 0)

    def after(self, fired: Tensor, n_tokens: int | Tensor) -> Tensor:
        """The features that are dead once a step is counted, of `feature_shape`: what `mask` says after `update`."""
        return ~fired & (self.tokens_since + n_tokens >= self.dead_threshold)

    def mask(self) -> Tensor:
        """True for a dead feature, of `feature_shape`."""
        return self.tokens_since >= self.dead_threshold
