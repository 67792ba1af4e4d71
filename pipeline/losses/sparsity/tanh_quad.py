"""Tanh-quad sparsity: tanh, with a growing price for features that are active often (SPEC 5).

    q_i = MEAN tanh(c f_i n_i),   loss = sum_i q_i (1 + q_i / s)

q_i is about the share of tokens on which feature i is active; at q_i = s a further use costs three times the first.
Check: q = [0.5, 0.01], s = 0.01 -> 25.52.

Sources: tanh of Anthropic Circuits Updates, April 2024 and January 2025; the quadratic frequency penalty of Google
DeepMind's interpretability team, progress update 2, March 2025 (there on L0).
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from pipeline.losses.reductions import full_precision, mean_per_entry
from pipeline.losses.sparsity.tanh import stretched
from pipeline.losses.sparsity_losses import SparsityInputs, SparsityLoss


def _frequencies(inputs: SparsityInputs, *, tanh_stretch_coefficient: float, **_: Any) -> Tensor:
    """q over the kept tokens: [F] (or [L, F])."""
    with full_precision(inputs.f):
        return mean_per_entry(stretched(inputs, tanh_stretch_coefficient), inputs.mask, inputs.norms.ndim)


def tanh_quad_loss(inputs: SparsityInputs, *, tanh_stretch_coefficient: float = 4.0, frequency_scale: float = 0.01) -> Tensor:
    """sum_i q_i (1 + q_i / s), q_i = MEAN tanh(c f_i n_i); with layers, q of each, and the mean of their sums.

    Args:
        inputs: f [..., F], norms [F], mask and step_statistic (q of the whole step) are used; the norms take part in the
            gradient.
        tanh_stretch_coefficient: c > 0, per unit of contribution.
        frequency_scale: s > 0, a share of tokens.

    Returns: float32 scalar (float64 for float64 input), unweighted.
    """
    q = inputs.over_step(_frequencies(inputs, tanh_stretch_coefficient=tanh_stretch_coefficient))
    return inputs.over_features((q * (1 + q / frequency_scale)).sum(-1)).mean()


LOSS = SparsityLoss(tanh_quad_loss, statistic=_frequencies)
