"""init_encoder_bias_with_mean_hidden_pre: the encoder bias that makes each feature's mean pre-activation 0."""

from __future__ import annotations

import torch
from torch import Tensor

from pipeline.dictionaries.base import Dictionary
from pipeline.initialization.weights import weights_of

OPTION = "init_encoder_bias_with_mean_hidden_pre"
_BLOCK = 4096


@torch.no_grad()
def set_encoder_bias_(dictionary: Dictionary, x: Tensor) -> None:
    """b_E <- b_E - mean h / mean(dh / db_E): the GLU encoder's h too is linear in b_E, token by token.

    Without GLU h is affine in x and dh / db_E = 1, so that b_E <- b_E - h(mean x). Features whose gate is closed on every
    token are left alone.

    Args:
        dictionary: encoder set.
        x: normalised inputs [N, d_in].

    Raises:
        ParamsError: not for this kind.
    """
    weights = weights_of(dictionary, OPTION)
    bias = weights.b_E
    if not weights.gated:
        bias.sub_(dictionary.pre_activations(x.mean(0, keepdim=True))[0])
        return
    before = bias.clone()
    total = torch.zeros(bias.shape, dtype=torch.float64, device=bias.device)
    slope = torch.zeros_like(total)
    for block in x.split(_BLOCK):
        h = dictionary.pre_activations(block)
        bias.add_(1.0)
        slope += (dictionary.pre_activations(block) - h).sum(0, dtype=torch.float64)
        bias.copy_(before)
        total += h.sum(0, dtype=torch.float64)
    usable = slope.abs() > 1e-6 * len(x)
    bias.sub_(torch.where(usable, total / torch.where(usable, slope, 1.0), 0.0).to(bias.dtype))
