"""Tanh sparsity: a smooth count of the features that contribute (SPEC 5).

A contribution f n well above 1/c counts as one feature however large it is, so that large activations are not shrunk.
Source: Anthropic Circuits Updates, April 2024 and January 2025.
"""

from __future__ import annotations

from torch import Tensor

from pipeline.losses.reductions import full_precision, mean_over_tokens, widened
from pipeline.losses.sparsity_losses import SparsityInputs


def stretched(inputs: SparsityInputs, c: float) -> Tensor:
    """tanh(c f_i n_i) [..., F], in [0, 1), float32 or float64. Call it outside autocast."""
    # In place: the product's gradient needs f and n, not the product.
    return (widened(inputs.f) * (c * widened(inputs.norms))).tanh_()


def tanh_loss(inputs: SparsityInputs, *, tanh_stretch_coefficient: float = 4.0) -> Tensor:
    """MEAN( sum_i tanh(c f_i n_i) ) over kept tokens, and over layers where there are any.

    Args:
        inputs: f [..., F], norms [F] and mask are used; the norms take part in the gradient.
        tanh_stretch_coefficient: c > 0, per unit of contribution.

    Returns: float32 scalar (float64 for float64 input), unweighted.
    """
    with full_precision(inputs.f):
        return mean_over_tokens(inputs.over_features(stretched(inputs, tanh_stretch_coefficient).sum(-1)), inputs.mask)
