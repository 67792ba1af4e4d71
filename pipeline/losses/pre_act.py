"""Pre-act loss: pulls the gating values of closed features up to their thresholds (SPEC 5).

A JumpReLU feature that never opens gets no gradient from the reconstruction; this term gives it one.
Source: Anthropic Circuits Updates, January 2025.
"""

from __future__ import annotations

from torch import Tensor

from pipeline.errors import ParamsError
from pipeline.losses.reductions import full_precision, mean_over_tokens, widened
from pipeline.losses.sparsity_losses import SparsityInputs


def pre_act_loss(inputs: SparsityInputs, include_norm: bool) -> Tensor:
    """MEAN( sum_i ReLU(theta_i - z_i) ); without `include_norm` MEAN( sum_i ReLU(theta_i - h_i) n_i ).

    MEAN over kept tokens, and over layers where there are any. Either way the distance is in units of the output: z = h n
    holds the norm already. Differentiable in all that enters.

    Args:
        inputs: z [..., F], thresholds [F], norms [F] and mask are used.
        include_norm: the dictionary's sparsity_include_decoder_norm; where it is false z is h.

    Returns: float32 scalar (float64 for float64 input), unweighted.

    Raises:
        ParamsError: the dictionary has no thresholds.
    """
    if inputs.thresholds is None:
        raise ParamsError(
            "trainer.lp_coefficient: the pre-act loss is of thresholds, and this dictionary has none; "
            "set dictionary.act_fn to jumprelu, or trainer.lp_coefficient to null"
        )
    with full_precision(inputs.z):
        below = (widened(inputs.thresholds) - widened(inputs.z)).relu_()
        if include_norm:
            return mean_over_tokens(inputs.over_features(below.sum(-1)), inputs.mask)
        norms = widened(inputs.norms)
        # A product with n instead of a sum of products: no further [B, F] temporary.
        total = below @ norms if norms.ndim == 1 else (below * norms).sum(-1)
        return mean_over_tokens(inputs.over_features(total), inputs.mask)
