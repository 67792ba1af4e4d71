"""init_encoder_bias_with_mean_hidden_pre: the encoder bias that makes each feature's mean pre-activation 0."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from pipeline.dictionaries.base import Dictionary
from pipeline.dictionaries.fold import divisible
from pipeline.initialization.sample import Sample
from pipeline.initialization.weights import parts_of

OPTION = "init_encoder_bias_with_mean_hidden_pre"
_BLOCK = 4096


class CentredBias(NamedTuple):
    """The encoder bias that was found for one length of each feature's encoder weights, and with it that for every length.

    h = g x W_E + g b_E (g the GLU's gate, or 1), so that the bias with mean h = 0 is linear in the feature's weights: weights
    a times as long, a > 0, want a times the bias.

    Attributes:
        bias: b_E of `feature_shape`.
        lengths: norms of the encoder weights that it belongs to, of `feature_shape`.
        found: bool of `feature_shape`, False for a feature whose bias was left alone.
    """

    bias: Tensor
    lengths: Tensor
    found: Tensor

    @torch.no_grad()
    def follow_(self, dictionary: Dictionary) -> None:
        """Set the bias for the encoder as it is now: the features' weights times positive factors; no activation is read."""
        bias = self.bias * (dictionary.encoder_norms() / divisible(self.lengths))
        dictionary.encoder_bias().copy_(torch.where(self.found, bias, dictionary.encoder_bias()))


@torch.no_grad()
def set_encoder_bias_(dictionary: Dictionary, sample: Sample) -> CentredBias:
    """b_E <- b_E - mean h / mean(dh / db_E): h is linear in b_E, token by token, in the GLU encoder too.

    Without GLU dh / db_E = 1. Features whose gate is closed on every token are left alone.

    Args:
        dictionary: encoder set.
        sample: normalised inputs.

    Returns: the bias, which can follow the encoder to other lengths.

    Raises:
        ParamsError: not for this kind.
    """
    gated = any(part.gated for part in parts_of(dictionary, OPTION))
    bias, shape = dictionary.encoder_bias(), dictionary.feature_shape
    before = bias.clone()
    total = torch.zeros(bias.shape, dtype=torch.float64, device=bias.device)
    slope = torch.zeros_like(total)
    n_tokens = 0
    rows = _BLOCK if sample.mask is None and not dictionary.reads_sequences else max(1, _BLOCK // sample.x.shape[1])
    for start in range(0, len(sample), rows):
        x = sample.x[start : start + rows]
        mask = None if sample.mask is None else sample.mask[start : start + rows]

        def mean_part(x: torch.Tensor = x, mask: torch.Tensor | None = mask) -> torch.Tensor:
            h = dictionary.pre_activations(x).reshape(-1, *shape)
            return (h if mask is None else h[mask.reshape(-1)]).double()

        h = mean_part()
        n_tokens += len(h)
        total += h.sum(0)
        if gated:
            bias.add_(1.0)
            slope += (mean_part() - h).sum(0)
            bias.copy_(before)
    if not gated:
        slope.fill_(n_tokens)
    usable = slope.abs() > 1e-6 * n_tokens
    bias.sub_(torch.where(usable, total / torch.where(usable, slope, 1.0), 0.0).to(bias.dtype))
    return CentredBias(bias.detach().clone(), dictionary.encoder_norms(), usable)
