"""First thresholds for a target L0 (trainer.target_l0, mode threshold): one theta, the quantile of z on a batch (SPEC 5).

A start at log 0.1 leaves the run to find the L0 first (on planted data, 97 steps: FVU 0.59 instead of 0.29).
"""

from __future__ import annotations

import torch

from pipeline.dictionaries.base import Dictionary
from pipeline.dictionaries.inference_thresholds import first_thresholds
from pipeline.initialization.sample import Sample


@torch.no_grad()
def set_thresholds_(dictionary: Dictionary, batch: Sample, target_l0: float) -> float:
    """Set every threshold (of a layer) to the one that gives `target_l0` active features a token on the batch.

    Args:
        dictionary: with thresholds, its weights set.
        batch: of the training batch size.
        target_l0: a token (and layer).

    Returns: theta, in gating units; the mean of several layers.

    Raises:
        NumericsError: no gating value is positive.
    """
    theta = first_thresholds(dictionary, dictionary.codes(batch.x, batch.mask).z, target_l0, batch.mask)
    dictionary.log_jumprelu_threshold.copy_(theta.log())
    return float(theta.mean())
