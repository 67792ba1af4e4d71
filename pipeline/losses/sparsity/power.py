"""Power sparsity: the p-norm of the features' contributions (SPEC 5); p = 1 is the L1 loss of the field.

Source: Anthropic Circuits Updates, April 2024 (p = 1, weighted by decoder norms).
"""

from __future__ import annotations

import torch
from torch import Tensor

from pipeline.errors import ParamsError
from pipeline.losses.reductions import full_precision, mean_over_tokens, widened
from pipeline.losses.sparsity_losses import SparsityInputs


def power_loss(inputs: SparsityInputs, *, p: float = 1.0) -> Tensor:
    """MEAN( ( sum_i (f_i n_i)^p )^(1/p) ) over kept tokens, and over layers where there are any.

    Args:
        inputs: f [..., F], norms [F] and mask are used; the norms take part in the gradient.
        p: at least 1.

    Returns: float32 scalar (float64 for float64 input), unweighted. A token without features contributes 0 and no
        gradient.

    Raises:
        ParamsError: p < 1.
    """
    if p < 1:
        raise ParamsError(f"trainer.p: must be at least 1, got {p}")
    with full_precision(inputs.f):
        f, norms = widened(inputs.f), widened(inputs.norms)
        if p == 1:
            # A product with n instead of a sum of products: no [B, F] temporary.
            total = f @ norms if norms.ndim == 1 else (f * norms).sum(-1)
            return mean_over_tokens(inputs.over_features(total), inputs.mask)
        powers = inputs.over_features((f * norms).pow(p).sum(-1))
        some = powers > 0
        total = torch.where(some, torch.where(some, powers, 1.0).pow(1 / p), 0.0)
        return mean_over_tokens(total, inputs.mask)
