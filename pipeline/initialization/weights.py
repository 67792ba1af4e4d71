"""The four tensors that the strategies set, and which kinds of dictionary have them in that form."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from pipeline.dictionaries.base import Dictionary
from pipeline.errors import ParamsError


class Weights(NamedTuple):
    """Encoder and decoder of a dictionary that reads one hook point and writes one; the parameters themselves.

    Attributes:
        W_E: [d_in, F].
        b_E: [F].
        W_D: [F, d_out].
        b_D: [d_out], or None without decoder bias.
        gated: the encoder has a second, sigmoid branch (GLU).
    """

    W_E: Tensor
    b_E: Tensor
    W_D: Tensor
    b_D: Tensor | None
    gated: bool


def weights_of(dictionary: Dictionary, option: str) -> Weights:
    """The dictionary's weights, for the strategy `initializer.<option>`.

    Raises:
        ParamsError: the kind has no encoder [d_in, F] and decoder [F, d_out]: the option makes no sense for it.
    """
    named = dict(dictionary.named_parameters())
    config = dictionary.config
    wanted = {
        "W_E": (config.d_in, config.d_sae),
        "b_E": (config.d_sae,),
        "W_D": (config.d_sae, config.width_out),
    }
    if any(name not in named or tuple(named[name].shape) != shape for name, shape in wanted.items()):
        raise ParamsError(
            f"initializer.{option}: not for dictionary.kind '{config.kind}', which has no single encoder and decoder"
        )
    return Weights(named["W_E"], named["b_E"], named["W_D"], named.get("b_D"), "W_G" in named)


@torch.no_grad()
def transpose_encoder_(weights: Weights, factor: float) -> bool:
    """W_E = factor * W_D^T where d_in == d_out; False (and nothing done) where they differ."""
    if weights.W_E.shape != weights.W_D.T.shape:
        return False
    weights.W_E.copy_(weights.W_D.T * factor)
    return True
